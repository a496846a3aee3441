//! How long to wait before the next attempt to reach the control plane.

use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

use crate::policy::rng::Rng;

/// The first wait: long enough not to spin, short enough that a restarted
/// control plane is found before anybody notices.
const BASE: Duration = Duration::from_millis(100);

/// The longest wait: a mesh of a thousand sidecars then makes 100 attempts a second at most.
const CAP: Duration = Duration::from_secs(10);

/// Exponential waits with jitter, so that many sidecars do not come back in step.
#[derive(Debug)]
pub(crate) struct Reconnect {
    failures: u32,
    rng: Rng,
}

impl Reconnect {
    pub(crate) fn new() -> Self {
        Self { failures: 0, rng: seeded() }
    }

    /// The wait after one more failure: between half and all of 100 ms, 200 ms, ... 10 s.
    pub(crate) fn next(&mut self) -> Duration {
        let full = BASE.saturating_mul(1 << self.failures.min(10)).min(CAP);
        self.failures += 1;
        full.mul_f64(0.5 + self.rng.unit() / 2.0)
    }

    /// Tells how long the connection lasted: only one that outlived the longest
    /// wait was a success, or a server that drops everyone would be hammered.
    pub(crate) fn lasted(&mut self, time: Duration) {
        if time >= CAP {
            self.failures = 0;
        }
    }
}

/// A generator with a seed that differs from process to process.
pub(crate) fn seeded() -> Rng {
    Rng::new(RandomState::new().hash_one(std::process::id()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_the_cap_and_begin_anew_after_success() {
        let mut reconnect = Reconnect::new();
        let first = reconnect.next();
        assert!(first >= BASE / 2 && first <= BASE);
        let last = (0..20).map(|_| reconnect.next()).last().unwrap();
        assert!(last >= CAP / 2 && last <= CAP);
        reconnect.lasted(Duration::from_secs(1));
        assert!(reconnect.next() > BASE);
        reconnect.lasted(CAP);
        assert!(reconnect.next() <= BASE);
    }
}
