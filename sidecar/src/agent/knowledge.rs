//! What discovery has told: answers in, snapshots out. No sockets, no clock.
//!
//! A resource that does not validate is refused with its path, and what was
//! known before stays in force. Services that did not change keep their `Arc`.
//! Each service found gets a synthetic address; discovery does not know those,
//! so they are answered from the table that the DNS responder shares. What DNS
//! says about endpoints outside the mesh comes in as answers, too.

mod resolved;

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use heddle_api::discovery::xds::{DeltaDiscoveryResponse, Resource};
use heddle_api::discovery::{ResourceType, Unknown, unknown_fields, v1};
use heddle_api::name::ServiceName;
use heddle_api::spiffe::TrustDomain;
use heddle_api::tls::TrustBundle;
use heddle_api::version;

use crate::config::{Lookup, Mesh, Service, Snapshot, Usage, Want, Workload, uptime};
use crate::dns::Addresses;

use self::resolved::{Held, Resolved};
use super::subscriptions::{Change, Kind, Name, Subscriptions, Wanted};
use super::validate;

/// Everything that is known, and what was asked for.
pub(crate) struct Knowledge {
    domain: TrustDomain,
    /// Our own: routes may be for the clients of one alone.
    namespace: String,
    subscriptions: Subscriptions,
    mesh: Option<Arc<Mesh>>,
    workload: Option<Arc<Workload>>,
    services: HashMap<ServiceName, Lookup<Held>>,
    addresses: HashMap<IpAddr, Lookup<ServiceName>>,
    /// Those of `addresses` that are one workload's.
    workloads: HashMap<IpAddr, Arc<Service>>,
    synthetic: Addresses,
    resolved: Resolved,
}

/// What came of a response.
#[derive(Debug, Default)]
pub(crate) struct Applied {
    /// Whether readers need a new snapshot.
    pub(crate) changed: bool,
    /// New roots, to be put into force.
    pub(crate) trust: Option<TrustBundle>,
    /// What of it is not in force, resource by resource.
    pub(crate) shortfalls: Vec<v1::Shortfall>,
}

impl Applied {
    /// Whether anything was refused.
    pub(crate) fn refused(&self) -> bool {
        self.shortfalls.iter().any(|shortfall| shortfall.refused)
    }
}

impl Knowledge {
    /// Nothing but the permanent subscriptions of a sidecar in a namespace of `domain`.
    pub(crate) fn new(domain: TrustDomain, namespace: &str, synthetic: Addresses, now: Instant) -> Self {
        Self {
            namespace: namespace.into(),
            subscriptions: Subscriptions::new(domain.clone(), now),
            domain,
            mesh: None,
            workload: None,
            services: HashMap::new(),
            addresses: HashMap::new(),
            workloads: HashMap::new(),
            synthetic,
            resolved: Resolved::default(),
        }
    }

    /// Notes a want. Whether readers need a new snapshot; `Err` if there is no room.
    pub(crate) fn want(&mut self, want: Want, now: Instant) -> Result<bool, NoRoom> {
        match want {
            Want::Service(name) => self.want_service(name, now),
            Want::Address(address) => {
                let address = address.to_canonical();
                if Addresses::contains(address) {
                    // Nobody else gives such addresses out, so there is nobody to ask.
                    let Some(name) = self.synthetic.service(address) else { return Ok(false) };
                    let known = self.addresses.insert(address, Lookup::Found(name.clone())).is_some();
                    return Ok(self.want_service(name, now)? || !known);
                }
                match self.subscriptions.want(Name::Address(address), now) {
                    Wanted::Full => Err(NoRoom),
                    Wanted::Known => Ok(false),
                    Wanted::New => {
                        self.addresses.insert(address, Lookup::Pending);
                        Ok(true)
                    }
                }
            }
        }
    }

    fn want_service(&mut self, name: ServiceName, now: Instant) -> Result<bool, NoRoom> {
        match self.subscriptions.want(Name::Service(name.clone()), now) {
            Wanted::Full => Err(NoRoom),
            Wanted::Known => Ok(false),
            Wanted::New => {
                self.services.insert(name, Lookup::Pending);
                Ok(true)
            }
        }
    }

    /// A stream has begun: what to say first.
    pub(crate) fn connected(&mut self, now: Instant) -> Vec<Change> {
        self.subscriptions.connected(now)
    }

    /// The stream has ended; all stays as it is.
    pub(crate) fn disconnected(&mut self) {
        self.subscriptions.disconnected();
    }

    /// Changes of the subscriptions that are to be sent.
    pub(crate) fn changes(&mut self) -> Vec<Change> {
        self.subscriptions.changes()
    }

    /// Takes over an answer of discovery.
    pub(crate) fn apply(&mut self, kind: Kind, response: DeltaDiscoveryResponse, now: Instant) -> Applied {
        let mut applied = Applied::default();
        for resource in response.resources {
            let (refused, reason) = match self.take(kind, &resource, &mut applied, now) {
                Ok(unknown) if unknown.is_empty() => continue,
                Ok(unknown) => {
                    (false, format!("{}, this sidecar's version, does not know: {unknown}", version::OWN))
                }
                Err(reason) => (true, reason),
            };
            applied.shortfalls.push(v1::Shortfall { resource: resource.name, refused, reason });
        }
        for gone in &response.removed_resources {
            if let Some(name) = Name::read(kind, gone) {
                applied.changed |= self.remove(&name, now);
            }
        }
        applied
    }

    /// The names whose addresses are endpoints of what is known.
    pub(crate) fn names(&mut self) -> HashSet<Box<str>> {
        self.resolved.names(self.services.values().filter_map(held))
    }

    /// Takes over all addresses of a name. Whether readers need a new snapshot.
    pub(crate) fn resolved(&mut self, name: &str, addresses: Vec<IpAddr>) -> bool {
        let changed = self.resolved.found(name, addresses, self.services.values().filter_map(held));
        let any = !changed.is_empty();
        for held in changed {
            self.services.insert(held.service.name.clone(), Lookup::Found(held));
        }
        any
    }

    /// Gives up what was not used for long. Whether readers need a new snapshot.
    pub(crate) fn expire(&mut self, now: Instant) -> bool {
        let services = &self.services;
        let (addresses, workloads) = (&self.addresses, &self.workloads);
        let used = |name: &ServiceName| match services.get(name) {
            Some(Lookup::Found(held)) => last_used(&held.service.usage, now),
            _ => None,
        };
        let expired = self.subscriptions.expire(now, |name| match name {
            Name::Service(name) => used(name),
            Name::Address(address) => match (workloads.get(address), addresses.get(address)) {
                (Some(workload), _) => last_used(&workload.usage, now),
                (None, Some(Lookup::Found(name))) => used(name),
                _ => None,
            },
            _ => None,
        });
        for name in &expired {
            match name {
                Name::Service(name) => {
                    self.services.remove(name);
                    self.resolved.forget(name);
                    // A synthetic address lives as long as its service is known.
                    let stays = |address: &IpAddr, lookup: &Lookup<ServiceName>| {
                        !(Addresses::contains(*address) && *lookup == Lookup::Found(name.clone()))
                    };
                    self.addresses.retain(|address, lookup| stays(address, lookup));
                }
                Name::Address(address) => {
                    self.addresses.remove(address);
                    self.workloads.remove(address);
                }
                _ => {}
            }
        }
        !expired.is_empty()
    }

    /// Everything as the readers see it.
    pub(crate) fn snapshot(&self) -> Snapshot {
        let mut addresses = HashMap::with_capacity(self.addresses.len() + self.services.len());
        for (name, lookup) in &self.services {
            if let Lookup::Found(held) = lookup {
                let own = held.addresses.iter().map(|address| (*address, Lookup::Found(name.clone())));
                addresses.extend(own);
            }
        }
        // What was asked for by address is the surer answer.
        addresses.extend(self.addresses.iter().map(|(address, lookup)| (*address, lookup.clone())));
        Snapshot {
            mesh: self.mesh.clone(),
            workload: self.workload.clone(),
            services: self
                .services
                .iter()
                .map(|(name, lookup)| {
                    let lookup = match lookup {
                        Lookup::Pending => Lookup::Pending,
                        Lookup::Absent => Lookup::Absent,
                        Lookup::Found(held) => Lookup::Found(held.service.clone()),
                    };
                    (name.clone(), lookup)
                })
                .collect(),
            addresses,
            workloads: self.workloads.clone(),
        }
    }

    /// Puts a resource into force, but for what is returned.
    fn take(
        &mut self,
        kind: Kind,
        resource: &Resource,
        applied: &mut Applied,
        now: Instant,
    ) -> Result<Unknown, String> {
        let name = Name::read(kind, &resource.name).ok_or("no such name can exist")?;
        if !self.subscriptions.contains(&name) {
            // Given up meanwhile: the unsubscription is on its way.
            return Ok(Unknown::default());
        }
        if self.subscriptions.version(&name) == Some(&resource.version) {
            return Ok(Unknown::default());
        }
        let any = resource.resource.as_ref().ok_or("there is no content")?;
        if any.type_url != kind.type_url() {
            return Err(format!("the content is of type {:?}", any.type_url));
        }
        let body = any.value.as_slice();
        let unknown = match &name {
            Name::TrustBundle(domain) => {
                let (message, unknown) = decode(body)?;
                applied.trust = Some(validate::trust_bundle(message, domain).map_err(text)?);
                unknown
            }
            Name::Mesh => {
                let (message, unknown) = decode(body)?;
                self.mesh = Some(Arc::new(validate::mesh(&message, &self.domain).map_err(text)?));
                unknown
            }
            Name::Workload => {
                let (message, unknown) = decode(body)?;
                let valid = validate::workload(&message, self.workload.as_deref()).map_err(text)?;
                self.workload = Some(Arc::new(valid));
                unknown
            }
            Name::Service(service) => {
                let before = match (self.resolved.waiting(service), self.services.get(service)) {
                    (Some(waiting), _) => Some(waiting),
                    (None, Some(Lookup::Found(held))) => Some(&*held.service),
                    _ => None,
                };
                let (mut message, unknown) = decode(body)?;
                validate::for_clients_of(&mut message, &self.namespace);
                let mut told = validate::service(service, message, before).map_err(text)?;
                // Should the table be full, the service is still reached by its other addresses.
                told.addresses.extend(self.synthetic.assign(service).map(IpAddr::from));
                let held = self.resolved.tell(told);
                applied.changed |= held.is_some();
                if let Some(held) = held {
                    self.services.insert(service.clone(), Lookup::Found(held));
                }
                self.subscriptions.found(&name, &resource.version, unknown.is_empty(), now);
                return Ok(unknown);
            }
            Name::Address(address) => {
                let before = self.workloads.get(address);
                let (message, unknown) = decode(body)?;
                let told = validate::address(*address, message, before.map(|before| &**before));
                let (service, workload) = told.map_err(text)?;
                self.addresses.insert(*address, Lookup::Found(service.clone()));
                match workload {
                    Some(workload) => {
                        self.workloads.insert(*address, Arc::new(workload));
                    }
                    None => {
                        self.workloads.remove(address);
                        // Whoever asked for the address will ask for its service next.
                        let _ = self.want_service(service, now);
                    }
                }
                unknown
            }
        };
        self.subscriptions.found(&name, &resource.version, unknown.is_empty(), now);
        applied.changed = true;
        Ok(unknown)
    }

    /// Takes over that `name` does not exist. What every sidecar needs is never
    /// taken away: without it nothing would be admitted or verified.
    fn remove(&mut self, name: &Name, now: Instant) -> bool {
        if !self.subscriptions.contains(name) {
            return false;
        }
        match name {
            Name::Service(service) => {
                self.resolved.forget(service);
                self.services.insert(service.clone(), Lookup::Absent);
            }
            Name::Address(address) => {
                self.addresses.insert(*address, Lookup::Absent);
                self.workloads.remove(address);
            }
            Name::Mesh | Name::Workload | Name::TrustBundle(_) => return false,
        }
        self.subscriptions.absent(name, now)
    }
}

fn held(lookup: &Lookup<Held>) -> Option<&Held> {
    match lookup {
        Lookup::Found(held) => Some(held),
        Lookup::Pending | Lookup::Absent => None,
    }
}

/// As many names are subscribed as may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{} names are asked for already", super::subscriptions::LIMIT)]
pub(crate) struct NoRoom;

/// A message, and what this version does not know of it.
fn decode<M: ResourceType>(body: &[u8]) -> Result<(M, Unknown), String> {
    let message = M::decode(body).map_err(|error| format!("the content cannot be decoded: {error}"))?;
    let unknown = unknown_fields(&message, body);
    match unknown.vital() {
        Some(field) => Err(format!(
            "{field}: {}, this sidecar's version, does not know this field, without which nothing may be made of \
             the rest",
            version::OWN
        )),
        None => Ok((message, unknown)),
    }
}

fn text(invalid: validate::Invalid) -> String {
    invalid.to_string()
}

/// When workers last used something; `None` if they never did.
fn last_used(usage: &Usage, now: Instant) -> Option<Instant> {
    let last = usage.last();
    (last != 0).then(|| now - Duration::from_secs(uptime(now).saturating_sub(last)))
}

#[cfg(test)]
mod tests;
