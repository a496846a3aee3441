//! Consistent hashing with Maglev's table (Eisenbud et al., "Maglev: a fast and
//! reliable software network load balancer", NSDI 2016, section 3.4), weighted.
//!
//! A key's place is one look-up. Every sidecar that knows the same endpoints
//! makes the same table. When an endpoint joins or leaves, little more than its
//! own share of keys moves. Endpoints that may not be used stay in the table:
//! their keys walk on, each along a path of its own, so that they spread over
//! all others, and are back at once when the endpoint is.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use super::draw::scan;
use super::turns::strides;

/// Slots for up to [`SMALL_PLACES`] places; a prime. Shares are right to 0.8 % with
/// the most places, the table has 32 KiB and is made within a millisecond.
const SMALL: usize = 16_381;

/// Places that [`SMALL`] is for. Crossing it moves keys as a restart would; how
/// many endpoints there are is the only thing that all sidecars agree on.
const SMALL_PLACES: usize = 128;

/// Slots for more places; a prime. A thousand places have 65 each, and the table
/// is made within a few milliseconds, which all requests of the worker wait for.
const LARGE: usize = 65_537;

/// Steps of a walk before all places are looked at.
const STEPS: usize = 64;

/// Which place each slot belongs to.
#[derive(Debug)]
pub(super) struct Maglev {
    slots: Box<[u16]>,
    places: usize,
}

impl Maglev {
    /// The table of places with these ids (hashed) and weights.
    pub(super) fn new(places: &[(u64, u64)]) -> Self {
        let len = if places.len() <= SMALL_PLACES { SMALL } else { LARGE };
        Self { slots: fill(places, len), places: places.len() }
    }

    /// The place of a key: the first `fit` one on its walk, else the first usable one.
    #[inline]
    pub(super) fn pick(
        &self,
        key: u64,
        usable: impl Fn(usize) -> bool,
        fit: impl Fn(usize) -> bool,
    ) -> Option<usize> {
        let len = self.slots.len();
        let first = place(&self.slots, reduce(key, len));
        if first.is_some_and(|place| usable(place) && fit(place)) {
            return first;
        }
        self.walk(key, usable, fit)
    }

    #[cold]
    fn walk(&self, key: u64, usable: impl Fn(usize) -> bool, fit: impl Fn(usize) -> bool) -> Option<usize> {
        let len = self.slots.len();
        if len == 0 {
            return None;
        }
        // Another part of the key than the one that chose the slot: keys of one slot part ways.
        let step = 1 + reduce(key.rotate_left(32), len - 1);
        let mut slot = reduce(key, len);
        let mut second_best = None;
        for _ in 0..STEPS {
            if let Some(place) = place(&self.slots, slot).filter(|place| usable(*place)) {
                if fit(place) {
                    return Some(place);
                }
                second_best = second_best.or(Some(place));
            }
            slot = (slot + step) % len;
        }
        let start = reduce(key, self.places);
        scan(self.places, start, |place| usable(place) && fit(place))
            .or(second_best)
            .or_else(|| scan(self.places, start, usable))
    }
}

fn place(slots: &[u16], slot: usize) -> Option<usize> {
    slots.get(slot).map(|place| usize::from(*place))
}

/// The key's place among `len`, by its higher bits.
#[inline]
fn reduce(key: u64, len: usize) -> usize {
    #[expect(clippy::cast_possible_truncation, reason = "below a usize")]
    let place = ((u128::from(key) * len as u128) >> 64) as usize;
    place
}

/// The places take slots in turns, each by its own permutation of them; one with
/// half the weight has every second turn only.
fn fill(places: &[(u64, u64)], len: usize) -> Box<[u16]> {
    const FREE: u16 = u16::MAX;
    // More could not be told apart in 16 bits; they would have two slots each anyway.
    let mut takers: Vec<Taker> =
        (0..FREE).zip(places).map(|(place, (id, _))| Taker::new(place, *id, len)).collect();
    // Whoever lists the endpoints in another order makes the same table.
    takers.sort_by_key(|taker| places[usize::from(taker.place)].0);
    let stride = strides(&takers.iter().map(|taker| places[usize::from(taker.place)].1).collect::<Vec<_>>());
    let turns = stride.iter().enumerate().map(|(index, stride)| Reverse((*stride, index)));
    let mut turns: BinaryHeap<_> = turns.collect();
    let mut slots = vec![FREE; if takers.is_empty() { 0 } else { len }].into_boxed_slice();
    for _ in 0..slots.len() {
        let Some(mut turn) = turns.peek_mut() else { break };
        let Reverse((pass, index)) = &mut *turn;
        *pass += stride[*index];
        let taker = &mut takers[*index];
        while slots[taker.slot] != FREE {
            taker.slot += taker.skip;
            if taker.slot >= len {
                taker.slot -= len;
            }
        }
        slots[taker.slot] = taker.place;
    }
    slots
}

/// A place and how far it has come in its permutation.
struct Taker {
    place: u16,
    slot: usize,
    skip: usize,
}

impl Taker {
    fn new(place: u16, id: u64, len: usize) -> Self {
        Self { place, slot: reduce(id, len), skip: 1 + reduce(id.rotate_left(32), len - 1) }
    }
}
