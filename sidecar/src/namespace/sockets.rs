//! Sockets made inside the application's network namespace, for whoever dials
//! the application.
//!
//! Only the thread that lives in the namespace can make them. A few wait
//! ahead, so that a worker takes one without waiting; a burst beyond that, and
//! IPv6, cost the caller one switch to that thread and back.

use std::io;
use std::net::{IpAddr, TcpStream as StdStream};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, Sender, SyncSender};

use parking_lot::Mutex;
use tokio::net::TcpSocket;

use crate::listener::SocketSource;

/// How many IPv4 sockets wait ahead: enough for the new connections of the
/// moment that the namespace's thread needs to wake up and refill.
const POOLED: usize = 32;

/// Takes sockets from the namespace. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Sockets(Arc<Pool>);

#[derive(Debug)]
struct Pool {
    ready: Mutex<Vec<OwnedFd>>,
    refilling: AtomicBool,
    requests: Sender<Request>,
}

/// What is asked of the namespace's thread.
#[derive(Debug)]
pub(crate) enum Request {
    /// Fill the pool ([`Sockets::refill`]).
    Refill,
    /// One TCP socket, now; IPv6 if set.
    Socket(bool, SyncSender<io::Result<OwnedFd>>),
    /// Whether any process besides this one is still inside.
    Occupied(tokio::sync::oneshot::Sender<bool>),
}

impl Sockets {
    /// An empty pool, and the requests that a thread inside the namespace serves.
    pub(crate) fn new() -> (Self, Receiver<Request>) {
        let (requests, receiver) = mpsc::channel();
        let pool = Pool { ready: Mutex::default(), refilling: AtomicBool::new(false), requests };
        (Self(Arc::new(pool)), receiver)
    }

    /// Fills the pool, on the namespace's thread. Stops at the first socket
    /// that cannot be made; the next one asked for will report why.
    pub(crate) fn refill(&self, mut make: impl FnMut() -> io::Result<OwnedFd>) {
        self.0.refilling.store(false, Ordering::Relaxed);
        let missing = POOLED.saturating_sub(self.0.ready.lock().len());
        let made: Vec<OwnedFd> = (0..missing).map_while(|_| make().ok()).collect();
        self.0.ready.lock().extend(made);
    }

    /// Whether any process besides this one still lives in the namespace.
    pub(crate) async fn occupied(&self) -> bool {
        let (reply, answer) = tokio::sync::oneshot::channel();
        self.0.requests.send(Request::Occupied(reply)).is_ok() && answer.await.unwrap_or(false)
    }

    fn take(&self, ipv6: bool) -> io::Result<OwnedFd> {
        if !ipv6 {
            let (socket, left) = {
                let mut ready = self.0.ready.lock();
                (ready.pop(), ready.len())
            };
            if left < POOLED / 2 && !self.0.refilling.swap(true, Ordering::Relaxed) {
                self.0.requests.send(Request::Refill).map_err(|_| gone())?;
            }
            if let Some(socket) = socket {
                return Ok(socket);
            }
        }
        let (reply, answer) = mpsc::sync_channel(1);
        self.0.requests.send(Request::Socket(ipv6, reply)).map_err(|_| gone())?;
        answer.recv().map_err(|_| gone())?
    }
}

impl SocketSource for Sockets {
    fn socket(&self, address: IpAddr) -> io::Result<TcpSocket> {
        Ok(TcpSocket::from_std_stream(StdStream::from(self.take(address.is_ipv6())?)))
    }
}

fn gone() -> io::Error {
    io::Error::other("the thread in the application's network namespace has ended")
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, TcpListener};
    use std::thread;

    use socket2::{Domain, Socket, Type};

    use super::*;
    use crate::listener::AppDialer;

    fn make() -> io::Result<OwnedFd> {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
        socket.set_nonblocking(true)?;
        Ok(socket.into())
    }

    #[test]
    fn sockets_come_from_the_pool_which_is_refilled() {
        let (sockets, requests) = Sockets::new();
        sockets.refill(make);
        let maker = sockets.clone();
        let thread = thread::spawn(move || {
            for request in requests {
                match request {
                    Request::Refill => return maker.refill(make),
                    Request::Socket(_, reply) => drop(reply.send(make())),
                    Request::Occupied(reply) => drop(reply.send(true)),
                }
            }
        });
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let dialer = AppDialer::namespaced(Arc::new(sockets.clone()), Ipv4Addr::LOCALHOST.into());
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            for _ in 0..=POOLED / 2 {
                dialer.connect(port).await.unwrap();
            }
        });
        thread.join().unwrap();
        assert_eq!(sockets.0.ready.lock().len(), POOLED);
    }

    #[test]
    fn an_ended_thread_is_an_error() {
        let (sockets, requests) = Sockets::new();
        drop(requests);
        assert!(sockets.take(true).is_err());
        assert!(sockets.take(false).is_err());
    }
}
