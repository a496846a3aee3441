//! What pods tell about themselves: how they fare, and which alerts fire at them.
//!
//! A pod is known by the identity and the UID that its certificate names, so that it speaks for
//! nobody else. The control plane that its sidecar is connected to hears it, and the other control
//! planes of the cluster hear it from there ([`crate::replicas`]). Of several reports of one pod that
//! of a live stream is believed, and among those the latest. A lost stream leaves its report in place
//! for [`GRACE`], so that a reconnect, to whichever control plane, goes unnoticed. Pure but for
//! [`SharedReports`]: streams and clocks are left to others.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use heddle_api::discovery::v1;
use heddle_api::spiffe::SpiffeId;

use crate::alerts::Reported;
use crate::model::{Health, Scores};

pub(crate) mod gate;
mod shared;

pub(crate) use self::shared::SharedReports;

/// What a pod is known by: its identity and its UID.
pub(crate) type PodKey = (SpiffeId, String);

/// How long the last report holds of a pod whose stream was lost: sidecars that lost their control
/// plane are back within seconds.
pub(crate) const GRACE: Duration = Duration::from_secs(30);

/// How a pod is.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Report {
    pub(crate) health: Health,
    /// The alerts that fire at it.
    pub(crate) alerts: Vec<Reported>,
}

impl Report {
    /// As it travels.
    pub(crate) fn message(&self) -> v1::ReportRequest {
        let alert = |alert: &Reported| v1::FiringAlert {
            id: alert.rule.clone(),
            value: alert.value,
            requests: alert.requests,
        };
        v1::ReportRequest {
            health: self.health.state.into(),
            score: self.health.score,
            health_cause: self.health.cause.clone(),
            alerts: self.alerts.iter().map(alert).collect(),
        }
    }
}

/// A report and how it came.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    pub(crate) report: Arc<Report>,
    /// When its stream began, in milliseconds since 1970.
    pub(crate) since: u64,
    /// Whether its stream is lost.
    pub(crate) lost: bool,
    /// Which stream it came by.
    stream: u64,
    /// Until when it holds; `None`: until its stream says otherwise.
    until: Option<Instant>,
    /// Differs from that of every other state of every pod.
    version: u64,
}

/// What every pod said last.
#[derive(Debug, Default)]
pub(crate) struct Reports {
    /// Of the pods that are connected here.
    own: BTreeMap<PodKey, Entry>,
    /// What others have heard, by their names.
    replicas: BTreeMap<String, BTreeMap<PodKey, Entry>>,
    numbers: u64,
}

/// What a change is about.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Changed {
    /// How much traffic pods should get.
    pub(crate) shares: bool,
    pub(crate) alerts: bool,
    /// Anything that is heard here.
    pub(crate) own: bool,
}

impl Changed {
    const ALL: Self = Self { shares: true, alerts: true, own: true };
}

/// The stream is not the one by which its pod is heard any more.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Superseded;

/// What a control plane that follows this one has been sent: the versions by pod.
pub(crate) type Sent = HashMap<PodKey, u64>;

impl Reports {
    /// A number for a stream of a pod, or for a connection to another control plane.
    pub(crate) fn stream(&mut self) -> u64 {
        self.numbers += 1;
        self.numbers
    }

    /// A pod's stream began at `since` with this report; it is heard by this one from now on.
    pub(crate) fn begin(&mut self, stream: u64, pod: &PodKey, report: Report, since: u64) -> Changed {
        self.put(None, stream, pod, report, since, false)
    }

    /// Takes in how pods were that an earlier control plane knew, as if their streams had been lost, to
    /// be kept until `until`. Which alerts fire at them they say themselves.
    pub(crate) fn restore(&mut self, pods: Vec<(PodKey, Health)>, until: Instant) -> Changed {
        for (pod, health) in pods {
            let version = self.stream();
            let report = Arc::new(Report { health, alerts: Vec::new() });
            // No stream has this number: those of pods and replicas get numbers of their own.
            let (since, stream, until) = (0, version, Some(until));
            self.own.entry(pod).or_insert(Entry { report, since, lost: true, stream, until, version });
        }
        Changed { shares: true, alerts: false, own: true }
    }

    /// A pod reports anew.
    pub(crate) fn update(
        &mut self,
        stream: u64,
        pod: &PodKey,
        report: Report,
    ) -> Result<Changed, Superseded> {
        let known = self.own.get(pod).filter(|entry| entry.stream == stream).ok_or(Superseded)?;
        if *known.report == report {
            return Ok(Changed::default());
        }
        let since = known.since;
        Ok(self.put(None, stream, pod, report, since, false))
    }

    /// A pod's stream ended.
    pub(crate) fn lost(&mut self, stream: u64, pod: &PodKey, now: Instant) -> Changed {
        let version = self.stream();
        let Some(entry) = self.own.get_mut(pod).filter(|entry| entry.stream == stream) else {
            return Changed::default();
        };
        (entry.lost, entry.until, entry.version) = (true, Some(now + GRACE), version);
        Changed { own: true, ..Changed::default() }
    }

    /// Another control plane has heard of a pod.
    pub(crate) fn learn(
        &mut self,
        replica: &str,
        stream: u64,
        pod: &PodKey,
        report: Report,
        since: u64,
        lost: bool,
    ) -> Changed {
        self.put(Some(replica), stream, pod, report, since, lost)
    }

    /// Another control plane hears no more of a pod.
    pub(crate) fn unlearn(&mut self, replica: &str, pod: &PodKey) -> Changed {
        self.comparing(pod, |reports| {
            if let Some(heard) = reports.replicas.get_mut(replica) {
                heard.remove(pod);
            }
        })
    }

    /// Another control plane has told everything that it knows by this stream: what it told by
    /// earlier ones is no more.
    pub(crate) fn complete(&mut self, replica: &str, stream: u64) -> Changed {
        let Some(heard) = self.replicas.get_mut(replica) else { return Changed::default() };
        let before = heard.len();
        heard.retain(|_, entry| entry.stream == stream);
        let changed = heard.len() != before;
        Changed { shares: changed, alerts: changed, own: false }
    }

    /// The stream from another control plane ended.
    pub(crate) fn forget(&mut self, replica: &str, now: Instant) {
        for entry in self.replicas.get_mut(replica).into_iter().flat_map(BTreeMap::values_mut) {
            entry.lost = true;
            entry.until = entry.until.or(Some(now + GRACE));
        }
    }

    /// Drops what holds no more.
    pub(crate) fn expire(&mut self, now: Instant) -> Changed {
        let mut dropped = false;
        let mut drop_from = |heard: &mut BTreeMap<PodKey, Entry>| {
            let before = heard.len();
            heard.retain(|_, entry| entry.until.is_none_or(|until| until > now));
            dropped |= heard.len() != before;
        };
        drop_from(&mut self.own);
        self.replicas.values_mut().for_each(&mut drop_from);
        self.replicas.retain(|_, heard| !heard.is_empty());
        if dropped { Changed::ALL } else { Changed::default() }
    }

    /// What a pod said last.
    pub(crate) fn of(&self, pod: &PodKey) -> Option<&Arc<Report>> {
        let elsewhere = self.replicas.values().filter_map(|heard| heard.get(pod));
        let heard = self.own.get(pod).into_iter().chain(elsewhere);
        heard.max_by_key(|entry| (!entry.lost, entry.since)).map(|entry| &entry.report)
    }

    /// What every pod said last.
    pub(crate) fn all(&self) -> impl Iterator<Item = (&PodKey, &Arc<Report>)> {
        let mut pods: BTreeMap<&PodKey, &Entry> = BTreeMap::new();
        for (pod, entry) in self.own.iter().chain(self.replicas.values().flatten()) {
            let best = pods.entry(pod).or_insert(entry);
            if (!entry.lost, entry.since) > (!best.lost, best.since) {
                *best = entry;
            }
        }
        pods.into_iter().map(|(pod, entry)| (pod, &entry.report))
    }

    /// The percentages of their shares that pods get, where that is not all of it.
    pub(crate) fn scores(&self) -> Scores {
        let less = self.all().filter(|(_, report)| report.health.share() < 100);
        less.map(|((identity, uid), report)| (uid.clone(), (identity.clone(), report.health.share())))
            .collect()
    }

    /// How many pods are heard here, and how many elsewhere.
    pub(crate) fn counts(&self) -> (usize, usize) {
        (self.own.len(), self.replicas.values().map(BTreeMap::len).sum())
    }

    /// What has changed of the pods heard here since `sent`, which becomes what is: entries, and
    /// those that are gone.
    pub(crate) fn news(&self, sent: &mut Sent) -> (Vec<(PodKey, Entry)>, Vec<PodKey>) {
        let gone: Vec<PodKey> = sent.keys().filter(|pod| !self.own.contains_key(*pod)).cloned().collect();
        for pod in &gone {
            sent.remove(pod);
        }
        let mut changed = Vec::new();
        for (pod, entry) in &self.own {
            if sent.get(pod) != Some(&entry.version) {
                sent.insert(pod.clone(), entry.version);
                changed.push((pod.clone(), entry.clone()));
            }
        }
        (changed, gone)
    }

    fn put(
        &mut self,
        replica: Option<&str>,
        stream: u64,
        pod: &PodKey,
        report: Report,
        since: u64,
        lost: bool,
    ) -> Changed {
        let version = self.stream();
        let entry = Entry { report: Arc::new(report), since, lost, stream, until: None, version };
        let changed = self.comparing(pod, |reports| {
            let heard = match replica {
                None => &mut reports.own,
                Some(replica) => reports.replicas.entry(replica.to_owned()).or_default(),
            };
            heard.insert(pod.clone(), entry);
        });
        Changed { own: replica.is_none(), ..changed }
    }

    /// What a change of one pod comes to.
    fn comparing(&mut self, pod: &PodKey, change: impl FnOnce(&mut Self)) -> Changed {
        let before = self.of(pod).cloned();
        change(self);
        let after = self.of(pod);
        let share = |report: Option<&Arc<Report>>| report.map_or(100, |report| report.health.share());
        let alerts = |report: Option<&Arc<Report>>| report.map_or(Vec::new(), |report| report.alerts.clone());
        Changed {
            shares: share(before.as_ref()) != share(after),
            alerts: alerts(before.as_ref()) != alerts(after),
            own: false,
        }
    }
}

#[cfg(test)]
mod tests;
