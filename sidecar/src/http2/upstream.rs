//! Upstream connections of one endpoint, shared by the requests of a worker.
//!
//! Always holds: at most [`MAX_LINKS`] connections, no more streams on one than
//! its peer allows, and nothing new on one that is closing. A connection is
//! made in a task of its own, so that a request that gives up does not take it
//! from the others that wait. Whether and where to connect is the caller's.

mod driver;

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use h2::client::SendRequest;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::oneshot;

use crate::http2::seam::Refusal;
use crate::http2::vigil::Times;
use crate::reason::Reason;
use crate::upstream::{Leaving, Line};
use crate::wheel::Wheel;

/// Connections to one endpoint: more gain nothing for one worker, fewer let
/// one lost segment hold up every request.
const MAX_LINKS: usize = 4;

/// Streams on a connection from which on another one is opened, though the
/// peer would take more: frames of so many streams delay each other.
const CROWDED: usize = 100;

/// The connections. Clones are the same ones.
#[derive(Clone, Debug)]
pub(crate) struct Links(Rc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    links: RefCell<Vec<Rc<Link>>>,
    opening: Cell<bool>,
    retired: Cell<bool>,
    waiting: RefCell<VecDeque<oneshot::Sender<Told>>>,
    /// Requests to other endpoints that wait for one of the destination's connections to end.
    elsewhere: Rc<Line>,
}

/// What one who waits is told: to look again, or why there is no connection.
type Told = Result<(), Refusal>;

/// One connection.
#[derive(Debug)]
struct Link {
    send: SendRequest<Bytes>,
    /// Streams open now.
    streams: Cell<usize>,
    /// Streams opened so far.
    opened: Cell<u64>,
    /// Bytes received so far, as its driver last saw.
    received: Cell<u64>,
    closing: Cell<bool>,
    /// Says until its end that it makes room for somebody, if it does.
    leaving: Rc<RefCell<Option<Leaving>>>,
}

/// What links need besides a connection.
#[derive(Debug, Clone)]
pub(crate) struct Terms {
    pub(crate) wheel: Wheel,
    pub(crate) times: Times,
    /// Requests that wait for a connection; more are refused.
    pub(crate) waiting: usize,
    /// Requests that a connection serves before it is replaced.
    pub(crate) requests_per_link: Option<u64>,
}

/// The right to open one stream on one connection, and the stream's share of
/// the books until dropped.
#[derive(Debug)]
pub(crate) struct Slot {
    link: Rc<Link>,
    shared: Rc<Shared>,
    /// What the connection had received when it was idle before this stream.
    quiet_at: Option<u64>,
    /// Sends the request.
    pub(crate) send: SendRequest<Bytes>,
}

impl Slot {
    /// Whether the connection had been used before, was idle, and has received
    /// nothing since: had it broken now, it most likely was broken all the time.
    pub(crate) fn is_stale(&self) -> bool {
        self.quiet_at == Some(self.link.received.get())
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.link.streams.set(self.link.streams.get() - 1);
        if self.link.streams.get() == 0 && self.shared.is_in_the_way() {
            self.shared.make_room(&self.link);
        }
        self.shared.wake_one();
    }
}

impl Links {
    /// None yet. Those that carry nothing make room while `elsewhere` says that somebody lacks it.
    pub(crate) fn new(elsewhere: Rc<Line>) -> Self {
        Self(Rc::new(Shared { elsewhere, ..Shared::default() }))
    }

    /// A place on a connection: on the one with the fewest streams, or on a new
    /// one where all are crowded.
    ///
    /// # Errors
    /// What `connect` says, or [`Reason::Overloaded`] if too many wait already.
    pub(crate) async fn slot<Io, Connect>(
        &self,
        terms: &Terms,
        mut connect: impl FnMut() -> Connect,
    ) -> Result<Slot, Refusal>
    where
        Io: AsyncRead + AsyncWrite + Unpin + 'static,
        Connect: Future<Output = Result<Io, Refusal>> + 'static,
    {
        loop {
            let best = self.0.best();
            let room = self.0.has_room();
            let crowded = best.as_ref().is_none_or(|(link, _)| link.streams.get() >= CROWDED);
            if crowded && room {
                self.0.opening.set(true);
                tokio::task::spawn_local(driver::open(self.0.clone(), connect(), terms.clone()));
            }
            if let Some((link, send)) = best {
                return Ok(self.0.take(link, send, terms));
            }
            let waiting = self.0.wait(terms)?;
            waiting.await?;
        }
    }

    /// Ends a connection without streams; `false` if there is none.
    pub(crate) fn end_idle(&self) -> bool {
        let idle = self.0.links.borrow().iter().find(|link| link.streams.get() == 0).cloned();
        idle.inspect(|link| self.0.make_room(link)).is_some()
    }

    /// Ends the connections when their streams are done; new ones serve who
    /// waits for them and end too.
    pub(crate) fn retire(&self) {
        self.0.retired.set(true);
        for link in self.0.links.take() {
            link.closing.set(true);
        }
        self.0.wake_all(&Ok(()));
    }
}

impl Shared {
    /// The usable connection with the fewest streams, if it takes one more.
    fn best(&self) -> Option<(Rc<Link>, SendRequest<Bytes>)> {
        let mut links = self.links.borrow_mut();
        loop {
            let (index, link) = links.iter().enumerate().min_by_key(|(_, link)| link.streams.get())?;
            if !link.closing.get()
                && let Some(send) = link.open()
            {
                return link.has_room().then(|| (link.clone(), send));
            }
            links.swap_remove(index).closing.set(true);
        }
    }

    /// Whether another connection may be opened. Not while one is on its way or
    /// its peer has not said yet how many streams it takes.
    fn has_room(&self) -> bool {
        let links = self.links.borrow();
        let coming = self.opening.get() || links.iter().any(|link| link.received.get() == 0);
        !coming && links.len() < MAX_LINKS
    }

    fn take(self: &Rc<Self>, link: Rc<Link>, send: SendRequest<Bytes>, terms: &Terms) -> Slot {
        let quiet_at = (link.streams.get() == 0 && link.opened.get() > 0).then(|| link.received.get());
        link.streams.set(link.streams.get() + 1);
        link.opened.set(link.opened.get() + 1);
        if self.retired.get() || terms.requests_per_link.is_some_and(|limit| link.opened.get() >= limit) {
            self.remove(&link);
        }
        Slot { link, shared: self.clone(), quiet_at, send }
    }

    fn wait(self: &Rc<Self>, terms: &Terms) -> Result<Waiting, Refusal> {
        let mut waiting = self.waiting.borrow_mut();
        waiting.retain(|waiter| !waiter.is_closed());
        if waiting.len() >= terms.waiting {
            let message = format!("{} requests wait for a connection already", waiting.len());
            return Err(Refusal::new(Reason::Overloaded, message));
        }
        let (sender, receiver) = oneshot::channel();
        waiting.push_back(sender);
        Ok(Waiting { receiver, shared: self.clone() })
    }

    /// Whether a connection that carries nothing keeps requests to other endpoints waiting.
    fn is_in_the_way(&self) -> bool {
        self.waiting.borrow_mut().retain(|waiter| !waiter.is_closed());
        self.elsewhere.lacks_room(0) && self.waiting.borrow().is_empty()
    }

    /// Ends a connection for one who waits.
    fn make_room(&self, link: &Rc<Link>) {
        if !link.closing.get() {
            link.leaving.replace(Some(Leaving::new(&self.elsewhere)));
        }
        self.remove(link);
    }

    fn wake_one(&self) {
        loop {
            let next = self.waiting.borrow_mut().pop_front();
            let Some(waiter) = next else { return };
            if waiter.send(Ok(())).is_ok() {
                return;
            }
        }
    }

    /// The peer's settings may have come and allow more streams than before.
    fn wake_for(&self, link: &Link) {
        let waiting = self.waiting.borrow().len();
        let room = link.send.current_max_send_streams().saturating_sub(link.streams.get());
        for _ in 0..waiting.min(room) {
            self.wake_one();
        }
    }

    fn wake_all(&self, told: &Told) {
        for waiter in self.waiting.take() {
            // One that gave up needs no answer.
            let _ = waiter.send(told.clone());
        }
    }

    fn remove(&self, link: &Rc<Link>) {
        link.closing.set(true);
        self.links.borrow_mut().retain(|other| !Rc::ptr_eq(other, link));
        // Whoever waited for this connection looks for another.
        self.wake_all(&Ok(()));
    }
}

impl Link {
    /// A handle to send with; `None` after a GOAWAY or an error, when h2
    /// refuses new streams.
    fn open(&self) -> Option<SendRequest<Bytes>> {
        let mut send = self.send.clone();
        // A clone waits for nothing of its own, so the answer is there at once.
        let ready = send.poll_ready(&mut Context::from_waker(Waker::noop()));
        matches!(ready, Poll::Ready(Ok(()))).then_some(send)
    }

    fn has_room(&self) -> bool {
        self.streams.get() < self.send.current_max_send_streams()
    }
}

/// A request that waits for a connection or for a stream to end.
struct Waiting {
    receiver: oneshot::Receiver<Told>,
    shared: Rc<Shared>,
}

impl Future for Waiting {
    type Output = Told;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Told> {
        Pin::new(&mut self.receiver).poll(cx).map(|told| told.unwrap_or(Ok(())))
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        // Told that there is room, but gone: the next in line has it.
        if matches!(self.receiver.try_recv(), Ok(Ok(()))) {
            self.shared.wake_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use tokio::io::DuplexStream;
    use tokio::task::{LocalSet, spawn_local, yield_now};

    use super::*;
    use crate::upstream::Waiting;

    /// A peer that takes one stream at a time.
    async fn serve(io: DuplexStream) {
        let handshake = h2::server::Builder::new().max_concurrent_streams(1).handshake::<_, Bytes>(io);
        let mut connection = handshake.await.expect("it is HTTP/2");
        while connection.accept().await.is_some() {}
    }

    /// One request waited for a connection elsewhere, and all connections that carried nothing ended for it.
    #[tokio::test]
    async fn one_who_waits_elsewhere_ends_one_connection() {
        let test = async {
            let line = Rc::new(Line::default());
            let links = Links::new(line.clone());
            let long = Duration::from_secs(3600);
            let terms = Terms {
                wheel: Wheel::new(Instant::now()),
                times: Times { silence: long, idle: long },
                waiting: 10,
                requests_per_link: None,
            };
            let connect = || async {
                let (ours, theirs) = tokio::io::duplex(1 << 16);
                spawn_local(serve(theirs));
                Ok::<_, Refusal>(ours)
            };
            let mut slots = Vec::new();
            for _ in 0..3 {
                slots.push(links.slot(&terms, connect).await.expect("there is room"));
                // Its peer says how many streams it takes.
                while links.0.links.borrow().iter().any(|link| link.received.get() == 0) {
                    yield_now().await;
                }
            }
            let count = || links.0.links.borrow().len();
            assert_eq!(count(), 3);
            let waits = Waiting::new(&line);
            drop(slots);
            assert_eq!(count(), 2, "the others may be used again");
            assert!(!line.lacks_room(0));
            drop(waits);
            // As soon as that one has ended, another may for the next.
            let _waits = Waiting::new(&line);
            while !line.lacks_room(0) {
                yield_now().await;
            }
            assert!(links.end_idle() && !line.lacks_room(0));
            assert_eq!(count(), 1);
        };
        LocalSet::new().run_until(test).await;
    }
}
