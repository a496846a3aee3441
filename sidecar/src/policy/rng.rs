//! A worker's random numbers: fast, seeded by the caller, not for secrets.

use std::cell::Cell;

/// The wyrand generator (Wang Yi, public domain): 64 bits of state, passes
/// PractRand and BigCrush, about one nanosecond per number.
#[derive(Debug)]
pub struct Rng(Cell<u64>);

impl Rng {
    /// A generator; equal seeds give equal sequences, so workers need different ones.
    pub const fn new(seed: u64) -> Self {
        Self(Cell::new(seed))
    }

    /// The next 64 random bits.
    #[inline]
    pub fn bits(&self) -> u64 {
        let state = self.0.get().wrapping_add(0xa076_1d64_78bd_642f);
        self.0.set(state);
        let product = u128::from(state) * u128::from(state ^ 0xe703_7ed1_a0b4_28db);
        #[expect(clippy::cast_possible_truncation, reason = "folds both halves")]
        let folded = (product >> 64) as u64 ^ product as u64;
        folded
    }

    /// A number below `bound`, 0 if `bound` is 0. Lemire's multiplication: the
    /// bias is below `bound / 2^64`, which nothing here can notice.
    #[inline]
    pub fn below(&self, bound: u64) -> u64 {
        ((u128::from(self.bits()) * u128::from(bound)) >> 64) as u64
    }

    /// An index into something of this length, 0 if it is empty.
    #[inline]
    pub fn index(&self, len: usize) -> usize {
        #[expect(clippy::cast_possible_truncation, reason = "below a usize")]
        let index = self.below(len as u64) as usize;
        index
    }

    /// A number in `0.0..1.0`.
    #[inline]
    pub fn unit(&self) -> f64 {
        // 53 bits are what an f64 holds exactly.
        #[expect(clippy::cast_precision_loss, reason = "53 bits fit")]
        let numerator = (self.bits() >> 11) as f64;
        numerator / (1_u64 << 53) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_seeds_give_equal_sequences() {
        let (a, b) = (Rng::new(7), Rng::new(7));
        assert!((0..100).all(|_| a.bits() == b.bits()));
        assert_ne!(Rng::new(7).bits(), Rng::new(8).bits());
    }

    #[test]
    fn numbers_below_a_bound_are_even_and_stay_below() {
        let rng = Rng::new(1);
        let mut counts = [0_u32; 10];
        for _ in 0..100_000 {
            counts[rng.index(10)] += 1;
        }
        // Five standard deviations (sqrt(100000 * 0.1 * 0.9) = 95).
        assert!(counts.iter().all(|&count| count.abs_diff(10_000) < 475), "{counts:?}");
        assert_eq!(rng.below(0), 0);
        assert_eq!(rng.below(1), 0);
    }

    #[test]
    fn unit_numbers_fill_their_interval() {
        let rng = Rng::new(1);
        let numbers: Vec<f64> = (0..100_000).map(|_| rng.unit()).collect();
        assert!(numbers.iter().all(|n| (0.0..1.0).contains(n)));
        let mean = numbers.iter().sum::<f64>() / 100_000.0;
        assert!((mean - 0.5).abs() < 0.005, "{mean}");
    }
}
