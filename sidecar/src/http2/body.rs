//! Carries a body and its trailers from one stream to another.
//!
//! Always holds: a chunk is asked for only when the one before is gone, and
//! flow-control capacity is given back only for bytes that the other side had
//! window for. So what is kept is bounded by the receive window, and a slow
//! reader holds back the writer at the other end. A bounded copy of what was
//! sent can be kept for another try.

use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::{RecvStream, SendStream};
use http::HeaderMap;

use crate::http2::grpc;
use crate::http2::head::sanitize_trailers;

/// What a kept chunk costs besides its bytes: it holds on to the buffer that it
/// was read into.
const CHUNK_COST: usize = 512;

/// A body on its way.
#[derive(Debug)]
pub(crate) struct Body {
    from: RecvStream,
    /// Received, not sent yet.
    chunk: Bytes,
    stage: Stage,
    /// Bytes sent, in this try and in the one that came furthest.
    sent: u64,
    released: u64,
    replay: Option<Replay>,
    /// Received, and kept for another try.
    trailers: Option<HeaderMap>,
    grpc_status: Option<u8>,
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
}

impl Body {
    /// A body; up to `replay` bytes of it are kept for another try.
    pub(crate) fn new(from: RecvStream, replay: Option<usize>) -> Self {
        let replay = replay.map(|limit| Replay { chunks: Vec::new(), next: 0, cost: 0, limit });
        Self {
            from,
            chunk: Bytes::new(),
            stage: Stage::Data,
            sent: 0,
            released: 0,
            replay,
            trailers: None,
            grpc_status: None,
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
        self.replay.is_some()
    }

    /// Begins again. Only for a body that [is replayable](Self::is_replayable).
    pub(crate) fn rewind(&mut self) {
        debug_assert!(self.is_replayable());
        if let Some(replay) = &mut self.replay {
            replay.next = 0;
        }
        self.chunk = Bytes::new();
        self.stage = Stage::Data;
        self.sent = 0;
    }

    /// There will be no other try.
    pub(crate) fn forget(&mut self) {
        // What was not sent again yet still has to be.
        if self.replay.as_ref().is_some_and(|replay| replay.next == replay.chunks.len()) {
            self.replay = None;
        } else if let Some(replay) = &mut self.replay {
            replay.limit = 0;
        }
    }

    /// Sends what can be sent; ready when all is sent.
    pub(crate) fn poll(
        &mut self,
        cx: &mut Context<'_>,
        to: &mut SendStream<Bytes>,
    ) -> Poll<Result<(), Broken>> {
        loop {
            match self.stage {
                Stage::Data if self.chunk.is_empty() => match ready!(self.poll_chunk(cx))? {
                    Some(chunk) if chunk.is_empty() && !self.is_last() => {}
                    Some(chunk) if chunk.is_empty() => self.stage = Stage::Trailers,
                    Some(chunk) => self.chunk = chunk,
                    None => self.stage = Stage::Trailers,
                },
                Stage::Data => ready!(self.poll_part(cx, to))?,
                Stage::Trailers => {
                    let mut trailers = self.trailers.take();
                    if trailers.is_none() {
                        trailers = ready!(self.from.poll_trailers(cx)).map_err(Broken::Source)?;
                        trailers.iter_mut().for_each(sanitize_trailers);
                    }
                    if self.replay.is_some() {
                        self.trailers.clone_from(&trailers);
                    }
                    let sent = match trailers {
                        Some(trailers) => {
                            self.grpc_status = grpc::status(&trailers);
                            to.send_trailers(trailers)
                        }
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
        to.reserve_capacity(self.chunk.len());
        let capacity = to.capacity();
        if capacity == 0 {
            return match ready!(to.poll_capacity(cx)) {
                Some(Ok(_)) => Poll::Ready(Ok(())),
                Some(Err(_)) | None => Poll::Ready(Err(Broken::Sink)),
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

    fn poll_chunk(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>, Broken>> {
        if let Some(replay) = &mut self.replay {
            if let Some(chunk) = replay.chunks.get(replay.next) {
                replay.next += 1;
                return Poll::Ready(Ok(Some(chunk.clone())));
            }
            if replay.limit == 0 {
                self.replay = None;
            }
        }
        let chunk = match ready!(self.from.poll_data(cx)) {
            Some(chunk) => chunk.map_err(Broken::Source)?,
            None => return Poll::Ready(Ok(None)),
        };
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
        replayed && self.trailers.is_none() && self.from.is_end_stream()
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
