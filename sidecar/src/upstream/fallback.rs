//! What a destination keeps for the fallback of its requests.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use parking_lot::Mutex;

use super::Destination;
use crate::fallback::Watch;
use crate::policy::stale::Cache;

impl Destination {
    /// The good responses of its service.
    pub(crate) fn stale(&self) -> &Arc<Mutex<Cache>> {
        &self.stale
    }

    /// Sees how often its requests need a fallback; made by the first that has one.
    pub(crate) fn watch(&self, make: impl FnOnce() -> Watch) -> Rc<Watch> {
        self.watch.borrow_mut().get_or_insert_with(|| Rc::new(make())).clone()
    }

    /// Forgets what is too old.
    pub(super) fn sweep_fallback(&self, now: Instant) {
        if let Some(watch) = &*self.watch.borrow() {
            watch.sweep(now);
            self.stale.lock().sweep(now);
        }
    }
}
