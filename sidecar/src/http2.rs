//! HTTP/2 and gRPC: raw h2 under a coalescing writer.
//!
//! One task drives a downstream connection and all its streams; a request
//! stays in that task until its response is complete. Upstream connections are
//! shared by a worker's requests and have a driver task each. Frames, bodies
//! and trailers move by value; a slow reader holds back the writer at the
//! other end, because flow-control capacity is given back only for bytes that
//! the other side took.
//!
//! Where a request goes, what it may do and what is counted is decided behind
//! [`seam`].

mod body;
mod calls;
mod chain;
mod coalesce;
mod exchange;
mod fault;
mod grpc;
mod head;
mod mirror;
mod seam;
mod server;
mod turn;
pub(crate) mod upstream;
mod vigil;

#[cfg(test)]
mod tests;

use std::time::Duration;

use bytes::Bytes;

use crate::http2::vigil::Times;
use crate::io::Connection;
use crate::session::Session;

/// Largest header list (RFC 9113, section 6.5.2), both ways. Real ones stay below 16 KiB.
const MAX_HEADER_LIST: u32 = 64 * 1024;

/// Receive window of a stream: bandwidth times delay of 8 Gbit/s at 1 ms, and the
/// bound on what one slow stream keeps in memory.
const STREAM_WINDOW: u32 = 1024 * 1024;

/// Receive window of a connection. Equal to a stream's it could dead-lock: one
/// stalled stream would hold the window that the others need.
const CONNECTION_WINDOW: u32 = 4 * STREAM_WINDOW;

/// What small DATA frames may cost a connection (h2 counts 256 bytes less the
/// payload for each that waits): about 65,000 frames, which may arrive in one
/// turn. h2's own choice, half the window, ends connections of busy gRPC
/// streams with messages of a few bytes.
const DATA_FRAME_BUDGET: usize = 16 * 1024 * 1024;

/// Bytes of a stream that h2 may hold for sending, beyond which its source waits.
const MAX_SEND_BUFFER: usize = 64 * 1024;

/// Streams that a downstream connection may have open. Our own upstream side
/// opens another connection long before.
const MAX_STREAMS: u32 = 250;

/// Streams reset by the peer that wait to be accepted (CVE-2023-44487), and
/// streams reset by us that are remembered. More ends the connection.
const MAX_RESET_STREAMS: usize = 50;

/// Streams that the peer made us reset by protocol errors (CVE-2025-8671).
const MAX_ERROR_RESETS: usize = 100;

/// How long the peer may take for its preface: it has begun to speak already.
const PREFACE_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a client may be silent while its streams are open before it is
/// asked whether it is there, and then until it is given up.
const CLIENT_SILENCE: Duration = Duration::from_secs(30);

/// How long a client's connection without streams is kept: the application's
/// own are cheap and it may use them again; peers close theirs before.
const IDLE_CLIENT: Duration = Duration::from_secs(3600);

/// Serves a client's HTTP/2 connection.
pub(crate) async fn serve(connection: Connection, session: Session) {
    let Connection { transport, input } = connection;
    let early = Bytes::copy_from_slice(input.data());
    drop(input);
    let client = session.client;
    let times = Times { silence: CLIENT_SILENCE, idle: IDLE_CLIENT };
    if let Err(error) = server::serve(transport, early, &calls::Side::new(session), times).await {
        tracing::debug!(?client, %error, "HTTP/2 connection ended");
    }
}
