//! Probes the endpoints that workers have checked, and tells them when a
//! verdict changes.
//!
//! Inside the mesh a probe goes the way of requests: mutual TLS, to the identity
//! that was announced, for the application's port. Each endpoint is probed by a
//! task of its own, of which only some have a probe under way at any time, and
//! which take turns: where there is more to probe than is good for the thread,
//! intervals become longer.

use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use heddle_api::spiffe::SpiffeId;
use heddle_api::tls::Credentials;
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::task::spawn_local;
use tokio_rustls::TlsConnector;

use super::probe;
use super::reconnect::seeded;
use crate::config::AppProtocol;
use crate::io::{BufferedTcp, Connection, ReadBuffer, Transport};
use crate::listener::AppDialer;
use crate::policy::health_check::{HealthCheck, HealthCheckPolicy, Probe, Verdict};
use crate::policy::pace::Pace;
use crate::policy::rng::Rng;
use crate::tcp;
use crate::telemetry::metrics::{Registry, SharedCounter};
use crate::upstream::{Check, CheckKey, Checks, MeshProtocol, Target, server_name};

/// Probes under way: handshakes of more would hold up what else this thread does.
const IN_FLIGHT: usize = 64;

/// Between the beginnings of two probes, which makes 200 a second: with a handshake of a
/// millisecond each they take a fifth of the thread.
const GAP: Duration = Duration::from_millis(5);

/// How late a timer may be noticed on a thread that keeps up. Later than that, the answer may
/// have lain there in time.
const PUNCTUAL: Duration = Duration::from_millis(20);

/// Makes the probes.
pub(crate) struct Prober {
    checks: Checks,
    credentials: Arc<Credentials>,
    metrics: Registry,
    app: AppDialer,
    slots: Semaphore,
    pace: Pace,
    rng: Rng,
}

impl Prober {
    pub(crate) fn new(
        checks: Checks,
        credentials: Arc<Credentials>,
        metrics: Registry,
        app: AppDialer,
    ) -> Self {
        let (slots, pace) = (Semaphore::new(IN_FLIGHT), Pace::new(GAP));
        Self { checks, credentials, metrics, app, slots, pace, rng: seeded() }
    }

    /// Runs for ever.
    pub(crate) async fn run(self) {
        let prober = Rc::new(self);
        loop {
            for check in prober.checks.joined().await {
                spawn_local(prober.clone().attend(check));
            }
        }
    }

    /// Probes one endpoint for as long as anybody wants to know.
    async fn attend(self: Rc<Self>, check: Weak<Check>) {
        let Some((nudge, results)) = check.upgrade().map(|c| (c.nudge().clone(), self.results(&c.key)))
        else {
            return;
        };
        let mut health = HealthCheck::default();
        let mut last: Option<Arc<HealthCheckPolicy>> = None;
        loop {
            let Ok(slot) = self.slots.acquire().await else { return };
            let Some(check) = check.upgrade() else { return };
            tokio::time::sleep_until(self.pace.turn(Instant::now()).into()).await;
            let policy = check.policy();
            if last.is_none_or(|last| !Arc::ptr_eq(&last, &policy)) {
                health.restart();
            }
            let deadline = Instant::now() + policy.timeout;
            let probe = self.probe(&check.key, &policy);
            let result = tokio::time::timeout_at(deadline.into(), probe).await;
            let late = Instant::now().saturating_duration_since(deadline);
            drop(slot);
            let error = match result {
                Ok(Ok(())) => {
                    results.success.increment();
                    Some(None)
                }
                Ok(Err(error)) => {
                    results.failure.increment();
                    Some(Some(error.to_string()))
                }
                Err(_) if late > PUNCTUAL => {
                    results.late.increment();
                    None
                }
                Err(_) => {
                    results.timeout.increment();
                    Some(Some(format!("no answer within {:?}", policy.timeout)))
                }
            };
            // What was late proves nothing, for or against the endpoint.
            if let Some(error) = error {
                self.conclude(&check, &mut health, &policy, error);
            }
            let wait = policy.wait(&self.rng);
            last = Some(policy);
            // What is waited for below may be the end of the last who holds it.
            drop(check);
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = nudge.notified() => {}
            }
        }
    }

    /// Notes what a probe gave, and tells the workers if that changes the verdict.
    fn conclude(
        &self,
        check: &Check,
        health: &mut HealthCheck,
        policy: &HealthCheckPolicy,
        error: Option<String>,
    ) {
        let verdict = health.observe(error.is_none(), policy);
        if let Some(verdict) = verdict {
            tell(&check.key, verdict, error.as_deref());
            check.set_verdict(verdict);
        }
        check.set_last_error(error.map(String::into_boxed_str));
        if verdict.is_some() {
            self.checks.announce();
        }
    }

    async fn probe(&self, key: &CheckKey, policy: &HealthCheckPolicy) -> io::Result<()> {
        let host = match &key.target {
            Target::Tls { origination, .. } => origination.terms().server_name.to_str().into_owned(),
            _ => format!("{}.{}", key.service.name(), key.service.namespace()),
        };
        let speaks_http2 = key.protocol == AppProtocol::Http2;
        match &policy.probe {
            Probe::Http(path) => {
                let status = if speaks_http2 {
                    let stream = self.connect(&key.target, MeshProtocol::Http2).await?;
                    probe::http2(stream, &host, path).await?
                } else {
                    let stream = self.connect(&key.target, MeshProtocol::Http1).await?;
                    probe::http1(stream, &host, path).await?
                };
                match status {
                    200..300 => Ok(()),
                    status => Err(io::Error::other(format!("GET {path} was answered with {status}"))),
                }
            }
            Probe::Grpc(service) => {
                let stream = self.connect(&key.target, MeshProtocol::Http2).await?;
                probe::grpc(stream, &host, service).await
            }
            Probe::Tcp => {
                let stream = self.connect(&key.target, MeshProtocol::Tcp).await?;
                match &key.target {
                    // Its sidecar took the connection; whether the application does is for it to say.
                    Target::Mesh { .. } => tcp::accepted(&mut Connection::new(stream), policy.timeout).await,
                    Target::Plain(_) | Target::Tls { .. } | Target::App(_) => Ok(()),
                }
            }
        }
    }

    async fn connect(&self, target: &Target, protocol: MeshProtocol) -> io::Result<Transport> {
        match target {
            Target::Plain(address) => TcpStream::connect(address).await.map(Transport::Tcp),
            Target::Tls { address, origination } => {
                let tls = origination.begin(TcpStream::connect(address).await?, protocol).await?;
                Ok(Transport::TlsClient(Box::new(tls)))
            }
            Target::Mesh { inbound, identity, port } => self.greet(*inbound, identity, *port, protocol).await,
            Target::App(_) => Err(io::Error::other("the application beside us is not a peer")),
        }
    }

    async fn greet(
        &self,
        inbound: SocketAddr,
        identity: &SpiffeId,
        port: u16,
        protocol: MeshProtocol,
    ) -> io::Result<Transport> {
        let tcp = TcpStream::connect(self.app.listener_of(inbound)).await?;
        let config = self.credentials.client_config(identity.clone(), &[protocol.alpn()]);
        let tcp = BufferedTcp::new(tcp, ReadBuffer::default());
        let tls = TlsConnector::from(Arc::new(config)).connect(server_name(port), tcp).await?;
        if tls.get_ref().1.alpn_protocol() != Some(protocol.alpn()) {
            return Err(io::Error::other(format!("it does not speak {protocol:?} of the mesh")));
        }
        Ok(Transport::TlsClient(Box::new(tls)))
    }

    fn results(&self, key: &CheckKey) -> Results {
        let counter = |result| {
            let labels =
                [("service", key.service.name()), ("namespace", key.service.namespace()), ("result", result)];
            let help = "Probes of endpoints, by what became of them.";
            self.metrics.counter("heddle_health_checks_total", help, &labels)
        };
        Results {
            success: counter("success"),
            failure: counter("failure"),
            timeout: counter("timeout"),
            late: counter("late"),
        }
    }
}

/// `heddle_health_checks_total` of one service.
struct Results {
    success: SharedCounter,
    failure: SharedCounter,
    timeout: SharedCounter,
    /// Timeouts that this thread noticed too late for them to count.
    late: SharedCounter,
}

fn tell(key: &CheckKey, verdict: Verdict, error: Option<&str>) {
    let CheckKey { service, port, endpoint, .. } = key;
    match error {
        Some(error) => {
            tracing::warn!(%service, port, %endpoint, error, "an endpoint fails its health checks")
        }
        None => {
            let verdict = verdict.as_str();
            tracing::info!(%service, port, %endpoint, verdict, "an endpoint passes its health checks");
        }
    }
}
