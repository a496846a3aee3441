//! Counters and gauges outside the hot path: found by name and labels, written by any
//! thread with ordinary atomics.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

use super::encode::{Encoder, Kind};
use super::labels::OTHER;

/// A counter that any thread may write.
#[derive(Clone, Debug)]
pub struct SharedCounter(Arc<AtomicU64>);

impl SharedCounter {
    /// Counts one.
    pub fn increment(&self) {
        self.add(1);
    }

    /// Counts several.
    pub fn add(&self, amount: u64) {
        self.0.fetch_add(amount, Ordering::Relaxed);
    }
}

/// A gauge that any thread may write.
#[derive(Clone, Debug)]
pub struct SharedGauge(Arc<AtomicU64>);

impl SharedGauge {
    /// Shows a value.
    pub fn set(&self, value: f64) {
        self.0.store(value.to_bits(), Ordering::Relaxed);
    }
}

/// Which end of a handshake we were.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum HandshakeSide {
    /// We connected.
    Client,
    /// We accepted.
    Server,
}

impl HandshakeSide {
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Server => "server",
        }
    }
}

type LabelSet = Vec<(&'static str, Box<str>)>;

#[derive(Debug)]
struct AgentFamily {
    help: &'static str,
    kind: Kind,
    series: BTreeMap<LabelSet, Arc<AtomicU64>>,
}

#[derive(Debug)]
pub(super) struct AgentFamilies {
    families: Mutex<BTreeMap<&'static str, AgentFamily>>,
    limit: usize,
}

impl AgentFamilies {
    pub(super) fn new(limit: usize) -> Self {
        Self { families: Mutex::default(), limit }
    }

    pub(super) fn counter(
        &self,
        name: &'static str,
        help: &'static str,
        labels: &[(&'static str, &str)],
    ) -> SharedCounter {
        SharedCounter(self.cell(name, help, Kind::Counter, labels))
    }

    pub(super) fn gauge(
        &self,
        name: &'static str,
        help: &'static str,
        labels: &[(&'static str, &str)],
    ) -> SharedGauge {
        SharedGauge(self.cell(name, help, Kind::Gauge, labels))
    }

    fn cell(
        &self,
        name: &'static str,
        help: &'static str,
        kind: Kind,
        labels: &[(&'static str, &str)],
    ) -> Arc<AtomicU64> {
        let mut families = self.families.lock();
        let family =
            families.entry(name).or_insert_with(|| AgentFamily { help, kind, series: BTreeMap::new() });
        debug_assert_eq!(family.kind, kind, "{name} has one kind");
        let mut set = label_set(labels);
        if family.series.len() >= self.limit && !family.series.contains_key(&set) {
            set.iter_mut().for_each(|(_, value)| *value = OTHER.into());
        }
        family.series.entry(set).or_default().clone()
    }

    pub(super) fn forget(&self, name: &'static str, labels: &[(&'static str, &str)]) {
        if let Some(family) = self.families.lock().get_mut(name) {
            family.series.remove(&label_set(labels));
        }
    }

    pub(super) fn encode(&self, encoder: &mut Encoder) {
        for (name, family) in &*self.families.lock() {
            encoder.family(name, family.kind, family.help);
            for (labels, value) in &family.series {
                let labels: Vec<_> = labels.iter().map(|(name, value)| (*name, &**value)).collect();
                let value = value.load(Ordering::Relaxed);
                match family.kind {
                    Kind::Gauge => encoder.float(name, &labels, f64::from_bits(value)),
                    Kind::Counter | Kind::Histogram => encoder.integer(name, &labels, value),
                }
            }
        }
    }
}

fn label_set(labels: &[(&'static str, &str)]) -> LabelSet {
    labels.iter().map(|(name, value)| (*name, (*value).into())).collect()
}
