//! The life of one upstream connection: made, driven, given up.

use std::cell::Cell;
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::rc::{Rc, Weak};
use std::task::{Poll, ready};
use std::time::Instant;

use bytes::Bytes;
use h2::client::{Builder, Connection, SendRequest};
use tokio::io::{AsyncRead, AsyncWrite};

use super::{Link, Shared, Terms};
use crate::http2::coalesce::Coalesce;
use crate::http2::seam::Refusal;
use crate::http2::vigil::{Activity, Found, Vigil};
use crate::http2::{
    CONNECTION_WINDOW, DATA_FRAME_BUDGET, MAX_ERROR_RESETS, MAX_HEADER_LIST, MAX_RESET_STREAMS,
    MAX_SEND_BUFFER, STREAM_WINDOW,
};
use crate::reason::Reason;

/// Streams opened before the peer has said how many it takes. More than it
/// takes would be refused, all at once; it says so within a round trip.
const UNTIL_SETTINGS: usize = 1;

/// Makes a connection, lets requests use it and drives it to its end.
pub(super) async fn open<Io>(
    shared: Rc<Shared>,
    connect: impl Future<Output = Result<Io, Refusal>>,
    terms: Terms,
) where
    Io: AsyncRead + AsyncWrite + Unpin,
{
    let opening = Opening(&shared);
    let io = match connect.await {
        Ok(io) => Coalesce::new(io, Bytes::new()),
        Err(refusal) => return opening.failed(refusal),
    };
    let (send, mut connection) = match handshake(&io).await {
        Ok(made) => made,
        Err(error) => {
            return opening.failed(Refusal::new(Reason::ConnectFailure, error.to_string()));
        }
    };
    let link = Rc::new(Link {
        send,
        streams: Cell::new(0),
        opened: Cell::new(0),
        received: Cell::new(0),
        closing: Cell::new(false),
        leaving: Rc::default(),
    });
    // Whoever it makes room for is told when the connection itself has ended, just below.
    let _leaving = link.leaving.clone();
    let vigil = Vigil::new(terms.times, &terms.wheel, connection.ping_pong(), Instant::now());
    opening.done(&link);
    // The list's own handle keeps the connection open; the driver has none.
    let watched = Rc::downgrade(&link);
    drop(link);
    drive(&shared, &watched, connection, &io, vigil).await;
    if let Some(link) = watched.upgrade() {
        shared.remove(&link);
    }
}

type Made<Io> = (SendRequest<Bytes>, Connection<Coalesce<Io>, Bytes>);

async fn handshake<Io>(io: &Coalesce<Io>) -> Result<Made<Io>, h2::Error>
where
    Io: AsyncRead + AsyncWrite + Unpin,
{
    let mut builder = Builder::new();
    builder
        .enable_push(false)
        .initial_max_send_streams(UNTIL_SETTINGS)
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_header_list_size(MAX_HEADER_LIST)
        .max_send_buffer_size(MAX_SEND_BUFFER)
        .data_frame_budget(DATA_FRAME_BUDGET)
        .max_concurrent_reset_streams(MAX_RESET_STREAMS)
        .max_local_error_reset_streams(Some(MAX_ERROR_RESETS));
    // Writes the preface into `io` and waits for nothing; the driver sends it
    // together with the first request.
    let handshake = pin!(builder.handshake(io.clone()));
    handshake.await
}

/// Drives the connection until it ends, its peer is silent, or nobody needs it.
async fn drive<Io>(
    shared: &Shared,
    link: &Weak<Link>,
    mut connection: Connection<Coalesce<Io>, Bytes>,
    io: &Coalesce<Io>,
    mut vigil: Vigil,
) where
    Io: AsyncRead + AsyncWrite + Unpin,
{
    let mut opened = 0;
    poll_fn(|cx| {
        let ended = Pin::new(&mut connection).poll(cx);
        // Sent in any case: a GOAWAY of ours may be among it.
        let sent = io.poll_send(cx);
        if let Poll::Ready(Err(error)) = sent {
            tracing::debug!(%error, "upstream connection broke");
            return Poll::Ready(());
        }
        if let Poll::Ready(result) = ended {
            if let Err(error) = result {
                tracing::debug!(%error, "upstream connection ended");
            }
            return Poll::Ready(());
        }
        let mut streams = 0;
        if let Some(link) = link.upgrade() {
            (streams, opened) = (link.streams.get(), link.opened.get());
            link.received.set(io.received());
            if !link.closing.get() {
                shared.wake_for(&link);
            }
        }
        let activity = Activity { received: io.received(), opened, busy: streams > 0 };
        match ready!(vigil.poll(cx, activity)) {
            Found::Dead => tracing::debug!("upstream connection closed: its peer is silent"),
            Found::Idle => {
                if let Some(link) = link.upgrade() {
                    shared.remove(&link);
                }
                // Without handles the connection says goodbye. If that cannot
                // be sent at once, the peer learns it from the end of the stream.
                let _ = Pin::new(&mut connection).poll(cx);
                let _ = io.poll_send(cx);
            }
        }
        Poll::Ready(())
    })
    .await;
}

/// A connection is being made, until dropped.
struct Opening<'a>(&'a Rc<Shared>);

impl Opening<'_> {
    fn done(self, link: &Rc<Link>) {
        self.0.links.borrow_mut().push(link.clone());
        self.0.opening.set(false);
        if self.0.is_in_the_way() {
            // Whoever asked for it is gone.
            return self.0.make_room(link);
        }
        self.0.wake_all(&Ok(()));
    }

    fn failed(self, refusal: Refusal) {
        self.0.opening.set(false);
        // Where there are other connections, those who wait go on waiting for them.
        if self.0.links.borrow().is_empty() {
            self.0.wake_all(&Err(refusal));
        }
    }
}

impl Drop for Opening<'_> {
    fn drop(&mut self) {
        self.0.opening.set(false);
    }
}
