//! The thread that lives in the application's network namespace as long as the
//! sidecar does: it makes the namespace, its sockets and rules, then serves
//! requests for sockets and keeps the host's loopback ports up to date.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use crate::namespace::host_ports::HostPorts;
use crate::namespace::network::{self, HOST_PORTS, Inside, Interception, SetupError};
use crate::namespace::sockets::{Request, Sockets};
use crate::netlink::{Netlink, Refused, nftables};
use crate::sys::{self, Capability};

/// How often the host's listeners are looked at: what starts on the host is
/// reachable about a second later, and looking costs a few microseconds.
const HOST_PORTS_INTERVAL: Duration = Duration::from_secs(1);

/// Why there is no namespace.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NamespaceError {
    /// The kernel or its configuration does not allow one.
    #[error("making a network namespace: {0}")]
    Unshare(#[source] io::Error),
    /// It exists, but not all that belongs into it.
    #[error("setting up the network namespace: {0}")]
    Setup(#[from] SetupError),
    /// Something about the thread itself.
    #[error("the namespace's thread: {0}")]
    Thread(#[source] io::Error),
}

/// A namespace that is ready for its application.
#[derive(Debug)]
pub(crate) struct Resident {
    /// The namespace, for the process that is to enter it.
    pub(crate) namespace: File,
    /// The sidecar's sockets in it.
    pub(crate) inside: Inside,
    /// Sockets towards the application.
    pub(crate) sockets: Sockets,
}

/// Makes a namespace and the thread that lives in it.
///
/// # Errors
/// If it cannot be made or set up; the thread has ended then.
pub(crate) fn move_in(wanted: Option<Interception>) -> Result<Resident, NamespaceError> {
    let (result, made) = std::sync::mpsc::sync_channel(1);
    let life = move || {
        let (sockets, requests) = Sockets::new();
        match settle(wanted) {
            Ok((namespace, inside)) => {
                let mut rules = (inside.interception == Interception::Tproxy).then(HostRules::new);
                // Before anyone may enter: the application's first call may be to the host.
                if let Some(rules) = &mut rules {
                    rules.refresh();
                }
                sockets.refill(|| network::app_socket(false));
                let resident = Resident { namespace, inside, sockets: sockets.clone() };
                if result.send(Ok(resident)).is_ok() {
                    live(&sockets, &requests, rules);
                }
            }
            Err(error) => drop(result.send(Err(error))),
        }
    };
    thread::Builder::new().name("namespace".into()).spawn(life).map_err(NamespaceError::Thread)?;
    made.recv().map_err(|_| NamespaceError::Thread(io::Error::other("it has panicked")))?
}

fn settle(wanted: Option<Interception>) -> Result<(File, Inside), NamespaceError> {
    sys::unshare(sys::Namespace::Net).map_err(NamespaceError::Unshare)?;
    let inside = network::set_up(wanted)?;
    let namespace = File::open("/proc/thread-self/ns/net").map_err(NamespaceError::Thread)?;
    // Marks and rules need the first; seeing whether a root's processes still
    // live here the second, where there is one to keep.
    sys::keep_capabilities(&[Capability::NetAdmin, Capability::SysPtrace]).map_err(NamespaceError::Thread)?;
    Ok((namespace, inside))
}

fn live(sockets: &Sockets, requests: &Receiver<Request>, mut rules: Option<HostRules>) {
    loop {
        match requests.recv_timeout(HOST_PORTS_INTERVAL) {
            Ok(Request::Refill) => sockets.refill(|| network::app_socket(false)),
            Ok(Request::Socket(ipv6, reply)) => drop(reply.send(network::app_socket(ipv6))),
            Ok(Request::Occupied(reply)) => drop(reply.send(occupied())),
            Err(RecvTimeoutError::Timeout) => {
                if let Some(rules) = &mut rules {
                    rules.refresh();
                }
            }
            Err(RecvTimeoutError::Disconnected) => return,
        }
    }
}

/// Whether the main thread of any other process is in this thread's network
/// namespace. What may not be looked at is someone else's and not in here.
fn occupied() -> bool {
    let identity = |path: &std::path::Path| std::fs::metadata(path).ok().map(|m| (m.dev(), m.ino()));
    let Some(here) = identity("/proc/thread-self/ns/net".as_ref()) else { return false };
    let Ok(processes) = std::fs::read_dir("/proc") else { return false };
    processes
        .flatten()
        .filter(|entry| entry.file_name().as_encoded_bytes()[0].is_ascii_digit())
        .any(|entry| identity(&entry.path().join("ns/net")) == Some(here))
}

/// The sets of the host's loopback ports in the interception rules.
#[derive(Debug)]
struct HostRules {
    installed: HostPorts,
    /// Said once, not every second.
    complained: bool,
}

impl HostRules {
    fn new() -> Self {
        Self { installed: HostPorts::default(), complained: false }
    }

    fn refresh(&mut self) {
        match self.try_refresh() {
            Ok(()) => self.complained = false,
            Err(_) if self.complained => {}
            Err(error) => {
                self.complained = true;
                tracing::warn!(%error, "the host's loopback ports are not up to date for the application");
            }
        }
    }

    fn try_refresh(&mut self) -> Result<(), Refused> {
        let unreadable = |source| Refused { what: "reading the host's listeners", source };
        let ports = HostPorts::read().map_err(unreadable)?;
        if ports == self.installed {
            return Ok(());
        }
        let pairs = [(&self.installed.v4, &ports.v4), (&self.installed.v6, &ports.v6)];
        let mut changes = Vec::new();
        for (set, (before, after)) in HOST_PORTS.into_iter().zip(pairs) {
            let gone: Vec<u16> = before.difference(after).copied().collect();
            let new: Vec<u16> = after.difference(before).copied().collect();
            changes.extend(nftables::delete_ports(set, &gone));
            changes.extend(nftables::add_ports(set, &new));
        }
        let mut netfilter = Netlink::netfilter().map_err(unreadable)?;
        netfilter.transact(&nftables::transaction(changes))?;
        self.installed = ports;
        Ok(())
    }
}
