//! The namespaces that a cluster has for itself.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use crate::eventually;

/// A network, a process and a mount namespace, and a folder in memory. All
/// that runs in them ends when this is dropped, or when its process ends: the
/// first process waits for the end of its input, which is a pipe from here.
pub(super) struct Namespaces {
    holder: Child,
    /// The first process, by its number outside.
    process: u32,
    /// The mount point of the folder. Outside it is empty.
    directory: tempfile::TempDir,
}

impl Namespaces {
    /// Makes them.
    ///
    /// # Panics
    /// If that is not allowed.
    pub(super) fn new() -> Self {
        let directory = tempfile::Builder::new().prefix("heddle-cluster-").tempdir().expect("there is room");
        let mut command = Command::new("unshare");
        command.args(["--net", "--mount", "--pid", "--uts", "--fork", "--kill-child", "--mount-proc", "cat"]);
        // An interrupt of the terminal is the test's to take.
        let holder = command.stdin(Stdio::piped()).stdout(Stdio::null()).process_group(0).spawn();
        let holder = holder.expect("util-linux has unshare");
        let number = holder.id();
        let process = eventually("the namespaces are there", || {
            // Before it has become `cat`, its mounts may not be ready.
            let children = fs::read_to_string(format!("/proc/{number}/task/{number}/children")).ok()?;
            let child = children.split_whitespace().next()?.parse().ok()?;
            let name = fs::read_to_string(format!("/proc/{child}/comm")).ok()?;
            (name.trim() == "cat").then_some(child)
        });
        let namespaces = Self { holder, process, directory };
        let target = namespaces.directory().to_string_lossy().into_owned();
        namespaces.run("mount", &["-t", "tmpfs", "-o", "mode=755,size=4g", "heddle-cluster", &target]);
        namespaces
    }

    /// The folder in memory, as processes inside see it.
    pub(super) fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// A file in the folder, as processes inside see it.
    pub(super) fn inside(&self, name: &str) -> PathBuf {
        self.directory().join(name)
    }

    /// A file in the folder, as this process sees it.
    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.outside(&self.inside(name))
    }

    /// Where this process finds what processes inside know by `path`.
    pub(super) fn outside(&self, path: &Path) -> PathBuf {
        let root = PathBuf::from(format!("/proc/{}/root", self.process));
        root.join(path.strip_prefix("/").unwrap_or(path))
    }

    pub(super) fn process(&self) -> u32 {
        self.process
    }

    /// A command that runs inside.
    pub(super) fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["--target", &self.process.to_string(), "--net", "--mount", "--pid", "--uts", "--"]);
        command.arg(program);
        command
    }

    /// Runs a command inside that must succeed.
    ///
    /// # Panics
    /// If it does not.
    pub(super) fn run(&self, program: impl AsRef<OsStr>, args: &[&str]) {
        let output = self.command(program).args(args).output().expect("util-linux has nsenter");
        let complaint = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{args:?}: {complaint}");
    }
}

impl Drop for Namespaces {
    fn drop(&mut self) {
        // The end of the first process is the end of all.
        drop(self.holder.stdin.take());
        let _ = self.holder.wait();
    }
}
