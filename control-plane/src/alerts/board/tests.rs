use heddle_api::crd::RequestDirection;

use super::*;
use crate::compile::AlertTarget as Target;
use crate::source::ObjectName;

pub(in crate::alerts) fn rules() -> AlertRules {
    let rule = AlertRule {
        policy: ObjectName { namespace: "shop".into(), name: "watch".into() },
        name: "errors".into(),
        direction: RequestDirection::Inbound,
        summary: "5% or more".into(),
        repeat: Duration::from_secs(3600),
        target: None,
    };
    [("shop/watch/errors".to_owned(), Arc::new(rule))].into()
}

fn reported(value: f64) -> Vec<Reported> {
    vec![Reported { rule: "shop/watch/errors".into(), value, requests: 100 }]
}

struct Bench {
    board: Board,
    start: Instant,
    rules: AlertRules,
}

impl Bench {
    fn new() -> Self {
        Self { board: Board::default(), start: Instant::now(), rules: rules() }
    }

    fn report(&mut self, stream: u64, instance: &str, of: &ServiceName, alerts: Vec<Reported>) -> bool {
        self.board.report(stream, &workload(instance), of, alerts).unwrap()
    }

    /// The statuses told when `seconds` have passed.
    fn at(&mut self, seconds: u64) -> Vec<(Status, usize)> {
        let passed = Duration::from_secs(seconds);
        let (now, time) = (self.start + passed, SystemTime::UNIX_EPOCH + passed);
        assert!(self.board.tell(&self.rules, now, time).is_empty());
        let notices = self.board.look(&self.rules, &[], now, time);
        notices.iter().map(|notice| (notice.status, notice.instances)).collect()
    }
}

fn workload(instance: &str) -> WorkloadKey {
    ("spiffe://mesh.local/ns/shop/sa/users".parse().unwrap(), instance.to_owned())
}

fn users() -> ServiceName {
    "shop/users".parse().unwrap()
}

#[test]
fn two_workloads_are_one_alert() {
    let mut bench = Bench::new();
    assert!(bench.report(1, "a", &users(), reported(10.0)));
    assert_eq!(bench.at(0), [(Status::Firing, 1)]);
    assert!(bench.report(1, "b", &users(), reported(20.0)));
    assert_eq!(bench.at(1), []);
    assert_eq!(bench.board.firing(&bench.rules)[0].instances, 2);
    assert!(bench.report(1, "a", &users(), Vec::new()));
    assert_eq!(bench.at(2), []);
    assert!(bench.report(1, "b", &users(), Vec::new()));
    assert_eq!(bench.at(3), [(Status::Resolved, 0)]);
    assert!(!bench.report(1, "b", &users(), Vec::new()));
    assert_eq!(bench.at(4), []);
}

#[test]
fn an_identity_takes_nobody_elses_report_and_no_more_than_its_room() {
    let mut bench = Bench::new();
    let other = ("spiffe://mesh.local/ns/shop/sa/other".parse().unwrap(), "a".to_owned());
    bench.report(1, "a", &users(), reported(10.0));
    assert_eq!(bench.board.report(2, &other, &users(), Vec::new()), Ok(false));
    assert_eq!(bench.at(0), [(Status::Firing, 1)]);
    let add = |n: usize| bench.board.report(1, &workload(&n.to_string()), &users(), reported(10.0)).is_ok();
    assert_eq!((0..2 * MAX_INSTANCES).map(add).filter(|added| *added).count(), MAX_INSTANCES - 1);
    assert!(bench.report(1, "a", &users(), reported(20.0)), "those there are heard");
    assert_eq!(bench.board.report(1, &other, &users(), reported(10.0)), Ok(true));
}

#[test]
fn a_firing_alert_is_told_again_after_its_time() {
    let mut bench = Bench::new();
    bench.report(1, "a", &users(), reported(10.0));
    assert_eq!(bench.at(0), [(Status::Firing, 1)]);
    assert_eq!(bench.board.next_look(), Some(bench.start + Duration::from_secs(3600)));
    assert_eq!((bench.at(3599), bench.at(3600), bench.at(3601)), (vec![], vec![(Status::Firing, 1)], vec![]));
}

#[test]
fn a_lost_stream_resolves_nothing_until_its_workload_stays_away() {
    let mut bench = Bench::new();
    bench.report(1, "a", &users(), reported(10.0));
    bench.at(0);
    assert!(bench.board.lost(1, &workload("a"), bench.start));
    assert_eq!(bench.at(29), []);
    bench.report(1, "a", &users(), reported(10.0));
    assert_eq!(bench.at(31), []);
    bench.board.lost(1, &workload("a"), bench.start + Duration::from_secs(31));
    assert_eq!(bench.at(61), [(Status::Resolved, 0)]);
    assert!(!bench.board.lost(1, &workload("nobody"), bench.start));
}

#[test]
fn an_older_stream_of_the_same_workload_takes_nothing_along() {
    let mut bench = Bench::new();
    bench.report(1, "a", &users(), reported(10.0));
    bench.report(2, "a", &users(), reported(10.0));
    assert!(!bench.board.lost(1, &workload("a"), bench.start));
    assert_eq!((bench.at(0).len(), bench.at(60).len()), (1, 0));
    assert!(bench.board.lost(2, &workload("a"), bench.start));
}

#[test]
fn only_rules_that_exist_and_concern_the_workload_count() {
    let mut bench = Bench::new();
    let bank = "bank/users".parse().unwrap();
    bench.report(1, "a", &bank, reported(10.0));
    let unknown = Reported { rule: "shop/watch/other".into(), value: 1.0, requests: 1 };
    bench.report(1, "a", &users(), vec![unknown]);
    assert_eq!(bench.at(0), []);
    // A rule that goes takes its alert along, and people hear of it.
    bench.report(1, "a", &users(), reported(10.0));
    assert_eq!(bench.at(1), [(Status::Firing, 1)]);
    bench.rules.clear();
    assert_eq!(bench.at(2), [(Status::Resolved, 0)]);
}

/// A rule that somebody is told of.
fn told_rules() -> AlertRules {
    let target = Target {
        url: "http://127.0.0.1/".parse().unwrap(),
        secret: (ObjectName { namespace: "shop".into(), name: "hooks".into() }, "key".into()),
        key: None,
    };
    let rules = rules().into_iter().map(|(id, rule)| {
        let AlertRule { policy, name, direction, summary, repeat, .. } = &*rule;
        let (policy, name, summary) = (policy.clone(), name.clone(), summary.clone());
        let (direction, repeat, target) = (*direction, *repeat, None);
        (id, Arc::new(AlertRule { policy, name, direction, summary, repeat, target }))
    });
    let mut rules: AlertRules = rules.collect();
    let rule = rules.values_mut().next().and_then(Arc::get_mut).unwrap();
    rule.target = Some(target);
    rules
}

/// Two control planes that hear of the same pods; whatever the one tells the other hears.
struct Pair {
    boards: [Board; 2],
    rules: AlertRules,
    teller: usize,
    seconds: u64,
    /// Since the start, besides the seconds of each look.
    passed: Duration,
}

impl Pair {
    fn new() -> Self {
        let boards = [Board::default(), Board::default()];
        Self { boards, rules: told_rules(), teller: 0, seconds: 1_000_000, passed: Duration::ZERO }
    }

    /// What is told a second later, with the times of their beginning.
    fn tells(&mut self, fires: bool) -> Vec<(Status, SystemTime)> {
        self.seconds += 1;
        let time = SystemTime::UNIX_EPOCH + Duration::from_secs(self.seconds);
        let pods = if fires { vec![(users(), reported(10.0))] } else { Vec::new() };
        let (now, board) = (Instant::now() + self.passed, &mut self.boards[self.teller]);
        let mut notices = board.tell(&self.rules, now, time);
        notices.extend(board.look(&self.rules, &pods, now, time));
        self.share();
        notices.iter().map(|notice| (notice.status, notice.since)).collect()
    }

    /// What was on its way has arrived.
    fn arrives(&mut self) {
        let key = Key { rule: "shop/watch/errors".into(), service: users() };
        self.boards[self.teller].arrived(&key);
        self.share();
    }

    fn share(&mut self) {
        let told = self.boards[self.teller].telling().unwrap();
        let told = told.into_iter().map(|told| Told::read(told.message()).unwrap()).collect();
        self.boards[1 - self.teller].heard(told);
    }

    fn change(&mut self) {
        self.boards[self.teller].listen();
        self.teller = 1 - self.teller;
    }
}

#[test]
fn whoever_tells_next_goes_on_where_the_one_before_was() {
    let mut pair = Pair::new();
    let [(Status::Firing, since)] = pair.tells(true)[..] else { panic!("it fires") };
    pair.arrives();
    pair.change();
    assert_eq!(pair.tells(true), [], "it was told");
    let shown = pair.boards.each_ref().map(|board| board.firing(&pair.rules)[0].since);
    assert_eq!(shown, [since; 2], "both show the same");
    pair.change();
    assert_eq!(pair.tells(false), [(Status::Resolved, since)]);
    pair.change();
    assert_eq!(pair.tells(false), [(Status::Resolved, since)], "it had not arrived");
    pair.arrives();
    pair.change();
    assert_eq!(pair.tells(false), []);
}

#[test]
fn what_was_on_its_way_is_sent_again_as_the_same() {
    let mut pair = Pair::new();
    let first = pair.tells(true);
    pair.change();
    assert_eq!(pair.tells(true), first, "with the time that makes its id");
    assert_eq!(pair.tells(true), []);
    pair.arrives();
    pair.change();
    assert_eq!(pair.tells(true), []);
}

/// A control plane that starts when the other is gone, with what that one kept.
fn restarted(pair: &Pair) -> Pair {
    let told = pair.boards[pair.teller].telling().unwrap();
    let mut next = Pair { seconds: pair.seconds, ..Pair::new() };
    assert!(next.boards[0].is_new());
    next.boards[0].restore(told);
    assert!(!next.boards[0].is_new());
    next
}

/// What still fired was once told again, as something new, by a control plane that was started anew.
#[test]
fn one_that_starts_anew_tells_nothing_twice_and_resolves_nothing_before_workloads_are_back() {
    let mut pair = Pair::new();
    let [(Status::Firing, since)] = pair.tells(true)[..] else { panic!("it fires") };
    pair.arrives();
    let mut pair = restarted(&pair);
    assert_eq!(pair.tells(false), [], "nobody is back yet");
    assert_eq!(pair.boards[0].firing(&pair.rules)[0].since, since);
    assert_eq!(pair.tells(true), []);
    assert_eq!(pair.tells(false), [(Status::Resolved, since)]);
    pair.arrives();
    let mut pair = restarted(&pair);
    assert_eq!(pair.tells(false), []);
    assert!(matches!(pair.tells(true)[..], [(Status::Firing, anew)] if anew > since));
}

#[test]
fn what_ended_while_no_control_plane_ran_is_resolved_after_the_grace_period() {
    let mut pair = Pair::new();
    let since = pair.tells(true)[0].1;
    pair.arrives();
    let mut pair = restarted(&pair);
    assert_eq!(pair.tells(false), []);
    let next = pair.boards[0].next_look().unwrap();
    assert!(next <= Instant::now() + LOST_GRACE, "somebody looks then");
    pair.passed += LOST_GRACE;
    assert_eq!(pair.tells(false), [(Status::Resolved, since)]);
}

#[test]
fn after_a_restart_an_alert_ends_when_as_many_workloads_were_back_as_there_were() {
    let mut before = Bench::new();
    before.report(1, "a", &users(), reported(10.0));
    before.report(2, "b", &users(), reported(10.0));
    assert_eq!(before.at(0), [(Status::Firing, 2)]);
    let kept = || before.board.telling().unwrap();
    let restarted = || {
        let mut bench = Bench::new();
        bench.board.restore(kept());
        bench.report(1, "a", &users(), reported(10.0));
        assert_eq!((bench.at(1), bench.board.firing(&bench.rules)[0].instances), (vec![], 2));
        bench
    };
    let mut bench = restarted();
    bench.report(1, "a", &users(), Vec::new());
    assert_eq!(bench.at(2), [], "nobody knows of the other one yet");
    assert_eq!(bench.at(31), [(Status::Resolved, 0)]);
    let mut bench = restarted();
    bench.report(2, "b", &users(), reported(10.0));
    assert_eq!(bench.at(2), []);
    bench.report(1, "a", &users(), Vec::new());
    bench.report(2, "b", &users(), Vec::new());
    assert_eq!(bench.at(3), [(Status::Resolved, 0)]);
}

#[test]
fn what_was_on_its_way_at_the_end_is_sent_again_as_the_same() {
    let mut pair = Pair::new();
    let first = pair.tells(true);
    let mut pair = restarted(&pair);
    assert_eq!(pair.tells(true), first);
    assert_eq!(pair.tells(true), []);
    let last = pair.tells(false);
    let mut pair = restarted(&pair);
    assert_eq!(pair.tells(false), last);
}

#[test]
fn what_another_tells_that_is_there_is_newer_than_what_was_kept() {
    let mut pair = Pair::new();
    pair.tells(true);
    let kept = pair.boards[0].telling().unwrap();
    pair.arrives();
    pair.boards[1].restore(kept);
    pair.change();
    assert_eq!(pair.tells(true), [], "it had arrived");
    assert!(matches!(pair.tells(false)[..], [(Status::Resolved, _)]), "and is resolved at once");
}
