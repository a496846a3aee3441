//! The results of the recent past: a ring of coarse buckets, so that neither
//! memory nor time depends on how many there are.

use std::time::{Duration, Instant};

/// A window slides in tenths of its length: it counts the last nine to ten of them.
const BUCKETS: u32 = 10;

/// Counts of a sliding window.
#[derive(Debug, Default)]
pub(super) struct Window {
    buckets: [Counts; BUCKETS as usize],
    /// When the window began to be kept, and the length of a bucket: they number the buckets.
    origin: Option<(Instant, Duration)>,
    /// The number of the newest bucket.
    newest: u64,
}

/// How many tries, and how many of them failed or were slow.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Counts {
    pub(super) total: u32,
    pub(super) failed: u32,
    pub(super) slow: u32,
}

impl Window {
    /// Counts one try. A window of another length than before begins anew.
    pub(super) fn add(&mut self, failed: bool, slow: bool, length: Duration, now: Instant) {
        let newest = self.advance(length, now);
        let counts = &mut self.buckets[newest];
        counts.total = counts.total.saturating_add(1);
        counts.failed = counts.failed.saturating_add(u32::from(failed));
        counts.slow = counts.slow.saturating_add(u32::from(slow));
    }

    /// What the window holds.
    pub(super) fn counts(&mut self, length: Duration, now: Instant) -> Counts {
        self.advance(length, now);
        self.buckets.iter().fold(Counts::default(), |sum, counts| Counts {
            total: sum.total.saturating_add(counts.total),
            failed: sum.failed.saturating_add(counts.failed),
            slow: sum.slow.saturating_add(counts.slow),
        })
    }

    /// Forgets everything.
    pub(super) fn clear(&mut self) {
        self.buckets = Default::default();
    }

    /// Forgets what is too old; the place of the bucket of `now`.
    fn advance(&mut self, length: Duration, now: Instant) -> usize {
        let bucket = (length / BUCKETS).max(Duration::from_nanos(1));
        if self.origin.is_none_or(|(_, before)| before != bucket) {
            self.origin = Some((now, bucket));
            self.newest = 0;
            self.clear();
        }
        let since = self.origin.map_or(Duration::ZERO, |(origin, _)| now.saturating_duration_since(origin));
        // 64 bits of nanoseconds are 584 years, and divide in a tenth of the time that 128 take.
        let nanos = |time: Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        let number = nanos(since) / nanos(bucket);
        for passed in 1..=number.saturating_sub(self.newest).min(u64::from(BUCKETS)) {
            self.buckets[place(self.newest.wrapping_add(passed))] = Counts::default();
        }
        self.newest = self.newest.max(number);
        place(self.newest)
    }
}

fn place(number: u64) -> usize {
    #[expect(clippy::cast_possible_truncation, reason = "below the number of buckets")]
    let place = (number % u64::from(BUCKETS)) as usize;
    place
}
