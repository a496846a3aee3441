//! Tells another control plane of the cluster what the pods report that are connected here, and
//! which alerts this one tells people of.

use std::sync::Arc;
use std::time::Duration;

use heddle_api::discovery::v1;
use prost::Message;
use tokio::sync::mpsc;
use tonic::Status;

use crate::alerts::SharedAlerts;
use crate::reports::{Entry, PodKey, Sent, SharedReports};

/// How long changes wait for others: a control plane that starts hears of all its pods at once.
const GATHER: Duration = Duration::from_millis(100);

/// After this a message is sent and the next one begun: well below what gRPC clients accept.
const MESSAGE_BYTES: usize = 1024 * 1024;

type Responses = mpsc::Sender<Result<v1::FollowResponse, Status>>;

/// Tells everything, and then what changes, until the other side is gone.
pub(super) async fn tell(reports: &SharedReports, alerts: &SharedAlerts, responses: &Responses) {
    let (mut own, mut telling) = (reports.own(), alerts.telling());
    own.mark_changed();
    let (mut sent, mut complete) = (Sent::default(), true);
    let mut told: Option<Arc<v1::Telling>> = None;
    loop {
        tokio::select! {
            changed = own.changed() => if changed.is_err() { return },
            changed = telling.changed() => if changed.is_err() { return },
            () = responses.closed() => return,
        }
        tokio::time::sleep(GATHER).await;
        own.mark_unchanged();
        let tells = telling.borrow_and_update().clone();
        let is_new = told.as_ref().is_none_or(|told| !Arc::ptr_eq(told, &tells));
        let (changed, gone) = reports.with(|reports| reports.news(&mut sent));
        let mut response = v1::FollowResponse::default();
        let mut size = 0;
        for (pod, entry) in changed {
            let report = message(pod, &entry);
            size += report.encoded_len();
            response.reports.push(report);
            if size >= MESSAGE_BYTES {
                size = 0;
                if responses.send(Ok(std::mem::take(&mut response))).await.is_err() {
                    return;
                }
            }
        }
        response.gone = gone.into_iter().map(name).collect();
        response.telling = is_new.then(|| (*tells).clone());
        response.complete = std::mem::take(&mut complete);
        told = Some(tells);
        if response != v1::FollowResponse::default() && responses.send(Ok(response)).await.is_err() {
            return;
        }
    }
}

fn message(pod: PodKey, entry: &Entry) -> v1::PodReport {
    v1::PodReport {
        pod: Some(name(pod)),
        report: Some(entry.report.message()),
        since: entry.since,
        lost: entry.lost,
    }
}

fn name((identity, uid): PodKey) -> v1::PodName {
    v1::PodName { identity: identity.as_str().into(), uid }
}
