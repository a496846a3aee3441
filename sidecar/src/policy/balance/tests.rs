//! Rules that hold for one algorithm, and for what stands around all of them.

mod distribution;
mod groups;
mod simulation;

use std::cell::Cell;

use super::*;

/// An endpoint whose state the test sets.
struct Endpoint {
    load: PeakEwma,
    health: Cell<Health>,
}

impl Candidate for Endpoint {
    fn load(&self) -> &PeakEwma {
        &self.load
    }

    fn health(&self) -> Health {
        self.health.get()
    }

    fn admits(&self, _: Instant) -> bool {
        self.health.get() == Health::Well
    }
}

fn member(id: u64, weight: u32) -> Member {
    let id = crate::policy::hash_key::hash(&id.to_le_bytes());
    Member { id, weight, priority: 0, local: false, since: None }
}

fn of(algorithm: Algorithm) -> Balancing {
    Balancing { algorithm, ..Balancing::default() }
}

fn hashed() -> Algorithm {
    Algorithm::ConsistentHash(HashOn::SourceIp)
}

fn algorithms() -> [Algorithm; 5] {
    [Algorithm::PeakEwma, Algorithm::LeastRequest, Algorithm::RoundRobin, Algorithm::Random, hashed()]
}

/// A destination under test.
struct Set {
    endpoints: Vec<Endpoint>,
    balancer: Balancer,
    rng: Rng,
    now: Instant,
}

impl Set {
    fn new(policy: &Balancing, members: &[Member]) -> Self {
        let (rng, now) = (Rng::new(42), Instant::now());
        let endpoint = |_: &Member| Endpoint { load: PeakEwma::default(), health: Cell::new(Health::Well) };
        let balancer = Balancer::new(policy, members.into(), &rng, now);
        let set = Self { endpoints: members.iter().map(endpoint).collect(), balancer, rng, now };
        set.survey();
        set
    }

    fn weighted(algorithm: Algorithm, weights: &[u32]) -> Self {
        let members: Vec<Member> = (0..).zip(weights).map(|(id, weight)| member(id, *weight)).collect();
        Self::new(&of(algorithm), &members)
    }

    fn survey(&self) {
        self.balancer.survey(&self.endpoints, self.now);
    }

    fn set(&self, index: usize, health: Health) {
        self.endpoints[index].health.set(health);
        self.survey();
    }

    fn in_flight(&self) -> u32 {
        self.endpoints.iter().map(|endpoint| endpoint.load.in_flight()).sum()
    }

    /// A pick; where keys are hashed each request has a key of its own.
    fn pick(&self, avoid: Option<usize>) -> Option<usize> {
        self.pick_among(self.in_flight(), avoid)
    }

    fn pick_among(&self, in_flight: u32, avoid: Option<usize>) -> Option<usize> {
        let key = Key { hash: self.rng.bits(), in_flight };
        self.balancer.pick(&self.endpoints, Some(key), avoid, &self.rng, self.now)
    }

    fn pick_by(&self, hash: u64) -> usize {
        let key = Key { hash, in_flight: self.in_flight() };
        let picked = self.balancer.pick(&self.endpoints, Some(key), None, &self.rng, self.now);
        picked.expect("one is usable")
    }

    /// How often each gets one of 100,000 requests that take no time.
    fn counts(&self, avoid: Option<usize>) -> Vec<u32> {
        let mut counts = vec![0; self.endpoints.len()];
        let in_flight = self.in_flight();
        for _ in 0..100_000 {
            counts[self.pick_among(in_flight, avoid).expect("one is usable")] += 1;
        }
        counts
    }
}

/// Whether it is a share of 100,000 within 2 % of it and five standard deviations of a draw.
fn is_share(count: u32, share: f64) -> bool {
    let n = 100_000.0;
    let chance = 5.0 * (n * share * (1.0 - share).max(0.0)).sqrt();
    (f64::from(count) - n * share).abs() <= 0.02 * n * share + chance + 1.0
}

#[test]
fn what_failed_is_taken_again_only_if_there_is_no_other() {
    for algorithm in algorithms() {
        let set = Set::weighted(algorithm.clone(), &[1, 1, 1]);
        assert_eq!(set.counts(Some(1))[1], 0, "{algorithm:?}");
        set.set(0, Health::Unhealthy);
        assert_eq!(set.counts(Some(1)), [0, 0, 100_000]);
        set.set(2, Health::Unhealthy);
        assert_eq!(set.counts(Some(1)), [0, 100_000, 0]);
        set.set(1, Health::Unhealthy);
        assert_eq!(set.pick(Some(1)), None);
        // An index from before the slice changed.
        assert_eq!(set.pick(Some(9)), None);
        assert_eq!(Set::weighted(algorithm, &[]).pick(None), None);
    }
}

#[test]
fn the_only_usable_one_of_many_is_always_found() {
    for algorithm in algorithms() {
        for weights in [[1; 1000], std::array::from_fn(|i| if i == 777 { 1 } else { 1000 })] {
            let set = Set::weighted(algorithm.clone(), &weights);
            set.endpoints.iter().for_each(|endpoint| endpoint.health.set(Health::Unhealthy));
            set.set(777, Health::Well);
            assert!((0..100).all(|_| set.pick(None) == Some(777)), "{algorithm:?}");
        }
    }
}

#[test]
fn the_ejected_are_used_when_nobody_else_is_left_unless_panic_is_off() {
    for algorithm in algorithms() {
        let set = Set::weighted(algorithm.clone(), &[1, 1, 1, 1]);
        [Health::Ejected, Health::Unhealthy, Health::Ejected, Health::Draining]
            .into_iter()
            .enumerate()
            .for_each(|(index, health)| set.set(index, health));
        let counts = set.counts(None);
        assert!(is_share(counts[0], 0.5) && is_share(counts[2], 0.5), "{algorithm:?} {counts:?}");
        let policy = Balancing { panic_threshold: Some(0), ..of(algorithm) };
        let off = Set::new(&policy, &[member(0, 1)]);
        off.set(0, Health::Ejected);
        assert_eq!(off.pick(None), None);
    }
}

#[test]
fn round_robin_alternates_strictly_and_skips_who_is_out() {
    let set = Set::weighted(Algorithm::RoundRobin, &[7, 7, 7]);
    let first = set.pick(None).expect("usable");
    for turn in 1..100 {
        assert_eq!(set.pick(None), Some((first + turn) % 3));
    }
    set.set(1, Health::Unhealthy);
    let turns: Vec<_> = (0..6).map(|_| set.pick(None).expect("usable")).collect();
    assert!(turns == [0, 2, 0, 2, 0, 2] || turns == [2, 0, 2, 0, 2, 0], "{turns:?}");
}

#[test]
fn weighted_turns_come_evenly_and_are_not_made_up_for_after_an_absence() {
    let set = Set::weighted(Algorithm::RoundRobin, &[5, 1, 1]);
    let turns: Vec<_> = (0..70).map(|_| set.pick(None).expect("usable")).collect();
    for rounds in turns.windows(7) {
        assert!(rounds.iter().filter(|turn| **turn == 0).count().abs_diff(5) <= 1, "{turns:?}");
    }
    set.set(0, Health::Unhealthy);
    (0..1000).for_each(|_| assert_ne!(set.pick(None), Some(0)));
    set.set(0, Health::Well);
    let back: Vec<_> = (0..14).map(|_| set.pick(None).expect("usable")).collect();
    assert!(back.iter().filter(|turn| **turn == 0).count() <= 11, "{back:?}");
}

#[test]
fn the_better_of_two_random_ones_wins_so_the_worst_never_does() {
    let latency = Set::weighted(Algorithm::PeakEwma, &[1; 10]);
    let queue = Set::weighted(Algorithm::LeastRequest, &[1; 10]);
    for rank in 0..10_u32 {
        // Far enough apart not to be alike.
        let load = &latency.endpoints[rank as usize].load;
        load.answered(Duration::from_micros(5_u64.pow(rank)), latency.now);
        (0..rank).for_each(|_| queue.endpoints[rank as usize].load.begin());
    }
    for set in [latency, queue] {
        // The k-th best of n wins against the n - k worse ones: 2(n - k) / n(n - 1).
        let counts = set.counts(None);
        for (k, &count) in (1..).zip(&counts) {
            assert!(is_share(count, 2.0 * f64::from(10 - k) / 90.0), "{counts:?}");
        }
    }
}

#[test]
fn requests_in_flight_settle_in_proportion_to_weights() {
    for algorithm in [Algorithm::PeakEwma, Algorithm::LeastRequest] {
        let set = Set::weighted(algorithm, &[3, 1]);
        set.endpoints.iter().for_each(|e| e.load.answered(Duration::from_millis(1), set.now));
        for _ in 0..4000 {
            set.endpoints[set.pick(None).expect("usable")].load.begin();
        }
        let heavy = set.endpoints[0].load.in_flight();
        assert!((2950..=3050).contains(&heavy), "{heavy}");
    }
}

#[test]
fn equal_keys_stay_together_until_their_endpoint_is_out_and_come_back_with_it() {
    let set = Set::weighted(hashed(), &[1, 2, 3, 4]);
    let keys: Vec<u64> = (0..1000).map(|_| set.rng.bits()).collect();
    let homes: Vec<usize> = keys.iter().map(|key| set.pick_by(*key)).collect();
    set.set(2, Health::Ejected);
    let mut moved = [0; 4];
    for (key, home) in keys.iter().zip(&homes) {
        let now = set.pick_by(*key);
        if *home == 2 {
            moved[now] += 1;
        } else {
            assert_eq!(now, *home, "whoever is not concerned stays");
        }
    }
    let all: u32 = moved.iter().sum();
    // By weight, within 5 standard deviations of so few.
    for (index, share) in [(0, 1.0 / 7.0), (1, 2.0 / 7.0), (3, 4.0 / 7.0)] {
        let expected = f64::from(all) * share;
        assert!((f64::from(moved[index]) - expected).abs() < 5.0 * expected.sqrt(), "{moved:?}");
    }
    set.set(2, Health::Well);
    assert!(keys.iter().zip(&homes).all(|(key, home)| set.pick_by(*key) == *home));
}

#[test]
fn a_few_requests_of_one_key_at_once_are_not_torn_apart_but_many_are() {
    let set = Set::weighted(hashed(), &[1; 5]);
    let home = set.pick_by(1);
    for _ in 0..100 {
        let index = set.pick_by(1);
        set.endpoints[index].load.begin();
    }
    let counts: Vec<u32> = set.endpoints.iter().map(|e| e.load.in_flight()).collect();
    assert!((8..=25).contains(&counts[home]), "{counts:?}");
    assert!(counts.iter().all(|count| *count <= 25), "{counts:?}");
}

#[test]
fn every_sidecar_makes_the_same_table_whatever_the_order() {
    let members: Vec<Member> =
        (0..20).map(|id| member(id, 1 + u32::try_from(id % 3).expect("small"))).collect();
    let reversed: Vec<Member> = members.iter().rev().copied().collect();
    let (a, b) = (Set::new(&of(hashed()), &members), Set::new(&of(hashed()), &reversed));
    for key in 0..1000_u64 {
        let key = key.wrapping_mul(MIX);
        assert_eq!(members[a.pick_by(key)], reversed[b.pick_by(key)]);
    }
}

#[test]
fn new_endpoints_ramp_up_in_a_line() {
    let window = Duration::from_secs(64);
    for algorithm in algorithms() {
        let policy = Balancing { slow_start: Some(window), ..of(algorithm.clone()) };
        let start = Instant::now();
        let new = Member { since: Some(start), ..member(2, 2) };
        let mut set = Set::new(&policy, &[member(0, 1), member(1, 1), new]);
        for seconds in [0_u64, 8, 16, 32, 48, 64, 100] {
            set.now = start + Duration::from_secs(seconds);
            if set.balancer.next_step().is_some_and(|step| step <= set.now) {
                set.balancer.step(&set.rng, set.now);
                set.survey();
            }
            #[expect(clippy::cast_precision_loss, reason = "seconds")]
            let weight = (2.0 * (seconds as f64 / 64.0).min(1.0)).max(1.0 / 256.0);
            let counts = set.counts(None);
            assert!(is_share(counts[2], weight / (2.0 + weight)), "{algorithm:?} {seconds} {counts:?}");
        }
        assert_eq!(set.balancer.next_step(), None, "nothing is left to do");
    }
}

#[test]
fn a_balancer_is_kept_while_what_it_was_made_from_stays() {
    let (policy, members) = (of(Algorithm::RoundRobin), [member(0, 1), member(1, 1)]);
    let set = Set::new(&policy, &members);
    assert!(set.balancer.is_of(&policy, &members));
    assert!(!set.balancer.is_of(&of(Algorithm::Random), &members));
    assert!(!set.balancer.is_of(&policy, &[member(0, 1), member(1, 2)]));
    assert!(!set.balancer.is_of(&policy, &members[..1]));
}

#[test]
fn other_weights_are_taken_on_without_a_new_balancer() {
    for algorithm in algorithms() {
        let policy = of(algorithm.clone());
        let mut set = Set::new(&policy, &[member(0, 100), member(1, 100)]);
        let lighter = [member(0, 40), member(1, 100)];
        assert!(set.balancer.reweigh(&policy, &lighter, &set.rng, set.now));
        assert!(set.balancer.is_of(&policy, &lighter));
        set.survey();
        let counts = set.counts(None);
        assert!(is_share(counts[0], 40.0 / 140.0), "{algorithm:?} {counts:?}");
        let local = Member { local: true, ..lighter[0] };
        for others in [&[lighter[0], member(2, 100)][..], &lighter[..1], &[local, lighter[1]]] {
            assert!(!set.balancer.reweigh(&policy, others, &set.rng, set.now));
        }
        assert!(set.balancer.is_of(&policy, &lighter), "nothing was changed");
    }
}
