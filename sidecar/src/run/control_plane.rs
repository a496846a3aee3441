//! A control plane for those who have none: started in the background when
//! nothing answers at the default address, and ending by itself when no
//! sidecar has been connected for a while.
//!
//! Several launches at once may each start one; the address has room for one,
//! the others end at once, and every launch joins the winner.

use std::env;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use heddle_api::runtime_file::RuntimeFile;

use super::EmbeddedControlPlane;
use crate::runtime_dir;
use crate::settings::DEFAULT_CONTROL_PLANE;
use crate::sys;

/// How long a control plane may take to listen; on its first start it makes keys.
const START: Duration = Duration::from_secs(15);

/// How often it is looked whether it does.
const LOOK: Duration = Duration::from_millis(10);

/// How long a local connection may take.
const CONNECT: Duration = Duration::from_secs(1);

/// Without sidecars for this long it ends. Long enough for a restart of the
/// last application.
const IDLE_EXIT: &str = "10s";

/// Variables meant for the sidecar would mean other things to a control plane;
/// these mean the same.
const SHARED_VARIABLES: [&str; 3] = ["HEDDLE_DATA_DIR", "HEDDLE_TRUST_DOMAIN", "HEDDLE_CLUSTER_DOMAIN"];

/// Sees to it that a control plane answers at the default address.
pub(super) fn ensure(embedded: Option<&EmbeddedControlPlane>) -> anyhow::Result<()> {
    let address: SocketAddr = DEFAULT_CONTROL_PLANE.parse().expect("the default address is an address");
    if answers(address) {
        return Ok(());
    }
    let found = match embedded {
        Some(embedded) => embedded.clone(),
        None => EmbeddedControlPlane { program: beside_or_in_path()?, arguments: Vec::new() },
    };
    let directory = runtime_dir::make()?;
    let log = directory.join(format!("control-plane-{}.log", address.port()));
    let runtime_file = directory.join(RuntimeFile::name(address.port()));
    let mut alive = start(&found, address, &log).context("starting a control plane")?;
    let deadline = Instant::now() + START;
    let mut ended = None;
    while Instant::now() < deadline {
        // It writes the file when it listens, and sidecars need both.
        if runtime_file.exists() && answers(address) {
            return Ok(());
        }
        if ended.is_none() && matches!(alive.read(&mut [0]), Ok(0)) {
            // Another launch's control plane may have taken the address, and needs a moment more.
            ended = Some(Instant::now());
        }
        if ended.is_some_and(|since: Instant| since.elapsed() > CONNECT) && !answers(address) {
            break;
        }
        thread::sleep(LOOK);
    }
    if answers(address) {
        // Of another user perhaps; joining it says what is missing.
        return Ok(());
    }
    let said = last_line(&log).map(|line| format!(": {line}")).unwrap_or_default();
    bail!(
        "no control plane answers at {address}, and the one started here ended{said}; its log: {}",
        log.display()
    )
}

/// The last line of a file, which others have written into before: why the process that wrote it ended.
fn last_line(path: &Path) -> Option<String> {
    const LONGEST: i64 = 4096;
    let mut file = File::open(path).ok()?;
    // A shorter file is read from its start.
    let _ = file.seek(SeekFrom::End(-LONGEST));
    let mut text = Vec::new();
    file.read_to_end(&mut text).ok()?;
    let text = String::from_utf8_lossy(&text);
    text.lines().map(str::trim).rfind(|line| !line.is_empty()).map(str::to_owned)
}

fn answers(address: SocketAddr) -> bool {
    TcpStream::connect_timeout(&address, CONNECT).is_ok()
}

/// Starts it as a process of its own. The returned socket is closed when it ends.
fn start(what: &EmbeddedControlPlane, address: SocketAddr, log: &Path) -> io::Result<UnixStream> {
    let (alive, held) = UnixStream::pair()?;
    alive.set_nonblocking(true)?;
    let log = OpenOptions::new().append(true).create(true).mode(0o600).open(log)?;
    if sys::fork_detached()? == sys::Side::Parent {
        return Ok(alive);
    }
    let _ = sys::new_session();
    let mut command = Command::new(&what.program);
    command
        .args(&what.arguments)
        .args(["--listen", &address.to_string(), "--admin", "127.0.0.1:0", "--idle-exit", IDLE_EXIT])
        .current_dir("/")
        // Never read from; it tells us when the process is gone.
        .stdin(OwnedFd::from(held))
        .stderr(log.try_clone().map_or_else(|_| Stdio::null(), Stdio::from))
        .stdout(log);
    for (name, _) in env::vars_os() {
        let text = name.to_string_lossy();
        if text.starts_with("HEDDLE_") && !SHARED_VARIABLES.contains(&text.as_ref()) {
            command.env_remove(&name);
        }
    }
    let _ = command.exec();
    std::process::exit(127)
}

/// `heddle-control-plane` beside this program, or in `PATH`.
fn beside_or_in_path() -> anyhow::Result<PathBuf> {
    const NAME: &str = "heddle-control-plane";
    let beside = env::current_exe().ok().and_then(|exe| Some(exe.parent()?.to_owned()));
    let path = env::var_os("PATH").unwrap_or_default();
    beside
        .into_iter()
        .chain(env::split_paths(&path))
        .map(|directory| directory.join(NAME))
        .find(|candidate| candidate.is_file())
        .with_context(|| {
            format!(
                "no control plane answers at {DEFAULT_CONTROL_PLANE}, and {NAME} is neither beside this \
                 program nor in PATH to start one; start one, or name one with --control-plane"
            )
        })
}
