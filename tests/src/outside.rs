//! What is outside the mesh: a DNS server that says what it is told to, and
//! servers, with TLS and without, that count who reaches them.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

use bytes::Bytes;
use http::Response;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
};
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};

use crate::response;

/// What a [`DnsServer`] says about a name.
#[derive(Debug, Clone)]
pub enum Says {
    /// These addresses, for so many seconds.
    Addresses(Vec<Ipv4Addr>, u32),
    /// The name does not exist.
    NoSuchName,
    /// It cannot tell.
    Failure,
    /// Nothing at all.
    Silence,
}

/// A DNS server by UDP.
pub struct DnsServer {
    address: SocketAddr,
    said: Arc<Mutex<HashMap<String, Says>>>,
    asked: Arc<AtomicUsize>,
}

impl DnsServer {
    /// Starts one that knows no names.
    ///
    /// # Panics
    /// If there is no port.
    pub fn start() -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").expect("there is a free port");
        let address = socket.local_addr().expect("it is bound");
        let said: Arc<Mutex<HashMap<String, Says>>> = Arc::default();
        let asked = Arc::new(AtomicUsize::new(0));
        let (saying, counted) = (said.clone(), asked.clone());
        thread::spawn(move || {
            let mut buffer = [0; 512];
            while let Ok((length, from)) = socket.recv_from(&mut buffer) {
                let Some((name, end)) = name(&buffer[..length]) else { continue };
                let says = saying.lock().expect("nobody panics with it").get(&name).cloned();
                counted.fetch_add(1, Ordering::SeqCst);
                if let Some(reply) = reply(&buffer[..end], &says.unwrap_or(Says::NoSuchName)) {
                    let _ = socket.send_to(&reply, from);
                }
            }
        });
        Self { address, said, asked }
    }

    /// Where it listens.
    pub fn address(&self) -> String {
        self.address.to_string()
    }

    /// Has it say this about a name from now on.
    ///
    /// # Panics
    /// If its lock is poisoned.
    pub fn say(&self, name: &str, says: Says) {
        self.said.lock().expect("nobody panics with it").insert(name.into(), says);
    }

    /// How often it was asked.
    pub fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }
}

/// The name in a question, and where the question ends.
fn name(query: &[u8]) -> Option<(String, usize)> {
    let (mut labels, mut at) = (Vec::new(), 12);
    loop {
        let length = usize::from(*query.get(at)?);
        if length == 0 {
            return Some((labels.join("."), at + 5));
        }
        labels.push(String::from_utf8_lossy(query.get(at + 1..=at + length)?).into_owned());
        at += length + 1;
    }
}

fn reply(question: &[u8], says: &Says) -> Option<Vec<u8>> {
    let mut reply = question.to_vec();
    let asks_for_v4 = question[question.len() - 3] == 1;
    let (code, addresses, ttl) = match says {
        Says::Addresses(addresses, ttl) if asks_for_v4 => (0, addresses.as_slice(), *ttl),
        Says::Addresses(..) => (0, &[][..], 0),
        Says::NoSuchName => (3, &[][..], 0),
        Says::Failure => (2, &[][..], 0),
        Says::Silence => return None,
    };
    (reply[2], reply[3]) = (0x81, 0x80 | code);
    (reply[7], reply[11]) = (u8::try_from(addresses.len()).ok()?, 0);
    for address in addresses {
        reply.extend([0xc0, 12, 0, 1, 0, 1]);
        reply.extend(ttl.to_be_bytes());
        reply.extend([0, 4]);
        reply.extend(address.octets());
    }
    Some(reply)
}

/// A server outside the mesh. Its answers are its name, and the request's head.
pub struct Server {
    address: SocketAddr,
    requests: Arc<AtomicUsize>,
    stopped: Arc<AtomicBool>,
    open: Arc<Mutex<Vec<TcpStream>>>,
    accepting: thread::JoinHandle<()>,
}

impl Server {
    /// Starts one with HTTP/1 in plaintext.
    ///
    /// # Panics
    /// If the address is taken.
    pub fn start(name: &'static str, address: SocketAddrV4) -> Self {
        Self::serve(address, move |tcp, requests| http1(name, tcp, requests))
    }

    /// Starts one with HTTP/1 in TLS; the answer says what name was asked for.
    ///
    /// # Panics
    /// If the address is taken.
    pub fn start_tls(certificate: &Certificate, alpn: &[&str]) -> Self {
        let config = certificate.config(alpn);
        Self::serve(ANYWHERE, move |mut tcp, requests| {
            let mut tls = ServerConnection::new(config.clone()).ok()?;
            while tls.is_handshaking() {
                tls.complete_io(&mut tcp).ok()?;
            }
            let asked = tls.server_name().unwrap_or_default().to_owned();
            let alpn = String::from_utf8_lossy(tls.alpn_protocol().unwrap_or_default()).into_owned();
            http1(&format!("{asked} {alpn}"), StreamOwned::new(tls, tcp), requests)
        })
    }

    /// Starts one with TLS that sends back what it gets.
    ///
    /// # Panics
    /// If the address is taken.
    pub fn start_tls_echo(certificate: &Certificate) -> Self {
        let config = certificate.config(&[]);
        Self::serve(ANYWHERE, move |tcp, requests| {
            let mut tls = StreamOwned::new(ServerConnection::new(config.clone()).ok()?, tcp);
            let mut buffer = [0; 64];
            loop {
                let length = tls.read(&mut buffer).ok().filter(|length| *length > 0)?;
                requests.fetch_add(1, Ordering::SeqCst);
                tls.write_all(&buffer[..length]).ok()?;
            }
        })
    }

    fn serve(
        address: SocketAddrV4,
        talk: impl Fn(TcpStream, &AtomicUsize) -> Option<()> + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind(address).expect("the address is free");
        let address = listener.local_addr().expect("it is bound");
        let (requests, stopped, open) = (
            Arc::<AtomicUsize>::default(),
            Arc::<AtomicBool>::default(),
            Arc::<Mutex<Vec<TcpStream>>>::default(),
        );
        let (counted, ending, opened) = (requests.clone(), stopped.clone(), open.clone());
        let talk = Arc::new(talk);
        let accepting = thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                if ending.load(Ordering::SeqCst) {
                    return;
                }
                opened.lock().expect("nobody panics with it").extend(stream.try_clone());
                let (talk, counted) = (talk.clone(), counted.clone());
                thread::spawn(move || talk(stream, &counted));
            }
        });
        Self { address, requests, stopped, open, accepting }
    }

    /// Where it listens.
    pub fn port(&self) -> u16 {
        self.address.port()
    }

    /// Requests that reached it.
    pub fn requests(&self) -> usize {
        self.requests.load(Ordering::SeqCst)
    }

    /// Closes its listener and everything that is open.
    ///
    /// # Panics
    /// If its lock is poisoned.
    pub fn stop(self) {
        self.stopped.store(true, Ordering::SeqCst);
        // Wakes the thread that accepts, which closes the listener.
        drop(TcpStream::connect(self.address));
        self.accepting.join().expect("it does not panic");
        for stream in self.open.lock().expect("nobody panics with it").drain(..) {
            let _ = stream.shutdown(std::net::Shutdown::Both);
        }
    }
}

/// Any free port of the loopback.
pub const ANYWHERE: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0);

fn http1(name: &str, stream: impl Read + Write, requests: &AtomicUsize) -> Option<()> {
    let mut stream = BufReader::new(stream);
    loop {
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            if stream.read_line(&mut head).ok()? == 0 {
                return None;
            }
        }
        requests.fetch_add(1, Ordering::SeqCst);
        stream.get_mut().write_all(response(&format!("{name}\n{head}")).as_bytes()).ok()?;
        stream.get_mut().flush().ok()?;
    }
}

/// An HTTP/2 server in TLS: its port, and how many requests reached it.
///
/// # Panics
/// If there is no port.
pub fn http2_in_tls(certificate: &Certificate) -> (u16, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("there is a free port");
    let port = listener.local_addr().expect("it is bound").port();
    let acceptor = tokio_rustls::TlsAcceptor::from(certificate.config(&["h2"]));
    let requests = Arc::new(AtomicUsize::new(0));
    let counted = requests.clone();
    thread::spawn(move || {
        crate::backend::runtime().block_on(async move {
            listener.set_nonblocking(true).expect("it can be");
            let listener = tokio::net::TcpListener::from_std(listener).expect("there is a runtime");
            while let Ok((tcp, _)) = listener.accept().await {
                let (acceptor, counted) = (acceptor.clone(), counted.clone());
                tokio::spawn(async move {
                    let tls = acceptor.accept(tcp).await.ok()?;
                    let mut connection = h2::server::handshake(tls).await.ok()?;
                    while let Some(Ok((request, mut respond))) = connection.accept().await {
                        counted.fetch_add(1, Ordering::SeqCst);
                        let head =
                            Response::builder().header("seen", request.uri().to_string()).body(()).ok()?;
                        let mut body = respond.send_response(head, false).ok()?;
                        body.send_data(Bytes::from_static(b"ok"), true).ok()?;
                    }
                    Some(())
                });
            }
        });
    });
    (port, requests)
}

/// A certificate authority outside the mesh.
pub struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    /// One of this name.
    ///
    /// # Panics
    /// If there is no randomness.
    pub fn new(name: &str) -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("keys can be made");
        Self(CertifiedIssuer::self_signed(params, key).expect("it signs itself"))
    }

    /// Its certificate as PEM.
    pub fn pem(&self) -> String {
        self.0.pem()
    }

    /// A server's certificate for a name.
    ///
    /// # Panics
    /// If the name is none.
    pub fn certificate(&self, name: &str) -> Certificate {
        let mut params = CertificateParams::new(vec![name.to_owned()]).expect("it is a name");
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let key = KeyPair::generate().expect("keys can be made");
        let certificate = params.signed_by(&key, &self.0).expect("the authority signs");
        Certificate { leaf: certificate.der().to_vec(), key: key.serialize_der() }
    }
}

/// A server's certificate with its key.
pub struct Certificate {
    leaf: Vec<u8>,
    key: Vec<u8>,
}

impl Certificate {
    fn config(&self, alpn: &[&str]) -> Arc<ServerConfig> {
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(self.key.clone()));
        let mut config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .expect("the provider has TLS 1.3")
            .with_no_client_auth()
            .with_single_cert(vec![self.leaf.clone().into()], key)
            .expect("the key is the certificate's");
        config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
        Arc::new(config)
    }
}
