//! How many endpoints of a service may be out at once.

use super::{BreakerPolicy, Cause};

/// How many endpoints a service has, and how many of them are out already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Census {
    /// All of them.
    pub total: usize,
    /// Ejected (open or half-open) or unhealthy.
    pub out: usize,
}

impl Census {
    /// For a breaker that stands alone: it may always open.
    pub const UNBOUNDED: Self = Self { total: usize::MAX, out: 0 };

    /// Counts endpoints by whether each is out.
    pub fn of(out: impl IntoIterator<Item = bool>) -> Self {
        out.into_iter().fold(Self { total: 0, out: 0 }, |census, out| Self {
            total: census.total + 1,
            out: census.out + usize::from(out),
        })
    }

    /// Makes a census that is taken at the first question only.
    pub(super) fn asked_once(census: impl FnOnce() -> Self) -> impl FnMut() -> Self {
        let (mut census, mut known) = (Some(census), None);
        move || *known.get_or_insert_with(|| census.take().map_or(Self::UNBOUNDED, |census| census()))
    }

    /// Whether one more may be ejected.
    pub(super) fn allows(self, cause: Cause, policy: &BreakerPolicy) -> bool {
        let out = self.out + 1;
        let percent = policy.max_ejected_percent as usize;
        match cause {
            Cause::Refused => out < self.total,
            // Whoever allows all of them has said what to do when there are no others.
            _ if percent >= 100 => true,
            // One is always allowed, or a small service would have no breaker at all.
            _ => percent > 0 && out <= (self.total.saturating_mul(percent) / 100).max(1) && out < self.total,
        }
    }
}
