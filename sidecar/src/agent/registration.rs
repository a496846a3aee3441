//! Tells the control plane of the workload by a live stream, and again whenever
//! that breaks: registers it, or, in a pod, which the cluster knows without being
//! told, reports how it fares.

use std::time::{Duration, Instant};

use heddle_api::discovery::v1;
use heddle_api::discovery::v1::registry_client::RegistryClient;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Code, Response, Status, Streaming};

use super::control_plane::describe;
use super::reconnect::Reconnect;
use crate::policy::score::{Signal, Standing, State};

/// What is told of one workload.
pub(crate) struct Registration {
    /// The workload; readiness, health, `draining` and `alerts` are filled in from below. `None`: a pod.
    pub(crate) description: Option<v1::RegisterRequest>,
    /// The connection to the control plane, while there is one.
    pub(crate) channel: watch::Receiver<Option<Channel>>,
    /// Whether the application is ready.
    pub(crate) ready: watch::Receiver<bool>,
    /// How the workload fares.
    pub(crate) standing: watch::Receiver<Standing>,
    /// Whether the sidecar drains.
    pub(crate) draining: watch::Receiver<bool>,
    /// The alerts that fire.
    pub(crate) alerts: watch::Receiver<Vec<v1::FiringAlert>>,
    /// Whether the control plane was told, for `/config`.
    pub(crate) registered: watch::Sender<bool>,
}

/// How long a control plane is left alone that takes no reports, being older or having issued our
/// certificate when it was: until the next upgrade, or the next certificate.
const REFUSED: Duration = Duration::from_secs(300);

/// Why a stream ended.
struct Ended {
    reason: String,
    /// The control plane will not take another one soon.
    is_refused: bool,
}

impl Ended {
    fn because(reason: &str) -> Self {
        Self { reason: reason.into(), is_refused: false }
    }
}

impl From<Status> for Ended {
    fn from(status: Status) -> Self {
        let is_refused = matches!(status.code(), Code::Unimplemented | Code::FailedPrecondition);
        Self { reason: describe(&status), is_refused }
    }
}

impl Registration {
    /// Runs for ever.
    pub(crate) async fn run(mut self) {
        let mut reconnect = Reconnect::new();
        loop {
            let Some(channel) = self.connection().await else { return };
            let begun = Instant::now();
            let Ended { reason: end, is_refused } = match &self.description {
                Some(_) => self.register(channel).await,
                None => self.report(channel).await,
            };
            self.registered.send_replace(false);
            reconnect.lasted(begun.elapsed());
            if is_refused && self.description.is_none() {
                tracing::info!(%end, "the control plane takes no reports");
                // Another one may.
                let _ = tokio::time::timeout(REFUSED, self.channel.changed()).await;
            } else {
                tracing::warn!(%end, "the control plane hears no more of the workload for now");
            }
            tokio::time::sleep(reconnect.next()).await;
        }
    }

    async fn connection(&mut self) -> Option<Channel> {
        let channel = self.channel.wait_for(Option::is_some).await.ok()?;
        channel.clone()
    }

    async fn register(&mut self, channel: Channel) -> Ended {
        let call = async |requests| RegistryClient::new(channel).register(requests).await;
        self.stream(call, Self::registration).await
    }

    async fn report(&mut self, channel: Channel) -> Ended {
        let call = async |requests| RegistryClient::new(channel).report(requests).await;
        self.stream(call, Self::standing).await
    }

    /// One stream of what `now` says, at the start and after each change, until it ends.
    async fn stream<Request, Answer>(
        &mut self,
        call: impl AsyncFnOnce(ReceiverStream<Request>) -> Result<Response<Streaming<Answer>>, Status>,
        now: impl Fn(&mut Self) -> Request,
    ) -> Ended {
        // One waits in the channel and one is on its way: later states replace
        // earlier ones, and a control plane that does not read stops us here.
        let (requests, receiver) = mpsc::channel(1);
        if requests.send(now(self)).await.is_err() {
            return Ended::because("the stream takes no requests");
        }
        let mut responses = match call(ReceiverStream::new(receiver)).await {
            Ok(response) => response.into_inner(),
            Err(status) => return status.into(),
        };
        self.registered.send_replace(true);
        loop {
            tokio::select! {
                response = responses.message() => match response {
                    Ok(Some(_)) => continue,
                    Ok(None) => return Ended::because("the control plane ended the stream"),
                    Err(status) => return status.into(),
                },
                Ok(()) = self.ready.changed() => {
                    tracing::info!(ready = *self.ready.borrow(), "the application's readiness changed");
                }
                Ok(()) = self.alerts.changed() => {}
                Ok(()) = self.standing.changed() => {}
                Ok(()) = self.draining.changed() => {}
            }
            if requests.send(now(self)).await.is_err() {
                return Ended::because("the stream takes no more requests");
            }
        }
    }

    /// The workload as it is registered.
    fn registration(&mut self) -> v1::RegisterRequest {
        let (ready, draining) = (*self.ready.borrow_and_update(), *self.draining.borrow_and_update());
        let v1::ReportRequest { health, score, health_cause, alerts } = self.standing();
        let description = self.description.clone().unwrap_or_default();
        v1::RegisterRequest { ready, draining, health, score, health_cause, alerts, ..description }
    }

    /// How the workload fares.
    fn standing(&mut self) -> v1::ReportRequest {
        let Standing { state, score, cause } = *self.standing.borrow_and_update();
        v1::ReportRequest {
            health: health(state).into(),
            score,
            health_cause: cause.map_or("", Signal::as_str).into(),
            alerts: self.alerts.borrow_and_update().clone(),
        }
    }
}

fn health(state: State) -> v1::WorkloadHealth {
    match state {
        State::Sampling => v1::WorkloadHealth::Sampling,
        State::Warming => v1::WorkloadHealth::Warming,
        State::Healthy => v1::WorkloadHealth::Healthy,
        State::Degraded => v1::WorkloadHealth::Degraded,
        State::Warning => v1::WorkloadHealth::Warning,
        State::Critical => v1::WorkloadHealth::Critical,
    }
}
