//! Load at a fixed rate, whatever becomes of it. Latencies count from when a
//! request was due, so that a server that stalls is not let off ("coordinated
//! omission").

use std::cell::RefCell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::LocalSet;

use crate::backend::runtime;

/// More requests at once than this are not begun: they have failed.
const AT_ONCE: usize = 4096;

/// GETs to one destination.
#[derive(Clone, Debug)]
pub struct OpenLoop {
    /// The sidecar's outbound listener.
    pub at: SocketAddr,
    /// Whom they are for.
    pub host: &'static str,
    /// How many are due per second.
    pub rate: u32,
    /// For how long.
    pub time: Duration,
    /// How long each of them is waited for.
    pub patience: Duration,
}

/// One request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Sample {
    /// When it was due, since the load began.
    pub due: Duration,
    /// From then to the end of its answer.
    pub latency: Duration,
    /// The status of a whole answer; `None` without one.
    pub status: Option<u16>,
}

impl OpenLoop {
    /// Carries it out, which takes its time and at most the patience for the last.
    pub fn run(&self) -> Vec<Sample> {
        let samples = Rc::new(RefCell::new(Vec::with_capacity(self.requests() as usize)));
        runtime().block_on(LocalSet::new().run_until(self.send(samples.clone())));
        samples.take()
    }

    fn requests(&self) -> u32 {
        let requests = self.time.as_millis() * u128::from(self.rate) / 1000;
        u32::try_from(requests).expect("no test has that many")
    }

    async fn send(&self, samples: Rc<RefCell<Vec<Sample>>>) {
        let idle = Rc::<RefCell<Vec<TcpStream>>>::default();
        let (begun, period) = (Instant::now(), Duration::from_secs(1) / self.rate);
        let last = Rc::new(());
        for nth in 0..self.requests() {
            let due = period * nth;
            tokio::time::sleep_until((begun + due).into()).await;
            // The timer is a millisecond coarse; what it is late by is not the server's.
            let from =
                if begun.elapsed() < due + Duration::from_millis(2) { Instant::now() } else { begun + due };
            let (samples, idle, alive, plan) = (samples.clone(), idle.clone(), last.clone(), self.clone());
            tokio::task::spawn_local(async move {
                let is_full = Rc::strong_count(&alive) > AT_ONCE;
                let status = match is_full {
                    true => None,
                    false => {
                        tokio::time::timeout(plan.patience, plan.call(&idle)).await.ok().and_then(Result::ok)
                    }
                };
                samples.borrow_mut().push(Sample { due, latency: from.elapsed(), status });
            });
        }
        while Rc::strong_count(&last) > 1 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    async fn call(&self, idle: &RefCell<Vec<TcpStream>>) -> std::io::Result<u16> {
        let kept = idle.borrow_mut().pop();
        let mut stream = match kept {
            Some(stream) => stream,
            None => TcpStream::connect(self.at).await?,
        };
        stream.set_nodelay(true)?;
        stream.write_all(format!("GET / HTTP/1.1\r\nhost: {}\r\n\r\n", self.host).as_bytes()).await?;
        let mut read = Vec::with_capacity(2048);
        loop {
            if stream.read_buf(&mut read).await? == 0 {
                return Err(std::io::ErrorKind::UnexpectedEof.into());
            }
            let Some(head) = read.windows(4).position(|window| window == b"\r\n\r\n") else { continue };
            let text = String::from_utf8_lossy(&read[..head]).to_ascii_lowercase();
            let field = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
            let length = field("content-length:").and_then(|length| length.parse::<usize>().ok());
            let whole = head + 4 + length.ok_or(std::io::ErrorKind::InvalidData)?;
            if read.len() >= whole {
                if field("connection:") != Some("close") {
                    idle.borrow_mut().push(stream);
                }
                let status = text.split(' ').nth(1).and_then(|status| status.parse().ok());
                return status.ok_or_else(|| std::io::ErrorKind::InvalidData.into());
            }
        }
    }
}

/// What a load came to.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Summary {
    /// Requests that were due.
    pub requests: usize,
    /// Those that were answered 200.
    pub good: usize,
    /// Latency of those, by the share that took no longer: half, 99 of a hundred, all.
    pub latency: [Duration; 3],
}

impl Summary {
    /// Of these.
    pub fn of(samples: impl IntoIterator<Item = Sample>) -> Self {
        let (mut requests, mut latencies) = (0, Vec::new());
        for sample in samples {
            requests += 1;
            if sample.status == Some(200) {
                latencies.push(sample.latency);
            }
        }
        latencies.sort_unstable();
        let at = |quantile: usize| {
            let rank = latencies.len().saturating_sub(1) * quantile / 100;
            latencies.get(rank).copied().unwrap_or_default()
        };
        Self { requests, good: latencies.len(), latency: [at(50), at(99), at(100)] }
    }

    /// The share of good answers, in percent.
    pub fn success(&self) -> f64 {
        100.0 * self.good as f64 / self.requests.max(1) as f64
    }
}

impl std::fmt::Display for Summary {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let [median, high, longest] = self.latency.map(|latency| latency.as_secs_f64() * 1e3);
        write!(
            f,
            "{} requests, {} failed, {:.3} % good, p50 {median:.1} ms, p99 {high:.1} ms, longest {longest:.0} ms",
            self.requests,
            self.requests - self.good,
            self.success()
        )
    }
}
