//! When which place is read: pure decisions, with the time as an argument.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::{KeyPlace, Terms, WantedKeys};

/// The first pause after a failure. Each further one is twice as long, up to the
/// place's own time of refresh.
const FIRST_RETRY: Duration = Duration::from_secs(1);

/// The share of a pause that chance takes away, so that replicas do not come together.
const JITTER: f64 = 0.1;

/// The places and when they are due.
#[derive(Debug, Default)]
pub(super) struct Schedule(BTreeMap<KeyPlace, Entry>);

#[derive(Debug)]
struct Entry {
    terms: Terms,
    /// `None`: it is being read.
    due: Option<Instant>,
    failures: u32,
}

impl Schedule {
    /// From now on these are wanted. What is new is due at once.
    pub(super) fn follow(&mut self, wanted: WantedKeys, now: Instant) {
        self.0.retain(|place, _| wanted.contains_key(place));
        for (place, terms) in wanted {
            let entry = self.0.entry(place).or_insert(Entry { terms, due: Some(now), failures: 0 });
            if entry.terms != terms {
                entry.terms = terms;
                // A shorter time counts from now.
                entry.due = entry.due.map(|due| due.min(now + terms.refresh));
            }
        }
    }

    /// A place to be read now, the one that has waited longest.
    pub(super) fn due(&mut self, now: Instant) -> Option<(KeyPlace, Terms)> {
        let due = self.0.iter_mut().filter(|(_, entry)| entry.due.is_some_and(|due| due <= now));
        let (place, entry) = due.min_by_key(|(_, entry)| entry.due)?;
        entry.due = None;
        Some((place.clone(), entry.terms))
    }

    /// When the next one is due.
    pub(super) fn next(&self) -> Option<Instant> {
        self.0.values().filter_map(|entry| entry.due).min()
    }

    /// A place was read. `chance`: from 0 to 1.
    pub(super) fn read(&mut self, place: &KeyPlace, well: bool, chance: f64, now: Instant) {
        let Some(entry) = self.0.get_mut(place) else { return };
        let pause = if well {
            entry.failures = 0;
            entry.terms.refresh
        } else {
            let pause = FIRST_RETRY.saturating_mul(1 << entry.failures.min(16));
            entry.failures += 1;
            pause.min(entry.terms.refresh)
        };
        entry.due = Some(now + pause.mul_f64(1.0 - JITTER * chance.clamp(0.0, 1.0)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(refresh: u64) -> WantedKeys {
        let terms = Terms { refresh: Duration::from_secs(refresh), timeout: Duration::from_secs(5) };
        [(KeyPlace::Url("https://a/".into()), terms)].into()
    }

    #[test]
    fn a_place_is_read_at_once_and_then_by_its_own_time() {
        let (mut schedule, now) = (Schedule::default(), Instant::now());
        schedule.follow(wanted(60), now);
        let (place, _) = schedule.due(now).unwrap();
        assert!(schedule.due(now).is_none() && schedule.next().is_none(), "it is being read");
        schedule.read(&place, true, 0.0, now);
        assert_eq!(schedule.next(), Some(now + Duration::from_secs(60)));
        schedule.follow(wanted(60), now);
        assert!(schedule.due(now + Duration::from_secs(59)).is_none());
        schedule.follow(wanted(10), now);
        assert_eq!(schedule.next(), Some(now + Duration::from_secs(10)), "a shorter time counts from now");
        schedule.follow(WantedKeys::new(), now);
        assert_eq!(schedule.next(), None);
    }

    /// Places whose names came first, always due again, kept those behind them waiting.
    #[test]
    fn who_has_waited_longest_is_read_first() {
        let (mut schedule, now) = (Schedule::default(), Instant::now());
        let [a, b] = ["https://a/", "https://b/"].map(|url| KeyPlace::Url(url.into()));
        let terms = Terms { refresh: Duration::from_secs(1), timeout: Duration::from_secs(5) };
        schedule.follow([(a.clone(), terms), (b.clone(), terms)].into(), now);
        assert_eq!(schedule.due(now).unwrap().0, a);
        schedule.read(&a, true, 0.0, now);
        assert_eq!(schedule.due(now + Duration::from_secs(2)).unwrap().0, b);
    }

    #[test]
    fn failures_are_tried_again_ever_more_slowly_but_not_more_than_that() {
        let (mut schedule, now) = (Schedule::default(), Instant::now());
        schedule.follow(wanted(5), now);
        let (place, _) = schedule.due(now).unwrap();
        for pause in [1, 2, 4, 5, 5] {
            schedule.read(&place, false, 0.0, now);
            assert_eq!(schedule.next(), Some(now + Duration::from_secs(pause)));
        }
        schedule.read(&place, true, 1.0, now);
        assert_eq!(schedule.next(), Some(now + Duration::from_millis(4500)), "with chance");
        schedule.read(&place, false, 0.0, now);
        assert_eq!(schedule.next(), Some(now + Duration::from_secs(1)), "it began anew");
    }
}
