//! Turns at a bounded rate, for what may be put off.

use std::cell::Cell;
use std::time::{Duration, Instant};

/// Gives turns that are at least a gap apart. Those that are asked for together follow
/// one another in the order of asking; what was not used is not saved up.
#[derive(Debug)]
pub struct Pace {
    gap: Duration,
    next: Cell<Option<Instant>>,
}

impl Pace {
    /// Turns that are at least `gap` apart.
    pub fn new(gap: Duration) -> Self {
        Self { gap, next: Cell::new(None) }
    }

    /// When the turn of one who asks at `now` is: then, or later.
    pub fn turn(&self, now: Instant) -> Instant {
        let turn = self.next.get().map_or(now, |next| next.max(now));
        self.next.set(Some(turn + self.gap));
        turn
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const GAP: Duration = Duration::from_millis(5);

    #[test]
    fn one_alone_does_not_wait() {
        let (pace, now) = (Pace::new(GAP), Instant::now());
        assert_eq!(pace.turn(now), now);
        assert_eq!(pace.turn(now + GAP), now + GAP);
    }

    proptest! {
        #[test]
        fn turns_are_a_gap_apart_and_none_waits_for_nothing(waits in prop::collection::vec(0_u64..20, 1..200)) {
            let (pace, mut now) = (Pace::new(GAP), Instant::now());
            let mut last: Option<Instant> = None;
            for wait in waits {
                now += Duration::from_millis(wait);
                let turn = pace.turn(now);
                prop_assert_eq!(turn, last.map_or(now, |last| now.max(last + GAP)));
                last = Some(turn);
            }
        }
    }
}
