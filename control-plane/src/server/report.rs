//! What a pod's sidecar tells about it, by a live stream.

use std::sync::Arc;
use std::time::{Duration, Instant};

use heddle_api::discovery::v1;
use tokio::sync::{mpsc, watch};
use tonic::{Status, Streaming};
use tracing::{debug, warn};

use super::registry::FIRST_REQUEST_TIMEOUT;
use crate::metrics::Metrics;
use crate::registry::request;
use crate::reports::{PodKey, SharedReports, Superseded};

/// Between two requests of one stream: nobody is heard more often.
const PAUSE: Duration = Duration::from_millis(200);

/// Listens to one pod.
pub(super) struct Listener {
    pub(super) reports: Arc<SharedReports>,
    /// Whom the caller's certificate names.
    pub(super) pod: PodKey,
    pub(super) metrics: Arc<Metrics>,
}

type Responses = mpsc::Sender<Result<v1::ReportResponse, Status>>;

impl Listener {
    /// Listens until the stream ends, or `shutdown` is set.
    pub(super) async fn listen(
        self,
        requests: Streaming<v1::ReportRequest>,
        responses: Responses,
        mut shutdown: watch::Receiver<bool>,
    ) {
        let status = tokio::select! {
            status = self.hear(requests, &responses) => status,
            _ = shutdown.wait_for(|over| *over) => Status::unavailable("the control plane is shutting down"),
        };
        if status.code() == tonic::Code::Ok {
            return;
        }
        if status.code() == tonic::Code::InvalidArgument {
            self.metrics.registration_refused();
            let (identity, uid) = &self.pod;
            warn!(%identity, uid, reason = status.message(), "a report was refused");
        }
        let _ = tokio::time::timeout(FIRST_REQUEST_TIMEOUT, responses.send(Err(status))).await;
    }

    /// Takes what comes; returns why nothing more does.
    async fn hear(&self, mut requests: Streaming<v1::ReportRequest>, responses: &Responses) -> Status {
        let mut held: Option<Held<'_>> = None;
        loop {
            let request = match &held {
                Some(_) => requests.message().await,
                None => match tokio::time::timeout(FIRST_REQUEST_TIMEOUT, requests.message()).await {
                    Ok(request) => request,
                    Err(_) => return Status::deadline_exceeded("nothing was reported on this stream"),
                },
            };
            let request = match request {
                Ok(Some(request)) => request,
                Ok(None) => return Status::ok(""),
                Err(status) => {
                    debug!(identity = %self.pod.0, uid = self.pod.1, %status, "a stream of reports was lost");
                    return Status::ok("");
                }
            };
            let report = match request::report(request) {
                Ok(report) => report,
                Err(refused) => return Status::invalid_argument(refused.to_string()),
            };
            match &held {
                None => held = Some(Held { listener: self, stream: self.reports.begin(&self.pod, report) }),
                Some(Held { stream, .. }) => {
                    if let Err(Superseded) = self.reports.update(*stream, &self.pod, report) {
                        return Status::aborted("a newer stream reports of the same pod");
                    }
                }
            }
            if responses.send(Ok(v1::ReportResponse {})).await.is_err() {
                return Status::ok("");
            }
            tokio::time::sleep(PAUSE).await;
        }
    }
}

/// A pod that is heard; lost when dropped, however the stream ends.
struct Held<'a> {
    listener: &'a Listener,
    stream: u64,
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        let Listener { reports, pod, .. } = self.listener;
        reports.change(|reports| reports.lost(self.stream, pod, Instant::now()));
    }
}
