//! Registration by live streams: each stream holds one workload in the
//! [registry](crate::registry) for as long as it lives. Pods, which the cluster
//! knows, only [report](super::report).

use std::sync::Arc;
use std::time::{Duration, Instant};

use heddle_api::discovery::v1;
use heddle_api::discovery::v1::registry_server;
use heddle_api::name::ServiceName;
use parking_lot::Mutex;
use tokio::sync::{Notify, mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};
use tracing::{debug, info, warn};

use super::connection::Peer;
use super::report::Listener;
use crate::alerts::SharedAlerts;
use crate::ca::Subject;
use crate::metrics::Metrics;
use crate::model::Registration;
use crate::registry::{Hold, Registry, Update, request};
use crate::reports::SharedReports;

/// The registry as streams and the compiler share it.
pub(crate) struct SharedRegistry {
    registry: Mutex<Registry>,
    /// Set after each change of what compiles; the compiler waits for it.
    pub(crate) changed: Notify,
}

impl SharedRegistry {
    pub(crate) fn new(registry: Registry) -> Arc<Self> {
        Arc::new(Self { registry: Mutex::new(registry), changed: Notify::new() })
    }

    /// Reads or changes the registry without telling the compiler.
    pub(crate) fn with<T>(&self, look: impl FnOnce(&mut Registry) -> T) -> T {
        look(&mut self.registry.lock())
    }

    fn change<T>(&self, change: impl FnOnce(&mut Registry) -> T) -> T {
        let result = change(&mut self.registry.lock());
        self.changed.notify_one();
        result
    }
}

/// The service; one for all connections.
pub(crate) struct RegistryService {
    pub(crate) registry: Arc<SharedRegistry>,
    pub(crate) reports: Arc<SharedReports>,
    /// Whether the cluster says who serves, and nobody registers.
    pub(crate) in_cluster: bool,
    pub(crate) alerts: Arc<SharedAlerts>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) shutdown: watch::Receiver<bool>,
}

/// A stream is opened to register, or to report, at once.
pub(super) const FIRST_REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

#[tonic::async_trait]
impl registry_server::Registry for RegistryService {
    type RegisterStream = ReceiverStream<Result<v1::RegisterResponse, Status>>;

    async fn register(
        &self,
        request: Request<Streaming<v1::RegisterRequest>>,
    ) -> Result<Response<Self::RegisterStream>, Status> {
        let subject = Peer::of(&request)?.proved()?.clone();
        if self.in_cluster {
            return Err(Status::failed_precondition(
                "in Kubernetes nobody registers: EndpointSlices say who serves",
            ));
        }
        let requests = request.into_inner();
        // A response per request, and requests wait until the last one was taken.
        let (responses, receiver) = mpsc::channel(1);
        let (registry, alerts) = (self.registry.clone(), self.alerts.clone());
        let metrics = self.metrics.clone();
        let mut shutdown = self.shutdown.clone();
        tokio::spawn(async move {
            let status = tokio::select! {
                status = hold(&registry, &alerts, &subject, requests, &responses) => status,
                _ = shutdown.wait_for(|over| *over) => Status::unavailable("the control plane is shutting down"),
            };
            if status.code() == tonic::Code::Ok {
                return;
            }
            if matches!(status.code(), tonic::Code::InvalidArgument | tonic::Code::PermissionDenied) {
                metrics.registration_refused();
                warn!(identity = %subject.identity, reason = status.message(), "a registration was refused");
            }
            let _ = tokio::time::timeout(FIRST_REQUEST_TIMEOUT, responses.send(Err(status))).await;
        });
        Ok(Response::new(ReceiverStream::new(receiver)))
    }

    type ReportStream = ReceiverStream<Result<v1::ReportResponse, Status>>;

    async fn report(
        &self,
        request: Request<Streaming<v1::ReportRequest>>,
    ) -> Result<Response<Self::ReportStream>, Status> {
        let subject = Peer::of(&request)?.proved()?.clone();
        let Some(uid) = subject.pod.clone() else {
            return Err(Status::failed_precondition("a certificate that names no pod reports of none"));
        };
        let (responses, receiver) = mpsc::channel(1);
        let pod = (subject.identity.clone(), uid);
        let listener = Listener { reports: self.reports.clone(), pod, metrics: self.metrics.clone() };
        tokio::spawn(listener.listen(request.into_inner(), responses, self.shutdown.clone()));
        Ok(Response::new(ReceiverStream::new(receiver)))
    }
}

/// Keeps a workload registered until its stream ends; returns why it did.
async fn hold(
    registry: &Arc<SharedRegistry>,
    alerts: &Arc<SharedAlerts>,
    subject: &Subject,
    mut requests: Streaming<v1::RegisterRequest>,
    responses: &mpsc::Sender<Result<v1::RegisterResponse, Status>>,
) -> Status {
    let mut held: Option<Held> = None;
    loop {
        let request = match &held {
            Some(_) => requests.message().await,
            None => match tokio::time::timeout(FIRST_REQUEST_TIMEOUT, requests.message()).await {
                Ok(request) => request,
                Err(_) => return Status::deadline_exceeded("nothing was registered on this stream"),
            },
        };
        let mut request = match request {
            Ok(Some(request)) => request,
            Ok(None) => return Status::ok(""),
            Err(status) => {
                debug!(identity = %subject.identity, %status, "a registry stream was lost");
                return Status::ok("");
            }
        };
        let reported = request::alerts(std::mem::take(&mut request.alerts));
        let read = reported.and_then(|reported| Ok((request::read(request, subject)?, reported)));
        let (registration, reported) = match read {
            Ok(read) => read,
            Err(refused @ request::Refused::Service { .. }) => {
                return Status::permission_denied(refused.to_string());
            }
            Err(refused @ request::Refused::Field { .. }) => {
                return Status::invalid_argument(refused.to_string());
            }
        };
        let held = match &mut held {
            None => held.insert(Held::new(registry.clone(), alerts.clone(), registration)),
            Some(held) => {
                if let Err(status) = held.update(registration) {
                    return status;
                }
                held
            }
        };
        alerts.report(held.reports, held.hold.workload(), &held.service, reported);
        if responses.send(Ok(v1::RegisterResponse {})).await.is_err() {
            return Status::ok("");
        }
    }
}

/// A workload held by a stream; lost when dropped, however the stream ends.
struct Held {
    registry: Arc<SharedRegistry>,
    alerts: Arc<SharedAlerts>,
    hold: Hold,
    /// The number of the stream to `alerts`.
    reports: u64,
    service: ServiceName,
    instance: String,
}

impl Held {
    fn new(registry: Arc<SharedRegistry>, alerts: Arc<SharedAlerts>, registration: Registration) -> Self {
        info!(service = %registration.service, instance = registration.instance,
              address = %registration.address, inbound = registration.inbound_port, "a workload registered");
        let (service, instance) = (registration.service.clone(), registration.instance.clone());
        let hold = registry.change(|registry| registry.register(registration));
        let reports = alerts.stream();
        Self { registry, alerts, hold, reports, service, instance }
    }

    fn update(&mut self, registration: Registration) -> Result<(), Status> {
        if registration.instance != self.instance {
            return Err(Status::invalid_argument(
                "a stream registers one instance; open another for another",
            ));
        }
        match self.registry.with(|registry| registry.update(&self.hold, registration)) {
            Update::Changed => self.registry.changed.notify_one(),
            Update::Noted => {}
            Update::Superseded => {
                return Err(Status::aborted("a newer stream registered the same instance"));
            }
        }
        Ok(())
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.registry.change(|registry| registry.lost(&self.hold, Instant::now()));
        self.alerts.lost(self.reports, self.hold.workload());
    }
}
