//! What fires where, as one state per rule and service. Pure: the clock comes in.
//!
//! A rule fires for a service while it fires at one of its workloads. Of each
//! change there is one notice, whatever the number of workloads, and one more
//! each time that a firing one has lasted for the rule's `repeat`.
//!
//! Of the control planes of one cluster one tells. The others keep what it has told ([`Told`]), so
//! that whoever tells next goes on from there: nothing is told twice, and what was still on its way
//! is sent again as the same notice. So does one that starts with what was [kept](super::kept), and it
//! takes nothing for resolved before the workloads had time to report again.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use heddle_api::crd::MESH_POLICY_NAMESPACE;
use heddle_api::name::ServiceName;

use super::told::Told;
use crate::compile::{AlertRule, AlertRules};
use crate::registry::WorkloadKey;

/// How long the last report of a workload holds whose stream was lost: sidecars
/// that lost their control plane are back within seconds.
const LOST_GRACE: Duration = Duration::from_secs(30);

/// Instances of one identity at which alerts fire: whoever holds its certificate
/// names instances as they like.
const MAX_INSTANCES: usize = 1024;

/// An identity has more than [`MAX_INSTANCES`] that report.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct TooMany;

/// A rule at a service.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Key {
    /// The rule's id.
    pub(crate) rule: String,
    /// The service of the workloads at which it fires.
    pub(crate) service: ServiceName,
}

/// A rule that fires at a workload, and what was measured there.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Reported {
    pub(crate) rule: String,
    pub(crate) value: f64,
    pub(crate) requests: u64,
}

/// What there is to tell.
#[derive(Debug, Clone)]
pub(crate) struct Notice {
    pub(crate) key: Key,
    pub(crate) rule: Arc<AlertRule>,
    pub(crate) status: Status,
    /// The worst of all workloads when it began to fire.
    pub(crate) value: f64,
    /// In the window of that workload.
    pub(crate) requests: u64,
    /// Workloads at which it fires.
    pub(crate) instances: usize,
    /// When it began to fire.
    pub(crate) since: SystemTime,
    /// When this was noticed.
    pub(crate) at: SystemTime,
    /// How often it was told before that it fires.
    pub(crate) told: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Status {
    Firing,
    Resolved,
}

impl Status {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Firing => "firing",
            Self::Resolved => "resolved",
        }
    }
}

/// A firing alert, to be shown.
pub(crate) struct Shown {
    pub(crate) service: ServiceName,
    pub(crate) rule: Arc<AlertRule>,
    pub(crate) value: f64,
    pub(crate) requests: u64,
    pub(crate) instances: usize,
    pub(crate) since: SystemTime,
}

#[derive(Default)]
pub(super) struct Board {
    /// Of workloads that registered.
    reports: BTreeMap<WorkloadKey, Report>,
    tells: bool,
    /// Empty while another tells.
    firing: BTreeMap<Key, Firing>,
    /// What is resolved and on its way.
    resolving: BTreeMap<Key, Firing>,
    /// What was told before this one tells; `None`: that is not known.
    before: Option<Before>,
}

/// What was told before.
struct Before {
    told: Vec<Told>,
    /// By a control plane that is gone, so that workloads may not be back yet.
    is_kept: bool,
}

/// What fires at pods, as the alerts of each and its service.
pub(super) type AtPods = [(ServiceName, Vec<Reported>)];

struct Report {
    service: ServiceName,
    /// The stream that it came by: a newer one of the same workload may outlive it.
    stream: u64,
    alerts: Vec<Reported>,
    /// Until when it holds, if the workload's stream was lost.
    until: Option<Instant>,
}

struct Firing {
    rule: Arc<AlertRule>,
    value: f64,
    requests: u64,
    instances: usize,
    since: SystemTime,
    last_told: Instant,
    /// The same moment, as others know it.
    last_told_at: SystemTime,
    told: u32,
    /// What was told last has not arrived yet.
    on_its_way: bool,
    /// Until when it fires though nobody says so, and at how many workloads it did: they may not be back yet.
    until: Option<Instant>,
}

impl Board {
    /// This one tells from now on, if it did not before: what is to be sent again.
    pub(super) fn tell(&mut self, rules: &AlertRules, now: Instant, time: SystemTime) -> Vec<Notice> {
        if std::mem::replace(&mut self.tells, true) {
            return Vec::new();
        }
        let mut notices = Vec::new();
        let Some(before) = self.before.take() else { return notices };
        let until = before.is_kept.then(|| now + LOST_GRACE);
        for Told { key, value, requests, instances, since, last_told_at, told, on_its_way, resolved } in
            before.told
        {
            // What the policy does not say any more nobody waits for.
            let Some(rule) = rules.get(&key.rule).cloned() else { continue };
            let ago = time.duration_since(last_told_at).unwrap_or_default();
            let last_told = now.checked_sub(ago).unwrap_or(now);
            let firing = Firing {
                rule,
                value,
                requests,
                instances,
                since,
                last_told,
                last_told_at,
                told,
                on_its_way,
                until,
            };
            let status = if resolved { Status::Resolved } else { Status::Firing };
            if on_its_way {
                notices.push(firing.notice(&key, status, time));
            }
            if resolved {
                self.resolving.insert(key, firing)
            } else {
                self.firing.insert(key, firing)
            };
        }
        notices
    }

    /// Another tells.
    pub(super) fn listen(&mut self) {
        self.tells = false;
        self.firing.clear();
        self.resolving.clear();
    }

    /// What another tells. It counts once this one does not.
    pub(super) fn heard(&mut self, told: Vec<Told>) {
        self.before = Some(Before { told, is_kept: false });
    }

    /// Whether this one would begin to tell without knowing what was told before.
    pub(super) fn is_new(&self) -> bool {
        !self.tells && self.before.is_none()
    }

    /// What was told by a control plane that is gone. What is heard of another that is there is newer.
    pub(super) fn restore(&mut self, told: Vec<Told>) {
        self.before.get_or_insert(Before { told, is_kept: true });
    }

    /// A notice arrived, or was given up, and none is behind it.
    pub(super) fn arrived(&mut self, key: &Key) {
        self.resolving.remove(key);
        if let Some(firing) = self.firing.get_mut(key) {
            firing.on_its_way = false;
        }
    }

    /// What this one tells.
    pub(super) fn telling(&self) -> Option<Vec<Told>> {
        let told = |(key, firing): (&Key, &Firing), resolved| Told {
            key: key.clone(),
            value: firing.value,
            requests: firing.requests,
            instances: firing.instances,
            since: firing.since,
            last_told_at: firing.last_told_at,
            told: firing.told,
            on_its_way: firing.on_its_way,
            resolved,
        };
        // What is resolved and fires anew is told in this order.
        let resolving = self.resolving.iter().map(|firing| told(firing, true));
        self.tells.then(|| resolving.chain(self.firing.iter().map(|firing| told(firing, false))).collect())
    }

    /// Returns whether there is something to look at.
    pub(super) fn report(
        &mut self,
        stream: u64,
        workload: &WorkloadKey,
        service: &ServiceName,
        alerts: Vec<Reported>,
    ) -> Result<bool, TooMany> {
        if alerts.is_empty() {
            return Ok(self.reports.remove(workload).is_some());
        }
        if !self.reports.contains_key(workload) {
            let from = (workload.0.clone(), String::new());
            let instances =
                self.reports.range(from..).take_while(|((identity, _), _)| *identity == workload.0);
            if instances.count() >= MAX_INSTANCES {
                return Err(TooMany);
            }
        }
        let report = Report { service: service.clone(), stream, alerts, until: None };
        self.reports.insert(workload.clone(), report);
        Ok(true)
    }

    /// Returns whether there is something to look at.
    pub(super) fn lost(&mut self, stream: u64, workload: &WorkloadKey, now: Instant) -> bool {
        let report = self.reports.get_mut(workload);
        report
            .filter(|report| report.stream == stream)
            .map(|report| report.until = Some(now + LOST_GRACE))
            .is_some()
    }

    /// What changed since the last look.
    pub(super) fn look(
        &mut self,
        rules: &AlertRules,
        pods: &AtPods,
        now: Instant,
        time: SystemTime,
    ) -> Vec<Notice> {
        self.reports.retain(|_, report| report.until.is_none_or(|until| until > now));
        let mut present: BTreeMap<Key, (Arc<AlertRule>, &Reported, usize)> = BTreeMap::new();
        let registered = self.reports.values().map(|report| (&report.service, &report.alerts));
        for (service, alerts) in registered.chain(pods.iter().map(|(service, alerts)| (service, alerts))) {
            for reported in alerts {
                let Some(rule) = rules.get(&reported.rule).filter(|rule| concerns(rule, service)) else {
                    continue;
                };
                let key = Key { rule: reported.rule.clone(), service: service.clone() };
                let (_, worst, instances) = present.entry(key).or_insert_with(|| (rule.clone(), reported, 0));
                *instances += 1;
                if reported.value > worst.value {
                    *worst = reported;
                }
            }
        }
        for firing in self.firing.values_mut() {
            firing.until = firing.until.filter(|until| *until > now);
        }
        let is_over = |key: &Key, firing: &mut Firing| firing.until.is_none() && !present.contains_key(key);
        let mut notices = Vec::new();
        for (key, mut firing) in self.firing.extract_if(.., is_over) {
            (firing.instances, firing.on_its_way) = (0, true);
            notices.push(firing.notice(&key, Status::Resolved, time));
            if firing.rule.target.is_some() {
                self.resolving.insert(key, firing);
            }
        }
        for (key, (rule, worst, instances)) in present {
            match self.firing.get_mut(&key) {
                Some(firing) => {
                    firing.rule = rule;
                    // As many are back as there were.
                    firing.until = firing.until.filter(|_| instances < firing.instances);
                    if firing.until.is_none() {
                        firing.instances = instances;
                    }
                    if now.saturating_duration_since(firing.last_told) >= firing.rule.repeat {
                        firing.told += 1;
                        (firing.last_told, firing.last_told_at) = (now, time);
                        firing.on_its_way = firing.rule.target.is_some();
                        notices.push(firing.notice(&key, Status::Firing, time));
                    }
                }
                None => {
                    let (value, requests) = (worst.value, worst.requests);
                    let on_its_way = rule.target.is_some();
                    let firing = Firing {
                        rule,
                        value,
                        requests,
                        instances,
                        since: time,
                        last_told: now,
                        last_told_at: time,
                        told: 0,
                        on_its_way,
                        until: None,
                    };
                    notices.push(firing.notice(&key, Status::Firing, time));
                    self.firing.insert(key, firing);
                }
            }
        }
        notices
    }

    /// When something changes by itself.
    pub(super) fn next_look(&self) -> Option<Instant> {
        let lost = self.reports.values().filter_map(|report| report.until);
        let repeats = self.firing.values().map(|firing| firing.last_told + firing.rule.repeat);
        let held = self.firing.values().filter_map(|firing| firing.until);
        lost.chain(repeats).chain(held).min()
    }

    /// What fires, here or where it is told.
    pub(super) fn firing(&self, rules: &AlertRules) -> Vec<Shown> {
        let shown = |(key, firing): (&Key, &Firing)| Shown {
            service: key.service.clone(),
            rule: firing.rule.clone(),
            value: firing.value,
            requests: firing.requests,
            instances: firing.instances,
            since: firing.since,
        };
        let before = self.before.iter().filter(|_| !self.tells).flat_map(|before| &before.told);
        let heard = before.filter(|told| !told.resolved).filter_map(|told| {
            Some(Shown {
                service: told.key.service.clone(),
                rule: rules.get(&told.key.rule)?.clone(),
                value: told.value,
                requests: told.requests,
                instances: told.instances,
                since: told.since,
            })
        });
        self.firing.iter().map(shown).chain(heard).collect()
    }
}

impl Firing {
    fn notice(&self, key: &Key, status: Status, at: SystemTime) -> Notice {
        Notice {
            key: key.clone(),
            rule: self.rule.clone(),
            status,
            value: self.value,
            requests: self.requests,
            instances: self.instances,
            since: self.since,
            at,
            told: self.told,
        }
    }
}

/// Whether a workload of the service can be one that the rule is for: nobody
/// makes the alerts of another namespace fire.
fn concerns(rule: &AlertRule, service: &ServiceName) -> bool {
    let namespace = &rule.policy.namespace;
    namespace == MESH_POLICY_NAMESPACE || namespace == service.namespace()
}

#[cfg(test)]
pub(super) mod tests {
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
        let add =
            |n: usize| bench.board.report(1, &workload(&n.to_string()), &users(), reported(10.0)).is_ok();
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
        assert_eq!(
            (bench.at(3599), bench.at(3600), bench.at(3601)),
            (vec![], vec![(Status::Firing, 1)], vec![])
        );
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
}
