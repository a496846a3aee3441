//! The retry budget: what keeps retries from making an overload worse.
//!
//! Counts first tries and retries of one service in one worker over the last
//! ten seconds, in slots of a whole second (the current, partial one and nine
//! before it). A retry is allowed if either holds:
//!
//! - fewer than `min_per_second` retries were made in the current slot, or
//! - `100 × (retries in the window + 1) ≤ percent × first tries in the window`.
//!
//! All retries count in both, so load grows by at most `percent` of the
//! requests, or by `min_per_second` where that is more. All arithmetic is on
//! integers. Each worker has its own budget.

use std::time::Instant;

/// The budget part of a retry policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BudgetPolicy {
    /// Retries allowed per hundred requests.
    pub percent: u32,
    /// Retries always allowed, per second.
    pub min_per_second: u32,
}

impl Default for BudgetPolicy {
    fn default() -> Self {
        Self { percent: 20, min_per_second: 10 }
    }
}

/// Length of the window in slots of a second: long enough to ride out a short
/// dip in traffic, short enough to forget yesterday's quiet.
const SLOTS: usize = 10;

/// The counts of one service in one worker. Survives changes of policy.
#[derive(Debug)]
pub struct RetryBudget {
    started: Instant,
    /// The slot that `now` was last seen in, in seconds since `started`.
    current: u64,
    slots: [Slot; SLOTS],
    /// Sums of `slots`.
    total: Slot,
}

#[derive(Debug, Clone, Copy, Default)]
struct Slot {
    requests: u64,
    retries: u64,
}

impl RetryBudget {
    /// An empty window.
    pub fn new(now: Instant) -> Self {
        Self { started: now, current: 0, slots: [Slot::default(); SLOTS], total: Slot::default() }
    }

    /// Notes a request's first try.
    pub fn deposit(&mut self, now: Instant) {
        self.slot(now).requests += 1;
        self.total.requests += 1;
    }

    /// Whether one more retry is allowed; if so, it is counted.
    pub fn withdraw(&mut self, policy: &BudgetPolicy, now: Instant) -> bool {
        let in_slot = self.slot(now).retries;
        let total = self.total;
        let allowed = in_slot < u64::from(policy.min_per_second)
            || 100 * (total.retries + 1) <= u64::from(policy.percent) * total.requests;
        if allowed {
            self.slot(now).retries += 1;
            self.total.retries += 1;
        }
        allowed
    }

    /// The current slot, after those that left the window were emptied. A clock
    /// that seems to go backwards stays in the newest slot.
    fn slot(&mut self, now: Instant) -> &mut Slot {
        let second = now.saturating_duration_since(self.started).as_secs();
        if second > self.current {
            let passed = second - self.current;
            for step in 1..=passed.min(SLOTS as u64) {
                let slot = &mut self.slots[index(self.current + step)];
                self.total.requests -= slot.requests;
                self.total.retries -= slot.retries;
                *slot = Slot::default();
            }
            self.current = second;
        }
        &mut self.slots[index(self.current)]
    }
}

#[expect(clippy::cast_possible_truncation, reason = "below SLOTS")]
fn index(second: u64) -> usize {
    (second % SLOTS as u64) as usize
}
