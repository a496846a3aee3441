//! The sidecar inside a pod: what the network rules of `init` lead to,
//! and what the pod says about itself.
//!
//! Listeners for what the rules redirect (of the application: on loopback
//! alone; of others: on every address), a DNS responder for the application,
//! and an admin listener that the kubelet reaches. In a pod the cluster answers for
//! names and endpoints; the workload is known by the pod's name and UID.

pub(crate) mod presence;
pub(crate) mod probe;
pub(crate) mod redirection;

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket};
use std::str::FromStr;

use anyhow::Context;
use clap::Args;
use heddle_api::name::ServiceName;
use socket2::{Domain, Socket, Type};

use self::probe::{ProbeKey, Probes};
use crate::dns;
use crate::listener::{AppDialer, Inbound, InboundKind, Outbound, OutboundKind, Plumbing};
use crate::settings::{InvalidSpec, WorkloadArgs};
use crate::sys;

/// Where the application's own calls arrive, on loopback.
pub(crate) const OUTBOUND_PORT: u16 = 7101;

/// Where calls to the pod arrive.
pub(crate) const INBOUND_PORT: u16 = 7102;

/// Where the application's DNS queries arrive, on loopback.
pub(crate) const DNS_PORT: u16 = 7153;

/// The admin listener, which answers probes.
pub(crate) const ADMIN_PORT: u16 = 7190;

/// The user whose connections are not intercepted.
pub(crate) const USER: u32 = 7100;

/// Connections that may wait to be accepted; the kernel caps it at `somaxconn`.
const BACKLOG: i32 = 4096;

/// Whether the sidecar itself listens on this port of the pod: nothing may be sent on to there.
pub(crate) fn is_own_port(port: u16) -> bool {
    matches!(port, OUTBOUND_PORT | INBOUND_PORT | DNS_PORT | ADMIN_PORT)
}

/// What a pod tells its sidecar.
#[derive(Debug, Clone, Default, Args)]
pub struct PodArgs {
    /// Take the connections that `heddle-sidecar init` redirects, as in a pod
    #[arg(long, env = "HEDDLE_INTERCEPT", conflicts_with_all = ["outbound", "inbound", "app", "upstream"])]
    pub intercept: bool,
    /// The pod's name
    #[arg(long, value_name = "NAME", env = "HEDDLE_POD_NAME", default_value = "")]
    pub pod_name: String,
    /// The pod's UID
    #[arg(long, value_name = "UID", env = "HEDDLE_POD_UID", default_value = "")]
    pub pod_uid: String,
    /// The pod's addresses, separated by commas [default: those by which this host reaches others]
    #[arg(long, value_name = "IP", env = "HEDDLE_POD_IPS", default_value = "", hide_default_value = true)]
    pub pod_ips: PodIps,
    /// The node that the pod is on
    #[arg(long, value_name = "NAME", env = "HEDDLE_NODE_NAME", default_value = "")]
    pub node_name: String,
    /// Probes of the application that the admin listener makes for the kubelet: a JSON object of probes by path
    #[arg(long, value_name = "JSON", env = "HEDDLE_PROBES", default_value = "")]
    pub probes: Probes,
    /// What the kubelet shows with those probes, in the header heddle-probe; without it they are made for anybody
    #[arg(long, value_name = "KEY", env = "HEDDLE_PROBE_KEY", default_value = "", hide_env_values = true)]
    pub probe_key: ProbeKey,
    /// The sidecar is a native one: it is told to end after the application has ended
    #[arg(long, env = "HEDDLE_NATIVE_SIDECAR")]
    pub native_sidecar: bool,
}

/// Addresses of a pod; an environment variable that the kubelet left empty has none.
#[derive(Debug, Clone, Default)]
pub struct PodIps(Vec<IpAddr>);

impl FromStr for PodIps {
    type Err = InvalidSpec;

    fn from_str(text: &str) -> Result<Self, InvalidSpec> {
        let items = text.split(',').map(str::trim).filter(|item| !item.is_empty());
        let read = |item: &str| match item.parse::<IpAddr>() {
            Ok(address) => Ok(address.to_canonical()),
            Err(_) => Err(InvalidSpec(format!("{item:?} is no IP address"))),
        };
        items.map(read).collect::<Result<_, _>>().map(Self)
    }
}

/// The pod that a sidecar is in.
#[derive(Debug, Clone)]
pub struct Pod {
    /// Its name, empty if unknown.
    pub name: String,
    /// Its UID, empty if unknown.
    pub uid: String,
    /// The name of its node, empty if unknown.
    pub node: String,
    /// Its addresses; at least one.
    pub addresses: Vec<IpAddr>,
    /// Probes of its containers.
    pub probes: Probes,
    /// By what the kubelet is known.
    pub probe_key: ProbeKey,
    /// Whether the sidecar is told to end after the application has ended.
    pub native: bool,
}

impl PodArgs {
    /// The pod, whose addresses are those told, or else `own`.
    pub(crate) fn resolve(self, own: impl FnOnce() -> IpAddr) -> Pod {
        let PodIps(mut addresses) = self.pod_ips;
        if addresses.is_empty() {
            addresses.push(own());
        }
        Pod {
            name: self.pod_name,
            uid: self.pod_uid,
            node: self.node_name,
            addresses,
            probes: self.probes,
            probe_key: self.probe_key,
            native: self.native_sidecar,
        }
    }
}

impl Pod {
    /// What discovery knows the workload by, beside its identity: the pod's UID, or its name
    /// where that is all that is known.
    pub(crate) fn node_id(&self) -> Option<String> {
        [&self.uid, &self.name].into_iter().find(|known| !known.is_empty()).cloned()
    }

    /// Binds what the pod's rules lead to.
    ///
    /// # Errors
    /// If a port is taken.
    pub(crate) fn plumbing(&self) -> anyhow::Result<Plumbing> {
        let listen = |address: SocketAddr| bind(address, Type::STREAM).map(TcpListener::from);
        let outbound = both(LOOPBACK, OUTBOUND_PORT, listen).context("the outbound listener")?;
        let inbound = both(EVERYWHERE, INBOUND_PORT, listen).context("the inbound listener")?;
        Ok(Plumbing {
            outbound: outbound
                .into_iter()
                .map(|listener| Outbound { listener, kind: OutboundKind::Redirected })
                .collect(),
            inbound: inbound
                .into_iter()
                .map(|listener| Inbound { listener, kind: InboundKind::Pod })
                .collect(),
            app: AppDialer::in_pod(&self.addresses),
            advertise: self.addresses[0],
        })
    }

    /// Binds where the application's DNS queries arrive.
    ///
    /// # Errors
    /// If the port is taken.
    pub(crate) fn resolver() -> anyhow::Result<dns::Sockets> {
        let datagrams = |address: SocketAddr| {
            let socket = bind(address, Type::DGRAM)?;
            if address.is_ipv4() {
                sys::enable(&socket, libc::IPPROTO_IP, libc::IP_PKTINFO)?;
            } else {
                sys::enable(&socket, libc::IPPROTO_IPV6, libc::IPV6_RECVPKTINFO)?;
            }
            Ok(UdpSocket::from(socket))
        };
        let streams = |address: SocketAddr| bind(address, Type::STREAM).map(TcpListener::from);
        Ok(dns::Sockets {
            datagrams: both(LOOPBACK, DNS_PORT, datagrams).context("the DNS responder")?,
            streams: both(LOOPBACK, DNS_PORT, streams).context("the DNS responder")?,
        })
    }

    /// Binds the admin listener, which the kubelet reaches as well.
    pub(crate) fn admin() -> io::Result<TcpListener> {
        let make = || {
            let address = SocketAddr::from((Ipv6Addr::UNSPECIFIED, ADMIN_PORT));
            let socket = Socket::new(Domain::IPV6, Type::STREAM, None)?;
            socket.set_only_v6(false)?;
            listening(socket, address, Type::STREAM).map(TcpListener::from)
        };
        make().or_else(|_| {
            bind((Ipv4Addr::UNSPECIFIED, ADMIN_PORT).into(), Type::STREAM).map(TcpListener::from)
        })
    }
}

/// Gives the workload a name that a service could have: its owner's, or that of its service
/// account. In a pod it is for display only, and no reason to fail.
pub(crate) fn name(mut workload: WorkloadArgs) -> WorkloadArgs {
    let dashed = |name: &String| {
        let name: String = name.replace('.', "-").chars().take(63).collect();
        name.trim_matches('-').to_owned()
    };
    let usable = |name: &String| ServiceName::new("default", name).is_ok();
    let told = [&workload.service, &workload.service_account];
    let name = told.into_iter().flatten().map(dashed).find(usable);
    workload.service = Some(name.unwrap_or_else(|| "workload".to_owned()));
    workload
}

const LOOPBACK: [IpAddr; 2] = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];
const EVERYWHERE: [IpAddr; 2] = [IpAddr::V4(Ipv4Addr::UNSPECIFIED), IpAddr::V6(Ipv6Addr::UNSPECIFIED)];

/// What `make` makes at the port of each address. A host that lacks one family does without.
fn both<T>(
    addresses: [IpAddr; 2],
    port: u16,
    make: impl Fn(SocketAddr) -> io::Result<T>,
) -> anyhow::Result<Vec<T>> {
    let mut made = Vec::with_capacity(addresses.len());
    for address in addresses.map(|ip| SocketAddr::new(ip, port)) {
        match make(address) {
            Ok(one) => made.push(one),
            Err(error) if is_without_family(&error) => {
                tracing::debug!(%address, %error, "this host does without");
            }
            Err(error) => return Err(error).with_context(|| format!("cannot bind {address}")),
        }
    }
    if made.is_empty() { anyhow::bail!("this host has neither IPv4 nor IPv6") } else { Ok(made) }
}

fn is_without_family(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL))
}

fn bind(address: SocketAddr, kind: Type) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), kind, None)?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    listening(socket, address, kind)
}

fn listening(socket: Socket, address: SocketAddr, kind: Type) -> io::Result<Socket> {
    socket.set_nonblocking(true)?;
    if kind == Type::STREAM {
        // A sidecar that is restarted finds connections of its predecessor still closing.
        socket.set_reuse_address(true)?;
    }
    socket.bind(&address.into())?;
    if kind == Type::STREAM {
        socket.listen(BACKLOG)?;
    }
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_is_named_after_its_owner_or_its_account() {
        let named = |service: Option<&str>, account: Option<&str>| {
            let args = WorkloadArgs {
                service: service.map(str::to_owned),
                service_account: account.map(str::to_owned),
                namespace: "shop".into(),
                ..WorkloadArgs::default()
            };
            name(args).service
        };
        assert_eq!(named(Some("users"), Some("default")).as_deref(), Some("users"));
        assert_eq!(named(Some("users.v2"), None).as_deref(), Some("users-v2"));
        assert_eq!(named(None, Some("clerk")).as_deref(), Some("clerk"));
        assert_eq!(named(Some(&format!("{}.b", "a".repeat(62))), None), Some("a".repeat(62)));
        assert_eq!(named(Some("_"), Some("clerk")).as_deref(), Some("clerk"));
        assert_eq!(named(None, None).as_deref(), Some("workload"));
    }

    #[test]
    fn addresses_are_those_told_or_the_own_one() {
        let own = || IpAddr::from([10, 0, 0, 9]);
        let told = |text: &str| PodArgs { pod_ips: text.parse().unwrap(), ..PodArgs::default() };
        let both = [[10, 0, 0, 1].into(), "fd00::1".parse::<IpAddr>().unwrap()];
        assert_eq!(told("::ffff:10.0.0.1, fd00::1").resolve(own).addresses, both);
        for none in ["", ","] {
            assert_eq!(told(none).resolve(own).addresses, [own()], "{none:?}");
        }
        assert!("10.0.0".parse::<PodIps>().is_err());
    }
}
