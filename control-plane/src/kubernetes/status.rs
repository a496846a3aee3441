//! Tells objects what became of them: writes their `status`.
//!
//! The lease's holder watches the kinds that have a status of ours and compares
//! what each says with what it should say; nothing is written where nothing
//! differs, whoever wrote it. Heddle's own kinds are written by server-side
//! apply of our conditions. A route's `parents` is one atomic list that all
//! controllers share, so it is read, changed and written back on the condition
//! that it is still the same (`resourceVersion`); an apply of it would take the
//! others' entries away.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::{FutureExt, StreamExt, stream};
use heddle_api::tls::Credentials;
use kube::api::{Api, ApiResource, DynamicObject, Patch, PatchParams};
use kube::discovery::oneshot;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_stream::StreamMap;
use tracing::{debug, warn};

use self::board::{Board, Key};
use self::conditions::Said;
use self::counter::{Counter, Standing};
use self::desired::{AtParent, Present};
use self::peers::Peers;
use self::replicas::Told;
use super::FIELD_MANAGER;
use super::watch::{ApiServer, Collection, Followed, Following, follow};
use crate::discovery::Published;
use crate::metrics::Metrics;
use crate::model::{Model, PolicyStatus};
use crate::source::{Content, ObjectName};

mod board;
pub(crate) mod conditions;
pub(crate) mod counter;
mod desired;
mod enforcement;
mod peers;
pub(crate) mod replicas;

pub(crate) use desired::CONTROLLER;

/// The kinds that have a status of ours, by their groups.
const KINDS: [(&str, &[&str]); 2] = [
    (heddle_api::crd::GATEWAY_GROUP, &["HTTPRoute", "GRPCRoute", "TCPRoute"]),
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

/// The watches of the kinds that are served.
type Events = StreamMap<&'static str, Following<(ObjectName, Present)>>;

/// Objects that the source could not take over: what was judged, and why.
struct Unreadable {
    generation: i64,
    last_good: bool,
    reasons: Vec<String>,
}

/// What is known while this replica leads.
struct Work {
    board: Board,
    served: BTreeMap<&'static str, ApiResource>,
    events: Events,
    published: Option<Arc<Published>>,
    unreadable: BTreeMap<Key, Unreadable>,
    /// How sidecars stand; `None` until all replicas were heard: what the replica before has written
    /// is not taken back meanwhile.
    standing: Option<Standing>,
    /// What `standing` is made from.
    counted: Option<(u64, Told)>,
}

/// What has to be written to an object.
enum Change {
    Parents(Vec<Value>, String),
    Conditions(Vec<Value>),
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
        let mut work = Work {
            board: Board::default(),
            served: BTreeMap::new(),
            events: StreamMap::new(),
            published: published.borrow_and_update().clone(),
            unreadable: unreadable(&sources.borrow_and_update()),
            standing: None,
            counted: None,
        };
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

impl Work {
    fn heard(&mut self, kind: &'static str, event: Followed<(ObjectName, Present)>) {
        match event {
            Followed::Listed(all) => self.board.list(kind, all),
            Followed::Applied((name, present)) => self.board.put((kind, name), present),
            Followed::Deleted(name) => self.board.remove(&(kind, name)),
            Followed::NotServed => {
                // In another version, perhaps; the next discovery finds it.
                self.events.remove(&kind);
                self.served.remove(kind);
                self.board.list(kind, Vec::new());
            }
        }
    }

    /// Marks the objects of which something else is to be said.
    fn publish(&mut self, published: Option<Arc<Published>>) {
        let before = std::mem::replace(&mut self.published, published);
        let statuses = |published: &Option<Arc<Published>>| published.as_ref().map(|p| p.model.clone());
        let (Some(new), old) = (statuses(&self.published), statuses(&before)) else { return };
        for status in &new.statuses {
            let known = old.as_ref().and_then(|old| of(old, status.kind, &status.object));
            if known != Some(status) {
                self.board.touch((status.kind, status.object.clone()));
            }
        }
    }

    fn refuse(&mut self, unreadable: BTreeMap<Key, Unreadable>) {
        let before = std::mem::replace(&mut self.unreadable, unreadable);
        for key in self.unreadable.keys().chain(before.keys()) {
            self.board.touch(key.clone());
        }
    }

    /// What has to be written to an object, if anything.
    fn change(&self, key: &Key, now: &str) -> Option<Change> {
        let present = self.board.get(key)?;
        let is_route = is_route(key.0);
        // What was judged is the very version that is there; otherwise one of them is about to come.
        let refused = self.unreadable.get(key).filter(|refused| refused.generation == present.generation);
        if let Some(Unreadable { last_good, reasons, .. }) = refused {
            return if is_route {
                let wanted = desired::of_unreadable_route(&present.parent_refs, reasons, *last_good);
                parents(&wanted, key, present, now)
            } else {
                own(&desired::of_unreadable(reasons, *last_good), present, now)
            };
        }
        let model = &self.published.as_ref()?.model;
        let status = of(model, key.0, &key.1).filter(|status| status.generation == present.generation)?;
        if is_route {
            parents(&desired::of_route(&status.parents), key, present, now)
        } else {
            let counted = self.standing.as_ref()?.get(key);
            // What was counted of the version before says nothing of this one.
            let count = counted.filter(|(generation, _)| *generation == present.generation);
            own(&desired::of_policy(status, count.map(|(_, count)| *count)), present, now)
        }
    }

    /// How long to wait for the next write, `None`: until something changes.
    fn wait(&self, now: Instant) -> Option<Duration> {
        if self.board.has_more(now) {
            return Some(PAUSE);
        }
        self.board.next_try(now).map(|at| at.saturating_duration_since(now))
    }
}

fn parents(wanted: &[AtParent], key: &Key, present: &Present, now: &str) -> Option<Change> {
    let parents = desired::parents(wanted, &key.1.namespace, present.generation, present, now)?;
    Some(Change::Parents(parents, present.version.clone()))
}

fn own(said: &[Said], present: &Present, now: &str) -> Option<Change> {
    desired::own_conditions(said, present.generation, present, now).map(Change::Conditions)
}

fn is_route(kind: &str) -> bool {
    kind.ends_with("Route")
}

/// A kind of ours or of routes by its name.
fn kind(name: &str) -> Option<&'static str> {
    KINDS.iter().flat_map(|(_, kinds)| kinds.iter()).find(|kind| **kind == name).copied()
}

/// What became of an object. Statuses are ordered by kind and name.
fn of<'a>(model: &'a Model, kind: &str, name: &ObjectName) -> Option<&'a PolicyStatus> {
    let found = model.statuses.binary_search_by(|status| (status.kind, &status.object).cmp(&(kind, name)));
    found.ok().and_then(|place| model.statuses.get(place))
}

fn unreadable(content: &Content) -> BTreeMap<Key, Unreadable> {
    let mut found: BTreeMap<Key, Unreadable> = BTreeMap::new();
    for error in &*content.errors {
        let Some(object) = &error.object else { continue };
        let refused = found.entry((object.kind, object.name.clone())).or_insert_with(|| Unreadable {
            generation: object.generation,
            last_good: object.last_good,
            reasons: Vec::new(),
        });
        let field = if error.field.is_empty() { String::new() } else { format!("{}: ", error.field) };
        refused.reasons.push(format!("{field}{}", error.message));
    }
    found
}

async fn write(
    client: kube::Client,
    resource: ApiResource,
    (kind, name): Key,
    change: Change,
) -> (Key, Result<DynamicObject, String>) {
    let api: Api<DynamicObject> = if name.namespace.is_empty() {
        Api::all_with(client, &resource)
    } else {
        Api::namespaced_with(client, &name.namespace, &resource)
    };
    let mut parameters = PatchParams { field_manager: Some(FIELD_MANAGER.into()), ..PatchParams::default() };
    let patch = match change {
        Change::Parents(parents, version) => Patch::Merge(json!({
            "metadata": {"resourceVersion": version},
            "status": {"parents": parents},
        })),
        Change::Conditions(conditions) => {
            parameters.force = true;
            Patch::Apply(json!({
                "apiVersion": resource.api_version,
                "kind": resource.kind,
                "metadata": {"name": name.name},
                "status": {"conditions": conditions},
            }))
        }
    };
    let written =
        tokio::time::timeout(REQUEST_TIMEOUT, api.patch_status(&name.name, &parameters, &patch)).await;
    let result = match written {
        Ok(Ok(object)) => Ok(object),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err(format!("no answer within {REQUEST_TIMEOUT:?}")),
    };
    ((kind, name), result)
}

/// An object, as far as its status is concerned.
fn read(mut object: DynamicObject) -> (ObjectName, Present) {
    let name = ObjectName {
        namespace: object.metadata.namespace.take().unwrap_or_default(),
        name: object.metadata.name.take().unwrap_or_default(),
    };
    let present = Present {
        generation: object.metadata.generation.unwrap_or_default(),
        version: object.metadata.resource_version.take().unwrap_or_default(),
        status: object.data.get_mut("status").map(Value::take).unwrap_or_default(),
        parent_refs: match object.data.pointer_mut("/spec/parentRefs").map(Value::take) {
            Some(Value::Array(references)) => references,
            _ => Vec::new(),
        },
    };
    (name, present)
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
