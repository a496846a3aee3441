//! Queries for names outside the mesh, sent from the host's network to the
//! host's resolvers.
//!
//! A query is passed on as it is, but for its identifier; an answer counts only
//! if it repeats that identifier and the question. Truncated answers are passed
//! back as they are: the client asks again by TCP, and that is forwarded by TCP.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;

use crate::dns::message::Query;

/// Resolvers that are asked, one after another (`MAXNS` of resolv.conf(5)).
const SERVERS: usize = 3;

/// How long each may take. All of them together stay below the five seconds
/// after which stub resolvers give up, so that the application gets an answer.
const PATIENCE: Duration = Duration::from_millis(1500);

/// The largest answer by UDP: what EDNS allows in practice (RFC 9715) and more.
const LARGEST_DATAGRAM: usize = 4096;

/// By what a query came and is forwarded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Transport {
    Udp,
    Tcp,
}

/// The host's resolvers.
#[derive(Debug, Clone)]
pub(crate) struct Forwarder {
    /// Read from the host's `resolv.conf` at each query when `None`: it changes
    /// with the network that the machine is in.
    servers: Option<Vec<SocketAddr>>,
}

impl Forwarder {
    /// Asks these resolvers, or without any those of `/etc/resolv.conf` as it is at the time.
    pub(crate) fn new(servers: Vec<SocketAddr>) -> Self {
        Self { servers: (!servers.is_empty()).then_some(servers) }
    }

    /// The first answer of any resolver.
    ///
    /// # Errors
    /// The last failure, when none answered.
    pub(crate) async fn ask(&self, query: &Query<'_>, transport: Transport) -> io::Result<Vec<u8>> {
        let servers = match &self.servers {
            Some(servers) => servers.clone(),
            None => nameservers(&std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default()),
        };
        let mut last = io::Error::from(io::ErrorKind::NotFound);
        for server in servers {
            let attempt = async {
                match transport {
                    Transport::Udp => by_udp(query, server).await,
                    Transport::Tcp => by_tcp(query, server).await,
                }
            };
            match timeout(PATIENCE, attempt).await {
                Ok(Ok(reply)) => return Ok(reply),
                Ok(Err(error)) => last = error,
                Err(_) => last = io::ErrorKind::TimedOut.into(),
            }
        }
        Err(last)
    }
}

/// Whether this host can reach IPv6 addresses: connecting a datagram socket
/// sends nothing but needs a route. Without one, IPv6 answers are withheld from
/// applications, whose connections would be accepted here and then fail.
pub(crate) fn host_has_ipv6() -> bool {
    // A public resolver's address; any address of the Internet would do.
    let anywhere = Ipv6Addr::new(0x2001, 0x4860, 0x4860, 0, 0, 0, 0, 0x8888);
    std::net::UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0))
        .and_then(|socket| socket.connect((anywhere, 53)))
        .is_ok()
}

/// The resolvers that `resolv.conf` names; the loopback address if none (resolv.conf(5)).
fn nameservers(resolv_conf: &str) -> Vec<SocketAddr> {
    let mut servers: Vec<SocketAddr> = resolv_conf
        .lines()
        .filter_map(|line| line.trim().strip_prefix("nameserver")?.split_ascii_whitespace().next())
        // A scope (fe80::1%eth0) is beyond what std can parse; such resolvers come with others.
        .filter_map(|address| address.parse::<IpAddr>().ok())
        .map(|address| SocketAddr::new(address, 53))
        .take(SERVERS)
        .collect();
    if servers.is_empty() {
        servers.push((Ipv4Addr::LOCALHOST, 53).into());
    }
    servers
}

/// The query under another identifier, and that identifier.
fn disguised(query: &Query<'_>) -> io::Result<(Vec<u8>, [u8; 2])> {
    let mut id = [0; 2];
    aws_lc_rs::rand::fill(&mut id).map_err(|_| io::Error::other("no randomness"))?;
    let mut bytes = query.bytes().to_vec();
    bytes[..2].copy_from_slice(&id);
    Ok((bytes, id))
}

/// The answer under the query's own identifier.
fn restored(query: &Query<'_>, mut reply: Vec<u8>) -> Vec<u8> {
    reply[..2].copy_from_slice(&query.bytes()[..2]);
    reply
}

async fn by_udp(query: &Query<'_>, server: SocketAddr) -> io::Result<Vec<u8>> {
    let any: IpAddr =
        if server.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    // A socket per query: the kernel picks a port that cannot be guessed, and
    // a connected socket takes answers from that server only.
    let socket = UdpSocket::bind((any, 0)).await?;
    socket.connect(server).await?;
    let (bytes, id) = disguised(query)?;
    socket.send(&bytes).await?;
    let mut reply = vec![0; LARGEST_DATAGRAM];
    loop {
        let length = socket.recv(&mut reply).await?;
        if query.is_answered_by(&reply[..length], id) {
            reply.truncate(length);
            return Ok(restored(query, reply));
        }
    }
}

async fn by_tcp(query: &Query<'_>, server: SocketAddr) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(server).await?;
    let (bytes, id) = disguised(query)?;
    let length = u16::try_from(bytes.len()).map_err(io::Error::other)?;
    stream.write_all(&[&length.to_be_bytes()[..], &bytes].concat()).await?;
    let mut reply = vec![0; usize::from(stream.read_u16().await?)];
    stream.read_exact(&mut reply).await?;
    if query.is_answered_by(&reply, id) {
        Ok(restored(query, reply))
    } else {
        Err(io::Error::other(format!("the resolver {server} answered another question")))
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::dns::message::{Code, TYPE_A, tests::query};

    impl Forwarder {
        pub(crate) fn to(servers: Vec<SocketAddr>) -> Self {
            Self { servers: Some(servers) }
        }
    }

    #[test]
    fn resolvers_are_read_and_default_to_loopback() {
        let text = "# c\nnameserver 10.0.0.1 # x\n nameserver\t::1\nnameserver fe80::1%eth0\nnameserver 10.0.0.2\nnameserver 10.0.0.3\n";
        let expected: Vec<SocketAddr> =
            ["10.0.0.1:53", "[::1]:53", "10.0.0.2:53"].map(|a| a.parse().unwrap()).into();
        assert_eq!(nameservers(text), expected);
        assert_eq!(nameservers("search x\n"), ["127.0.0.1:53".parse().unwrap()]);
    }

    #[tokio::test]
    async fn forged_answers_are_ignored_and_silent_resolvers_skipped() {
        let closed = std::net::UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let server = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let forwarder = Forwarder::to(vec![closed, server.local_addr().unwrap()]);
        let bytes = query("example.com", TYPE_A);
        let asked = Query::read(&bytes).unwrap();
        let answering = async {
            let mut buffer = [0; 512];
            let (length, from) = server.recv_from(&mut buffer).await.unwrap();
            let received = Query::read(&buffer[..length]).unwrap();
            let mut forged = received.reply(Code::NxDomain);
            forged[0] ^= 1;
            server.send_to(&forged, from).await.unwrap();
            server.send_to(&received.reply(Code::NoError), from).await.unwrap();
        };
        let (reply, ()) = tokio::join!(forwarder.ask(&asked, Transport::Udp), answering);
        assert_eq!(reply.unwrap(), asked.reply(Code::NoError));
    }
}
