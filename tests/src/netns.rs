//! Network namespaces of a test's own: a *pod* and the *node* that it is on,
//! with a cable between them. Whatever a test does in one, it does on a thread
//! that is inside; programs that such a thread starts are inside, too.
//!
//! Needs root. What a test machine lacks is skipped with a word about it, but
//! never in CI.

use std::fs::File;
use std::net::IpAddr;
use std::os::fd::AsRawFd;
use std::process::{Child, Command, Stdio};
use std::{fs, io, thread};

use crate::mesh::{installed, is_root};

/// The node's addresses.
pub const NODE: [&str; 2] = ["10.77.0.1", "fd77::1"];

/// The pod's addresses.
pub const POD: [&str; 2] = ["10.77.0.2", "fd77::2"];

/// A network namespace, which ends with this value.
pub struct Namespace {
    entry: File,
    /// Keeps it alive, and gives it a name that `ip` understands.
    anchor: Child,
}

impl Namespace {
    /// A new one with nothing but loopback.
    ///
    /// # Panics
    /// If this process may not make one.
    pub fn new() -> Self {
        let made = thread::spawn(|| {
            leave()?;
            let entry = File::open("/proc/thread-self/ns/net")?;
            let anchor =
                Command::new("sleep").arg("86400").stdin(Stdio::null()).stdout(Stdio::null()).spawn()?;
            io::Result::Ok(Self { entry, anchor })
        });
        let made = made.join().expect("it does not panic").expect("root may make network namespaces");
        made.ip("link set lo up");
        made
    }

    /// What `work` gives inside.
    ///
    /// # Panics
    /// If `work` does.
    pub fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let entry = &self.entry;
        thread::scope(|scope| {
            let inside = scope.spawn(move || {
                enter(entry).expect("root may enter network namespaces");
                work()
            });
            match inside.join() {
                Ok(value) => value,
                Err(panic) => std::panic::resume_unwind(panic),
            }
        })
    }

    /// Runs `ip` with these arguments inside.
    ///
    /// # Panics
    /// If it fails.
    pub fn ip(&self, arguments: &str) {
        let output = self.inside(|| Command::new("ip").args(arguments.split(' ')).output());
        let output = output.expect("ip runs");
        assert!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
    }
}

impl Default for Namespace {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = self.anchor.kill();
        let _ = self.anchor.wait();
    }
}

/// A pod's network and its node's.
pub struct Network {
    /// Where control plane, kubelet and peers are.
    pub node: Namespace,
    /// Where the application and its sidecar are.
    pub pod: Namespace,
}

impl Network {
    /// A cable between two new namespaces; `None` if this machine cannot have it.
    pub fn new() -> Option<Self> {
        if !is_root() {
            crate::mesh::missing("the right to make network namespaces");
            return None;
        }
        installed("ip", &["-V"])?;
        let network = Self { node: Namespace::new(), pod: Namespace::new() };
        let pod = network.pod.anchor.id();
        network.node.ip(&format!("link add pod type veth peer name eth0 netns {pod}"));
        for (end, device, addresses) in [(&network.node, "pod", NODE), (&network.pod, "eth0", POD)] {
            end.ip(&format!("addr add {}/24 dev {device}", addresses[0]));
            end.ip(&format!("addr add {}/64 dev {device} nodad", addresses[1]));
            end.ip(&format!("link set {device} up"));
        }
        // The way to everything else, as in any pod.
        network.pod.ip(&format!("route add default via {}", NODE[0]));
        network.pod.ip(&format!("-6 route add default via {}", NODE[1]));
        Some(network)
    }

    /// The node's addresses.
    ///
    /// # Panics
    /// Never.
    pub fn node_addresses() -> [IpAddr; 2] {
        NODE.map(|address| address.parse().expect("an address"))
    }

    /// The pod's addresses.
    ///
    /// # Panics
    /// Never.
    pub fn pod_addresses() -> [IpAddr; 2] {
        POD.map(|address| address.parse().expect("an address"))
    }
}

/// Whether any process has a socket at `port` of the namespace in which this is called.
pub fn is_listened_on(port: u16) -> bool {
    let at = format!(":{port:04X} ");
    ["/proc/thread-self/net/tcp", "/proc/thread-self/net/tcp6"].iter().any(|table| {
        fs::read_to_string(table)
            .is_ok_and(|table| table.lines().any(|line| line.contains(&at) && line.contains(" 0A ")))
    })
}

#[allow(unsafe_code)]
fn leave() -> io::Result<()> {
    // SAFETY: takes no pointers, and concerns this thread's network only.
    if unsafe { libc::unshare(libc::CLONE_NEWNET) } == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[allow(unsafe_code)]
fn enter(namespace: &File) -> io::Result<()> {
    // SAFETY: the descriptor is open for the duration of the call; one of another kind would be an error.
    let entered = unsafe { libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWNET) };
    if entered == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
