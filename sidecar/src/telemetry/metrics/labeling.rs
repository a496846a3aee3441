//! What a policy makes of the labels of request metrics: some are added, some left empty.
//!
//! A [`Labeling`] is what was asked for, the same for all workers; a [`Labeler`] is one worker's
//! side of it. A request's values are read once ([`Labeler::read`]) into a handful of bytes, one
//! per label; the metrics under them are looked up by these, so that a request formats and
//! allocates no text. Values come from clients: a [`Vocabulary`] takes in so many and no more,
//! what is beyond is counted together and [as such](super::Registry::label_overflows).

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;

use http::HeaderName;
use parking_lot::Mutex;

use super::labels::OTHER;
use super::{Registry, RequestLabels, RequestMetrics, Shard, SharedCounter};
use crate::route::Head;

/// Labels that a policy can add.
pub const MAX_LABELS: usize = 8;

/// Values that one label can have.
pub const MAX_VALUES: usize = 200;

/// Bytes of a value. Longer ones are taken for those beyond the bound.
pub const MAX_VALUE: usize = 128;

/// Label sets that a worker remembers between two sweeps: those of all series that there can be.
const RESOLVED: usize = 4096;

/// The values of one request: which of its vocabulary each label has.
type Ids = [u8; MAX_LABELS];

/// The request has none.
const ABSENT: u8 = 0;

/// It is not in the vocabulary.
const BEYOND: u8 = 1;

/// The first value of the vocabulary; with [`MAX_VALUES`] the last is still a byte.
const FIRST: usize = 2;

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

/// Which values a label takes in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Admits {
    /// So many, those that come first. At most [`MAX_VALUES`].
    First(usize),
    /// These. At most [`MAX_VALUES`].
    Listed(Box<[Arc<str>]>),
}

/// The values of a label, which all workers share. It only grows, and up to its bound.
#[derive(Debug)]
pub struct Vocabulary {
    admits: Admits,
    values: Mutex<Vec<Arc<str>>>,
}

impl Vocabulary {
    /// One that takes in these.
    pub fn new(admits: Admits) -> Self {
        let values = match &admits {
            Admits::First(_) => Vec::new(),
            Admits::Listed(values) => values.to_vec(),
        };
        Self { admits, values: Mutex::new(values) }
    }

    /// What it takes in.
    pub fn admits(&self) -> &Admits {
        &self.admits
    }

    fn bound(&self) -> usize {
        match &self.admits {
            Admits::First(bound) => *bound,
            Admits::Listed(values) => values.len(),
        }
        .min(MAX_VALUES)
    }

    /// Takes a value in, if there is room and it can be one; `known` learns it. When there is no
    /// room, `known` learns all there are, so that nobody has to ask again.
    #[cold]
    fn admit(&self, value: &[u8], known: &mut HashMap<Box<[u8]>, u8>) -> Option<u8> {
        let text = std::str::from_utf8(value).ok()?;
        if text.len() > MAX_VALUE || text.chars().any(char::is_control) {
            return None;
        }
        let mut values = self.values.lock();
        let place = values.iter().position(|known| **known == *text).or_else(|| {
            let has_room = values.len() < self.bound();
            has_room.then(|| {
                values.push(text.into());
                values.len() - 1
            })
        });
        match place {
            Some(place) => {
                let id = u8::try_from(FIRST + place).ok()?;
                known.insert(value.into(), id);
                Some(id)
            }
            None => {
                let all = values.iter().zip(2_u8..).map(|(value, id)| (value.as_bytes().into(), id));
                known.extend(all);
                None
            }
        }
    }

    fn value(&self, id: u8) -> Option<Arc<str>> {
        self.values.lock().get(usize::from(id).checked_sub(FIRST)?).cloned()
    }
}

/// One worker's side of a [`Labeling`].
#[derive(Debug)]
pub struct Labeler {
    labeling: Arc<Labeling>,
    /// For each label what is known of its values, and what counts those that do not fit; `None`
    /// for those that do not depend on the request.
    headers: Box<[Option<Known>]>,
    resolved: RefCell<HashMap<(*const RequestMetrics, Ids), Resolved>>,
}

#[derive(Debug)]
struct Known {
    ids: RefCell<HashMap<Box<[u8]>, u8>>,
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
            Source::Header { .. } => {
                Some(Known { ids: RefCell::default(), overflows: registry.label_overflows(&label.name) })
            }
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
        for ((id, label), known) in ids.iter_mut().zip(&self.labeling.added).zip(&self.headers) {
            let (Source::Header { name, vocabulary, .. }, Some(known)) = (&label.source, known) else {
                continue;
            };
            if let Some(value) = head.and_then(|head| head.first(name)).filter(|value| !value.is_empty()) {
                *id = known.id(value, vocabulary);
            }
        }
        LabelValues { labeler: self.clone(), ids }
    }

    /// Forgets the metrics that it looked up, so that a sweep sees which are used.
    pub fn sweep(&self) {
        self.resolved.borrow_mut().clear();
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
                    Source::Header { vocabulary, .. } => vocabulary.value(id).unwrap_or_else(|| OTHER.into()),
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

impl Known {
    fn id(&self, value: &[u8], vocabulary: &Vocabulary) -> u8 {
        let mut ids = self.ids.borrow_mut();
        if let Some(id) = ids.get(value) {
            return *id;
        }
        // Who knows all has nobody to ask.
        let admitted = if ids.len() < vocabulary.bound() { vocabulary.admit(value, &mut ids) } else { None };
        admitted.unwrap_or_else(|| {
            self.overflows.increment();
            BEYOND
        })
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
