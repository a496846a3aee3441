//! The connections that HTTP/2 links are made of.

use std::io;
use std::io::IoSlice;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::{IDLE_LINK, SILENCE};
use crate::config::TrafficPolicy;
use crate::http2::seam::Refusal;
use crate::http2::upstream::Terms;
use crate::http2::vigil::Times;
use crate::upstream::{Destination, Endpoint, Lease, MeshProtocol};
use crate::worker::Worker;

/// What the links to an endpoint need besides a connection.
pub(in crate::http2) fn terms(worker: &Worker, policy: &TrafficPolicy) -> Terms {
    Terms {
        wheel: worker.wheel.clone(),
        times: Times { silence: SILENCE, idle: IDLE_LINK },
        waiting: policy.limits.pending_requests,
        requests_per_link: policy.limits.requests_per_connection,
    }
}

/// Makes a connection to an endpoint.
pub(in crate::http2) async fn connect(
    destination: Rc<Destination>,
    endpoint: Rc<Endpoint>,
    worker: Rc<Worker>,
) -> Result<Leased, Refusal> {
    match destination.acquire(&endpoint, MeshProtocol::Http2, &worker).await {
        Ok(lease) => Ok(Leased(lease)),
        Err(error) => {
            worker.warn(format_args!("{}: {}", destination.key, error.detail));
            Err(Refusal::new(error.reason, error.detail))
        }
    }
}

/// A connection that counts against its destination's limits until it ends.
pub(in crate::http2) struct Leased(Lease);

impl AsyncRead for Leased {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0.transport).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Leased {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0.transport).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0.transport).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0.transport).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0.transport).poll_shutdown(cx)
    }
}
