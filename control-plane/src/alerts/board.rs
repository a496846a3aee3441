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
pub(super) mod tests;
