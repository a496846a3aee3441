//! One try of a request at one upstream: both directions at once, by polling.
//!
//! The request streams while the response already does; an answer may come
//! before the request is complete, and a failed write is no failure while an
//! answer may still be read. Each direction holds one read and what it became:
//! a slow reader stops the reading on the other side. What a failure means,
//! and whether there is another try, is decided by the caller.

use std::io;
use std::task::{Context, Poll, ready};
use std::time::Instant;

use crate::fallback::Keep;
use crate::http1::body::{BadBody, Body};
use crate::http1::response::{self, ResponseHead, Role};
use crate::http1::{HeadScan, Version};
use crate::io::{Connection, WriteBuffer};

/// The two connections and what waits to be written to them.
pub(super) struct Sides<'a> {
    pub(super) client: &'a mut Connection,
    pub(super) to_client: &'a mut WriteBuffer,
    pub(super) upstream: &'a mut Connection,
    pub(super) to_upstream: &'a mut WriteBuffer,
}

/// The request's way to the upstream, over all tries.
#[derive(Debug)]
pub(super) struct Sending {
    pub(super) body: Body,
    /// Whether everything taken from the client is still there.
    pub(super) replayable: bool,
    /// Whether it stays there when it has been sent: it is no more than may be held.
    pub(super) holds: bool,
    /// Bytes, the head included, that are held at most.
    pub(super) held: usize,
    /// Whether the end of the client's stream is no farewell: it said that
    /// this request is its last.
    pub(super) may_half_close: bool,
}

/// Why a try ended before its response did.
#[derive(Debug)]
pub(super) enum Broken {
    /// The client is gone.
    Client,
    /// The client's body is malformed.
    Request(BadBody),
    /// The upstream ended or broke off.
    Upstream(Option<io::Error>),
    /// What the upstream says is not HTTP as we accept it.
    Response,
}

/// Interim responses passed on per request. Servers send one or two; without a bound
/// a client could be kept busy for ever by a request that is never answered.
const MAX_INTERIM: u8 = 32;

/// State of one try.
#[derive(Default)]
pub(super) struct Exchange {
    scan: HeadScan,
    /// The upstream takes no more of the request; it may have answered nevertheless.
    deaf: bool,
    /// Whether any byte came from the upstream.
    pub(super) answered: bool,
    /// Interim responses so far.
    interim: u8,
    /// Whether interim responses are withheld.
    pub(super) quiet: bool,
    /// Whether any byte of a response was passed on.
    pub(super) passed_on: bool,
    /// Whether anything moved since this was last reset.
    pub(super) moved: bool,
    /// When the response's head came, if its body was waited for.
    pub(super) head_at: Option<Instant>,
    /// Keeps the response for bad times.
    pub(super) keep: Option<Box<Keep>>,
}

/// Bytes of a response that are gathered before they are written.
const LARGEST_WRITE: usize = 64 * 1024;

impl Exchange {
    /// Whether the upstream took all of the request, so that its connection
    /// stands between two messages after the response.
    pub(super) fn request_sent(&self, sending: &Sending, to_upstream: &WriteBuffer) -> bool {
        !self.deaf && sending.body.is_complete() && !to_upstream.is_pending()
    }

    /// Sends the request until the head of its response is there: written to
    /// `to_client`, still open and unsent.
    pub(super) fn poll_head(
        &mut self,
        cx: &mut Context<'_>,
        sides: &mut Sides<'_>,
        sending: &mut Sending,
        request: &response::Exchange,
    ) -> Poll<Result<ResponseHead, Broken>> {
        self.send(cx, sides, sending)?;
        loop {
            if sides.to_client.is_pending()
                && ready!(sides.to_client.poll_drain(cx, &mut sides.client.transport)).is_err()
            {
                return Poll::Ready(Err(Broken::Client));
            }
            let input = &mut sides.upstream.input;
            if !input.is_empty() {
                self.answered = true;
                let out = &mut sides.to_client.bytes;
                let parsed = ResponseHead::parse(input.data(), &mut self.scan, request, out);
                if let Some(head) = parsed.map_err(|_| Broken::Response)? {
                    input.consume(head.consumed);
                    if head.role != Role::Interim {
                        return Poll::Ready(Ok(head));
                    }
                    self.interim += 1;
                    if self.interim > MAX_INTERIM {
                        return Poll::Ready(Err(Broken::Response));
                    }
                    if self.quiet {
                        out.clear();
                        continue;
                    }
                    head.finish(true, out);
                    self.passed_on |= request.client == Version::Http11;
                    continue;
                }
            }
            match sides.upstream.poll_fill(cx) {
                Poll::Ready(Ok(0)) => return Poll::Ready(Err(Broken::Upstream(None))),
                Poll::Ready(Ok(_)) => self.moved = true,
                Poll::Ready(Err(error)) => return Poll::Ready(Err(Broken::Upstream(Some(error)))),
                Poll::Pending => return watch(cx, sides.client, sending).map(Err),
            }
        }
    }

    /// Sends the request until `length` bytes of the response's body are there, which stay where
    /// they are.
    pub(super) fn poll_arrived(
        &mut self,
        cx: &mut Context<'_>,
        sides: &mut Sides<'_>,
        sending: &mut Sending,
        length: usize,
    ) -> Poll<Result<(), Broken>> {
        self.send(cx, sides, sending)?;
        while sides.upstream.input.data().len() < length {
            match sides.upstream.poll_fill(cx) {
                Poll::Ready(Ok(0)) => return Poll::Ready(Err(Broken::Upstream(None))),
                Poll::Ready(Ok(_)) => self.moved = true,
                Poll::Ready(Err(error)) => return Poll::Ready(Err(Broken::Upstream(Some(error)))),
                Poll::Pending => return watch(cx, sides.client, sending).map(Err),
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Passes the response's body on until its end was written to the client.
    pub(super) fn poll_body(
        &mut self,
        cx: &mut Context<'_>,
        sides: &mut Sides<'_>,
        sending: &mut Sending,
        body: &mut Body,
    ) -> Poll<Result<(), Broken>> {
        self.send(cx, sides, sending)?;
        // Whether nothing more will come in this turn.
        let mut dry = false;
        loop {
            let input = &mut sides.upstream.input;
            if !body.is_complete() && !input.is_empty() {
                if self.keep.as_mut().is_some_and(|keep| !keep.relay(input.data())) {
                    self.keep = None;
                }
                let taken = body.relay(input.data(), &mut sides.to_client.bytes);
                input.consume(taken.map_err(|_| Broken::Response)?);
            }
            // What has arrived already leaves in the same write.
            let more = !dry
                && !body.is_complete()
                && sides.upstream.has_buffered()
                && sides.to_client.pending() < LARGEST_WRITE;
            if sides.to_client.is_pending() && !more {
                self.passed_on = true;
                match sides.to_client.poll_drain(cx, &mut sides.client.transport) {
                    Poll::Ready(Ok(())) => self.moved = true,
                    Poll::Ready(Err(_)) => return Poll::Ready(Err(Broken::Client)),
                    Poll::Pending => return Poll::Pending,
                }
            }
            if body.is_complete() {
                return Poll::Ready(Ok(()));
            }
            if dry {
                return watch(cx, sides.client, sending).map(Err);
            }
            match sides.upstream.poll_fill(cx) {
                Poll::Ready(Ok(0)) => {
                    let ended = body.end_of_input(&mut sides.to_client.bytes);
                    ended.map_err(|_| Broken::Upstream(None))?;
                }
                Poll::Ready(Ok(_)) => self.moved = true,
                Poll::Ready(Err(error)) => return Poll::Ready(Err(Broken::Upstream(Some(error)))),
                Poll::Pending => dry = true,
            }
        }
    }

    /// Moves as much of the request as both sides let.
    fn send(
        &mut self,
        cx: &mut Context<'_>,
        sides: &mut Sides<'_>,
        sending: &mut Sending,
    ) -> Result<(), Broken> {
        while !self.deaf {
            let blocked = sides.to_upstream.is_pending();
            let taken = sending.take(&mut sides.client.input, sides.to_upstream).map_err(Broken::Request)?;
            let out = &mut *sides.to_upstream;
            if out.is_pending() {
                let transport = &mut sides.upstream.transport;
                let sent =
                    if sending.holds { out.poll_write(cx, transport) } else { out.poll_drain(cx, transport) };
                match sent {
                    Poll::Ready(Ok(())) => {
                        sending.replayable &= sending.holds;
                        self.moved = true;
                    }
                    Poll::Ready(Err(_)) => {
                        self.deaf = true;
                        break;
                    }
                    Poll::Pending => break,
                }
            }
            if sending.body.is_complete() {
                break;
            }
            // Some of the input may have waited for room that is there now.
            if (blocked || taken > 0) && !sides.client.input.is_empty() {
                continue;
            }
            match sides.client.poll_fill(cx) {
                Poll::Ready(Ok(count)) if count > 0 => self.moved = true,
                Poll::Ready(_) => return Err(Broken::Client),
                Poll::Pending => break,
            }
        }
        Ok(())
    }
}

impl Sending {
    /// Takes what there is of the body, if there is room for it.
    pub(super) fn take(
        &mut self,
        input: &mut crate::io::ReadBuffer,
        out: &mut WriteBuffer,
    ) -> Result<usize, BadBody> {
        if self.body.is_complete() || input.is_empty() {
            return Ok(0);
        }
        self.holds &= out.bytes.len() + input.data().len() <= self.held;
        if !self.holds {
            // What no try has taken in whole yet can go to another one.
            if out.is_pending() {
                return Ok(0);
            }
            self.replayable = false;
            out.clear();
        }
        let taken = self.body.relay(input.data(), &mut out.bytes)?;
        input.consume(taken);
        Ok(taken)
    }

    /// There will be no other try: nothing needs to be held.
    pub(super) fn let_go(&mut self, out: &mut WriteBuffer) {
        (self.replayable, self.holds) = (false, false);
        if !out.is_pending() {
            out.clear();
        }
    }
}

/// Ready when the client has left. To be asked while nothing else is to be
/// done: a client that is gone should not keep an upstream at work. Bytes of
/// a following request are left where they are.
pub(super) fn watch(cx: &mut Context<'_>, client: &mut Connection, sending: &mut Sending) -> Poll<Broken> {
    if !sending.body.is_complete() || !client.input.is_empty() || sending.may_half_close {
        return Poll::Pending;
    }
    match client.poll_fill(cx) {
        Poll::Ready(Ok(count)) if count > 0 => Poll::Pending,
        Poll::Ready(_) => Poll::Ready(Broken::Client),
        Poll::Pending => Poll::Pending,
    }
}
