//! When changes are handed on: together with those that come at the same time,
//! and after an API server was away when all collections are back, or some
//! time after the first. A kind that stays away holds up nothing for longer.

use std::time::{Duration, Instant};

use super::store::Standing;

/// How long a change waits for others before they are handed on together.
const GATHER: Duration = Duration::from_millis(10);

/// How long collections that are back wait for the others. They try again every
/// five seconds at the latest.
const SETTLE: Duration = Duration::from_secs(5);

/// How long it takes a watch that goes on where it stopped to hear what it missed.
const CATCH_UP: Duration = Duration::from_millis(100);

/// What has changed and was not handed on.
#[derive(Debug, Default)]
pub(super) struct Pace {
    /// When there was the first change that was not handed on.
    changed: Option<Instant>,
    /// What was heard last.
    standing: Option<Standing>,
    /// Until when the collections may not be of one time.
    hold: Option<Instant>,
}

impl Pace {
    /// Something was heard of the cluster, whose collections now stand so.
    pub(super) fn note(&mut self, changed: bool, standing: Standing, now: Instant) {
        if changed {
            self.changed.get_or_insert(now);
        }
        match (self.standing.replace(standing), standing) {
            (_, Standing::Away) => self.hold = None,
            (Some(Standing::Partial), Standing::Partial)
            | (Some(Standing::Whole) | None, Standing::Whole) => {}
            (_, Standing::Partial) => self.hold = Some(now + SETTLE),
            (_, Standing::Whole) => self.hold = Some(now + CATCH_UP),
        }
    }

    /// When to hand on what has changed; `None`: there is nothing.
    pub(super) fn due(&self) -> Option<Instant> {
        let changed = self.changed?;
        let gathered = changed + GATHER;
        // Watches that come and go must not put it off for ever.
        Some(self.hold.map_or(gathered, |until| gathered.max(until)).min(changed + SETTLE))
    }

    /// All that has changed is handed on.
    pub(super) fn handed_on(&mut self) {
        self.changed = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(number: u64) -> Duration {
        Duration::from_secs(number)
    }

    #[test]
    fn changes_that_come_together_go_together() {
        let (mut pace, now) = (Pace::default(), Instant::now());
        assert_eq!(pace.due(), None);
        pace.note(false, Standing::Whole, now);
        assert_eq!(pace.due(), None);
        pace.note(true, Standing::Whole, now);
        pace.note(true, Standing::Whole, now + GATHER / 2);
        assert_eq!(pace.due(), Some(now + GATHER));
        pace.handed_on();
        assert_eq!(pace.due(), None);
    }

    #[test]
    fn collections_of_an_api_server_that_is_back_wait_for_each_other() {
        let (mut pace, now) = (Pace::default(), Instant::now());
        pace.note(true, Standing::Away, now);
        assert_eq!(pace.due(), Some(now + GATHER), "that it is away is said at once");
        pace.handed_on();
        // Minutes later the first is back.
        let back = now + seconds(300);
        pace.note(true, Standing::Partial, back);
        pace.note(true, Standing::Partial, back + seconds(1));
        assert_eq!(pace.due(), Some(back + SETTLE));
        pace.note(false, Standing::Whole, back + seconds(2));
        assert_eq!(pace.due(), Some(back + seconds(2) + CATCH_UP));
        // Watches that come and go put it off no longer than that.
        pace.note(true, Standing::Partial, back + seconds(4));
        assert_eq!(pace.due(), Some(back + SETTLE));
    }

    /// One kind whose definition has a conversion webhook that is broken, and is answered with 500
    /// for days, had every change of the mesh take five seconds.
    #[test]
    fn a_kind_that_stays_away_holds_up_nothing() {
        let (mut pace, now) = (Pace::default(), Instant::now());
        pace.note(true, Standing::Partial, now);
        assert_eq!(pace.due(), Some(now + SETTLE));
        pace.handed_on();
        let later = now + seconds(60);
        pace.note(true, Standing::Partial, later);
        assert_eq!(pace.due(), Some(later + GATHER));
        pace.handed_on();
        // The API server restarts, and there is something to wait for again.
        pace.note(false, Standing::Away, later);
        pace.note(true, Standing::Partial, later + seconds(9));
        assert_eq!(pace.due(), Some(later + seconds(9) + SETTLE));
    }
}
