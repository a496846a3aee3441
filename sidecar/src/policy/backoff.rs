//! How long to wait before a retry.

use std::time::Duration;

use crate::policy::rng::Rng;

/// The delays between the tries of one request.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Backoff {
    /// How delays grow.
    pub growth: Growth,
    /// The delay before the first retry.
    pub base: Duration,
    /// No delay is longer, jitter included.
    pub max: Duration,
    /// Share of the delay that is random, 0 to 1: with 0.25 a delay of 100 ms
    /// becomes one between 75 and 100 ms. Delays only shrink, so `max` holds.
    pub jitter: f64,
}

/// How delays grow from one retry to the next.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Growth {
    /// `base × multiplier^n`.
    Exponential {
        /// Factor between two delays, at least 1.
        multiplier: f64,
    },
    /// `base + n × increment`.
    Linear {
        /// Added from one delay to the next.
        increment: Duration,
    },
    /// `base`.
    Fixed,
}

impl Default for Backoff {
    fn default() -> Self {
        Self {
            growth: Growth::Exponential { multiplier: 2.0 },
            base: Duration::from_millis(25),
            max: Duration::from_secs(1),
            jitter: 0.25,
        }
    }
}

impl Backoff {
    /// The delay before the next try when `retries` were made already.
    pub fn delay(&self, retries: u32, rng: &Rng) -> Duration {
        // Seconds as f64: exact enough for delays, and growth saturates at
        // infinity instead of overflowing.
        let base = self.base.as_secs_f64();
        let grown = match self.growth {
            Growth::Exponential { multiplier } => base * multiplier.powf(f64::from(retries)),
            Growth::Linear { increment } => base + f64::from(retries) * increment.as_secs_f64(),
            Growth::Fixed => base,
        };
        let random = 1.0 - self.jitter.clamp(0.0, 1.0) * rng.unit();
        // `min` also answers for 0 × infinity, which is not a number.
        let seconds = grown.min(self.max.as_secs_f64()) * random;
        Duration::try_from_secs_f64(seconds).map_or(self.max, |delay| delay.min(self.max))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::policy::rng::Rng;

    fn delays(backoff: Backoff) -> Vec<u128> {
        let rng = Rng::new(0);
        (0..5).map(|retries| backoff.delay(retries, &rng).as_millis()).collect()
    }

    #[test]
    fn delays_grow_as_the_strategy_says_up_to_the_maximum() {
        let (base, max) = (Duration::from_millis(100), Duration::from_millis(500));
        let with = |growth| Backoff { growth, base, max, jitter: 0.0 };
        assert_eq!(delays(with(Growth::Exponential { multiplier: 2.0 })), [100, 200, 400, 500, 500]);
        let increment = Duration::from_millis(150);
        assert_eq!(delays(with(Growth::Linear { increment })), [100, 250, 400, 500, 500]);
        assert_eq!(delays(with(Growth::Fixed)), [100; 5]);
    }

    #[test]
    fn jitter_takes_off_up_to_its_share() {
        let backoff = Backoff { jitter: 0.25, ..Backoff::default() };
        let rng = Rng::new(1);
        let delays: Vec<_> = (0..10_000).map(|_| backoff.delay(0, &rng)).collect();
        let (min, max) = (delays.iter().min().expect("some"), delays.iter().max().expect("some"));
        assert!(*min >= Duration::from_micros(18_750) && *min < Duration::from_micros(18_800), "{min:?}");
        assert!(*max <= Duration::from_millis(25) && *max > Duration::from_micros(24_950), "{max:?}");
    }

    proptest! {
        /// Whatever is configured, a delay is between zero and the maximum.
        #[test]
        fn no_configuration_exceeds_the_maximum(
            growth in prop_oneof![
                any::<f64>().prop_map(|multiplier| Growth::Exponential { multiplier }),
                any::<Duration>().prop_map(|increment| Growth::Linear { increment }),
                Just(Growth::Fixed),
            ],
            (base, max) in any::<(Duration, Duration)>(),
            jitter in any::<f64>(),
            (retries, seed) in any::<(u32, u64)>(),
        ) {
            let backoff = Backoff { growth, base, max, jitter };
            prop_assert!(backoff.delay(retries, &Rng::new(seed)) <= max);
        }
    }
}
