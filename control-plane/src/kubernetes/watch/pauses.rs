//! How long to wait before something is tried again.

use std::time::Duration;

/// Pauses after failures. Changes are to arrive within seconds after an API server is back.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
pub(super) const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// Growing pauses.
#[derive(Debug, Default)]
pub(crate) struct Pauses {
    failures: u32,
}

impl Pauses {
    pub(crate) fn next(&mut self) -> Duration {
        let pause = FIRST_PAUSE.saturating_mul(1 << self.failures.min(10)).min(LONGEST_PAUSE);
        self.failures = self.failures.saturating_add(1);
        jittered(pause)
    }

    pub(crate) fn reset(&mut self) {
        self.failures = 0;
    }
}

/// Between half of it and all: what was interrupted together does not come back together.
pub(crate) fn jittered(pause: Duration) -> Duration {
    use std::hash::{BuildHasher, RandomState};
    let chance = u32::try_from(RandomState::new().hash_one(0_u8) >> 48).unwrap_or_default();
    pause / 2 + pause.saturating_mul(chance) / (2 * u32::from(u16::MAX))
}
