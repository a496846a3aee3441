//! Load: `wrk` and `h2load` for saturation, our own generator for what they
//! cannot do. All are processes of their own and end by themselves.

pub(crate) mod own;

use std::time::Duration;

use anyhow::{Context, ensure};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::process::Command;

use crate::peers::Pair;
use crate::process::Standing;

/// Saturates with HTTP/1.1; how many requests were answered.
pub(crate) async fn wrk(
    pair: &Pair,
    path: &str,
    connections: usize,
    length: Duration,
) -> anyhow::Result<u64> {
    let output = Command::new("wrk")
        .args(["-t1", "-c", &connections.to_string(), "-d", &format!("{}s", length.as_secs())])
        .args(["-H", &format!("Host: {}", pair.authority), &format!("http://{}{path}", pair.entry)])
        .output()
        .await
        .context("no wrk: apt-get install wrk")?;
    let text = String::from_utf8_lossy(&output.stdout);
    ensure!(!text.contains("Non-2xx") && !text.contains("Socket errors"), "errors under load:\n{text}");
    let line = text.lines().find(|line| line.contains(" requests in ")).context("wrk said nothing")?;
    line.trim().split(' ').next().and_then(|n| n.parse().ok()).with_context(|| format!("wrk said {line}"))
}

/// Saturates with gRPC-like HTTP/2; how many requests were answered.
pub(crate) async fn h2load(pair: &Pair, length: Duration) -> anyhow::Result<u64> {
    let body = tempfile::NamedTempFile::new()?;
    std::fs::write(body.path(), [b'x'; 128])?;
    let output = Command::new("h2load")
        .args([
            "-t1",
            "-c8",
            "-m16",
            "-D",
            &length.as_secs().to_string(),
            "-d",
            &body.path().display().to_string(),
        ])
        .args([
            "-H",
            &format!(":authority: {}", pair.authority),
            "-H",
            "content-type: application/grpc",
            "-H",
            "te: trailers",
        ])
        .arg(format!("http://{}/1024", pair.entry))
        .output()
        .await
        .context("no h2load: apt-get install nghttp2-client")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let status = text.lines().find(|line| line.starts_with("status codes:")).unwrap_or_default();
    ensure!(status.contains(" 0 3xx, 0 4xx, 0 5xx"), "errors under load:\n{text}");
    let line = text.lines().find(|line| line.starts_with("requests:")).context("h2load said nothing")?;
    let succeeded = line.split(", ").find_map(|part| part.strip_suffix(" succeeded"));
    succeeded.and_then(|n| n.parse().ok()).with_context(|| format!("h2load said {line}"))
}

/// What our own generator found.
pub(crate) struct Measured {
    pub(crate) count: u64,
    pub(crate) p50_us: f64,
    pub(crate) p99_us: f64,
    pub(crate) longest_us: f64,
    pub(crate) slow: u64,
}

/// Runs our own generator as a process.
pub(crate) async fn own(
    standing: Standing,
    pair: &Pair,
    kind: &str,
    connections: usize,
    rate: u64,
    length: Duration,
) -> anyhow::Result<Measured> {
    let output = standing
        .command(&std::env::current_exe()?)
        .args(["load", kind, &pair.entry.to_string(), "--authority", &pair.authority])
        .args(["--connections", &connections.to_string(), "--rate", &rate.to_string()])
        .args(["--seconds", &length.as_secs().to_string()])
        .output()
        .await?;
    ensure!(output.status.success(), "the load failed: {}", String::from_utf8_lossy(&output.stderr));
    let found: Value = serde_json::from_slice(&output.stdout)?;
    let number = |key: &str| found[key].as_f64().with_context(|| format!("no {key} in {found}"));
    let count = |key: &str| found[key].as_u64().with_context(|| format!("no {key} in {found}"));
    Ok(Measured {
        count: count("count")?,
        p50_us: number("p50_us")?,
        p99_us: number("p99_us")?,
        longest_us: number("longest_us")?,
        slow: count("slow")?,
    })
}

/// Opens connections that each make one request and then stay; the proxies'
/// memory while all are open.
pub(crate) async fn idle(pair: &Pair, connections: usize) -> anyhow::Result<[u64; 2]> {
    let request = format!("GET /16 HTTP/1.1\r\nhost: {}\r\n\r\n", pair.authority);
    let mut open = Vec::with_capacity(connections);
    let mut buffer = [0; 4096];
    for number in 0..connections {
        let mut stream = TcpStream::connect(pair.entry).await?;
        stream.write_all(request.as_bytes()).await?;
        let count = stream.read(&mut buffer).await?;
        ensure!(
            buffer[..count].starts_with(b"HTTP/1.1 200"),
            "connection {number}: {:?}",
            String::from_utf8_lossy(&buffer[..count])
        );
        open.push(stream);
    }
    // Allocators give memory back with a delay.
    tokio::time::sleep(Duration::from_secs(6)).await;
    let resident = pair.resident()?;
    drop(open);
    Ok(resident)
}
