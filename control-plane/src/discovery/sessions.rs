//! The discovery streams that are open now, for people to look at.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::SystemTime;

use heddle_api::discovery::xds::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use heddle_api::version::Version;
use jiff::Timestamp;
use parking_lot::Mutex;
use serde::{Serialize, Serializer};

use super::Subscriber;
use super::answers::Answers;

/// All open streams.
#[derive(Debug, Default)]
pub(crate) struct Sessions {
    open: Mutex<(u64, BTreeMap<u64, Session>)>,
    /// Counts the changes of answers.
    changes: AtomicU64,
}

/// One stream, as the admin listener shows it.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Session {
    identity: String,
    instance: String,
    /// The sidecar's version, if it said one.
    #[serde(serialize_with = "text")]
    version: Option<Version>,
    since: String,
    subscriptions: usize,
    pushes: u64,
    nacks: u64,
    /// The last refusal, as "type: reason".
    last_nack: Option<String>,
    #[serde(skip)]
    subscriber: Arc<Subscriber>,
    #[serde(skip)]
    answers: Arc<Mutex<Answers>>,
}

/// A stream's entry; the stream's end removes it.
pub(crate) struct SessionGuard {
    sessions: Arc<Sessions>,
    id: u64,
    answers: Arc<Mutex<Answers>>,
}

impl Sessions {
    pub(crate) fn open(
        self: &Arc<Self>,
        subscriber: &Subscriber,
        version: Option<Version>,
        now: SystemTime,
    ) -> SessionGuard {
        let session = Session {
            identity: subscriber.identity.as_str().into(),
            instance: subscriber.instance.clone(),
            version,
            since: Timestamp::try_from(now).map(|t| t.to_string()).unwrap_or_default(),
            subscriptions: 0,
            pushes: 0,
            nacks: 0,
            last_nack: None,
            subscriber: Arc::new(subscriber.clone()),
            answers: Arc::default(),
        };
        let answers = session.answers.clone();
        let mut open = self.open.lock();
        open.0 += 1;
        let id = open.0;
        open.1.insert(id, session);
        SessionGuard { sessions: self.clone(), id, answers }
    }

    pub(crate) fn list(&self) -> Vec<Session> {
        self.open.lock().1.values().cloned().collect()
    }

    /// What each sidecar said. One that has come back before its last connection was missed is
    /// named once, by the new one.
    pub(crate) fn answers(&self) -> Vec<(Arc<Subscriber>, Arc<Mutex<Answers>>)> {
        let open = self.open.lock();
        let mut newest: BTreeMap<(&str, &str), &Session> = BTreeMap::new();
        let mut nameless = Vec::new();
        for session in open.1.values() {
            if session.instance.is_empty() {
                nameless.push(session);
            } else {
                newest.insert((&session.identity, &session.instance), session);
            }
        }
        let sessions = newest.into_values().chain(nameless);
        sessions.map(|session| (session.subscriber.clone(), session.answers.clone())).collect()
    }

    /// Differs when any of [`Self::answers`] may have changed.
    pub(crate) fn changes(&self) -> u64 {
        self.changes.load(Relaxed)
    }

    pub(crate) fn count(&self) -> usize {
        self.open.lock().1.len()
    }

    /// How many streams there are of sidecars of each minor version; `None`: they did not say one.
    pub(crate) fn versions(&self) -> BTreeMap<Option<(u64, u64)>, usize> {
        let mut versions = BTreeMap::new();
        for session in self.open.lock().1.values() {
            *versions.entry(session.version.map(Version::minor)).or_default() += 1;
        }
        versions
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

    /// Takes in a request.
    pub(crate) fn requested(&self, request: &DeltaDiscoveryRequest) {
        if self.answers.lock().request(request) {
            self.sessions.changes.fetch_add(1, Relaxed);
        }
    }

    /// Takes in a response.
    pub(crate) fn responded(&self, response: &DeltaDiscoveryResponse) {
        self.answers.lock().response(response);
    }

    fn update(&self, change: impl FnOnce(&mut Session)) {
        if let Some(session) = self.sessions.open.lock().1.get_mut(&self.id) {
            change(session);
        }
    }
}

fn text<S: Serializer>(version: &Option<Version>, serializer: S) -> Result<S::Ok, S::Error> {
    match version {
        Some(version) => serializer.collect_str(version),
        None => serializer.serialize_none(),
    }
}

impl Drop for SessionGuard {
    fn drop(&mut self) {
        self.sessions.open.lock().1.remove(&self.id);
        self.sessions.changes.fetch_add(1, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A sidecar that lost its connection without a word counted twice for half a minute, once as one
    /// that has acknowledged nothing.
    #[test]
    fn a_sidecar_that_came_back_is_one() {
        let sessions = Arc::new(Sessions::default());
        let subscriber = |instance: &str| Subscriber {
            identity: "spiffe://mesh.local/ns/shop/sa/users".parse().unwrap(),
            instance: instance.into(),
        };
        let open = |instance: &str| sessions.open(&subscriber(instance), None, SystemTime::UNIX_EPOCH);
        let (_lost, back, _other) = (open("users-1"), open("users-1"), open("users-2"));
        let answers = sessions.answers();
        assert_eq!(answers.len(), 2);
        assert!(answers.iter().any(|(_, said)| Arc::ptr_eq(said, &back.answers)));
        let _nameless = (open(""), open(""));
        assert_eq!(sessions.answers().len(), 4);
    }
}
