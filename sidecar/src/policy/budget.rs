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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn twenty_percent_of_a_hundred_requests_are_twenty_retries() {
        let now = Instant::now();
        let policy = BudgetPolicy { percent: 20, min_per_second: 0 };
        let mut budget = RetryBudget::new(now);
        (0..100).for_each(|_| budget.deposit(now));
        let allowed = (0..100).filter(|_| budget.withdraw(&policy, now)).count();
        assert_eq!(allowed, 20);
        assert!(!budget.withdraw(&policy, now + 9 * SECOND), "the window still holds them");
        assert!(!budget.withdraw(&policy, now + 10 * SECOND), "no requests, no retries");
    }

    #[test]
    fn a_quiet_service_has_its_minimum_every_second() {
        let now = Instant::now();
        let policy = BudgetPolicy { percent: 20, min_per_second: 3 };
        let mut budget = RetryBudget::new(now);
        for second in 0..5 {
            let at = now + second * SECOND;
            assert_eq!((0..10).filter(|_| budget.withdraw(&policy, at)).count(), 3);
        }
    }

    #[test]
    fn a_service_that_fails_entirely_gets_a_fifth_more_load() {
        // 1000 requests per second, all fail, each wants two retries.
        let start = Instant::now();
        let (policy, mut budget) = (BudgetPolicy::default(), RetryBudget::new(start));
        let mut retries = 0;
        for request in 0..60_000_u32 {
            let now = start + request * Duration::from_millis(1);
            budget.deposit(now);
            retries += (0..2).filter(|_| budget.withdraw(&policy, now)).count();
        }
        // The minimum adds up to ten in the first second, before requests came.
        assert!((11_900..=12_010).contains(&retries), "{retries}");
    }

    #[derive(Debug, Clone)]
    enum Step {
        Pass(u64),
        Deposit,
        Withdraw,
    }

    proptest! {
        /// Equals the documented rule applied to complete lists of the events.
        #[test]
        fn equals_the_documented_arithmetic(
            policy in (0_u32..120, 0_u32..4).prop_map(|(percent, min_per_second)| BudgetPolicy { percent, min_per_second }),
            steps in prop::collection::vec(
                prop_oneof![
                    1 => prop_oneof![0_u64..3000, 0_u64..30_000].prop_map(Step::Pass),
                    4 => Just(Step::Deposit),
                    3 => Just(Step::Withdraw),
                ],
                0..200,
            ),
        ) {
            let start = Instant::now();
            let mut budget = RetryBudget::new(start);
            let (mut requests, mut retries) = (Vec::new(), Vec::new());
            let mut millis = 0;
            for step in steps {
                let now = start + Duration::from_millis(millis);
                let second = millis / 1000;
                match step {
                    Step::Pass(passed) => millis += passed,
                    Step::Deposit => {
                        budget.deposit(now);
                        requests.push(second);
                    }
                    Step::Withdraw => {
                        let within = |events: &[u64]| events.iter().filter(|&&at| at + 10 > second).count() as u64;
                        let in_second = retries.iter().filter(|&&at| at == second).count() as u64;
                        let expected = in_second < u64::from(policy.min_per_second)
                            || 100 * (within(&retries) + 1) <= u64::from(policy.percent) * within(&requests);
                        prop_assert_eq!(budget.withdraw(&policy, now), expected);
                        if expected {
                            retries.push(second);
                        }
                    }
                }
            }
        }
    }
}
