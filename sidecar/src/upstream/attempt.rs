//! A try at an endpoint, in the books of its load and of the circuit breakers.
//!
//! Each try ends in exactly one verdict: it was good, it failed, or it says
//! nothing, as when the client left. A response's head settles how fast the
//! endpoint was; whether it was good is known only at its end, where it may break off
//! or bear a gRPC status.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Instant;

use super::{Destination, Endpoint};
use crate::policy::breaker::{Census, Change, Fault, Ticket, Verdict, relieve};
use crate::policy::retry::Failure;
use crate::reason::Reason;
use crate::telemetry::metrics::{HedgeOutcome, ServiceLabels, Shard};

/// A try in flight at an endpoint. Dropped without a verdict, it says nothing.
pub struct InFlight {
    destination: Rc<Destination>,
    endpoint: Rc<Endpoint>,
    since: Cell<Instant>,
    /// Known with the response's head.
    slow: Cell<Option<bool>>,
    tickets: Cell<Option<Tickets>>,
}

#[derive(Clone, Copy)]
struct Tickets {
    endpoint: Ticket,
    /// Where the service has a breaker as a whole.
    service: Option<Ticket>,
}

impl Destination {
    /// A try at an endpoint that was just picked begins.
    #[inline]
    pub fn begin(self: &Rc<Self>, endpoint: &Rc<Endpoint>, now: Instant) -> InFlight {
        endpoint.load.begin();
        self.in_flight.set(self.in_flight.get() + 1);
        let service = self.policy.borrow().service_breaker.is_some().then(|| self.breaker.begin(now));
        InFlight {
            destination: self.clone(),
            endpoint: endpoint.clone(),
            since: Cell::new(now),
            slow: Cell::new(None),
            tickets: Cell::new(Some(Tickets { endpoint: endpoint.breaker.begin(now), service })),
        }
    }
}

impl InFlight {
    /// Where it goes.
    #[inline]
    pub fn endpoint(&self) -> &Rc<Endpoint> {
        &self.endpoint
    }

    /// The request goes out now: making a connection is no part of its latency.
    #[inline]
    pub fn sent(&self, now: Instant) {
        self.since.set(now);
    }

    /// The head of a response came that is, as far as it says, good.
    #[inline]
    pub fn answered(&self, now: Instant) {
        let latency = now.saturating_duration_since(self.since.get());
        self.endpoint.load.answered(latency, now);
        self.destination.sampled(latency, now);
        self.slow.set(Some(self.is_slow(now)));
    }

    /// The response came to a good end.
    #[inline]
    pub fn succeeded(&self, now: Instant) {
        self.end(Verdict { fault: None, slow: self.slow.get() == Some(true) }, None, now);
    }

    /// The try failed.
    pub fn failed(&self, failure: Failure, now: Instant) {
        let faults = self.destination.rules(|rules| rules.faults);
        let Some(fault) = faults.judge(failure) else { return self.abandon() };
        let slow = self.slow.get().unwrap_or_else(|| fault != Some(Fault::Refused) && self.is_slow(now));
        if fault.is_some() && self.tickets.get().is_some() {
            if matches!(failure, Failure::Mesh(Reason::Timeout | Reason::PerTryTimeout)) {
                self.unanswered(now);
            }
            self.endpoint.load.failed(now);
        }
        if matches!(failure, Failure::Mesh(Reason::Timeout | Reason::PerTryTimeout))
            && self.slow.get().is_none()
        {
            self.destination.sampled(now.saturating_duration_since(self.since.get()), now);
        }
        self.end(Verdict { fault, slow }, Some(failure), now);
    }

    /// Whoever waited for the head of a response does so no longer.
    pub fn unanswered(&self, now: Instant) {
        if self.slow.get().is_none() {
            self.endpoint.load.unanswered(now.saturating_duration_since(self.since.get()), now);
        }
    }

    fn is_slow(&self, now: Instant) -> bool {
        let latency = now.saturating_duration_since(self.since.get());
        self.destination.rules(|rules| rules.is_slow(latency))
    }

    fn end(&self, verdict: Verdict, failure: Option<Failure>, now: Instant) {
        let Some(tickets) = self.tickets.take() else { return };
        let (destination, endpoint) = (&*self.destination, &*self.endpoint);
        let policy = destination.policy.borrow();
        let census = || {
            let endpoints = destination.endpoints.borrow();
            Census::of(endpoints.iter().map(|e| !e.is_healthy() || e.breaker.is_out()))
        };
        // An answer of whatever kind is enough for an endpoint of which nothing else is asked.
        let own = match policy.service_breaker {
            Some(_) => Verdict { fault: verdict.fault.filter(|f| *f == Fault::Refused), slow: false },
            None => verdict,
        };
        let change = endpoint.breaker.ended(tickets.endpoint, own, &policy.breaker, census, now);
        match change {
            Some(Change::Withheld) => destination.relieve(now),
            Some(change) => {
                if matches!(change, Change::Opened { .. }) {
                    endpoint.load.forget();
                }
                destination.tell(Some(endpoint), change, failure);
                destination.circuit_changed(change, now);
            }
            None => {}
        }
        if change.is_some() || verdict.fault.is_some() {
            endpoint.show(now);
        }
        if let (Some(rules), Some(ticket)) = (&policy.service_breaker, tickets.service) {
            let change = destination.breaker.ended(ticket, verdict, rules, || Census::UNBOUNDED, now);
            if let Some(change) = change {
                destination.tell(None, change, failure);
            }
            if change.is_some() || verdict.fault.is_some() {
                destination.show_circuit(now);
            }
        }
    }

    fn abandon(&self) {
        if let Some(tickets) = self.tickets.take() {
            self.endpoint.breaker.abandoned(tickets.endpoint);
            if let Some(ticket) = tickets.service {
                self.destination.breaker.abandoned(ticket);
            }
        }
    }
}

impl Drop for InFlight {
    #[inline]
    fn drop(&mut self) {
        self.endpoint.load.end();
        self.destination.in_flight.set(self.destination.in_flight.get().saturating_sub(1));
        self.abandon();
    }
}

impl Destination {
    /// Counts a hedge. They are rare enough for a look-up.
    pub fn count_hedge(&self, metrics: &Shard, outcome: HedgeOutcome) {
        let labels = ServiceLabels { service: self.service.clone(), namespace: self.namespace.clone() };
        metrics.hedges(&labels).count(outcome);
    }

    /// One who fails has to stay: whether another who is out would be better is asked now.
    #[cold]
    fn relieve(&self, now: Instant) {
        let endpoints = self.endpoints.borrow();
        let well = endpoints.iter().filter(|endpoint| endpoint.is_healthy());
        let Some(asked) = relieve(well.map(|endpoint| &endpoint.breaker), now) else { return };
        if let Some(endpoint) = endpoints.iter().find(|endpoint| std::ptr::eq(&endpoint.breaker, asked)) {
            let (service, namespace) = (&self.service, &self.namespace);
            tracing::info!(%service, %namespace, endpoint = &*endpoint.id, "circuit half-open early");
            endpoint.show(now);
        }
        drop(endpoints);
        self.survey(now);
        self.show();
    }

    /// An endpoint's circuit has changed: traffic is shared out anew.
    fn circuit_changed(&self, change: Change, now: Instant) {
        self.survey(now);
        if let Change::Opened { time, .. } = change {
            // Its group may have no other who is well: then it has to be asked for a probe in time.
            let over = now.checked_add(time);
            self.due.set([self.due.get(), over].into_iter().flatten().min());
        }
        self.show();
    }

    /// Tells people of a change of the endpoint's breaker, or of the service's own.
    fn tell(&self, endpoint: Option<&Endpoint>, change: Change, failure: Option<Failure>) {
        let (service, namespace) = (&self.service, &self.namespace);
        let endpoint = endpoint.map_or("", |endpoint| &endpoint.id);
        match change {
            Change::Opened { cause, time } => {
                let cause = cause.as_str();
                tracing::warn!(%service, %namespace, endpoint, cause, ?failure, ?time, "circuit opened");
            }
            Change::Closed => tracing::info!(%service, %namespace, endpoint, "circuit closed"),
            Change::Withheld => {}
        }
    }
}
