//! How long a breaker stays open.

use std::time::Duration;

/// How long a breaker stays open, the first time and the next ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Opening {
    /// The first time.
    pub base: Duration,
    /// At most.
    pub max: Duration,
    /// What the next times are.
    pub growth: Growth,
}

/// How openings grow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Growth {
    /// Each is twice as long as the one before.
    Exponential,
    /// Each is longer by the first.
    Linear,
    /// All are alike.
    Fixed,
}

/// How long the first ejection for a refused connection lasts; it doubles up to
/// the policy's `base`. A restarting process is back within a second or two,
/// and one request per second that has to go elsewhere costs little.
const REFUSED_BASE: Duration = Duration::from_secs(1);

impl Default for Opening {
    fn default() -> Self {
        Self { base: Duration::from_secs(30), max: Duration::from_secs(300), growth: Growth::Exponential }
    }
}

impl Opening {
    /// The time of an opening after `before` others.
    pub(super) fn nth(&self, before: u32) -> Duration {
        let factor = match self.growth {
            Growth::Exponential => 1_u32.checked_shl(before).unwrap_or(u32::MAX),
            Growth::Linear => before.saturating_add(1),
            Growth::Fixed => 1,
        };
        self.base.saturating_mul(factor).min(self.max.max(self.base))
    }

    /// Of openings for refusing, and of those for failing.
    pub(super) fn kinds(self) -> [Self; 2] {
        let refusing =
            Self { base: REFUSED_BASE.min(self.base), max: self.base, growth: Growth::Exponential };
        [refusing, self]
    }
}
