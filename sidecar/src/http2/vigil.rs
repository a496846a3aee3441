//! Watches over a connection: is the peer still there, does anyone still use it.
//!
//! One coarse deadline per connection. While streams are open and the peer says
//! nothing, a PING is sent; a peer that stays silent for as long again is gone
//! (a vanished host sends no FIN, and its streams would hang). A connection
//! without streams is idle after a while. Closing it is left to the caller.

use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use h2::{Ping, PingPong};

use crate::wheel::{Deadline, Wheel};

/// What a vigil found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Found {
    /// The peer answers no more.
    Dead,
    /// Nobody used the connection for the idle time.
    Idle,
}

/// The times of a vigil.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Times {
    /// How long a peer may be silent while streams are open before it is asked, and
    /// how long it then may take to answer.
    pub(crate) silence: Duration,
    /// How long a connection without streams is kept.
    pub(crate) idle: Duration,
}

/// What the connection did so far.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Activity {
    /// Bytes received.
    pub(crate) received: u64,
    /// Streams opened.
    pub(crate) opened: u64,
    /// Whether streams are open now.
    pub(crate) busy: bool,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Vigil {
    times: Times,
    deadline: Deadline,
    pings: Option<PingPong>,
    asked: bool,
    seen: Activity,
    idle_since: Option<Instant>,
}

impl Vigil {
    pub(crate) fn new(times: Times, wheel: &Wheel, pings: Option<PingPong>, now: Instant) -> Self {
        let deadline = wheel.deadline();
        deadline.arm(now + times.silence.min(times.idle));
        let seen = Activity { received: 0, opened: 0, busy: false };
        Self { times, deadline, pings, asked: false, seen, idle_since: Some(now) }
    }

    /// Ready when the connection should be closed. To be called at each turn of
    /// the connection's task.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>, activity: Activity) -> Poll<Found> {
        loop {
            ready!(self.deadline.poll_expired(cx));
            let now = Instant::now();
            let found = self.look(cx, activity, now);
            let next = match self.idle_since {
                Some(since) => (since + self.times.idle).min(now + self.times.silence),
                None => now + self.times.silence,
            };
            self.deadline.arm(next);
            if let Some(found) = found {
                return Poll::Ready(found);
            }
        }
    }

    fn look(&mut self, cx: &mut Context<'_>, activity: Activity, now: Instant) -> Option<Found> {
        let silent = activity.received == self.seen.received;
        let used = activity.busy || activity.opened != self.seen.opened;
        self.seen = activity;
        if used {
            self.idle_since = None;
        } else if now.duration_since(*self.idle_since.get_or_insert(now)) >= self.times.idle {
            // From anew, for a caller who lets the peer leave by itself.
            self.idle_since = Some(now);
            return Some(Found::Idle);
        }
        let pings = self.pings.as_mut()?;
        if self.asked {
            // Any byte is a sign of life; the answer itself may come later.
            if silent && activity.busy && pings.poll_pong(cx).is_pending() {
                return Some(Found::Dead);
            }
            self.asked = !silent && pings.poll_pong(cx).is_pending();
        } else if silent && activity.busy {
            self.asked = pings.send_ping(Ping::opaque()).is_ok();
        }
        None
    }
}
