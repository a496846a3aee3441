//! The sockets that a sidecar works with, made by whoever starts it.
//!
//! `proxy` binds ordinary listeners, or those that a [pod]'s rules lead
//! to, `run` makes them inside the application's network namespace; everything
//! behind works on what is described here and does not know which it was.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream as StdTcpStream};
use std::sync::Arc;

use heddle_api::name::ServiceName;
use socket2::SockRef;
use tokio::net::{TcpSocket, TcpStream};

use crate::pod;

/// The listeners of one sidecar, and its way to the application.
#[derive(Debug)]
pub struct Plumbing {
    /// Where the application's own calls arrive.
    pub outbound: Vec<Outbound>,
    /// Where calls to the application arrive. The first one for peers is the
    /// one that is registered.
    pub inbound: Vec<Inbound>,
    /// How the application is reached.
    pub app: AppDialer,
    /// The address under which peers reach the inbound listeners.
    pub advertise: IpAddr,
}

impl Plumbing {
    /// The addresses of the listeners to which NAT brings the application's calls.
    pub(crate) fn redirected(&self) -> Vec<IpAddr> {
        let redirected = self.outbound.iter().filter(|outbound| outbound.kind == OutboundKind::Redirected);
        redirected.filter_map(|outbound| Some(outbound.listener.local_addr().ok()?.ip())).collect()
    }
}

/// A listener for the application's calls.
#[derive(Debug)]
pub struct Outbound {
    /// The bound socket.
    pub listener: TcpListener,
    /// How the destination of a connection is found.
    pub kind: OutboundKind,
}

/// How the destination of an outbound connection is found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OutboundKind {
    /// The connection was made to us: only the authority of HTTP requests says where to.
    ByAuthority,
    /// TPROXY or AnyIP: the local address is the original destination.
    Transparent,
    /// NAT: `SO_ORIGINAL_DST` is the original destination.
    Redirected,
    /// The application's loopback, for a port on which only the host listens:
    /// passed to the same port of the host's loopback.
    HostLoopback,
    /// Everything goes to one port of one service.
    Fixed(ServiceName, u16),
}

/// The address that was connected to before NAT.
pub(crate) fn original_destination(socket: &StdTcpStream) -> io::Result<SocketAddr> {
    let is_ipv4 = socket.local_addr()?.ip().to_canonical().is_ipv4();
    let socket = SockRef::from(socket);
    let address = if is_ipv4 { socket.original_dst_v4() } else { socket.original_dst_v6() };
    address?.as_socket().ok_or_else(|| io::Error::other("the original destination is no IP address"))
}

/// A listener for calls to the application.
#[derive(Debug)]
pub struct Inbound {
    /// The bound socket.
    pub listener: TcpListener,
    /// Who connects there.
    pub kind: InboundKind,
}

/// Who connects to an inbound listener.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InboundKind {
    /// Peers, with mutual TLS; they name the application's port.
    Mesh,
    /// Whoever connects to any port of the pod: peers as well, and others.
    Pod,
    /// The host's user, in plaintext, for this port of the application.
    Published(u16),
}

/// Makes unconnected stream sockets in the application's network.
pub trait SocketSource: Send + Sync {
    /// A non-blocking TCP socket of the family of `address`. Called on a
    /// worker: returns without waiting, save for one switch of threads.
    ///
    /// # Errors
    /// If the operating system refuses one.
    fn socket(&self, address: IpAddr) -> io::Result<TcpSocket>;
}

/// The way to the application.
#[derive(Clone)]
pub struct AppDialer {
    /// Where it listens, if that was said: an address and perhaps a port that
    /// stands for all of its ports.
    address: Option<(IpAddr, Option<u16>)>,
    /// An address of the application's network that it may have bound alone.
    own: Option<IpAddr>,
    /// The addresses of the pod that it shares with us; empty outside of pods.
    pod: Arc<[IpAddr]>,
    sockets: Option<Arc<dyn SocketSource>>,
}

impl AppDialer {
    /// An application on this host: at its loopback, or at `address`, where
    /// port 0 means the port that the peer asked for.
    pub fn direct(address: Option<SocketAddr>) -> Self {
        let address = address.map(|a| (a.ip(), (a.port() != 0).then_some(a.port())));
        Self { address, own: None, pod: Arc::new([]), sockets: None }
    }

    /// An application in the pod that has these addresses and whose connections
    /// all come here. It is reached as other pods would reach it: what listens on
    /// loopback alone is not.
    pub fn in_pod(addresses: &[IpAddr]) -> Self {
        Self { address: None, own: None, pod: addresses.into(), sockets: None }
    }

    /// An application in a network of its own, at the loopback there or at
    /// `own`, its address besides loopback.
    pub fn namespaced(sockets: Arc<dyn SocketSource>, own: IpAddr) -> Self {
        Self { address: None, own: Some(own), pod: Arc::new([]), sockets: Some(sockets) }
    }

    /// Whether the application is in a pod, where it may listen on ports that nobody declared.
    pub fn is_in_pod(&self) -> bool {
        !self.pod.is_empty()
    }

    /// Where a peer's listener is dialled. Within our own pod nothing is intercepted,
    /// so a call of the application to itself has to name the listener.
    pub fn listener_of(&self, peer: SocketAddr) -> SocketAddr {
        if self.pod.contains(&peer.ip()) { SocketAddr::new(peer.ip(), pod::INBOUND_PORT) } else { peer }
    }

    /// The address that was given explicitly.
    pub fn explicit(&self) -> Option<(IpAddr, Option<u16>)> {
        self.address
    }

    /// A connection to the application's `port`. Without an explicit address
    /// `127.0.0.1` is tried and, where nothing listens there, the network's own
    /// address and `::1`; in a pod its addresses.
    ///
    /// # Errors
    /// Those of the first attempt: the refusal of the usual address tells more than that of the others.
    pub async fn connect(&self, port: u16) -> io::Result<TcpStream> {
        if let Some((ip, fixed)) = self.address {
            return self.dial(SocketAddr::new(ip, fixed.unwrap_or(port))).await;
        }
        if let Some((first, others)) = self.pod.split_first() {
            let refused = match self.dial(SocketAddr::new(*first, port)).await {
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => error,
                done => return done,
            };
            for ip in others {
                if let Ok(stream) = self.dial(SocketAddr::new(*ip, port)).await {
                    return Ok(stream);
                }
            }
            return Err(refused);
        }
        let refused = match self.dial((Ipv4Addr::LOCALHOST, port).into()).await {
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => error,
            done => return done,
        };
        for ip in self.own.into_iter().chain([Ipv6Addr::LOCALHOST.into()]) {
            if let Ok(stream) = self.dial((ip, port).into()).await {
                return Ok(stream);
            }
        }
        Err(refused)
    }

    async fn dial(&self, address: SocketAddr) -> io::Result<TcpStream> {
        let socket = match (&self.sockets, address) {
            (Some(source), _) => source.socket(address.ip())?,
            (None, SocketAddr::V4(_)) => TcpSocket::new_v4()?,
            (None, SocketAddr::V6(_)) => TcpSocket::new_v6()?,
        };
        socket.set_nodelay(true)?;
        socket.connect(address).await
    }
}

impl std::fmt::Debug for AppDialer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AppDialer")
            .field("address", &self.address)
            .field("pod", &self.pod)
            .field("namespaced", &self.sockets.is_some())
            .finish()
    }
}
