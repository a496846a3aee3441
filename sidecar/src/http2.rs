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
mod coalesce;
mod exchange;
mod fault;
mod grpc;
mod head;
pub(crate) mod seam;
pub(crate) mod server;
mod turn;
pub(crate) mod upstream;
pub(crate) mod vigil;

#[cfg(test)]
mod tests;

use std::time::Duration;

use crate::reason::Reason;

/// Largest header list (RFC 9113, section 6.5.2), both ways. Real ones stay below 16 KiB.
const MAX_HEADER_LIST: u32 = 64 * 1024;

/// Receive window of a stream: bandwidth times delay of 8 Gbit/s at 1 ms, and the
/// bound on what one slow stream keeps in memory.
const STREAM_WINDOW: u32 = 1024 * 1024;

/// Receive window of a connection. Equal to a stream's it could dead-lock: one
/// stalled stream would hold the window that the others need.
const CONNECTION_WINDOW: u32 = 4 * STREAM_WINDOW;

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

/// What the end of an upstream connection means. A peer that refuses our
/// certificate says so only after the handshake (TLS 1.3), as an alert in place
/// of an answer.
fn broken(error: &std::io::Error) -> Reason {
    match error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
        Some(rustls::Error::AlertReceived(alert)) if *alert != rustls::AlertDescription::CloseNotify => {
            Reason::TlsRefused
        }
        _ => Reason::Reset,
    }
}

/// Serves a client's HTTP/2 connection.
pub(crate) async fn serve(connection: crate::io::Connection, session: crate::session::Session) {
    let _ = (connection, session);
}
