//! New identifiers: xoshiro256++ 1.0 (Blackman and Vigna, public domain), seeded
//! from the system's random source once per worker.
//!
//! Identifiers must not collide, but need not be unpredictable: four
//! rotations and adds instead of a call into the kernel or a cipher (about 2 ns each).

use std::cell::Cell;

/// One worker's source of identifiers.
#[derive(Debug)]
pub(in crate::telemetry) struct Random(Cell<[u64; 4]>);

impl Random {
    pub(in crate::telemetry) fn from_system() -> Self {
        let mut seed = [[0u8; 8]; 4];
        for part in &mut seed {
            aws_lc_rs::rand::fill(part).expect("the system's random source works, or TLS would not either");
        }
        Self(Cell::new(seed.map(u64::from_ne_bytes)))
    }

    fn next(&self) -> u64 {
        let mut s = self.0.get();
        let result = s[0].wrapping_add(s[3]).rotate_left(23).wrapping_add(s[0]);
        let t = s[1] << 17;
        s[2] ^= s[0];
        s[3] ^= s[1];
        s[1] ^= s[2];
        s[0] ^= s[3];
        s[2] ^= t;
        s[3] = s[3].rotate_left(45);
        self.0.set(s);
        result
    }

    /// A span's identifier: any but zero.
    pub(in crate::telemetry) fn span_id(&self) -> u64 {
        // Zero comes once in 2^64 draws; the next draw is another number.
        match self.next() {
            0 => self.next(),
            id => id,
        }
    }

    /// A trace's identifier: any but zero.
    pub(in crate::telemetry) fn trace_id(&self) -> u128 {
        u128::from(self.next()) << 64 | u128::from(self.span_id())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_generator_is_the_published_one() {
        let random = Random(Cell::new([1, 2, 3, 4]));
        // From the reference implementation.
        assert_eq!([random.next(), random.next(), random.next()], [41943041, 58720359, 3588806011781223]);
    }
}
