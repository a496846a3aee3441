//! Registers the workload with the control plane by a live stream, and again
//! whenever that breaks. The control plane takes it out at once when it drains.

use std::time::Instant;

use heddle_api::discovery::v1;
use heddle_api::discovery::v1::registry_client::RegistryClient;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;

use super::control_plane::describe;
use super::reconnect::Reconnect;
use crate::policy::score::{Signal, Standing, State};

/// The registration of one workload.
pub(crate) struct Registration {
    /// The workload; readiness, health, `draining` and `alerts` are filled in from below.
    pub(crate) description: v1::RegisterRequest,
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

impl Registration {
    /// Runs for ever.
    pub(crate) async fn run(mut self) {
        let mut reconnect = Reconnect::new();
        loop {
            let Some(channel) = self.connection().await else { return };
            let begun = Instant::now();
            let end = self.stream(channel).await;
            self.registered.send_replace(false);
            tracing::warn!(%end, "the registration was interrupted");
            reconnect.lasted(begun.elapsed());
            tokio::time::sleep(reconnect.next()).await;
        }
    }

    async fn connection(&mut self) -> Option<Channel> {
        let channel = self.channel.wait_for(Option::is_some).await.ok()?;
        channel.clone()
    }

    /// One stream, until it ends for the reason returned.
    async fn stream(&mut self, channel: Channel) -> String {
        // One waits in the channel and one is on its way: later states replace
        // earlier ones, and a control plane that does not read stops us here.
        let (requests, receiver) = mpsc::channel(1);
        if requests.send(self.now()).await.is_err() {
            return "the stream takes no requests".into();
        }
        let call = RegistryClient::new(channel).register(ReceiverStream::new(receiver)).await;
        let mut responses = match call {
            Ok(response) => response.into_inner(),
            Err(status) => return describe(&status),
        };
        self.registered.send_replace(true);
        loop {
            tokio::select! {
                response = responses.message() => match response {
                    Ok(Some(v1::RegisterResponse {})) => {}
                    Ok(None) => return "the control plane ended the stream".into(),
                    Err(status) => return describe(&status),
                },
                Ok(()) = self.ready.changed() => {
                    tracing::info!(ready = *self.ready.borrow(), "the application's readiness changed");
                    if requests.send(self.now()).await.is_err() {
                        return "the stream takes no more requests".into();
                    }
                }
                Ok(()) = self.alerts.changed() => {
                    if requests.send(self.now()).await.is_err() {
                        return "the stream takes no more requests".into();
                    }
                }
                Ok(()) = self.standing.changed() => {
                    if requests.send(self.now()).await.is_err() {
                        return "the stream takes no more requests".into();
                    }
                }
                Ok(()) = self.draining.changed() => {
                    if requests.send(self.now()).await.is_err() {
                        return "the stream takes no more requests".into();
                    }
                }
            }
        }
    }

    fn now(&mut self) -> v1::RegisterRequest {
        let (ready, draining) = (*self.ready.borrow_and_update(), *self.draining.borrow_and_update());
        let alerts = self.alerts.borrow_and_update().clone();
        let Standing { state, score, cause } = *self.standing.borrow_and_update();
        v1::RegisterRequest {
            ready,
            draining,
            alerts,
            health: health(state).into(),
            score,
            health_cause: cause.map_or("", Signal::as_str).into(),
            ..self.description.clone()
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
