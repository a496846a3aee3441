//! One poll turn of a connection's task.
//!
//! A connection and its streams wake each other all the time while the task
//! that drives them all is running: a frame read wakes a stream, a stream that
//! sends wakes the connection. Each of these wakes would schedule the task once
//! more, for nothing. Inside [`Turn::run`] they only mean "go round again";
//! outside they wake the task as usual. No wake is ever lost.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use futures_util::task::AtomicWaker;

/// How often a turn goes round before it lets other tasks run. Two rounds
/// carry a request on and send it; a task that still wakes itself after a few
/// has much to do or has used up its share of the runtime's budget.
const ROUNDS: usize = 4;

/// The waker that a connection and its streams are polled with.
#[derive(Debug)]
pub(crate) struct Turn {
    signal: Arc<Signal>,
    waker: Waker,
}

#[derive(Debug, Default)]
struct Signal {
    running: AtomicBool,
    woken: AtomicBool,
    task: AtomicWaker,
}

impl Wake for Signal {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.woken.store(true, Ordering::SeqCst);
        if !self.running.load(Ordering::SeqCst) {
            self.task.wake();
        }
    }
}

impl Turn {
    pub(crate) fn new() -> Self {
        let signal = Arc::new(Signal::default());
        Self { waker: Waker::from(signal.clone()), signal }
    }

    /// Calls `round` until it is ready, wakes nothing any more, or has had its
    /// share; in the last case the task is woken to go on.
    pub(crate) fn run<T>(
        &self,
        cx: &mut Context<'_>,
        mut round: impl FnMut(&mut Context<'_>) -> Poll<T>,
    ) -> Poll<T> {
        self.signal.task.register(cx.waker());
        self.signal.running.store(true, Ordering::SeqCst);
        let mut result = Poll::Pending;
        for _ in 0..ROUNDS {
            self.signal.woken.store(false, Ordering::SeqCst);
            result = round(&mut Context::from_waker(&self.waker));
            if result.is_ready() || !self.signal.woken.load(Ordering::SeqCst) {
                break;
            }
        }
        self.signal.running.store(false, Ordering::SeqCst);
        // Another thread may have woken between the last look and now.
        if result.is_pending() && self.signal.woken.load(Ordering::SeqCst) {
            cx.waker().wake_by_ref();
        }
        result
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use super::*;

    #[derive(Default)]
    struct Count(AtomicUsize);

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    #[test]
    fn a_wake_inside_a_turn_goes_round_and_does_not_schedule_the_task() {
        let (turn, task) = (Turn::new(), Arc::new(Count::default()));
        let waker = Waker::from(task.clone());
        let mut rounds = 0;
        let result: Poll<()> = turn.run(&mut Context::from_waker(&waker), |cx| {
            rounds += 1;
            if rounds == 1 {
                cx.waker().wake_by_ref();
            }
            Poll::Pending
        });
        assert!(result.is_pending());
        assert_eq!((rounds, task.0.load(Ordering::SeqCst)), (2, 0));
        turn.waker.wake_by_ref();
        assert_eq!(task.0.load(Ordering::SeqCst), 1);
    }

    #[test]
    fn a_turn_that_never_settles_yields_and_is_woken() {
        let (turn, task) = (Turn::new(), Arc::new(Count::default()));
        let waker = Waker::from(task.clone());
        let mut rounds = 0;
        let result: Poll<()> = turn.run(&mut Context::from_waker(&waker), |cx| {
            rounds += 1;
            cx.waker().wake_by_ref();
            Poll::Pending
        });
        assert!(result.is_pending());
        assert_eq!((rounds, task.0.load(Ordering::SeqCst)), (ROUNDS, 1));
    }
}
