//! Which objects' statuses have to be looked at: pure bookkeeping of what the
//! watches said, what was written, and what failed.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use super::desired::Present;
use crate::source::ObjectName;

/// An object by its kind and name.
pub(super) type Key = (&'static str, ObjectName);

/// The wait after the first failed write, and the longest.
const RETRY: Duration = Duration::from_millis(500);
const MAX_RETRY: Duration = Duration::from_secs(60);

/// The objects that are there.
#[derive(Default)]
pub(super) struct Board {
    present: BTreeMap<Key, Present>,
    /// Those that a list under way has named.
    arriving: BTreeMap<&'static str, BTreeSet<ObjectName>>,
    /// Those whose status may be wrong.
    due: BTreeSet<Key>,
    failed: BTreeMap<Key, (u32, Instant)>,
}

impl Board {
    /// A list of a kind begins.
    pub(super) fn begin(&mut self, kind: &'static str) {
        self.arriving.insert(kind, BTreeSet::new());
    }

    /// An object is there, as such.
    pub(super) fn put(&mut self, key: Key, present: Present) {
        if let Some(arriving) = self.arriving.get_mut(key.0) {
            arriving.insert(key.1.clone());
        }
        if self.present.get(&key) != Some(&present) {
            self.due.insert(key.clone());
            self.present.insert(key, present);
        }
    }

    /// A list of a kind has ended; what it did not name is gone.
    pub(super) fn complete(&mut self, kind: &'static str) {
        let Some(named) = self.arriving.remove(kind) else { return };
        self.present.retain(|key, _| key.0 != kind || named.contains(&key.1));
    }

    pub(super) fn remove(&mut self, key: &Key) {
        self.present.remove(key);
        self.failed.remove(key);
    }

    pub(super) fn get(&self, key: &Key) -> Option<&Present> {
        self.present.get(key)
    }

    /// Something else is to be said about an object.
    pub(super) fn touch(&mut self, key: Key) {
        self.due.insert(key);
    }

    /// Up to `limit` objects to look at now; each is named once.
    pub(super) fn take(&mut self, now: Instant, limit: usize) -> Vec<Key> {
        self.failed.retain(|key, _| self.present.contains_key(key));
        let again = self.failed.iter().filter(|(_, (_, again))| *again <= now).map(|(key, _)| key.clone());
        self.due.extend(again);
        let waits = |key: &Key| self.failed.get(key).is_some_and(|(_, again)| *again > now);
        let ready: Vec<Key> = self.due.iter().filter(|key| !waits(key)).take(limit).cloned().collect();
        for key in &ready {
            self.due.remove(key);
        }
        ready
    }

    /// Whether [`Self::take`] would name more at once.
    pub(super) fn has_more(&self, now: Instant) -> bool {
        self.due.iter().any(|key| self.failed.get(key).is_none_or(|(_, again)| *again <= now))
    }

    /// When a write that failed is to be tried again.
    pub(super) fn next_try(&self) -> Option<Instant> {
        self.failed.values().map(|(_, again)| *again).min()
    }

    /// Nothing has to be written, or it was.
    pub(super) fn settled(&mut self, key: &Key) {
        self.failed.remove(key);
    }

    /// A write failed; returns how often in a row.
    pub(super) fn failed(&mut self, key: Key, now: Instant) -> u32 {
        let (times, again) = self.failed.entry(key).or_insert((0, now));
        *again = now + RETRY.saturating_mul(1 << (*times).min(10)).min(MAX_RETRY);
        *times += 1;
        *times
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn key(name: &str) -> Key {
        ("TrafficPolicy", ObjectName { namespace: "shop".into(), name: name.into() })
    }

    fn present(version: &str) -> Present {
        Present { generation: 1, version: version.into(), status: json!({}), parent_refs: Vec::new() }
    }

    #[test]
    fn only_what_changed_is_looked_at() {
        let (mut board, now) = (Board::default(), Instant::now());
        board.begin("TrafficPolicy");
        board.put(key("a"), present("1"));
        board.put(key("b"), present("1"));
        board.complete("TrafficPolicy");
        assert_eq!(board.take(now, 1), [key("a")]);
        assert!(board.has_more(now));
        assert_eq!(board.take(now, 9), [key("b")]);
        board.put(key("a"), present("1"));
        assert!(board.take(now, 9).is_empty());
        board.put(key("a"), present("2"));
        board.touch(key("b"));
        assert_eq!(board.take(now, 9), [key("a"), key("b")]);
    }

    #[test]
    fn a_new_list_forgets_what_it_does_not_name() {
        let mut board = Board::default();
        for name in ["a", "b"] {
            board.put(key(name), present("1"));
        }
        board.begin("TrafficPolicy");
        board.put(key("b"), present("1"));
        assert!(board.get(&key("a")).is_some(), "until it is complete the old one counts");
        board.complete("TrafficPolicy");
        assert!(board.get(&key("a")).is_none() && board.get(&key("b")).is_some());
    }

    #[test]
    fn a_write_that_fails_is_tried_again_ever_later() {
        let (mut board, mut now) = (Board::default(), Instant::now());
        board.put(key("a"), present("1"));
        assert_eq!(board.take(now, 9), [key("a")]);
        let mut waits = Vec::new();
        for times in 1..12 {
            assert_eq!(board.failed(key("a"), now), times);
            board.touch(key("a"));
            assert!(board.take(now, 9).is_empty() && !board.has_more(now));
            let again = board.next_try().unwrap();
            waits.push(again - now);
            now = again;
            assert_eq!(board.take(now, 9), [key("a")]);
        }
        assert_eq!((waits[0], waits[10]), (RETRY, MAX_RETRY));
        board.settled(&key("a"));
        assert_eq!(board.next_try(), None);
    }
}
