//! What is known about requests that were retried along a chain of services, so
//! that each hop of it does not multiply the tries of the one before.
//!
//! Correlates what comes in to a workload with what goes out of it by trace. Holds nothing
//! where nothing is retried. Bounded in number and time: what is forgotten, or was never
//! noted because there was no room, is retried as if nothing were known.

use std::collections::HashMap;
use std::time::{Duration, Instant};

/// What is known about the requests of a trace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mark {
    /// A request that came in is itself a retry.
    IsRetry,
    /// A request that went out failed for good, after retries or because the budget refused them.
    Exhausted,
}

/// How long a trace is remembered: longer than nearly every exchange, and shorter than what
/// would confuse a client that comes back with the same trace.
const KEPT: Duration = Duration::from_secs(30);

/// Traces that are remembered, at some 100 bytes each: more than a workload has failing at once
/// within that time, unless nothing works anyway.
const MOST: usize = 4096;

/// What is known about traces.
#[derive(Debug, Default)]
pub struct Chains(HashMap<u128, Known>);

#[derive(Debug, Clone, Copy, Default)]
struct Known {
    is_retry: Option<Instant>,
    exhausted: Option<Instant>,
}

impl Known {
    fn mark(&mut self, mark: Mark) -> &mut Option<Instant> {
        match mark {
            Mark::IsRetry => &mut self.is_retry,
            Mark::Exhausted => &mut self.exhausted,
        }
    }

    fn holds(mut self, mark: Mark, now: Instant) -> bool {
        self.mark(mark).is_some_and(|noted| now.saturating_duration_since(noted) < KEPT)
    }
}

impl Chains {
    /// Remembers this about a trace, if there is room. How many are remembered then.
    pub fn note(&mut self, trace: u128, mark: Mark, now: Instant) -> usize {
        if self.0.len() >= MOST && !self.0.contains_key(&trace) {
            self.0.retain(|_, known| {
                [Mark::IsRetry, Mark::Exhausted].iter().any(|mark| known.holds(*mark, now))
            });
        }
        if self.0.len() < MOST || self.0.contains_key(&trace) {
            *self.0.entry(trace).or_default().mark(mark) = Some(now);
        }
        self.0.len()
    }

    /// Whether this is known about a trace.
    pub fn is(&self, trace: u128, mark: Mark, now: Instant) -> bool {
        self.0.get(&trace).is_some_and(|known| known.holds(mark, now))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn no_more_are_remembered_than_there_is_room_for() {
        let (mut chains, now) = (Chains::default(), Instant::now());
        for trace in 0..10_000_u128 {
            assert!(chains.note(trace, Mark::Exhausted, now) <= MOST);
        }
        assert!(chains.is(0, Mark::Exhausted, now) && !chains.is(9999, Mark::Exhausted, now));
        let later = now + KEPT;
        assert_eq!(chains.note(9999, Mark::Exhausted, later), 1);
        assert!(chains.is(9999, Mark::Exhausted, later));
    }

    proptest! {
        /// Equals a list of all that was noted.
        #[test]
        fn a_mark_holds_for_its_trace_and_for_its_time(
            steps in prop::collection::vec((any::<bool>(), any::<bool>(), 0_u128..4, 0_u64..20_000), 0..60),
        ) {
            let (mut chains, mut now) = (Chains::default(), Instant::now());
            let mut noted: Vec<(u128, Mark, Instant)> = Vec::new();
            for (is_note, is_retry, trace, millis) in steps {
                now += Duration::from_millis(millis);
                let mark = if is_retry { Mark::IsRetry } else { Mark::Exhausted };
                if is_note {
                    chains.note(trace, mark, now);
                    noted.push((trace, mark, now));
                } else {
                    let known = noted.iter().any(|(t, m, at)| *t == trace && *m == mark && now - *at < KEPT);
                    prop_assert_eq!(chains.is(trace, mark, now), known);
                }
            }
        }
    }
}
