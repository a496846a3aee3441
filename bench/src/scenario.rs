//! What is measured, and how.

use std::time::Duration;

use clap::ValueEnum;

use crate::Peer;
use crate::load;
use crate::peers::{Carried, Pair};
use crate::process::Standing;

/// A scenario; its name on the command line is in kebab case.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum, Debug)]
pub(crate) enum Scenario {
    /// HTTP/1.1 keep-alive, 1 KiB, saturated
    Http1Small,
    /// HTTP/1.1 keep-alive, 16 KiB, saturated
    Http1Large,
    /// gRPC-like HTTP/2: POST, 128 bytes there, 1 KiB and trailers back, saturated
    Grpc,
    /// Opaque TCP, round trips of 64 bytes
    TcpRoundTrip,
    /// Opaque TCP, one round trip per connection
    TcpConnect,
    /// HTTP/1.1 at 1,000 requests per second, open loop
    Latency,
    /// As http1-small, under 1,000 rules of HTTPRoutes and 100 policies; Heddle alone
    Http1Routed,
    /// As latency, while all of those 1,000 rules change again and again; Heddle alone
    RoutePush,
    /// Resident memory, at rest and with 5,000 idle client connections
    Memory,
}

/// What one run gave. Absent: not measured by this scenario.
#[derive(Default, Clone, Debug)]
pub(crate) struct Outcome {
    /// Requests (or round trips, or connections) per second.
    pub(crate) per_second: Option<f64>,
    /// CPU of both proxies per request, in microseconds.
    pub(crate) cpu_us: Option<f64>,
    /// Latencies in microseconds.
    pub(crate) p50_us: Option<f64>,
    pub(crate) p99_us: Option<f64>,
    pub(crate) longest_us: Option<f64>,
    /// Requests that took more than [`load::own::SLOW`].
    pub(crate) slow: Option<f64>,
    /// Resident memory of the larger proxy, in MiB.
    pub(crate) idle_mib: Option<f64>,
    pub(crate) loaded_mib: Option<f64>,
}

/// Client connections of saturating loads.
const CONNECTIONS: usize = 50;

/// Idle client connections of [`Scenario::Memory`].
const IDLE_CONNECTIONS: usize = 5000;

/// Requests per second of [`Scenario::Latency`] and [`Scenario::RoutePush`].
const RATE: u64 = 1000;

/// How often all routes change in [`Scenario::RoutePush`].
const PUSH_EVERY: Duration = Duration::from_millis(500);

impl Scenario {
    pub(crate) fn carried(self) -> Carried {
        match self {
            Self::Http1Small
            | Self::Http1Large
            | Self::Latency
            | Self::Http1Routed
            | Self::RoutePush
            | Self::Memory => Carried::Http1,
            Self::Grpc => Carried::Http2,
            Self::TcpRoundTrip | Self::TcpConnect => Carried::Tcp,
        }
    }

    /// Whether a peer can be measured by it.
    pub(crate) fn concerns(self, peer: Peer) -> bool {
        peer == Peer::Heddle || !self.is_routed()
    }

    /// Whether requests are under the routes of `peers::routes`.
    pub(crate) fn is_routed(self) -> bool {
        matches!(self, Self::Http1Routed | Self::RoutePush)
    }

    /// Whether it counts latencies, under a load that leaves the machine room.
    pub(crate) fn is_of_latency(self) -> bool {
        matches!(self, Self::Latency | Self::RoutePush)
    }

    pub(crate) async fn measure(
        self,
        pair: &mut Pair,
        standing: Standing,
        length: Duration,
    ) -> anyhow::Result<Outcome> {
        let warm = Duration::from_secs(1);
        match self {
            Self::Http1Small | Self::Http1Large | Self::Http1Routed => {
                let path = if self == Self::Http1Large { "/16384" } else { "/1024" };
                load::wrk(pair, path, CONNECTIONS, warm).await?;
                saturated(pair, load::wrk(pair, path, CONNECTIONS, length)).await
            }
            Self::Grpc => {
                load::h2load(pair, warm).await?;
                saturated(pair, load::h2load(pair, length)).await
            }
            Self::TcpRoundTrip => {
                load::own(standing, pair, "round-trips", CONNECTIONS, 0, warm).await?;
                saturated(pair, async {
                    Ok(load::own(standing, pair, "round-trips", CONNECTIONS, 0, length).await?.count)
                })
                .await
            }
            Self::TcpConnect => {
                load::own(standing, pair, "connects", 16, 0, warm).await?;
                saturated(pair, async {
                    Ok(load::own(standing, pair, "connects", 16, 0, length).await?.count)
                })
                .await
            }
            Self::Latency => {
                load::own(standing, pair, "open-loop", 16, RATE, warm).await?;
                let measured = load::own(standing, pair, "open-loop", 16, RATE, length).await?;
                Ok(Outcome::from(measured))
            }
            Self::RoutePush => {
                load::own(standing, pair, "open-loop", 16, RATE, warm).await?;
                let load = load::own(standing, pair, "open-loop", 16, RATE, length);
                let (measured, pushed) = tokio::join!(load, pair.push_routes(PUSH_EVERY, length));
                pushed?;
                Ok(Outcome::from(measured?))
            }
            Self::Memory => {
                let idle = pair.resident()?;
                let loaded = load::idle(pair, IDLE_CONNECTIONS).await?;
                let mib = |pair: [u64; 2]| Some(pair[0].max(pair[1]) as f64 / 1024.0 / 1024.0);
                Ok(Outcome { idle_mib: mib(idle), loaded_mib: mib(loaded), ..Outcome::default() })
            }
        }
    }
}

impl From<load::Measured> for Outcome {
    fn from(measured: load::Measured) -> Self {
        Self {
            p50_us: Some(measured.p50_us),
            p99_us: Some(measured.p99_us),
            longest_us: Some(measured.longest_us),
            slow: Some(measured.slow as f64),
            ..Self::default()
        }
    }
}

/// Relates a load's count to the proxies' CPU time.
async fn saturated(pair: &Pair, load: impl Future<Output = anyhow::Result<u64>>) -> anyhow::Result<Outcome> {
    let (cpu, start) = (pair.cpu()?, std::time::Instant::now());
    let count = load.await? as f64;
    let (cpu, seconds) = (pair.cpu()? - cpu, start.elapsed().as_secs_f64());
    Ok(Outcome {
        per_second: Some(count / seconds),
        cpu_us: Some(cpu.as_secs_f64() * 1e6 / count.max(1.0)),
        ..Outcome::default()
    })
}
