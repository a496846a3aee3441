//! Sees how often a service needs its fallback, and tells of it.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use heddle_api::name::ServiceName;

use crate::policy::fallback::{Change, Degraded};
use crate::telemetry::metrics::{FallbackMetrics, FallbackStep, ServiceLabels, Shard};
use crate::upstream::Destination;

/// The fallback of a destination, as one worker sees it.
pub(crate) struct Watch {
    service: Arc<str>,
    namespace: Arc<str>,
    degraded: RefCell<Degraded>,
    metrics: Rc<FallbackMetrics>,
}

impl Watch {
    pub(super) fn new(destination: &Destination, metrics: &Shard) -> Self {
        let (service, namespace) = (destination.service.clone(), destination.namespace.clone());
        let labels = ServiceLabels { service: service.clone(), namespace: namespace.clone() };
        Self { service, namespace, degraded: RefCell::default(), metrics: metrics.fallbacks(&labels) }
    }

    /// Whether it is of a destination of this service.
    pub(super) fn is_of(&self, name: &ServiceName) -> bool {
        *self.service == *name.name() && *self.namespace == *name.namespace()
    }

    /// A request met an error that the fallback covers, or was answered by the service.
    pub(super) fn ended(&self, fault: bool, now: Instant) {
        let change = self.degraded.borrow_mut().ended(fault, now);
        self.tell(change);
    }

    /// A step gave the answer.
    pub(super) fn answered(&self, step: FallbackStep) {
        self.metrics.answered(step);
    }

    /// No step could give one.
    pub(super) fn unanswered(&self) {
        self.metrics.unanswered();
    }

    /// Time has passed.
    pub(crate) fn sweep(&self, now: Instant) {
        let change = self.degraded.borrow_mut().lapse(now);
        self.tell(change);
    }

    fn tell(&self, change: Option<Change>) {
        let (service, namespace) = (&self.service, &self.namespace);
        match change {
            None => {}
            Some(Change::Entered) => {
                self.metrics.degraded();
                tracing::warn!(%service, %namespace, "the service is degraded: its fallback answers");
            }
            Some(Change::Left) => {
                self.metrics.recovered();
                tracing::info!(%service, %namespace, "the service is no longer degraded");
            }
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        if self.degraded.borrow().is_degraded() {
            self.metrics.recovered();
        }
    }
}
