//! Real programs in the mesh through `heddle run`, each in a network namespace
//! of its own, with a control plane that serves nobody else.
//!
//! Programs that serve are [`Process`]es: the launched process is the program
//! itself, so ending it ends the service. What a test machine lacks is skipped
//! with a word about it, but never in CI, which has to have everything.

use std::ffi::OsStr;
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::{env, fs, thread};

use serde_json::Value;

use crate::{Process, binary, eventually, get};

/// Who owns nothing on any machine: `nobody`.
const NOBODY: u32 = 65534;

/// How many seconds a program may take that is waited for. A virtual machine
/// starts slowly where all cores are busy.
const PROGRAM_LIMIT: &str = "120";

/// A control plane and the user that it and all programs run as.
pub struct Mesh {
    heddle: PathBuf,
    nobody: bool,
    directory: tempfile::TempDir,
    control_plane: Option<Process>,
}

impl Mesh {
    /// Starts a control plane as the user of the test.
    pub fn start() -> Self {
        Self::start_as(false, "")
    }

    /// The same with a control plane that reads these manifests.
    pub fn start_with(manifests: &str) -> Self {
        Self::start_as(false, manifests)
    }

    /// Starts a control plane as a user without privileges, to whom none of
    /// the build's folders need be open. `None` if this test has no right to
    /// become another user: then [`Mesh::start`] is without privileges, too.
    pub fn start_unprivileged() -> Option<Self> {
        if !is_root() {
            missing("the right to become another user");
            return None;
        }
        Some(Self::start_as(true, ""))
    }

    fn start_as(nobody: bool, manifests: &str) -> Self {
        let directory = tempfile::tempdir().expect("there is room for temporary files");
        let mut heddle = binary("heddle");
        if nobody {
            let copy = directory.path().join("heddle-copy");
            fs::copy(&heddle, &copy).expect("there is room for a copy");
            heddle = copy;
            chown(directory.path(), Some(NOBODY), Some(NOBODY)).expect("root gives what it owns");
        }
        let mut mesh = Self { heddle, nobody, directory, control_plane: None };
        let mut command = mesh.command(&mesh.heddle);
        let listeners = ["--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"];
        command.arg("control-plane").args(listeners).arg("--data-dir").arg(mesh.directory().join("data"));
        if !manifests.is_empty() {
            let folder = mesh.directory().join("manifests");
            fs::create_dir(&folder).expect("there is room");
            fs::write(folder.join("mesh.yaml"), manifests).expect("there is room");
            command.args(["--source", &format!("dir:{}", folder.display())]);
        }
        mesh.control_plane = Some(Process::start(&mut command));
        mesh
    }

    /// A folder that the mesh's user owns. It goes with the mesh.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// A command that runs as the mesh's user and finds only the mesh's files.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = if self.nobody {
            let mut command = Command::new("setpriv");
            let id = NOBODY.to_string();
            command.args(["--reuid", &id, "--regid", &id, "--clear-groups", "--"]).arg(program);
            command
        } else {
            Command::new(program)
        };
        for folder in ["HOME", "XDG_RUNTIME_DIR", "XDG_DATA_HOME"] {
            command.env(folder, self.directory());
        }
        command.current_dir(self.directory()).env_remove("RUST_BACKTRACE");
        command
    }

    /// The command that starts `program` as a workload of `service`.
    fn launch<A: AsRef<OsStr>>(
        &self,
        prefix: &[&str],
        service: &str,
        flags: &[&str],
        program: &[A],
    ) -> Command {
        let mut command = match prefix {
            [] => self.command(&self.heddle),
            [first, rest @ ..] => {
                let mut command = self.command(first);
                command.args(rest).arg(&self.heddle);
                command
            }
        };
        let control_plane = self.control_plane().listening("discovery").to_string();
        command.args(["run", "--service", service, "--control-plane", &control_plane, "--log"]);
        command.arg(self.directory().join(format!("{service}.log"))).args(flags).arg("--").args(program);
        command
    }

    /// Starts a program with flags of `heddle run`, and does not wait for it.
    pub fn run<A: AsRef<OsStr>>(&self, service: &str, flags: &[&str], program: &[A]) -> Process {
        Process::start(&mut self.launch(&[], service, flags, program))
    }

    /// Starts a program that serves `port`, and waits until the mesh knows that it does.
    pub fn serve<A: AsRef<OsStr>>(&self, service: &str, port: &str, program: &[A]) -> Process {
        let process = self.run(service, &["--port", port], program);
        eventually(&format!("{service} is ready"), || {
            self.workload(service).filter(|workload| workload["ready"] == true)
        });
        process
    }

    /// Runs a program to its end, with `input` as its standard input.
    ///
    /// # Panics
    /// If it cannot be started or does not end.
    pub fn output<A: AsRef<OsStr>>(&self, service: &str, program: &[A], input: &str) -> Output {
        self.finish(service, &[], program, input)
    }

    /// Runs a program with flags of `heddle run` to its end.
    ///
    /// # Panics
    /// If it cannot be started or does not end.
    pub fn output_with<A: AsRef<OsStr>>(&self, service: &str, flags: &[&str], program: &[A]) -> Output {
        self.finish(service, flags, program, "")
    }

    fn finish<A: AsRef<OsStr>>(&self, service: &str, flags: &[&str], program: &[A], input: &str) -> Output {
        let file = self.directory().join(format!("{service}.stdin"));
        fs::write(&file, input).expect("there is room");
        let stdin = fs::File::open(&file).expect("it was just written");
        let mut command = self.launch(&["timeout", PROGRAM_LIMIT], service, flags, program);
        let output = command.stdin(stdin).output().expect("the program starts");
        assert_ne!(output.status.code(), Some(124), "{service} does not end: {output:?}");
        output
    }

    /// What a program writes that must succeed.
    ///
    /// # Panics
    /// If it fails.
    pub fn answer<A: AsRef<OsStr>>(&self, service: &str, program: &[A]) -> String {
        let output = self.output(service, program, "");
        let answer = String::from_utf8_lossy(&output.stdout).into_owned();
        let complaint = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{service}: {}: {answer}\n{complaint}", output.status);
        answer
    }

    /// What the control plane knows of the one workload of a service.
    ///
    /// # Panics
    /// If the control plane's answer is none.
    pub fn workload(&self, service: &str) -> Option<Value> {
        let admin = self.control_plane().listening("admin");
        let (status, body) = get(admin, "localhost", "/workloads").expect("the control plane answers");
        assert_eq!(status, 200, "{body}");
        let known: Value = serde_json::from_str(&body).expect("it is JSON");
        known["workloads"].as_array()?.iter().find(|one| one["service"] == service).cloned()
    }

    /// The sum of all metrics of a workload's sidecar whose line contains all of `parts`.
    pub fn metric(&self, service: &str, parts: &[&str]) -> f64 {
        let Some(workload) = self.workload(service) else { return 0.0 };
        let admin = workload["admin"].as_str().expect("it has one").parse().expect("it is an address");
        let (_, metrics) = get(admin, "localhost", "/metrics").expect("the sidecar answers");
        let lines = metrics.lines().filter(|line| parts.iter().all(|part| line.contains(part)));
        lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
    }

    fn control_plane(&self) -> &Process {
        self.control_plane.as_ref().expect("it was started")
    }
}

impl Drop for Mesh {
    #[allow(clippy::print_stderr)]
    fn drop(&mut self) {
        let logs = fs::read_dir(self.directory()).into_iter().flatten().flatten().map(|entry| entry.path());
        for log in logs.filter(|path| thread::panicking() && path.extension() == Some("log".as_ref())) {
            eprintln!("--- {}:\n{}", log.display(), fs::read_to_string(&log).unwrap_or_default());
        }
    }
}

/// Whether this test has all privileges.
///
/// # Panics
/// If there is no `id`.
pub fn is_root() -> bool {
    let output = Command::new("id").arg("-u").output().expect("id runs");
    output.stdout == b"0\n"
}

/// A program of this machine, unless it does not do what `probe` asks of it.
pub fn installed(program: &str, probe: &[&str]) -> Option<String> {
    let mut command = Command::new(program);
    let status =
        command.args(probe).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status();
    if status.is_ok_and(|status| status.success()) {
        return Some(program.to_owned());
    }
    missing(&format!("{program} {}", probe.join(" ")));
    None
}

/// One of the programs that the tests run, in the folder `programs`.
pub fn program(name: &str) -> String {
    format!("{}/programs/{name}", env!("CARGO_MANIFEST_DIR"))
}

/// Says that a test is left out for want of something.
///
/// # Panics
/// Where tests must be whole.
#[allow(clippy::print_stderr)]
pub fn missing(what: &str) {
    assert!(env::var("CI").as_deref() != Ok("true"), "CI must not skip what needs {what}");
    eprintln!("SKIPPED: this machine lacks {what}");
}
