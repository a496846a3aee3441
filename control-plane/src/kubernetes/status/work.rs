//! What is known while a replica leads, and what follows from it: which status has
//! to be written, and what it has to say. Without I/O; the moment comes in.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kube::api::ApiResource;
use tokio_stream::StreamMap;

use super::PAUSE;
use super::board::{Board, Key};
use super::conditions::Said;
use super::counter::Standing;
use super::desired::{self, AtParent, Present};
use super::replicas::Told;
use super::write::Change;
use crate::discovery::Published;
use crate::kubernetes::watch::{Followed, Following};
use crate::model::{Model, PolicyStatus};
use crate::source::{Content, ObjectName};

/// The watches of the kinds that are served.
type Events = StreamMap<&'static str, Following<(ObjectName, Present)>>;

/// Objects that the source could not take over: what was judged, and why.
pub(super) struct Unreadable {
    generation: i64,
    last_good: bool,
    reasons: Vec<String>,
}

/// What is known while this replica leads.
pub(super) struct Work {
    pub(super) board: Board,
    pub(super) served: BTreeMap<&'static str, ApiResource>,
    pub(super) events: Events,
    pub(super) published: Option<Arc<Published>>,
    pub(super) unreadable: BTreeMap<Key, Unreadable>,
    /// How sidecars stand; `None` until all replicas were heard: what the replica before has written
    /// is not taken back meanwhile.
    pub(super) standing: Option<Standing>,
    /// What `standing` is made from.
    pub(super) counted: Option<(u64, Told)>,
}

impl Work {
    pub(super) fn new(published: Option<Arc<Published>>, unreadable: BTreeMap<Key, Unreadable>) -> Self {
        Self {
            board: Board::default(),
            served: BTreeMap::new(),
            events: StreamMap::new(),
            published,
            unreadable,
            standing: None,
            counted: None,
        }
    }

    pub(super) fn heard(&mut self, kind: &'static str, event: Followed<(ObjectName, Present)>) {
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
    pub(super) fn publish(&mut self, published: Option<Arc<Published>>) {
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

    pub(super) fn refuse(&mut self, unreadable: BTreeMap<Key, Unreadable>) {
        let before = std::mem::replace(&mut self.unreadable, unreadable);
        for key in self.unreadable.keys().chain(before.keys()) {
            self.board.touch(key.clone());
        }
    }

    /// What has to be written to an object, if anything.
    pub(super) fn change(&self, key: &Key, now: &str) -> Option<Change> {
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
        if does_nothing(key.0) {
            return parents(&desired::of_unserved_route(key.0, &present.parent_refs), key, present, now);
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
    pub(super) fn wait(&self, now: Instant) -> Option<Duration> {
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

pub(super) fn is_route(kind: &str) -> bool {
    kind.ends_with("Route")
}

/// Whether it is a kind of routes that sidecars are told nothing of.
fn does_nothing(kind: &str) -> bool {
    matches!(kind, "TLSRoute" | "UDPRoute")
}

/// What became of an object. Statuses are ordered by kind and name.
pub(super) fn of<'a>(model: &'a Model, kind: &str, name: &ObjectName) -> Option<&'a PolicyStatus> {
    let found = model.statuses.binary_search_by(|status| (status.kind, &status.object).cmp(&(kind, name)));
    found.ok().and_then(|place| model.statuses.get(place))
}

/// What the source could not take over.
pub(super) fn unreadable(content: &Content) -> BTreeMap<Key, Unreadable> {
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

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    /// Whoever applied one could believe that it does something.
    #[test]
    fn routes_of_kinds_that_are_not_served_are_told_so() {
        let mut work = Work::new(None, BTreeMap::new());
        let name = ObjectName { namespace: "shop".into(), name: "r".into() };
        let present = Present {
            generation: 3,
            version: "7".into(),
            status: Value::Null,
            parent_refs: vec![json!({"group": "", "kind": "Service", "name": "db"}), json!({"name": "edge"})],
        };
        for kind in ["TLSRoute", "UDPRoute"] {
            let key = (kind, name.clone());
            work.board.put(key.clone(), present.clone());
            let Some(Change::Parents(parents, version)) = work.change(&key, "now") else {
                panic!("{kind} is told nothing")
            };
            assert_eq!((parents.len(), version.as_str()), (1, "7"), "a Gateway is not ours");
            assert_eq!(parents[0]["parentRef"]["name"], "db");
            let condition = &parents[0]["conditions"][0];
            assert_eq!(
                (&condition["type"], &condition["status"], &condition["reason"]),
                (&json!("Accepted"), &json!("False"), &json!("UnsupportedValue"))
            );
            assert_eq!(condition["observedGeneration"], 3);
        }
    }
}
