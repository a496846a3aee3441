//! Where the trust bundle has to be written: pure, from what the watches said.

use std::collections::BTreeMap;
use std::time::Instant;

use super::super::pace::Pace;

/// A hash of what a ConfigMap says, `None` if it says nothing. The text itself would be kept once per namespace.
pub(super) type Mark = Option<[u8; 32]>;

/// What is where, and what should be.
pub(super) struct Spread {
    text: String,
    wanted: Mark,
    /// Those that take objects.
    pub(super) namespaces: Listing<()>,
    /// What the ConfigMap of each namespace says.
    pub(super) maps: Listing<Mark>,
    pace: Pace<String>,
}

/// What has to be done now, and when there is more.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Due {
    pub(super) namespaces: Vec<String>,
    /// The rest need not be looked at before; `None`: before something changes.
    pub(super) again: Option<Instant>,
}

/// Objects as a watch tells of them; not to be acted on before it has listed them all once.
pub(super) struct Listing<T> {
    known: BTreeMap<String, T>,
    complete: bool,
}

impl<T> Default for Listing<T> {
    fn default() -> Self {
        Self { known: BTreeMap::new(), complete: false }
    }
}

impl<T> Listing<T> {
    /// These and no others are there.
    pub(super) fn listed(&mut self, all: impl IntoIterator<Item = (String, T)>) {
        self.known = all.into_iter().collect();
        self.complete = true;
    }

    pub(super) fn put(&mut self, name: String, value: T) {
        self.known.insert(name, value);
    }

    pub(super) fn remove(&mut self, name: &str) {
        self.known.remove(name);
    }
}

/// The mark of a text.
pub(super) fn mark(text: Option<&str>) -> Mark {
    use aws_lc_rs::digest::{SHA256, digest};
    text.and_then(|text| digest(&SHA256, text.as_bytes()).as_ref().try_into().ok())
}

impl Spread {
    pub(super) fn new(text: String) -> Self {
        let wanted = mark(Some(&text));
        let (namespaces, maps) = (Listing::default(), Listing::default());
        Self { text, wanted, namespaces, maps, pace: Pace::default() }
    }

    pub(super) fn text(&self) -> &str {
        &self.text
    }

    /// Another text is to be everywhere.
    pub(super) fn set(&mut self, text: String) {
        if text != self.text {
            self.wanted = mark(Some(&text));
            self.text = text;
        }
    }

    /// Up to `limit` namespaces to write to now.
    pub(super) fn due(&mut self, now: Instant, limit: usize) -> Due {
        let mut due = Due::default();
        if !self.namespaces.complete || !self.maps.complete {
            return due;
        }
        self.pace.retain(now, |namespace| self.namespaces.known.contains_key(namespace));
        for namespace in self.namespaces.known.keys() {
            if self.maps.known.get(namespace) == Some(&self.wanted) {
                // It may be that a write of which nothing was heard has succeeded after all.
                self.pace.settled(namespace);
                continue;
            }
            let again = match self.pace.waits(namespace, now) {
                None if due.namespaces.len() < limit => {
                    due.namespaces.push(namespace.clone());
                    continue;
                }
                None => now,
                Some(again) => again,
            };
            due.again = Some(due.again.map_or(again, |earlier| earlier.min(again)));
        }
        due
    }

    pub(super) fn wrote(&mut self, namespace: &str, now: Instant) {
        self.pace.wrote(&namespace.to_owned(), now);
        self.maps.put(namespace.to_owned(), self.wanted);
    }

    /// A write failed; returns how often in a row.
    pub(super) fn failed(&mut self, namespace: &str, now: Instant) -> u32 {
        self.pace.failed(&namespace.to_owned(), now)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn listed(namespaces: &[&str], maps: &[(&str, &str)]) -> Spread {
        let mut spread = Spread::new("roots".into());
        spread.namespaces.listed(namespaces.iter().map(|name| ((*name).into(), ())));
        assert_eq!(spread.due(Instant::now(), 9), Due::default(), "it is not known yet what they hold");
        spread.maps.listed(maps.iter().map(|(name, text)| ((*name).into(), mark(Some(text)))));
        spread
    }

    fn due(spread: &mut Spread, now: Instant) -> Vec<String> {
        spread.due(now, 9).namespaces
    }

    #[test]
    fn only_what_is_missing_or_different_is_written() {
        let now = Instant::now();
        let mut spread = listed(&["a", "b", "c"], &[("a", "roots"), ("b", "others"), ("gone", "roots")]);
        assert_eq!(due(&mut spread, now), ["b", "c"]);
        spread.wrote("b", now);
        spread.wrote("c", now);
        assert_eq!(spread.due(now, 9), Due::default());
        spread.maps.put("a".into(), mark(Some("edited")));
        spread.maps.remove("b");
        spread.namespaces.remove("c");
        spread.maps.remove("c");
        assert_eq!(due(&mut spread, now), ["a", "b"]);
    }

    #[test]
    fn other_roots_go_everywhere() {
        let now = Instant::now();
        let mut spread = listed(&["a", "b"], &[("a", "roots"), ("b", "roots")]);
        spread.set("roots".into());
        assert!(due(&mut spread, now).is_empty());
        spread.set("more roots".into());
        assert_eq!(due(&mut spread, now), ["a", "b"]);
    }

    #[test]
    fn thousands_of_namespaces_are_written_to_in_parts() {
        let now = Instant::now();
        let names: Vec<String> = (0..5000).map(|n| format!("n{n:04}")).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let mut spread = listed(&names, &[]);
        let first = spread.due(now, 64);
        assert_eq!((first.namespaces.len(), first.again), (64, Some(now)));
        for namespace in &first.namespaces {
            spread.wrote(namespace, now);
        }
        // What else is to be said by then is said to the rest at once.
        spread.set("more roots".into());
        assert_eq!(spread.due(now, 64).namespaces, first.namespaces);
    }

    #[test]
    fn a_write_that_fails_is_tried_again_later() {
        let now = Instant::now();
        let mut spread = listed(&["a", "b"], &[("b", "roots")]);
        assert_eq!(due(&mut spread, now), ["a"]);
        assert_eq!(spread.failed("a", now), 1);
        let waiting = spread.due(now, 9);
        assert!(waiting.namespaces.is_empty());
        assert_eq!(due(&mut spread, waiting.again.unwrap()), ["a"]);
        spread.namespaces.remove("a");
        assert_eq!(spread.due(now, 9), Due::default(), "a namespace that went is forgotten");
    }

    /// A write timed out here and succeeded there, as the watch told afterwards. Its next try stayed
    /// due for ever, and the loop around it never slept again.
    #[test]
    fn what_is_right_is_not_waited_for() {
        let now = Instant::now();
        let mut spread = listed(&["a"], &[]);
        spread.failed("a", now);
        spread.maps.put("a".into(), mark(Some("roots")));
        assert_eq!(spread.due(now + Duration::from_secs(3600), 9), Due::default());
    }

    /// Somebody who puts the map back to what they like is answered ever more slowly.
    #[test]
    fn a_quarrel_about_a_map_is_no_loop() {
        let (mut spread, start) = (listed(&["a"], &[]), Instant::now());
        let (mut now, mut writes) = (start, 0);
        while now - start < Duration::from_secs(60) {
            let due = spread.due(now, 9);
            if due.namespaces.is_empty() {
                now = due.again.unwrap();
                continue;
            }
            spread.wrote("a", now);
            writes += 1;
            spread.maps.put("a".into(), mark(Some("theirs")));
        }
        assert!(writes < 20, "{writes}");
    }

    #[test]
    fn a_new_list_replaces_the_one_before() {
        let mut spread = listed(&["a", "b"], &[("a", "roots"), ("b", "roots")]);
        assert!(due(&mut spread, Instant::now()).is_empty());
        spread.maps.listed([("a".into(), mark(Some("roots")))]);
        assert_eq!(due(&mut spread, Instant::now()), ["b"]);
    }
}
