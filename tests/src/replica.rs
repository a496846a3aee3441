//! A server that falls ill when it is told to, and has only so much capacity.

use std::net::SocketAddr;
use std::ops::Range;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use socket2::SockRef;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, oneshot, watch};

use crate::backend::runtime;

/// The body of a good answer.
const BODY: [u8; 1024] = [b'x'; 1024];

/// How a replica does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Condition {
    /// It answers 200 after its service time.
    Well,
    /// It answers 503 at once.
    Unavailable,
    /// It accepts and reads, and answers nothing until that changes.
    Stalled,
    /// It answers after this much longer.
    Slow(Duration),
    /// It resets the connection in the middle of its answer's body.
    Cut,
}

/// An HTTP/1 server on a thread of its own.
pub struct Replica {
    address: SocketAddr,
    condition: watch::Sender<Condition>,
    hits: Arc<Mutex<Vec<Instant>>>,
    /// Dropped: it ends.
    _end: oneshot::Sender<()>,
}

struct Service {
    time: Duration,
    capacity: Semaphore,
    condition: watch::Receiver<Condition>,
    hits: Arc<Mutex<Vec<Instant>>>,
}

impl Replica {
    /// Starts one that works on so many requests at once, each for `time`; others wait for their
    /// turn, and nobody notices when their clients leave.
    ///
    /// # Panics
    /// If there is no port.
    pub fn start(time: Duration, at_once: usize) -> Self {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("there is a free port");
        let address = listener.local_addr().expect("it is bound");
        listener.set_nonblocking(true).expect("it can be");
        let (condition, told) = watch::channel(Condition::Well);
        let (end, ended) = oneshot::channel();
        let hits = Arc::<Mutex<Vec<Instant>>>::default();
        let service =
            Service { time, capacity: Semaphore::new(at_once), condition: told, hits: hits.clone() };
        thread::spawn(move || {
            runtime().block_on(async {
                let listener = TcpListener::from_std(listener).expect("there is a runtime");
                tokio::select! {
                    () = accept(listener, Arc::new(service)) => {}
                    _ = ended => {}
                }
            });
        });
        Self { address, condition, hits, _end: end }
    }

    /// From now on it does so.
    pub fn turns(&self, condition: Condition) {
        self.condition.send_replace(condition);
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Requests that reached it between these two moments.
    ///
    /// # Panics
    /// If its thread has panicked.
    pub fn hits(&self, between: Range<Instant>) -> usize {
        let hits = self.hits.lock().expect("nobody panics with it");
        hits.partition_point(|hit| *hit < between.end) - hits.partition_point(|hit| *hit < between.start)
    }
}

async fn accept(listener: TcpListener, service: Arc<Service>) {
    while let Ok((stream, _)) = listener.accept().await {
        tokio::spawn(serve(stream, service.clone()));
    }
}

async fn serve(mut stream: TcpStream, service: Arc<Service>) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut condition = service.condition.clone();
    let mut read = Vec::with_capacity(1024);
    loop {
        while !read.ends_with(b"\r\n\r\n") {
            if stream.read_buf(&mut read).await? == 0 {
                return Ok(());
            }
        }
        read.clear();
        service.hits.lock().expect("nobody panics with it").push(Instant::now());
        // The sender lives as long as the server.
        let _ = condition.wait_for(|condition| *condition != Condition::Stalled).await;
        let condition = *condition.borrow_and_update();
        let time = match condition {
            Condition::Slow(more) => service.time + more,
            _ => service.time,
        };
        if condition != Condition::Unavailable {
            let _turn = service.capacity.acquire().await;
            tokio::time::sleep(time).await;
        }
        if condition == Condition::Unavailable {
            stream.write_all(b"HTTP/1.1 503 Ill\r\ncontent-length: 3\r\n\r\nill").await?;
            continue;
        }
        let mut answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", BODY.len()).into_bytes();
        answer.extend_from_slice(if condition == Condition::Cut { &BODY[..512] } else { &BODY });
        stream.write_all(&answer).await?;
        if condition == Condition::Cut {
            // A reset, so that no end can be taken for a regular one.
            return SockRef::from(&stream).set_linger(Some(Duration::ZERO));
        }
    }
}
