//! Which part of the traffic goes to which group of endpoints: the levels of
//! priority, and our own zone and the others within each.
//!
//! - **Panic.** If in every level less than the threshold of endpoints is well,
//!   health says nothing any more: all endpoints are taken to be well, and zones
//!   do not count.
//! - **Levels.** The first takes everything as long as it can; a level can take
//!   1.4 times its well part. The next takes the rest. If all together cannot
//!   take everything, it is split as they can.
//! - **Zones.** If callers are spread over zones as endpoints are, a zone can serve
//!   its callers as long as its part of well endpoints is not below that of the
//!   whole level. Below, what it keeps is such that its endpoints get as much
//!   as those elsewhere.

/// How much more than its normal part a level takes when some of it is out: up
/// to 28 % may be out before the next is used. Envoy's default.
const OVERPROVISIONING: f64 = 1.4;

/// What is known about a group.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Tally {
    /// Its level; groups of one level stand together, the own zone first.
    pub(super) level: u32,
    /// Whether it is our own zone.
    pub(super) local: bool,
    /// Its endpoints, and those that are well.
    pub(super) count: [u32; 2],
    /// Their weights.
    pub(super) weight: [f64; 2],
}

impl Tally {
    fn plus(self, other: Self) -> Self {
        Self {
            count: [self.count[0] + other.count[0], self.count[1] + other.count[1]],
            weight: [self.weight[0] + other.weight[0], self.weight[1] + other.weight[1]],
            ..self
        }
    }

    fn well(self) -> f64 {
        if self.weight[0] > 0.0 { self.weight[1] / self.weight[0] } else { 0.0 }
    }
}

/// The share of each group, all together 1, and whether there is panic.
/// `threshold`: percent of endpoints; `None` and 0: never.
pub(super) fn shares(groups: &[Tally], threshold: Option<u32>) -> (Vec<f64>, bool) {
    let levels: Vec<Tally> = groups
        .chunk_by(|a, b| a.level == b.level)
        .map(|zones| zones.iter().copied().reduce(Tally::plus).unwrap_or(zones[0]))
        .collect();
    let percent = u64::from(threshold.unwrap_or(0));
    let below = |level: &Tally| u64::from(level.count[1]) * 100 < percent * u64::from(level.count[0]);
    let panic = !levels.is_empty() && levels.iter().all(below);
    let mut left = 1.0;
    let mut parts: Vec<f64> = levels
        .iter()
        .map(|level| {
            let able = if panic { 1.0 } else { (OVERPROVISIONING * level.well()).min(1.0) };
            let part = able.min(left);
            left -= part;
            part
        })
        .collect();
    let taken: f64 = parts.iter().sum();
    match parts.first_mut() {
        // Nobody is well: whoever can be used is asked in order.
        Some(first) if taken <= 0.0 => *first = 1.0,
        _ => parts.iter_mut().for_each(|part| *part /= taken),
    }
    let zones = groups.chunk_by(|a, b| a.level == b.level);
    let shares = zones.zip(levels).zip(parts).flat_map(|((zones, level), part)| {
        let own = match zones {
            [local, _others] if panic => local.weight[0] / level.weight[0].max(f64::MIN_POSITIVE),
            [local, _others] if level.weight[1] > 0.0 => (local.well() / level.well()).min(1.0),
            // One group alone, or nobody is well.
            _ => 1.0,
        };
        [part * own, part * (1.0 - own)].into_iter().take(zones.len())
    });
    (shares.collect(), panic)
}
