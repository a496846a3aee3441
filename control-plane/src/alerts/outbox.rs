//! Notices on their way: in order for each rule and service, tried again with
//! growing delays, bounded. Pure: clock and chance come in.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use super::board::{Key, Notice};

/// The first delay; each is twice the one before, up to [`LONGEST`].
const BASE: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(300);

/// What nobody took for so long nobody is waiting for.
const GIVE_UP: Duration = Duration::from_secs(3600);

/// Rules and services that may have something on its way: far more than people read.
const MAX_WAITING: usize = 1024;

/// What became of one try.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    Taken,
    /// It may be taken later.
    Refused,
    /// It never will be.
    Final,
    /// There is no key to sign it with.
    Unsigned,
}

#[derive(Default)]
pub(super) struct Outbox(BTreeMap<Key, Queue>);

struct Queue {
    /// The first one is being tried; at most one more waits behind it.
    notices: VecDeque<Notice>,
    /// When it was tried first, with a key to sign it.
    begun: Instant,
    next: Instant,
    /// It waits for a key, however long that takes.
    unsigned: bool,
    tries: u32,
    in_flight: bool,
}

impl Outbox {
    /// Adds a notice; `false`: there was no room, and it or one that waits for a key was dropped.
    pub(super) fn push(&mut self, notice: Notice, now: Instant) -> bool {
        if let Some(queue) = self.0.get_mut(&notice.key) {
            // What waits behind the first one was overtaken.
            queue.notices.truncate(1);
            if queue.notices.front().is_none_or(|first| first.status != notice.status) {
                queue.notices.push_back(notice);
            }
            return true;
        }
        let is_full = self.0.len() >= MAX_WAITING;
        if is_full {
            // Those without a key may wait for ever: they take nobody's room.
            let waits = self.0.iter().find(|(_, queue)| queue.unsigned).map(|(key, _)| key.clone());
            let Some(waits) = waits else { return false };
            self.0.remove(&waits);
        }
        let key = notice.key.clone();
        let notices = VecDeque::from([notice]);
        let queue = Queue { notices, begun: now, next: now, unsigned: false, tries: 0, in_flight: false };
        self.0.insert(key, queue);
        !is_full
    }

    /// Whether something of a rule and a service is on its way.
    pub(super) fn has(&self, key: &Key) -> bool {
        self.0.contains_key(key)
    }

    /// Forgets everything; what is being tried comes to nothing here.
    pub(super) fn clear(&mut self) {
        self.0.clear();
    }

    /// Makes due what waited for a key that is there now, or need not wait any more.
    pub(super) fn keys(&mut self, now: Instant, is_there: impl Fn(&Key) -> bool) {
        for (key, queue) in self.0.iter_mut().filter(|(_, queue)| queue.unsigned) {
            if is_there(key) {
                (queue.begun, queue.next, queue.unsigned) = (now, now, false);
            }
        }
    }

    /// What to try now. Each has to be [`Self::done`] before its successor comes.
    pub(super) fn due(&mut self, now: Instant) -> Vec<Notice> {
        let due = self.0.values_mut().filter(|queue| queue.is_tried() && queue.next <= now);
        let due = due.filter_map(|queue| {
            queue.in_flight = true;
            queue.notices.front().cloned()
        });
        due.collect()
    }

    /// When something is due again.
    pub(super) fn next(&self) -> Option<Instant> {
        self.0.values().filter(|queue| queue.is_tried()).map(|queue| queue.next).min()
    }

    /// Notes how a try ended. `chance`: 0 to 1. Returns whether the notice was given up.
    pub(super) fn done(&mut self, key: &Key, fate: Fate, now: Instant, chance: f64) -> bool {
        let Some(queue) = self.0.get_mut(key) else { return false };
        queue.in_flight = false;
        let given_up = match fate {
            Fate::Taken => false,
            Fate::Final => true,
            Fate::Unsigned => {
                (queue.unsigned, queue.tries) = (true, 0);
                return false;
            }
            Fate::Refused => now.saturating_duration_since(queue.begun) >= GIVE_UP,
        };
        if fate == Fate::Refused && !given_up {
            let delay = BASE.saturating_mul(1_u32.checked_shl(queue.tries).unwrap_or(u32::MAX)).min(LONGEST);
            queue.tries += 1;
            // Between the whole delay and three quarters of it.
            queue.next = now + delay.mul_f64(1.0 - chance / 4.0);
            return false;
        }
        queue.notices.pop_front();
        (queue.begun, queue.next, queue.tries) = (now, now, 0);
        if queue.notices.is_empty() {
            self.0.remove(key);
        }
        given_up
    }
}

impl Queue {
    /// Whether a time will come at which it is tried.
    fn is_tried(&self) -> bool {
        !self.in_flight && !self.unsigned
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use proptest::prelude::*;

    use super::super::board::Status;
    use super::super::board::tests::rules;
    use super::*;

    fn notice(service: &str, status: Status) -> Notice {
        let (rule, value) = rules().into_iter().next().unwrap();
        Notice {
            key: Key { rule, service: service.parse().unwrap() },
            rule: value,
            status,
            value: 1.0,
            requests: 1,
            instances: 1,
            since: SystemTime::UNIX_EPOCH,
            at: SystemTime::UNIX_EPOCH,
            told: 0,
        }
    }

    #[test]
    fn a_refused_notice_is_tried_again_ever_later_and_given_up_in_the_end() {
        let (mut outbox, start) = (Outbox::default(), Instant::now());
        let one = notice("shop/users", Status::Firing);
        assert!(outbox.push(one.clone(), start));
        let mut gaps = Vec::new();
        let mut now = start;
        loop {
            assert_eq!(outbox.due(now).len(), 1);
            assert!(outbox.due(now).is_empty(), "one at a time");
            if outbox.done(&one.key, Fate::Refused, now, 0.0) {
                break;
            }
            let next = outbox.next().unwrap();
            gaps.push((next - now).as_secs());
            now = next;
        }
        assert_eq!(gaps[..11], [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300]);
        assert!(now - start >= GIVE_UP && outbox.next().is_none());
    }

    #[test]
    fn a_notice_waits_for_its_key_and_has_its_whole_time_from_then_on() {
        let (mut outbox, start) = (Outbox::default(), Instant::now());
        let one = notice("shop/users", Status::Firing);
        outbox.push(one.clone(), start);
        assert_eq!(outbox.due(start).len(), 1);
        assert!(!outbox.done(&one.key, Fate::Unsigned, start, 0.0));
        let later = start + GIVE_UP * 2;
        outbox.keys(later, |_| false);
        assert!(outbox.due(later).is_empty() && outbox.next().is_none());
        outbox.keys(later, |_| true);
        assert_eq!(outbox.due(later).len(), 1);
        assert!(!outbox.done(&one.key, Fate::Refused, later, 0.0));
        assert_eq!(outbox.next(), Some(later + BASE));
    }

    #[test]
    fn notices_without_a_key_make_room_for_others() {
        let (mut outbox, now) = (Outbox::default(), Instant::now());
        for n in 0..MAX_WAITING {
            assert!(outbox.push(notice(&format!("shop/s{n}"), Status::Firing), now));
        }
        for notice in outbox.due(now) {
            outbox.done(&notice.key, Fate::Unsigned, now, 0.0);
        }
        assert!(!outbox.push(notice("shop/users", Status::Firing), now), "one was dropped");
        assert_eq!(outbox.due(now).len(), 1);
    }

    #[test]
    fn what_was_overtaken_is_not_told() {
        let (mut outbox, now) = (Outbox::default(), Instant::now());
        let status = |status| notice("shop/users", status);
        let firing = status(Status::Firing);
        outbox.push(firing.clone(), now);
        for next in [Status::Resolved, Status::Firing, Status::Resolved] {
            outbox.push(status(next), now);
        }
        assert_eq!(outbox.due(now)[0].status, Status::Firing);
        assert!(!outbox.done(&firing.key, Fate::Taken, now, 0.0));
        assert_eq!(outbox.due(now)[0].status, Status::Resolved);
        assert!(!outbox.done(&firing.key, Fate::Taken, now, 0.0));
        assert!(outbox.due(now).is_empty() && outbox.next().is_none());
        // Resolved and firing again before anybody heard of it: it fires.
        for next in [Status::Firing, Status::Resolved, Status::Firing] {
            outbox.push(status(next), now);
        }
        assert_eq!(outbox.due(now)[0].status, Status::Firing);
        assert!(outbox.done(&firing.key, Fate::Final, now, 0.0));
        assert!(outbox.due(now).is_empty());
    }

    #[test]
    fn there_is_a_bound() {
        let (mut outbox, now) = (Outbox::default(), Instant::now());
        let fits = (0..2000).filter(|n| outbox.push(notice(&format!("shop/s{n}"), Status::Firing), now));
        assert_eq!(fits.count(), MAX_WAITING);
    }

    proptest! {
        /// Whatever happens on the way, statuses alternate, and the last one arrives.
        #[test]
        fn people_hear_of_changes_in_order(steps in prop::collection::vec((any::<bool>(), any::<bool>()), 1..40)) {
            let (mut outbox, mut now) = (Outbox::default(), Instant::now());
            let (mut state, mut heard) = (Status::Resolved, Vec::new());
            let mut turn = |outbox: &mut Outbox, now: Instant, works: bool| {
                for notice in outbox.due(now) {
                    let fate = if works { Fate::Taken } else { Fate::Refused };
                    outbox.done(&notice.key, fate, now, 0.5);
                    if works {
                        heard.push(notice.status);
                    }
                }
            };
            for (changes, works) in steps {
                if changes {
                    state = if state == Status::Firing { Status::Resolved } else { Status::Firing };
                    outbox.push(notice("shop/users", state), now);
                }
                turn(&mut outbox, now, works);
                now += Duration::from_secs(10);
            }
            for _ in 0..3 {
                now += LONGEST;
                turn(&mut outbox, now, true);
            }
            prop_assert!(heard.windows(2).all(|pair| pair[0] != pair[1]), "{:?}", heard);
            prop_assert_eq!(heard.last().copied().unwrap_or(Status::Resolved), state);
        }
    }
}
