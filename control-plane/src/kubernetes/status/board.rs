//! Which objects' statuses have to be looked at: pure bookkeeping of what the
//! watches said, what was written, and what failed.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::time::Instant;

use super::super::pace::Pace;
use super::desired::Present;
use crate::source::ObjectName;

/// An object by its kind and name.
pub(crate) type Key = (&'static str, ObjectName);

/// The objects that are there.
#[derive(Default)]
pub(super) struct Board {
    present: BTreeMap<Key, Present>,
    /// Those whose status may be wrong.
    due: BTreeSet<Key>,
    pace: Pace<Key>,
    /// The last one that was looked at: the next comes after it, so that none waits for ever.
    last: Option<Key>,
}

impl Board {
    /// Of a kind these and no others are there.
    pub(super) fn list(&mut self, kind: &'static str, all: Vec<(ObjectName, Present)>) {
        let named: BTreeSet<ObjectName> = all.iter().map(|(name, _)| name.clone()).collect();
        self.present.retain(|key, _| key.0 != kind || named.contains(&key.1));
        for (name, present) in all {
            self.put((kind, name), present);
        }
    }

    /// An object is there, as such.
    pub(super) fn put(&mut self, key: Key, present: Present) {
        let known = self.present.get(&key);
        if known == Some(&present) {
            return;
        }
        if known.is_some_and(|known| known.generation != present.generation) {
            // Somebody has changed what it says, and looks for what becomes of it.
            self.pace.forget(&key);
        }
        self.due.insert(key.clone());
        self.present.insert(key, present);
    }

    pub(super) fn remove(&mut self, key: &Key) {
        self.present.remove(key);
        self.due.remove(key);
        self.pace.forget(key);
    }

    pub(super) fn get(&self, key: &Key) -> Option<&Present> {
        self.present.get(key)
    }

    /// Something else is to be said about an object.
    pub(super) fn touch(&mut self, key: Key) {
        self.due.insert(key);
    }

    /// Something else may have to be said about all objects.
    pub(super) fn touch_all(&mut self, which: impl Fn(&Key) -> bool) {
        self.due.extend(self.present.keys().filter(|key| which(key)).cloned());
    }

    /// Up to `limit` objects to look at now; each is named once.
    pub(super) fn take(&mut self, now: Instant, limit: usize) -> Vec<Key> {
        let Self { present, due, pace, last } = self;
        pace.retain(now, |key| present.contains_key(key));
        let after = last.as_ref().map_or(Bound::Unbounded, Bound::Excluded);
        let until = last.as_ref().map(|last| (Bound::Unbounded, Bound::Included(last)));
        let in_turn =
            due.range((after, Bound::Unbounded)).chain(until.into_iter().flat_map(|to| due.range(to)));
        let ready: Vec<Key> =
            in_turn.filter(|key| pace.waits(key, now).is_none()).take(limit).cloned().collect();
        for key in &ready {
            due.remove(key);
        }
        if let Some(newest) = ready.last() {
            *last = Some(newest.clone());
        }
        ready
    }

    /// Whether [`Self::take`] would name more at once.
    pub(super) fn has_more(&self, now: Instant) -> bool {
        self.due.iter().any(|key| self.pace.waits(key, now).is_none())
    }

    /// When an object that has to wait may be looked at.
    pub(super) fn next_try(&self, now: Instant) -> Option<Instant> {
        self.due.iter().filter_map(|key| self.pace.waits(key, now)).min()
    }

    /// Nothing has to be written.
    pub(super) fn settled(&mut self, key: &Key) {
        self.pace.settled(key);
    }

    /// A write succeeded.
    pub(super) fn wrote(&mut self, key: &Key, now: Instant) {
        self.pace.wrote(key, now);
    }

    /// A write failed; returns how often in a row.
    pub(super) fn failed(&mut self, key: Key, now: Instant) -> u32 {
        let times = self.pace.failed(&key, now);
        self.due.insert(key);
        times
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

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
        board.list("TrafficPolicy", ["a", "b"].map(|name| (key(name).1, present("1"))).into());
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
        board.put(("HTTPRoute", key("a").1), present("1"));
        board.list("TrafficPolicy", vec![(key("b").1, present("1"))]);
        assert!(board.get(&("HTTPRoute", key("a").1)).is_some(), "it is of another kind");
        assert!(board.get(&key("a")).is_none() && board.get(&key("b")).is_some());
    }

    #[test]
    fn a_write_that_fails_is_tried_again_later() {
        let (mut board, now) = (Board::default(), Instant::now());
        board.put(key("a"), present("1"));
        assert_eq!(board.take(now, 9), [key("a")]);
        assert_eq!(board.failed(key("a"), now), 1);
        board.touch(key("a"));
        assert!(board.take(now, 9).is_empty() && !board.has_more(now));
        let again = board.next_try(now).unwrap();
        assert_eq!(board.take(again, 9), [key("a")]);
        board.settled(&key("a"));
        assert_eq!(board.next_try(now), None);
        // One that failed and went is not waited for.
        board.failed(key("a"), now);
        board.remove(&key("a"));
        assert_eq!(board.next_try(now), None);
    }

    /// Objects whose turn comes late in the order were never told while earlier ones kept changing.
    #[test]
    fn none_waits_for_those_that_change_all_the_time() {
        let (mut board, now) = (Board::default(), Instant::now());
        let mut named = BTreeSet::new();
        for name in ["a", "b", "c", "d"] {
            board.put(key(name), present("1"));
        }
        for round in 0..4 {
            for name in ["a", "b"] {
                board.put(key(name), present(&format!("changed {round}")));
            }
            named.extend(board.take(now, 1));
        }
        assert_eq!(named.len(), 4, "{named:?}");
    }

    /// Another controller that puts its own word in place of ours was answered as fast as the network is.
    #[test]
    fn a_quarrel_about_a_status_is_no_loop() {
        let (mut board, mut now) = (Board::default(), Instant::now());
        let (start, mut writes) = (now, 0);
        board.put(key("a"), present("0"));
        while now - start < Duration::from_secs(60) {
            if board.take(now, 9).is_empty() {
                now = board.next_try(now).unwrap();
                continue;
            }
            writes += 1;
            board.wrote(&key("a"), now);
            board.put(key("a"), present(&format!("theirs {writes}")));
        }
        assert!(writes < 20, "{writes}");
        // What its owner changes is answered at once.
        board.put(key("a"), Present { generation: 2, ..present("edited") });
        assert_eq!(board.take(now, 9), [key("a")]);
    }
}
