//! When each name outside the mesh is asked for again, and which addresses it
//! has meanwhile: a pure state machine, with the time and chance handed in.
//!
//! The rules, for each name and family of addresses by itself:
//! - An answer is used for its TTL, at least [`LEAST`] and at most [`MOST`],
//!   and a random tenth of that more, so that sidecars do not ask in step.
//! - When nobody answers, the last addresses stay for as long as that lasts;
//!   it is asked again after [`LEAST`], twice that, and so on up to [`SETBACK`].
//! - When the name is denied, or has no address any more, the last ones stay for
//!   [`GONE`] after the first such answer: zones are replaced, caches are wrong.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use super::answer::{Answer, Family};
use crate::policy::rng::Rng;

/// How long any answer is used at least: a TTL of 0 must not become a flood.
pub(crate) const LEAST: Duration = Duration::from_secs(1);

/// How long an answer is used at most: TTLs of days are mistakes as often as not.
pub(crate) const MOST: Duration = Duration::from_secs(300);

/// The longest pause after answers without addresses.
pub(crate) const SETBACK: Duration = Duration::from_secs(30);

/// How long addresses are used after the name was first denied.
pub(crate) const GONE: Duration = Duration::from_secs(60);

/// Names that are followed at a time: more than a workload calls.
pub(crate) const LIMIT: usize = 1024;

/// Names to follow, each since a change of what is wanted: one that was given up
/// and is wanted again, in between two looks, is a new one.
pub(crate) type Wanted = HashMap<Box<str>, u64>;

/// The names that are followed.
#[derive(Debug, Default)]
pub(crate) struct Names {
    names: BTreeMap<Box<str>, Name>,
}

#[derive(Debug)]
struct Name {
    since: u64,
    /// By family.
    questions: [Question; 2],
    /// The addresses that were told last; `None` until every family was asked for once.
    told: Option<Vec<IpAddr>>,
}

#[derive(Debug)]
struct Question {
    /// When to ask; `None` while an answer is awaited.
    due: Option<Instant>,
    addresses: Vec<IpAddr>,
    answered: bool,
    /// Answers without addresses in a row.
    setbacks: u32,
    /// When the addresses end, since the name was denied.
    gone: Option<Instant>,
}

impl Names {
    /// Follows these names and no others. Those that there is no room for.
    pub(crate) fn follow(&mut self, wanted: &Wanted, now: Instant) -> Vec<Box<str>> {
        self.names.retain(|name, entry| wanted.get(name) == Some(&entry.since));
        let mut refused = Vec::new();
        for (name, since) in wanted {
            if self.names.contains_key(name) {
                continue;
            }
            if self.names.len() >= LIMIT {
                refused.push(name.clone());
                continue;
            }
            let question = || Question {
                due: Some(now),
                addresses: Vec::new(),
                answered: false,
                setbacks: 0,
                gone: None,
            };
            let entry = Name { since: *since, questions: [question(), question()], told: None };
            self.names.insert(name.clone(), entry);
        }
        refused
    }

    /// When there is something to ask.
    pub(crate) fn next(&self) -> Option<Instant> {
        self.names.values().flat_map(|name| &name.questions).filter_map(|question| question.due).min()
    }

    /// What to ask now, `room` questions at most.
    pub(crate) fn ask(&mut self, room: usize, now: Instant) -> Vec<(Box<str>, Family)> {
        let mut asked = Vec::new();
        for (name, entry) in &mut self.names {
            for (family, question) in Family::ALL.into_iter().zip(&mut entry.questions) {
                if asked.len() < room && question.due.is_some_and(|due| due <= now) {
                    question.due = None;
                    asked.push((name.clone(), family));
                }
            }
        }
        asked
    }

    /// Notes an answer. All addresses of the name, if they are news.
    pub(crate) fn answered(
        &mut self,
        name: &str,
        family: Family,
        answer: Answer,
        rng: &Rng,
        now: Instant,
    ) -> Option<Vec<IpAddr>> {
        let entry = self.names.get_mut(name)?;
        entry.questions[family as usize].answered(answer, rng, now);
        if !entry.questions.iter().all(|question| question.answered) {
            return None;
        }
        let known: Vec<IpAddr> =
            entry.questions.iter().flat_map(|question| &question.addresses).copied().collect();
        if entry.told.as_ref() == Some(&known) {
            return None;
        }
        entry.told = Some(known.clone());
        Some(known)
    }
}

impl Question {
    fn answered(&mut self, answer: Answer, rng: &Rng, now: Instant) {
        self.answered = true;
        let pause = match answer {
            Answer::Addresses(addresses, ttl) => {
                (self.addresses, self.setbacks, self.gone) = (addresses, 0, None);
                ttl.clamp(LEAST, MOST)
            }
            Answer::Nothing => {
                let gone = *self.gone.get_or_insert(now + GONE);
                if now >= gone {
                    self.addresses.clear();
                }
                self.setback()
            }
            Answer::Failed => self.setback(),
        };
        self.due = Some(now + pause.mul_f64(1.0 + rng.unit() / 10.0));
    }

    /// The pause after one more answer without addresses.
    fn setback(&mut self) -> Duration {
        let pause = LEAST.saturating_mul(1 << self.setbacks.min(16)).min(SETBACK);
        self.setbacks = self.setbacks.saturating_add(1);
        pause
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::policy::rng::Rng;

    const NAME: &str = "a.example";

    fn names(wanted: &[&str], now: Instant) -> Names {
        let mut names = Names::default();
        assert!(names.follow(&set(wanted), now).is_empty());
        names
    }

    fn set(names: &[&str]) -> Wanted {
        names.iter().map(|name| ((*name).into(), 1)).collect()
    }

    fn at(last: u8) -> IpAddr {
        [192, 0, 2, last].into()
    }

    fn one(last: u8, seconds: u64) -> Answer {
        Answer::Addresses(vec![at(last)], Duration::from_secs(seconds))
    }

    #[test]
    fn a_name_is_told_when_both_families_are_known_and_then_only_news() {
        let (now, rng) = (Instant::now(), Rng::new(1));
        let mut names = names(&[NAME], now);
        assert_eq!(names.next(), Some(now));
        assert_eq!(names.ask(1, now), [(NAME.into(), Family::V4)]);
        assert_eq!(names.ask(9, now), [(NAME.into(), Family::V6)]);
        assert_eq!(names.next(), None);
        assert_eq!(names.answered(NAME, Family::V4, one(1, 9), &rng, now), None);
        assert_eq!(names.answered(NAME, Family::V6, Answer::Failed, &rng, now), Some(vec![at(1)]));
        assert_eq!(names.answered(NAME, Family::V4, one(1, 9), &rng, now), None);
        assert_eq!(names.answered(NAME, Family::V4, one(2, 9), &rng, now), Some(vec![at(2)]));
    }

    #[test]
    fn a_name_that_was_never_known_is_told_as_nowhere() {
        let (now, rng) = (Instant::now(), Rng::new(1));
        let mut names = names(&[NAME], now);
        names.answered(NAME, Family::V4, Answer::Failed, &rng, now);
        assert_eq!(names.answered(NAME, Family::V6, Answer::Nothing, &rng, now), Some(Vec::new()));
    }

    #[test]
    fn names_nobody_wants_are_forgotten_and_there_is_a_limit() {
        let (now, rng) = (Instant::now(), Rng::new(1));
        let mut names = names(&[NAME], now);
        assert!(names.follow(&set(&["b.example"]), now).is_empty());
        assert_eq!(names.answered(NAME, Family::V4, one(1, 9), &rng, now), None);
        assert_eq!(names.ask(9, now).len(), 2);
        let many: Vec<String> = (0..=LIMIT).map(|i| format!("{i}.example")).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        assert_eq!(names.follow(&set(&many), now).len(), 1);
    }

    #[test]
    fn a_name_that_is_wanted_anew_is_told_anew() {
        let (now, rng) = (Instant::now(), Rng::new(1));
        let mut names = names(&[NAME], now);
        let told = |names: &mut Names| {
            names.answered(NAME, Family::V6, Answer::Nothing, &rng, now);
            names.answered(NAME, Family::V4, one(1, 9), &rng, now)
        };
        assert_eq!(told(&mut names), Some(vec![at(1)]));
        names.follow(&set(&[NAME]), now);
        assert_eq!(told(&mut names), None);
        names.follow(&[(NAME.into(), 2)].into(), now);
        assert_eq!(told(&mut names), Some(vec![at(1)]));
    }

    proptest! {
        /// Held against the rules as they are written above, computed from the whole history.
        #[test]
        fn addresses_and_pauses_are_those_of_the_rules(
            answers in proptest::collection::vec((0_u8..4, 0_u64..700, 0_u64..90), 1..60),
            seed in any::<u64>(),
        ) {
            let (start, rng) = (Instant::now(), Rng::new(seed));
            let mut names = names(&[NAME], start);
            names.answered(NAME, Family::V6, Answer::Nothing, &rng, start);
            let (mut now, mut history, mut told) = (start, Vec::new(), None);
            for (kind, ttl, late) in answers {
                let answer = match kind {
                    0 => Answer::Failed,
                    1 => Answer::Nothing,
                    last => one(last, ttl),
                };
                history.push((now, answer.clone()));
                if let Some(news) = names.answered(NAME, Family::V4, answer, &rng, now) {
                    prop_assert_ne!(Some(&news), told.as_ref());
                    told = Some(news);
                }
                prop_assert_eq!(told.clone().unwrap(), expected(&history));

                let due = names.names[NAME].questions[0].due.unwrap();
                let least = pause(&history);
                prop_assert!(due >= now + least && due <= now + least.mul_f64(1.1001), "{:?}", due - now);
                now = due + Duration::from_secs(late);
                prop_assert!(names.ask(9, now).contains(&(NAME.into(), Family::V4)));
            }
        }
    }

    fn expected(history: &[(Instant, Answer)]) -> Vec<IpAddr> {
        let known = history.iter().rposition(|(_, answer)| matches!(answer, Answer::Addresses(..)));
        let Some(known) = known else { return Vec::new() };
        let Answer::Addresses(addresses, _) = &history[known].1 else { unreachable!("it was found as one") };
        let mut denials = history[known..].iter().filter(|(_, answer)| *answer == Answer::Nothing);
        let Some((first, _)) = denials.next() else { return addresses.clone() };
        let gone = denials.any(|(time, _)| *time >= *first + GONE);
        if gone { Vec::new() } else { addresses.clone() }
    }

    fn pause(history: &[(Instant, Answer)]) -> Duration {
        if let Some((_, Answer::Addresses(_, ttl))) = history.last() {
            return (*ttl).max(Duration::from_secs(1)).min(Duration::from_secs(300));
        }
        let setbacks =
            history.iter().rev().take_while(|(_, answer)| !matches!(answer, Answer::Addresses(..)));
        Duration::from_secs(*[1, 2, 4, 8, 16, 30].get(setbacks.count() - 1).unwrap_or(&30))
    }
}
