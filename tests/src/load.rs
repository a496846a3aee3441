//! Steady load on one destination while something happens to it.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::eventually;

/// Clients at once, each with a connection that it keeps.
const CLIENTS: usize = 6;

/// What each of them adds to the load, in calls per second.
const PACE: u32 = 50;

/// No call may take longer: a request that hangs has failed.
const PATIENCE: Duration = Duration::from_secs(30);

/// GETs at a steady rate until it is told to stop.
pub struct Load {
    stop: Arc<AtomicBool>,
    ended: Arc<AtomicUsize>,
    clients: Vec<JoinHandle<Vec<Call>>>,
}

/// One call.
#[derive(Debug, Clone)]
pub struct Call {
    /// When it began.
    pub begun: Instant,
    /// The body of a response with status 200, or what came instead.
    pub outcome: Result<String, String>,
}

impl Load {
    /// Begins to call `host` through the sidecar whose outbound listener is `at`.
    pub fn start(at: SocketAddr, host: &str) -> Self {
        let (stop, ended) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let clients = (0..CLIENTS).map(|_| {
            let (stop, ended, host) = (stop.clone(), ended.clone(), host.to_owned());
            thread::spawn(move || {
                let mut client = Client { at, host, connection: None };
                let (mut calls, mut next) = (Vec::new(), Instant::now());
                while !stop.load(Ordering::Relaxed) {
                    let begun = Instant::now();
                    let outcome = client.call();
                    calls.push(Call { begun, outcome });
                    ended.fetch_add(1, Ordering::Relaxed);
                    // Who is late skips calls and does not catch up in a burst.
                    next = (next + Duration::from_secs(1) / PACE).max(begun);
                    thread::sleep(next.saturating_duration_since(Instant::now()));
                }
                calls
            })
        });
        let clients = clients.collect();
        Self { stop, ended, clients }
    }

    /// Waits until so many further calls have ended.
    pub fn goes_on(&self, calls: usize) {
        let wanted = self.ended.load(Ordering::Relaxed) + calls;
        eventually("the load goes on", || (self.ended.load(Ordering::Relaxed) >= wanted).then_some(()));
    }

    /// Ends it: all calls.
    ///
    /// # Panics
    /// If a client has panicked.
    pub fn stop(self) -> Vec<Call> {
        self.stop.store(true, Ordering::Relaxed);
        self.clients.into_iter().flat_map(|client| client.join().expect("a client does not panic")).collect()
    }
}

/// The calls that failed.
pub fn failures(calls: &[Call]) -> Vec<&Call> {
    calls.iter().filter(|call| call.outcome.is_err()).collect()
}

struct Client {
    at: SocketAddr,
    host: String,
    connection: Option<BufReader<TcpStream>>,
}

impl Client {
    fn call(&mut self) -> Result<String, String> {
        let mut connection = match self.connection.take() {
            Some(connection) => connection,
            None => self.connect().map_err(|error| format!("connecting: {error}"))?,
        };
        let (head, body) = self.exchange(&mut connection).map_err(|error| format!("calling: {error}"))?;
        if !head.contains("\r\nconnection: close\r\n") {
            self.connection = Some(connection);
        }
        if head.starts_with("HTTP/1.1 200 ") { Ok(body) } else { Err(format!("{head}{body}")) }
    }

    fn connect(&self) -> std::io::Result<BufReader<TcpStream>> {
        let stream = TcpStream::connect(self.at)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_nodelay(true)?;
        Ok(BufReader::new(stream))
    }

    fn exchange(&self, connection: &mut BufReader<TcpStream>) -> std::io::Result<(String, String)> {
        let request = format!("GET / HTTP/1.1\r\nhost: {}\r\n\r\n", self.host);
        connection.get_mut().write_all(request.as_bytes())?;
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            if connection.read_line(&mut head)? == 0 {
                return Err(std::io::ErrorKind::UnexpectedEof.into());
            }
        }
        let head = head.to_ascii_lowercase().replacen("http/", "HTTP/", 1);
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok());
        let mut body = vec![0; length.unwrap_or(0)];
        connection.read_exact(&mut body)?;
        Ok((head, String::from_utf8_lossy(&body).into_owned()))
    }
}
