//! A pod without a cluster: the sidecar in a network namespace, started as an
//! injected pod would start it, but with a join token and a control plane that
//! reads a folder.

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

use crate::forge::{Authority, Certificate};
use crate::netns::{NODE, Network, POD};
use crate::{App, ControlPlane, Process, binary, eventually, get, response};

/// The user of the sidecar.
pub const SIDECAR_USER: u32 = 7100;

/// The service that the pod belongs to.
pub const SERVICE: &str = "web";

/// A pod whose network leads to its sidecar, on a node with a control plane.
pub struct Pod {
    /// Its network.
    pub network: Network,
    /// On the node.
    pub control_plane: ControlPlane,
    directory: tempfile::TempDir,
}

impl Pod {
    /// One whose rules are set with these flags of `init`; `None` if this machine cannot have it.
    ///
    /// # Panics
    /// If a part of it cannot be started.
    pub fn new(init: &[&str]) -> Option<Self> {
        let network = Network::new()?;
        let control_plane = network.node.inside(|| ControlPlane::start_at(&format!("{}:0", NODE[0]), &[]));
        let directory = tempfile::tempdir().expect("there is room for temporary files");
        open(directory.path(), 0o755);
        // The sidecar's user need not be able to reach the build's folders.
        let copy = directory.path().join("heddle-sidecar");
        fs::copy(binary("heddle-sidecar"), &copy).expect("there is room for a copy");
        open(&copy, 0o755);
        let pod = Self { network, control_plane, directory };
        let output = pod.init(init);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Some(pod)
    }

    /// What `heddle-sidecar init` with these flags says, in the pod's network.
    ///
    /// # Panics
    /// If it cannot be started.
    pub fn init(&self, flags: &[&str]) -> Output {
        self.init_with(flags, None)
    }

    /// The same with programs in this folder and no others.
    ///
    /// # Panics
    /// If it cannot be started.
    pub fn init_with(&self, flags: &[&str], programs: Option<&Path>) -> Output {
        let mut command = self.command();
        command.arg("init").args(flags).envs(programs.map(|programs| ("PATH", programs)));
        self.network.pod.inside(|| command.output()).expect("it starts")
    }

    /// The same as the injector's container has it: with these capabilities and no others, and no place to write to
    /// but `/dev/shm`.
    ///
    /// # Panics
    /// If it cannot be started.
    pub fn init_confined(&self, flags: &[&str], programs: &Path, capabilities: &[&str]) -> Output {
        let set: String = capabilities.iter().map(|capability| format!(",+{capability}")).collect();
        let script = format!(
            "mount -o bind / /mnt && mount -o remount,bind,ro /mnt && mount -o rbind /proc /mnt/proc && \
             mount -o rbind /dev /mnt/dev && mount -o rbind /sys /mnt/sys && mount -t tmpfs -o ro none /mnt/run && \
             exec chroot /mnt setpriv --no-new-privs --bounding-set=-all{set} --inh-caps=-all -- \
             env PATH=\"$0\" \"$@\""
        );
        let mut command = Command::new("unshare");
        command.args(["--mount", "sh", "-c", &script]).arg(programs);
        command.arg(self.directory.path().join("heddle-sidecar")).arg("init").args(flags);
        command.env_remove("RUST_BACKTRACE");
        self.network.pod.inside(|| command.output()).expect("util-linux has unshare")
    }

    /// Starts the sidecar with these flags and waits until it is ready.
    pub fn sidecar(&self, flags: &[&str]) -> Process {
        let process = self.sidecar_starting(flags);
        process.said("the sidecar is ready");
        process
    }

    /// Starts the sidecar with these flags.
    ///
    /// # Panics
    /// If it cannot be started.
    pub fn sidecar_starting(&self, flags: &[&str]) -> Process {
        let token = self.directory.path().join("token");
        fs::copy(self.control_plane.token(SERVICE), &token).expect("there is room for a copy");
        open(&token, 0o644);
        let mut command = self.command();
        command.args(["proxy", "--intercept", "--service", SERVICE, "--join-token"]).arg(token);
        command.args(["--control-plane", &self.control_plane.address().to_string()]);
        command.args(["--pod-name", "web-1", "--pod-uid", "0-1", "--pod-ips", &POD.join(",")]);
        command.args(flags).uid(SIDECAR_USER).gid(SIDECAR_USER);
        self.network.pod.inside(|| Process::start(&mut command))
    }

    fn command(&self) -> Command {
        let mut command = Command::new(self.directory.path().join("heddle-sidecar"));
        command.env_remove("RUST_BACKTRACE");
        command
    }

    /// An application that answers with `answer` at this address of the pod.
    ///
    /// # Panics
    /// If it cannot listen.
    pub fn app(&self, at: &str, answer: &'static str) -> App {
        self.network.pod.inside(|| {
            let listener = TcpListener::bind(at).expect("the port is free");
            App::listening(listener, move |_| response(answer))
        })
    }

    /// The same on the node, at a free port.
    ///
    /// # Panics
    /// If it cannot listen.
    pub fn app_on_node(&self, ip: &str, answer: &'static str) -> App {
        self.network.node.inside(|| {
            let listener = TcpListener::bind((ip, 0)).expect("there is a free port");
            App::listening(listener, move |_| response(answer))
        })
    }

    /// What the node gets at this path of the pod's admin listener.
    pub fn admin(&self, path: &str) -> Option<(u16, String)> {
        self.network.node.inside(|| get(SocketAddr::new(Network::pod_addresses()[0], 7190), "pod", path))
    }

    /// The sum of the sidecar's metrics whose line contains all of `parts`.
    ///
    /// # Panics
    /// If the sidecar does not answer.
    pub fn metric(&self, parts: &[&str]) -> f64 {
        let (_, metrics) = self.admin("/metrics").expect("the sidecar answers");
        let lines = metrics.lines().filter(|line| parts.iter().all(|part| line.contains(part)));
        lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
    }

    /// Waits until the sum of these metrics is at least `least`.
    pub fn counted(&self, parts: &[&str], least: f64) {
        eventually(&format!("{parts:?} is {least}"), || (self.metric(parts) >= least).then_some(()));
    }

    /// A certificate of the mesh for this account.
    pub fn certificate(&self, account: &str) -> Certificate {
        let authority = Authority::of_mesh(&self.control_plane.authority());
        authority.sign(&[&format!("spiffe://heddle.local/ns/default/sa/{account}")], 2040)
    }
}

fn open(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("it is ours");
}

/// A socket address.
///
/// # Panics
/// If `ip` is no address.
pub fn at(ip: &str, port: u16) -> SocketAddr {
    SocketAddr::new(ip.parse().expect("an address"), port)
}

/// The body of what a plain HTTP server says to a GET, whether or not it closes the connection.
pub fn fetch(at: SocketAddr) -> Option<String> {
    let mut stream = TcpStream::connect(at).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(20))).ok()?;
    stream.write_all(b"GET / HTTP/1.1\r\nhost: plain\r\n\r\n").ok()?;
    let mut answer = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        let length = stream.read(&mut buffer).ok().filter(|length| *length > 0)?;
        answer.extend_from_slice(&buffer[..length]);
        let text = String::from_utf8_lossy(&answer);
        if let Some((head, body)) = text.split_once("\r\n\r\n")
            && head.contains(&format!("content-length: {}", body.len()))
        {
            return Some(body.to_owned());
        }
    }
}
