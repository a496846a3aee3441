//! What makes up the application's network: addresses, routes, interception
//! rules and the sidecar's sockets. Everything here runs on the thread that
//! has just entered the fresh namespace.
//!
//! Every address is local ("AnyIP"), so a connection to anywhere meets the
//! rules on the loopback interface. With TPROXY they hand it to a transparent
//! socket whose local address is the original destination: no NAT, no
//! connection tracking, both families alike. Where the kernel has no TPROXY,
//! NAT redirects instead; the original destination is then asked of the socket,
//! and ports of the host's loopback cannot be offered, because the check for a
//! listener inside needs the prerouting hook.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket};
use std::os::fd::OwnedFd;

use socket2::{Domain, Socket, Type};

use crate::listener::{Outbound, OutboundKind};
use crate::netlink::nftables::{self, Hook, Rule, Transport};
use crate::netlink::{Netlink, Refused, route};
use crate::sys;

/// The namespace's IPv4 address besides loopback. From TEST-NET-1 (RFC 5737),
/// so that it can never be the address of something the application wants to
/// reach; without one, `getaddrinfo` with `AI_ADDRCONFIG` finds no IPv4.
pub(crate) const ADDRESS_V4: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 2));

/// Likewise for IPv6: a unique local address (RFC 4193).
pub(crate) const ADDRESS_V6: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfd68, 0x6564, 0x646c, 0, 0, 0, 0, 2));

/// The mark of the sidecar's own connections into the namespace ("he").
pub(crate) const MARK: u32 = 0x6865;

/// Where the application's calls arrive; as in a pod. It cannot listen there itself.
const OUTBOUND_PORT: u16 = 7101;

/// Where its calls to ports of the host's loopback arrive.
const HOST_LOOPBACK_PORT: u16 = 7103;

const DNS_PORT: u16 = 53;

/// The resolver that `resolv.conf` names. Queries to any other are answered too.
pub(crate) const RESOLVER: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 53);

/// Where the responder's IPv6 socket binds: no address that an application would use.
const RESOLVER_V6: Ipv6Addr = Ipv6Addr::new(0xfd68, 0x6564, 0x646c, 0, 0, 0, 0, 0x53);

const LOOPBACK_V4: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const LOOPBACK_V6: IpAddr = IpAddr::V6(Ipv6Addr::LOCALHOST);

/// Connections that may wait to be accepted; the kernel caps it at `somaxconn`.
const BACKLOG: i32 = 1024;

/// Names of the two sets of the host's loopback ports.
pub(crate) const HOST_PORTS: [&str; 2] = ["host4", "host6"];

/// How connections are intercepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Interception {
    /// Transparent sockets.
    Tproxy,
    /// Destination NAT.
    Redirect,
}

/// Why the namespace could not be set up.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SetupError {
    /// The kernel refused a part of the configuration.
    #[error("{0}")]
    Refused(#[from] Refused),
    /// Neither way of interception is available.
    #[error("the kernel offers neither nftables TPROXY ({tproxy}) nor nftables NAT ({redirect})")]
    NoInterception {
        /// What TPROXY lacked.
        tproxy: Refused,
        /// What NAT lacked.
        redirect: Refused,
    },
    /// A socket could not be made.
    #[error("making the socket for {what} at {address}: {source}")]
    Socket {
        /// What it is for.
        what: &'static str,
        /// Where it was to bind.
        address: SocketAddr,
        /// The operating system's answer.
        source: io::Error,
    },
    /// Netlink is not available.
    #[error("opening a netlink socket: {0}")]
    Netlink(#[source] io::Error),
}

/// The sidecar's sockets inside the namespace.
#[derive(Debug)]
pub(crate) struct Inside {
    /// How connections are intercepted.
    pub(crate) interception: Interception,
    /// Where they arrive.
    pub(crate) outbound: Vec<Outbound>,
    /// Where DNS queries arrive, by UDP.
    pub(crate) dns_datagrams: Vec<UdpSocket>,
    /// Where DNS queries arrive, by TCP.
    pub(crate) dns_streams: Vec<TcpListener>,
}

/// Configures the calling thread's network namespace, which must be fresh.
///
/// # Errors
/// If the kernel lacks what is needed, or the thread the capabilities.
pub(crate) fn set_up(wanted: Option<Interception>) -> Result<Inside, SetupError> {
    let mut routes = Netlink::route().map_err(SetupError::Netlink)?;
    routes.transact(&[route::loopback_up()])?;
    routes.transact(&[route::add_address(ADDRESS_V4)])?;
    routes.transact(&[route::every_address_local(ADDRESS_V4)])?;
    // A kernel without IPv6 has nothing to intercept there.
    let ipv6 = routes.transact(&[route::add_address(ADDRESS_V6)]).is_ok()
        && routes.transact(&[route::every_address_local(ADDRESS_V6)]).is_ok();
    let families = if ipv6 { &[LOOPBACK_V4, LOOPBACK_V6][..] } else { &[LOOPBACK_V4] };
    // The application may listen on port 80 whoever runs it: the namespace is its own.
    let _ = std::fs::write("/proc/sys/net/ipv4/ip_unprivileged_port_start", "0");

    let interception = intercept(families, wanted)?;
    let mut inside = Inside { interception, outbound: vec![], dns_datagrams: vec![], dns_streams: vec![] };
    for &loopback in families {
        let kind = match interception {
            Interception::Tproxy => OutboundKind::Transparent,
            Interception::Redirect => OutboundKind::Redirected,
        };
        let address = SocketAddr::new(loopback, OUTBOUND_PORT);
        let listener = listen("outbound connections", address)?;
        inside.outbound.push(Outbound { listener, kind });
        if interception == Interception::Tproxy {
            let address = SocketAddr::new(loopback, HOST_LOOPBACK_PORT);
            let listener = listen("connections to the host's loopback", address)?;
            inside.outbound.push(Outbound { listener, kind: OutboundKind::HostLoopback });
        }
        let address = SocketAddr::new(resolver(loopback, interception), DNS_PORT);
        inside.dns_datagrams.push(datagrams("DNS queries", address)?);
        inside.dns_streams.push(listen("DNS queries", address)?);
    }
    Ok(inside)
}

/// A stream socket towards the application, unconnected, that the rules leave alone.
pub(crate) fn app_socket(ipv6: bool) -> io::Result<OwnedFd> {
    let domain = if ipv6 { Domain::IPV6 } else { Domain::IPV4 };
    let socket = Socket::new(domain, Type::STREAM, None)?;
    socket.set_mark(MARK)?;
    socket.set_nonblocking(true)?;
    Ok(socket.into())
}

/// Where the responder binds: NAT can only redirect to the loopback address itself.
fn resolver(family: IpAddr, interception: Interception) -> IpAddr {
    match (interception, family) {
        (Interception::Redirect, _) => family,
        (Interception::Tproxy, IpAddr::V4(_)) => RESOLVER.into(),
        (Interception::Tproxy, IpAddr::V6(_)) => RESOLVER_V6.into(),
    }
}

fn intercept(families: &[IpAddr], wanted: Option<Interception>) -> Result<Interception, SetupError> {
    let mut netfilter = Netlink::netfilter().map_err(SetupError::Netlink)?;
    let mut install = |rules: Vec<_>| netfilter.transact(&nftables::transaction(rules));
    match wanted {
        Some(Interception::Tproxy) => install(tproxy_rules(families))?,
        Some(Interception::Redirect) => install(redirect_rules(families))?,
        None => match install(tproxy_rules(families)) {
            Ok(()) => return Ok(Interception::Tproxy),
            Err(tproxy) => install(redirect_rules(families))
                .map_err(|redirect| SetupError::NoInterception { tproxy, redirect })?,
        },
    }
    Ok(wanted.unwrap_or(Interception::Redirect))
}

/// The namespace's own address of the family of `like`.
fn own_address(like: IpAddr) -> IpAddr {
    if like.is_ipv4() { ADDRESS_V4 } else { ADDRESS_V6 }
}

/// Pings to addresses elsewhere: nobody there would have answered. (AnyIP
/// would.) The type of an echo request.
fn foreign_ping(family: IpAddr) -> Rule {
    let (transport, echo_request) =
        if family.is_ipv4() { (Transport::Icmp, 8) } else { (Transport::Icmp6, 128) };
    Rule::new("adding the rule about pings")
        .packets(family, transport)
        .icmp_type(echo_request)
        .not_to_loopback(family)
        .not_to(own_address(family))
        .drop()
}

fn tproxy_rules(families: &[IpAddr]) -> Vec<crate::netlink::Request> {
    const CHAIN: &str = "prerouting";
    let mut requests = vec![nftables::add_table(), nftables::add_chain(CHAIN, Hook::Prerouting)];
    for (id, set) in (1..).zip(HOST_PORTS) {
        requests.push(nftables::add_port_set(set, id));
    }
    let mut rules = vec![
        Rule::new("adding the rule about the sidecar's own connections").mark(MARK).accept(),
        Rule::new("adding the rule about other interfaces").not_loopback().accept(),
    ];
    for &family in families {
        let (index, id) = if family.is_ipv4() { (0, 1) } else { (1, 2) };
        let resolver = resolver(family, Interception::Tproxy);
        for transport in [Transport::Udp, Transport::Tcp] {
            let dns = |what| Rule::new(what).packets(family, transport).port(DNS_PORT);
            // A DNS server that the application itself runs on loopback stays its own.
            rules.push(
                dns("adding the rule about the application's own DNS server")
                    .on_loopback(family)
                    .not_to(resolver)
                    .has_socket()
                    .accept(),
            );
            rules.push(dns("adding the TPROXY rule for DNS").tproxy(resolver, DNS_PORT));
        }
        let tcp = |what| Rule::new(what).packets(family, Transport::Tcp);
        rules.push(
            tcp("adding the TPROXY rule for connections")
                .not_to_loopback(family)
                .not_to(own_address(family))
                .tproxy(family, OUTBOUND_PORT),
        );
        let host = |what| tcp(what).port_in(HOST_PORTS[index], id).on_loopback(family);
        rules.push(host("adding the rule about listeners inside (socket)").has_socket().accept());
        rules.push(host("adding the TPROXY rule for the host's loopback").tproxy(family, HOST_LOOPBACK_PORT));
        rules.push(foreign_ping(family));
    }
    requests.extend(rules.into_iter().map(|rule| rule.append_to(CHAIN)));
    requests
}

fn redirect_rules(families: &[IpAddr]) -> Vec<crate::netlink::Request> {
    const NAT: &str = "output";
    const FILTER: &str = "prerouting";
    let mut requests = vec![
        nftables::add_table(),
        nftables::add_chain(NAT, Hook::NatOutput),
        nftables::add_chain(FILTER, Hook::Prerouting),
    ];
    let mut rules =
        vec![Rule::new("adding the rule about the sidecar's own connections").mark(MARK).accept()];
    for &family in families {
        for transport in [Transport::Udp, Transport::Tcp] {
            rules.push(
                Rule::new("adding the redirection of DNS")
                    .packets(family, transport)
                    .port(DNS_PORT)
                    .redirect(DNS_PORT),
            );
        }
        rules.push(
            Rule::new("adding the redirection of connections")
                .packets(family, Transport::Tcp)
                .not_to_loopback(family)
                .not_to(own_address(family))
                .redirect(OUTBOUND_PORT),
        );
        requests.push(foreign_ping(family).append_to(FILTER));
    }
    requests.extend(rules.into_iter().map(|rule| rule.append_to(NAT)));
    requests
}

fn listen(what: &'static str, address: SocketAddr) -> Result<TcpListener, SetupError> {
    let make = || {
        let socket = transparent(address, Type::STREAM)?;
        socket.listen(BACKLOG)?;
        Ok(TcpListener::from(socket))
    };
    make().map_err(|source| SetupError::Socket { what, address, source })
}

fn datagrams(what: &'static str, address: SocketAddr) -> Result<UdpSocket, SetupError> {
    let make = || {
        let socket = transparent(address, Type::DGRAM)?;
        if address.is_ipv4() {
            sys::enable(&socket, libc::IPPROTO_IP, libc::IP_PKTINFO)?;
        } else {
            sys::enable(&socket, libc::IPPROTO_IPV6, libc::IPV6_RECVPKTINFO)?;
        }
        Ok(UdpSocket::from(socket))
    };
    make().map_err(|source| SetupError::Socket { what, address, source })
}

fn transparent(address: SocketAddr, kind: Type) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), kind, None)?;
    if address.is_ipv4() {
        socket.set_ip_transparent_v4(true)?;
    } else {
        socket.set_only_v6(true)?;
        socket.set_ip_transparent_v6(true)?;
    }
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    Ok(socket)
}
