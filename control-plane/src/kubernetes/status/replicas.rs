//! What is known of the other replicas' sidecars: pure, from what the cluster
//! says about who there is, and from what they answered.
//!
//! Nobody is left out silently: a replica that does not answer for a while is
//! counted as silent, and one that has another version of a policy as behind.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use heddle_api::crd::EndpointSlice;

use super::board::Key;
use super::counter::Standing;
use super::enforcement::Count;

/// The Service whose endpoints are the replicas, and its port that they answer at.
const SERVICE: &str = "heddle-control-plane";
const PORT: &str = "discovery";

/// How long a replica may say nothing: one that starts or is restarted has that time, so that
/// statuses do not change their mind for it.
const PATIENCE: Duration = Duration::from_secs(10);

/// More replicas than anybody runs; the rest are not asked, and silent.
const MAX_REPLICAS: usize = 64;

/// The replicas by the names of their pods, and where each answers.
pub(crate) type Places = BTreeMap<String, BTreeSet<SocketAddr>>;

/// All other replicas.
#[derive(Debug, Default)]
pub(super) struct Others {
    known: BTreeMap<String, Other>,
}

#[derive(Debug)]
struct Other {
    places: BTreeSet<SocketAddr>,
    /// When it was heard last, or else seen first.
    heard: Instant,
    answer: Option<Answer>,
    /// It is this one.
    own: bool,
}

/// What a replica said last.
#[derive(Debug, Clone)]
pub(super) struct Answer {
    pub(super) replica: String,
    pub(super) revision: u64,
    pub(super) policies: Arc<Standing>,
}

/// What all others together said.
#[derive(Debug, Clone, Default)]
pub(super) struct Told {
    /// By the replicas' names.
    answers: BTreeMap<String, Answer>,
    /// Those that say nothing.
    silent: usize,
    /// Whether each has answered or is known to be silent.
    pub(super) complete: bool,
}

/// Where the replicas of the control plane in `namespace` are.
pub(crate) fn places<'a>(slices: impl Iterator<Item = &'a EndpointSlice>, namespace: &str) -> Places {
    let mut places = Places::new();
    for slice in slices.filter(|slice| is_ours(slice, namespace)) {
        let Some(port) = slice.ports.iter().find(|port| port.name == PORT).and_then(|port| port.port) else {
            continue;
        };
        for endpoint in &slice.endpoints {
            // One that is about to end still has sidecars.
            let conditions = &endpoint.conditions;
            if !conditions.serving.or(conditions.ready).unwrap_or(true) {
                continue;
            }
            let Some(address) = endpoint.addresses.first().and_then(|text| text.parse::<IpAddr>().ok())
            else {
                continue;
            };
            let address = SocketAddr::new(address, port);
            // In a cluster of two address families a pod is in two slices.
            let pod = endpoint.target_ref.as_ref().map(|target| target.name.clone());
            places.entry(pod.unwrap_or_else(|| address.to_string())).or_default().insert(address);
        }
    }
    places
}

fn is_ours(slice: &EndpointSlice, namespace: &str) -> bool {
    let service = slice.metadata.labels.get("kubernetes.io/service-name").map(String::as_str);
    service == Some(SERVICE) && slice.metadata.namespace.as_deref() == Some(namespace)
}

impl Others {
    /// Those and no others are there.
    pub(super) fn expect(&mut self, places: Places, now: Instant) {
        self.known.retain(|name, _| places.contains_key(name));
        for (name, places) in places {
            let new = || Other { places: BTreeSet::new(), heard: now, answer: None, own: false };
            self.known.entry(name).or_insert_with(new).places = places;
        }
    }

    /// Whom to ask, where, and what they said last.
    pub(super) fn to_ask(&self) -> Vec<(String, BTreeSet<SocketAddr>, Option<Answer>)> {
        let others = self.known.iter().filter(|(_, other)| !other.own).take(MAX_REPLICAS);
        others.map(|(name, other)| (name.clone(), other.places.clone(), other.answer.clone())).collect()
    }

    /// One has answered; `own` is who asks.
    pub(super) fn answered(&mut self, name: &str, answer: Answer, own: &str, now: Instant) {
        if let Some(other) = self.known.get_mut(name) {
            other.own = answer.replica == own;
            other.heard = now;
            other.answer = Some(answer);
        }
    }

    /// What they said together. What one said that is not heard now counts for a while.
    pub(super) fn told(&self, now: Instant) -> Told {
        let mut told = Told { complete: true, ..Told::default() };
        for other in self.known.values().filter(|other| !other.own) {
            let silent = now.saturating_duration_since(other.heard) >= PATIENCE;
            match &other.answer {
                _ if silent => told.silent += 1,
                Some(answer) => {
                    told.answers.insert(answer.replica.clone(), answer.clone());
                }
                None => told.complete = false,
            }
        }
        told
    }
}

impl Told {
    /// Whether the same is known as in `other`.
    pub(super) fn is(&self, other: &Self) -> bool {
        let revisions = |told: &Self| -> Vec<(String, u64)> {
            told.answers.values().map(|answer| (answer.replica.clone(), answer.revision)).collect()
        };
        (self.silent, self.complete) == (other.silent, other.complete) && revisions(self) == revisions(other)
    }

    /// How all sidecars stand to the policies of this replica.
    pub(super) fn add_to(&self, own: &Standing) -> Standing {
        let add = |(key, (generation, count)): (&Key, &(i64, Count))| {
            let mut sum = Count { silent: self.silent, ..*count };
            for answer in self.answers.values() {
                match answer.policies.get(key) {
                    Some((theirs, count)) if theirs == generation => {
                        sum.sidecars += count.sidecars;
                        sum.acknowledged += count.acknowledged;
                        sum.partly += count.partly;
                        sum.refused += count.refused;
                    }
                    _ => sum.behind += 1,
                }
            }
            (key.clone(), (*generation, sum))
        };
        own.iter().map(add).collect()
    }
}

#[cfg(test)]
mod tests;
