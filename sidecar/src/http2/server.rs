//! The downstream side: one task per client connection drives the connection
//! and every stream on it.
//!
//! Always holds: streams, header lists, resets and windows are bounded before
//! anything is decided; what was written is sent before the task rests.
//! Draining announces GOAWAY and lets streams end; how long they may take is
//! the caller's to limit, by dropping the future.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::task::{Context, Poll};
use std::time::Instant;

use bytes::Bytes;
use futures_util::Stream;
use futures_util::stream::FuturesUnordered;
use h2::server::{Builder, Connection};
use tokio::io::{AsyncRead, AsyncWrite};

use crate::http2::coalesce::Coalesce;
use crate::http2::exchange;
use crate::http2::seam::Calls;
use crate::http2::turn::Turn;
use crate::http2::vigil::{Activity, Found, Times, Vigil};
use crate::http2::{
    CONNECTION_WINDOW, DATA_FRAME_BUDGET, MAX_ERROR_RESETS, MAX_HEADER_LIST, MAX_RESET_STREAMS,
    MAX_SEND_BUFFER, MAX_STREAMS, PREFACE_TIMEOUT, STREAM_WINDOW,
};

/// How a connection ended before its client closed it.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Broken {
    /// The client took too long for its preface.
    #[error("no HTTP/2 preface within {PREFACE_TIMEOUT:?}")]
    NoPreface,
    /// The client's frames are not acceptable, or the connection broke.
    #[error(transparent)]
    Http2(#[from] h2::Error),
    /// What was written could not be sent.
    #[error(transparent)]
    Io(#[from] std::io::Error),
    /// The client answers no more.
    #[error("the client is silent")]
    Silent,
}

/// Serves a connection from which `early` was read already, until it ends.
///
/// # Errors
/// If it did not end orderly.
pub(crate) async fn serve<C, Io>(io: Io, early: Bytes, calls: &C, times: Times) -> Result<(), Broken>
where
    C: Calls,
    Io: AsyncRead + AsyncWrite + Unpin,
{
    let io = Coalesce::new(io, early);
    let mut connection = handshake(&io, calls).await?;
    let mut vigil = Vigil::new(times, calls.wheel(), connection.ping_pong(), Instant::now());
    let mut opened = 0;
    let mut streams = pin!(FuturesUnordered::new());
    let mut draining = false;
    let turn = Turn::new();
    let mut round = |cx: &mut Context<'_>| -> Poll<Result<(), Broken>> {
        if !draining && calls.is_draining() {
            draining = true;
            connection.graceful_shutdown();
        }
        let ended = loop {
            match connection.poll_accept(cx) {
                Poll::Ready(Some(Ok((request, respond)))) => {
                    opened += 1;
                    streams.push(exchange::run(calls, request, respond));
                }
                Poll::Ready(Some(Err(error))) => break Some(Err(error.into())),
                Poll::Ready(None) => break Some(Ok(())),
                Poll::Pending => break None,
            }
        };
        // After the end too: streams learn of it and count themselves.
        while let Poll::Ready(Some(())) = streams.as_mut().poll_next(cx) {}
        if let Some(ended) = ended {
            return Poll::Ready(ended);
        }
        let activity = Activity { received: io.received(), opened, busy: !streams.is_empty() };
        match vigil.poll(cx, activity) {
            Poll::Ready(Found::Dead) => return Poll::Ready(Err(Broken::Silent)),
            Poll::Ready(Found::Idle) if !draining => {
                draining = true;
                connection.graceful_shutdown();
                cx.waker().wake_by_ref();
            }
            // Said goodbye an idle time ago, and the client does not leave.
            Poll::Ready(Found::Idle) => return Poll::Ready(Ok(())),
            Poll::Pending => {}
        }
        Poll::Pending
    };
    poll_fn(|cx| {
        turn.run(cx, |cx| {
            let ended = round(cx);
            // Within the turn, so that what wakes us here counts as well.
            match io.poll_send(cx) {
                Poll::Ready(Err(error)) if ended.is_pending() => Poll::Ready(Err(error.into())),
                _ => ended,
            }
        })
    })
    .await
}

async fn handshake<C, Io>(io: &Coalesce<Io>, calls: &C) -> Result<Connection<Coalesce<Io>, Bytes>, Broken>
where
    C: Calls,
    Io: AsyncRead + AsyncWrite + Unpin,
{
    let mut builder = Builder::new();
    builder
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_concurrent_streams(MAX_STREAMS)
        .max_header_list_size(MAX_HEADER_LIST)
        .max_send_buffer_size(MAX_SEND_BUFFER)
        .data_frame_budget(DATA_FRAME_BUDGET)
        .max_concurrent_reset_streams(MAX_RESET_STREAMS)
        .max_pending_accept_reset_streams(MAX_RESET_STREAMS)
        .max_local_error_reset_streams(Some(MAX_ERROR_RESETS))
        .enable_connect_protocol();
    let deadline = calls.wheel().deadline();
    deadline.arm(Instant::now() + PREFACE_TIMEOUT);
    let mut handshake = pin!(builder.handshake::<_, Bytes>(io.clone()));
    poll_fn(|cx| {
        let made = handshake.as_mut().poll(cx);
        if let Poll::Ready(made) = made {
            // The first turn sends the settings.
            return Poll::Ready(made.map_err(Broken::Http2));
        }
        match io.poll_send(cx) {
            Poll::Ready(Err(error)) => Poll::Ready(Err(error.into())),
            _ if deadline.poll_expired(cx).is_ready() => Poll::Ready(Err(Broken::NoPreface)),
            _ => Poll::Pending,
        }
    })
    .await
}
