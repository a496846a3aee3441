//! Whether the application is ready, seen as its callers would: by connecting
//! to it.
//!
//! [`Health`] decides, purely; `watch` probes. At first probes follow one
//! another quickly, so that a workload joins as soon as it listens.

use std::cell::Cell;
use std::io;
use std::rc::Rc;
use std::time::Duration;

use tokio::sync::watch;

use crate::listener::AppDialer;
use crate::policy::score::Tally;
use crate::settings::{HealthSpec, Workload};

use super::probe::{self, Server};
use super::reconnect::seeded;

/// The first wait between probes of an application that was not ready yet; it
/// grows by a half each time up to [`INTERVAL`].
const FIRST: Duration = Duration::from_millis(20);

/// Between probes of an application in steady state.
const INTERVAL: Duration = Duration::from_secs(1);

/// How long one probe may take.
const TIMEOUT: Duration = Duration::from_secs(1);

/// Failures in a row after which a ready application is not ready any more.
/// One lost probe of a busy application is no reason to send everyone away.
const FAILURES: u32 = 3;

/// Whether there is anything about the workload that [`watch`] can check.
pub(crate) fn is_checked(workload: &Workload) -> bool {
    !workload.ports.is_empty() || workload.health != HealthSpec::Tcp
}

/// Keeps `ready` up to date, for ever, and counts in `results` what probes gave.
pub(crate) async fn watch(
    workload: Workload,
    app: AppDialer,
    ready: watch::Sender<bool>,
    results: Rc<Cell<Tally>>,
) {
    let ports: Vec<u16> = workload.ports.iter().map(|port| port.number).collect();
    if !is_checked(&workload) {
        // A workload that only calls others has nothing that could be unready.
        ready.send_replace(true);
        return std::future::pending().await;
    }
    let rng = seeded();
    let mut health = Health::default();
    loop {
        let result = tokio::time::timeout(TIMEOUT, check(&workload.health, &ports, &app)).await;
        let error = match result {
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some(error.to_string()),
            Err(_) => Some(format!("no answer within {TIMEOUT:?}")),
        };
        let Tally { all, failed } = results.get();
        results.set(Tally { all: all + 1, failed: failed + u64::from(error.is_some()) });
        if let Some(now) = health.observe(error.is_none()) {
            match &error {
                Some(reason) => tracing::warn!(%reason, "the application is not ready any more"),
                None => tracing::info!("the application is ready"),
            }
            ready.send_replace(now);
        }
        // A fifth of jitter keeps many sidecars of one machine out of step.
        tokio::time::sleep(health.wait().mul_f64(0.9 + rng.unit() / 5.0)).await;
    }
}

/// The decision: one success makes ready, several failures in a row unready.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Health {
    ready: bool,
    /// Failures in a row.
    failures: u32,
}

impl Health {
    /// Whether the application is ready.
    pub(crate) fn is_ready(&self) -> bool {
        self.ready
    }

    /// Notes a probe. Returns the readiness if it changed.
    pub(crate) fn observe(&mut self, success: bool) -> Option<bool> {
        self.failures = if success { 0 } else { self.failures.saturating_add(1) };
        let ready = success || (self.ready && self.failures < FAILURES);
        (std::mem::replace(&mut self.ready, ready) != ready).then_some(ready)
    }

    /// How long to wait for the next probe.
    fn wait(&self) -> Duration {
        if self.ready {
            return INTERVAL;
        }
        let exponent = i32::try_from(self.failures.saturating_sub(1).min(20)).unwrap_or(20);
        FIRST.mul_f64(1.5_f64.powi(exponent)).min(INTERVAL)
    }
}

async fn check(health: &HealthSpec, ports: &[u16], app: &AppDialer) -> io::Result<()> {
    match health {
        HealthSpec::Tcp => {
            for port in ports {
                app.connect(*port).await.map_err(|error| at(*port, &error))?;
            }
            Ok(())
        }
        HealthSpec::Http { path, port } => {
            let port = port.or(ports.first().copied()).ok_or_else(no_port)?;
            let status = async {
                let host = format!("localhost:{port}");
                probe::http1(app.connect(port).await?, Server { host: &host, is_mesh: false }, path).await
            };
            match status.await.map_err(|error| at(port, &error))? {
                100..400 => Ok(()),
                status => Err(at(port, &io::Error::other(format!("GET {path} was answered with {status}")))),
            }
        }
        HealthSpec::Grpc => {
            let port = ports.first().copied().ok_or_else(no_port)?;
            let server = Server { host: "localhost", is_mesh: false };
            let served = async { probe::grpc(app.connect(port).await?, server, "").await };
            served.await.map_err(|error| at(port, &error))
        }
    }
}

fn at(port: u16, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("port {port}: {error}"))
}

fn no_port() -> io::Error {
    io::Error::other("there is no port to check")
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpSocket;

    use super::*;

    #[test]
    fn one_success_makes_ready_and_three_failures_unready() {
        let mut health = Health::default();
        assert_eq!(health.observe(false), None);
        assert_eq!(health.observe(true), Some(true));
        assert_eq!(health.observe(false), None);
        assert_eq!(health.observe(true), None);
        assert_eq!([false, false, false].map(|s| health.observe(s)), [None, None, Some(false)]);
        assert_eq!(health.observe(true), Some(true));
    }

    #[test]
    fn probes_are_quick_at_first_and_slow_down() {
        let mut health = Health::default();
        health.observe(false);
        assert_eq!(health.wait(), FIRST);
        assert!((0..50).all(|_| health.observe(false).is_none()));
        assert_eq!(health.wait(), INTERVAL);
        health.observe(true);
        assert_eq!(health.wait(), INTERVAL);
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_workload_is_ready_once_its_port_listens_and_not_after_it_closed() {
        // Nobody else gets it before it listens.
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let port = socket.local_addr().unwrap().port();
        let app = AppDialer::direct(None);
        assert!(check(&HealthSpec::Tcp, &[port], &app).await.is_err());
        let listener = socket.listen(8).unwrap();
        assert!(check(&HealthSpec::Tcp, &[port], &app).await.is_ok());
        drop(listener);
        assert!(check(&HealthSpec::Tcp, &[port], &app).await.is_err());
    }
}
