//! Incremental discovery: what is published, and who has been sent what.
//!
//! Everything that sidecars can ask for is one immutable [`Published`]; the
//! newest one stands in a `watch` channel. Each stream compares it with what
//! it has sent ([`subscriptions`]) when its client has room for more, so that
//! a slow client skips intermediate states and nothing is ever queued for it.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use heddle_api::discovery::{ResourceType, SELF, v1};
use heddle_api::spiffe::SpiffeId;
use parking_lot::Mutex;

use crate::model::{Model, Resource};
use crate::registry::WorkloadKey;

pub(crate) mod answers;
pub(crate) mod service;
pub(crate) mod sessions;
pub(crate) mod stream;
pub(crate) mod subscriptions;

/// All that can be subscribed to at one moment.
#[derive(Debug)]
pub(crate) struct Published {
    pub(crate) model: Arc<Model>,
    /// The trust domain's name and its roots.
    pub(crate) trust: (String, Arc<Resource>),
    /// Each registered workload's own resource.
    pub(crate) workloads: HashMap<WorkloadKey, Arc<Resource>>,
    /// The same of pods, as far as they were asked for.
    pub(crate) pods: Mutex<HashMap<WorkloadKey, Arc<Resource>>>,
}

/// Which workload a stream speaks for: the identity that it proved, and the
/// instance that its node names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Subscriber {
    pub(crate) identity: SpiffeId,
    pub(crate) instance: String,
}

impl Published {
    /// The resource, as far as `subscriber` may see it. A type that this
    /// version does not know has no resources. Those of pods are made when they are asked for:
    /// few ask for a pod, and there are many.
    pub(crate) fn resource(
        &self,
        subscriber: &Subscriber,
        type_url: &str,
        name: &str,
    ) -> Option<Arc<Resource>> {
        match type_url {
            v1::Workload::TYPE_URL if name == SELF => {
                let key = (subscriber.identity.clone(), subscriber.instance.clone());
                let known = self.workloads.get(&key).cloned();
                known.or_else(|| self.pods.lock().get(&key).cloned()).or_else(|| {
                    let workload = self.model.workload_of_pod(&subscriber.identity, &subscriber.instance)?;
                    let resource = Arc::new(Resource::encode(&workload));
                    self.pods.lock().insert(key, resource.clone());
                    Some(resource)
                })
            }
            v1::TrustBundle::TYPE_URL => (self.trust.0 == name).then(|| self.trust.1.clone()),
            v1::Service::TYPE_URL => self.model.resource::<v1::Service>(name).cloned(),
            v1::Address::TYPE_URL => self.model.resource::<v1::Address>(name).cloned().or_else(|| {
                let address: IpAddr = name.parse().ok()?;
                let address = self.model.address_of_pod(address.to_canonical())?;
                Some(Arc::new(Resource::encode(&address)))
            }),
            v1::Mesh::TYPE_URL => self.model.resource::<v1::Mesh>(name).cloned(),
            _ => None,
        }
    }
}
