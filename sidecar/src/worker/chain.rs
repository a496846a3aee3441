//! What the workers of a sidecar know together about retried requests: what
//! comes in at one of them may go out at another.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use parking_lot::Mutex;

use crate::policy::chain::{Chains, Mark};

/// Shared by all workers. Where nothing was retried, asking it costs one load.
#[derive(Clone, Debug, Default)]
pub(crate) struct SharedChains(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    count: AtomicUsize,
    chains: Mutex<Chains>,
}

impl SharedChains {
    /// Remembers this about the trace, if it is known.
    pub(crate) fn note(&self, trace: Option<u128>, mark: Mark, now: Instant) {
        if let Some(trace) = trace {
            let count = self.0.chains.lock().note(trace, mark, now);
            self.0.count.store(count, Ordering::Relaxed);
        }
    }

    /// Whether this is known about the trace, which is asked for only if anything is known at all.
    pub(crate) fn is(&self, trace: impl FnOnce() -> Option<u128>, mark: Mark, now: Instant) -> bool {
        self.0.count.load(Ordering::Relaxed) > 0
            && trace().is_some_and(|trace| self.0.chains.lock().is(trace, mark, now))
    }
}
