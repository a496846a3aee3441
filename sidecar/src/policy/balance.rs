//! Which endpoint gets a request: the better of two drawn at random.
//!
//! Two draws are nearly as good as looking at all (Mitzenmacher, "The power of
//! two choices in randomized load balancing"), cost the same for two and for
//! ten thousand endpoints, and workers that know nothing of each other do not
//! all run to the same one. Weights act on the draw, and on how many requests
//! in flight count as many.
//!
//! The slice need not be filtered: candidates that admit nothing are passed
//! over. What to do when none is left is the caller's part (see "panic" in
//! [`crate::policy::ejection`]).

use std::time::Instant;

use crate::policy::ewma::PeakEwma;
use crate::policy::rng::Rng;

/// What the balancer asks of an endpoint.
pub trait Candidate {
    /// Its load.
    fn load(&self) -> &PeakEwma;
    /// Its relative share of traffic, at least 1.
    fn weight(&self) -> u32;
    /// Whether it may get a request now: healthy, not ejected, not full.
    fn admits(&self, now: Instant) -> bool;
}

/// Draws before the whole slice is looked at: with half of the candidates out,
/// 8 draws miss all others once in 256.
const DRAWS: u32 = 8;

/// The range of the weights in a slice, computed when the slice changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Weights {
    min: u32,
    max: u32,
}

impl Weights {
    /// The range of some weights; 0 counts as 1.
    pub fn of(weights: impl IntoIterator<Item = u32>) -> Self {
        let start = Self { min: u32::MAX, max: 1 };
        weights
            .into_iter()
            .map(|weight| weight.max(1))
            .fold(start, |range, weight| Self { min: range.min.min(weight), max: range.max.max(weight) })
    }

    fn equal(self) -> bool {
        self.min >= self.max
    }
}

/// The index of the candidate that gets the next request; `None` if none
/// admits one. `exclude` is the endpoint that just failed: it is taken only if
/// there is no other.
pub fn pick<C: Candidate>(
    candidates: &[C],
    weights: Weights,
    exclude: Option<usize>,
    rng: &Rng,
    now: Instant,
) -> Option<usize> {
    let usable = |index: usize| Some(index) != exclude && candidates[index].admits(now);
    if let [_] = candidates {
        return candidates[0].admits(now).then_some(0);
    }
    let mut draws = DRAWS;
    let Some(first) = draw(candidates, weights, &mut draws, rng, &usable) else {
        return scan(candidates, rng, &usable)
            .or_else(|| exclude.filter(|&index| index < candidates.len() && candidates[index].admits(now)));
    };
    // With equal weights the second is another one; with different weights it
    // may be the same, or a pair would see no weights at all.
    let other = |index: usize| (index != first || !weights.equal()) && usable(index);
    let Some(second) = draw(candidates, weights, &mut draws, rng, &other) else {
        return Some(first);
    };
    if first == second {
        return Some(first);
    }
    let (a, b) = (&candidates[first], &candidates[second]);
    let share = if weights.equal() {
        1.0
    } else {
        let (a, b) = (f64::from(a.weight().max(1)), f64::from(b.weight().max(1)));
        2.0 * a / (a + b)
    };
    // On a tie the first: it was drawn at random.
    Some(if a.load().beats(b.load(), share, now) { first } else { second })
}

/// A random candidate, in proportion to weights, by rejection.
#[inline]
fn draw<C: Candidate>(
    candidates: &[C],
    weights: Weights,
    draws: &mut u32,
    rng: &Rng,
    usable: &impl Fn(usize) -> bool,
) -> Option<usize> {
    let count = u32::try_from(candidates.len()).unwrap_or(u32::MAX);
    // Rejections by weight do not use up draws: at worst one in `max/min`
    // is taken, and the bound keeps absurd ratios from spinning.
    let mut rejections = 64;
    while *draws > 0 {
        let index = rng.below(count) as usize;
        if !weights.equal()
            && rejections > 0
            && rng.below(weights.max) >= candidates.get(index)?.weight().max(1)
        {
            rejections -= 1;
            continue;
        }
        *draws -= 1;
        if index < candidates.len() && usable(index) {
            return Some(index);
        }
    }
    None
}

/// The first usable candidate from a random place on.
#[cold]
fn scan<C: Candidate>(candidates: &[C], rng: &Rng, usable: &impl Fn(usize) -> bool) -> Option<usize> {
    let start = rng.below(u32::try_from(candidates.len()).unwrap_or(u32::MAX)) as usize;
    (start..candidates.len()).chain(0..start).find(|&index| usable(index))
}
