//! The discovery streams that are open now, for people to look at.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::SystemTime;

use jiff::Timestamp;
use parking_lot::Mutex;
use serde::Serialize;

use super::Subscriber;

/// All open streams.
#[derive(Debug, Default)]
pub(crate) struct Sessions {
    open: Mutex<(u64, BTreeMap<u64, Session>)>,
}

/// One stream, as the admin listener shows it.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Session {
    identity: String,
    instance: String,
    since: String,
    subscriptions: usize,
    pushes: u64,
    nacks: u64,
    /// The last refusal, as "type: reason".
    last_nack: Option<String>,
}

/// A stream's entry; the stream's end removes it.
pub(crate) struct SessionGuard {
    sessions: Arc<Sessions>,
    id: u64,
}

impl Sessions {
    pub(crate) fn open(self: &Arc<Self>, subscriber: &Subscriber, now: SystemTime) -> SessionGuard {
        let session = Session {
            identity: subscriber.identity.as_str().into(),
            instance: subscriber.instance.clone(),
            since: Timestamp::try_from(now).map(|t| t.to_string()).unwrap_or_default(),
            subscriptions: 0,
            pushes: 0,
            nacks: 0,
            last_nack: None,
        };
        let mut open = self.open.lock();
        open.0 += 1;
        let id = open.0;
        open.1.insert(id, session);
        SessionGuard { sessions: self.clone(), id }
    }

    pub(crate) fn list(&self) -> Vec<Session> {
        self.open.lock().1.values().cloned().collect()
    }

    pub(crate) fn count(&self) -> usize {
        self.open.lock().1.len()
    }
}

impl SessionGuard {
    pub(crate) fn subscribed(&self, names: usize) {
        self.update(|session| session.subscriptions = names);
    }

    pub(crate) fn pushed(&self) {
        self.update(|session| session.pushes += 1);
    }

    pub(crate) fn refused(&self, type_url: &str, reason: &str) {
        self.update(|session| {
            session.nacks += 1;
            session.last_nack = Some(format!("{type_url}: {reason}"));
        });
    }

    fn update(&self, change: impl FnOnce(&mut Session)) {
        if let Some(session) = self.sessions.open.lock().1.get_mut(&self.id) {
            change(session);
        }
    }
}

impl Drop for SessionGuard {
    fn drop(&mut self) {
        self.sessions.open.lock().1.remove(&self.id);
    }
}
