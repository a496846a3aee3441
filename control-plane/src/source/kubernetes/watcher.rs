//! Watches one kind of a cluster: in the version that is served, and waits for
//! kinds that are not. Lists and watches themselves are the business of
//! [`crate::kubernetes::watch`].

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use kube::Client;
use kube::api::{WatchEvent, WatchParams};
use kube::core::Request;
use tokio::sync::{mpsc, watch};
use tokio::time::{sleep, timeout};
use tracing::info;

use super::kinds::Watched;
use super::raw::{Raw, Read};
use super::store::Change;
use crate::kubernetes::watch::{
    ANSWER_TIMEOUT, ApiServer, Ended, Heard, Listener, Pauses, SILENCE, WATCH_SECONDS, Watch, jittered,
};

/// What the watches of one cluster share.
pub(super) struct Shared {
    server: Arc<ApiServer>,
    /// How errors call the cluster.
    source: Arc<Path>,
    changes: mpsc::Sender<(Arc<Watched>, Change)>,
    /// Counts changes of CustomResourceDefinitions.
    defined: watch::Sender<u64>,
}

/// The watch of one kind.
pub(super) struct Watcher {
    watch: Watch<Ear>,
    defined: watch::Receiver<u64>,
    /// Looks for a kind that is not served before it takes a change of definitions to look again.
    looks: u32,
}

/// Hands on what was heard of one kind.
struct Ear {
    shared: Arc<Shared>,
    watched: Arc<Watched>,
    /// The place in `versions` of the one that is asked for.
    version: usize,
    state: Told,
}

/// What was said last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Told {
    Nothing,
    Served,
    Absent,
}

/// Between two looks for a kind that is not served, if nothing says that definitions have changed.
const DEFINITION_PAUSE: Duration = Duration::from_secs(30);

/// After a change of definitions it takes the API server some moments to serve them.
const DEFINITION_RETRIES: u32 = 10;
const DEFINITION_RETRY: Duration = Duration::from_millis(300);

const DEFINITIONS: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";

impl Shared {
    pub(super) fn new(
        client: Client,
        source: Arc<Path>,
        changes: mpsc::Sender<(Arc<Watched>, Change)>,
    ) -> Arc<Self> {
        Arc::new(Self { server: ApiServer::new(client), source, changes, defined: watch::Sender::new(0) })
    }
}

/// Follows changes of CustomResourceDefinitions, of which nothing but that there are some is of
/// interest. Where that is not permitted, kinds that appear are found a little later.
pub(super) async fn watch_definitions(shared: Arc<Shared>) {
    let mut pauses = Pauses::default();
    loop {
        let parameters = WatchParams { timeout: Some(WATCH_SECONDS), ..WatchParams::default() };
        let Ok(request) = Request::new(DEFINITIONS).watch_metadata(&parameters, "") else { return };
        let mut pause = pauses.next();
        match timeout(ANSWER_TIMEOUT, shared.server.client.request_events::<Raw>(request)).await {
            Ok(Ok(events)) => {
                let mut events = Box::pin(events);
                while let Ok(Some(Ok(event))) = timeout(SILENCE, events.next()).await {
                    pauses.reset();
                    if !matches!(event, WatchEvent::Bookmark(_)) {
                        shared.defined.send_modify(|count| *count += 1);
                    }
                }
            }
            Ok(Err(kube::Error::Api(status))) if status.code == 403 => pause = jittered(DEFINITION_PAUSE),
            Ok(Err(_)) | Err(_) => {}
        }
        sleep(pause).await;
    }
}

impl Watcher {
    pub(super) fn new(shared: Arc<Shared>, watched: Watched) -> Self {
        let defined = shared.defined.subscribe();
        let (server, collection) = (shared.server.clone(), watched.collection(0));
        let ear = Ear { shared, watched: Arc::new(watched), version: 0, state: Told::Nothing };
        Self { watch: Watch::new(server, collection, ear), defined, looks: DEFINITION_RETRIES }
    }

    /// Watches until nobody listens.
    pub(super) async fn run(mut self) {
        while self.watch.run().await == Ended::NotServed {
            let ear = &mut self.watch.listener;
            ear.version = (ear.version + 1) % ear.watched.versions.len();
            let (round, collection) = (ear.version == 0, ear.watched.collection(ear.version));
            self.watch.collection = collection;
            if !round {
                continue;
            }
            if !self.watch.listener.is_really_gone().await {
                sleep(self.watch.pause()).await;
                continue;
            }
            if !self.watch.listener.absent().await {
                return;
            }
            self.wait_for_definition().await;
        }
    }

    /// Waits until it is worth another look.
    async fn wait_for_definition(&mut self) {
        let pause = match self.looks.checked_sub(1) {
            Some(left) => {
                self.looks = left;
                DEFINITION_RETRY
            }
            None => jittered(DEFINITION_PAUSE),
        };
        tokio::select! {
            _ = self.defined.changed() => self.looks = DEFINITION_RETRIES,
            () = sleep(pause) => {}
            () = self.watch.listener.closed() => {}
        }
    }
}

impl Listener for Ear {
    type Sent = Raw;
    type Kept = Read;

    fn keep(&self, raw: Raw) -> Read {
        raw.read(&self.watched, self.watched.versions[self.version], &self.shared.source)
    }

    async fn hear(&mut self, heard: Heard<Read>) -> bool {
        let change = match heard {
            Heard::Listed(all) => Change::Listed(all),
            Heard::Applied(one) => Change::Applied(one),
            Heard::Deleted(name) => Change::Deleted(name),
            Heard::Live => {
                if std::mem::replace(&mut self.state, Told::Served) == Told::Absent {
                    info!(kind = self.watched.kind, "the cluster serves this kind now");
                }
                Change::Live
            }
            Heard::Doubted => Change::Doubted,
            Heard::Lost(failure) => {
                self.state = Told::Served;
                Change::Lost(failure)
            }
        };
        self.send(change).await
    }

    async fn closed(&self) {
        self.shared.changes.closed().await;
    }
}

impl Ear {
    async fn send(&self, change: Change) -> bool {
        self.shared.changes.send((self.watched.clone(), change)).await.is_ok()
    }

    /// Says that the cluster does not know the kind. `false` if nobody listens.
    async fn absent(&mut self) -> bool {
        if std::mem::replace(&mut self.state, Told::Absent) == Told::Absent {
            return true;
        }
        info!(
            kind = self.watched.kind,
            "the cluster does not serve this kind; it is used as soon as it does"
        );
        self.send(Change::Absent).await
    }

    /// Whether a kind of which the API server knows nothing is one that has no definition. An API
    /// server that is just starting may not know yet what it serves, and policies must not go for that.
    async fn is_really_gone(&self) -> bool {
        let Some(definition) = self.watched.definition() else { return false };
        if self.state != Told::Served {
            return true;
        }
        let Ok(request) = Request::new(DEFINITIONS).get(&definition, &kube::api::GetParams::default()) else {
            return true;
        };
        match timeout(ANSWER_TIMEOUT, self.shared.server.client.request::<Raw>(request)).await {
            Ok(Err(kube::Error::Api(status))) => matches!(status.code, 403 | 404),
            _ => false,
        }
    }
}
