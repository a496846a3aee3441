//! Pods with a sidecar: whom an endpoint of a slice is, and what the pod's own
//! sidecar is told.
//!
//! An endpoint that names a Pod is that very Pod, by its UID, or nobody: the
//! Pod of an earlier or later time is another, even under the same name or
//! address, and is never spoken to in its place. What a Pod is comes from its
//! service account, which the peer has to prove, so a slice that somebody made
//! up attracts nothing but failed handshakes.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::sync::Arc;

use heddle_api::crd::{EndpointTarget, Pod, ZONE_LABEL};
use heddle_api::discovery::v1;
use heddle_api::name::ServiceName;
use heddle_api::spiffe::{SpiffeId, TrustDomain};

use crate::model::{Health, RegisteredPort, Registration, Scores};
use crate::source::{ObjectName, Objects, Sourced};

/// Where a pod's sidecar serves its metrics.
const ADMIN: u16 = 7190;

/// A pod with a sidecar.
#[derive(Debug)]
pub(super) struct Meshed<'a> {
    pub(super) name: &'a ObjectName,
    pub(super) identity: SpiffeId,
    /// The percentage of its share of traffic that it should get; 0: all of it.
    pub(super) score: u32,
    pod: &'a Arc<Sourced<Pod>>,
}

impl Meshed<'_> {
    /// Where it is, the preferred address first.
    pub(super) fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.pod.value.addresses()
    }

    /// The ports at which it is outside the mesh.
    pub(super) fn left_alone(&self) -> Vec<v1::PortRange> {
        left_alone(&self.pod.value)
    }
}

fn left_alone(pod: &Pod) -> Vec<v1::PortRange> {
    let range = |range: &RangeInclusive<u16>| v1::PortRange {
        first: (*range.start()).into(),
        last: (*range.end()).into(),
    };
    pod.spec.left_alone.iter().map(range).collect()
}

/// All pods with a sidecar.
pub(super) struct Known<'a> {
    by_name: BTreeMap<&'a ObjectName, Meshed<'a>>,
    /// Whose an address is now.
    by_address: HashMap<IpAddr, &'a ObjectName>,
    /// Those that have ended: their addresses may be another's.
    over: BTreeSet<&'a ObjectName>,
}

/// Whom an endpoint of a slice is.
pub(super) enum Found<'a, 'b> {
    /// A pod with a sidecar.
    Meshed(&'b Meshed<'a>),
    /// Somebody who is gone, or not known yet: the address is not what the slice says.
    Another,
    /// Somebody without a sidecar.
    Stranger,
}

impl<'a> Known<'a> {
    pub(super) fn new(objects: &'a Objects, domain: &TrustDomain, scores: &Scores) -> Self {
        let (mut by_name, mut by_address) = (BTreeMap::new(), HashMap::new());
        let mut over = BTreeSet::new();
        for (name, pod) in &objects.pods {
            match SpiffeId::new(domain, &name.namespace, pod.value.service_account()) {
                Ok(identity) if !pod.value.is_over() => {
                    let uid = pod.value.metadata.uid.as_deref().unwrap_or_default();
                    let score = scores.of(&identity, uid);
                    by_name.insert(name, Meshed { name, identity, score, pod });
                }
                // No account of Kubernetes has a name that an identity could not carry.
                Ok(_) | Err(_) => {
                    over.insert(name);
                }
            }
        }
        let mut by_age: Vec<&Meshed<'_>> = by_name.values().collect();
        let age = |pod: &Meshed<'a>| pod.pod.value.metadata.creation_timestamp.as_deref();
        by_age.sort_by(|a, b| age(a).cmp(&age(b)).then_with(|| a.name.cmp(b.name)));
        for pod in by_age {
            // Where two claim an address, the younger has it.
            by_address.extend(pod.addresses().map(|address| (address, pod.name)));
        }
        Self { by_name, by_address, over }
    }

    /// Whom a slice of `namespace` means by an address and what it says about it.
    pub(super) fn find(
        &self,
        namespace: &str,
        target: Option<&EndpointTarget>,
        address: IpAddr,
    ) -> Found<'a, '_> {
        let owner = self.by_address.get(&address).and_then(|name| self.by_name.get(name));
        let Some(target) = target.filter(|target| target.kind == "Pod") else {
            return owner.map_or(Found::Stranger, Found::Meshed);
        };
        let name = ObjectName {
            namespace: target.namespace.clone().unwrap_or_else(|| namespace.into()),
            name: target.name.clone(),
        };
        let same = |pod: &&Meshed<'_>| match (&pod.pod.value.metadata.uid, &target.uid) {
            (Some(known), Some(named)) => known == named,
            _ => true,
        };
        match (self.by_name.get(&name), owner) {
            // Its own state may not have reached us yet; what it has to prove is known.
            (Some(pod), _) => Some(pod).filter(same).map_or(Found::Another, Found::Meshed),
            (None, Some(_)) => Found::Another,
            (None, None) if self.over.contains(&name) => Found::Another,
            (None, None) => Found::Stranger,
        }
    }
}

/// What a service means to one of its pods.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Selected {
    pub(super) pod: ObjectName,
    pub(super) zone: String,
    /// Whether it may get traffic; `None`: the service has no port that leads there.
    pub(super) ready: Option<bool>,
    /// The service's port and the pod's.
    pub(super) bindings: Vec<(u16, u16)>,
}

/// The pods with a sidecar, as they and others ask for them.
#[derive(Debug, Default, Clone)]
pub(crate) struct Pods(Arc<Index>);

#[derive(Debug, Default)]
struct Index {
    by_name: BTreeMap<ObjectName, Facts>,
    by_uid: HashMap<String, ObjectName>,
    by_address: HashMap<IpAddr, ObjectName>,
}

#[derive(Debug)]
struct Facts {
    pod: Arc<Sourced<Pod>>,
    identity: SpiffeId,
    /// What selects it, in the order of names.
    services: Vec<ServiceName>,
    /// The first that has no address of its own, so that its clients dial the pod.
    headless: Option<ServiceName>,
    zone: String,
    /// Whether any service may send it traffic; `None`: there is none that could say.
    ready: Option<bool>,
    ports: BTreeMap<u16, RegisteredPort>,
}

/// Collects what services mean to pods.
pub(super) struct Collector(Index);

impl Collector {
    /// `zones` says where nodes are. A pod that no service selects has a zone, too, to which its
    /// own requests may keep.
    pub(super) fn new(known: &Known<'_>, zones: &HashMap<&str, &str>) -> Self {
        let zone = |pod: &Pod| {
            let own = pod.metadata.labels.get(ZONE_LABEL).map(String::as_str);
            let of_node = || zones.get(pod.spec.node_name.as_deref()?).copied();
            own.or_else(of_node).unwrap_or_default().to_owned()
        };
        let mut index = Index::default();
        for (name, meshed) in &known.by_name {
            let facts = Facts {
                pod: meshed.pod.clone(),
                identity: meshed.identity.clone(),
                services: Vec::new(),
                headless: None,
                zone: zone(&meshed.pod.value),
                ready: None,
                ports: BTreeMap::new(),
            };
            if let Some(uid) = &meshed.pod.value.metadata.uid {
                index.by_uid.insert(uid.clone(), (*name).clone());
            }
            index.by_name.insert((*name).clone(), facts);
        }
        index.by_address =
            known.by_address.iter().map(|(address, name)| (*address, (*name).clone())).collect();
        Self(index)
    }

    /// A service selects a pod.
    pub(super) fn add(
        &mut self,
        service: &ServiceName,
        headless: bool,
        ports: &[v1::ServicePort],
        selected: Selected,
    ) {
        let Some(facts) = self.0.by_name.get_mut(&selected.pod) else { return };
        // Services come one after the other.
        if facts.services.last() != Some(service) {
            facts.services.push(service.clone());
        }
        if headless && facts.headless.is_none() {
            facts.headless = Some(service.clone());
        }
        // One service that sends it traffic is enough.
        facts.ready = facts.ready.max(selected.ready);
        if facts.zone.is_empty() {
            facts.zone = selected.zone;
        }
        for (from, to) in selected.bindings {
            let Some(port) = ports.iter().find(|port| port.port == u32::from(from)) else { continue };
            let known = facts.ports.entry(to).or_insert_with(|| RegisteredPort {
                name: port.name.clone(),
                port: to,
                protocol: v1::AppProtocol::Unspecified,
            });
            // Any service may say what the others leave open.
            if known.protocol == v1::AppProtocol::Unspecified {
                known.protocol = port.protocol();
            }
        }
    }

    pub(super) fn finish(self) -> Pods {
        Pods(Arc::new(self.0))
    }
}

impl Pods {
    /// The workload of the pod with that UID or name, if `identity` is its own: once for each of its
    /// addresses.
    pub(crate) fn workload(&self, identity: &SpiffeId, instance: &str) -> Vec<Registration> {
        let by_name = || ObjectName { namespace: identity.namespace().into(), name: instance.into() };
        let name = self.0.by_uid.get(instance).cloned().unwrap_or_else(by_name);
        let facts = self.0.by_name.get(&name).filter(|facts| facts.identity == *identity);
        facts.map(|facts| facts.registrations(&name)).unwrap_or_default()
    }

    /// All of them, for people: as workloads at their preferred addresses, with UID and owner.
    pub(crate) fn all(&self) -> impl Iterator<Item = Shown<'_>> {
        let all = self.0.by_name.iter();
        all.filter_map(|(name, facts)| {
            let pod = &facts.pod.value;
            Some(Shown {
                registration: facts.registrations(name).into_iter().next()?,
                uid: pod.metadata.uid.as_deref().unwrap_or_default(),
                owner: owner(&name.name, &pod.metadata.labels),
            })
        })
    }

    /// What a pod's service is called, by its UID.
    pub(crate) fn service(&self, identity: &SpiffeId, uid: &str) -> Option<ServiceName> {
        let name = self.0.by_uid.get(uid)?;
        let facts = self.0.by_name.get(name).filter(|facts| facts.identity == *identity)?;
        Some(facts.service(name))
    }

    /// All of them, at each of their addresses.
    pub(crate) fn at_each_address(&self) -> impl Iterator<Item = Registration> {
        self.0.by_name.iter().flat_map(|(name, facts)| facts.registrations(name))
    }

    /// The pod at an address, as a service of which it is the only endpoint, and the service whose
    /// policy its clients meet.
    pub(crate) fn at(&self, address: IpAddr) -> Option<(v1::Service, Option<&ServiceName>)> {
        let name = self.0.by_address.get(&address)?;
        let facts = self.0.by_name.get(name)?;
        let ports = facts.ports.values().map(|port| v1::ServicePort {
            port: port.port.into(),
            name: port.name.clone(),
            protocol: port.protocol.into(),
            ..v1::ServicePort::default()
        });
        let binding =
            |port: &u16| v1::PortBinding { service_port: u32::from(*port), target_port: u32::from(*port) };
        let endpoint = v1::Endpoint {
            id: name.name.clone(),
            address: address.to_string(),
            bindings: facts.ports.keys().map(binding).collect(),
            identity: facts.identity.as_str().into(),
            intercepted: true,
            left_alone: left_alone(&facts.pod.value),
            zone: facts.zone.clone(),
            ..v1::Endpoint::default()
        };
        let service = facts.service(name);
        let service = v1::Service {
            namespace: service.namespace().into(),
            name: service.name().into(),
            ports: ports.collect(),
            endpoints: vec![endpoint],
            ..v1::Service::default()
        };
        Some((service, facts.headless.as_ref()))
    }
}

/// A pod as people see it.
pub(crate) struct Shown<'a> {
    pub(crate) registration: Registration,
    /// Empty if unknown.
    pub(crate) uid: &'a str,
    /// The name of who made it: a deployment, a stateful set, …
    pub(crate) owner: &'a str,
}

/// The name of who made a pod, as far as its name and the labels say that Kubernetes' controllers give
/// to pods; the pod's own where nobody did.
fn owner<'a>(pod: &'a str, labels: &'a BTreeMap<String, String>) -> &'a str {
    let without_last = |name: &'a str| name.rsplit_once('-').map_or(name, |(name, _)| name);
    if let Some(hash) = labels.get("pod-template-hash") {
        // DEPLOYMENT-HASH-RANDOM.
        let set = without_last(pod);
        return set.strip_suffix(hash.as_str()).and_then(|name| name.strip_suffix('-')).unwrap_or(set);
    }
    if let Some(job) = labels.get("batch.kubernetes.io/job-name") {
        return job;
    }
    // Of a stateful set PODS-NUMBER, of a daemon set SET-RANDOM.
    if labels.contains_key("controller-revision-hash") { without_last(pod) } else { pod }
}

impl Facts {
    /// What it is called in metrics: the first service that selects it, or else its account.
    fn service(&self, name: &ObjectName) -> ServiceName {
        let account = || ServiceName::new(&name.namespace, self.identity.account()).ok();
        let first = self.services.first().cloned().or_else(account);
        // An account's name may be longer than a service's.
        first.unwrap_or_else(|| ServiceName::new(&name.namespace, "workload").expect("both are labels"))
    }

    fn registrations(&self, name: &ObjectName) -> Vec<Registration> {
        let labels = &self.pod.value.metadata.labels;
        let at = |address| Registration {
            instance: name.name.clone(),
            identity: self.identity.clone(),
            service: self.service(name),
            address,
            inbound_port: 0,
            ports: self.ports.values().cloned().collect(),
            labels: labels.clone(),
            zone: self.zone.clone(),
            ready: self.ready.unwrap_or(true),
            draining: false,
            health: Health::default(),
            admin: Some(SocketAddr::new(address, ADMIN)).filter(|admin| !admin.ip().is_unspecified()),
            pid: 0,
            app_address: None,
        };
        let mut addresses: Vec<IpAddr> = self.pod.value.addresses().collect();
        if addresses.is_empty() {
            // Its sidecar asks before the node has said where it is.
            addresses.push(IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED));
        }
        addresses.into_iter().map(at).collect()
    }
}

#[cfg(test)]
mod tests;
