//! The application's own connections: where they want to go, and what they speak.

use std::future::Future;
use std::io;
use std::net::TcpStream as StdTcpStream;
use std::rc::Rc;
use std::time::{Duration, Instant};

use tokio::net::TcpStream;

use crate::config::AppProtocol;
use crate::detect::{Verdict, detect};
use crate::io::{Connection, Transport};
use crate::listener::{OutboundKind, original_destination};
use crate::pod::redirection;
use crate::reason::Reason;
use crate::session::{Routing, Session};
use crate::upstream::{Destination, Learned};
use crate::worker::Worker;
use crate::{http1, http2, tcp};

/// How long a client may take for the bytes that tell its protocol, once it has begun.
const DETECTION_TIMEOUT: Duration = Duration::from_secs(10);

/// How long an unknown client may stay silent before the upstream side is
/// opened, in case the server speaks first. Clients that speak first do so in
/// far less; a server that speaks first is delayed once per destination.
const SILENCE: Duration = Duration::from_millis(5);

/// Serves a connection to an outbound listener.
pub(crate) async fn serve(socket: StdTcpStream, kind: &OutboundKind, worker: &Rc<Worker>) {
    let client = socket.peer_addr().ok();
    let routing = match kind {
        OutboundKind::ByAuthority => Ok(Routing::ByAuthority),
        OutboundKind::Transparent => socket.local_addr().map(Routing::Address),
        OutboundKind::Redirected => match redirected(&socket) {
            Ok(Routing::Address(to)) if redirection::is_own(to) => {
                // Who called has seen enough if it is gone.
                let _ = redirection::answer(&socket, to);
                return;
            }
            routing => routing,
        },
        OutboundKind::HostLoopback => socket.local_addr().map(Routing::HostLoopback),
        OutboundKind::Fixed(name, port) => Ok(Routing::Service(name.clone(), *port)),
    };
    let (routing, socket) = match routing.and_then(|routing| Ok((routing, TcpStream::from_std(socket)?))) {
        Ok(parts) => parts,
        Err(error) => {
            return worker.warn(format_args!("a connection of the application has no destination: {error}"));
        }
    };
    serve_detected(socket, Session::outbound(worker.clone(), client, routing)).await;
}

/// Where a connection goes that NAT has brought here, unless it was made to us.
fn redirected(socket: &StdTcpStream) -> io::Result<Routing> {
    let to = original_destination(socket)?;
    Ok(if to == socket.local_addr()? { Routing::Nowhere(Reason::Loop) } else { Routing::Address(to) })
}

/// Serves a plaintext connection by what it speaks.
pub(crate) async fn serve_detected(socket: TcpStream, session: Session) {
    if socket.set_nodelay(true).is_err() {
        return;
    }
    let mut connection = Connection::new(Transport::Tcp(socket));
    let destination = match session.is_by_authority() {
        true => None,
        false => match session.destination(b"").await {
            Ok(destination) => Some(destination),
            Err(reason) => return refuse(connection, session, reason).await,
        },
    };
    if let Some(front) = &destination {
        let worker = session.worker.clone();
        // A TCPRoute is about bytes, whatever they mean.
        match worker.way_of_connection(front).await {
            Ok(None) => {}
            Ok(Some(way)) => {
                return worker.serve(async move { tcp::serve(connection, session, &way.destination).await });
            }
            Err(reason) => {
                session.tcp(Some(front), None).refused(reason);
                return connection.transport.abort();
            }
        }
    }
    let protocol = destination.as_ref().map_or(AppProtocol::Http, |d| d.protocol);
    let verdict = match (protocol, &destination) {
        (AppProtocol::Tcp | AppProtocol::Tls, _) => Some(Verdict::Opaque),
        (AppProtocol::Detect, Some(destination)) => {
            match listen(&mut connection, &session, destination).await {
                Heard::Client(verdict) => verdict,
                Heard::Server(stream) => {
                    let (worker, destination) = (session.worker.clone(), destination.clone());
                    return worker.serve(tcp::serve_opened(connection, session, destination, *stream));
                }
            }
        }
        _ => spoken(&mut connection).await,
    };
    let worker = session.worker.clone();
    match (verdict, destination) {
        (None, _) => {}
        (Some(Verdict::Http1), _) => worker.serve(http1::serve(connection, session)),
        (Some(Verdict::Http2), _) => worker.serve(http2::serve(connection, session)),
        (Some(_), Some(destination)) if destination.takes_requests_only() => {
            session.tcp(Some(&destination), None).refused(Reason::BadRequest);
            connection.transport.abort();
        }
        (Some(_), Some(destination)) => {
            worker.serve(async move { tcp::serve(connection, session, &destination).await });
        }
        (Some(_), None) => {
            worker.warn(format_args!("a connection without destination speaks no HTTP"));
            connection.transport.abort();
        }
    }
}

/// Who spoke first.
enum Heard {
    /// The client, and this is what it speaks; `None`: it left or took too long.
    Client(Option<Verdict>),
    /// The server, or nobody yet on a stream that is open now.
    Server(Box<tcp::Opened>),
}

/// Finds out what a connection to a destination without declared protocol is.
async fn listen(connection: &mut Connection, session: &Session, destination: &Rc<Destination>) -> Heard {
    if destination.learned.get() == Learned::ClientFirst {
        return Heard::Client(spoken(connection).await);
    }
    if destination.learned.get() == Learned::Nothing
        && let Ok(verdict) = tokio::time::timeout(SILENCE, settle(connection)).await
    {
        if verdict.as_ref().is_some_and(|v| *v != Verdict::Opaque) {
            destination.learned.set(Learned::ClientFirst);
        }
        return Heard::Client(verdict);
    }
    // The client is silent, or has sent too little: what the server does decides as well.
    let Ok(mut stream) = tcp::open(session, destination, Instant::now()).await else {
        return Heard::Client(spoken(connection).await);
    };
    let verdict = tokio::select! {
        verdict = settle(connection) => verdict,
        _ = stream.answered() => {
            destination.learned.set(Learned::ServerFirst);
            return Heard::Server(Box::new(stream));
        }
    };
    match verdict {
        // What the client speaks is carried by the stream that is there.
        Some(Verdict::Opaque | Verdict::Tls(_)) => Heard::Server(Box::new(stream)),
        other => {
            stream.abandon();
            if other.is_some() {
                destination.learned.set(Learned::ClientFirst);
            }
            Heard::Client(other)
        }
    }
}

/// What a client speaks that has to begin; `None` if it leaves or takes too long.
async fn spoken(connection: &mut Connection) -> Option<Verdict> {
    let verdict = within(DETECTION_TIMEOUT, settle(connection)).await;
    verdict.filter(|_| !connection.input.is_empty())
}

/// Reads until the bytes decide; `None` if the connection breaks before.
async fn settle(connection: &mut Connection) -> Option<Verdict> {
    loop {
        match detect(connection.input.data()) {
            Verdict::Undecided => match connection.fill().await {
                // Whatever it sent, it is complete: let the server judge. That is true of
                // nothing, too: a client may end its half at once and only listen.
                Ok(0) => return Some(Verdict::Opaque),
                Err(_) => return None,
                Ok(_) => {}
            },
            verdict => return Some(verdict),
        }
    }
}

async fn within<T>(limit: Duration, work: impl Future<Output = Option<T>>) -> Option<T> {
    tokio::time::timeout(limit, work).await.ok().flatten()
}

/// Tells the client why it cannot be served, in its own protocol if that has
/// words for it.
pub(crate) async fn refuse(mut connection: Connection, session: Session, reason: Reason) {
    let worker = session.worker.clone();
    match within(SILENCE, settle(&mut connection)).await {
        // The request meets the same answer there, and gets it as HTTP.
        Some(Verdict::Http1) => worker.serve(http1::serve(connection, session)),
        Some(Verdict::Http2) => worker.serve(http2::serve(connection, session)),
        _ => {
            session.tcp(None, None).refused(reason);
            connection.transport.abort();
        }
    }
}
