//! The demo's processes: started, watched for what they say, ended.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, bail};
use serde::Deserialize;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, ChildStderr, Command};

/// A process of the demo. Killed when dropped without [`Process::stop`].
pub(super) struct Process {
    pub(super) name: String,
    child: Child,
    listening: Vec<Listening>,
    lines: tokio::task::JoinHandle<()>,
}

/// What a process prints for each listener.
#[derive(Deserialize, Debug, Clone)]
struct Listening {
    role: String,
    addr: SocketAddr,
}

/// First start on a slow machine, with a key to make.
const START_TIMEOUT: Duration = Duration::from_secs(30);

/// A sidecar drains before it ends.
const STOP_TIMEOUT: Duration = Duration::from_secs(10);

impl Process {
    /// Starts this program again with other arguments and waits until it has
    /// said where it listens as `awaited`.
    pub(super) async fn start(name: &str, arguments: &[String], awaited: &str) -> anyhow::Result<Self> {
        let program: PathBuf = std::env::current_exe()?;
        let mut child = Command::new(program)
            .args(arguments)
            // Ends when we do, however that comes: by that applications see that nobody is left to end them.
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            // The terminal's Ctrl-C is for the demo, which ends the others in order.
            .process_group(0)
            .spawn()
            .with_context(|| format!("cannot start {name}"))?;
        let stderr = child.stderr.take().context("stderr is piped")?;
        let heard = tokio::time::timeout(START_TIMEOUT, listen(stderr, awaited)).await;
        match heard {
            Ok(Ok((listening, rest))) => {
                let lines = tokio::spawn(drain(rest));
                Ok(Self { name: name.to_owned(), child, listening, lines })
            }
            Ok(Err(said)) => {
                let status = child.wait().await?;
                bail!("{name} ended with {status} before it was ready:\n{said}")
            }
            Err(_) => bail!("{name} was not ready within {START_TIMEOUT:?}"),
        }
    }

    /// Where it listens as `role`.
    pub(super) fn address(&self, role: &str) -> anyhow::Result<SocketAddr> {
        let found = self.listening.iter().find(|listening| listening.role == role);
        found.map(|listening| listening.addr).with_context(|| format!("{} has no {role} listener", self.name))
    }

    /// The process, while it runs.
    pub(super) fn pid(&self) -> Option<u32> {
        self.child.id()
    }

    /// Kills it as `kill -9` does.
    pub(super) async fn kill(&mut self) -> std::io::Result<()> {
        self.child.kill().await
    }

    /// Asks it to end, and insists after a while.
    pub(super) async fn stop(mut self) {
        if let Some(pid) = self.child.id() {
            terminate(pid).await;
        }
        if tokio::time::timeout(STOP_TIMEOUT, self.child.wait()).await.is_err() {
            // It may just have ended by itself.
            let _ = self.child.kill().await;
        }
        self.lines.abort();
    }
}

async fn terminate(pid: u32) {
    // `kill` is a shell's builtin everywhere; a process that is gone is what was wanted.
    let _ =
        Command::new("sh").args(["-c", &format!("kill -TERM {pid}")]).stderr(Stdio::null()).status().await;
}

type Lines = tokio::io::Lines<BufReader<ChildStderr>>;

/// Reads until the awaited line; an early end gives everything that was said.
async fn listen(stderr: ChildStderr, awaited: &str) -> Result<(Vec<Listening>, Lines), String> {
    let mut lines = BufReader::new(stderr).lines();
    let (mut listening, mut said) = (Vec::new(), String::new());
    while let Ok(Some(line)) = lines.next_line().await {
        match serde_json::from_str::<Listening>(&line) {
            Ok(found) => {
                let last = found.role == awaited;
                listening.push(found);
                if last {
                    return Ok((listening, lines));
                }
            }
            Err(_) => {
                said.push_str(&line);
                said.push('\n');
            }
        }
    }
    Err(said)
}

/// Reads on, so that the process never waits for a full pipe.
async fn drain(mut lines: Lines) {
    while let Ok(Some(_)) = lines.next_line().await {}
}
