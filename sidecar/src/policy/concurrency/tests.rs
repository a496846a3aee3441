mod overload;

use proptest::prelude::*;

use super::*;

const MS: Duration = Duration::from_millis(1);

fn policy(target: Option<Duration>, min: u32, max: u32) -> ConcurrencyPolicy {
    ConcurrencyPolicy { target, min, max }
}

/// Windows of equal latencies with the limit used up; the limit after each.
fn windows(limiter: &mut Limiter, now: &mut Instant, latency: Duration, count: usize) -> Vec<u32> {
    let mut limits = Vec::new();
    while limits.len() < count {
        let before = limiter.window;
        *now += 3 * MS;
        limiter.sampled(latency, limiter.limit() as usize, *now);
        if before.is_some() && limiter.window != before {
            limits.push(limiter.limit());
        }
    }
    limits
}

#[test]
fn the_limit_doubles_until_it_hurts_and_then_grows_by_its_root() {
    let (mut limiter, mut now) = (Limiter::new(policy(None, 1, 1000)), Instant::now());
    assert_eq!(windows(&mut limiter, &mut now, 10 * MS, 4), [16, 32, 64, 128]);
    assert_eq!(windows(&mut limiter, &mut now, 20 * MS, 1), [96], "by the gradient, 1.5 × 10 / 20");
    assert_eq!(windows(&mut limiter, &mut now, 15 * MS, 2), [105, 116]);
    assert_eq!(windows(&mut limiter, &mut now, 900 * MS, 1), [58], "at most to one half");
}

#[test]
fn a_target_is_kept_whatever_the_idle_latency() {
    let (mut limiter, mut now) = (Limiter::new(policy(Some(50 * MS), 1, 1000)), Instant::now());
    assert_eq!(windows(&mut limiter, &mut now, 50 * MS, 1), [16]);
    assert_eq!(windows(&mut limiter, &mut now, 100 * MS, 4), [8, 4, 2, 1]);
    assert_eq!(windows(&mut limiter, &mut now, 100 * MS, 1), [1], "never below the minimum");
}

#[test]
fn a_limit_that_is_not_used_does_not_grow() {
    let (mut limiter, mut now) = (Limiter::new(policy(None, 20, 1000)), Instant::now());
    for _ in 0..1000 {
        now += 10 * MS;
        limiter.sampled(MS, 9, now);
    }
    assert_eq!(limiter.limit(), 20);
}

#[test]
fn the_idle_latency_is_measured_anew_with_half_of_the_limit() {
    let (mut limiter, mut now) = (Limiter::new(policy(None, 1, 64)), Instant::now());
    windows(&mut limiter, &mut now, 10 * MS, 13);
    assert_eq!(limiter.limit(), 64);
    // A release made the service twice as slow: as long as 10 ms are believed, that looks like a queue.
    let limits = windows(&mut limiter, &mut now, 20 * MS, 60);
    assert!(limits.iter().any(|limit| *limit < 20), "{limits:?}");
    assert_eq!(limits.last(), Some(&64), "{limits:?}");
}

#[test]
fn changed_rules_keep_what_was_learned() {
    let (mut limiter, mut now) = (Limiter::new(policy(None, 1, 1000)), Instant::now());
    windows(&mut limiter, &mut now, 10 * MS, 4);
    limiter.follow(policy(None, 1, 2000));
    assert_eq!(limiter.limit(), 128);
    limiter.follow(policy(None, 1, 100));
    assert_eq!(limiter.limit(), 100);
}

#[test]
fn the_less_urgent_the_sooner_it_is_shed() {
    let limiter = Limiter::new(policy(None, 40, 43));
    let room = |urgency: &str| {
        let urgency = Urgency::of_field(urgency.as_bytes());
        (0..100).take_while(|in_flight| limiter.admits(*in_flight, urgency)).count()
    };
    let rooms = ["u=0", "u=1", "u=2", "u=3", "u=4", "u=5", "u=6", "u=7"].map(room);
    assert_eq!(rooms, [43, 43, 42, 40, 35, 30, 25, 20], "never above the maximum");
    let limiter = Limiter::new(policy(None, 1, 1));
    assert!(limiter.admits(0, Urgency::of_field(b"u=7")), "an idle service takes any");
}

/// The law as it is written, over everything that was ever measured.
struct Oracle {
    policy: ConcurrencyPolicy,
    limit: f64,
    starting: bool,
    samples: Vec<(u64, usize)>,
    /// Begin and length of the window, in microseconds.
    window: Option<(u64, u64)>,
    /// The latency without a queue, when it was so, and how long that is believed.
    baseline: Option<(f64, u64)>,
    lifetime: u64,
    /// What remains to be done to measure it, and the limit for afterwards.
    measuring: Option<(u32, f64)>,
}

impl Oracle {
    fn sample(&mut self, micros: u64, in_flight: usize, now: u64) {
        self.samples.push((micros, in_flight));
        let (begun, length) = *self.window.get_or_insert((now, 100_000));
        let age = now - begun;
        if age < length || (self.samples.len() < 30 && age < length.max(1_000_000)) {
            return;
        }
        let kept = self.samples.len().saturating_sub(128);
        let mut latest: Vec<u64> = self.samples[kept..].iter().map(|(micros, _)| *micros).collect();
        latest.sort_unstable();
        let median = latest[(latest.len() - 1) / 2].max(1);
        let busiest = self.samples.iter().map(|(_, in_flight)| *in_flight).max().unwrap_or(0);
        self.samples.clear();
        self.window = Some((now, 100_000.max(2 * median)));
        let (min, max) = (f64::from(self.policy.min), f64::from(self.policy.max));
        let bounded = |limit: f64| limit.clamp(min, max);
        let used = busiest as f64 >= self.limit / 2.0;
        let reference = if let Some(target) = self.policy.target {
            target.as_secs_f64() * 1e6
        } else {
            if let Some((left, after)) = self.measuring {
                self.measuring = (left > 0).then(|| (left - 1, after));
                if left == 0 {
                    (self.baseline, self.limit) = (Some((median as f64, now)), bounded(after));
                }
                return;
            }
            let (latency, at) = self.baseline.unwrap_or((median as f64, now));
            if used && now - at >= self.lifetime {
                self.measuring = Some((1, self.limit));
                self.lifetime = (self.lifetime * 2).min(30_000_000);
                self.limit = bounded(self.limit / 2.0);
                return;
            }
            self.baseline =
                Some(if used { (latency, at) } else { (latency + 0.1 * (median as f64 - latency), now) });
            self.baseline.expect("just set").0 * 1.5
        };
        if median as f64 > reference {
            self.starting = false;
            self.limit = bounded(self.limit * (reference / median as f64).max(0.5));
        } else if used {
            let more = if self.starting { self.limit } else { self.limit.sqrt() };
            self.limit = bounded(self.limit + more);
        }
    }
}

proptest! {
    #[test]
    fn the_limiter_follows_the_written_law(
        target in prop::option::of(1_u64..50_000),
        (min, more) in (1_u32..50, 0_u32..500),
        samples in prop::collection::vec((0_u64..200_000, 0_usize..300, 0_u64..60_000), 0..2000),
        gap in 0_u64..40_000_000,
    ) {
        let policy = policy(target.map(Duration::from_micros), min, min + more);
        let (start, mut limiter) = (Instant::now(), Limiter::new(policy));
        let mut oracle = Oracle {
            policy,
            limit: 8_f64.clamp(f64::from(min), f64::from(min + more)),
            starting: true,
            samples: Vec::new(),
            window: None,
            baseline: None,
            lifetime: 1_000_000,
            measuring: None,
        };
        let mut now = 0;
        for (index, (micros, in_flight, passed)) in samples.iter().enumerate() {
            now += passed + if index % 500 == 499 { gap } else { 0 };
            limiter.sampled(Duration::from_micros(*micros), *in_flight, start + Duration::from_micros(now));
            oracle.sample(*micros, *in_flight, now);
            // What differs by rounding alone may go either way.
            prop_assert!((limiter.limit - oracle.limit).abs() < 1e-3, "{} {}", limiter.limit, oracle.limit);
            let limit = limiter.limit();
            prop_assert!((min..=min + more).contains(&limit));
            let admitted = limiter.admits(*in_flight, Urgency::default());
            prop_assert_eq!(admitted, *in_flight < limit as usize);
            if index % 64 != 0 {
                continue;
            }
            let rooms: Vec<usize> = (b'0'..=b'7')
                .map(|u| (0..).take_while(|n| limiter.admits(*n, Urgency::of_field(&[b'u', b'=', u]))).count())
                .collect();
            prop_assert!(rooms.is_sorted_by(|more, less| more >= less) && rooms[7] >= 1);
        }
    }
}
