//! How the sidecars of this replica stand to policies, for its own statuses and
//! for the replica that writes them. Counted anew when something changed.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::sync::{Mutex, watch};

use super::board::Key;
use super::enforcement::{self, Count};
use crate::discovery::Published;
use crate::discovery::sessions::Sessions;

/// Counts for one replica.
pub(crate) struct Counter {
    /// Names this replica, differently after each start.
    replica: String,
    sessions: Arc<Sessions>,
    published: watch::Receiver<Option<Arc<Published>>>,
    counted: Mutex<Option<Arc<Counted>>>,
}

/// What was counted.
pub(crate) struct Counted {
    /// Another one wherever `policies` differ.
    pub(crate) revision: u64,
    pub(crate) policies: Standing,
    changes: u64,
    published: Arc<Published>,
}

/// Policies in force, each with the generation that is, and the sidecars that use it.
pub(crate) type Standing = BTreeMap<Key, (i64, Count)>;

impl Counter {
    pub(crate) fn new(
        sessions: Arc<Sessions>,
        published: watch::Receiver<Option<Arc<Published>>>,
    ) -> Arc<Self> {
        use std::hash::{BuildHasher, RandomState};
        let replica = format!("{:016x}", RandomState::new().hash_one(0_u8));
        Arc::new(Self { replica, sessions, published, counted: Mutex::default() })
    }

    pub(crate) fn replica(&self) -> &str {
        &self.replica
    }

    /// How it stands now; `None` while nothing is published.
    pub(crate) async fn counted(&self) -> Option<Arc<Counted>> {
        let mut counted = self.counted.lock().await;
        let published = self.published.borrow().clone()?;
        let changes = self.sessions.changes();
        if let Some(known) = &*counted
            && known.changes == changes
            && Arc::ptr_eq(&known.published, &published)
        {
            return Some(known.clone());
        }
        let (answers, of) = (self.sessions.answers(), published.clone());
        let policies = tokio::task::spawn_blocking(move || enforcement::counts(&of, &answers)).await.ok()?;
        let revision = match &*counted {
            Some(known) if known.policies == policies => known.revision,
            Some(known) => known.revision + 1,
            None => 1,
        };
        let new = Arc::new(Counted { revision, policies, changes, published });
        *counted = Some(new.clone());
        Some(new)
    }
}
