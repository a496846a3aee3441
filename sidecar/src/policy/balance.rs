//! Which endpoint gets a request: the better of two drawn at random.
//!
//! Two draws are nearly as good as looking at all (Mitzenmacher, "The power of
//! two choices in randomized load balancing"), cost the same for two and for
//! ten thousand endpoints, and workers that know nothing of each other do not
//! all run to the same one. Weights act on the draw, and on how many requests
//! in flight count as many.
//!
//! The slice need not be filtered: candidates that admit nothing are passed
//! over. What to do when none is left is the caller's part (see "panic" in
//! [`crate::policy::ejection`]).

use std::time::Instant;

use crate::policy::ewma::PeakEwma;
use crate::policy::rng::Rng;

/// What the balancer asks of an endpoint.
pub trait Candidate {
    /// Its load.
    fn load(&self) -> &PeakEwma;
    /// Its relative share of traffic, at least 1.
    fn weight(&self) -> u32;
    /// Whether it may get a request now: healthy, not ejected, not full.
    fn admits(&self, now: Instant) -> bool;
}

/// Draws before the whole slice is looked at: with half of the candidates out,
/// 8 draws miss all others once in 256.
const DRAWS: u32 = 8;

/// The weights of a slice of candidates, prepared for draws when the slice changes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Weights {
    /// Running sums; empty if all weights are equal, as they mostly are.
    sums: Box<[u64]>,
}

impl Weights {
    /// Prepares the weights of the candidates, in their order; 0 counts as 1.
    pub fn of(weights: impl IntoIterator<Item = u32>) -> Self {
        let weights: Vec<u64> = weights.into_iter().map(|weight| u64::from(weight.max(1))).collect();
        if weights.windows(2).all(|pair| pair[0] == pair[1]) {
            return Self::default();
        }
        let sums = weights.into_iter().scan(0, |sum, weight| {
            *sum += weight;
            Some(*sum)
        });
        Self { sums: sums.collect() }
    }

    fn are_equal(&self) -> bool {
        self.sums.is_empty()
    }
}

/// The index of the candidate that gets the next request; `None` if none
/// admits one. `exclude` is the endpoint that just failed: it is taken only if
/// there is no other. `weights` are those of the same slice.
pub fn pick<C: Candidate>(
    candidates: &[C],
    weights: &Weights,
    exclude: Option<usize>,
    rng: &Rng,
    now: Instant,
) -> Option<usize> {
    let usable = |index: usize| Some(index) != exclude && candidates[index].admits(now);
    let last_resort = || exclude.filter(|&index| candidates.get(index).is_some_and(|c| c.admits(now)));
    let drawn = match candidates.len() {
        0 => return None,
        1 => return candidates[0].admits(now).then_some(0),
        len => (0..DRAWS).map(|_| draw(len, weights, rng)).find(|&index| usable(index)),
    };
    let Some(first) = drawn.or_else(|| scan(candidates.len(), rng, usable)) else {
        return last_resort();
    };
    // With equal weights the second is another one. With different weights it
    // may be the same: of a pair, both would be drawn always and weights be lost.
    let len = candidates.len();
    let second = if weights.are_equal() {
        let next = first + 1 + rng.index(len - 1);
        if next < len { next } else { next - len }
    } else {
        draw(len, weights, rng)
    };
    if second == first || !usable(second) {
        return Some(first);
    }
    let (a, b) = (&candidates[first], &candidates[second]);
    let (weight, rival_weight) = if weights.are_equal() {
        (1.0, 1.0)
    } else {
        (f64::from(a.weight().max(1)), f64::from(b.weight().max(1)))
    };
    // On a tie the first: it was drawn at random.
    Some(if a.load().beats(b.load(), weight, rival_weight, now) { first } else { second })
}

/// A random index, in proportion to the weights.
#[inline]
fn draw(len: usize, weights: &Weights, rng: &Rng) -> usize {
    match weights.sums.last() {
        None => rng.index(len),
        Some(&total) => {
            let point = rng.below(total);
            weights.sums.partition_point(|&sum| sum <= point).min(len - 1)
        }
    }
}

/// The first usable index from a random place on.
#[cold]
fn scan(len: usize, rng: &Rng, usable: impl Fn(usize) -> bool) -> Option<usize> {
    let start = rng.index(len);
    (start..len).chain(0..start).find(|&index| usable(index))
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::time::Duration;

    use super::*;

    struct Endpoint {
        load: PeakEwma,
        weight: u32,
        admits: Cell<bool>,
    }

    impl Candidate for Endpoint {
        fn load(&self) -> &PeakEwma {
            &self.load
        }

        fn weight(&self) -> u32 {
            self.weight
        }

        fn admits(&self, _: Instant) -> bool {
            self.admits.get()
        }
    }

    fn endpoints(weights: &[u32]) -> (Vec<Endpoint>, Weights) {
        let endpoint = |&weight| Endpoint { load: PeakEwma::default(), weight, admits: Cell::new(true) };
        (weights.iter().map(endpoint).collect(), Weights::of(weights.iter().copied()))
    }

    fn picks(endpoints: &[Endpoint], weights: &Weights, exclude: Option<usize>, now: Instant) -> Vec<u32> {
        let rng = Rng::new(42);
        let mut counts = vec![0; endpoints.len()];
        for _ in 0..100_000 {
            counts[pick(endpoints, weights, exclude, &rng, now).expect("one is usable")] += 1;
        }
        counts
    }

    /// Within five standard deviations of a binomial distribution.
    fn is_share(count: u32, share: f64) -> bool {
        let n = 100_000.0;
        (f64::from(count) - n * share).abs() <= 5.0 * (n * share * (1.0 - share)).sqrt()
    }

    #[test]
    fn equals_share_evenly() {
        let now = Instant::now();
        for measured in [false, true] {
            let (endpoints, weights) = endpoints(&[3; 7]);
            if measured {
                endpoints.iter().for_each(|e| e.load.answered(Duration::from_millis(1), now));
            }
            let counts = picks(&endpoints, &weights, None, now);
            assert!(counts.iter().all(|&count| is_share(count, 1.0 / 7.0)), "{counts:?}");
        }
    }

    #[test]
    fn the_better_of_two_random_ones_wins_so_the_worst_never_does() {
        let now = Instant::now();
        let (endpoints, weights) = endpoints(&[1; 10]);
        for (rank, endpoint) in (1..).zip(&endpoints) {
            // Far enough apart not to be alike.
            endpoint.load.answered(Duration::from_micros(5_u64.pow(rank)), now);
        }
        let counts = picks(&endpoints, &weights, None, now);
        // The k-th best of n wins against the n - k worse ones: 2(n - k) / n(n - 1).
        for (k, &count) in (1..).zip(&counts) {
            assert!(is_share(count, 2.0 * f64::from(10 - k) / 90.0), "{counts:?}");
        }
    }

    #[test]
    fn weights_are_shares_when_all_else_is_equal() {
        let now = Instant::now();
        let (pair, weights) = endpoints(&[2, 1]);
        let counts = picks(&pair, &weights, None, now);
        assert!(is_share(counts[0], 2.0 / 3.0), "{counts:?}");
        let (many, weights) = endpoints(&[1, 1000, 1, 998]);
        let counts = picks(&many, &weights, None, now);
        assert!(is_share(counts[1], 0.5) && is_share(counts[3], 0.499), "{counts:?}");
    }

    #[test]
    fn requests_in_flight_settle_in_proportion_to_weights() {
        let now = Instant::now();
        let (endpoints, weights) = endpoints(&[3, 1]);
        endpoints.iter().for_each(|e| e.load.answered(Duration::from_millis(1), now));
        let rng = Rng::new(1);
        for _ in 0..4000 {
            let index = pick(&endpoints, &weights, None, &rng, now).expect("usable");
            endpoints[index].load.begin();
        }
        let heavy = endpoints[0].load.in_flight();
        assert!((2950..=3050).contains(&heavy), "{heavy}");
    }

    #[test]
    fn what_failed_is_taken_again_only_if_there_is_no_other() {
        let now = Instant::now();
        let (endpoints, weights) = endpoints(&[1, 1, 1]);
        assert_eq!(picks(&endpoints, &weights, Some(1), now)[1], 0);
        endpoints[0].admits.set(false);
        assert_eq!(picks(&endpoints, &weights, Some(1), now), [0, 0, 100_000]);
        endpoints[2].admits.set(false);
        assert_eq!(picks(&endpoints, &weights, Some(1), now), [0, 100_000, 0]);
        endpoints[1].admits.set(false);
        assert_eq!(pick(&endpoints, &weights, Some(1), &Rng::new(0), now), None);
        // An index from before the slice changed.
        assert_eq!(pick(&endpoints, &weights, Some(9), &Rng::new(0), now), None);
        assert_eq!(pick(&endpoints[..0], &weights, None, &Rng::new(0), now), None);
    }

    #[test]
    fn the_only_usable_one_of_many_is_always_found() {
        let now = Instant::now();
        let (endpoints, weights) = endpoints(&[1; 1000]);
        endpoints.iter().for_each(|e| e.admits.set(false));
        endpoints[777].admits.set(true);
        let rng = Rng::new(3);
        assert!((0..100).all(|_| pick(&endpoints, &weights, None, &rng, now) == Some(777)));
    }

    #[test]
    fn an_endpoint_ten_times_slower_gets_a_small_share_under_load() {
        // Closed loop with 8 clients, simulated in steps of 100 µs: two
        // endpoints answer after 1 ms, one after 10 ms.
        let start = Instant::now();
        let (endpoints, weights) = endpoints(&[1; 3]);
        let rng = Rng::new(5);
        let mut counts = [0_u32; 3];
        let mut clients = [(0_u64, None); 8];
        for step in 0..100_000_u64 {
            let now = start + Duration::from_micros(100) * u32::try_from(step).expect("small");
            for (until, using) in &mut clients {
                if step < *until {
                    continue;
                }
                let time = |index| if index == 2 { 100 } else { 10 };
                if let Some(index) = *using {
                    let endpoint: &Endpoint = &endpoints[index];
                    endpoint.load.end();
                    endpoint.load.answered(Duration::from_micros(100 * time(index)), now);
                }
                let index = pick(&endpoints, &weights, None, &rng, now).expect("usable");
                endpoints[index].load.begin();
                counts[index] += 1;
                (*until, *using) = (step + time(index), Some(index));
            }
        }
        let total: u32 = counts.iter().sum();
        assert!(counts[2] * 50 < total, "below 2 %: {counts:?}");
        assert!(counts[2] > 0, "but not forgotten: {counts:?}");
        assert!(counts[0].abs_diff(counts[1]) * 10 < total, "{counts:?}");
    }
}
