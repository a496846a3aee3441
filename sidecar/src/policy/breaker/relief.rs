//! Early probes: what is out is asked again where the share that may be out keeps
//! in what fails.
//!
//! The rule: each time a result would open a breaker and the census does not allow it, the one of
//! the set that has been open longest becomes half-open at once, if it has been open
//! for a second. Its probes decide as always. Good ones close it, so that there
//! is room for the one that fails; bad ones put it back for the rest of its time, a second at least,
//! and behind the others. So never more are out than may be, each is asked
//! at most once a second, and nobody's times grow by being asked early.

use std::time::{Duration, Instant};

use super::{Breaker, Phase, Probes};

/// How long one has been open, at least, before it is asked early: as long as the shortest opening. A process
/// restarts in that time, and a request a second that has to go elsewhere costs little.
pub(super) const PAUSE: Duration = Duration::from_secs(1);

/// Asks that of the `breakers` which has been open longest for probes now, and returns it; `None`: there is none
/// to be asked. To be called when [`super::Change::Withheld`] is told of one of the set.
pub fn relieve<'b>(breakers: impl IntoIterator<Item = &'b Breaker>, now: Instant) -> Option<&'b Breaker> {
    let open = breakers.into_iter().filter_map(|breaker| match breaker.phase.get() {
        Phase::Open { since, until, .. } if now < until => Some((since, breaker)),
        _ => None,
    });
    let (since, longest) = open.min_by_key(|(since, _)| *since)?;
    if now.saturating_duration_since(since) < PAUSE {
        return None;
    }
    longest.ask_early(now);
    Some(longest)
}

impl Breaker {
    /// Half-open from now on, if it is open.
    fn ask_early(&self, now: Instant) {
        if let Phase::Open { until, time, terms, .. } = self.phase.get() {
            self.enter(Phase::HalfOpen(Probes::new(time, terms, Some(until), now)));
        }
    }
}
