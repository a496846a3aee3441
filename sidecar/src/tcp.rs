//! Opaque connections: bytes both ways, half-closes and resets included.
//!
//! Between sidecars a connection is a framed stream (see [`frame`]) on a
//! pooled mesh connection: a new TCP connection costs no handshake. A stream
//! that ended cleanly on both sides leaves the mesh connection to the next; one
//! that did not takes it along. What was sent before the server answered is
//! held for a while, so that a refusal can still be mended elsewhere.

mod accepted;
mod frame;
mod leg;
mod open;
mod relay;

use std::future::poll_fn;
use std::rc::Rc;
use std::task::Poll;
use std::time::{Duration, Instant};

pub(crate) use self::accepted::accepted;

use self::leg::{Broken, Leg};
pub(crate) use self::open::{Opened, open};
use self::relay::{Ended, Relay};
use crate::io::Connection;
use crate::policy::retry::Failure;
use crate::reason::Reason;
use crate::session::Session;
use crate::telemetry::metrics::{OpenConnection, RetryOutcome};
use crate::upstream::{Bound, Destination, MeshProtocol};
use crate::wheel::Deadline;

/// Serves one of the application's connections, or one from a published port.
pub(crate) async fn serve(connection: Connection, session: Session, destination: &Rc<Destination>) {
    match open(&session, destination, Instant::now()).await {
        Ok(stream) => serve_opened(connection, session, destination.clone(), stream).await,
        Err(reason) => {
            session.tcp(Some(destination), None).refused(reason);
            connection.transport.abort();
        }
    }
}

/// Serves a connection on a stream that is open already.
pub(crate) async fn serve_opened(
    mut connection: Connection,
    session: Session,
    destination: Rc<Destination>,
    stream: Opened,
) {
    let mut stream = stream;
    loop {
        let Opened { mut lease, leg, endpoint, since, in_flight, tries } = stream;
        let metrics = session.tcp(Some(&destination), Some(&endpoint)).open();
        let idle = destination.policy().idle_timeout;
        let mut relay = Relay::new(Leg::raw(), leg, session.worker.wheel.deadline(), idle, &metrics);
        let ended = poll_fn(|cx| relay.poll(cx, &mut connection, &mut lease)).await;
        let held = relay.take_held();
        let now = Instant::now();
        if !matches!(ended, Ended::Refused(_)) {
            tries.note(&destination, RetryOutcome::Succeeded);
        }
        match ended {
            Ended::Cleanly => {
                endpoint.load.answered(now.saturating_duration_since(since), now);
                in_flight.succeeded(now);
                lease.give_back(destination.policy().limits.requests_per_connection, now);
                return;
            }
            Ended::Refused(reason) => {
                in_flight.failed(Failure::Mesh(reason), now);
                // The mesh connection is in order, only the application was not to be reached.
                lease.give_back(destination.policy().limits.requests_per_connection, now);
                drop((metrics, in_flight));
                let held = held.inspect(|held| connection.input.unread(held)).is_some();
                // Boxed because it is rare.
                match Box::pin(tries.elsewhere(&session, &destination, endpoint, reason, held)).await {
                    Ok(next) => stream = next,
                    Err(reason) => return fail(connection, &session, &destination, reason),
                }
            }
            Ended::ServerBroke => {
                in_flight.failed(Failure::Mesh(Reason::Reset), now);
                connection.transport.abort();
                return;
            }
            Ended::ClientBroke | Ended::Idle => {
                lease.into_inner().transport.abort();
                connection.transport.abort();
                return;
            }
        }
    }
}

fn fail(connection: Connection, session: &Session, destination: &Destination, reason: Reason) {
    session.tcp(Some(destination), None).refused(reason);
    connection.transport.abort();
}

/// Serves the streams that a peer opens on a mesh connection, one after the other.
pub(crate) async fn serve_peer(mut connection: Connection, session: Session) {
    let deadline = session.worker.wheel.deadline();
    loop {
        let mut leg = Leg::framed();
        deadline.arm_in(Instant::now(), Some(PEER_IDLE_TIMEOUT));
        let opened = poll_fn(|cx| {
            if session.worker.is_draining() || deadline.poll_expired(cx).is_ready() {
                return Poll::Ready(Ok(false));
            }
            leg.poll_opened(cx, &mut connection)
        });
        if !matches!(opened.await, Ok(true)) {
            return;
        }
        deadline.disarm();
        match serve_peer_stream(&mut connection, leg, &session).await {
            Some(()) => {}
            None => return connection.transport.abort(),
        }
    }
}

/// Longer than the peers' own idle limit, so that it is they who close.
const PEER_IDLE_TIMEOUT: Duration = Duration::from_secs(90);

/// `None` if the mesh connection cannot carry another stream.
async fn serve_peer_stream(connection: &mut Connection, mut leg: Leg, session: &Session) -> Option<()> {
    let reached = async {
        let destination = session.destination(b"").await?;
        let requests_only = destination.takes_requests_only().then_some(Reason::BadRequest);
        if let Some(reason) = destination.refuses_bytes().or(requests_only)
            && has_bytes(&mut leg, connection, session, &destination).await
        {
            return Err(reason);
        }
        let endpoint = destination.pick(Bound::default(), None, &session.worker.rng, Instant::now())?;
        match destination.acquire(&endpoint, MeshProtocol::Tcp, &session.worker).await {
            Ok(lease) => Ok((destination, endpoint, lease)),
            Err(error) => {
                session.worker.warn(format_args!("{}: {}", destination.key, error.detail));
                Err(error.reason)
            }
        }
    };
    let (destination, endpoint, mut lease) = match reached.await {
        Ok(reached) => reached,
        Err(reason) => {
            session.tcp(None, None).refused(reason);
            leg.refuse(reason);
            poll_fn(|cx| leg.poll_refused(cx, connection)).await.ok()?;
            return Some(());
        }
    };
    let metrics = session.tcp(Some(&destination), Some(&endpoint)).open();
    let idle = destination.policy().idle_timeout;
    let mut relay = Relay::new(leg, Leg::raw(), session.worker.wheel.deadline(), idle, &metrics);
    let ended = poll_fn(|cx| relay.poll(cx, connection, &mut lease)).await;
    match ended {
        Ended::Cleanly => Some(()),
        Ended::Refused(_) | Ended::ServerBroke => None,
        Ended::ClientBroke | Ended::Idle => {
            lease.into_inner().transport.abort();
            None
        }
    }
}

/// Whether a stream is for more than to see that it is accepted, as health checks do.
async fn has_bytes(
    leg: &mut Leg,
    connection: &mut Connection,
    session: &Session,
    destination: &Destination,
) -> bool {
    let deadline = session.worker.wheel.deadline();
    deadline.arm_in(Instant::now(), destination.policy().idle_timeout);
    poll_fn(|cx| match leg.poll_data(cx, connection) {
        Poll::Ready(found) => Poll::Ready(!matches!(found, Ok(0))),
        Poll::Pending => deadline.poll_expired(cx).map(|()| true),
    })
    .await
}

/// Carries the bytes of two connections that HTTP has made a tunnel of. `false`
/// if it did not end cleanly on both sides.
pub(crate) async fn tunnel(
    client: &mut Connection,
    server: &mut Connection,
    deadline: Deadline,
    idle: Option<Duration>,
    metrics: &OpenConnection,
) -> bool {
    let mut relay = Relay::new(Leg::raw(), Leg::raw(), deadline, idle, metrics);
    poll_fn(|cx| relay.poll(cx, client, server)).await == Ended::Cleanly
}

impl From<Broken> for Ended {
    fn from(broken: Broken) -> Self {
        match broken {
            Broken::Refused(reason) => Self::Refused(reason),
            Broken::Connection => Self::ServerBroke,
        }
    }
}
