//! Draws in proportion to weights, and the better of two of them.
//!
//! Two draws are nearly as good as looking at all (Mitzenmacher, "The power of
//! two choices in randomized load balancing"), cost the same for two and for
//! ten thousand endpoints, and workers that know nothing of each other do not
//! all run to the same one. Weights act on the draw, and on how many requests
//! in flight count as many.

use crate::policy::rng::Rng;

/// Draws before the whole slice is looked at: with half of the candidates out,
/// 8 draws miss all others once in 256.
const DRAWS: u32 = 8;

/// The weights of a slice, prepared for draws.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Weights {
    /// All are the same, as they mostly are.
    Equal { weight: u64, len: usize },
    /// Running sums.
    Sums(Box<[u64]>),
}

impl Weights {
    /// Prepares these weights, none of which is 0.
    pub(super) fn new(weights: &[u64]) -> Self {
        if weights.windows(2).all(|pair| pair[0] == pair[1]) {
            return Self::Equal { weight: weights.first().copied().unwrap_or(1), len: weights.len() };
        }
        let sums = weights.iter().scan(0_u64, |sum, weight| {
            *sum = sum.saturating_add(*weight);
            Some(*sum)
        });
        Self::Sums(sums.collect())
    }

    #[inline]
    fn len(&self) -> usize {
        match self {
            Self::Equal { len, .. } => *len,
            Self::Sums(sums) => sums.len(),
        }
    }

    /// The weight of a place.
    #[inline]
    pub(super) fn weight(&self, place: usize) -> u64 {
        match self {
            Self::Equal { weight, .. } => *weight,
            Self::Sums(sums) => sums[place] - place.checked_sub(1).map_or(0, |before| sums[before]),
        }
    }

    /// The weights of two places, relative to each other.
    #[inline]
    pub(super) fn pair(&self, a: usize, b: usize) -> (f64, f64) {
        match self {
            Self::Equal { .. } => (1.0, 1.0),
            Self::Sums(_) => (real(self.weight(a)), real(self.weight(b))),
        }
    }

    /// A place, in proportion to the weights.
    #[inline]
    fn draw(&self, rng: &Rng) -> usize {
        match self {
            Self::Equal { len, .. } => rng.index(*len),
            Self::Sums(sums) => {
                let point = rng.below(sums.last().copied().unwrap_or(0));
                sums.partition_point(|&sum| sum <= point).min(sums.len() - 1)
            }
        }
    }

    /// A usable place, in proportion to the weights; `None` if there is none.
    #[inline]
    pub(super) fn pick(&self, rng: &Rng, usable: impl Fn(usize) -> bool) -> Option<usize> {
        match self.len() {
            0 => None,
            1 => usable(0).then_some(0),
            len => (0..DRAWS)
                .map(|_| self.draw(rng))
                .find(|&place| usable(place))
                .or_else(|| scan(len, rng.index(len), usable)),
        }
    }

    /// The better of two usable places, drawn in proportion to the weights.
    /// `beats` says whether the first is as good as the second.
    #[inline]
    pub(super) fn pick_better(
        &self,
        rng: &Rng,
        usable: impl Fn(usize) -> bool,
        beats: impl FnOnce(usize, usize) -> bool,
    ) -> Option<usize> {
        let first = self.pick(rng, &usable)?;
        let second = match self {
            Self::Equal { len: 1, .. } => return Some(first),
            // With equal weights the second is another one.
            Self::Equal { len, .. } => {
                let next = first + 1 + rng.index(len - 1);
                if next < *len { next } else { next - len }
            }
            // With different weights it may be the same: of a pair, both would be
            // drawn always and weights be lost.
            Self::Sums(_) => self.draw(rng),
        };
        // On a tie the first: it was drawn at random.
        let first_wins = second == first || !usable(second) || beats(first, second);
        Some(if first_wins { first } else { second })
    }
}

/// A weight to calculate with.
#[expect(clippy::cast_precision_loss, reason = "a ratio of weights need not be exact")]
pub(super) fn real(weight: u64) -> f64 {
    weight as f64
}

/// The first usable place from `start` on, once around.
#[cold]
pub(super) fn scan(len: usize, start: usize, usable: impl Fn(usize) -> bool) -> Option<usize> {
    (start..len).chain(0..start).find(|&place| usable(place))
}
