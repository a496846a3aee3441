//! Carries a body and its trailers from one stream to another.
//!
//! Always holds: a chunk is asked for only when the one before is gone, and
//! flow-control capacity is given back only for bytes that the other side had
//! window for. So what is kept is bounded by the receive window, and a slow
//! reader holds back the writer at the other end. A bounded copy of what was
//! sent can be kept for another try.

use std::task::{Context, Poll, ready};

use bytes::{Bytes, BytesMut};
use h2::{RecvStream, SendStream};
use http::HeaderMap;

use crate::fallback::Keep;
use crate::http2::chain::was_retried;
use crate::http2::grpc;
use crate::http2::head::sanitize_trailers;

/// What a kept chunk costs besides its bytes: it holds on to the buffer that it
/// was read into.
const CHUNK_COST: usize = 512;

/// Chunks below this are put together with what is there already. Messages of
/// a few bytes each would otherwise pile up as frames, here while the other
/// side takes nothing and at our peers, and h2 ends a connection whose frames
/// cost more memory than the bytes in them. It saves work, too.
const SMALL: usize = 1024;

/// A body on its way.
pub(crate) struct Body {
    from: RecvStream,
    /// Received, not sent yet.
    chunk: Bytes,
    /// What came after it while the other side took nothing: small chunks in
    /// one, and the first that is not small.
    behind: BytesMut,
    beyond: Option<Bytes>,
    stage: Stage,
    /// Bytes sent, in this try and in the one that came furthest.
    sent: u64,
    released: u64,
    replay: Option<Replay>,
    /// Received, and kept for another try.
    trailers: Option<HeaderMap>,
    /// Whether the source's trailers are not sent on.
    ends_trailers: bool,
    grpc_status: Option<u8>,
    /// Keeps it for bad times.
    keep: Option<Box<Keep>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Data,
    Trailers,
    Done,
}

/// Why a body did not arrive.
#[derive(Debug)]
pub(crate) enum Broken {
    /// Where it comes from ended early.
    Source(h2::Error),
    /// Where it goes takes no more.
    Sink,
}

#[derive(Debug)]
struct Replay {
    chunks: Vec<Bytes>,
    next: usize,
    cost: usize,
    limit: usize,
    /// What is in it still has to be sent, but will be for the last time.
    last: bool,
    /// All that there is is in it.
    whole: bool,
}

impl Body {
    /// A body; up to `replay` bytes of it are kept for another try.
    pub(crate) fn new(from: RecvStream, replay: Option<usize>) -> Self {
        let replay = replay.map(|limit| Replay {
            chunks: Vec::new(),
            next: 0,
            cost: 0,
            limit,
            last: false,
            whole: false,
        });
        Self {
            from,
            chunk: Bytes::new(),
            behind: BytesMut::new(),
            beyond: None,
            stage: Stage::Data,
            sent: 0,
            released: 0,
            replay,
            trailers: None,
            ends_trailers: false,
            grpc_status: None,
            keep: None,
        }
    }

    /// What follows the content is not sent on, which any recipient may do (RFC 9110, section 6.5.1).
    pub(crate) fn end_trailers(&mut self) {
        self.ends_trailers = true;
    }

    /// Keeps it for bad times, if anything is there to do that. Nothing of it was sent yet.
    pub(crate) fn keep(&mut self, keep: Option<Box<Keep>>) {
        let arrived = [&self.chunk[..], &self.behind, self.beyond.as_deref().unwrap_or_default()];
        self.keep = keep.and_then(|mut keep| arrived.iter().all(|part| keep.take(part)).then_some(keep));
    }

    /// All of it has arrived: what has kept it does so from now on.
    pub(crate) fn store(&mut self) {
        if let Some(keep) = self.keep.take() {
            keep.store();
        }
    }

    /// Whether nothing follows the head.
    pub(crate) fn is_empty(&self) -> bool {
        self.is_last() && self.chunk.is_empty()
    }

    /// Whether everything was sent.
    pub(crate) fn is_done(&self) -> bool {
        self.stage == Stage::Done
    }

    /// Bytes sent in this try.
    pub(crate) fn sent(&self) -> u64 {
        self.sent
    }

    /// The gRPC status in the trailers that were sent.
    pub(crate) fn grpc_status(&self) -> Option<u8> {
        self.grpc_status
    }

    /// Whether it can be sent from its beginning once more.
    pub(crate) fn is_replayable(&self) -> bool {
        self.replay.as_ref().is_some_and(|replay| !replay.last)
    }

    /// Its chunks and trailers, if all of it has come and is held.
    pub(crate) fn whole(&self) -> Option<(&[Bytes], Option<&HeaderMap>)> {
        let replay = self.replay.as_ref().filter(|replay| !replay.last)?;
        let whole = replay.whole || self.is_done() || self.is_empty();
        whole.then_some((&replay.chunks, self.trailers.as_ref()))
    }

    /// Takes what comes of it while there is nobody to send it to, as far as it may be kept for another
    /// try; ready when all of it is [here](Self::whole), or will not be.
    pub(crate) fn poll_held(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Broken>> {
        loop {
            let Some(replay) = self.replay.as_mut().filter(|replay| !replay.last && !replay.whole) else {
                return Poll::Ready(Ok(()));
            };
            match ready!(self.from.poll_data(cx)) {
                Some(chunk) => {
                    let chunk = chunk.map_err(Broken::Source)?;
                    // Others on the connection must not wait for what is held here, which is bounded.
                    self.released += chunk.len() as u64;
                    let _ = self.from.flow_control().release_capacity(chunk.len());
                    replay.cost += chunk.len() + CHUNK_COST;
                    replay.last = replay.cost > replay.limit;
                    replay.chunks.push(chunk);
                }
                None => {
                    let mut trailers = ready!(poll_trailers(&mut self.from, self.ends_trailers, cx))?;
                    trailers.iter_mut().for_each(sanitize_trailers);
                    // Those that an earlier try has sent are kept already.
                    self.trailers = trailers.or(self.trailers.take());
                    replay.whole = true;
                }
            }
        }
    }

    /// All of it was sent, by another way.
    pub(crate) fn delivered(&mut self) {
        if let Some(replay) = &mut self.replay {
            replay.next = replay.chunks.len();
            self.sent = replay.chunks.iter().map(|chunk| chunk.len() as u64).sum();
        }
        self.chunk = Bytes::new();
        self.behind.clear();
        self.beyond = None;
        self.stage = Stage::Done;
    }

    /// Begins again. Only for a body that [is replayable](Self::is_replayable).
    pub(crate) fn rewind(&mut self) {
        debug_assert!(self.is_replayable());
        if let Some(replay) = &mut self.replay {
            replay.next = 0;
        }
        self.chunk = Bytes::new();
        self.behind.clear();
        self.beyond = None;
        self.stage = Stage::Data;
        self.sent = 0;
    }

    /// There will be no other try.
    pub(crate) fn forget(&mut self) {
        // What was not sent again yet still has to be.
        if self.replay.as_ref().is_some_and(|replay| replay.next == replay.chunks.len()) {
            self.replay = None;
        } else if let Some(replay) = &mut self.replay {
            replay.last = true;
        }
    }

    /// Takes all of a body that is expected to have no more than `most` bytes; ready when it is
    /// there, or turns out to be longer.
    pub(crate) fn poll_arrived(&mut self, cx: &mut Context<'_>, most: usize) -> Poll<Result<(), h2::Error>> {
        while self.chunk.len() + self.behind.len() <= most {
            let chunk = match ready!(self.from.poll_data(cx)) {
                Some(chunk) => chunk?,
                None => break,
            };
            // Others on the connection must not wait for what is held here, which is bounded by `most`.
            self.released += chunk.len() as u64;
            let _ = self.from.flow_control().release_capacity(chunk.len());
            if self.chunk.is_empty() {
                self.chunk = chunk;
            } else {
                self.behind.extend_from_slice(&chunk);
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Sends what can be sent; ready when all is sent. Trailers with the status of a failure are
    /// shown to `tell` before, with whether retries further on [were of no use](was_retried).
    pub(crate) fn poll(
        &mut self,
        cx: &mut Context<'_>,
        to: &mut SendStream<Bytes>,
        mut tell: impl FnMut(&mut HeaderMap, bool),
    ) -> Poll<Result<(), Broken>> {
        loop {
            match self.stage {
                Stage::Data if self.chunk.is_empty() => match ready!(self.poll_chunk(cx))? {
                    Some(chunk) if chunk.is_empty() && !self.is_last() => {}
                    Some(chunk) if chunk.is_empty() => self.stage = Stage::Trailers,
                    Some(chunk) => self.gather(chunk, cx)?,
                    None => self.stage = Stage::Trailers,
                },
                Stage::Data => ready!(self.poll_part(cx, to))?,
                Stage::Trailers => {
                    let mut trailers = self.trailers.take();
                    if trailers.is_none() {
                        trailers = ready!(poll_trailers(&mut self.from, self.ends_trailers, cx))?;
                    }
                    if let Some(trailers) = &mut trailers {
                        self.grpc_status = grpc::status(trailers);
                        let failed = self.grpc_status.is_some_and(|status| status > 0);
                        let retried = failed && was_retried(trailers);
                        sanitize_trailers(trailers);
                        if failed {
                            tell(trailers, retried);
                        }
                    }
                    if self.replay.is_some() {
                        self.trailers.clone_from(&trailers);
                    }
                    let sent = match trailers {
                        Some(trailers) => to.send_trailers(trailers),
                        None => to.send_data(Bytes::new(), true),
                    };
                    self.stage = Stage::Done;
                    sent.map_err(|_| Broken::Sink)?;
                }
                Stage::Done => return Poll::Ready(Ok(())),
            }
        }
    }

    /// Sends as much of the chunk as there is capacity for.
    fn poll_part(&mut self, cx: &mut Context<'_>, to: &mut SendStream<Bytes>) -> Poll<Result<(), Broken>> {
        to.reserve_capacity(self.chunk.len() + self.behind.len());
        let capacity = to.capacity();
        if capacity == 0 {
            return match to.poll_capacity(cx) {
                Poll::Ready(Some(Ok(_))) => Poll::Ready(Ok(())),
                Poll::Ready(Some(Err(_)) | None) => Poll::Ready(Err(Broken::Sink)),
                Poll::Pending => self.put_together(cx).map_or(Poll::Pending, |error| Poll::Ready(Err(error))),
            };
        }
        let part = self.chunk.split_to(capacity.min(self.chunk.len()));
        let count = part.len();
        let last = self.chunk.is_empty() && self.is_last();
        if to.send_data(part, last).is_err() {
            return Poll::Ready(Err(Broken::Sink));
        }
        if last {
            self.stage = Stage::Done;
        }
        self.release(count);
        Poll::Ready(Ok(()))
    }

    /// The next to send: `chunk`, together with small ones that follow already.
    fn gather(&mut self, chunk: Bytes, cx: &mut Context<'_>) -> Result<(), Broken> {
        self.chunk = chunk;
        if self.chunk.len() >= SMALL || self.is_last() {
            return Ok(());
        }
        if let Some(error) = self.put_together(cx) {
            return Err(error);
        }
        if !self.behind.is_empty() {
            let mut all = BytesMut::with_capacity(self.chunk.len() + self.behind.len());
            all.extend_from_slice(&self.chunk);
            all.extend_from_slice(&self.behind);
            self.behind.clear();
            self.chunk = all.freeze();
        }
        Ok(())
    }

    /// Takes what is there although it cannot be sent; the error if the source broke.
    fn put_together(&mut self, cx: &mut Context<'_>) -> Option<Broken> {
        while self.beyond.is_none() {
            match self.poll_source(cx) {
                Poll::Ready(Ok(Some(chunk))) if chunk.len() < SMALL => self.behind.extend_from_slice(&chunk),
                Poll::Ready(Ok(Some(chunk))) => self.beyond = Some(chunk),
                Poll::Ready(Err(error)) => return Some(error),
                Poll::Ready(Ok(None)) | Poll::Pending => break,
            }
        }
        None
    }

    fn poll_chunk(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>, Broken>> {
        if !self.behind.is_empty() {
            return Poll::Ready(Ok(Some(self.behind.split().freeze())));
        }
        match self.beyond.take() {
            Some(chunk) => Poll::Ready(Ok(Some(chunk))),
            None => self.poll_source(cx),
        }
    }

    fn poll_source(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>, Broken>> {
        if let Some(replay) = &mut self.replay {
            if let Some(chunk) = replay.chunks.get(replay.next) {
                replay.next += 1;
                return Poll::Ready(Ok(Some(chunk.clone())));
            }
            if replay.last {
                self.replay = None;
            }
        }
        let chunk = match ready!(self.from.poll_data(cx)) {
            Some(chunk) => chunk.map_err(Broken::Source)?,
            None => return Poll::Ready(Ok(None)),
        };
        if self.keep.as_mut().is_some_and(|keep| !keep.take(&chunk)) {
            self.keep = None;
        }
        if let Some(replay) = &mut self.replay {
            replay.cost += chunk.len() + CHUNK_COST;
            if replay.cost > replay.limit {
                self.replay = None;
            } else {
                replay.chunks.push(chunk.clone());
                replay.next = replay.chunks.len();
            }
        }
        Poll::Ready(Ok(Some(chunk)))
    }

    /// Whether nothing follows the chunk at hand.
    fn is_last(&self) -> bool {
        let replayed = self.replay.as_ref().is_none_or(|replay| replay.next == replay.chunks.len());
        let taken = self.behind.is_empty() && self.beyond.is_none();
        replayed && taken && self.trailers.is_none() && self.from.is_end_stream()
    }

    /// Gives back capacity for bytes that the other side took, once.
    fn release(&mut self, count: usize) {
        self.sent += count as u64;
        if let Some(new) = self.sent.checked_sub(self.released)
            && new > 0
        {
            self.released = self.sent;
            // Less than was received, so it cannot fail but on a closed stream.
            let _ = self.from.flow_control().release_capacity(usize::try_from(new).unwrap_or(count));
        }
    }
}

/// What follows the content, as it came; nothing if it ends here.
fn poll_trailers(
    from: &mut RecvStream,
    end: bool,
    cx: &mut Context<'_>,
) -> Poll<Result<Option<HeaderMap>, Broken>> {
    let trailers = ready!(from.poll_trailers(cx)).map_err(Broken::Source)?;
    Poll::Ready(Ok(trailers.filter(|_| !end)))
}
