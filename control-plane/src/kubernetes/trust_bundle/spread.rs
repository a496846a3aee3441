//! Where the trust bundle has to be written: pure, from what the watches said.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// The wait after the first failed write to a namespace, and the longest.
const RETRY: Duration = Duration::from_millis(500);
const MAX_RETRY: Duration = Duration::from_secs(60);

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
    failed: BTreeMap<String, Failure>,
}

struct Failure {
    times: u32,
    again: Instant,
}

/// Objects as a watch tells of them; not to be acted on before it has listed them all once.
pub(super) struct Listing<T> {
    known: BTreeMap<String, T>,
    arriving: Option<BTreeMap<String, T>>,
    complete: bool,
}

impl<T> Default for Listing<T> {
    fn default() -> Self {
        Self { known: BTreeMap::new(), arriving: None, complete: false }
    }
}

impl<T> Listing<T> {
    pub(super) fn begin(&mut self) {
        self.arriving = Some(BTreeMap::new());
    }

    pub(super) fn listed(&mut self, name: String, value: T) {
        self.arriving.get_or_insert_default().insert(name, value);
    }

    pub(super) fn complete(&mut self) {
        self.known = self.arriving.take().unwrap_or_default();
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
        Self { text, wanted, namespaces, maps, failed: BTreeMap::new() }
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

    /// The namespaces to write to now.
    pub(super) fn due(&mut self, now: Instant) -> Vec<String> {
        if !self.namespaces.complete || !self.maps.complete {
            return Vec::new();
        }
        self.failed.retain(|namespace, _| self.namespaces.known.contains_key(namespace));
        let wrong =
            self.namespaces.known.keys().filter(|name| self.maps.known.get(*name) != Some(&self.wanted));
        wrong
            .filter(|name| self.failed.get(*name).is_none_or(|failure| failure.again <= now))
            .cloned()
            .collect()
    }

    /// When a write that failed is to be tried again.
    pub(super) fn next_try(&self) -> Option<Instant> {
        self.failed.values().map(|failure| failure.again).min()
    }

    pub(super) fn wrote(&mut self, namespace: &str) {
        self.failed.remove(namespace);
        self.maps.put(namespace.to_owned(), self.wanted);
    }

    /// A write failed; returns how often in a row.
    pub(super) fn failed(&mut self, namespace: &str, now: Instant) -> u32 {
        let failure = self.failed.entry(namespace.to_owned()).or_insert(Failure { times: 0, again: now });
        let pause = RETRY.saturating_mul(1 << failure.times.min(10)).min(MAX_RETRY);
        failure.times += 1;
        failure.again = now + pause;
        failure.times
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listed(namespaces: &[&str], maps: &[(&str, &str)]) -> Spread {
        let mut spread = Spread::new("roots".into());
        spread.namespaces.begin();
        for name in namespaces {
            spread.namespaces.listed((*name).into(), ());
        }
        spread.maps.begin();
        for (name, text) in maps {
            spread.maps.listed((*name).into(), mark(Some(text)));
        }
        assert_eq!(spread.due(Instant::now()), Vec::<String>::new(), "nothing is known yet");
        spread.namespaces.complete();
        spread.maps.complete();
        spread
    }

    #[test]
    fn only_what_is_missing_or_different_is_written() {
        let now = Instant::now();
        let mut spread = listed(&["a", "b", "c"], &[("a", "roots"), ("b", "others"), ("gone", "roots")]);
        assert_eq!(spread.due(now), ["b", "c"]);
        spread.wrote("b");
        spread.wrote("c");
        assert!(spread.due(now).is_empty());
        spread.maps.put("a".into(), mark(Some("edited")));
        spread.maps.remove("b");
        spread.namespaces.remove("c");
        spread.maps.remove("c");
        assert_eq!(spread.due(now), ["a", "b"]);
    }

    #[test]
    fn other_roots_go_everywhere() {
        let now = Instant::now();
        let mut spread = listed(&["a", "b"], &[("a", "roots"), ("b", "roots")]);
        assert!(spread.due(now).is_empty());
        spread.set("roots".into());
        assert!(spread.due(now).is_empty());
        spread.set("more roots".into());
        assert_eq!(spread.due(now), ["a", "b"]);
    }

    #[test]
    fn a_write_that_fails_is_tried_again_ever_later() {
        let mut now = Instant::now();
        let mut spread = listed(&["a"], &[]);
        let mut waits = Vec::new();
        for times in 1..12 {
            assert_eq!(spread.due(now), ["a"]);
            assert_eq!(spread.failed("a", now), times);
            assert!(spread.due(now).is_empty());
            let again = spread.next_try().unwrap();
            waits.push(again - now);
            now = again;
        }
        assert_eq!((waits[0], waits[10]), (RETRY, MAX_RETRY));
        spread.namespaces.remove("a");
        assert!(spread.due(now).is_empty());
        assert_eq!(spread.next_try(), None, "a namespace that went is forgotten");
    }

    #[test]
    fn a_new_list_replaces_the_one_before() {
        let mut spread = listed(&["a", "b"], &[("a", "roots"), ("b", "roots")]);
        spread.maps.begin();
        spread.maps.listed("a".into(), mark(Some("roots")));
        assert!(spread.due(Instant::now()).is_empty(), "until it is complete the old one counts");
        spread.maps.complete();
        assert_eq!(spread.due(Instant::now()), ["b"]);
    }
}
