use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Wake;

use proptest::prelude::*;

use super::*;

/// Counts wake-ups.
#[derive(Default)]
struct Bell(AtomicUsize);

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

impl Bell {
    fn rung(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }
}

fn advance(core: &mut Core, now: u64) {
    let mut due = Vec::new();
    core.advance(now, &mut due);
    due.into_iter().for_each(Waker::wake);
}

#[test]
fn moving_a_deadline_later_touches_nothing_but_the_entry() {
    let mut core = Core::default();
    let key = core.insert();
    assert_eq!(core.arm(key, 3000), Some(100), "linked at the next whole second");
    for due in [100, 101, 3001, 1_000_000] {
        assert_eq!(core.arm(key, due), None);
    }
    assert_eq!(core.arm(key, 99), Some(99), "linked anew only for an earlier time");
    core.disarm(key);
    assert_eq!(core.arm(key, 5000), None);
}

#[test]
fn thousands_of_idle_connections_wake_the_worker_once_a_second() {
    let mut core = Core::default();
    for connection in 0..5000 {
        let key = core.insert();
        core.arm(key, 360_000 + connection);
    }
    let mut wakes = 0;
    while core.next() < 6000 {
        let next = core.next();
        advance(&mut core, next);
        wakes += 1;
    }
    assert_eq!(wakes, 59);
}

#[test]
fn what_is_disarmed_or_dropped_leaves_an_empty_wheel() {
    let mut core = Core::default();
    let (disarmed, dropped) = (core.insert(), core.insert());
    core.arm(disarmed, 50);
    core.arm(dropped, 60);
    core.disarm(disarmed);
    drop(core.remove(dropped));
    assert_eq!(core.next(), 50);
    advance(&mut core, 50);
    assert_eq!(core.next(), NEVER);
    assert!(!core.is_expired(disarmed));
}

#[test]
fn memory_is_bounded_by_the_deadlines_that_exist_at_once() {
    let mut core = Core::default();
    for round in 0..1000 {
        let keys: Vec<_> = (0..10).map(|_| core.insert()).collect();
        for &key in &keys {
            for step in 0..50 {
                core.arm(key, round + 99 - step);
            }
        }
        keys.into_iter().for_each(|key| drop(core.remove(key)));
        advance(&mut core, round);
    }
    assert_eq!(core.len(), 10);
}

#[derive(Debug, Clone)]
enum Step {
    Insert,
    Arm(prop::sample::Index, u64),
    Disarm(prop::sample::Index),
    Remove(prop::sample::Index),
    /// Moves time as the driver would, from slot to slot.
    Pass(u64),
    /// Moves time at once, as when the process was suspended.
    Jump(u64),
}

fn step() -> impl Strategy<Value = Step> {
    let index = any::<prop::sample::Index>;
    let ticks = || prop_oneof![0_u64..5, 0_u64..150, 0_u64..2000];
    prop_oneof![
        2 => Just(Step::Insert),
        6 => (index(), ticks()).prop_map(|(index, ticks)| Step::Arm(index, ticks)),
        1 => index().prop_map(Step::Disarm),
        1 => index().prop_map(Step::Remove),
        4 => ticks().prop_map(Step::Pass),
        1 => ticks().prop_map(Step::Jump),
    ]
}

proptest! {
    /// Equals a list of due times looked at in every tick.
    #[test]
    fn deadlines_end_exactly_when_a_list_of_them_says_so(steps in prop::collection::vec(step(), 0..200)) {
        struct Model {
            key: Key,
            due: Option<u64>,
            expired: bool,
            bell: Arc<Bell>,
            rings: usize,
        }
        let mut core = Core::default();
        let mut now = 0;
        let mut models: Vec<Model> = Vec::new();
        for step in steps {
            let count = models.len();
            let (target, driven) = match step {
                Step::Pass(ticks) => (now + ticks, true),
                Step::Jump(ticks) => (now + ticks, false),
                _ => (now, false),
            };
            match step {
                Step::Insert => {
                    let (key, bell) = (core.insert(), Arc::new(Bell::default()));
                    models.push(Model { key, due: None, expired: false, bell, rings: 0 });
                }
                Step::Arm(index, ticks) if count > 0 => {
                    let model = &mut models[index.index(count)];
                    core.arm(model.key, now + ticks);
                    // What is due already ends with the next tick.
                    (model.due, model.expired) = (Some((now + ticks).max(now + 1)), false);
                    drop(core.watch(model.key, &model.bell.clone().into()));
                }
                Step::Disarm(index) if count > 0 => {
                    let model = &mut models[index.index(count)];
                    core.disarm(model.key);
                    (model.due, model.expired) = (None, false);
                }
                Step::Remove(index) if count > 0 => {
                    let model = models.swap_remove(index.index(count));
                    drop(core.remove(model.key));
                }
                _ => {}
            }
            while driven && core.next() <= target {
                let next = core.next();
                advance(&mut core, next);
            }
            now = target;
            advance(&mut core, now);
            for model in &mut models {
                if model.due.is_some_and(|due| due <= now) {
                    (model.due, model.expired, model.rings) = (None, true, model.rings + 1);
                }
                prop_assert_eq!(core.is_expired(model.key), model.expired);
                prop_assert_eq!(model.bell.rung(), model.rings);
            }
            let soonest = models.iter().filter_map(|model| model.due).min();
            prop_assert!(core.next() > now);
            prop_assert!(soonest.is_none_or(|due| core.next() <= due), "the driver would oversleep");
        }
    }

    /// Rounding makes deadlines late by less than a tick, and never early.
    #[test]
    fn ticks_round_away_from_early(nanos in 0_u64..100_000_000_000) {
        let origin = Instant::now();
        let at = origin + Duration::from_nanos(nanos);
        let due = ticks_after(origin, at);
        prop_assert!(origin + TICK * narrow(due) >= at);
        prop_assert!(origin + TICK * narrow(due) < at + TICK);
        prop_assert!(ticks_before(origin, at) <= due);
        prop_assert!(due - ticks_before(origin, at) <= 1);
    }
}

fn on_a_worker(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
    tokio::task::LocalSet::new().block_on(&runtime, test);
}

#[test]
fn the_driver_wakes_the_owner_after_its_time_and_not_before() {
    on_a_worker(async {
        let wheel = Wheel::new(Instant::now());
        let driver = wheel.clone();
        let driver = tokio::task::spawn_local(async move { driver.drive().await });
        // The driver sleeps without end before this, and is woken by it.
        tokio::task::yield_now().await;
        let deadline = wheel.deadline();
        for wait in [30, 5, 0] {
            let begun = Instant::now();
            let wait = Duration::from_millis(wait);
            deadline.arm_in(begun, Some(wait));
            deadline.expired().await;
            assert!(begun.elapsed() >= wait);
            assert!(deadline.is_expired());
        }
        deadline.arm_in(Instant::now(), None);
        assert!(!deadline.is_expired());
        driver.abort();
    });
}

#[test]
fn an_earlier_deadline_of_another_task_shortens_the_sleep() {
    on_a_worker(async {
        let wheel = Wheel::new(Instant::now());
        let driver = wheel.clone();
        let driver = tokio::task::spawn_local(async move { driver.drive().await });
        let (far, near) = (wheel.deadline(), wheel.deadline());
        far.arm_in(Instant::now(), Some(Duration::from_secs(3600)));
        tokio::task::yield_now().await;
        near.arm_in(Instant::now(), Some(Duration::from_millis(20)));
        near.expired().await;
        assert!(!far.is_expired());
        driver.abort();
    });
}
