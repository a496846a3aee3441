//! Queries for names outside the mesh, sent from the host's network to the
//! host's resolvers.
//!
//! A query is passed on as it is, but for its identifier; an answer counts only
//! if it repeats that identifier and the question. Truncated answers are passed
//! back as they are: the client asks again by TCP, and that is forwarded by TCP.
//!
//! In a pod a resolver on loopback is a container beside us, and what it asks in turn
//! is brought to us. A question that such a resolver is being asked is not asked again.

use std::collections::HashSet;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
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

/// Questions as they stand in queries.
type Questions = HashSet<Box<[u8]>>;

/// The host's resolvers.
#[derive(Debug, Clone)]
pub(crate) struct Forwarder {
    /// Read from the host's `resolv.conf` at each query when `None`: it changes
    /// with the network that the machine is in.
    servers: Option<Vec<SocketAddr>>,
    /// Questions that resolvers on loopback are being asked, where those may ask us in turn.
    beside: Option<Arc<Mutex<Questions>>>,
}

impl Forwarder {
    /// Asks these resolvers, or without any those of `/etc/resolv.conf` as it is at the time.
    pub(crate) fn new(servers: Vec<SocketAddr>) -> Self {
        Self { servers: (!servers.is_empty()).then_some(servers), beside: None }
    }

    /// The same in a pod, whose resolvers' own queries come back to us.
    pub(crate) fn in_pod(servers: Vec<SocketAddr>) -> Self {
        Self { beside: Some(Arc::default()), ..Self::new(servers) }
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
            let beside = self.beside.as_deref().filter(|_| server.ip().to_canonical().is_loopback());
            let asking = beside.map(|asked| Asking::of(query, asked));
            if matches!(asking, Some(None)) {
                last = io::Error::other(format!(
                    "the resolver {server} asks itself by way of this sidecar: leave port 53 out of the mesh \
                     (heddle.dev/skip-outbound-ports)"
                ));
                continue;
            }
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

/// A question that is being asked, until dropped.
struct Asking<'a> {
    question: Box<[u8]>,
    asked: &'a Mutex<Questions>,
}

impl<'a> Asking<'a> {
    /// `None` if it is being asked already.
    fn of(query: &Query<'_>, asked: &'a Mutex<Questions>) -> Option<Self> {
        let question: Box<[u8]> = query.question().to_ascii_lowercase().into();
        let is_new = asked.lock().insert(question.clone());
        // One that was not made must not take back what another has noted.
        is_new.then(|| Self { question, asked })
    }
}

impl Drop for Asking<'_> {
    fn drop(&mut self) {
        self.asked.lock().remove(&self.question);
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
    // One byte more, by which it is seen that there were even more.
    let mut reply = vec![0; LARGEST_DATAGRAM + 1];
    loop {
        let length = socket.recv(&mut reply).await?;
        if query.is_answered_by(&reply[..length], id) {
            if length > LARGEST_DATAGRAM {
                return Ok(query.truncated());
            }
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
            Self::new(servers)
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

    /// What did not fit was cut off and passed on as if it were whole.
    #[tokio::test]
    async fn an_answer_larger_than_any_that_is_taken_is_asked_for_again_by_tcp() {
        let server = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let forwarder = Forwarder::to(vec![server.local_addr().unwrap()]);
        let bytes = query("example.com", TYPE_A);
        let asked = Query::read(&bytes).unwrap();
        let ask = async |length: usize| {
            let answering = async {
                let mut buffer = [0; 512];
                let (received, from) = server.recv_from(&mut buffer).await.unwrap();
                let mut reply = Query::read(&buffer[..received]).unwrap().reply(Code::NoError);
                reply.resize(length, 0);
                server.send_to(&reply, from).await.unwrap();
            };
            tokio::join!(forwarder.ask(&asked, Transport::Udp), answering).0.unwrap()
        };
        assert_eq!(ask(LARGEST_DATAGRAM).await.len(), LARGEST_DATAGRAM);
        let cut = ask(LARGEST_DATAGRAM + 1).await;
        assert_eq!(cut, asked.truncated());
        assert!(cut[2] & 0x02 != 0 && cut.len() == bytes.len());
    }

    /// A pod with a resolver of its own, whose queries came to the sidecar, which asked that resolver,
    /// and so on, as fast as the two could.
    #[tokio::test]
    async fn a_resolver_beside_us_that_asks_us_in_turn_is_asked_once() {
        let server = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let forwarder = Forwarder::in_pod(vec![server.local_addr().unwrap()]);
        let bytes = query("Example.com", TYPE_A);
        let asked = Query::read(&bytes).unwrap();
        let other = query("example.org", TYPE_A);
        let resolver = async {
            let mut buffer = [0; 512];
            let (length, from) = server.recv_from(&mut buffer).await.unwrap();
            let received = Query::read(&buffer[..length]).unwrap();
            let in_turn = query("example.COM", TYPE_A);
            let error = forwarder.ask(&Query::read(&in_turn).unwrap(), Transport::Udp).await.unwrap_err();
            assert!(error.to_string().contains("skip-outbound-ports"), "{error}");
            server.send_to(&received.reply(Code::ServFail), from).await.unwrap();
        };
        let (reply, ()) = tokio::join!(forwarder.ask(&asked, Transport::Udp), resolver);
        assert_eq!(reply.unwrap(), asked.reply(Code::ServFail));
        for bytes in [&bytes, &other] {
            let asked = Query::read(bytes).unwrap();
            let answering = async {
                let mut buffer = [0; 512];
                let (length, from) = server.recv_from(&mut buffer).await.unwrap();
                let reply = Query::read(&buffer[..length]).unwrap().reply(Code::NoError);
                server.send_to(&reply, from).await.unwrap();
            };
            let (reply, ()) = tokio::join!(forwarder.ask(&asked, Transport::Udp), answering);
            assert_eq!(reply.unwrap(), asked.reply(Code::NoError), "it is asked again, and others are");
        }
    }
}
