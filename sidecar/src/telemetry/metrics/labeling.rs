//! What a policy makes of the labels of request metrics: some are added, some left empty.
//!
//! A [`Labeling`] is what was asked for, the same for all workers; a [`Labeler`] is one worker's
//! side of it. A request's values are read once ([`Labeler::read`]) into a handful of bytes, one
//! per label; the metrics under them are looked up by these, so that a request formats and
//! allocates no text. Values come from clients: a [`Vocabulary`] takes in so many and no more,
//! what is beyond is counted together and [as such](super::Registry::label_overflows). It
//! forgets those that no request has, so that the room is for those in use.

mod vocabulary;

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use http::HeaderName;

use self::vocabulary::Known;
pub use self::vocabulary::{Admits, MAX_VALUE, MAX_VALUES, Vocabulary};
use super::labels::OTHER;
use super::{Registry, RequestLabels, RequestMetrics, Shard, SharedCounter};
use crate::route::Head;

/// Labels that a policy can add.
pub const MAX_LABELS: usize = 8;

/// Label sets that a worker remembers between two sweeps: those of all series that there can be.
const RESOLVED: usize = 4096;

/// The values of one request: which of its vocabulary each label has.
type Ids = [u8; MAX_LABELS];

/// The request has none.
const ABSENT: u8 = 0;

/// It is not in the vocabulary.
const BEYOND: u8 = 1;

/// The first value of a vocabulary; with [`MAX_VALUES`] the last is still a byte.
const FIRST: u8 = 2;

/// What is done to the labels of the requests of one direction.
#[derive(Debug, PartialEq)]
pub struct Labeling {
    /// Labels besides the standard ones, at most [`MAX_LABELS`].
    pub added: Box<[AddedLabel]>,
    /// Whether `peer` is left empty.
    pub removes_peer: bool,
    /// Whether `route` is left empty.
    pub removes_route: bool,
}

/// A label besides the standard ones.
#[derive(Debug, Clone, PartialEq)]
pub struct AddedLabel {
    /// Its name.
    pub name: Arc<str>,
    /// Where its values come from.
    pub source: Source,
}

/// Where the values of a label come from.
#[derive(Debug, Clone)]
pub enum Source {
    /// The first value of a request header.
    Header {
        /// The header.
        name: HeaderName,
        /// What requests without it have.
        absent: Arc<str>,
        /// The values so far.
        vocabulary: Arc<Vocabulary>,
    },
    /// The standard label `route`.
    Route,
    /// Always this.
    Value(Arc<str>),
}

/// The same vocabulary, not an equal one.
impl PartialEq for Source {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (
                Self::Header { name, absent, vocabulary },
                Self::Header { name: other_name, absent: other_absent, vocabulary: other },
            ) => name == other_name && absent == other_absent && Arc::ptr_eq(vocabulary, other),
            (Self::Route, Self::Route) => true,
            (Self::Value(value), Self::Value(other)) => value == other,
            _ => false,
        }
    }
}

/// One worker's side of a [`Labeling`].
#[derive(Debug)]
pub struct Labeler {
    labeling: Arc<Labeling>,
    /// For each label what is known of its values, and what counts those that do not fit; `None`
    /// for those that do not depend on the request.
    headers: Box<[Option<Values>]>,
    resolved: RefCell<HashMap<(*const RequestMetrics, Ids), Resolved>>,
}

#[derive(Debug)]
struct Values {
    known: RefCell<Known>,
    overflows: SharedCounter,
}

/// The metrics under a label set, and those that they were made from, which keeps their address
/// from being that of others.
#[derive(Debug)]
struct Resolved {
    labeled: Rc<RequestMetrics>,
    _standard: Rc<RequestMetrics>,
}

/// The values of a request's added labels.
#[derive(Debug, Clone)]
pub struct LabelValues {
    labeler: Rc<Labeler>,
    ids: Ids,
}

impl Labeler {
    /// A worker's side.
    pub fn new(labeling: Arc<Labeling>, registry: &Registry) -> Self {
        let header = |label: &AddedLabel| match &label.source {
            Source::Header { vocabulary, .. } => Some(Values {
                known: RefCell::new(Known::of(vocabulary.clone())),
                overflows: registry.label_overflows(&label.name),
            }),
            Source::Route | Source::Value(_) => None,
        };
        let headers = labeling.added.iter().take(MAX_LABELS).map(header).collect();
        Self { labeling, headers, resolved: RefCell::default() }
    }

    /// What it was made from.
    pub fn labeling(&self) -> &Arc<Labeling> {
        &self.labeling
    }

    /// The values of a request; of one whose head could not be read without it.
    pub fn read(self: &Rc<Self>, head: Option<&impl Head>) -> LabelValues {
        let mut ids = [ABSENT; MAX_LABELS];
        for ((id, label), values) in ids.iter_mut().zip(&self.labeling.added).zip(&self.headers) {
            let (Source::Header { name, .. }, Some(values)) = (&label.source, values) else { continue };
            if let Some(value) = head.and_then(|head| head.first(name)).filter(|value| !value.is_empty()) {
                *id = values.id(value);
            }
        }
        LabelValues { labeler: self.clone(), ids }
    }

    /// Forgets the metrics that it looked up, so that a sweep sees which are used, and values that no
    /// request has had for an hour. To be called once a minute.
    pub fn sweep(&self, now: Instant) {
        // First: what is looked up by a value must not outlive it here.
        self.resolved.borrow_mut().clear();
        self.headers.iter().flatten().for_each(|values| values.known.borrow_mut().sweep(now));
    }

    /// It is not asked any more but by requests under way. What these hold of it keeps no value.
    pub fn retire(&self) {
        self.headers.iter().flatten().for_each(|values| values.known.borrow_mut().leave());
    }

    /// The labels under which these values are counted.
    fn labels(&self, ids: Ids, standard: &RequestLabels) -> RequestLabels {
        let mut labels = standard.clone();
        if !self.labeling.added.is_empty() {
            let value = |(label, id): (&AddedLabel, u8)| {
                let value = match &label.source {
                    Source::Route => standard.route.clone(),
                    Source::Value(value) => value.clone(),
                    Source::Header { absent, .. } if id == ABSENT => absent.clone(),
                    Source::Header { vocabulary, .. } => {
                        let place = id.checked_sub(FIRST);
                        place.and_then(|place| vocabulary.value(place)).unwrap_or_else(|| OTHER.into())
                    }
                };
                (label.name.clone(), value)
            };
            labels.added = Some(self.labeling.added.iter().zip(ids).map(value).collect());
        }
        if self.labeling.removes_peer {
            labels.peer = "".into();
        }
        if self.labeling.removes_route {
            labels.route = "".into();
        }
        labels
    }
}

impl Values {
    fn id(&self, value: &[u8]) -> u8 {
        self.known.borrow_mut().place(value).map_or_else(
            || {
                self.overflows.increment();
                BEYOND
            },
            |place| FIRST + place,
        )
    }
}

impl LabelValues {
    /// The metrics of the request, in place of those under the standard labels.
    pub fn metrics(&self, standard: &Rc<RequestMetrics>, shard: &Shard) -> Rc<RequestMetrics> {
        let key = (Rc::as_ptr(standard), self.ids);
        let mut resolved = self.labeler.resolved.borrow_mut();
        if let Some(known) = resolved.get(&key) {
            return known.labeled.clone();
        }
        if resolved.len() >= RESOLVED {
            resolved.clear();
        }
        let labeled = shard.requests(&self.labeler.labels(self.ids, standard.labels()));
        let entry = Resolved { labeled: labeled.clone(), _standard: standard.clone() };
        resolved.insert(key, entry);
        labeled
    }
}

#[cfg(test)]
mod tests;
