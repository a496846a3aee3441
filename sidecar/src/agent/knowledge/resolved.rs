//! Services some of whose endpoints only DNS knows.
//!
//! Always holds: a version of a service comes into force when each of its
//! names was asked for once; until then the one before stays. So neither the
//! first request nor a change of names meets a service that only seems to have
//! no endpoints.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use heddle_api::name::ServiceName;

use crate::agent::validate::ToldService;
use crate::config::{DnsEndpoint, Service};

/// A service as it was told, and as readers see it.
#[derive(Debug, Clone)]
pub(super) struct Held {
    pub(super) service: Arc<Service>,
    pub(super) addresses: Arc<[IpAddr]>,
    told: Told,
}

/// A service without the endpoints that only DNS knows.
#[derive(Debug, Clone)]
struct Told {
    service: Arc<Service>,
    dns: Arc<[DnsEndpoint]>,
}

/// The addresses of names, and the services that wait for some.
#[derive(Debug, Default)]
pub(super) struct Resolved {
    names: HashMap<Box<str>, Vec<IpAddr>>,
    waiting: HashMap<ServiceName, (Told, Arc<[IpAddr]>)>,
}

impl Resolved {
    /// A new version of a service; `None` if it waits.
    pub(super) fn tell(&mut self, told: ToldService) -> Option<Held> {
        let ToldService { service, addresses, dns } = told;
        let name = service.name.clone();
        let told = Told { service: Arc::new(service), dns: dns.into() };
        self.waiting.insert(name.clone(), (told, addresses.into()));
        self.settle(&name)
    }

    /// The version that waits, if it need not any more.
    fn settle(&mut self, name: &ServiceName) -> Option<Held> {
        let (told, _) = self.waiting.get(name)?;
        let service = told.resolved(&self.names)?;
        let (told, addresses) = self.waiting.remove(name)?;
        Some(Held { service, addresses, told })
    }

    /// Takes over the addresses of a name. The services, among those `held` and those that wait,
    /// that are others now.
    pub(super) fn found<'a>(
        &mut self,
        name: &str,
        addresses: Vec<IpAddr>,
        held: impl Iterator<Item = &'a Held>,
    ) -> Vec<Held> {
        self.names.insert(name.into(), addresses);
        let concerned = held.filter(|held| held.told.names().any(|other| &**other == name));
        let mut changed: Vec<Held> = concerned
            .filter_map(|held| Some(Held { service: held.told.resolved(&self.names)?, ..held.clone() }))
            .collect();
        let waiting: Vec<ServiceName> = self.waiting.keys().cloned().collect();
        // Later ones replace earlier ones of the same name.
        changed.extend(waiting.iter().filter_map(|name| self.settle(name)));
        changed
    }

    /// Gives up what waits for a service.
    pub(super) fn forget(&mut self, name: &ServiceName) {
        self.waiting.remove(name);
    }

    /// The version of a service that waits.
    pub(super) fn waiting(&self, name: &ServiceName) -> Option<&Service> {
        self.waiting.get(name).map(|(told, _)| &*told.service)
    }

    /// All names of services that are `held` or wait; others are forgotten.
    pub(super) fn names<'a>(&mut self, held: impl Iterator<Item = &'a Held>) -> HashSet<Box<str>> {
        let waiting = self.waiting.values().flat_map(|(told, _)| told.names());
        let names: HashSet<Box<str>> =
            held.flat_map(|held| held.told.names()).chain(waiting).cloned().collect();
        self.names.retain(|name, _| names.contains(name));
        names
    }
}

impl Told {
    fn names(&self) -> impl Iterator<Item = &Box<str>> {
        self.dns.iter().map(|endpoint| &endpoint.name)
    }

    /// The service with all of its endpoints; `None` if a name was not asked for yet.
    fn resolved(&self, names: &HashMap<Box<str>, Vec<IpAddr>>) -> Option<Arc<Service>> {
        if self.dns.is_empty() {
            return Some(self.service.clone());
        }
        let mut service = Service::clone(&self.service);
        for endpoint in &*self.dns {
            let addresses = names.get(&endpoint.name)?;
            service.endpoints.extend(addresses.iter().map(|address| endpoint.at(*address)));
        }
        Some(Arc::new(service))
    }
}
