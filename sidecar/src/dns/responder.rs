//! Serves DNS by UDP and TCP on sockets of the application's namespace, on the
//! agent's thread.
//!
//! Replies leave from the address that was asked, because applications may ask
//! any resolver. Queries, connections and waiting times are bounded.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, TcpListener as StdListener, UdpSocket as StdUdpSocket};
use std::os::fd::AsFd;
use std::rc::Rc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::future::join_all;
use futures_util::stream::FuturesUnordered;
use heddle_api::name::{DEFAULT_CLUSTER_DOMAIN, ServiceName};
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::time::{sleep, timeout};

use crate::config::{ConfigHandle, Lookup, Want};
use crate::dns::addresses::Addresses;
use crate::dns::forward::{Forwarder, Transport, host_has_ipv6};
use crate::dns::message::{Code, Query, TYPE_AAAA, code_of};
use crate::dns::subject::Subject;
use crate::proxy::AgentTask;
use crate::sys;

/// How long discovery may take to say whether a service exists.
const DISCOVERY_PATIENCE: Duration = Duration::from_secs(2);

/// How long discovery may take where the cluster's DNS would answer as well: while the
/// control plane is away, names that are not known yet wait so long for nothing.
const CLUSTER_PATIENCE: Duration = Duration::from_millis(250);

/// How long applications may keep a mesh name's address. It never changes, but
/// a short time lets them see a service disappear.
const TTL: u32 = 30;

/// Queries in progress per socket; more wait in the socket's buffer.
const QUERIES: usize = 512;

/// Open TCP connections per socket.
const CONNECTIONS: usize = 64;

/// How long a TCP connection may be silent (RFC 7766 suggests a few seconds).
const IDLE: Duration = Duration::from_secs(10);

/// The pause after a failing accept: descriptors may be exhausted, and trying
/// again at once would use up the thread.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The largest query by UDP; real ones have about a hundred bytes.
const LARGEST_QUERY: usize = 4096;

/// The sockets to serve.
#[derive(Debug, Default)]
pub(crate) struct Sockets {
    /// UDP, with packet information enabled.
    pub(crate) datagrams: Vec<StdUdpSocket>,
    /// TCP.
    pub(crate) streams: Vec<StdListener>,
}

/// Who answers for the names of services.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Answers {
    /// We do, as nobody else knows them.
    OfMesh,
    /// The cluster's DNS does, and we only for what it does not know: names
    /// outside the cluster that lead to services, and services outside the cluster.
    OfCluster,
}

/// The responder for an application in `namespace`, as a task for the agent's thread.
pub(crate) fn responder(
    sockets: Sockets,
    answers: Answers,
    namespace: String,
    addresses: Addresses,
    forwarder: Forwarder,
) -> AgentTask {
    Box::new(move |config| {
        let ipv6 = match answers {
            Answers::OfMesh => host_has_ipv6,
            // A cluster may well reach IPv6 addresses of its own and none elsewhere.
            Answers::OfCluster => || true,
        };
        let responder = Responder { answers, namespace, addresses, config, forwarder, ipv6 };
        Box::pin(async move {
            if let Err(error) = serve(Rc::new(responder), sockets).await {
                tracing::error!(%error, "the DNS responder cannot use its sockets");
            }
        })
    })
}

struct Responder {
    answers: Answers,
    namespace: String,
    addresses: Addresses,
    config: ConfigHandle,
    forwarder: Forwarder,
    /// Whether the host can reach IPv6 addresses now.
    ipv6: fn() -> bool,
}

/// What discovery says about a service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Existence {
    Exists,
    Absent,
    Unknown,
}

impl Responder {
    /// The reply to one message; `None` if it deserves none.
    async fn reply(&self, message: &[u8], transport: Transport) -> Option<Vec<u8>> {
        let query = match Query::read(message) {
            Ok(query) => query,
            Err(refusal) => return refusal,
        };
        Some(self.answer(&query, transport).await)
    }

    async fn answer(&self, query: &Query<'_>, transport: Transport) -> Vec<u8> {
        if !query.internet {
            return self.forward(query, transport).await;
        }
        if let Some(service) = self.host(&query.name) {
            return self.address_of(&service, query);
        }
        let cluster_domain = self.config.load().mesh.clone();
        let cluster_domain =
            cluster_domain.as_deref().map_or(DEFAULT_CLUSTER_DOMAIN, |mesh| mesh.cluster_domain.as_str());
        let subject = Subject::of(&query.name, &self.namespace, cluster_domain);
        let (name, ours) = match subject {
            Subject::Localhost => {
                let loopback = [IpAddr::V4(Ipv4Addr::LOCALHOST), Ipv6Addr::LOCALHOST.into()];
                let wanted: Vec<IpAddr> =
                    loopback.into_iter().filter(|ip| query.asks_for(ip.is_ipv6())).collect();
                return query.answer(Code::NoError, &wanted, TTL);
            }
            subject if self.answers == Answers::OfCluster => {
                return self.answer_beside_cluster(subject, query, transport).await;
            }
            Subject::Nothing => return query.reply(Code::NxDomain),
            Subject::Foreign => return self.forward(query, transport).await,
            Subject::Service { name, ours } => (name, ours),
        };
        match self.existence(&name, DISCOVERY_PATIENCE).await {
            Existence::Exists => self.address_of(&name, query),
            Existence::Absent if ours => query.reply(Code::NxDomain),
            Existence::Absent => self.forward(query, transport).await,
            Existence::Unknown if ours => query.reply(Code::ServFail),
            Existence::Unknown => {
                // Somebody else may know the name; that they do not says nothing about the mesh.
                let reply = self.forward(query, transport).await;
                if code_of(&reply) == Some(Code::NxDomain as u8) {
                    query.reply(Code::ServFail)
                } else {
                    reply
                }
            }
        }
    }

    /// The cluster's answer, unless the name leads to a service that the cluster's DNS does not
    /// know. A name that is qualified for the cluster is its own to answer first; any other of a
    /// service's form (`example.com`) may be one that the mesh gave a meaning.
    async fn answer_beside_cluster(
        &self,
        subject: Subject,
        query: &Query<'_>,
        transport: Transport,
    ) -> Vec<u8> {
        let asks_for_address = query.asks_for(false) || query.asks_for(true);
        let Subject::Service { name, ours } = subject else {
            return self.forward(query, transport).await;
        };
        // What else there is to ask about a name outside the cluster is not ours to say; but a name
        // that has addresses exists, whatever is asked (RFC 8020).
        if ours || !asks_for_address && query.name.contains('.') {
            let reply = self.forward(query, transport).await;
            let denied = code_of(&reply) == Some(Code::NxDomain as u8);
            if denied && self.existence(&name, CLUSTER_PATIENCE).await == Existence::Exists {
                return self.address_of(&name, query);
            }
            return reply;
        }
        // A single label is for the search list to complete.
        if !query.name.contains('.') {
            return self.forward(query, transport).await;
        }
        let forwarded = self.forward(query, transport);
        match tokio::join!(self.existence(&name, CLUSTER_PATIENCE), forwarded) {
            (Existence::Exists, _) => self.address_of(&name, query),
            (Existence::Absent | Existence::Unknown, reply) => reply,
        }
    }

    /// The service of a name outside the mesh that is known to lead to one. It is told at once:
    /// that it exists is known, and what would be asked elsewhere would go around it.
    fn host(&self, name: &str) -> Option<ServiceName> {
        let service = self.config.load().workload.as_ref()?.hosts.get(name).cloned()?;
        // Whoever asks for the name will ask for the service next.
        let _ = self.config.want(Want::Service(service.clone()));
        Some(service)
    }

    fn address_of(&self, name: &ServiceName, query: &Query<'_>) -> Vec<u8> {
        if !query.asks_for(false) {
            return query.reply(Code::NoError);
        }
        match self.addresses.assign(name) {
            Ok(address) => query.answer(Code::NoError, &[address.into()], TTL),
            Err(error) => {
                tracing::warn!(%error, service = %name, "no address for a service");
                query.reply(Code::ServFail)
            }
        }
    }

    async fn existence(&self, name: &ServiceName, patience: Duration) -> Existence {
        let known = |config: &ConfigHandle| match config.load().services.get(name) {
            Some(Lookup::Found(_)) => Some(Existence::Exists),
            Some(Lookup::Absent) => Some(Existence::Absent),
            Some(Lookup::Pending) | None => None,
        };
        let mut config = self.config.clone();
        if let Some(existence) = known(&config) {
            return existence;
        }
        if !config.want(Want::Service(name.clone())) {
            return Existence::Unknown;
        }
        let waiting = async {
            loop {
                if let Some(existence) = known(&config) {
                    return existence;
                }
                config.changed().await;
            }
        };
        timeout(patience, waiting).await.unwrap_or(Existence::Unknown)
    }

    async fn forward(&self, query: &Query<'_>, transport: Transport) -> Vec<u8> {
        if query.kind == TYPE_AAAA && !(self.ipv6)() {
            return query.reply(Code::NoError);
        }
        match self.forwarder.ask(query, transport).await {
            Ok(reply) => reply,
            Err(error) => {
                tracing::debug!(%error, name = query.name, "no resolver of the host answered");
                query.reply(Code::ServFail)
            }
        }
    }
}

async fn serve(responder: Rc<Responder>, sockets: Sockets) -> io::Result<()> {
    let datagrams: Vec<UdpSocket> =
        sockets.datagrams.into_iter().map(UdpSocket::from_std).collect::<io::Result<_>>()?;
    let streams: Vec<TcpListener> =
        sockets.streams.into_iter().map(TcpListener::from_std).collect::<io::Result<_>>()?;
    let by_udp = join_all(datagrams.iter().map(|socket| serve_datagrams(&responder, socket)));
    let by_tcp = join_all(streams.iter().map(|listener| serve_streams(&responder, listener)));
    tokio::join!(by_udp, by_tcp);
    Ok(())
}

async fn serve_datagrams(responder: &Responder, socket: &UdpSocket) {
    let mut pending = FuturesUnordered::new();
    loop {
        let mut buffer = [0; LARGEST_QUERY];
        let receive =
            socket.async_io(Interest::READABLE, || sys::receive_datagram(socket.as_fd(), &mut buffer));
        tokio::select! {
            received = receive, if pending.len() < QUERIES => {
                let (length, from, asked) = match received {
                    Ok(received) => received,
                    Err(error) => {
                        // An earlier reply that could not be delivered is reported here; nothing is lost.
                        tracing::debug!(%error, "receiving a DNS query");
                        continue;
                    }
                };
                let message = buffer[..length].to_vec();
                pending.push(async move {
                    if let Some(reply) = responder.reply(&message, Transport::Udp).await
                        && let Err(error) = sys::send_datagram(socket.as_fd(), &reply, from, asked)
                    {
                        // The application asks again, as after any lost datagram.
                        tracing::debug!(%error, %from, "sending a DNS reply");
                    }
                });
            }
            Some(()) = pending.next(), if !pending.is_empty() => {}
        }
    }
}

async fn serve_streams(responder: &Responder, listener: &TcpListener) {
    let mut connections = FuturesUnordered::new();
    loop {
        tokio::select! {
            accepted = listener.accept(), if connections.len() < CONNECTIONS => match accepted {
                Ok((stream, _)) => connections.push(serve_stream(responder, stream)),
                Err(error) => {
                    tracing::warn!(%error, "accepting a DNS connection");
                    sleep(ACCEPT_PAUSE).await;
                }
            },
            Some(_) = connections.next(), if !connections.is_empty() => {}
        }
    }
}

/// Queries of one connection, one at a time, each after its length (RFC 7766).
async fn serve_stream(responder: &Responder, mut stream: TcpStream) -> io::Result<()> {
    loop {
        let Ok(length) = timeout(IDLE, stream.read_u16()).await else { return Ok(()) };
        let mut message = vec![0; length?.into()];
        timeout(IDLE, stream.read_exact(&mut message)).await??;
        let Some(reply) = responder.reply(&message, Transport::Tcp).await else { return Ok(()) };
        let length = u16::try_from(reply.len()).map_err(io::Error::other)?;
        timeout(IDLE, stream.write_all(&[&length.to_be_bytes()[..], &reply].concat())).await??;
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::sync::Arc;

    use super::*;
    use crate::config::{self, Publisher, Snapshot};
    use crate::dns::message::TYPE_A;
    use crate::dns::message::tests::query;
    use tokio::sync::mpsc::Receiver;

    /// A responder whose only resolver is a closed port.
    fn responder() -> (Responder, Publisher, Receiver<Want>) {
        let closed = std::net::UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let (publisher, config, wants) = config::channel();
        let responder = Responder {
            answers: Answers::OfMesh,
            namespace: "shop".into(),
            addresses: Addresses::default(),
            config,
            forwarder: Forwarder::to(vec![closed]),
            ipv6: || true,
        };
        (responder, publisher, wants)
    }

    fn publish(publisher: &Publisher, name: &str, lookup: Lookup<()>) {
        let name: ServiceName = name.parse().unwrap();
        let lookup = match lookup {
            Lookup::Found(()) => Lookup::Found(Arc::new(config::Service {
                name: name.clone(),
                ports: vec![],
                endpoints: vec![],
                policy: Arc::default(),
                routes: Vec::new(),
                faults: Arc::default(),
                usage: Arc::default(),
                stale: Arc::default(),
            })),
            Lookup::Absent => Lookup::Absent,
            Lookup::Pending => Lookup::Pending,
        };
        publisher.publish(Snapshot { services: HashMap::from([(name, lookup)]), ..Snapshot::default() });
    }

    async fn code(responder: &Responder, name: &str, kind: u16) -> (u8, Option<[u8; 4]>) {
        let reply = responder.reply(&query(name, kind), Transport::Udp).await.unwrap();
        let address = (reply[7] == 1).then(|| *reply.last_chunk::<4>().unwrap());
        (code_of(&reply).unwrap(), address)
    }

    #[tokio::test]
    async fn a_service_is_asked_for_on_demand_and_gets_its_address() {
        let (responder, publisher, mut wants) = responder();
        let discovery = async {
            assert_eq!(wants.recv().await, Some(Want::Service("shop/users".parse().unwrap())));
            publish(&publisher, "shop/users", Lookup::Pending);
            tokio::task::yield_now().await;
            publish(&publisher, "shop/users", Lookup::Found(()));
        };
        let ((code_a, address), ()) =
            tokio::join!(code(&responder, "USERS.shop.svc.cluster.local", TYPE_A), discovery);
        assert_eq!((code_a, address.map(|a| [a[0], a[1]])), (0, Some([240, 240])));
        let address = IpAddr::from(address.unwrap());
        assert_eq!(responder.addresses.service(address), Some("shop/users".parse().unwrap()));
        assert_eq!(code(&responder, "users", TYPE_AAAA).await, (0, None));
    }

    /// A responder beside a cluster whose DNS knows names that begin with `known`, at 192.0.2.1.
    async fn beside_cluster() -> (Responder, Publisher, Receiver<Want>) {
        let server = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let (responder, publisher, wants) = responder();
        let forwarder = Forwarder::to(vec![server.local_addr().unwrap()]);
        tokio::spawn(async move {
            let mut buffer = [0; 512];
            while let Ok((length, from)) = server.recv_from(&mut buffer).await {
                let query = Query::read(&buffer[..length]).unwrap();
                let reply = match query.name.starts_with("known") {
                    true => query.answer(Code::NoError, &[[192, 0, 2, 1].into()], 30),
                    false => query.reply(Code::NxDomain),
                };
                let _ = server.send_to(&reply, from).await;
            }
        });
        (Responder { answers: Answers::OfCluster, forwarder, ..responder }, publisher, wants)
    }

    #[tokio::test]
    async fn the_cluster_answers_for_its_names_and_the_mesh_for_those_it_does_not_know() {
        let (responder, publisher, mut wants) = beside_cluster().await;
        let services = [
            ("shop/known", Lookup::Found(())),
            ("shop/vm", Lookup::Found(())),
            ("shop/nobody", Lookup::Absent),
            ("example/payments", Lookup::Found(())),
            ("example/known", Lookup::Absent),
        ];
        let mut snapshot = Snapshot::default();
        for (name, lookup) in services {
            publish(&publisher, name, lookup);
            snapshot.services.extend(publisher.current().services.clone());
        }
        publisher.publish(snapshot);
        let clusters = (0, Some([192, 0, 2, 1]));
        let is_ours =
            |(code, address): (u8, Option<[u8; 4]>)| code == 0 && address.is_some_and(|a| a[0] == 240);
        assert_eq!(code(&responder, "known.shop.svc.cluster.local", TYPE_A).await, clusters);
        assert_eq!(code(&responder, "known.example", TYPE_A).await, clusters);
        assert_eq!(code(&responder, "known", TYPE_A).await, clusters);
        assert!(is_ours(code(&responder, "vm.shop.svc.cluster.local", TYPE_A).await));
        assert!(is_ours(code(&responder, "payments.example", TYPE_A).await));
        assert_eq!(code(&responder, "nobody.shop.svc.cluster.local", TYPE_A).await, (3, None));
        assert_eq!(code(&responder, "vm.shop.svc.cluster.local", TYPE_AAAA).await, (0, None));
        // Clients that ask for HTTPS records (RFC 9460) first took the denial for one of the name.
        for name in ["vm.shop.svc.cluster.local", "payments.example"] {
            assert_eq!(code(&responder, name, 65).await, (0, None), "{name}");
        }
        assert_eq!(code(&responder, "nobody.shop.svc.cluster.local", 65).await, (3, None));
        assert_eq!(code(&responder, "www.unknown.example", TYPE_A).await, (3, None));
        assert_eq!(code(&responder, "1.0.0.10.in-addr.arpa", 12).await, (3, None));
        assert!(wants.try_recv().is_err(), "all of it was known");
    }

    #[tokio::test]
    async fn a_cluster_needs_no_discovery_to_answer() {
        let (responder, _publisher, mut wants) = beside_cluster().await;
        assert_eq!(code(&responder, "gone.shop.svc.cluster.local", TYPE_A).await, (3, None));
        assert_eq!(wants.recv().await, Some(Want::Service("shop/gone".parse().unwrap())));
    }

    #[tokio::test]
    async fn a_host_gets_the_address_of_its_service_without_waiting() {
        let (responder, publisher, mut wants) = responder();
        let payments: ServiceName = "shop/payments".parse().unwrap();
        let workload = config::Workload {
            service: "shop/web".parse().unwrap(),
            ports: Vec::new(),
            zone: "".into(),
            rate_limits: Vec::new(),
            gates: config::Gates::default(),
            hosts: [("api.payments.example".into(), payments.clone())].into(),
            access_log: false,
            metric_labels: config::MetricLabels::default(),
            sampling: 0.0,
            alerts: Vec::new(),
        };
        publisher.publish(Snapshot { workload: Some(Arc::new(workload)), ..Snapshot::default() });
        let expected = responder.addresses.assign(&payments).unwrap().octets();
        assert_eq!(code(&responder, "API.payments.example", TYPE_A).await, (0, Some(expected)));
        assert_eq!(wants.recv().await, Some(Want::Service(payments)));
        assert_eq!(code(&responder, "api.payments.example", TYPE_AAAA).await, (0, None));
        assert_eq!(code(&responder, "www.payments.example", TYPE_A).await.0, Code::ServFail as u8);
    }

    #[tokio::test]
    async fn absent_services_do_not_exist_under_our_domains_and_are_forwarded_elsewhere() {
        let (responder, publisher, _wants) = responder();
        publish(&publisher, "com/example", Lookup::Absent);
        assert_eq!(code(&responder, "example.com.svc.cluster.local", TYPE_A).await.0, Code::NxDomain as u8);
        assert_eq!(code(&responder, "x.y.z.cluster.local", TYPE_A).await.0, Code::NxDomain as u8);
        assert_eq!(code(&responder, "example.com", TYPE_A).await.0, Code::ServFail as u8);
    }

    #[tokio::test]
    async fn silent_discovery_is_a_failure_and_never_a_denial() {
        let (responder, _publisher, _wants) = responder();
        tokio::time::pause();
        assert_eq!(code(&responder, "users.shop.svc", TYPE_A).await.0, Code::ServFail as u8);
    }

    #[tokio::test]
    async fn foreign_ipv6_addresses_are_withheld_where_the_host_has_no_route() {
        let (mut responder, _publisher, _wants) = responder();
        responder.ipv6 = || false;
        assert_eq!(code(&responder, "www.example.com", TYPE_AAAA).await.0, Code::NoError as u8);
    }
}
