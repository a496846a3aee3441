//! Runs the tests as the users that this machine allows, and launches programs
//! as one of them.

use std::net::SocketAddr;
use std::os::unix::process::CommandExt;
use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

use socket2::{Domain, Socket, Type};

/// `nobody`, who has no rights anywhere.
const ORDINARY: u32 = 65534;

/// How long something may take to become true on a busy machine.
const PATIENCE: Duration = Duration::from_secs(120);

/// A test and its name.
pub(crate) type Test = (&'static str, fn(&User));

/// Runs the tests whose names contain `filter`, as every user.
pub(crate) fn run(filter: Option<&str>, tests: &[Test]) {
    let users = User::all();
    let mut failed = Vec::new();
    let mut ran = 0;
    for user in &users {
        if let Err(reason) = user.can_launch() {
            println!("NAMESPACES ARE NOT AVAILABLE here as {}: {reason}", user.name);
            // On a developer's locked-down machine that is how it is; in CI nothing may be left out.
            if std::env::var_os("CI").is_some_and(|ci| ci == "true") {
                failed.push(format!("no namespaces as {}", user.name));
            }
            continue;
        }
        for (name, test) in tests.iter().filter(|(name, _)| filter.is_none_or(|f| name.contains(f))) {
            let result = std::panic::catch_unwind(AssertUnwindSafe(|| test(user)));
            ran += 1;
            println!("test {name} (as {}) ... {}", user.name, if result.is_ok() { "ok" } else { "FAILED" });
            if result.is_err() {
                failed.push(format!("{name} as {}", user.name));
            }
        }
    }
    println!("{ran} tests run, {} failed {failed:?}", failed.len());
    std::process::exit(i32::from(!failed.is_empty()));
}

/// Who launches.
pub(crate) struct User {
    name: &'static str,
    /// The user to become; `None`: who we are.
    id: Option<u32>,
    directory: tempfile::TempDir,
    /// This program, where the user may run it.
    program: String,
}

impl User {
    fn all() -> Vec<Self> {
        let root =
            std::fs::metadata("/proc/self").is_ok_and(|m| std::os::unix::fs::MetadataExt::uid(&m) == 0);
        let mut users = vec![Self::new(if root { "root" } else { "this user" }, None)];
        if root {
            users.insert(0, Self::new("an ordinary user", Some(ORDINARY)));
        }
        users
    }

    fn new(name: &'static str, id: Option<u32>) -> Self {
        let directory = tempfile::tempdir().unwrap();
        std::os::unix::fs::chown(directory.path(), id, id).unwrap();
        let own = std::env::current_exe().unwrap();
        let program = match id {
            None => own,
            // A target directory below root's home is closed to others.
            Some(_) => {
                let copy = directory.path().join("tests");
                std::fs::copy(own, &copy).unwrap();
                copy
            }
        };
        Self { name, id, directory, program: program.into_os_string().into_string().unwrap() }
    }

    fn can_launch(&self) -> Result<(), String> {
        let outcome = self.launch(&[], &["true"]);
        if outcome.status.success() { Ok(()) } else { Err(outcome.stderr) }
    }

    /// A directory of this user's.
    pub(crate) fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// This program, where the user may run it.
    pub(crate) fn program(&self) -> &str {
        &self.program
    }

    /// The logs of sidecars that run or have failed.
    pub(crate) fn logs(&self) -> Vec<PathBuf> {
        let entries = std::fs::read_dir(self.directory().join("heddle")).unwrap();
        let mut logs: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
        logs.sort_unstable();
        logs
    }

    /// The command line of the client part of this program.
    pub(crate) fn client<'a>(&'a self, arguments: &[&'a str]) -> Vec<&'a str> {
        [&[self.program.as_str(), "client"], arguments].concat()
    }

    /// `heddle run FLAGS -- COMMAND`.
    pub(crate) fn command(&self, flags: &[&str], command: &[&str]) -> Command {
        let program = self.program.as_str();
        // A named control plane is not looked for; the stand-in needs none.
        let common =
            ["launcher", "--service", "client", "--namespace", "shop", "--control-plane", "127.0.0.1:1"];
        self.plain_command(&[&[program], &common[..], flags, &["--"], command].concat())
    }

    /// Launches and waits for the application's end and that of its pipes.
    pub(crate) fn launch(&self, flags: &[&str], command: &[&str]) -> Outcome {
        self.command(flags, command).stdin(Stdio::null()).output().unwrap().into()
    }

    /// The same without `heddle run`.
    pub(crate) fn plain(&self, command: &[&str]) -> Outcome {
        self.plain_command(command).stdin(Stdio::null()).output().unwrap().into()
    }

    fn plain_command(&self, line: &[&str]) -> Command {
        let mut command = Command::new(line[0]);
        command.args(&line[1..]).env("XDG_RUNTIME_DIR", self.directory()).env("HOME", self.directory());
        if let Some(id) = self.id {
            command.uid(id).gid(id);
        }
        command
    }
}

/// What a launch left.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) status: ExitStatus,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl From<Output> for Outcome {
    fn from(output: Output) -> Self {
        let text = |bytes| String::from_utf8(bytes).unwrap();
        Self { status: output.status, stdout: text(output.stdout), stderr: text(output.stderr) }
    }
}

impl Outcome {
    /// Standard error without the lines of JSON that announce listeners.
    pub(crate) fn stderr_without_events(&self) -> String {
        self.stderr.lines().filter(|l| !l.starts_with('{')).map(|l| format!("{l}\n")).collect()
    }
}

/// A port of this host's loopback on which nobody listens, and which nobody else is given while the
/// tests run.
pub(crate) fn free_port() -> u16 {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.set_reuse_address(true).unwrap();
    socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
    let address = socket.local_addr().unwrap().as_socket().unwrap();
    std::mem::forget(socket);
    address.port()
}

/// Waits until `condition` holds.
pub(crate) fn wait_until(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "waited too long until {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}
