//! From a name or an address to a destination. What is known is a lookup;
//! what is not is asked of discovery, and the request waits a bounded time.

use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use heddle_api::name::{DEFAULT_CLUSTER_DOMAIN, ServiceName};

use super::Worker;
use crate::config::{AppProtocol, Lookup, Service, Want};
use crate::pod;
use crate::reason::Reason;
use crate::sanitize::authority::{self, Authority};
use crate::upstream::{Destination, DestinationKey, Home};

/// How long a request waits for discovery's answer about a name. An answer
/// takes a round trip; a control plane that is away does not answer at all.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// Destinations outside the registry that are remembered.
const DIRECT_DESTINATIONS: usize = 1024;

/// Ports of the application that nobody declared and that are remembered.
const UNDECLARED_PORTS: usize = 256;

impl Worker {
    /// The destination that an HTTP authority names, where nothing else does.
    ///
    /// # Errors
    /// [`Reason::BadRequest`] for no authority, [`Reason::UnknownService`],
    /// [`Reason::UnknownPort`], or [`Reason::NotReady`] if discovery does not answer.
    pub async fn by_authority(&self, authority: &[u8]) -> Result<Rc<Destination>, Reason> {
        let Authority { host, port } = authority::authority(authority).map_err(|_| Reason::BadRequest)?;
        let name = {
            let snapshot = self.config.load();
            let workload = snapshot.workload.as_ref().ok_or(Reason::NotReady)?;
            let domain = snapshot.mesh.as_ref().map_or(DEFAULT_CLUSTER_DOMAIN, |mesh| &mesh.cluster_domain);
            match workload.host(host) {
                Some(service) => service.clone(),
                None => ServiceName::from_host(host, workload.service.namespace(), domain)
                    .ok_or(Reason::UnknownService)?,
            }
        };
        self.service(&name, port, DEFAULT_HTTP_PORT).await
    }

    /// A port of a service. Without `port` it is `default`, or the only port there is.
    ///
    /// # Errors
    /// As for [`Self::by_authority`].
    pub async fn service(
        &self,
        name: &ServiceName,
        port: Option<u16>,
        default: u16,
    ) -> Result<Rc<Destination>, Reason> {
        let deadline = tokio::time::Instant::now() + ANSWER_TIMEOUT;
        let mut asked = false;
        loop {
            let answered = self.answered.notified();
            if let Some(result) = self.known_service(name, port, default) {
                return result;
            }
            if !asked && !self.config.want(Want::Service(name.clone())) {
                return Err(Reason::Overloaded);
            }
            asked = true;
            // Discovery is asked once per destination: a timer is cheap enough.
            if tokio::time::timeout_at(deadline, answered).await.is_err() {
                return Err(Reason::NotReady);
            }
        }
    }

    /// The answer, if it is known without asking.
    fn known_service(
        &self,
        name: &ServiceName,
        port: Option<u16>,
        default: u16,
    ) -> Option<Result<Rc<Destination>, Reason>> {
        let key = DestinationKey::Service(name.clone(), port.unwrap_or(default));
        if let Some(destination) = self.destinations.borrow().get(&key) {
            destination.touch(self.uptime(Instant::now()));
            return Some(Ok(destination.clone()));
        }
        let snapshot = self.config.load();
        let service = match snapshot.services.get(name)? {
            Lookup::Pending => return None,
            Lookup::Absent => return Some(Err(Reason::UnknownService)),
            Lookup::Found(service) => service,
        };
        let number = match (port, service.ports.as_slice()) {
            (Some(port), _) => port,
            (None, [only]) => only.number,
            (None, _) => default,
        };
        let home = snapshot.home();
        let Some(destination) = Destination::of_service(service, number, home, &self.checks, &self.metrics)
        else {
            return Some(Err(Reason::UnknownPort));
        };
        destination.touch(self.uptime(Instant::now()));
        self.destinations.borrow_mut().insert(destination.key.clone(), destination.clone());
        Some(Ok(destination))
    }

    /// The destination of a connection that the application made to `address`.
    ///
    /// # Errors
    /// As for [`Self::by_authority`]; [`Reason::UnknownService`] also for an
    /// address outside the registry where egress is restricted to it.
    pub async fn by_address(&self, address: SocketAddr) -> Result<Rc<Destination>, Reason> {
        let deadline = tokio::time::Instant::now() + ANSWER_TIMEOUT;
        let mut asked = false;
        let name = loop {
            let answered = self.answered.notified();
            let snapshot = self.config.load();
            if let Some(workload) = snapshot.workloads.get(&address.ip()) {
                return self.workload(workload, address, snapshot.home());
            }
            match snapshot.addresses.get(&address.ip()) {
                Some(Lookup::Found(name)) => break name.clone(),
                Some(Lookup::Absent) => return self.outside(address),
                Some(Lookup::Pending) | None => {}
            }
            if !asked && !self.config.want(Want::Address(address.ip())) {
                return Err(Reason::Overloaded);
            }
            asked = true;
            if tokio::time::timeout_at(deadline, answered).await.is_err() {
                // Discovery is away and has never said what this address is.
                return Err(Reason::NotReady);
            }
        };
        self.service(&name, Some(address.port()), address.port()).await
    }

    /// A port of the workload at an address, declared or not.
    fn workload(
        &self,
        workload: &Service,
        address: SocketAddr,
        home: Home<'_>,
    ) -> Result<Rc<Destination>, Reason> {
        let key = DestinationKey::Workload(address);
        if let Some(known) = self.destinations.borrow().get(&key) {
            known.touch(self.uptime(Instant::now()));
            return Ok(known.clone());
        }
        let destination = Destination::of_workload(workload, address, home, &self.checks, &self.metrics)
            .ok_or(Reason::UnknownPort)?;
        destination.touch(self.uptime(Instant::now()));
        let mut destinations = self.destinations.borrow_mut();
        let direct = |key: &DestinationKey| matches!(key, DestinationKey::Workload(_));
        if destinations.keys().filter(|key| direct(key)).count() >= DIRECT_DESTINATIONS {
            // An application that scans ports; what it uses is found again.
            destinations.retain(|key, _| !direct(key));
        }
        destinations.insert(key, destination.clone());
        Ok(destination)
    }

    /// A destination outside the registry.
    fn outside(&self, address: SocketAddr) -> Result<Rc<Destination>, Reason> {
        if !self.config.load().mesh.as_ref().is_some_and(|mesh| mesh.allow_any_egress) {
            return Err(Reason::UnknownService);
        }
        let key = DestinationKey::Direct(address);
        let mut destinations = self.destinations.borrow_mut();
        if let Some(destination) = destinations.get(&key) {
            return Ok(destination.clone());
        }
        let direct = |key: &DestinationKey| matches!(key, DestinationKey::Direct(_));
        if destinations.keys().filter(|key| direct(key)).count() >= DIRECT_DESTINATIONS {
            // They hold nothing that could not be learned again.
            destinations.retain(|key, _| !direct(key));
        }
        let destination = Destination::of_address(address, self.default_policy.clone(), &self.metrics);
        destinations.insert(key, destination.clone());
        Ok(destination)
    }

    /// A port of the host's loopback, for an application that expects it on its own.
    pub(crate) fn host_loopback(&self, address: SocketAddr) -> Rc<Destination> {
        Destination::of_address(address, self.default_policy.clone(), &self.metrics)
    }

    /// A port of the application beside us.
    ///
    /// # Errors
    /// [`Reason::NotReady`] while our own policy is unknown: nothing is admitted;
    /// [`Reason::UnknownPort`] for a port that was not declared, except in a pod,
    /// where declaring ports is optional; [`Reason::Loop`] for one of our own there.
    pub fn app_port(&self, port: u16) -> Result<Rc<Destination>, Reason> {
        let key = DestinationKey::App(port);
        if let Some(destination) = self.destinations.borrow().get(&key) {
            return Ok(destination.clone());
        }
        let snapshot = self.config.load();
        let workload = snapshot.workload.as_ref().ok_or(Reason::NotReady)?;
        let in_pod = self.app.is_in_pod();
        if in_pod && pod::is_own_port(port) {
            return Err(Reason::Loop);
        }
        let declared = workload.ports.iter().find(|p| p.number == port).map(|p| p.protocol);
        let protocol = declared.or(in_pod.then_some(AppProtocol::Detect)).ok_or(Reason::UnknownPort)?;
        let policy = self.inbound_policy.clone();
        let destination = Destination::of_app(&workload.service, port, protocol, policy, &self.metrics);
        destination.follow_guards(workload, &self.registry);
        let mut destinations = self.destinations.borrow_mut();
        if declared.is_none() {
            // A peer that tries all ports must not fill our memory.
            let undeclared = |key: &DestinationKey| matches!(key, DestinationKey::App(port) if workload.ports.iter().all(|p| p.number != *port));
            if destinations.keys().filter(|key| undeclared(key)).count() >= UNDECLARED_PORTS {
                destinations.retain(|key, destination| {
                    let kept = !undeclared(key);
                    if !kept {
                        destination.retire();
                    }
                    kept
                });
            }
        }
        destinations.insert(key, destination.clone());
        Ok(destination)
    }
}

/// The port of `http` URLs.
const DEFAULT_HTTP_PORT: u16 = 80;
