//! What is known of a cluster: pure, changes in, a [`Part`] out.
//!
//! Each collection keeps what it held when the API server was last heard. An
//! object that is refused keeps its last good version in force until it is
//! deleted; a collection that is not served any more holds nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use super::super::object::{Object, ObjectName};
use super::super::{Location, Part, RefusedObject, SourceError};
use super::Watches;
use super::kinds::Watched;
use super::raw::Read;
use crate::kubernetes::watch::Failure;

/// What a watch has found.
#[derive(Debug)]
pub(super) enum Change {
    /// These and no others are there.
    Listed(Vec<Read>),
    Applied(Read),
    Deleted(ObjectName),
    /// From now on changes arrive as they happen.
    Live,
    /// Perhaps they do not any more; it is looked.
    Doubted,
    /// Until further notice they do not.
    Lost(Failure),
    /// The cluster does not know the kind.
    Absent,
}

/// All collections of one cluster.
#[derive(Debug)]
pub(super) struct Store {
    source: Arc<Path>,
    collections: BTreeMap<Watched, Collection>,
    /// Why the API server could not be reached first; it need not be said for each collection, and
    /// not again when the reason changes.
    unreachable: Option<String>,
    /// Whether it was complete before.
    begun: bool,
}

/// How the collections stand together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Standing {
    /// All hear of changes as they happen, or are about to.
    Whole,
    /// Some do, others do not: those of an API server that has come back are some moments apart.
    Partial,
    /// None does.
    Away,
}

#[derive(Debug, Default)]
struct Collection {
    state: State,
    /// Whether it is known what there is, be it nothing.
    known: bool,
    objects: BTreeMap<ObjectName, Entry>,
}

#[derive(Debug, Default, PartialEq, Eq)]
enum State {
    #[default]
    Starting,
    Live,
    /// It was live; whether it still is will be known in a moment. Nothing differs for anybody else
    /// but in when changes are handed on.
    Doubted,
    Lost(Failure),
    Absent,
}

#[derive(Debug, Default)]
struct Entry {
    good: Option<Object>,
    errors: Vec<SourceError>,
}

impl Store {
    pub(super) fn new(source: Arc<Path>, collections: impl IntoIterator<Item = Watched>) -> Self {
        let collections = collections.into_iter().map(|watched| (watched, Collection::default())).collect();
        Self { source, collections, unreachable: None, begun: false }
    }

    /// Takes in a change; whether it makes a difference.
    pub(super) fn apply(&mut self, watched: &Watched, change: Change) -> bool {
        // Given up meanwhile.
        let Some(collection) = self.collections.get_mut(watched) else { return false };
        let changed = match change {
            Change::Listed(reads) => {
                let mut before = std::mem::take(&mut collection.objects);
                let mut changed = !std::mem::replace(&mut collection.known, true);
                for read in reads {
                    let entry = before.remove(&read.name);
                    changed |= collection.insert(read, entry);
                }
                changed || !before.is_empty()
            }
            Change::Applied(read) => {
                let entry = collection.objects.remove(&read.name);
                collection.insert(read, entry)
            }
            Change::Deleted(name) => collection.objects.remove(&name).is_some(),
            Change::Live => collection.enter(State::Live),
            Change::Doubted => {
                collection.enter(State::Doubted);
                false
            }
            Change::Lost(failure) => collection.enter(State::Lost(failure)),
            Change::Absent => {
                collection.known = true;
                let held = !std::mem::take(&mut collection.objects).is_empty();
                collection.enter(State::Absent) || held
            }
        };
        let mut reasons = self.collections.values().filter_map(Collection::unreachable);
        match (reasons.next(), &self.unreachable) {
            (Some(first), None) => self.unreachable = Some(first.to_owned()),
            (None, Some(_)) => self.unreachable = None,
            _ => {}
        }
        changed
    }

    /// Whether all collections are known, so that what there is is no half of the mesh. At the
    /// beginning the Secrets that policies refer to are a part of it, unless they may not be read:
    /// without its keys a policy would refuse everybody until they are there. Later nothing waits
    /// for a Secret that is new.
    pub(super) fn is_complete(&self) -> bool {
        let is_left_out = |watched: &Watched, collection: &Collection| {
            let refused = matches!(collection.state, State::Lost(Failure::Refused(_)));
            watched.only.is_some() && (self.begun || refused)
        };
        self.collections
            .iter()
            .all(|(watched, collection)| collection.known || is_left_out(watched, collection))
    }

    /// Whether all collections are of one time, more or less. A Pod that is not known yet would not
    /// be spoken to as what it is.
    pub(super) fn standing(&self) -> Standing {
        let states = || self.collections.values().map(|collection| &collection.state);
        if !states().any(|state| matches!(state, State::Lost(_) | State::Doubted)) {
            Standing::Whole
        } else if states().any(|state| *state == State::Live) {
            Standing::Partial
        } else {
            Standing::Away
        }
    }

    /// Takes in which Secrets are referred to; those to watch from now on, and those that are
    /// given up.
    pub(super) fn follow_secrets(&mut self) -> (Vec<Watched>, Vec<Watched>) {
        let objects = self.collections.values().flat_map(|collection| collection.objects.values());
        let wanted: BTreeSet<ObjectName> =
            objects.filter_map(|entry| entry.good.as_ref()).flat_map(Object::secrets).collect();
        let wanted: BTreeSet<Watched> = wanted.into_iter().take(MAX_SECRETS).map(Watched::secret).collect();
        let gone: Vec<Watched> = self
            .collections
            .keys()
            .filter(|watched| watched.only.is_some() && !wanted.contains(watched))
            .cloned()
            .collect();
        self.collections.retain(|watched, _| !gone.contains(watched));
        let mut new = Vec::new();
        for watched in wanted {
            if !self.collections.contains_key(&watched) {
                self.collections.insert(watched.clone(), Collection::default());
                new.push(watched);
            }
        }
        self.begun |= self.is_complete();
        (new, gone)
    }

    /// All that is in force, and what is not.
    pub(super) fn part(&self) -> Part {
        let entries = || self.collections.values().flat_map(|collection| collection.objects.values());
        let unreachable = self
            .unreachable
            .iter()
            .map(|reason| self.failure(&self.source, format!("the API server cannot be reached: {reason}")));
        let refused = self.collections.iter().filter_map(|(watched, collection)| match &collection.state {
            State::Lost(Failure::Refused(reason)) => {
                let place = watched.place(&self.source.display().to_string());
                Some(self.failure(&Path::new(&place).into(), format!("cannot be watched: {reason}")))
            }
            _ => None,
        });
        let errors = entries().flat_map(|entry| entry.errors.iter().cloned());
        Part {
            objects: entries().filter_map(|entry| entry.good.clone()).collect(),
            errors: unreachable.chain(refused).chain(errors).collect(),
            pending: !self.is_complete(),
            watches: self.watches(),
        }
    }

    fn watches(&self) -> Watches {
        let mut watches = Watches::default();
        for collection in self.collections.values() {
            match collection.state {
                State::Live | State::Doubted => watches.live += 1,
                State::Starting | State::Lost(_) => watches.lost += 1,
                State::Absent => watches.absent += 1,
            }
        }
        watches
    }

    fn failure(&self, place: &Arc<Path>, message: String) -> SourceError {
        let location = Location { file: place.clone(), line: 0, column: 0 };
        SourceError::new(location, String::new(), message)
    }
}

/// Each is watched by itself. A mesh that refers to more has another way to hand out keys.
const MAX_SECRETS: usize = 256;

impl Collection {
    /// Takes in an object that had this entry before; whether anything else is in force or told now.
    /// Much of what API servers report of an object is of no interest, as the states of pods.
    fn insert(&mut self, Read { name, outcome, told }: Read, before: Option<Entry>) -> bool {
        let was_there = before.is_some();
        let before = before.unwrap_or_default();
        let (same, entry) = match outcome {
            Ok(None) => return was_there,
            Ok(Some(good)) => match before.good {
                Some(known) if known.says_the_same(&good) => {
                    (before.errors == told, Entry { good: Some(known), errors: told })
                }
                _ => (false, Entry { good: Some(good), errors: told }),
            },
            Err(errors) => {
                let last_good = before.good.is_some();
                let told = |error: SourceError| SourceError {
                    object: error
                        .object
                        .map(|object| Arc::new(RefusedObject { last_good, ..(*object).clone() })),
                    ..error
                };
                let errors = errors.into_iter().map(told).collect();
                (before.errors == errors, Entry { good: before.good, errors })
            }
        };
        self.objects.insert(name, entry);
        !same
    }

    fn enter(&mut self, state: State) -> bool {
        let was = std::mem::replace(&mut self.state, state);
        was != self.state && !(was == State::Doubted && self.state == State::Live)
    }

    fn unreachable(&self) -> Option<&str> {
        match &self.state {
            State::Lost(Failure::Unreachable(reason)) => Some(reason),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests;
