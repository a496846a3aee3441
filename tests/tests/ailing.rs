//! How fast traffic leaves a replica that does badly, and how it comes back.

use std::ops::Range;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::ensure;
use heddle_tests::backend::{Front, HOST};
use heddle_tests::open_loop::{OpenLoop, Sample, Summary};
use heddle_tests::replica::{Condition, Replica};
use heddle_tests::trials::one_of_three;

const MS: Duration = Duration::from_millis(1);

/// Requests per second; a third of them is each replica's share.
const RATE: u32 = 300;

/// What a request takes: far more than the moments for which a busy machine lets a replica
/// wait, which would else be most of what is measured.
const TIME: Duration = Duration::from_millis(25);

/// Three replicas under a policy and a steady load, of which the first `turns` after a while.
struct Trial {
    replicas: [Replica; 3],
    front: Front,
}

impl Trial {
    fn new(policy: &str) -> Self {
        let replicas = [(); 3].map(|()| Replica::start(TIME, 64));
        let ports = replicas.each_ref().map(|replica| replica.address().port());
        let front = Front::start(policy, "http", &ports);
        Self { replicas, front }
    }

    /// Applies the load for `time`, and at these moments of it, in order, turns the first
    /// replica: when it began, and what the clients saw.
    fn run(&self, time: Duration, turns: &[(Duration, Condition)]) -> (Instant, Vec<Sample>) {
        let load = OpenLoop {
            at: self.front.outbound(),
            host: HOST,
            rate: RATE,
            time,
            patience: Duration::from_secs(20),
        };
        let begun = Instant::now();
        let load = thread::spawn(move || load.run());
        for (at, condition) in turns {
            thread::sleep((begun + *at).saturating_duration_since(Instant::now()));
            self.replicas[0].turns(*condition);
        }
        (begun, load.join().expect("the load does not panic"))
    }

    /// The requests of a time that went to each replica.
    fn hits(&self, between: Range<Instant>) -> [usize; 3] {
        self.replicas.each_ref().map(|replica| replica.hits(between.clone()))
    }

    /// The share of the first replica in them, where a third is fair.
    fn share(&self, between: Range<Instant>) -> f64 {
        let hits = self.hits(between);
        hits[0] as f64 / hits.iter().sum::<usize>().max(1) as f64
    }
}

#[test]
fn a_stalled_replica_loses_its_share_within_two_seconds() {
    for policy in ["  retry: {attempts: 1}", "  loadBalancer: {algorithm: LeastRequest}"] {
        one_of_three(|| {
            let trial = Trial::new(policy);
            let stalls = 1500 * MS;
            let (begun, samples) =
                trial.run(6000 * MS, &[(stalls, Condition::Stalled), (5000 * MS, Condition::Well)]);
            assert_eq!(Summary::of(samples).success(), 100.0, "late, but answered");
            let before = trial.share(begun..begun + stalls);
            ensure!((0.2..0.5).contains(&before), "{policy}: {before} of all requests before");
            let after = trial.share(begun + stalls + 2000 * MS..begun + 5000 * MS);
            ensure!(after <= 0.05 / 3.0, "{policy}: {after} of all requests after two seconds");
            Ok(())
        });
    }
}

#[test]
fn a_slow_replica_loses_its_share_within_ten_requests() {
    one_of_three(|| {
        let trial = Trial::new("  retry: {attempts: 1}");
        let (slow, end) = (1500 * MS, 5500 * MS);
        let (begun, _) = trial.run(end, &[(slow, Condition::Slow(9 * TIME))]);
        let hits = trial.hits(begun + slow..begun + end);
        let fair = hits.iter().sum::<usize>() / 3;
        ensure!(fair >= RATE as usize, "the load did not go on: {hits:?}");
        ensure!(hits[0] <= 10 + fair / 20, "{hits:?} where {fair} were fair");
        Ok(())
    });
}

#[test]
fn a_recovered_replica_is_back_in_time_and_without_a_spike() {
    // In turn: a balancer that looks at failures would leave it before its circuit opens.
    let policy = "
  loadBalancer: {algorithm: RoundRobin}
  circuitBreaker: {consecutiveFailures: 3, open: {base: 1s, max: 1s}}
  retry: {attempts: 2, on: ['503']}";
    one_of_three(|| {
        let trial = Trial::new(policy);
        let (ill, well) = (1000 * MS, 1300 * MS);
        let (begun, samples) =
            trial.run(5000 * MS, &[(ill, Condition::Unavailable), (well, Condition::Well)]);
        let good = Summary::of(samples).success();
        ensure!(good == 100.0, "{good} % good");
        let ejected = trial.share(begun + well..begun + ill + 900 * MS);
        ensure!(ejected < 0.02, "{ejected} while it was out");
        // Out for a second from a moment after it fell ill, and a bit until it has its share.
        let back = trial.share(begun + 2500 * MS..begun + 5000 * MS);
        ensure!((0.2..0.5).contains(&back), "{back} after its opening time");
        for nth in 0..30 {
            let from = begun + ill + 1000 * MS + nth * 100 * MS;
            let hits = trial.hits(from..from + 100 * MS);
            let fair = hits.iter().sum::<usize>() / 3;
            ensure!(hits[0] <= 2 * fair + 5, "{hits:?} in 100 ms where {fair} are fair");
        }
        Ok(())
    });
}
