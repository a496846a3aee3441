use http::request::Parts;
use proptest::prelude::*;

use super::*;

const SECOND: Duration = Duration::from_secs(1);

fn request(user: Option<&str>, personal: bool) -> Parts {
    let mut request = http::Request::get("http://users/a");
    if let Some(user) = user {
        request = request.header("x-user", user);
    }
    if personal {
        request = request.header("authorization", "Bearer x");
    }
    request.body(()).unwrap().into_parts().0
}

fn names(by_user: bool) -> Vec<HeaderName> {
    by_user.then(|| HeaderName::from_static("x-user")).into_iter().collect()
}

fn terms(by_user: bool, usable: u64, public: bool) -> Terms {
    Terms { age: SECOND, usable: Duration::from_secs(usable), public, vary: names(by_user).into() }
}

fn kept(size: usize) -> Kept {
    Kept { headers: HeaderMap::new(), body: vec![0; size].into() }
}

/// All that was kept, the least recently used first, looked through one by one.
#[derive(Default)]
struct Oracle {
    entries: Vec<Entry>,
    reserved: usize,
}

#[derive(Clone)]
struct Entry {
    target: u8,
    /// `None`: for everyone; else the value that selects it.
    user: Option<Option<&'static str>>,
    terms: Terms,
    received: Instant,
    nth: usize,
    cost: usize,
}

impl Oracle {
    fn cost(&self) -> usize {
        self.reserved + self.entries.iter().map(|entry| entry.cost).sum::<usize>()
    }

    fn make_room(&mut self, bytes: usize, max: usize) {
        while self.cost() + bytes > max && !self.entries.is_empty() {
            self.entries.remove(0);
        }
    }

    fn insert(&mut self, new: Entry, max: usize) {
        self.entries.retain(|entry| (entry.target, entry.user) != (new.target, new.user));
        if new.cost > max / 4 {
            return;
        }
        self.make_room(new.cost, max);
        self.entries.push(new);
    }

    fn find(
        &mut self,
        target: u8,
        user: Option<&str>,
        personal: bool,
        max_age: Duration,
        now: Instant,
    ) -> Option<Entry> {
        let fits = |entry: &&Entry| {
            entry.target == target
                && entry.user.is_none_or(|selecting| selecting == user)
                && (entry.terms.public || !personal)
                && now - entry.received < entry.terms.usable
                && now - entry.received < max_age
        };
        let found = self.entries.iter().filter(fits).max_by_key(|entry| (entry.received, entry.nth))?.clone();
        self.entries.retain(|entry| entry.nth != found.nth);
        self.entries.push(found.clone());
        Some(found)
    }
}

const USERS: [Option<&str>; 3] = [None, Some("ann"), Some("bob")];

#[derive(Debug, Clone)]
enum Event {
    Insert { target: u8, user: usize, by_user: bool, usable: u64, public: bool, size: usize },
    Find { target: u8, user: usize, personal: bool, max_age: u64 },
    Invalidate(u8),
    Reserve(usize),
    Release,
    Sweep,
    Wait(u64),
}

fn event() -> impl Strategy<Value = Event> {
    let insert = (0_u8..4, 0_usize..3, any::<bool>(), 1_u64..20, any::<bool>(), 0_usize..1200);
    prop_oneof![
        4 => insert.prop_map(|(target, user, by_user, usable, public, size)| Event::Insert {
            target, user, by_user, usable, public, size,
        }),
        4 => (0_u8..4, 0_usize..3, any::<bool>(), 1_u64..20).prop_map(|(target, user, personal, max_age)| {
            Event::Find { target, user, personal, max_age }
        }),
        1 => (0_u8..4).prop_map(Event::Invalidate),
        1 => (0_usize..1500).prop_map(Event::Reserve),
        1 => Just(Event::Release),
        1 => Just(Event::Sweep),
        1 => (0_u64..8).prop_map(Event::Wait),
    ]
}

proptest! {
    #[test]
    fn it_keeps_what_a_list_would_keep(events in prop::collection::vec(event(), 0..80)) {
        const MAX: usize = 6000;
        let (mut cache, mut oracle) = (Cache::default(), Oracle::default());
        let mut now = Instant::now();
        let mut held = Vec::new();
        for (nth, event) in events.into_iter().enumerate() {
            match event {
                Event::Insert { target, user, by_user, usable, public, size } => {
                    let selecting = Selecting::of(&names(by_user), &request(USERS[user], false));
                    let cost = VARIANT_COST + 1 + selecting.cost() + size;
                    // Its age tells which one it is.
                    let age = u32::try_from(nth).unwrap() * SECOND;
                    let terms = Terms { age, ..terms(by_user, usable, public) };
                    let user = by_user.then(|| USERS[user]);
                    oracle.insert(Entry { target, user, terms: terms.clone(), received: now, nth, cost }, MAX);
                    cache.insert(&[target], selecting, terms, kept(size), now, MAX);
                }
                Event::Find { target, user, personal, max_age } => {
                    let max_age = Duration::from_secs(max_age);
                    let found = cache.find(&[target], &request(USERS[user], personal), max_age, now);
                    let expected = oracle.find(target, USERS[user], personal, max_age, now);
                    let expected = expected.map(|entry| entry.terms.age + (now - entry.received));
                    prop_assert_eq!(found.map(|found| found.age), expected);
                }
                Event::Invalidate(target) => {
                    cache.invalidate(&[target], now);
                    oracle.entries.retain(|entry| entry.target != target);
                }
                Event::Reserve(bytes) => {
                    let fits = oracle.reserved + bytes <= MAX / 4;
                    prop_assert_eq!(cache.reserve(bytes, MAX), fits);
                    if fits {
                        oracle.reserved += bytes;
                        oracle.make_room(0, MAX);
                        held.push(bytes);
                    }
                }
                Event::Release => if let Some(bytes) = held.pop() {
                    cache.release(bytes);
                    oracle.reserved -= bytes;
                },
                Event::Sweep => {
                    cache.sweep(now);
                    oracle.entries.retain(|entry| now - entry.received < entry.terms.usable);
                }
                Event::Wait(seconds) => now += Duration::from_secs(seconds),
            }
            prop_assert!(cache.cost() <= MAX);
            prop_assert_eq!(cache.cost(), oracle.cost());
        }
    }
}

#[test]
fn a_target_has_a_bounded_number_of_variants() {
    let (mut cache, now) = (Cache::default(), Instant::now());
    let insert = |cache: &mut Cache, user: usize| {
        let selecting = Selecting::of(&names(true), &request(Some(&user.to_string()), false));
        cache.insert(b"/", selecting, terms(true, 60, false), kept(user), now, 1 << 20);
    };
    let find = |cache: &mut Cache, user: usize| {
        let asked = request(Some(&user.to_string()), false);
        cache.find(b"/", &asked, 60 * SECOND, now).map(|found| found.kept.body.len())
    };
    (0..MAX_VARIANTS).for_each(|user| insert(&mut cache, user));
    assert_eq!(find(&mut cache, 0), Some(0), "used again: the next to go is another");
    insert(&mut cache, MAX_VARIANTS);
    assert_eq!(find(&mut cache, 1), None);
    assert!((0..=MAX_VARIANTS).filter(|user| *user != 1).all(|user| find(&mut cache, user) == Some(user)));
}

#[test]
fn an_answer_is_as_old_as_it_was_when_it_came_and_as_it_has_become() {
    let (mut cache, now) = (Cache::default(), Instant::now());
    let asked = request(None, false);
    cache.insert(b"/", Selecting::of(&[], &asked), terms(false, 60, false), kept(3), now, 1 << 20);
    let found = cache.find(b"/", &asked, 60 * SECOND, now + 10 * SECOND).unwrap();
    assert_eq!(found.age, 11 * SECOND);
}

#[test]
fn values_on_several_lines_select_as_one_list() {
    let asked = |values: &[&str]| {
        let request = values.iter().fold(http::Request::get("/"), |r, value| r.header("x-user", *value));
        request.body(()).unwrap().into_parts().0
    };
    let selecting = Selecting::of(&names(true), &asked(&["a", "b"]));
    assert!(selecting.selects(&asked(&["a, b"])) && selecting.selects(&asked(&["a", " b "])));
    assert!(!selecting.selects(&asked(&["b", "a"])) && !selecting.selects(&asked(&[])));
    assert!(!Selecting::of(&names(true), &asked(&[])).selects(&asked(&[""])), "absent is not empty");
}

/// A slow response that was overtaken by a quicker one took its place when it came to its end.
#[test]
fn what_came_later_stays() {
    let (now, asked) = (Instant::now(), request(None, false));
    let mut cache = Cache::default();
    for (size, received) in [(1, now), (3, now + 2 * SECOND), (2, now + SECOND)] {
        let selecting = Selecting::of(&[], &asked);
        cache.insert(b"/", selecting, terms(false, 60, false), kept(size), received, 1 << 20);
    }
    let found = cache.find(b"/", &asked, 60 * SECOND, now + 2 * SECOND).unwrap();
    assert_eq!(found.kept.body.len(), 3);
}

#[test]
fn a_target_has_changed_for_whoever_asked_before() {
    let now = Instant::now();
    let mut cache = Cache::default();
    cache.invalidate(b"/a", now + SECOND);
    assert!(cache.has_changed(b"/a", now) && cache.has_changed(b"/a", now + SECOND));
    assert!(!cache.has_changed(b"/a", now + 2 * SECOND) && !cache.has_changed(b"/b", now));
    // Of too many changes it is no longer known what they changed.
    (0..RECENT_CHANGES).for_each(|n| cache.invalidate(&n.to_be_bytes(), now + 2 * SECOND));
    assert!(cache.has_changed(b"/b", now) && !cache.has_changed(b"/b", now + 2 * SECOND));
    assert_eq!(cache.changes.recent.len(), RECENT_CHANGES);
}
