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
    /// An alias table (Walker 1977, made as Vose 1991 does): one draw and at most
    /// one look elsewhere, however many places there are.
    Table(Box<[Slot]>),
}

/// A place and who takes what it does not fill of its slot, all slots being as large.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Slot {
    weight: u64,
    /// The part of the slot that is the place's own, as a fraction of 2^64.
    own: u64,
    alias: u32,
}

impl Weights {
    /// Prepares these weights, none of which is 0.
    pub(super) fn new(weights: &[u64]) -> Self {
        if weights.windows(2).all(|pair| pair[0] == pair[1]) {
            return Self::Equal { weight: weights.first().copied().unwrap_or(1), len: weights.len() };
        }
        let size: u128 = weights.iter().map(|weight| u128::from(*weight)).sum();
        // What each has to place, in units of which a slot holds `size`.
        let mut left: Vec<u128> =
            weights.iter().map(|weight| u128::from(*weight) * weights.len() as u128).collect();
        let slot = |weight: &u64| Slot { weight: *weight, own: u64::MAX, alias: 0 };
        let mut slots: Box<[Slot]> = weights.iter().map(slot).collect();
        let places = 0..u32::try_from(weights.len()).unwrap_or(u32::MAX);
        let (mut small, mut large): (Vec<u32>, Vec<u32>) =
            places.partition(|place| left[*place as usize] < size);
        while let (Some(lesser), Some(&greater)) = (small.pop(), large.last()) {
            let (own, rest) = (left[lesser as usize], &mut left[greater as usize]);
            let slot = &mut slots[lesser as usize];
            slot.own = u64::try_from((own << 64) / size).unwrap_or(u64::MAX);
            slot.alias = greater;
            *rest -= size - own;
            if *rest < size {
                large.pop();
                small.push(greater);
            }
        }
        Self::Table(slots)
    }

    #[inline]
    fn len(&self) -> usize {
        match self {
            Self::Equal { len, .. } => *len,
            Self::Table(slots) => slots.len(),
        }
    }

    /// The weight of a place.
    #[inline]
    pub(super) fn weight(&self, place: usize) -> u64 {
        match self {
            Self::Equal { weight, .. } => *weight,
            Self::Table(slots) => slots[place].weight,
        }
    }

    /// The weights of two places, relative to each other.
    #[inline]
    pub(super) fn pair(&self, a: usize, b: usize) -> (f64, f64) {
        match self {
            Self::Equal { .. } => (1.0, 1.0),
            Self::Table(_) => (real(self.weight(a)), real(self.weight(b))),
        }
    }

    /// A place, in proportion to the weights.
    #[inline]
    fn draw(&self, rng: &Rng) -> usize {
        match self {
            Self::Equal { len, .. } => rng.index(*len),
            Self::Table(slots) => {
                // The upper half is a slot, the lower half a point in it.
                let product = u128::from(rng.bits()) * slots.len() as u128;
                #[expect(clippy::cast_possible_truncation, reason = "both halves are taken apart")]
                let (place, point) = ((product >> 64) as usize, product as u64);
                let slot = &slots[place];
                if point < slot.own { place } else { slot.alias as usize }
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
            Self::Table(_) => self.draw(rng),
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
