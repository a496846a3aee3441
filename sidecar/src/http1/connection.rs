//! A client's connection: reads one request after the other and keeps to the
//! time limits between them. Requests sent ahead are served in their order.

use std::future::poll_fn;
use std::rc::Rc;
use std::task::Poll;
use std::time::{Duration, Instant};

use crate::http1::forward::forward;
use crate::http1::request::RequestHead;
use crate::http1::{BadHead, HeadScan, Origin};
use crate::io::{Connection, WriteBuffer};
use crate::reason::Reason;
use crate::route::Http1Head;
use crate::sanitize::answer::{Answer, Form, Http1};
use crate::session::Session;
use crate::telemetry::metrics::{Outcome, RequestMetrics};
use crate::upstream::Destination;
use crate::wheel::Deadline;

/// From a head's first byte to its last. A client that needs longer holds a
/// buffer for nothing.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);

/// Silence between requests. Longer than what clients wait before they close
/// (sidecars 60 s, common libraries up to 5 minutes), so that it is they who
/// do and no request meets a connection that is just being closed.
const IDLE_TIMEOUT: Duration = Duration::from_secs(3600);

/// How long a client that does not read may hold up the end of its connection.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// How long, and for how many bytes, we listen to a client whose request will
/// not be used, so that our answer is not lost to a reset.
const LINGER_TIMEOUT: Duration = Duration::from_secs(2);
const LINGER_BYTES: usize = 1 << 20;

/// A client's connection and what belongs to it.
pub(super) struct Client {
    pub(super) connection: Connection,
    pub(super) to_client: WriteBuffer,
    pub(super) to_upstream: WriteBuffer,
    pub(super) deadline: Deadline,
    pub(super) session: Session,
    /// When the clock was last looked at.
    pub(super) now: Instant,
    /// The metrics used last, with the destination they belong to.
    pub(super) metrics: Option<(Rc<Destination>, Rc<RequestMetrics>)>,
    scan: HeadScan,
    origin: Origin,
    /// Whether a request was served.
    served: bool,
}

/// What becomes of a connection after an exchange.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Next {
    /// It waits for another request.
    KeepAlive,
    /// It ends.
    Close,
    /// It ends, though the client may still be sending.
    Linger,
    /// It is cut off, so that what was sent is not taken for complete.
    Abort,
}

/// Serves a client's HTTP/1 connection.
pub(crate) async fn serve(connection: Connection, session: Session) {
    let mut client = Client {
        connection,
        to_client: WriteBuffer::default(),
        to_upstream: WriteBuffer::default(),
        deadline: session.worker.wheel.deadline(),
        now: Instant::now(),
        metrics: None,
        scan: HeadScan::default(),
        origin: if session.is_from_mesh() { Origin::Mesh } else { Origin::Outside },
        served: false,
        session,
    };
    let next = loop {
        let next = match client.read_head().await {
            // Boxed so that a connection between two requests does not hold the room of one.
            Read::Head(head) => Box::pin(forward(&mut client, head)).await,
            Read::Refused(reason, message) => client.refuse_head(reason, message).await,
            Read::Ended => Next::Close,
        };
        if next != Next::KeepAlive {
            break next;
        }
        client.served = true;
    };
    match next {
        Next::Abort => client.connection.transport.abort(),
        Next::Linger => client.close(true).await,
        Next::KeepAlive | Next::Close => client.close(false).await,
    }
}

/// What came instead of waiting.
enum Read {
    Head(RequestHead),
    Refused(Reason, BadHead),
    /// The client has left, or was silent for too long.
    Ended,
}

impl Client {
    /// Waits for a request; what is forwarded of its head lies in `to_upstream`.
    async fn read_head(&mut self) -> Read {
        self.to_upstream.clear();
        let idle = if self.served { IDLE_TIMEOUT } else { HEAD_TIMEOUT };
        self.deadline.arm(self.now + idle);
        let mut begun = !self.served;
        poll_fn(|cx| {
            loop {
                let input = &self.connection.input;
                if !input.is_empty() {
                    let out = &mut self.to_upstream.bytes;
                    match RequestHead::parse(input.data(), &mut self.scan, self.origin, out) {
                        Ok(Some(head)) => return Poll::Ready(Read::Head(head)),
                        Ok(None) => {}
                        Err(bad) => return Poll::Ready(Read::Refused(bad.reason(), bad)),
                    }
                    if !begun {
                        begun = true;
                        self.deadline.arm(Instant::now() + HEAD_TIMEOUT);
                    }
                } else if self.served && self.session.worker.is_draining() {
                    return Poll::Ready(Read::Ended);
                }
                match self.connection.poll_fill(cx) {
                    Poll::Ready(Ok(count)) if count > 0 => {}
                    Poll::Ready(_) => return Poll::Ready(Read::Ended),
                    Poll::Pending => break,
                }
            }
            self.to_client.release();
            self.to_upstream.release();
            if self.deadline.poll_expired(cx).is_pending() {
                return Poll::Pending;
            }
            Poll::Ready(if self.scan.is_underway() {
                Read::Refused(Reason::RequestTimeout, BadHead::TooSlow)
            } else {
                Read::Ended
            })
        })
        .await
    }

    /// Answers a request that could not be read.
    async fn refuse_head(&mut self, reason: Reason, bad: BadHead) -> Next {
        let labels = self.session.labeler().map(|labeler| labeler.read(None::<&Http1Head<'_>>));
        let requests = self.session.begin(&self.session.requests(None, None), labels.as_ref());
        let message = bad.to_string();
        let answer = Answer { message: &message, ..Answer::new(reason) };
        answer.write_http1(Form::Plain, Http1 { head: false, close: true }, &mut self.to_client.bytes);
        let next = self.send_answer(Next::Linger).await;
        let outcome = Outcome { code: reason.status(), grpc_status: None, error: Some(reason) };
        requests.finish(outcome, Duration::ZERO);
        next
    }

    /// Writes what lies in `to_client`; `next` if the client takes it.
    pub(super) async fn send_answer(&mut self, next: Next) -> Next {
        self.deadline.arm(Instant::now() + ANSWER_TIMEOUT);
        poll_fn(|cx| match self.to_client.poll_drain(cx, &mut self.connection.transport) {
            Poll::Ready(Ok(())) => Poll::Ready(next),
            Poll::Ready(Err(_)) => Poll::Ready(Next::Abort),
            Poll::Pending => self.deadline.poll_expired(cx).map(|()| Next::Abort),
        })
        .await
    }

    /// Ends the connection in order.
    async fn close(mut self, linger: bool) {
        self.deadline.arm(Instant::now() + LINGER_TIMEOUT);
        // Unread bytes would make the socket's end a reset.
        let linger = linger || !self.connection.input.is_empty();
        let mut shut = false;
        let mut discarded = 0;
        poll_fn(|cx| {
            if self.deadline.poll_expired(cx).is_ready() {
                return Poll::Ready(());
            }
            if !shut {
                let ended = tokio::io::AsyncWrite::poll_shutdown(
                    std::pin::Pin::new(&mut self.connection.transport),
                    cx,
                );
                match ended {
                    Poll::Ready(Ok(())) if linger => shut = true,
                    Poll::Ready(_) => return Poll::Ready(()),
                    Poll::Pending => return Poll::Pending,
                }
            }
            loop {
                let input = &mut self.connection.input;
                discarded += input.data().len();
                input.consume(input.data().len());
                if discarded > LINGER_BYTES {
                    return Poll::Ready(());
                }
                match self.connection.poll_fill(cx) {
                    Poll::Ready(Ok(count)) if count > 0 => {}
                    Poll::Ready(_) => return Poll::Ready(()),
                    Poll::Pending => return Poll::Pending,
                }
            }
        })
        .await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The size of the future that a function of two arguments returns.
    fn size_of_future<A, B, F>(_: impl Fn(A, B) -> F) -> usize {
        size_of::<F>()
    }

    #[test]
    fn an_idle_connection_costs_1_6_kb_besides_its_buffers() {
        let size = size_of_future(serve);
        assert!(size <= 1600, "{size}");
    }

    #[test]
    fn a_request_costs_2_4_kb_besides_its_buffers() {
        let size = size_of_future(|client: &'static mut Client, head| forward(client, head));
        assert!(size <= 2400, "{size}");
    }
}
