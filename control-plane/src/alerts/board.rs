//! What fires where, as one state per rule and service. Pure: the clock comes in.
//!
//! A rule fires for a service while it fires at one of its workloads. Of each
//! change there is one notice, whatever the number of workloads, and one more
//! each time that a firing one has lasted for the rule's `repeat`.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use heddle_api::crd::MESH_POLICY_NAMESPACE;
use heddle_api::name::ServiceName;

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
    reports: BTreeMap<WorkloadKey, Report>,
    firing: BTreeMap<Key, Firing>,
}

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
    told: u32,
}

impl Board {
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
    pub(super) fn look(&mut self, rules: &AlertRules, now: Instant, time: SystemTime) -> Vec<Notice> {
        self.reports.retain(|_, report| report.until.is_none_or(|until| until > now));
        let mut present: BTreeMap<Key, (Arc<AlertRule>, &Reported, usize)> = BTreeMap::new();
        for report in self.reports.values() {
            let service = &report.service;
            for reported in &report.alerts {
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
        let mut notices = Vec::new();
        self.firing.retain(|key, firing| {
            let fires = present.contains_key(key);
            if !fires {
                firing.instances = 0;
                notices.push(firing.notice(key, Status::Resolved, time));
            }
            fires
        });
        for (key, (rule, worst, instances)) in present {
            match self.firing.get_mut(&key) {
                Some(firing) => {
                    (firing.rule, firing.instances) = (rule, instances);
                    if now.saturating_duration_since(firing.last_told) >= firing.rule.repeat {
                        firing.told += 1;
                        firing.last_told = now;
                        notices.push(firing.notice(&key, Status::Firing, time));
                    }
                }
                None => {
                    let (value, requests) = (worst.value, worst.requests);
                    let firing =
                        Firing { rule, value, requests, instances, since: time, last_told: now, told: 0 };
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
        lost.chain(repeats).min()
    }

    pub(super) fn firing(&self) -> Vec<Shown> {
        let shown = |(key, firing): (&Key, &Firing)| Shown {
            service: key.service.clone(),
            rule: firing.rule.clone(),
            value: firing.value,
            requests: firing.requests,
            instances: firing.instances,
            since: firing.since,
        };
        self.firing.iter().map(shown).collect()
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
    use heddle_api::crd::AlertDirection;

    use super::*;
    use crate::source::ObjectName;

    pub(in crate::alerts) fn rules() -> AlertRules {
        let rule = AlertRule {
            policy: ObjectName { namespace: "shop".into(), name: "watch".into() },
            name: "errors".into(),
            direction: AlertDirection::Inbound,
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
            let notices = self.board.look(&self.rules, self.start + passed, SystemTime::UNIX_EPOCH + passed);
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
        assert_eq!(bench.board.firing()[0].instances, 2);
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
}
