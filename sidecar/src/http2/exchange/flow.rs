//! Both bodies of an exchange whose response has begun.

use std::task::{Context, Poll};

use bytes::Bytes;
use h2::SendStream;
use http::HeaderMap;

use super::client::Client;
use crate::http2::body::{Body, Broken};
use crate::http2::fault;
use crate::reason::Reason;

/// Both bodies of a response under way.
pub(super) struct Flow<'a> {
    pub(super) upload: &'a mut Body,
    pub(super) download: &'a mut Body,
    /// Whether the client has the whole response.
    pub(super) complete: bool,
}

/// How a response ended.
pub(super) enum Ended {
    Complete,
    Gone,
    /// For this reason, with the code that upstream gave to its reset.
    Broken(Reason, Option<h2::Reason>),
}

impl Flow<'_> {
    /// Carries both on. `tell`: as for [`Body::poll`], of the response.
    pub(super) fn poll(
        &mut self,
        cx: &mut Context<'_>,
        client: &mut Client<'_>,
        up: &mut SendStream<Bytes>,
        down: &mut SendStream<Bytes>,
        tell: impl FnMut(&mut HeaderMap, bool),
    ) -> Poll<Ended> {
        let before = (self.upload.sent(), self.download.sent());
        let mut wanted = !self.upload.is_done();
        if wanted {
            match self.upload.poll(cx, up, |_, _| ()) {
                Poll::Ready(Err(Broken::Source(_))) => return Poll::Ready(Ended::Gone),
                Poll::Ready(Err(Broken::Sink)) | Poll::Ready(Ok(())) => wanted = false,
                // After a complete response upstream may not want the rest.
                Poll::Pending if self.complete && up.poll_reset(cx).is_ready() => wanted = false,
                Poll::Pending => {}
            }
        }
        if !self.complete {
            match self.download.poll(cx, down, tell) {
                Poll::Ready(Ok(())) => self.complete = true,
                Poll::Ready(Err(Broken::Sink)) => return Poll::Ready(Ended::Gone),
                Poll::Ready(Err(Broken::Source(error))) => {
                    let code = (error.is_reset() && error.is_remote()).then(|| fault::code(&error));
                    return Poll::Ready(Ended::Broken(broken_off(&error), code));
                }
                Poll::Pending => {}
            }
            if !self.complete && down.poll_reset(cx).is_ready() {
                return Poll::Ready(Ended::Gone);
            }
        }
        if self.complete && !wanted {
            return Poll::Ready(Ended::Complete);
        }
        let moved = before != (self.upload.sent(), self.download.sent());
        if client.poll_late(cx, moved).is_ready() {
            return Poll::Ready(Ended::Broken(Reason::Timeout, None));
        }
        Poll::Pending
    }
}

/// A response that has begun was processed, whatever the code says.
pub(super) fn broken_off(error: &h2::Error) -> Reason {
    match fault::reason(error) {
        Reason::BadResponse => Reason::BadResponse,
        _ => Reason::Reset,
    }
}
