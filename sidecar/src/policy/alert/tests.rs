use proptest::prelude::*;

use super::*;

const SECOND: Duration = Duration::from_secs(1);

fn rule(condition: Condition, window: u64, min_requests: u64, hold: u64) -> AlertRule {
    let (window, hold) = (Duration::from_secs(window), Duration::from_secs(hold));
    AlertRule { condition, window, min_requests, hold }
}

fn counts(requests: u64, against: u32) -> Counts {
    Counts { requests, against: against.into() }
}

/// What changes when each of `seconds` brings so much.
fn changes(rule: AlertRule, seconds: &[(u64, u32)]) -> Vec<(usize, bool)> {
    let start = Instant::now();
    let mut alert = Alert::new(rule, start);
    let mut changes = Vec::new();
    for (at, (requests, against)) in seconds.iter().enumerate() {
        let now = start + SECOND * u32::try_from(at).unwrap();
        if alert.observe(counts(*requests, *against), now) {
            changes.push((at, alert.firing().is_some()));
        }
    }
    changes
}

#[test]
fn a_share_fires_at_its_threshold_and_not_with_too_few_requests() {
    let five = |min| rule(Condition::ShareFrom(50.0), 10, min, 0);
    assert_eq!(changes(five(20), &[(10, 5), (9, 5), (1, 0)]), [(2, true)]);
    assert_eq!(changes(five(20), &[(10, 10), (9, 9)]), []);
    assert_eq!(changes(five(1), &[(10, 4)]), []);
    // Without a minimum an empty window still says nothing.
    assert_eq!(changes(five(0), &[(0, 0); 5]), []);
}

#[test]
fn it_is_resolved_when_the_window_forgets() {
    let mut seconds = vec![(10, 10)];
    seconds.extend([(0, 0); 12]);
    assert_eq!(changes(rule(Condition::ShareFrom(50.0), 5, 1, 0), &seconds), [(0, true), (5, false)]);
}

#[test]
fn what_holds_too_short_a_time_fires_not_and_is_not_resolved_by_a_short_rest() {
    let of = |hold| rule(Condition::ShareFrom(50.0), 1, 1, hold);
    let (bad, good) = ((10, 10), (10, 0));
    assert_eq!(changes(of(2), &[bad, bad, good, bad, bad, good]), []);
    assert_eq!(changes(of(2), &[bad, bad, bad, good, bad, good, good, good]), [(2, true), (7, false)]);
}

#[test]
fn a_value_around_the_threshold_fires_once() {
    let of = rule(Condition::ShareFrom(50.0), 1, 1, 0);
    let seconds = [(100, 51), (100, 49), (100, 50), (100, 46), (100, 44), (100, 49)];
    assert_eq!(changes(of, &seconds), [(0, true), (4, false)]);
}

#[test]
fn rates_are_those_of_the_window_and_too_few_need_a_whole_one() {
    assert_eq!(changes(rule(Condition::RateAbove(5.0), 2, 100, 0), &[(10, 0), (1, 0)]), [(1, true)]);
    let below = rule(Condition::RateBelow(1.0), 3, 0, 0);
    assert_eq!(changes(below.clone(), &[(0, 0), (0, 0), (0, 0), (0, 0), (9, 0)]), [(3, true), (4, false)]);
    assert_eq!(changes(below, &[(3, 0); 9]), []);
}

#[test]
fn long_windows_take_no_more_room() {
    let alert = Alert::new(rule(Condition::RateAbove(1.0), 3600, 0, 0), Instant::now());
    assert_eq!((alert.slots.len(), alert.slot), (60, Duration::from_secs(60)));
}

/// The same by all that was ever seen: slow and plain.
struct Oracle {
    rule: AlertRule,
    slot: u64,
    seen: Vec<(u64, u64, u32)>,
    bad: Vec<(u64, bool)>,
    well: Vec<(u64, bool)>,
    firing: bool,
}

impl Oracle {
    fn observe(&mut self, second: u64, requests: u64, against: u32) -> bool {
        self.seen.push((second / self.slot, requests, against));
        let slots = self.rule.window.as_secs().div_ceil(self.slot);
        let inside = |slot: u64| slot + slots > second / self.slot;
        let recent = self.seen.iter().filter(|(slot, ..)| inside(*slot));
        let (all, wrong) =
            recent.fold((0, 0), |(all, wrong), (_, requests, against)| (all + requests, wrong + against));
        let share = (all > 0 && all >= self.rule.min_requests).then(|| 100.0 * f64::from(wrong) / all as f64);
        let Condition::ShareFrom(percent) = self.rule.condition else { unreachable!("shares alone") };
        self.bad.push((second, share.is_some_and(|share| share >= percent)));
        self.well.push((second, share.is_none_or(|share| share < percent * 0.9)));
        let lasted = |history: &[(u64, bool)]| {
            let streak = history.iter().rev().take_while(|(_, holds)| *holds).last();
            streak.is_some_and(|(since, _)| second - since >= self.rule.hold.as_secs())
        };
        self.firing = match self.firing {
            false => lasted(&self.bad),
            true => !lasted(&self.well),
        };
        self.firing
    }
}

proptest! {
    #[test]
    fn it_fires_when_the_written_rules_say_so(
        window in prop::sample::select(vec![1_u64, 2, 7, 60, 90, 200]),
        min_requests in 0_u64..15,
        hold in 0_u64..6,
        percent in prop::sample::select(vec![10.0, 50.0, 100.0]),
        steps in prop::collection::vec((0_u64..10, 0_u64..8, 0_u32..8), 1..120),
    ) {
        let rule = rule(Condition::ShareFrom(percent), window, min_requests, hold);
        let start = Instant::now();
        let mut alert = Alert::new(rule.clone(), start);
        // Slots of whole seconds, or the oracle would need fractions.
        prop_assume!(window % 60 == 0 || window < 60);
        let slot = (window / 60).max(1);
        let mut oracle =
            Oracle { rule, slot, seen: Vec::new(), bad: Vec::new(), well: Vec::new(), firing: false };
        let mut second = 0;
        for (later, requests, against) in steps {
            second += later;
            let against = against.min(u32::try_from(requests).unwrap());
            let before = alert.firing().is_some();
            let changed = alert.observe(counts(requests, against), start + SECOND * u32::try_from(second).unwrap());
            let firing = oracle.observe(second, requests, against);
            prop_assert_eq!(alert.firing().is_some(), firing, "at {}", second);
            prop_assert_eq!(changed, before != firing);
        }
    }
}
