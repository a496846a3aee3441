//! How many sidecars have taken over each policy: what discovery published,
//! and what the sidecars answered, added up. Pure.

use std::collections::HashMap;
use std::sync::Arc;

use heddle_api::discovery::{ResourceType, SELF, v1};
use parking_lot::Mutex;
use prost::Message;

use super::board::Key;
use super::counter::Standing;
use crate::compile::{Carrier, carriers};
use crate::discovery::answers::{Answer, Answers, Carried};
use crate::discovery::{Published, Subscriber};

/// The sidecars that use a policy.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Count {
    pub(crate) sidecars: usize,
    pub(crate) acknowledged: usize,
    /// It is in what they have in force, of which they do not know all.
    pub(crate) partly: usize,
    pub(crate) refused: usize,
    /// Other replicas in which another version of it is in force, or none.
    pub(crate) behind: usize,
    /// Other replicas of whose sidecars nothing is known.
    pub(crate) silent: usize,
}

/// Policies, by their places in [`Index::policies`], by what carries them.
#[derive(Default)]
struct Index {
    policies: Vec<Key>,
    services: HashMap<String, Vec<usize>>,
    services_of: HashMap<String, Vec<usize>>,
    all_services: Vec<usize>,
    limits: HashMap<String, usize>,
    tokens: HashMap<String, usize>,
    workloads_of: HashMap<String, Vec<usize>>,
    all_workloads: Vec<usize>,
    mesh: Vec<usize>,
}

/// The counts of all policies in force, among the sidecars of one replica.
pub(super) fn counts(published: &Published, answers: &[(Arc<Subscriber>, Arc<Mutex<Answers>>)]) -> Standing {
    let index = Index::new(published);
    let mut counts = vec![Count::default(); index.policies.len()];
    let mut named: HashMap<String, Vec<usize>> = HashMap::new();
    for (subscriber, answers) in answers {
        let resource = |carried, name: &str| {
            let type_url = match carried {
                Carried::Mesh => v1::Mesh::TYPE_URL,
                Carried::Service => v1::Service::TYPE_URL,
                Carried::Workload => v1::Workload::TYPE_URL,
            };
            published.resource(subscriber, type_url, name)
        };
        // Of several resources that carry a policy to one sidecar the worst answer counts.
        let mut worst: HashMap<usize, Answer> = HashMap::new();
        let mut add = |policies: &[usize], answer| {
            for policy in policies {
                let known = worst.entry(*policy).or_insert(answer);
                *known = (*known).max(answer);
            }
        };
        let answers = answers.lock();
        for (carried, name, answer) in
            answers.standing(|carried, name| Some(resource(carried, name)?.version.clone()))
        {
            match carried {
                Carried::Mesh => add(&index.mesh, answer),
                Carried::Service => {
                    add(index.services.get(name).map(Vec::as_slice).unwrap_or_default(), answer);
                    let namespace = name.split_once('/').map_or(name, |(namespace, _)| namespace);
                    add(index.services_of.get(namespace).map(Vec::as_slice).unwrap_or_default(), answer);
                    add(&index.all_services, answer);
                }
                Carried::Workload => {
                    let namespace = subscriber.identity.namespace();
                    add(index.workloads_of.get(namespace).map(Vec::as_slice).unwrap_or_default(), answer);
                    add(&index.all_workloads, answer);
                    if let Some(own) = resource(Carried::Workload, SELF)
                        && !(index.limits.is_empty() && index.tokens.is_empty())
                    {
                        // Most workloads of a service have the same resource.
                        let of_own = || index.named_by(&own.bytes);
                        add(named.entry(own.version.clone()).or_insert_with(of_own), answer);
                    }
                }
            }
        }
        for (policy, answer) in worst {
            let count = &mut counts[policy];
            count.sidecars += 1;
            count.acknowledged += usize::from(answer == Answer::Acknowledged);
            count.partly += usize::from(answer == Answer::Partly);
            count.refused += usize::from(answer == Answer::Refused);
        }
    }
    let generation = |key: &Key| {
        super::work::of(&published.model, key.0, &key.1).map(|status| status.generation).unwrap_or_default()
    };
    let counted = index.policies.into_iter().zip(counts);
    counted
        .map(|(key, count)| {
            let of = generation(&key);
            (key, (of, count))
        })
        .collect()
}

impl Index {
    fn new(published: &Published) -> Self {
        let mut index = Self::default();
        for (key, carriers) in carriers(&published.model) {
            let place = index.policies.len();
            for carrier in carriers {
                match carrier {
                    Carrier::Services(services) => {
                        for service in services {
                            index.services.entry(service.as_str().to_owned()).or_default().push(place);
                        }
                    }
                    Carrier::ServicesOf(None) => index.all_services.push(place),
                    Carrier::ServicesOf(Some(namespace)) => {
                        index.services_of.entry(namespace).or_default().push(place);
                    }
                    Carrier::Limits => {
                        index.limits.insert(key.1.to_string(), place);
                    }
                    Carrier::Tokens => {
                        index.tokens.insert(key.1.to_string(), place);
                    }
                    Carrier::WorkloadsOf(None) => index.all_workloads.push(place),
                    Carrier::WorkloadsOf(Some(namespace)) => {
                        index.workloads_of.entry(namespace).or_default().push(place);
                    }
                    Carrier::Mesh => index.mesh.push(place),
                }
            }
            index.policies.push(key);
        }
        index
    }

    /// The policies that a workload's resource names.
    fn named_by(&self, workload: &[u8]) -> Vec<usize> {
        let workload = v1::Workload::decode(workload).unwrap_or_default();
        let limits = workload.rate_limits.iter().filter_map(|limit| self.limits.get(&limit.source));
        let tokens = workload.jwt_policies.iter().filter_map(|policy| self.tokens.get(&policy.source));
        let mut places: Vec<usize> = limits.chain(tokens).copied().collect();
        places.sort_unstable();
        places.dedup();
        places
    }
}
