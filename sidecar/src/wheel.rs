//! Time limits without a timer per request: a coarse wheel per worker.
//!
//! A connection's task owns a [`Deadline`] and moves it at every step of every
//! exchange. Moving it to a later time only stores a number; the wheel notices
//! when it comes by and puts the entry where it belongs. So that it always
//! comes by soon, no entry is put further ahead than the next whole second,
//! and thousands of idle connections cost one wake-up per second together.
//!
//! Deadlines are never early, and late by a tick of 10 ms plus the runtime's
//! own delay. Memory is one entry per deadline; an empty wheel sleeps. The
//! wheel belongs to one thread. `Core` decides everything and reads no clock;
//! [`Wheel::drive`] is the one future that sleeps.

use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use tokio::time::{Instant as TokioInstant, sleep_until};

use crate::wheel::core::{Core, Key, NEVER};

mod core;

/// A worker's wheel. Clones are the same wheel.
#[derive(Clone, Debug)]
pub struct Wheel(Rc<Shared>);

#[derive(Debug)]
struct Shared {
    origin: Instant,
    core: RefCell<Core>,
    driver: Driver,
}

#[derive(Debug)]
struct Driver {
    /// The tick that the driver sleeps until, [`NEVER`] if it waits for work.
    until: Cell<u64>,
    waker: RefCell<Option<Waker>>,
}

impl Wheel {
    /// An empty wheel.
    pub fn new(now: Instant) -> Self {
        let driver = Driver { until: Cell::new(0), waker: RefCell::new(None) };
        Self(Rc::new(Shared { origin: now, core: RefCell::default(), driver }))
    }

    /// A new deadline, not armed.
    pub fn deadline(&self) -> Deadline {
        Deadline { key: self.0.core.borrow_mut().insert(), wheel: self.0.clone() }
    }

    /// Wakes the tasks of all deadlines, over or not: something happened that
    /// concerns everyone.
    pub fn wake_all(&self) {
        let wakers = self.0.core.borrow().watchers();
        wakers.into_iter().for_each(Waker::wake);
    }

    /// Wakes the tasks of deadlines that are over, for ever. One task per
    /// worker runs this; without it no deadline ends.
    pub async fn drive(&self) {
        let mut sleep = pin!(sleep_until(TokioInstant::now()));
        let mut due = Vec::new();
        poll_fn(|cx| {
            loop {
                // The runtime's clock, which tests may stop.
                let now = ticks_before(self.0.origin, TokioInstant::now().into_std());
                self.0.core.borrow_mut().advance(now, &mut due);
                due.drain(..).for_each(Waker::wake);
                let next = self.0.core.borrow().next();
                self.0.driver.until.set(next);
                self.0.driver.waker.replace(Some(cx.waker().clone()));
                if next == NEVER {
                    return Poll::Pending;
                }
                sleep
                    .as_mut()
                    .reset(TokioInstant::from_std(self.0.origin + TICK.saturating_mul(narrow(next))));
                if sleep.as_mut().poll(cx).is_pending() {
                    return Poll::Pending;
                }
            }
        })
        .await
    }
}

/// A time limit that its owner moves as it goes along.
#[derive(Debug)]
pub struct Deadline {
    wheel: Rc<Shared>,
    key: Key,
}

impl Deadline {
    /// Sets the limit, whatever it was before.
    #[inline]
    pub fn arm(&self, at: Instant) {
        let due = ticks_after(self.wheel.origin, at);
        if let Some(slot) = self.wheel.core.borrow_mut().arm(self.key, due) {
            self.wheel.driver.notice(slot);
        }
    }

    /// Sets the limit to `timeout` from `now`; none if there is no timeout.
    #[inline]
    pub fn arm_in(&self, now: Instant, timeout: Option<Duration>) {
        match timeout.and_then(|timeout| now.checked_add(timeout)) {
            Some(at) => self.arm(at),
            None => self.disarm(),
        }
    }

    /// Takes the limit away.
    #[inline]
    pub fn disarm(&self) {
        self.wheel.core.borrow_mut().disarm(self.key);
    }

    /// Whether the limit is over; it stays so until it is set anew.
    #[inline]
    pub fn is_expired(&self) -> bool {
        self.wheel.core.borrow().is_expired(self.key)
    }

    /// Ready once the limit is over; wakes the task then. Cheap to call at
    /// each turn of a task.
    #[inline]
    pub fn poll_expired(&self, cx: &mut Context<'_>) -> Poll<()> {
        let mut core = self.wheel.core.borrow_mut();
        if core.is_expired(self.key) {
            return Poll::Ready(());
        }
        let stale = core.watch(self.key, cx.waker());
        // Dropping a waker may drop a task, and with it deadlines of this wheel.
        drop(core);
        drop(stale);
        Poll::Pending
    }

    /// Waits for the limit.
    pub async fn expired(&self) {
        poll_fn(|cx| self.poll_expired(cx)).await
    }
}

impl Drop for Deadline {
    fn drop(&mut self) {
        let stale = self.wheel.core.borrow_mut().remove(self.key);
        drop(stale);
    }
}

impl Driver {
    /// Wakes the driver if it would sleep past a slot.
    fn notice(&self, slot: u64) {
        if slot < self.until.get()
            && let Some(waker) = self.waker.take()
        {
            waker.wake();
        }
    }
}

/// Fine enough for limits that are given in tens of milliseconds and more,
/// coarse enough that a busy worker wakes at most a hundred times a second for it.
const TICK: Duration = Duration::from_millis(10);

const TICKS_PER_SECOND: u64 = 100;

/// Whole ticks from `origin` to `at`.
#[inline]
fn ticks_before(origin: Instant, at: Instant) -> u64 {
    let since = at.saturating_duration_since(origin);
    since.as_secs() * TICKS_PER_SECOND + u64::from(since.subsec_nanos() / 10_000_000)
}

/// Ticks from `origin` until `at` has passed.
#[inline]
fn ticks_after(origin: Instant, at: Instant) -> u64 {
    let since = at.saturating_duration_since(origin);
    since.as_secs() * TICKS_PER_SECOND + u64::from(since.subsec_nanos().div_ceil(10_000_000))
}

/// A tick as a factor of [`TICK`]: enough for 497 days, after which the driver
/// would sleep too short and go on.
fn narrow(tick: u64) -> u32 {
    u32::try_from(tick).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests;
