//! Zones, levels of priority and panic.

use proptest::prelude::*;

use super::*;
use crate::policy::balance::shares::{Tally, shares};

fn zoned(local: bool, id: u64) -> Member {
    Member { local, ..member(id, 1) }
}

fn level(priority: u32, id: u64) -> Member {
    Member { priority, ..member(id, 1) }
}

fn preferring(algorithm: Algorithm) -> Balancing {
    Balancing { prefer_zone: true, ..of(algorithm) }
}

/// Three of ours and six elsewhere.
fn zones(policy: &Balancing) -> Set {
    let members: Vec<Member> = (0..9).map(|id| zoned(id < 3, id)).collect();
    Set::new(policy, &members)
}

fn sum(counts: &[u32]) -> u32 {
    counts.iter().sum()
}

#[test]
fn a_well_zone_keeps_everything_and_a_short_one_what_is_fair() {
    for algorithm in algorithms() {
        let set = zones(&preferring(algorithm.clone()));
        let counts = set.counts(None);
        assert_eq!(sum(&counts[3..]), 0, "{algorithm:?} {counts:?}");
        assert!(counts[..3].iter().all(|count| is_share(*count, 1.0 / 3.0)), "{algorithm:?} {counts:?}");
        // 2/3 of ours and 8/9 of all are well: ours keeps 3/4.
        set.set(0, Health::Ejected);
        let counts = set.counts(None);
        assert!(is_share(sum(&counts[..3]), 0.75), "{algorithm:?} {counts:?}");
        assert!(counts[3..].iter().all(|count| is_share(*count, 0.25 / 6.0)), "{algorithm:?} {counts:?}");
        // Nothing spills over into a zone that is worse.
        (3..7).for_each(|index| set.set(index, Health::Unhealthy));
        assert_eq!(sum(&set.counts(None)[3..]), 0);
        (0..3).for_each(|index| set.set(index, Health::Unhealthy));
        assert_eq!(sum(&set.counts(None)[..3]), 0);
    }
    let set = zones(&of(Algorithm::Random));
    assert!(is_share(sum(&set.counts(None)[..3]), 1.0 / 3.0), "without the preference zones do not count");
}

#[test]
fn a_retry_leaves_the_zone_if_there_is_no_other_in_it() {
    for algorithm in algorithms() {
        let set = Set::new(&preferring(algorithm), &[zoned(true, 0), zoned(false, 1), zoned(false, 2)]);
        assert_eq!(set.counts(None)[0], 100_000);
        assert_eq!(set.counts(Some(0))[0], 0);
    }
}

#[test]
fn a_hot_zone_gives_way_and_a_busy_one_does_not() {
    for algorithm in algorithms() {
        let set = zones(&preferring(algorithm.clone()));
        let ms = Duration::from_millis;
        let answered = |index: usize, time| set.endpoints[index].load.answered(time, set.now);
        (0..9).for_each(|index| answered(index, ms(2)));
        (0..3).for_each(|index| (0..10).for_each(|_| set.endpoints[index].load.begin()));
        let counts = set.counts(None);
        assert_eq!(sum(&counts[3..]), 0, "busy, but as fast as others: {algorithm:?} {counts:?}");
        (0..3).for_each(|index| answered(index, ms(20)));
        let counts = set.counts(None);
        assert_eq!(sum(&counts[..3]), 0, "ten times slower: {algorithm:?} {counts:?}");
        (0..3).for_each(|index| (0..8).for_each(|_| set.endpoints[index].load.end()));
        assert_eq!(sum(&set.counts(None)[3..]), 0, "slow, but hardly used: {algorithm:?}");
    }
}

#[test]
fn a_zone_that_stopped_answering_is_hot() {
    let set = zones(&preferring(Algorithm::LeastRequest));
    set.endpoints.iter().for_each(|endpoint| endpoint.load.answered(Duration::from_millis(2), set.now));
    for _ in 0..1000 {
        let index = set.pick(None).expect("usable");
        if index < 3 {
            set.endpoints[index].load.begin();
        }
    }
    assert!(set.in_flight() <= 3 * 20, "{}", set.in_flight());
}

#[test]
fn the_next_level_is_used_when_the_first_cannot_take_everything() {
    for algorithm in algorithms() {
        let members: Vec<Member> = (0..6).map(|id| level(u32::from(id >= 4) * 7, id)).collect();
        let set = Set::new(&of(algorithm.clone()), &members);
        let second = || sum(&set.counts(None)[4..]);
        assert_eq!(second(), 0, "{algorithm:?}");
        set.set(0, Health::Ejected);
        assert_eq!(second(), 0, "three of four can take 1.05 of everything: {algorithm:?}");
        set.set(1, Health::Unhealthy);
        assert!(is_share(second(), 0.3), "two of four take 0.7: {algorithm:?}");
        [2, 3].into_iter().for_each(|index| set.set(index, Health::Ejected));
        assert_eq!(second(), 100_000, "{algorithm:?}");
        [4, 5].into_iter().for_each(|index| set.set(index, Health::Unhealthy));
        // Only the ejected ones are left.
        assert_eq!(second(), 0, "{algorithm:?}");
    }
}

#[test]
fn below_the_panic_threshold_health_is_ignored() {
    for algorithm in algorithms() {
        let policy = Balancing { panic_threshold: Some(50), ..preferring(algorithm.clone()) };
        let set = zones(&policy);
        (0..4).for_each(|index| set.set(index, Health::Unhealthy));
        assert_eq!(sum(&set.counts(None)[..4]), 0, "five of nine are well: {algorithm:?}");
        set.set(4, Health::Ejected);
        let counts = set.counts(None);
        assert!(counts.iter().all(|count| is_share(*count, 1.0 / 9.0)), "{algorithm:?} {counts:?}");
        set.set(0, Health::Draining);
        let counts = set.counts(None);
        assert_eq!(counts[0], 0, "who leaves takes nothing, and counts for nothing: {counts:?}");
        assert_eq!(sum(&counts[1..5]), 0, "four of eight are well: {algorithm:?} {counts:?}");
        set.set(8, Health::Ejected);
        assert!(set.counts(None)[1..].iter().all(|count| is_share(*count, 1.0 / 8.0)));
    }
}

#[test]
fn there_is_no_panic_while_another_level_is_well() {
    let members: Vec<Member> = (0..4).map(|id| level(u32::from(id >= 2), id)).collect();
    let policy = Balancing { panic_threshold: Some(100), ..of(Algorithm::Random) };
    let set = Set::new(&policy, &members);
    [0, 1].into_iter().for_each(|index| set.set(index, Health::Unhealthy));
    assert_eq!(sum(&set.counts(None)[2..]), 100_000);
    set.set(2, Health::Unhealthy);
    let counts = set.counts(None);
    assert!(is_share(counts[0], 0.5) && is_share(counts[1], 0.5), "{counts:?}");
}

/// The rules as they are written, one pick after the other.
fn oracle(groups: &[Tally], threshold: Option<u32>) -> Vec<f64> {
    let levels: std::collections::BTreeSet<u32> = groups.iter().map(|group| group.level).collect();
    let of_level = |level: u32| groups.iter().filter(move |group| group.level == level);
    let total = |level, which: fn(&Tally) -> f64| of_level(level).map(which).sum::<f64>();
    let percent = |level| {
        let (all, well) = (total(level, |g| g.count[0].into()), total(level, |g| g.count[1].into()));
        (well * 100.0, all)
    };
    let panic = threshold.is_some_and(|threshold| {
        levels.iter().all(|level| percent(*level).0 < f64::from(threshold) * percent(*level).1)
    });
    let well = |group: &Tally| group.weight[usize::from(!panic)] / group.weight[0].max(1e-300);
    let mut part = std::collections::BTreeMap::new();
    let mut left = 1.0_f64;
    for level in &levels {
        let all = total(*level, |g| g.weight[0]).max(1e-300);
        let usable = if panic { 1.0 } else { total(*level, |g| g.weight[1]) / all };
        let takes = (1.4 * usable).min(1.0).min(left);
        left -= takes;
        part.insert(*level, takes);
    }
    let taken: f64 = part.values().sum();
    let first = *levels.first().expect("there is a group");
    groups
        .iter()
        .map(|group| {
            let level = if taken > 0.0 {
                part[&group.level] / taken
            } else {
                f64::from(u8::from(group.level == first))
            };
            let other = of_level(group.level).find(|other| other.local != group.local);
            let Some(other) = other else { return level };
            let local = if group.local { group } else { other };
            let average =
                total(group.level, |g| g.weight[1]) / total(group.level, |g| g.weight[0]).max(1e-300);
            let keeps = match () {
                () if panic => local.weight[0] / total(group.level, |g| g.weight[0]),
                () if average > 0.0 => (well(local) / average).min(1.0),
                () => 1.0,
            };
            level * if group.local { keeps } else { 1.0 - keeps }
        })
        .collect()
}

proptest! {
    #[test]
    fn shares_equal_the_written_rules(
        sizes in prop::collection::vec((0..3_u8, (1..10_u32, 0..10_u32), (1..10_u32, 0..10_u32)), 1..4),
        threshold in prop::option::of(0..=100_u32),
    ) {
        let tally = |level, local, (count, well): (u32, u32)| {
            let well = well.min(count);
            let weight = [f64::from(count) * 3.0, f64::from(well) * 3.0];
            Tally { level, local, count: [count, well], weight }
        };
        let groups: Vec<Tally> = (0..).zip(&sizes).flat_map(|(level, (zones, ours, others))| {
            let (ours, others) = (tally(level, true, *ours), tally(level, false, *others));
            match zones {
                0 => vec![ours],
                1 => vec![others],
                _ => vec![ours, others],
            }
        }).collect();
        let (shares, _) = shares(&groups, threshold);
        prop_assert!((shares.iter().sum::<f64>() - 1.0).abs() < 1e-9, "{shares:?}");
        for (share, expected) in shares.iter().zip(oracle(&groups, threshold)) {
            prop_assert!((share - expected).abs() < 1e-9, "{shares:?} but {expected}");
        }
    }
}
