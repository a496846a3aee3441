//! Processes under measurement: where they listen, and what they use.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, bail};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};
use tokio::sync::mpsc;

/// How the processes that measure run: the load generator and the origin.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Standing {
    /// As everything else.
    Ordinary,
    /// Before everything else on the machine, so that what they wait for a
    /// processor is not counted as the proxies' latency.
    RealTime,
}

impl Standing {
    /// The best that this user may have; what that means is told.
    #[allow(clippy::print_stderr)]
    pub(crate) async fn best() -> Self {
        match Self::RealTime.command(Path::new("true")).output().await {
            Ok(output) if output.status.success() => Self::RealTime,
            failed => {
                let why = match &failed {
                    Ok(output) => String::from_utf8_lossy(&output.stderr).trim().to_owned(),
                    Err(error) => format!("no chrt: {error}"),
                };
                eprintln!("latencies count what the load generator itself waits for a processor: {why}");
                Self::Ordinary
            }
        }
    }

    pub(crate) fn command(self, program: &Path) -> Command {
        match self {
            Self::Ordinary => Command::new(program),
            Self::RealTime => {
                let mut command = Command::new("chrt");
                command.args(["--fifo", "1"]).arg(program);
                command
            }
        }
    }
}

/// A process, killed when dropped.
pub(crate) struct Process {
    child: Child,
    pid: u32,
    lines: mpsc::UnboundedReceiver<String>,
    heard: Vec<String>,
}

/// Envoy takes a second, a cold machine a few more.
const START_TIMEOUT: Duration = Duration::from_secs(30);

impl Process {
    pub(crate) fn start(program: &Path, arguments: &[&str]) -> anyhow::Result<Self> {
        Self::start_as(Standing::Ordinary, program, arguments)
    }

    pub(crate) fn start_as(standing: Standing, program: &Path, arguments: &[&str]) -> anyhow::Result<Self> {
        let mut child = standing
            .command(program)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("cannot start {}", program.display()))?;
        let pid = child.id().context("it has ended already")?;
        let stderr = child.stderr.take().context("stderr is piped")?;
        let (sender, lines) = mpsc::unbounded_channel();
        tokio::spawn(async move {
            let mut stderr = BufReader::new(stderr).lines();
            while let Ok(Some(line)) = stderr.next_line().await {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        Ok(Self { child, pid, lines, heard: Vec::new() })
    }

    /// Waits for the line that says where it listens as `role`.
    pub(crate) async fn listening(&mut self, role: &str) -> anyhow::Result<SocketAddr> {
        let find = |line: &String| {
            let value: serde_json::Value = serde_json::from_str(line).ok()?;
            (value["role"] == role).then(|| value["addr"].as_str()?.parse().ok())?
        };
        if let Some(found) = self.heard.iter().find_map(find) {
            return Ok(found);
        }
        let wait = async {
            while let Some(line) = self.lines.recv().await {
                self.heard.push(line);
                if let Some(found) = self.heard.last().and_then(find) {
                    return Some(found);
                }
            }
            None
        };
        match tokio::time::timeout(START_TIMEOUT, wait).await {
            Ok(Some(address)) => Ok(address),
            _ => bail!("no {role} listener; it said:\n{}", self.heard.join("\n")),
        }
    }

    /// Waits until somebody accepts connections there.
    pub(crate) async fn accepts(&mut self, address: SocketAddr) -> anyhow::Result<()> {
        let wait = async {
            while TcpStream::connect(address).await.is_err() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        if tokio::time::timeout(START_TIMEOUT, wait).await.is_err() {
            while let Ok(line) = self.lines.try_recv() {
                self.heard.push(line);
            }
            bail!("nothing listens at {address}; it said:\n{}", self.heard.join("\n"));
        }
        Ok(())
    }

    /// CPU time of all its threads so far, as the scheduler accounts it.
    pub(crate) fn cpu(&self) -> anyhow::Result<Duration> {
        let mut total = 0;
        for task in std::fs::read_dir(format!("/proc/{}/task", self.pid))? {
            let text = std::fs::read_to_string(task?.path().join("schedstat")).unwrap_or_default();
            total += text.split(' ').next().and_then(|n| n.parse::<u64>().ok()).unwrap_or(0);
        }
        Ok(Duration::from_nanos(total))
    }

    /// Resident memory in bytes.
    pub(crate) fn resident(&self) -> anyhow::Result<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
        let kib: u64 = line.trim().trim_end_matches(" kB").trim().parse()?;
        Ok(kib * 1024)
    }

    pub(crate) async fn stop(mut self) {
        // It may have ended by itself.
        let _ = self.child.kill().await;
    }
}

/// A port that is free now.
pub(crate) fn free_port() -> anyhow::Result<u16> {
    Ok(std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}
