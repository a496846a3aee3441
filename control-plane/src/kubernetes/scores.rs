//! Which pods get less than their shares, in a `ConfigMap`: a control plane that starts when no other is
//! left to hear it from would else give an ailing pod its whole share until its sidecar is back.
//!
//! The lease's holder writes it, at the pace at which [`Gate`] has scores get into force and, where they never
//! come to rest, every ten seconds. Every control plane reads it at its start, and what it says of a pod holds
//! until its sidecar had time to come back.

use std::sync::Arc;
use std::time::{Duration, Instant};

use heddle_api::discovery::v1::WorkloadHealth;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tracing::{info, warn};

use super::pace::Pace;
use crate::model::Health;
use crate::record::Record;
use crate::reports::gate::Gate;
use crate::reports::{PodKey, Report, SharedReports};

/// The `ConfigMap`'s name, and the key in it.
pub(crate) const NAME: &str = "heddle-scores";
pub(crate) const KEY: &str = "scores.json";

/// Pods that are kept, the lowest scores first: a `ConfigMap` has room for 1 MiB.
const MAX_KEPT: usize = 2048;

/// How long pods wait for their sidecars' reports, from the start on: what routing is made of is read first,
/// the cluster has to find the control plane ready, and sidecars reconnect with a backoff of up to some ten
/// seconds. A pod that does not come back within it gets no traffic for other reasons.
const RESTORED_GRACE: Duration = Duration::from_secs(60);

/// Writes the `ConfigMap`.
pub(crate) struct ScoreKeeper {
    pub(crate) record: Record,
    pub(crate) reports: Arc<SharedReports>,
    pub(crate) leading: watch::Receiver<bool>,
}

impl ScoreKeeper {
    /// Writes while this replica leads, until it is dropped.
    pub(crate) async fn run(mut self) {
        let mut shares = self.reports.shares();
        let (mut gate, mut pace) = (Gate::default(), Pace::default());
        gate.changed();
        let mut said = None;
        loop {
            let now = Instant::now();
            self.reports.with(|reports| gate.take(reports, now));
            let scores = gate.in_force();
            let leads = *self.leading.borrow_and_update();
            // While another leads, it writes there.
            said = said.filter(|_| leads);
            let mut again = None;
            if leads && said.as_ref() != Some(&scores) {
                again = pace.waits(&(), now);
                if again.is_none() {
                    match self.record.store(self.reports.with(|reports| write(reports.all()))).await {
                        Ok(()) => {
                            pace.wrote(&(), Instant::now());
                            said = Some(scores);
                        }
                        Err(error) => {
                            if pace.failed(&(), Instant::now()) == 1 {
                                warn!(%error, "cannot keep the scores of pods; a restart would forget them");
                            }
                            again = pace.waits(&(), Instant::now());
                        }
                    }
                }
            }
            let (here, elsewhere) = self.reports.with(|reports| reports.counts());
            let due = [gate.due(here + elsewhere, Instant::now()), again].into_iter().flatten().min();
            let due = async {
                match due {
                    Some(due) => tokio::time::sleep_until(due.into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                Ok(()) = shares.changed() => gate.changed(),
                changed = self.leading.changed() => if changed.is_err() { return },
                () = due => {}
            }
        }
    }
}

/// Takes in what an earlier control plane knew.
pub(crate) async fn restore(record: &Record, reports: &SharedReports) {
    let Some(pods) = record.load(read).await.filter(|pods| !pods.is_empty()) else { return };
    info!(count = pods.len(), "waiting for the sidecars of pods that were not well before");
    reports.change(|reports| reports.restore(pods, Instant::now() + RESTORED_GRACE));
}

/// A pod as it is written.
#[derive(Serialize, Deserialize)]
struct Written {
    identity: String,
    uid: String,
    state: i32,
    score: u32,
    cause: String,
}

fn write<'a>(pods: impl Iterator<Item = (&'a PodKey, &'a Arc<Report>)>) -> String {
    let mut less: Vec<_> = pods.filter(|(_, report)| report.health.share() < 100).collect();
    less.sort_by_key(|(_, report)| report.health.share());
    let written = less.into_iter().take(MAX_KEPT).map(|((identity, uid), report)| Written {
        identity: identity.as_str().into(),
        uid: uid.clone(),
        state: report.health.state.into(),
        score: report.health.score,
        cause: report.health.cause.clone(),
    });
    serde_json::to_string(&written.collect::<Vec<_>>()).expect("texts and numbers are JSON")
}

fn read(text: &str) -> Result<Vec<(PodKey, Health)>, serde_json::Error> {
    let written: Vec<Written> = serde_json::from_str(text)?;
    let pods =
        written.into_iter().take(MAX_KEPT).filter_map(|Written { identity, uid, state, score, cause }| {
            let state = WorkloadHealth::try_from(state).unwrap_or_default();
            Some(((identity.parse().ok()?, uid), Health { state, score: score.min(100), cause }))
        });
    Ok(pods.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(uid: usize) -> PodKey {
        ("spiffe://mesh.local/ns/shop/sa/users".parse().unwrap(), uid.to_string())
    }

    fn report(score: u32) -> Arc<Report> {
        let health = Health { state: WorkloadHealth::Critical, score, cause: "checks".into() };
        Arc::new(Report { health, alerts: Vec::new() })
    }

    #[test]
    fn only_pods_that_get_less_are_written_and_are_read_as_they_were() {
        let pods = [(pod(1), report(100)), (pod(2), report(10)), (pod(3), report(0))];
        let written = write(pods.iter().map(|(pod, report)| (pod, report)));
        assert_eq!(read(&written).unwrap(), [(pod(2), report(10).health.clone())]);
        assert!(read("{}").is_err());
    }

    #[test]
    fn of_too_many_the_lowest_are_kept() {
        let pods: Vec<_> =
            (0..MAX_KEPT + 10).map(|n| (pod(n), report(if n < 10 { 70 } else { 10 }))).collect();
        let written = write(pods.iter().map(|(pod, report)| (pod, report)));
        let read = read(&written).unwrap();
        assert_eq!(read.len(), MAX_KEPT);
        assert!(read.iter().all(|(_, health)| health.score == 10));
    }

    /// A control plane that starts anew knows what the one before knew, and the one that leads writes
    /// what is, and nothing else does.
    #[tokio::test]
    async fn what_the_leader_writes_the_next_one_knows() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("scores.json");
        let record = || Record::File(path.clone());
        let (leads, leading) = watch::channel(false);
        let reports = SharedReports::new();
        let share = |reports: &SharedReports| {
            reports.with(|reports| reports.of(&pod(1)).map(|report| report.health.share()))
        };
        reports.begin(&pod(1), Report::clone(&report(10)));
        let keeper = ScoreKeeper { record: record(), reports: reports.clone(), leading };
        let keeper = tokio::spawn(keeper.run());
        tokio::task::yield_now().await;
        assert!(!path.exists(), "another writes");
        leads.send_replace(true);
        let written = async |wanted: usize| loop {
            let read = std::fs::read_to_string(&path).ok().and_then(|text| read(&text).ok());
            if read.is_some_and(|read| read.len() == wanted) {
                break;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        };
        written(1).await;
        let next = SharedReports::new();
        restore(&record(), &next).await;
        assert_eq!(share(&next), Some(10));
        // It recovers.
        reports.begin(&pod(1), Report::clone(&report(100)));
        written(0).await;
        let next = SharedReports::new();
        restore(&record(), &next).await;
        assert_eq!(share(&next), None);
        keeper.abort();
    }
}
