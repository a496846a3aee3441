//! One side of a relayed connection: raw bytes or a framed stream. The
//! connection itself is handed in, because it outlives the stream.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::AsyncWrite;

use super::frame::{HEADER, Header, Kind, LONGEST_DATA};
use crate::io::{Connection, WriteBuffer};
use crate::reason::Reason;

/// State of one side.
pub(super) struct Leg {
    framed: bool,
    /// Bytes of the current DATA frame that are still to come.
    remaining: usize,
    ended: bool,
    /// Frames on their way out.
    out: WriteBuffer,
    finishing: bool,
}

/// Why a side cannot go on.
#[derive(Debug, PartialEq, Eq, Clone, Copy)]
pub(super) enum Broken {
    /// The peer's sidecar could not reach its application.
    Refused(Reason),
    /// Reset, cut off, or not understood.
    Connection,
}

impl From<io::Error> for Broken {
    fn from(_: io::Error) -> Self {
        Self::Connection
    }
}

impl Leg {
    pub(super) fn raw() -> Self {
        Self { framed: false, remaining: 0, ended: false, out: WriteBuffer::default(), finishing: false }
    }

    pub(super) fn framed() -> Self {
        Self { framed: true, ..Self::raw() }
    }

    pub(super) fn is_framed(&self) -> bool {
        self.framed
    }

    /// Begins a stream, if this side is framed.
    pub(super) fn open(&mut self) {
        if self.framed {
            self.put(Kind::Open, &[]);
        }
    }

    /// Answers that there will be no stream.
    pub(super) fn refuse(&mut self, reason: Reason) {
        self.put(Kind::Refused, reason.as_str().as_bytes());
    }

    fn put(&mut self, kind: Kind, content: &[u8]) {
        self.out.bytes.extend_from_slice(&Header { kind, length: content.len() }.encode());
        self.out.bytes.extend_from_slice(content);
    }

    /// Waits for the peer's OPEN; false at a clean end of the connection.
    pub(super) fn poll_opened(
        &mut self,
        cx: &mut Context<'_>,
        connection: &mut Connection,
    ) -> Poll<Result<bool, Broken>> {
        loop {
            match Header::decode(connection.input.data()) {
                Ok(Some(Header { kind: Kind::Open, .. })) => {
                    connection.input.consume(HEADER);
                    return Poll::Ready(Ok(true));
                }
                Ok(None) => {}
                _ => return Poll::Ready(Err(Broken::Connection)),
            }
            if ready!(connection.poll_fill(cx))? == 0 {
                return Poll::Ready(if connection.input.is_empty() {
                    Ok(false)
                } else {
                    Err(Broken::Connection)
                });
            }
        }
    }

    /// Ready once anything came from this side, or it is gone.
    pub(super) fn poll_answered(&mut self, cx: &mut Context<'_>, connection: &mut Connection) -> Poll<()> {
        if let Poll::Ready(Err(_)) = self.poll_flush(cx, connection) {
            return Poll::Ready(());
        }
        if !connection.input.is_empty() {
            return Poll::Ready(());
        }
        connection.poll_fill(cx).map(|_| ())
    }

    /// How many bytes of the stream lie at the front of the input; 0 is its end.
    pub(super) fn poll_data(
        &mut self,
        cx: &mut Context<'_>,
        connection: &mut Connection,
    ) -> Poll<Result<usize, Broken>> {
        loop {
            if self.ended {
                return Poll::Ready(Ok(0));
            }
            if !self.framed && !connection.input.is_empty() {
                return Poll::Ready(Ok(connection.input.data().len()));
            }
            if self.remaining > 0 && !connection.input.is_empty() {
                return Poll::Ready(Ok(self.remaining.min(connection.input.data().len())));
            }
            if self.framed && self.remaining == 0 && self.header(connection)? {
                continue;
            }
            if ready!(connection.poll_fill(cx))? == 0 {
                if self.framed {
                    return Poll::Ready(Err(Broken::Connection));
                }
                self.ended = true;
            }
        }
    }

    /// Takes a header off the input; false if it is not complete yet.
    fn header(&mut self, connection: &mut Connection) -> Result<bool, Broken> {
        let data = connection.input.data();
        let Some(header) = Header::decode(data).map_err(|()| Broken::Connection)? else { return Ok(false) };
        match header.kind {
            Kind::Data => self.remaining = header.length,
            Kind::Fin => self.ended = true,
            Kind::Refused => {
                let Some(word) = data.get(HEADER..HEADER + header.length) else { return Ok(false) };
                let reason = Reason::from_wire(word).unwrap_or(Reason::ConnectFailure);
                connection.input.consume(HEADER + header.length);
                return Err(Broken::Refused(reason));
            }
            Kind::Open => return Err(Broken::Connection),
        }
        connection.input.consume(HEADER);
        Ok(true)
    }

    /// Drops bytes of the stream that were passed on.
    pub(super) fn consume(&mut self, connection: &mut Connection, count: usize) {
        connection.input.consume(count);
        if self.framed {
            self.remaining -= count;
        }
    }

    /// Passes bytes on to this side; how many it took.
    pub(super) fn poll_send(
        &mut self,
        cx: &mut Context<'_>,
        connection: &mut Connection,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        if !self.framed {
            return Pin::new(&mut connection.transport).poll_write(cx, data);
        }
        if self.out.pending() >= LONGEST_DATA {
            ready!(self.out.poll_drain(cx, &mut connection.transport))?;
        }
        let count = data.len().min(LONGEST_DATA);
        self.put(Kind::Data, &data[..count]);
        Poll::Ready(Ok(count))
    }

    /// Sends what was collected.
    pub(super) fn poll_flush(
        &mut self,
        cx: &mut Context<'_>,
        connection: &mut Connection,
    ) -> Poll<io::Result<()>> {
        if self.framed {
            if self.out.is_pending() {
                return self.out.poll_drain(cx, &mut connection.transport);
            }
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut connection.transport).poll_flush(cx)
    }

    /// Tells this side that there are no more bytes.
    pub(super) fn poll_finish(
        &mut self,
        cx: &mut Context<'_>,
        connection: &mut Connection,
    ) -> Poll<io::Result<()>> {
        if !self.framed {
            return Pin::new(&mut connection.transport).poll_shutdown(cx);
        }
        if !self.finishing {
            self.finishing = true;
            self.put(Kind::Fin, &[]);
        }
        self.out.poll_drain(cx, &mut connection.transport)
    }

    /// After a refusal: sends it and takes what the client had sent until its FIN.
    pub(super) fn poll_refused(
        &mut self,
        cx: &mut Context<'_>,
        connection: &mut Connection,
    ) -> Poll<Result<(), Broken>> {
        ready!(self.out.poll_drain(cx, &mut connection.transport))?;
        loop {
            match ready!(self.poll_data(cx, connection))? {
                0 => return Poll::Ready(Ok(())),
                count => self.consume(connection, count),
            }
        }
    }
}
