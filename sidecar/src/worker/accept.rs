//! Accepting connections: one worker does it, serving the sockets itself or
//! handing each to the least loaded of its peers.
//!
//! Running out of file descriptors or memory pauses accepting instead of
//! spinning; the kernel's backlog holds what arrives meanwhile.

use std::io;
use std::net::TcpStream as StdTcpStream;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::future::join_all;
use tokio::net::TcpListener;
use tokio::sync::mpsc;

use super::Worker;
use crate::listener::{Inbound, InboundKind, Outbound, OutboundKind};

/// A connection to be served, still without a runtime.
pub(super) enum Accepted {
    /// One of the application's calls.
    Outbound(StdTcpStream, Arc<OutboundKind>),
    /// A call to the application.
    Inbound(StdTcpStream, InboundKind),
}

/// Another worker, as the acceptor sees it.
#[derive(Clone)]
pub(super) struct Peer {
    pub(super) sender: mpsc::Sender<Accepted>,
    pub(super) load: Arc<AtomicUsize>,
}

/// Everything that is listened on.
pub(super) struct Listeners {
    outbound: Vec<Outbound>,
    inbound: Vec<Inbound>,
}

/// How long accepting pauses when the operating system has no resources left.
const EXHAUSTED_PAUSE: Duration = Duration::from_millis(100);

/// Sockets accepted in one turn before others get theirs.
const ACCEPTED_PER_TURN: usize = 32;

impl Listeners {
    pub(super) fn new(outbound: Vec<Outbound>, inbound: Vec<Inbound>) -> io::Result<Self> {
        for listener in outbound.iter().map(|o| &o.listener).chain(inbound.iter().map(|i| &i.listener)) {
            listener.set_nonblocking(true)?;
        }
        Ok(Self { outbound, inbound })
    }

    /// Accepts for as long as the worker runs.
    pub(super) async fn serve(self, worker: &Rc<Worker>, peers: &[Peer]) {
        let outbound = self.outbound.into_iter().map(|Outbound { listener, kind }| {
            let kind = Arc::new(kind);
            accept(listener, worker, peers, move |tcp| Accepted::Outbound(tcp, kind.clone()))
        });
        let inbound = self.inbound.into_iter().map(|Inbound { listener, kind }| {
            accept(listener, worker, peers, move |tcp| Accepted::Inbound(tcp, kind))
        });
        futures_util::future::join(join_all(outbound), join_all(inbound)).await;
    }
}

async fn accept(
    listener: std::net::TcpListener,
    worker: &Rc<Worker>,
    peers: &[Peer],
    accepted: impl Fn(StdTcpStream) -> Accepted,
) {
    let listener = match TcpListener::from_std(listener) {
        Ok(listener) => listener,
        Err(error) => return tracing::error!(%error, "a listener cannot be served"),
    };
    let mut turn = 0;
    loop {
        match listener.accept().await {
            Ok((tcp, _)) => {
                if let Ok(tcp) = tcp.into_std() {
                    dispatch(accepted(tcp), worker, peers).await;
                }
                turn += 1;
                if turn == ACCEPTED_PER_TURN {
                    turn = 0;
                    tokio::task::yield_now().await;
                }
            }
            Err(error) if is_of_one_connection(&error) => {}
            Err(error) => {
                worker.warn(format_args!("cannot accept connections: {error}"));
                tokio::time::sleep(EXHAUSTED_PAUSE).await;
            }
        }
    }
}

async fn dispatch(accepted: Accepted, worker: &Rc<Worker>, peers: &[Peer]) {
    let least = peers.iter().min_by_key(|peer| peer.load.load(Ordering::Relaxed));
    match least {
        Some(peer) if !Arc::ptr_eq(&peer.load, &worker.load) => {
            // A worker that is gone takes its connections with it.
            let _ = peer.sender.send(accepted).await;
        }
        _ => accepted.serve(worker),
    }
}

/// Whether the error concerns the connection that was to be accepted, not the listener
/// (accept(2): network errors of the new socket are passed on).
fn is_of_one_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::Interrupted
            | io::ErrorKind::HostUnreachable
            | io::ErrorKind::NetworkUnreachable
            | io::ErrorKind::NetworkDown
            | io::ErrorKind::TimedOut
    )
}
