//! The buckets of one limit, shared by all workers.
//!
//! A table of fixed size: each key has eight places that it may lie in. What is
//! full needs no place, so buckets expire by themselves. Where eight that are
//! not full meet, the fullest gives way: its key starts anew with a full bucket,
//! so too many keys at once err on the clients' side, never against one that
//! asked for little.
//!
//! Workers share the table under locks, one for each of 64 parts, held for a
//! dozen instructions: some 20 ns per limit and request, and only where a limit
//! is about the request. Buckets per worker would cost nothing, but then a limit
//! would mean as many requests as there happen to be workers, and a client whose
//! connections went to one worker a part of them.

use std::hash::RandomState;
use std::time::Instant;

use parking_lot::Mutex;

use super::{Draw, Quota};

/// The buckets of a limit.
#[derive(Debug)]
pub struct Buckets {
    /// What times are counted from.
    started: Instant,
    secret: RandomState,
    parts: Box<[Mutex<Box<[Place]>>]>,
}

/// How the buckets of a limit stand, for people.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Levels {
    /// Those that are not full.
    pub used: usize,
    /// Those without a token.
    pub empty: usize,
    /// The tokens of the emptiest.
    pub least: u64,
}

/// A key's hash, 0 if the place was never used, and the time at which the bucket is full.
type Place = [u64; 2];

/// The places that a key may lie in. With 64 bits of hash two keys share a bucket by chance once in
/// 10^13 pairs of the table.
const WAYS: usize = 8;

/// Parts with a lock of their own: far more than workers.
const PARTS: usize = 64;

/// Places of a part, of 16 bytes: 65,536 buckets and a megabyte for each limit with a key, of which
/// the system provides what is used.
const PLACES: usize = 1024;

impl Buckets {
    /// Full buckets: one for each key, or a single one.
    pub fn new(keyed: bool, now: Instant) -> Self {
        let (parts, places) = if keyed { (PARTS, PLACES) } else { (1, WAYS) };
        let part = || Mutex::new(vec![Place::default(); places].into_boxed_slice());
        let parts = std::iter::repeat_with(part).take(parts).collect();
        Self { started: now, secret: RandomState::new(), parts }
    }

    /// What keys are hashed with.
    pub(super) fn secret(&self) -> &RandomState {
        &self.secret
    }

    /// Takes a token: what remains, and the time until the bucket is full.
    ///
    /// # Errors
    /// The time until there is a token. All times are in nanoseconds.
    pub(super) fn draw(&self, quota: &Quota, hash: u64, now: Instant) -> Result<(u64, u64), u64> {
        let now = self.nanos(now);
        self.with(hash, |hash, places| {
            let at = place_of(places, hash, now);
            let known = places[at][0] == hash;
            match quota.draw(if known { places[at][1] } else { 0 }, now) {
                Draw::Taken(full_at) => {
                    places[at] = [hash, full_at];
                    Ok((quota.remaining(full_at, now), full_at - now))
                }
                Draw::Empty(wait) => Err(wait),
            }
        })
    }

    /// Fits the buckets to a new quota: none is more than empty. What was taken by the old one
    /// counts by time, so of a bucket that grows more is left, and of one that shrinks less.
    pub fn fit(&self, quota: &Quota, now: Instant) {
        let empty = self.nanos(now).saturating_add(quota.capacity);
        for part in &self.parts {
            // Places that are not used are not written: their memory is not there yet.
            part.lock().iter_mut().filter(|place| place[1] > empty).for_each(|place| place[1] = empty);
        }
    }

    /// The time until there is a token, in nanoseconds; `None` if there is one.
    pub(super) fn wait(&self, quota: &Quota, hash: u64, now: Instant) -> Option<u64> {
        let now = self.nanos(now);
        self.with(hash, |hash, places| {
            let known = places.iter().find(|place| place[0] == hash)?;
            match quota.draw(known[1], now) {
                Draw::Taken(_) => None,
                Draw::Empty(wait) => Some(wait),
            }
        })
    }

    /// Gives a token back that was taken and is not used.
    pub(super) fn give_back(&self, quota: &Quota, hash: u64) {
        self.with(hash, |hash, places| {
            // If it gave way meanwhile, its next one is full anyway.
            if let Some(place) = places.iter_mut().find(|place| place[0] == hash) {
                place[1] = place[1].saturating_sub(quota.interval);
            }
        });
    }

    /// How all buckets stand, asked by people alone: it reads the whole table, a part at a time.
    pub(super) fn levels(&self, quota: &Quota, now: Instant) -> Levels {
        let now = self.nanos(now);
        let mut levels = Levels { used: 0, empty: 0, least: quota.burst() };
        for part in &self.parts {
            for [_, full_at] in part.lock().iter().filter(|[_, full_at]| *full_at > now) {
                let tokens = quota.remaining(*full_at, now);
                levels.used += 1;
                levels.empty += usize::from(tokens == 0);
                levels.least = levels.least.min(tokens);
            }
        }
        levels
    }

    /// Does something with the places that a key may lie in.
    fn with<T>(&self, hash: u64, act: impl FnOnce(u64, &mut [Place]) -> T) -> T {
        let (high, low) = (hash >> 32, hash & u64::from(u32::MAX));
        let part = index(high, self.parts.len());
        let mut places = self.parts[part].lock();
        let sets = places.len() / WAYS;
        let set = index(low, sets) * WAYS;
        // 0 stands for a place that was never used.
        act(hash.max(1), &mut places[set..set + WAYS])
    }

    fn nanos(&self, now: Instant) -> u64 {
        // Six hundred years are enough.
        u64::try_from(now.saturating_duration_since(self.started).as_nanos()).unwrap_or(u64::MAX)
    }
}

/// A number below `count`, from 32 bits of a hash.
fn index(bits: u64, count: usize) -> usize {
    ((bits * count as u64) >> 32) as usize
}

/// The place of a key, or else the one that it takes: of a bucket that is full, or the fullest.
fn place_of(places: &[Place], hash: u64, now: u64) -> usize {
    let known = places.iter().position(|place| place[0] == hash);
    let free = || places.iter().position(|place| place[1] <= now);
    let fullest = || (0..places.len()).min_by_key(|at| places[*at][1]);
    known.or_else(free).or_else(fullest).unwrap_or_default()
}
