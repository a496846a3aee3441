//! Five replicas that are killed, refuse, stall and cut their answers, in turn
//! and at once, under a steady load. `HEDDLE_CHAOS` says for how many seconds
//! and at how many requests per second, as in
//! `HEDDLE_CHAOS=600,1000 cargo test --release -p heddle-tests --test chaos -- --nocapture`.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::ensure;
use heddle_tests::open_loop::{OpenLoop, Summary};
use heddle_tests::replica::{Condition, Replica};
use heddle_tests::trials::one_of_three;
use heddle_tests::{ControlPlane, Process, eventually, get};

const HOST: &str = "users:8080";
const REPLICAS: usize = 5;
/// So many of them are always well, and have been for [`SETTLED`].
const WELL: usize = 2;
/// One that recovers is well as soon as its circuit may have been tried again: `open.max`.
const SETTLED: Duration = Duration::from_secs(1);

/// What a client that may repeat its requests would ask for.
const POLICY: &str = "
  timeouts: {request: 5s, perTry: 250ms}
  retry:
    attempts: 3
    on: [ConnectFailure, RefusedStream, Reset, GatewayError, PerTryTimeout]
    budget: {percent: 20, minPerSecond: 10}
  circuitBreaker: {consecutiveFailures: 3, open: {base: 500ms, max: 1s}, maxEjectedPercent: 80}
";

/// What a client without a mesh does: it takes one after the other, whatever that did before, and tries once.
const NONE: &str = "
  loadBalancer: {algorithm: RoundRobin}
  timeouts: {request: 5s}
  retry: {attempts: 0}
  circuitBreaker: {consecutiveFailures: 1000000}
";

struct Workload {
    replica: Replica,
    sidecar: Process,
    /// Until when it is ill; for one that was killed, when it starts again.
    ill: Option<(Illness, Instant)>,
    /// When it was last ill.
    recovered: Option<Instant>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Illness {
    Killed,
    Condition(Condition),
}

impl Workload {
    fn start(control_plane: &ControlPlane) -> Self {
        let replica = Replica::start(Duration::from_millis(2), 64);
        let address = replica.address().to_string();
        let sidecar = control_plane.sidecar("users", ["--port", "http:8080:http", "--app", &address]);
        Self { replica, sidecar, ill: None, recovered: None }
    }

    fn falls_ill(&mut self, illness: Illness, until: Instant) {
        match illness {
            Illness::Killed => self.sidecar.kill(),
            Illness::Condition(condition) => self.replica.turns(condition),
        }
        self.ill = Some((illness, until));
    }

    fn recovers(&mut self, control_plane: &ControlPlane) {
        match self.ill.take() {
            Some((Illness::Killed, _)) => *self = Self::start(control_plane),
            _ => self.replica.turns(Condition::Well),
        }
        self.sidecar.said("the sidecar is ready");
        self.recovered = Some(Instant::now());
    }

    fn is_well(&self) -> bool {
        self.ill.is_none() && self.recovered.is_none_or(|recovered| recovered.elapsed() >= SETTLED)
    }
}

/// A sequence that is the same in every run (Knuth, "MMIX", linear congruential).
struct Dice(u64);

impl Dice {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % bound
    }
}

/// Makes replicas ill until `end`; how often.
fn havoc(control_plane: &ControlPlane, workloads: &mut [Workload], end: Instant) -> usize {
    let (mut dice, mut count) = (Dice(7), 0);
    while Instant::now() < end {
        let now = Instant::now();
        for workload in workloads.iter_mut().filter(|w| w.ill.is_some_and(|(_, until)| until <= now)) {
            workload.recovers(control_plane);
        }
        let well: Vec<_> = (0..workloads.len()).filter(|at| workloads[*at].is_well()).collect();
        if well.len() > WELL {
            let (illness, time) = match dice.below(4) {
                0 => (Illness::Killed, 1000 + dice.below(2000)),
                1 => (Illness::Condition(Condition::Unavailable), 500 + dice.below(1500)),
                2 => (Illness::Condition(Condition::Stalled), 2000),
                _ => (Illness::Condition(Condition::Cut), 500 + dice.below(500)),
            };
            let chosen = well[usize::try_from(dice.below(well.len() as u64)).expect("there are few")];
            workloads[chosen].falls_ill(illness, now + Duration::from_millis(time));
            count += 1;
        }
        thread::sleep(Duration::from_millis(500 + dice.below(1500)));
    }
    count
}

/// What the load comes to under a policy, and the retries that it took.
#[allow(clippy::print_stdout)]
fn endure(policy: &str, seconds: u64, rate: u32) -> anyhow::Result<(Summary, f64)> {
    let control_plane = ControlPlane::start();
    control_plane.apply(
        "policy.yaml",
        &format!(
            "
apiVersion: heddle.dev/v1alpha1
kind: TrafficPolicy
metadata: {{name: users}}
spec:
  targetRefs: [{{group: '', kind: Service, name: users}}]{policy}"
        ),
    );
    let mut workloads: Vec<_> = (0..REPLICAS).map(|_| Workload::start(&control_plane)).collect();
    control_plane.workloads("users", REPLICAS);
    let client = control_plane.sidecar("client", [] as [&str; 0]);
    client.said("the sidecar is ready");
    let at = client.listening("outbound");
    eventually("the service answers", || get(at, HOST, "/").filter(|(status, _)| *status == 200));
    let time = Duration::from_secs(seconds);
    let load = OpenLoop { at, host: HOST, rate, time, patience: Duration::from_secs(10) };
    let load = thread::spawn(move || load.run());
    let count = havoc(&control_plane, &mut workloads, Instant::now() + time);
    let samples = load.join().expect("the load does not panic");
    ensure!(count as u64 >= seconds / 3, "too little happened: {count}");
    let (_, metrics) = get(client.listening("admin"), "localhost", "/metrics").expect("the sidecar answers");
    let retries = metrics.lines().filter(|line| line.starts_with("heddle_retries_total{"));
    let retries = retries.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum();
    let mut failed = std::collections::BTreeMap::<Option<u16>, usize>::new();
    for sample in samples.iter().filter(|sample| sample.status != Some(200)) {
        *failed.entry(sample.status).or_default() += 1;
    }
    println!("failed, by status: {failed:?}");
    Ok((Summary::of(samples), retries))
}

#[test]
#[allow(clippy::print_stdout)]
fn requests_that_may_be_repeated_survive_what_happens_to_replicas() {
    let given = std::env::var("HEDDLE_CHAOS").unwrap_or_default();
    let (seconds, rate) = given.split_once(',').unwrap_or(("20", "200"));
    let (seconds, rate) = (seconds.parse().expect("seconds"), rate.parse().expect("a rate"));
    one_of_three(|| {
        let (with, retries) = endure(POLICY, seconds, rate)?;
        println!("with the policy: {with}; {retries} retries");
        let budget = with.requests as f64 * 0.2 + 10.0 * (seconds + 10) as f64;
        assert!(retries > 0.0 && retries <= budget, "{retries} retries, {budget} allowed");
        ensure!(with.success() >= 99.95, "{with}");
        let (without, _) = endure(NONE, seconds, rate)?;
        println!("without it: {without}");
        ensure!(without.success() < 99.0, "it was no trial: {without}");
        Ok(())
    });
}
