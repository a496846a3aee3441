//! Destinations follow what is known of them: a newer state of the service, of
//! the workload, and of health checks. What stays keeps its history.

use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use super::{CheckKey, Checks, Destination, DestinationKey, Endpoint, Home, Target};
use crate::config::{Service, Workload};
use crate::guard::Guards;
use crate::policy::balance::{Balancer, Balancing, Member};
use crate::routing::{Routing, Table};
use crate::telemetry::metrics::{Registry, Shard};

impl Destination {
    /// Takes over endpoints and policy of a newer state of the service.
    /// `false` if the port is gone.
    pub fn follow(&self, service: &Service, home: Home<'_>, checks: &Checks, metrics: &Shard) -> bool {
        let at;
        let (service, port) = match &self.key {
            DestinationKey::Service(_, port) => (service, *port),
            DestinationKey::Workload(address) => {
                at = service.at(address.port());
                (&at, address.port())
            }
            DestinationKey::App(_) | DestinationKey::Direct(_) => return true,
        };
        if service.ports.iter().all(|p| p.number != port || p.protocol != self.protocol) {
            return false;
        }
        self.take_over(service, port, home, Some(Instant::now()), checks, metrics);
        true
    }

    /// `new_since`: when those appeared that are not known; `None` if it cannot be said.
    pub(super) fn take_over(
        &self,
        service: &Service,
        port: u16,
        home: Home<'_>,
        new_since: Option<Instant>,
        checks: &Checks,
        metrics: &Shard,
    ) {
        let Some(declared) = service.ports.iter().find(|declared| declared.number == port) else { return };
        let policy = service.policy(port);
        let before = self.policy.replace(policy.clone());
        if policy.limits.connections > before.limits.connections {
            self.connections.grown();
        }
        *self.faults.borrow_mut() = service.faults.clone();
        self.follow_routes(service.table(port, home.namespace));
        self.follow_policy(metrics);
        let before = self.endpoints();
        let mut known: HashMap<&str, &Rc<Endpoint>> = before.iter().map(|e| (&*e.id, e)).collect();
        let endpoints: Rc<[Rc<Endpoint>]> = service
            .endpoints
            .iter()
            .filter_map(|new| {
                let target = Target::of(new, declared)?;
                let stays = known.get(new.id.as_str()).is_some_and(|endpoint| endpoint.target == target);
                Some(match stays.then(|| known.remove(new.id.as_str())).flatten() {
                    Some(endpoint) => {
                        let since = if endpoint.is_told_healthy() { endpoint.since() } else { new_since };
                        endpoint.update(new, home.zone, since);
                        endpoint.clone()
                    }
                    None => {
                        let endpoint = Endpoint::new(new.id.as_str().into(), target, self, metrics);
                        endpoint.update(new, home.zone, new_since);
                        endpoint
                    }
                })
            })
            .collect();
        for gone in known.into_values() {
            gone.retire();
        }
        for endpoint in endpoints.iter() {
            let check = policy.health_check.as_ref().and_then(|policy| {
                let key = CheckKey {
                    service: service.name.clone(),
                    port,
                    protocol: self.protocol,
                    endpoint: endpoint.id.clone(),
                    target: endpoint.target.clone(),
                };
                checks.join(key, policy)
            });
            endpoint.follow_check(check, new_since);
        }
        *self.endpoints.borrow_mut() = endpoints;
        self.rebalance(&policy.balancing, Instant::now());
        self.show();
    }

    /// Takes over what health checks have found.
    pub(crate) fn follow_checks(&self, now: Instant) {
        let changed = self.endpoints().iter().filter(|endpoint| endpoint.follow_verdict(Some(now))).count();
        if changed > 0 {
            let policy = self.policy();
            self.rebalance(&policy.balancing, now);
            self.show();
        }
    }

    /// Prepares picks among the endpoints as they are now.
    pub(super) fn rebalance(&self, policy: &Balancing, now: Instant) {
        let members: Box<[Member]> = self.endpoints.borrow().iter().map(|e| e.member()).collect();
        // Turns and tables outlive what does not concern them.
        let mut balancer = self.balancer.borrow_mut();
        if !balancer.is_of(policy, &members) && !balancer.reweigh(policy, &members, &self.chance, now) {
            *balancer = Balancer::new(policy, members, &self.chance, now);
        }
        drop(balancer);
        self.survey(now);
    }

    /// Shares out the traffic anew, after the health of an endpoint changed.
    pub(super) fn survey(&self, now: Instant) {
        let balancer = self.balancer.borrow();
        balancer.survey(&self.endpoints.borrow(), now);
        self.due.set(balancer.next_step());
    }

    /// Does what has become due.
    #[cold]
    pub(super) fn attend(&self, now: Instant) {
        if self.balancer.borrow().next_step().is_some_and(|step| now >= step) {
            self.balancer.borrow_mut().step(&self.chance, now);
        }
        self.survey(now);
    }

    fn follow_routes(&self, table: Option<&Arc<Table>>) {
        let mut routing = self.routing.borrow_mut();
        let same = match (&*routing, table) {
            (Some(routing), Some(table)) => routing.is_of(table),
            (None, None) => true,
            _ => false,
        };
        if !same {
            *routing = table.map(|table| Rc::new(Routing::new(table.clone())));
        }
    }

    /// Takes over what a newer state of the workload puts before the application's port.
    pub(crate) fn follow_guards(&self, workload: &Workload, registry: &Registry) {
        let name = (&*self.service, &*self.namespace);
        let mut guards = self.guards.borrow_mut();
        *guards = Guards::follow(guards.as_deref(), workload, self.port(), name, registry);
    }
}
