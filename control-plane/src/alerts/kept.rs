//! What was told, kept where it outlives the control plane: whoever tells next, when no other is left
//! to hear it from, goes on from there.
//!
//! A notice is kept before it is sent, and that it arrived afterwards. So one that was on its way when
//! the control plane ended is sent again as the same notice, with the id that it had.

use std::time::{Instant, SystemTime};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tracing::{info, warn};

use super::board::Key;
use super::told::Told;
use crate::kubernetes::pace::Pace;
use crate::record::Record;

/// Alerts that are kept, those told last: as many as may have something on their way, and small
/// enough for a `ConfigMap`, which has room for 1 MiB.
const MAX_KEPT: usize = 1024;

/// The record of what was told.
pub(super) struct Kept {
    /// `None`: nothing outlives this one.
    record: Option<Record>,
    /// What it says, if that is known.
    says: Option<Vec<Told>>,
    pace: Pace<()>,
    is_failing: bool,
    /// When it has to be written though nothing happens.
    due: Option<Instant>,
}

impl Kept {
    pub(super) fn new(record: Option<Record>) -> Self {
        Self { record, says: None, pace: Pace::default(), is_failing: false, due: None }
    }

    /// What an earlier control plane told.
    pub(super) async fn recall(&mut self) -> Vec<Told> {
        let Some(record) = &self.record else { return Vec::new() };
        let told = record.load(read).await.unwrap_or_default();
        if !told.is_empty() {
            info!(count = told.len(), "going on with the alerts that were told of before");
        }
        self.says = Some(told.clone());
        told
    }

    /// Another one writes there now.
    pub(super) fn forget(&mut self) {
        (self.says, self.due) = (None, None);
    }

    /// Keeps what is told; `is_news`: somebody is about to be told, who waits for nothing but this.
    pub(super) async fn keep(&mut self, told: &[Told], is_news: bool) {
        self.due = None;
        let Some(record) = &self.record else { return };
        if self.says.as_deref() == Some(told) {
            return;
        }
        let waits = self.pace.waits(&(), Instant::now());
        if waits.is_some() && (self.is_failing || !is_news) {
            self.due = waits;
            return;
        }
        let stored = record.store(write(told)).await;
        let now = Instant::now();
        self.is_failing = stored.is_err();
        match stored {
            Ok(()) => {
                self.says = Some(told.to_vec());
                self.pace.wrote(&(), now);
            }
            Err(error) => {
                if self.pace.failed(&(), now) == 1 {
                    warn!(%error, "cannot keep which alerts are told; a restart would tell them again");
                }
                self.due = self.pace.waits(&(), now);
            }
        }
    }

    /// When to [`keep`](Self::keep) again.
    pub(super) fn due(&self) -> Option<Instant> {
        self.due
    }
}

/// An alert as it is written.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Written {
    alert: String,
    service: String,
    value: f64,
    requests: u64,
    instances: usize,
    since: Timestamp,
    last_told: Timestamp,
    told: u32,
    on_its_way: bool,
    resolved: bool,
}

fn write(told: &[Told]) -> String {
    let time = |time: SystemTime| Timestamp::try_from(time).unwrap_or_default();
    let mut latest: Vec<(usize, &Told)> = told.iter().enumerate().collect();
    latest.sort_by_key(|(_, told)| std::cmp::Reverse(told.last_told_at));
    latest.truncate(MAX_KEPT);
    // What is resolved and fires anew is told in this order.
    latest.sort_by_key(|(place, _)| *place);
    let written = latest.into_iter().map(|(_, told)| Written {
        alert: told.key.rule.clone(),
        service: told.key.service.as_str().into(),
        value: told.value,
        requests: told.requests,
        instances: told.instances,
        since: time(told.since),
        last_told: time(told.last_told_at),
        told: told.told,
        on_its_way: told.on_its_way,
        resolved: told.resolved,
    });
    serde_json::to_string(&written.collect::<Vec<_>>()).expect("texts and numbers are JSON")
}

fn read(text: &str) -> Result<Vec<Told>, serde_json::Error> {
    let written: Vec<Written> = serde_json::from_str(text)?;
    let told = written.into_iter().take(MAX_KEPT).filter_map(|written| {
        Some(Told {
            key: Key { rule: written.alert, service: written.service.parse().ok()? },
            value: written.value,
            requests: written.requests,
            instances: written.instances,
            since: written.since.into(),
            last_told_at: written.last_told.into(),
            told: written.told,
            on_its_way: written.on_its_way,
            resolved: written.resolved,
        })
    });
    Ok(told.collect())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn told(number: u64) -> Told {
        Told {
            key: Key { rule: format!("shop/watch/{number}"), service: "shop/users".parse().unwrap() },
            value: 12.5,
            requests: 80,
            instances: 2,
            since: SystemTime::UNIX_EPOCH + Duration::from_nanos(1_700_000_000_123_456_789),
            last_told_at: SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000 + number),
            told: 3,
            on_its_way: true,
            resolved: false,
        }
    }

    #[test]
    fn what_is_written_is_read_to_the_nanosecond_that_makes_a_notices_id() {
        let both = [Told { resolved: true, ..told(1) }, told(1)];
        assert_eq!(read(&write(&both)).unwrap(), both);
        assert!(read("").is_err() && read("[{}]").is_err());
    }

    #[test]
    fn of_too_many_those_told_last_are_kept_in_their_order() {
        let most = u64::try_from(MAX_KEPT).unwrap();
        // The last ones are the oldest.
        let all: Vec<Told> = (0..most + 10).rev().map(told).collect();
        assert_eq!(read(&write(&all)).unwrap(), all[..MAX_KEPT]);
        assert!(write(&all).len() < 512 * 1024);
    }

    #[tokio::test]
    async fn only_what_changes_is_written() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("alerts.json");
        let mut kept = Kept::new(Some(Record::File(path.clone())));
        assert!(kept.recall().await.is_empty());
        kept.keep(&[], false).await;
        assert!(!path.exists(), "there is nothing to say");
        kept.keep(&[told(1)], true).await;
        let written = || std::fs::metadata(&path).unwrap().modified().unwrap();
        let first = written();
        kept.keep(&[told(1)], true).await;
        assert_eq!((written(), kept.due()), (first, None));
        let arrived = Told { on_its_way: false, ..told(1) };
        kept.keep(std::slice::from_ref(&arrived), false).await;
        assert_eq!(Kept::new(Some(Record::File(path))).recall().await, [arrived]);
    }

    #[tokio::test]
    async fn arrivals_wait_for_each_other_and_a_notice_for_none_of_them() {
        let scratch = tempfile::tempdir().unwrap();
        let record = || Some(Record::File(scratch.path().join("alerts.json")));
        let mut kept = Kept::new(record());
        let mut number = 0;
        while kept.due().is_none() {
            number += 1;
            assert!(number < 1000, "each one is written at once");
            kept.keep(&[told(number)], false).await;
        }
        kept.keep(&[told(5000)], true).await;
        assert_eq!(Kept::new(record()).recall().await, [told(5000)]);
    }

    #[tokio::test]
    async fn a_record_that_cannot_be_written_is_tried_again_later() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("later/alerts.json");
        let mut kept = Kept::new(Some(Record::File(path.clone())));
        kept.keep(&[told(1)], true).await;
        let due = kept.due().expect("it is tried again");
        std::fs::create_dir(path.parent().unwrap()).unwrap();
        tokio::time::sleep_until(due.into()).await;
        kept.keep(&[told(1)], false).await;
        assert_eq!((kept.due(), Kept::new(Some(Record::File(path))).recall().await), (None, vec![told(1)]));
    }
}
