//! Tells objects what became of them: writes their `status`.
//!
//! The lease's holder watches the kinds that have a status of ours and compares
//! what each says with what it should say; nothing is written where nothing
//! differs, whoever wrote it. Heddle's own kinds are written by server-side
//! apply of our conditions. A route's `parents` is one atomic list that all
//! controllers share, so it is read, changed and written back on the condition
//! that it is still the same (`resourceVersion`); an apply of it would take the
//! others' entries away.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::{FutureExt, StreamExt, stream};
use heddle_api::tls::Credentials;
use kube::api::{Api, DynamicObject};
use kube::discovery::oneshot;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tracing::{debug, warn};

use self::counter::Counter;
use self::peers::Peers;
use self::replicas::Told;
use self::work::{Work, is_route, unreadable};
use self::write::{read, write};
use super::watch::{ApiServer, Collection, follow};
use crate::discovery::Published;
use crate::metrics::Metrics;
use crate::source::Content;

mod board;
pub(crate) mod conditions;
pub(crate) mod counter;
mod desired;
mod enforcement;
mod peers;
pub(crate) mod replicas;
mod work;
mod write;

pub(crate) use desired::CONTROLLER;

/// The kinds that have a status of ours, by their groups. Routes of kinds that are not served are told
/// so: nobody is to believe that they do something.
const KINDS: [(&str, &[&str]); 2] = [
    (heddle_api::crd::GATEWAY_GROUP, &["HTTPRoute", "GRPCRoute", "TCPRoute", "TLSRoute", "UDPRoute"]),
    (
        heddle_api::crd::GROUP,
        &[
            "ExternalService",
            "FaultPolicy",
            "JwtPolicy",
            "MeshConfig",
            "RateLimitPolicy",
            "TelemetryPolicy",
            "TrafficPolicy",
        ],
    ),
];

/// Writes at once, and in one go; with the pause between two, at most 130 a second.
const CONCURRENT: usize = 8;
const BATCH: usize = 32;
const PAUSE: Duration = Duration::from_millis(250);

/// Shorter than what is left of the lease when this replica stops writing.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(3);

/// How often it is looked whether the cluster serves kinds that it did not serve before.
const DISCOVERY: Duration = Duration::from_secs(10);

/// How often sidecars' answers are added up: a change that reaches thousands of them is a few
/// writes, not thousands.
const COUNTING: Duration = Duration::from_secs(2);

/// Writes statuses.
pub(crate) struct StatusWriter {
    pub(crate) server: Arc<ApiServer>,
    pub(crate) published: watch::Receiver<Option<Arc<Published>>>,
    pub(crate) sources: watch::Receiver<Content>,
    pub(crate) counter: Arc<Counter>,
    pub(crate) credentials: Arc<Credentials>,
    /// The control plane's own namespace.
    pub(crate) namespace: String,
    pub(crate) leading: watch::Receiver<bool>,
    pub(crate) metrics: Arc<Metrics>,
}

impl StatusWriter {
    /// Writes while this replica leads, until it is dropped.
    pub(crate) async fn run(self) {
        let mut leading = self.leading.clone();
        loop {
            if leading.wait_for(|leads| *leads).await.is_err() {
                return;
            }
            tokio::select! {
                () = self.lead() => return,
                _ = leading.wait_for(|leads| !*leads) => debug!("another replica writes statuses"),
            }
        }
    }

    async fn lead(&self) {
        let (mut published, mut sources) = (self.published.clone(), self.sources.clone());
        let unreadable_now = unreadable(&sources.borrow_and_update());
        let mut work = Work::new(published.borrow_and_update().clone(), unreadable_now);
        let (told, mut others) = (watch::Sender::new(Told::default()), JoinSet::new());
        let heard = told.subscribe();
        let asking = Peers {
            credentials: self.credentials.clone(),
            namespace: self.namespace.clone(),
            sources: self.sources.clone(),
            own: self.counter.replica().to_owned(),
            told,
        };
        // Ends with this.
        others.spawn(asking.run());
        let mut discovery = tokio::time::interval(DISCOVERY);
        let mut counting = tokio::time::interval(COUNTING);
        for interval in [&mut discovery, &mut counting] {
            interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        }
        loop {
            self.write(&mut work).await;
            let wait = work.wait(Instant::now());
            let again = async {
                match wait {
                    Some(wait) => tokio::time::sleep(wait).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                Some((kind, event)) = work.events.next(), if !work.events.is_empty() => {
                    work.heard(kind, event);
                    // What a list names is looked at together.
                    while let Some(Some((kind, event))) = work.events.next().now_or_never() {
                        work.heard(kind, event);
                    }
                }
                changed = published.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    work.publish(published.borrow_and_update().clone());
                }
                Ok(()) = sources.changed() => work.refuse(unreadable(&sources.borrow_and_update())),
                _ = counting.tick() => {
                    let told = heard.borrow().clone();
                    self.count(&mut work, told).await;
                }
                _ = discovery.tick() => self.discover(&mut work).await,
                () = again => {}
            }
        }
    }

    /// Watches the kinds that the cluster serves by now.
    async fn discover(&self, work: &mut Work) {
        for (group, kinds) in KINDS {
            if kinds.iter().all(|kind| work.served.contains_key(kind)) {
                continue;
            }
            let found =
                tokio::time::timeout(REQUEST_TIMEOUT, oneshot::group(&self.server.client, group)).await;
            let Ok(Ok(found)) = found else {
                debug!(group, "the cluster does not serve this group, or does not answer");
                continue;
            };
            for kind in kinds {
                if let Some((resource, _)) = found.recommended_kind(kind)
                    && !work.served.contains_key(kind)
                {
                    let all: Api<DynamicObject> = Api::all_with(self.server.client.clone(), &resource);
                    let events = follow(self.server.clone(), Collection::of(&all), kind, read);
                    work.events.insert(kind, events);
                    work.served.insert(kind, resource);
                }
            }
        }
    }

    /// Adds up what sidecars answered here and elsewhere, if anything changed since the last time.
    async fn count(&self, work: &mut Work, told: Told) {
        if !told.complete {
            return;
        }
        let Some(counted) = self.counter.counted().await else { return };
        let same = |(revision, of): &(u64, Told)| *revision == counted.revision && of.is(&told);
        if work.counted.as_ref().is_some_and(same) {
            return;
        }
        let standing = told.add_to(&counted.policies);
        for (key, count) in &standing {
            if work.standing.as_ref().and_then(|before| before.get(key)) != Some(count) {
                work.board.touch(key.clone());
            }
        }
        if work.standing.is_none() {
            // They have waited.
            work.board.touch_all(|(kind, _)| !is_route(kind));
        }
        work.standing = Some(standing);
        work.counted = Some((counted.revision, told));
    }

    async fn write(&self, work: &mut Work) {
        let keys = work.board.take(Instant::now(), BATCH);
        let moment = jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
        let mut writes = Vec::new();
        for key in keys {
            match (work.change(&key, &moment), work.served.get(key.0)) {
                (Some(change), Some(resource)) => {
                    writes.push(write(self.server.client.clone(), resource.clone(), key, change));
                }
                _ => work.board.settled(&key),
            }
        }
        let mut written = stream::iter(writes).buffer_unordered(CONCURRENT);
        while let Some((key, result)) = written.next().await {
            self.metrics.status_written(result.is_ok());
            match result {
                Ok(object) => {
                    work.board.wrote(&key, Instant::now());
                    work.board.put(key, read(object).1);
                }
                Err(reason) => {
                    // Once is no news: another controller may have written at the same time.
                    if work.board.failed(key.clone(), Instant::now()) == 3 {
                        warn!(kind = key.0, object = %key.1, reason, "cannot write the status; trying again");
                    }
                }
            }
        }
    }
}

/// A kind of ours or of routes by its name.
fn kind(name: &str) -> Option<&'static str> {
    KINDS.iter().flat_map(|(_, kinds)| kinds.iter()).find(|kind| **kind == name).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_heddles_own_is_told() {
        for (file, definition) in heddle_api::crd::manifests() {
            let kind = definition["spec"]["names"]["kind"].as_str().unwrap();
            assert!(
                KINDS.iter().any(|(_, kinds)| kinds.contains(&kind)),
                "the kind of {file} gets no status"
            );
        }
    }
}
