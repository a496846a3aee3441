use proptest::prelude::*;

use super::*;

const SECOND: Duration = Duration::from_secs(1);

/// A workload whose counts grow by so much each second.
struct Workload {
    score: Score,
    sample: Sample,
}

/// What happens in a second.
#[derive(Debug, Clone, Copy)]
struct Second {
    checks: (u64, u64),
    calls: (u64, u64),
    memory: Option<f64>,
    /// Part of one processor, and of ten periods those that were cut.
    cpu: Option<(f64, u64)>,
}

/// Nothing but checks that succeed.
const WELL: Second = Second { checks: (1, 0), calls: (0, 0), memory: None, cpu: None };

impl Workload {
    fn new() -> Self {
        let sample = Sample {
            at: Instant::now(),
            ready: true,
            checks: Tally::default(),
            dependencies: Tally::default(),
            memory: None,
            cpu: None,
        };
        let mut score = Score::default();
        score.observe(sample);
        Self { score, sample }
    }

    /// One that has been well for long.
    fn warm() -> Self {
        let mut workload = Self::new();
        assert_eq!(workload.pass(30, WELL).state, State::Healthy);
        workload
    }

    fn pass(&mut self, seconds: u32, what: Second) -> Standing {
        let mut standing = None;
        for _ in 0..seconds {
            let sample = &mut self.sample;
            sample.at += SECOND;
            sample.checks.all += what.checks.0;
            sample.checks.failed += what.checks.1;
            sample.dependencies.all += what.calls.0;
            sample.dependencies.failed += what.calls.1;
            sample.memory = what.memory;
            sample.cpu = what.cpu.map(|(used, throttled)| {
                let before = sample.cpu.map_or((Duration::ZERO, 0, 0), |c| (c.used, c.periods, c.throttled));
                Cpu {
                    used: before.0 + SECOND.mul_f64(used),
                    limit: 1.0,
                    periods: before.1 + 10,
                    throttled: before.2 + throttled,
                }
            });
            standing = Some(self.score.observe(*sample));
        }
        standing.expect("some time passes")
    }
}

fn calls(all: u64, failed: u64) -> Second {
    Second { calls: (all, failed), ..WELL }
}

#[test]
fn it_warms_first_then_samples_until_there_is_enough_to_judge_by() {
    let mut quiet = Workload::new();
    let nothing = Second { checks: (0, 0), ..WELL };
    assert_eq!(quiet.pass(9, nothing), Standing { state: State::Warming, score: 50, cause: None });
    assert_eq!(quiet.pass(1, nothing), Standing { state: State::Sampling, score: 100, cause: None });
    assert_eq!(quiet.pass(300, calls(1, 0)).state, State::Healthy, "ten checks in a window");
    assert_eq!(quiet.pass(300, nothing).state, State::Healthy, "what is quiet stays what it was");
}

#[test]
fn failing_dependencies_cost_a_part_and_never_all() {
    for (failed, state) in [
        (0, State::Healthy),
        (1, State::Healthy),
        (3, State::Degraded),
        (5, State::Degraded),
        (6, State::Warning),
        (10, State::Warning),
    ] {
        let mut workload = Workload::warm();
        let standing = workload.pass(30, calls(10, failed));
        assert_eq!(standing.state, state, "{failed} of 10");
        assert_eq!(standing.cause, (state != State::Healthy).then_some(Signal::Dependencies));
        assert!(standing.score >= 40);
        assert_eq!(workload.pass(16, calls(10, 0)).state, State::Healthy, "it recovers");
    }
    let mut few = Workload::warm();
    assert_eq!(few.pass(30, calls(1, 1)).state, State::Healthy, "ten in a window say nothing");
}

#[test]
fn own_checks_memory_and_processor_each_count_and_the_worst_decides() {
    let mut flaky = Workload::warm();
    let half = Second { checks: (2, 1), ..WELL };
    assert_eq!(
        flaky.pass(30, half),
        Standing { state: State::Critical, score: 10, cause: Some(Signal::Checks) }
    );
    for (memory, state) in
        [(0.8, State::Healthy), (0.9, State::Degraded), (0.93, State::Warning), (0.99, State::Critical)]
    {
        let second = Second { memory: Some(memory), cpu: Some((0.5, 0)), ..calls(10, 0) };
        assert_eq!(Workload::warm().pass(30, second).state, state, "{memory}");
    }
    for (cpu, state) in [
        ((0.8, 2), State::Healthy),
        ((0.9, 0), State::Degraded),
        ((1.0, 0), State::Warning),
        ((0.5, 10), State::Warning),
        ((0.5, 5), State::Degraded),
    ] {
        let second = Second { memory: Some(0.5), cpu: Some(cpu), ..WELL };
        assert_eq!(Workload::warm().pass(30, second).state, state, "{cpu:?}");
    }
    let both = Second { memory: Some(0.96), ..calls(10, 10) };
    assert_eq!(Workload::warm().pass(30, both).cause, Some(Signal::Memory));
}

#[test]
fn one_burst_of_failures_is_not_heard_of_and_a_recovery_has_to_last() {
    let mut workload = Workload::warm();
    workload.sample.memory = Some(0.99);
    let full = Second { memory: Some(0.99), ..WELL };
    let free = Second { memory: Some(0.5), ..WELL };
    assert_eq!(workload.pass(2, full).state, State::Healthy);
    assert_eq!(workload.pass(1, free).state, State::Healthy);
    assert_eq!(workload.pass(2, full).state, State::Healthy, "it begins anew");
    assert_eq!(workload.pass(1, full).state, State::Critical);
    assert_eq!(workload.pass(5, free).state, State::Critical);
    assert_eq!(workload.pass(1, full).state, State::Critical);
    assert_eq!(workload.pass(5, free).state, State::Critical);
    assert_eq!(workload.pass(1, free).state, State::Healthy);
}

#[test]
fn what_becomes_ready_starts_anew() {
    let mut workload = Workload::warm();
    assert_eq!(workload.pass(30, Second { checks: (1, 1), ..WELL }).state, State::Critical);
    workload.sample.ready = false;
    workload.pass(30, Second { checks: (1, 1), ..WELL });
    workload.sample.ready = true;
    assert_eq!(workload.pass(1, WELL).state, State::Warming);
    assert_eq!(workload.pass(9, WELL).state, State::Warming);
    assert_eq!(workload.pass(1, WELL).state, State::Healthy);
}

/// A kubelet probes every ten seconds unless it is told otherwise: one result in a window, which said nothing.
#[test]
fn rare_checks_count_as_far_back_as_it_takes_to_have_enough() {
    let nothing = Second { checks: (0, 0), ..WELL };
    let probed = |workload: &mut Workload, period: u32, failed: u64| {
        workload.pass(1, Second { checks: (1, failed), ..WELL });
        workload.pass(period - 1, nothing)
    };
    let mut rare = Workload::warm();
    for _ in 0..6 {
        assert_eq!(probed(&mut rare, 10, 0).state, State::Healthy);
    }
    for state in [State::Healthy, State::Warning, State::Critical] {
        assert_eq!(probed(&mut rare, 10, 1).state, state);
    }
    for state in [State::Critical, State::Critical, State::Warning, State::Healthy] {
        assert_eq!(probed(&mut rare, 10, 0).state, state);
    }
    let mut rarer = Workload::new();
    rarer.pass(60, nothing);
    for _ in 0..10 {
        assert_eq!(probed(&mut rarer, 20, 1).state, State::Sampling, "three in a minute");
    }
}

#[test]
fn counts_that_fall_say_nothing() {
    let mut workload = Workload::warm();
    workload.pass(20, calls(100, 0));
    workload.sample.dependencies = Tally::default();
    assert_eq!(workload.pass(20, calls(0, 0)).state, State::Healthy);
}

proptest! {
    /// The level in force is the one that the written rule finds in the whole history: since
    /// the last change, those at the end that are all worse (or all better) and reach far
    /// enough back, make it the closest of theirs.
    #[test]
    fn a_level_is_taken_on_when_it_lasted(
        seconds in prop::collection::vec((0_usize..4, 0_u64..4000), 1..120),
    ) {
        let memory = [0.5, 0.9, 0.93, 0.99];
        let levels = [Level::Well, Level::Degraded, Level::Warning, Level::Critical];
        let mut workload = Workload::new();
        let (mut level, mut since_change) = (Level::Well, Vec::<(Instant, Level)>::new());
        for (which, millis) in seconds {
            workload.sample.at += Duration::from_millis(millis);
            workload.sample.memory = Some(memory[which]);
            let standing = workload.score.observe(workload.sample);
            let now = workload.sample.at;
            since_change.push((now, levels[which]));
            let worse = levels[which] > level;
            let run: Vec<_> = since_change
                .iter()
                .rev()
                .take_while(|(_, seen)| *seen != level && (*seen > level) == worse)
                .collect();
            let needed = if worse { WORSE_AFTER } else { BETTER_AFTER };
            if run.last().is_some_and(|(first, _)| now - *first >= needed) {
                let seen = run.iter().map(|(_, seen)| *seen);
                level = if worse { seen.min() } else { seen.max() }.expect("it is not empty");
                since_change.clear();
            }
            prop_assert_eq!(workload.score.settled.expect("it is ready").level, level);
            prop_assert!((10..=100).contains(&standing.score));
            prop_assert_eq!(standing.cause.is_some(), level != Level::Well);
        }
    }
}
