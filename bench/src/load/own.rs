//! Our own load generator: open-loop HTTP/1.1 with latencies counted from when
//! a request was due (so that a stalled server is not let off: "coordinated
//! omission"), and opaque TCP.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use clap::ValueEnum;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::LocalSet;

/// Settings of a load.
#[derive(clap::Args)]
pub(crate) struct Args {
    kind: Kind,
    target: SocketAddr,
    #[arg(long)]
    authority: String,
    #[arg(long)]
    connections: usize,
    /// Requests per second over all connections.
    #[arg(long)]
    rate: u64,
    #[arg(long)]
    seconds: u64,
}

#[derive(Clone, Copy, ValueEnum)]
enum Kind {
    OpenLoop,
    RoundTrips,
    Connects,
}

/// No request is to take longer, whatever is pushed meanwhile.
pub(crate) const SLOW: Duration = Duration::from_millis(5);

/// Latencies in microseconds.
type Latencies = Rc<RefCell<Vec<f64>>>;

#[allow(clippy::print_stdout, clippy::cast_possible_truncation, clippy::cast_sign_loss)]
pub(crate) async fn run(args: &Args) -> anyhow::Result<()> {
    let latencies = Latencies::default();
    let until = Instant::now() + Duration::from_secs(args.seconds);
    let connections = u32::try_from(args.connections)?.max(1);
    let period = Duration::from_secs(1) * connections / u32::try_from(args.rate.max(1))?;
    let set = LocalSet::new();
    let tasks: Vec<_> = (0..connections)
        .map(|number| {
            let latencies = latencies.clone();
            let (target, authority) = (args.target, args.authority.clone());
            let offset = period * number / connections;
            match args.kind {
                Kind::OpenLoop => {
                    set.spawn_local(open_loop(target, authority, period, offset, until, latencies))
                }
                Kind::RoundTrips => set.spawn_local(round_trips(target, until, latencies)),
                Kind::Connects => set.spawn_local(connects(target, until, latencies)),
            }
        })
        .collect();
    set.run_until(async {
        for task in tasks {
            task.await??;
        }
        anyhow::Ok(())
    })
    .await?;
    let mut latencies = latencies.take();
    ensure!(!latencies.is_empty(), "nothing was answered");
    latencies.sort_by(f64::total_cmp);
    let at = |quantile: f64| latencies[((latencies.len() - 1) as f64 * quantile) as usize];
    let found = serde_json::json!({
        "count": latencies.len(), "p50_us": at(0.5), "p99_us": at(0.99), "longest_us": at(1.0),
        "slow": latencies.iter().filter(|latency| **latency > SLOW.as_secs_f64() * 1e6).count(),
    });
    println!("{found}");
    Ok(())
}

async fn open_loop(
    target: SocketAddr,
    authority: String,
    period: Duration,
    offset: Duration,
    until: Instant,
    latencies: Latencies,
) -> anyhow::Result<()> {
    let mut stream = TcpStream::connect(target).await?;
    stream.set_nodelay(true)?;
    let request = format!("GET /1024 HTTP/1.1\r\nhost: {authority}\r\n\r\n");
    let mut buffer = vec![0; 16 * 1024];
    let mut due = Instant::now() + offset;
    while due < until {
        tokio::time::sleep_until(due.into()).await;
        // The timer is a millisecond coarse; what it is late by is not the server's.
        let sent = if due.elapsed() < Duration::from_millis(2) { Instant::now() } else { due };
        stream.write_all(request.as_bytes()).await?;
        answer(&mut stream, &mut buffer).await?;
        latencies.borrow_mut().push(sent.elapsed().as_secs_f64() * 1e6);
        due += period;
    }
    Ok(())
}

/// Reads one answer with its content-length.
async fn answer(stream: &mut TcpStream, buffer: &mut [u8]) -> anyhow::Result<()> {
    let mut filled = 0;
    loop {
        let count = stream.read(&mut buffer[filled..]).await?;
        ensure!(count > 0, "the connection ended");
        filled += count;
        let text = &buffer[..filled];
        let Some(head) = text.windows(4).position(|w| w == b"\r\n\r\n") else { continue };
        let head_text = String::from_utf8_lossy(&text[..head]).to_ascii_lowercase();
        ensure!(head_text.starts_with("http/1.1 200"), "the answer is {head_text}");
        let length = head_text.lines().find_map(|line| line.strip_prefix("content-length:"));
        let length: usize = length.context("no content-length")?.trim().parse()?;
        if filled >= head + 4 + length {
            return Ok(());
        }
    }
}

async fn round_trips(target: SocketAddr, until: Instant, latencies: Latencies) -> anyhow::Result<()> {
    let mut stream = TcpStream::connect(target).await?;
    stream.set_nodelay(true)?;
    while Instant::now() < until {
        echo(&mut stream, &latencies, Instant::now()).await?;
    }
    Ok(())
}

async fn connects(target: SocketAddr, until: Instant, latencies: Latencies) -> anyhow::Result<()> {
    while Instant::now() < until {
        let start = Instant::now();
        let mut stream = TcpStream::connect(target).await?;
        stream.set_nodelay(true)?;
        echo(&mut stream, &latencies, start).await?;
        stream.shutdown().await?;
        let mut rest = [0; 1];
        ensure!(stream.read(&mut rest).await? == 0, "bytes nobody sent");
    }
    Ok(())
}

async fn echo(stream: &mut TcpStream, latencies: &Latencies, start: Instant) -> anyhow::Result<()> {
    let (sent, mut received) = ([b'x'; 64], [0; 64]);
    stream.write_all(&sent).await?;
    stream.read_exact(&mut received).await?;
    ensure!(sent == received, "the echo is another");
    latencies.borrow_mut().push(start.elapsed().as_secs_f64() * 1e6);
    Ok(())
}
