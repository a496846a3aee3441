//! Shares over many picks, and keys that move, for random weights.

use proptest::prelude::*;

use super::*;

/// Half of the sum of all differences: the part of the traffic that is at the wrong endpoint.
fn misplaced(counts: &[u32], weights: &[u32]) -> f64 {
    let total: f64 = weights.iter().map(|weight| f64::from(*weight)).sum();
    let all: f64 = counts.iter().map(|count| f64::from(*count)).sum();
    let parts = counts
        .iter()
        .zip(weights)
        .map(|(count, weight)| (f64::from(*count) / all - f64::from(*weight) / total).abs());
    parts.sum::<f64>() / 2.0
}

fn weights() -> impl Strategy<Value = Vec<u32>> {
    prop_oneof![
        prop::collection::vec(1_u32..100, 1..20),
        prop::collection::vec(Just(1_u32), 1..40),
        prop::collection::vec(1_u32..1_000_000, 2..5),
    ]
}

/// The part of `keys` that `b` sends elsewhere than `a` does, by id.
fn moved(a: &[Member], b: &[Member]) -> f64 {
    let (before, after) = (Set::new(&of(hashed()), a), Set::new(&of(hashed()), b));
    let moved = (0..20_000_u64)
        .map(|key| key.wrapping_mul(MIX))
        .filter(|key| a[before.pick_by(*key)].id != b[after.pick_by(*key)].id);
    f64::from(u32::try_from(moved.count()).expect("few")) / 20_000.0
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    #[test]
    fn each_algorithm_is_within_two_percent_of_the_weights(weights in weights()) {
        let total: f64 = weights.iter().map(|weight| f64::from(*weight)).sum();
        for algorithm in algorithms() {
            let counts = Set::weighted(algorithm.clone(), &weights).counts(None);
            let wrong = misplaced(&counts, &weights);
            prop_assert!(wrong <= 0.02, "{algorithm:?}: {wrong} {counts:?}");
            for (count, weight) in counts.iter().zip(&weights) {
                prop_assert!(is_share(*count, f64::from(*weight) / total), "{algorithm:?}: {counts:?}");
            }
        }
    }

    /// Against counting turns by hand: after any number of them nobody is more than a round away.
    #[test]
    fn weighted_turns_never_stray(weights in prop::collection::vec(1_u32..50, 1..10)) {
        let set = Set::weighted(Algorithm::RoundRobin, &weights);
        let total: f64 = weights.iter().map(|weight| f64::from(*weight)).sum();
        let mut counts = vec![0.0; weights.len()];
        for turn in 1..=1000_u32 {
            counts[set.pick(None).expect("usable")] += 1.0;
            for (count, weight) in counts.iter().zip(&weights) {
                let ideal = f64::from(turn) * f64::from(*weight) / total;
                #[expect(clippy::cast_precision_loss, reason = "a few")]
                let slack = 1.0 + weights.len() as f64 * f64::from(*weight) / total;
                prop_assert!((count - ideal).abs() <= slack, "turn {turn}: {counts:?}");
            }
        }
    }

    #[test]
    fn little_more_than_its_share_of_keys_moves_with_an_endpoint(
        weights in prop::collection::vec(1_u32..10, 2..40),
        leaving in any::<prop::sample::Index>(),
    ) {
        let all: Vec<Member> = (0..).zip(&weights).map(|(id, weight)| member(id, *weight)).collect();
        let mut rest = all.clone();
        let gone = rest.remove(leaving.index(all.len()));
        let total: u32 = weights.iter().sum();
        let share = f64::from(gone.weight) / f64::from(total);
        for part in [moved(&all, &rest), moved(&rest, &all)] {
            prop_assert!(part <= share + 0.04, "{part} of {share} moved");
        }
    }

    /// Whatever keys come, nobody has more than 1.25 times its share, rounded up, or a few.
    #[test]
    fn load_is_bounded(
        weights in prop::collection::vec(1_u32..10, 1..10),
        keys in prop::collection::vec(0_u64..5, 1..400),
        out in any::<prop::sample::Index>(),
    ) {
        let set = Set::weighted(hashed(), &weights);
        let out = out.index(weights.len());
        if weights.len() > 1 {
            set.set(out, Health::Ejected);
        }
        let usable = |index: usize| weights.len() == 1 || index != out;
        let total: f64 = (0..).zip(&weights).filter(|(i, _)| usable(*i)).map(|(_, w)| f64::from(*w)).sum();
        for (all, key) in (1_u32..).zip(&keys) {
            let index = set.pick_by(key.wrapping_mul(MIX));
            set.endpoints[index].load.begin();
            prop_assert!(usable(index));
            let bound = (1.25 * f64::from(all) * f64::from(weights[index]) / total).ceil();
            let has = f64::from(set.endpoints[index].load.in_flight());
            prop_assert!(has <= bound.max(f64::from(FEW)), "{has} of {all}, bound {bound}");
        }
    }
}

#[test]
fn thousands_of_endpoints_have_a_table_too() {
    for count in [128_u64, 129, 2000] {
        let members: Vec<Member> = (0..count).map(|id| member(id, 1)).collect();
        let counts = Set::new(&of(hashed()), &members).counts(None);
        let weights = vec![1; members.len()];
        // 50 picks for each of 2000 differ by chance more than by the table.
        assert!(misplaced(&counts, &weights) <= if count > 200 { 0.08 } else { 0.02 });
        assert!(moved(&members, &members[1..]) <= if count == 129 { 1.0 } else { 0.05 });
    }
    let mut weights = vec![1; 2000];
    weights[0] = u32::MAX;
    let counts = Set::weighted(hashed(), &weights).counts(None);
    assert!(counts[0] > 99_900, "{}", counts[0]);
}
