//! What the watches of one API server tell each other.
//!
//! They share the way to it. Where one gets through again, the others do, too.
//! Where one finds that its connection is dead, those of the others may be as
//! dead and not have noticed: what is not sent any more is silent, and a
//! watch may be silent for a minute and a half. A Pod that is unknown for so
//! long beside an EndpointSlice that is up to date would be spoken to as if it
//! were outside the mesh. So all go on where they stopped, which costs a request
//! each. One that breaks again and again has the others do so no more often than
//! each of [`STEADY`].

use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

/// How long a watch goes on at least, whatever happens to the others.
pub(super) const STEADY: Duration = Duration::from_secs(10);

/// The news among the watches of one API server.
pub(super) struct Others {
    /// Counts watches that have come back.
    recovered: watch::Sender<u64>,
    /// Counts live watches that turned out to be dead.
    broken: watch::Sender<u64>,
    steady: Duration,
}

/// Whether a watch may be dead for what befell another one since this was made.
pub(super) struct Doubt {
    broken: watch::Receiver<u64>,
    seen: u64,
    not_before: Instant,
}

impl Others {
    pub(super) fn new(steady: Duration) -> Self {
        Self { recovered: watch::Sender::new(0), broken: watch::Sender::new(0), steady }
    }

    /// A watch that did not get through does now.
    pub(super) fn recovers(&self) {
        self.recovered.send_modify(|count| *count += 1);
    }

    /// Ends when the next watch comes back.
    pub(super) fn recovered(&self) -> impl Future<Output = ()> + use<> {
        let mut recovered = self.recovered.subscribe();
        async move {
            if recovered.changed().await.is_err() {
                std::future::pending().await
            }
        }
    }

    /// The connection of a watch that was live is dead.
    pub(super) fn breaks(&self) {
        self.broken.send_modify(|count| *count += 1);
    }

    /// For a watch that begins now.
    pub(super) fn doubt(&self) -> Doubt {
        let broken = self.broken.subscribe();
        let seen = *broken.borrow();
        Doubt { broken, seen, not_before: Instant::now() + self.steady }
    }
}

impl Doubt {
    /// Ends when it is to be looked whether the watch still hears something.
    pub(super) async fn arises(&mut self) {
        let seen = self.seen;
        if self.broken.wait_for(|count| *count != seen).await.is_err() {
            std::future::pending().await
        }
        sleep_until(self.not_before).await;
    }
}
