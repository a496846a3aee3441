//! Round robin: one after the other, and with weights as often as these say,
//! spread evenly instead of in bursts.
//!
//! Weighted turns are stride scheduling (Waldspurger and Weihl, 1995): each
//! place has a pass that grows by its stride, the inverse of its weight, with
//! each turn; the smallest pass is next. A place that may not be used loses
//! its turns meanwhile, so that it is not made up for when it is back.

use std::cell::{Cell, RefCell};
use std::cmp::Reverse;
use std::collections::BinaryHeap;

use super::draw::scan;
use crate::policy::rng::Rng;

/// A stride of the greatest weight: fractions of it are what weights are rounded to.
const UNIT: u64 = 1 << 20;

/// Passes start anew from 0 above this. The longest stride is far below it.
const PASS_LIMIT: u64 = 1 << 62;

/// Turns that unusable places may lose one by one before all places are looked at.
const SKIPS: u32 = 8;

/// Whose turn it is.
#[derive(Debug)]
pub(super) enum Turns {
    /// All weights are the same.
    Equal { next: Cell<usize>, len: usize },
    /// They differ.
    Weighted {
        strides: Box<[u64]>,
        /// Passes and their places; the smallest on top.
        passes: RefCell<BinaryHeap<Reverse<(u64, usize)>>>,
    },
}

impl Turns {
    /// Turns by these weights, none of which is 0. They begin anywhere, or the
    /// first endpoint would get a request from every worker after every change.
    pub(super) fn new(weights: &[u64], rng: &Rng) -> Self {
        if weights.windows(2).all(|pair| pair[0] == pair[1]) {
            return Self::Equal { next: Cell::new(rng.index(weights.len())), len: weights.len() };
        }
        let strides = strides(weights);
        let passes = strides.iter().enumerate().map(|(place, stride)| Reverse((rng.below(*stride), place)));
        Self::Weighted { passes: RefCell::new(passes.collect()), strides }
    }

    /// Goes on with other weights of the same places.
    pub(super) fn reweigh(&mut self, weights: &[u64], rng: &Rng) {
        match self {
            Self::Weighted { strides: old, passes } => {
                let new = strides(weights);
                let mut heap = std::mem::take(passes.get_mut()).into_vec();
                let start = heap.iter().map(|Reverse((pass, _))| *pass).min().unwrap_or_default();
                for Reverse((pass, place)) in &mut heap {
                    // What is left of the wait for the next turn changes as the stride does.
                    let left = u128::from(*pass - start) * u128::from(new[*place]) / u128::from(old[*place]);
                    *pass = u64::try_from(left).unwrap_or(new[*place]);
                }
                *passes.get_mut() = heap.into();
                *old = new;
            }
            Self::Equal { .. } => {
                let turns = Self::new(weights, rng);
                if let (Self::Equal { next, .. }, Self::Equal { next: new, .. }) = (&*self, &turns) {
                    new.set(next.get());
                }
                *self = turns;
            }
        }
    }

    /// The next usable place; `None` if there is none.
    #[inline]
    pub(super) fn pick(&self, usable: impl Fn(usize) -> bool) -> Option<usize> {
        match self {
            Self::Equal { len: 0, .. } => None,
            Self::Equal { next, len } => {
                let place = next.get();
                let place = if usable(place) { place } else { scan(*len, place, usable)? };
                next.set(if place + 1 == *len { 0 } else { place + 1 });
                Some(place)
            }
            Self::Weighted { strides, passes } => {
                let mut passes = passes.borrow_mut();
                for _ in 0..SKIPS {
                    let Some(mut top) = passes.peek_mut() else { break };
                    let Reverse((pass, place)) = &mut *top;
                    *pass += strides[*place];
                    let (pass, place) = (*pass, *place);
                    drop(top);
                    if pass > PASS_LIMIT {
                        rebase(&mut passes);
                    }
                    if usable(place) {
                        return Some(place);
                    }
                }
                overtake(&mut passes, strides, usable)
            }
        }
    }
}

/// The usable place with the smallest pass. All that come before it lose their turns.
#[cold]
fn overtake(
    passes: &mut BinaryHeap<Reverse<(u64, usize)>>,
    strides: &[u64],
    usable: impl Fn(usize) -> bool,
) -> Option<usize> {
    let found = passes.iter().filter(|Reverse((_, place))| usable(*place)).max().copied();
    let Reverse((now, next)) = found?;
    let mut all = std::mem::take(passes).into_vec();
    for Reverse((pass, place)) in &mut all {
        if *place == next || *pass <= now {
            *pass = now + strides[*place];
        }
    }
    *passes = all.into();
    Some(next)
}

#[cold]
fn rebase(passes: &mut BinaryHeap<Reverse<(u64, usize)>>) {
    let mut all = std::mem::take(passes).into_vec();
    let start = all.iter().map(|Reverse((pass, _))| *pass).min().unwrap_or_default();
    all.iter_mut().for_each(|Reverse((pass, _))| *pass -= start);
    *passes = all.into();
}

/// How far apart turns are, in fractions of the greatest weight's.
pub(super) fn strides(weights: &[u64]) -> Box<[u64]> {
    let greatest = weights.iter().copied().max().unwrap_or(1);
    // A 2^38th of the greatest weight is as good as nothing.
    let stride = |weight: &u64| {
        let stride = u128::from(greatest) * u128::from(UNIT) / u128::from((*weight).max(1));
        u64::try_from(stride).unwrap_or(u64::MAX).min(PASS_LIMIT >> 4)
    };
    weights.iter().map(stride).collect()
}
