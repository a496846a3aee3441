//! The byte streams of the data path: plain TCP or mesh TLS behind one type,
//! and the read buffer that sits on top.
//!
//! Buffers grow with use (4 to 64 KiB) and are given back as soon as a
//! connection falls silent, so an idle connection owns no buffer at all.
//! Deadlines and meaning of the bytes are left to the callers.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, Waker, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::{client, server};
use tokio_util::io::poll_read_buf;

/// A read that fills the buffer doubles it, up to this: four TLS records.
const LARGEST_BUFFER: usize = 64 * 1024;
/// Enough for nearly every request head.
const SMALLEST_BUFFER: usize = 4 * 1024;
/// Ciphertext: two full TLS records, beyond which larger reads gained nothing.
const LARGEST_CIPHERTEXT_BUFFER: usize = 2 * (16 * 1024 + 256);

/// A connection's byte stream.
pub enum Transport {
    /// Plaintext.
    Tcp(TcpStream),
    /// Mesh TLS, we are the client.
    TlsClient(Box<client::TlsStream<BufferedTcp>>),
    /// Mesh TLS, we are the server.
    TlsServer(Box<server::TlsStream<BufferedTcp>>),
}

impl Transport {
    /// The socket beneath.
    pub fn tcp(&self) -> &TcpStream {
        match self {
            Self::Tcp(tcp) => tcp,
            Self::TlsClient(tls) => &tls.get_ref().0.tcp,
            Self::TlsServer(tls) => &tls.get_ref().0.tcp,
        }
    }

    /// Whether bytes wait between the socket and us: what is left of a read
    /// beneath TLS, or records that are deciphered already.
    fn has_buffered(&self) -> bool {
        let (buffered, wants_read) = match self {
            Self::Tcp(_) => return false,
            Self::TlsClient(tls) => {
                let (io, session) = tls.get_ref();
                (io, session.wants_read())
            }
            Self::TlsServer(tls) => {
                let (io, session) = tls.get_ref();
                (io, session.wants_read())
            }
        };
        !wants_read || !buffered.input.is_empty()
    }

    /// Ready when a read is likely to return something; registers for a wake-up
    /// otherwise. Lets callers allocate buffers only when there is something to put in.
    fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.has_buffered() { Poll::Ready(Ok(())) } else { self.tcp().poll_read_ready(cx) }
    }

    /// Resets instead of closing orderly, so that the peer sees an aborted
    /// stream and never a clean end.
    pub fn abort(self) {
        // Fails only on a socket that is gone already.
        let _ = self.tcp().set_zero_linger();
    }
}

macro_rules! delegate {
    ($self:expr, $io:ident => $call:expr) => {
        match $self.get_mut() {
            Transport::Tcp($io) => $call,
            Transport::TlsClient($io) => $call,
            Transport::TlsServer($io) => $call,
        }
    };
}

impl AsyncRead for Transport {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        delegate!(self, io => Pin::new(io).poll_read(cx, buf))
    }
}

impl AsyncWrite for Transport {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        delegate!(self, io => Pin::new(io).poll_write(cx, buf))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        delegate!(self, io => Pin::new(io).poll_write_vectored(cx, bufs))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        delegate!(self, io => Pin::new(io).poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        delegate!(self, io => Pin::new(io).poll_shutdown(cx))
    }
}

/// Received bytes that nobody has taken yet.
#[derive(Default, Debug)]
pub struct ReadBuffer {
    bytes: Vec<u8>,
    start: usize,
    /// Capacity to allocate next; 0 stands for the smallest.
    target: usize,
    /// Reads in a row that needed little of it.
    small_reads: u8,
}

/// Reads in a row that must need little before less is allocated: the last read
/// of each message does.
const SMALL_READS: u8 = 16;

impl ReadBuffer {
    /// A buffer that begins with bytes received earlier.
    pub fn with(bytes: Vec<u8>) -> Self {
        Self { bytes, ..Self::default() }
    }

    /// The bytes.
    #[inline]
    pub fn data(&self) -> &[u8] {
        &self.bytes[self.start..]
    }

    /// Whether there are none.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.start == self.bytes.len()
    }

    /// Drops the first `count` bytes.
    #[inline]
    pub fn consume(&mut self, count: usize) {
        debug_assert!(count <= self.bytes.len() - self.start);
        self.start += count;
        if self.start == self.bytes.len() {
            self.bytes.clear();
            self.start = 0;
        }
    }

    /// Puts bytes back in front.
    pub fn unread(&mut self, bytes: &[u8]) {
        self.bytes.splice(..self.start, bytes.iter().copied());
        self.start = 0;
    }

    /// Gives the allocation back if nothing is in it.
    pub fn release(&mut self) {
        if self.is_empty() && self.bytes.capacity() > 0 {
            self.bytes = Vec::new();
        }
    }

    /// Makes room for at least `SMALLEST_BUFFER / 2` more bytes.
    fn make_room(&mut self, largest: usize) {
        if self.start > 0 {
            self.bytes.drain(..self.start);
            self.start = 0;
        }
        let target = self.target.max(SMALLEST_BUFFER);
        if self.bytes.capacity() < target {
            self.bytes.reserve_exact(target - self.bytes.len());
        } else if self.bytes.capacity() - self.bytes.len() < SMALLEST_BUFFER / 2 {
            // A message that does not fit yet: what is kept is bounded by who reads it.
            let larger = (self.bytes.capacity() * 2).min(self.bytes.capacity() + largest);
            self.bytes.reserve_exact(larger - self.bytes.len());
        }
    }

    fn poll_fill_from<R: AsyncRead + Unpin>(
        &mut self,
        cx: &mut Context<'_>,
        io: &mut R,
        largest: usize,
    ) -> Poll<io::Result<usize>> {
        self.make_room(largest);
        let read = ready!(poll_read_buf(Pin::new(io), cx, &mut self.bytes))?;
        let capacity = self.bytes.capacity();
        if self.bytes.len() == capacity {
            self.target = (capacity * 2).min(largest);
            self.small_reads = 0;
        } else if read >= capacity / 8 {
            self.small_reads = 0;
        } else {
            self.small_reads += 1;
            if self.small_reads == SMALL_READS {
                self.target = (capacity / 2).max(SMALLEST_BUFFER);
                self.small_reads = 0;
            }
        }
        Poll::Ready(Ok(read))
    }
}

/// A transport with what was received and not yet taken.
pub struct Connection {
    /// The stream.
    pub transport: Transport,
    /// Received bytes.
    pub input: ReadBuffer,
}

impl Connection {
    /// A connection from which nothing was read yet.
    pub fn new(transport: Transport) -> Self {
        Self { transport, input: ReadBuffer::default() }
    }

    /// Reads more; 0 is the end of the stream.
    pub fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let readable = self.transport.poll_readable(cx)?;
        let result = match readable {
            Poll::Pending => Poll::Pending,
            // Readiness may be stale, or TLS may take a record without data:
            // then the read says pending and has registered the waker.
            Poll::Ready(()) => self.input.poll_fill_from(cx, &mut self.transport, LARGEST_BUFFER),
        };
        if result.is_pending() {
            self.input.release();
        }
        result
    }

    /// Whether more can be had without asking the socket.
    pub fn has_buffered(&self) -> bool {
        self.transport.has_buffered()
    }

    /// Reads more; 0 is the end of the stream.
    ///
    /// # Errors
    /// Those of the socket and of TLS.
    pub async fn fill(&mut self) -> io::Result<usize> {
        poll_fn(|cx| self.poll_fill(cx)).await
    }

    /// Whether an idle connection can carry another message: it is open and
    /// has nothing to say.
    pub fn is_quiet(&mut self) -> bool {
        self.input.is_empty() && self.poll_fill(&mut Context::from_waker(Waker::noop())).is_pending()
    }
}

/// TCP with a read buffer, beneath TLS: rustls reads a record in small pieces,
/// which would each be a system call.
pub struct BufferedTcp {
    tcp: TcpStream,
    input: ReadBuffer,
}

impl BufferedTcp {
    /// A stream whose first bytes were read already.
    pub fn new(tcp: TcpStream, input: ReadBuffer) -> Self {
        Self { tcp, input }
    }
}

impl AsyncRead for BufferedTcp {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.input.is_empty() {
            if this.tcp.poll_read_ready(cx)?.is_pending() {
                this.input.release();
                return Poll::Pending;
            }
            ready!(this.input.poll_fill_from(cx, &mut this.tcp, LARGEST_CIPHERTEXT_BUFFER))?;
        }
        let data = this.input.data();
        let count = data.len().min(buf.remaining());
        buf.put_slice(&data[..count]);
        this.input.consume(count);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for BufferedTcp {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().tcp).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().tcp).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().tcp).poll_shutdown(cx)
    }
}

/// Bytes on their way out.
#[derive(Default, Debug)]
pub struct WriteBuffer {
    /// The bytes; those before `sent` are gone.
    pub bytes: Vec<u8>,
    sent: usize,
    unflushed: bool,
}

/// Above this, an emptied output buffer is given back.
const KEPT_OUTPUT: usize = 16 * 1024;

impl WriteBuffer {
    /// Whether bytes wait to be written, or TLS has not passed on all that it took.
    #[inline]
    pub fn is_pending(&self) -> bool {
        self.sent < self.bytes.len() || self.unflushed
    }

    /// How many bytes wait to be written.
    #[inline]
    pub fn pending(&self) -> usize {
        self.bytes.len() - self.sent
    }

    /// Writes and flushes everything.
    pub fn poll_drain(&mut self, cx: &mut Context<'_>, transport: &mut Transport) -> Poll<io::Result<()>> {
        ready!(self.poll_write(cx, transport))?;
        self.clear();
        Poll::Ready(Ok(()))
    }

    /// Writes and flushes everything, but keeps the bytes, so that they can be
    /// sent again elsewhere after [`Self::rewind`].
    pub fn poll_write(&mut self, cx: &mut Context<'_>, transport: &mut Transport) -> Poll<io::Result<()>> {
        while self.sent < self.bytes.len() {
            let written = ready!(Pin::new(&mut *transport).poll_write(cx, &self.bytes[self.sent..]))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.sent += written;
            self.unflushed = true;
        }
        if self.unflushed {
            ready!(Pin::new(transport).poll_flush(cx))?;
            self.unflushed = false;
        }
        Poll::Ready(Ok(()))
    }

    /// Everything is to be sent once more.
    pub fn rewind(&mut self) {
        self.sent = 0;
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.sent = 0;
        self.unflushed = false;
        self.bytes.clear();
        if self.bytes.capacity() > KEPT_OUTPUT {
            self.bytes = Vec::new();
        }
    }

    /// Gives the allocation back if nothing is in it.
    pub fn release(&mut self) {
        if self.bytes.is_empty() {
            self.bytes = Vec::new();
        }
    }
}
