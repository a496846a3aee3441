//! How soon something may be written again: pure bookkeeping.
//!
//! A write that fails is tried again ever later. One that succeeds and is
//! needed again and again is a quarrel with somebody else who writes there, or a
//! number that does not come to rest: after a few writes it has to wait, too,
//! so that neither costs the API server more than it is worth.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// The wait after the first failed write, and the longest.
pub(crate) const RETRY: Duration = Duration::from_millis(500);
pub(crate) const MAX_RETRY: Duration = Duration::from_secs(60);

/// Writes of the same thing that need not wait: an object that is made is told a few things in a row.
const FREE: u32 = 5;

/// The longest wait between writes that succeed: what is said is out of date for no longer.
const MAX_QUARREL: Duration = Duration::from_secs(10);

/// Without a write for so long all is forgotten.
const QUIET: Duration = Duration::from_secs(30);

/// The pace of each thing that is written.
#[derive(Debug)]
pub(crate) struct Pace<K> {
    known: BTreeMap<K, Known>,
}

#[derive(Debug)]
struct Known {
    failures: u32,
    writes: u32,
    last: Instant,
    again: Option<Instant>,
}

impl<K> Default for Pace<K> {
    fn default() -> Self {
        Self { known: BTreeMap::new() }
    }
}

impl<K: Ord + Clone> Pace<K> {
    /// A write failed; returns how often in a row.
    pub(crate) fn failed(&mut self, key: &K, now: Instant) -> u32 {
        let known = self.at(key, now);
        known.again = Some(now + doubled(RETRY, known.failures).min(MAX_RETRY));
        known.failures = known.failures.saturating_add(1);
        known.last = now;
        known.failures
    }

    /// A write succeeded.
    pub(crate) fn wrote(&mut self, key: &K, now: Instant) {
        let known = self.at(key, now);
        if now.saturating_duration_since(known.last) >= QUIET {
            known.writes = 0;
        }
        known.failures = 0;
        known.last = now;
        known.writes = known.writes.saturating_add(1);
        let above = known.writes.checked_sub(FREE);
        known.again = above.map(|above| now + doubled(RETRY, above).min(MAX_QUARREL));
    }

    /// Nothing has to be written any more, whoever did it.
    pub(crate) fn settled(&mut self, key: &K) {
        if let Some(known) = self.known.get_mut(key)
            && std::mem::take(&mut known.failures) > 0
        {
            known.again = None;
        }
    }

    /// It is another thing now.
    pub(crate) fn forget(&mut self, key: &K) {
        self.known.remove(key);
    }

    /// Keeps what is known of those, as far as it matters at `now`.
    pub(crate) fn retain(&mut self, now: Instant, keep: impl Fn(&K) -> bool) {
        let fresh = |known: &Known| known.failures > 0 || now.saturating_duration_since(known.last) < QUIET;
        self.known.retain(|key, known| fresh(known) && keep(key));
    }

    /// Until when it has to wait; `None`: it may be written at `now`.
    pub(crate) fn waits(&self, key: &K, now: Instant) -> Option<Instant> {
        self.known.get(key)?.again.filter(|again| *again > now)
    }

    fn at(&mut self, key: &K, now: Instant) -> &mut Known {
        let new = || Known { failures: 0, writes: 0, last: now, again: None };
        self.known.entry(key.clone()).or_insert_with(new)
    }
}

fn doubled(pause: Duration, times: u32) -> Duration {
    pause.saturating_mul(1 << times.min(10))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_write_that_fails_is_tried_again_ever_later() {
        let (mut pace, mut now) = (Pace::default(), Instant::now());
        let mut waits = Vec::new();
        for times in 1..12 {
            assert_eq!(pace.waits(&"a", now), None);
            assert_eq!(pace.failed(&"a", now), times);
            let again = pace.waits(&"a", now).unwrap();
            waits.push(again - now);
            now = again;
        }
        assert_eq!((waits[0], waits[10]), (RETRY, MAX_RETRY));
        pace.failed(&"a", now);
        pace.settled(&"a");
        assert_eq!(pace.waits(&"a", now), None);
        assert_eq!(pace.failed(&"a", now), 1);
    }

    #[test]
    fn a_quarrel_costs_a_few_writes_and_then_one_in_ten_seconds() {
        let (mut pace, start) = (Pace::default(), Instant::now());
        let (mut now, mut writes) = (start, 0);
        while now - start < Duration::from_secs(120) {
            pace.wrote(&"a", now);
            writes += 1;
            pace.settled(&"a");
            now = pace.waits(&"a", now).unwrap_or(now);
        }
        assert!((10..25).contains(&writes), "{writes}");
        assert_eq!(pace.waits(&"b", now), None, "others are not slowed down");
        pace.wrote(&"a", now + QUIET);
        assert_eq!(pace.waits(&"a", now + QUIET), None, "what came to rest is fast again");
    }

    #[test]
    fn only_what_matters_is_remembered() {
        let (mut pace, now) = (Pace::default(), Instant::now());
        for key in ["quiet", "failing", "gone"] {
            pace.wrote(&key, now);
        }
        pace.failed(&"failing", now);
        pace.failed(&"gone", now);
        pace.retain(now + QUIET, |key| *key != "gone");
        assert_eq!(pace.known.keys().collect::<Vec<_>>(), [&"failing"]);
    }
}
