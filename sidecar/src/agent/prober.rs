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

/// How a peer is greeted for probes of this protocol. Made once for each endpoint: the certificate
/// and the roots are looked up at each handshake.
type TlsConfig = (MeshProtocol, Arc<rustls::ClientConfig>);

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
        let mut config = None;
        loop {
            let Ok(slot) = self.slots.acquire().await else { return };
            let Some(check) = check.upgrade() else { return };
            tokio::time::sleep_until(self.pace.turn(Instant::now()).into()).await;
            let policy = check.policy();
            if last.is_none_or(|last| !Arc::ptr_eq(&last, &policy)) {
                health.restart();
            }
            let deadline = Instant::now() + policy.timeout;
            let probe = self.probe(&check.key, &policy, &mut config);
            let result = tokio::time::timeout_at(deadline.into(), probe).await.ok();
            let late = Instant::now().saturating_duration_since(deadline);
            drop(slot);
            let gave = Gave::of(result, late);
            results.count(&gave);
            if let Some(error) = gave.error(policy.timeout) {
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

    async fn probe(
        &self,
        key: &CheckKey,
        policy: &HealthCheckPolicy,
        config: &mut Option<TlsConfig>,
    ) -> io::Result<()> {
        let host = match &key.target {
            Target::Tls { origination, .. } => origination.terms().server_name.to_str().into_owned(),
            _ => format!("{}.{}", key.service.name(), key.service.namespace()),
        };
        let server = probe::Server { host: &host, is_mesh: matches!(key.target, Target::Mesh { .. }) };
        let speaks_http2 = key.protocol == AppProtocol::Http2;
        match &policy.probe {
            Probe::Http(path) => {
                let status = if speaks_http2 {
                    let stream = self.connect(&key.target, MeshProtocol::Http2, config).await?;
                    probe::http2(stream, server, path).await?
                } else {
                    let stream = self.connect(&key.target, MeshProtocol::Http1, config).await?;
                    probe::http1(stream, server, path).await?
                };
                match status {
                    200..300 => Ok(()),
                    status => Err(io::Error::other(format!("GET {path} was answered with {status}"))),
                }
            }
            Probe::Grpc(service) => {
                let stream = self.connect(&key.target, MeshProtocol::Http2, config).await?;
                probe::grpc(stream, server, service).await
            }
            Probe::Tcp => {
                let stream = self.connect(&key.target, MeshProtocol::Tcp, config).await?;
                match &key.target {
                    // Its sidecar took the connection; whether the application does is for it to say.
                    Target::Mesh { .. } => tcp::accepted(&mut Connection::new(stream), policy.timeout).await,
                    Target::Plain(_) | Target::Tls { .. } | Target::App(_) => Ok(()),
                }
            }
        }
    }

    async fn connect(
        &self,
        target: &Target,
        protocol: MeshProtocol,
        config: &mut Option<TlsConfig>,
    ) -> io::Result<Transport> {
        match target {
            Target::Plain(address) => TcpStream::connect(address).await.map(Transport::Tcp),
            Target::Tls { address, origination } => {
                let tls = origination.begin(TcpStream::connect(address).await?, protocol).await?;
                Ok(Transport::TlsClient(Box::new(tls)))
            }
            Target::Mesh { inbound, identity, port } => {
                let config = match config {
                    Some((of, known)) if *of == protocol => known.clone(),
                    _ => {
                        let made = self.credentials.client_config(identity.clone(), &[protocol.alpn()]);
                        config.insert((protocol, Arc::new(made))).1.clone()
                    }
                };
                greet(self.app.listener_of(*inbound), *port, protocol, config).await
            }
            Target::App(_) => Err(io::Error::other("the application beside us is not a peer")),
        }
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
            limited: counter("limited"),
        }
    }
}

/// A connection to the sidecar of an endpoint, at its listener, for a port of its application.
async fn greet(
    listener: SocketAddr,
    port: u16,
    protocol: MeshProtocol,
    config: Arc<rustls::ClientConfig>,
) -> io::Result<Transport> {
    let tcp = TcpStream::connect(listener).await?;
    let tcp = BufferedTcp::new(tcp, ReadBuffer::default());
    let tls = TlsConnector::from(config).connect(server_name(port), tcp).await?;
    if tls.get_ref().1.alpn_protocol() != Some(protocol.alpn()) {
        return Err(io::Error::other(format!("it does not speak {protocol:?} of the mesh")));
    }
    Ok(Transport::TlsClient(Box::new(tls)))
}

/// What a probe gave.
#[derive(Debug)]
enum Gave {
    Success,
    Failure(io::Error),
    /// No answer in time.
    Timeout,
    /// No answer when this thread came to look, which was too late.
    Late,
    /// A rate limit of the server's sidecar refused it.
    Limited,
}

impl Gave {
    /// `result`: `None` if there was none in time, which was noticed so `late`.
    fn of(result: Option<io::Result<()>>, late: Duration) -> Self {
        match result {
            Some(Ok(())) => Self::Success,
            Some(Err(error)) if error.get_ref().is_some_and(|error| error.is::<probe::Limited>()) => {
                Self::Limited
            }
            Some(Err(error)) => Self::Failure(error),
            None if late > PUNCTUAL => Self::Late,
            None => Self::Timeout,
        }
    }

    /// What is wrong with the endpoint, if anything; `None`: it proves nothing, for or against it.
    fn error(self, timeout: Duration) -> Option<Option<String>> {
        match self {
            Self::Success => Some(None),
            Self::Failure(error) => Some(Some(error.to_string())),
            Self::Timeout => Some(Some(format!("no answer within {timeout:?}"))),
            Self::Late | Self::Limited => None,
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
    /// Refused by a rate limit of the server's sidecar.
    limited: SharedCounter,
}

impl Results {
    fn count(&self, gave: &Gave) {
        let counter = match gave {
            Gave::Success => &self.success,
            Gave::Failure(_) => &self.failure,
            Gave::Timeout => &self.timeout,
            Gave::Late => &self.late,
            Gave::Limited => &self.limited,
        };
        counter.increment();
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    const TIMEOUT: Duration = Duration::from_secs(1);

    fn said(result: Option<io::Result<()>>, late: Duration) -> Option<Option<String>> {
        Gave::of(result, late).error(TIMEOUT)
    }

    /// A thread that was held up took its own lateness for the endpoints', all at once.
    #[test]
    fn a_time_that_was_over_long_before_anybody_looked_proves_nothing() {
        assert_eq!(said(None, PUNCTUAL), Some(Some("no answer within 1s".into())));
        assert_eq!(said(None, PUNCTUAL + Duration::from_millis(1)), None);
        // An answer is one however late the thread is.
        assert_eq!(said(Some(Ok(())), TIMEOUT), Some(None));
        let refused = io::Error::other("refused");
        assert_eq!(said(Some(Err(refused)), TIMEOUT), Some(Some("refused".into())));
    }

    #[test]
    fn what_a_rate_limit_refused_proves_nothing() {
        assert_eq!(said(Some(Err(io::Error::other(probe::Limited))), Duration::ZERO), None);
    }
}
