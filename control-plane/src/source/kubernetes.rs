//! A Kubernetes cluster, watched.
//!
//! Each kind has a [watcher] of its own; what they find meets in one [store],
//! which is a source like a folder: what cannot be read keeps its last good
//! version in force, and an API server that is away changes nothing. Objects
//! are read by the rules of manifests ([`super::document`]) and reduced before
//! they are kept. Of Pods only those with a sidecar are watched, of Secrets
//! only those that a policy refers to, each by its name.

mod kinds;
mod pace;
mod raw;
mod store;
mod watcher;

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use tokio::sync::mpsc;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::sleep_until;

use self::kinds::Watched;
use self::pace::Pace;
use self::store::{Change, Store};
use self::watcher::{Shared, Watcher, watch_definitions};
use super::Part;
use crate::kubernetes::client::{self, Cluster, NoClient};

/// How the watches of clusters stand.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Watches {
    /// Those that hear of changes as they happen.
    pub live: usize,
    /// Those that do not for now.
    pub lost: usize,
    /// Those of kinds that the cluster does not serve.
    pub absent: usize,
}

impl Watches {
    pub(super) fn plus(self, other: Self) -> Self {
        Self {
            live: self.live + other.live,
            lost: self.lost + other.lost,
            absent: self.absent + other.absent,
        }
    }
}

/// Changes that may wait for the store; more have the watches wait, and with them the API server.
const CHANGES: usize = 256;

/// Keeps sending what `cluster` holds under `index` when that changes. `name` is how errors call it.
///
/// # Errors
/// If it is not known how to reach the cluster.
pub(super) async fn watch(
    cluster: &Cluster,
    name: &str,
    index: usize,
    updates: mpsc::Sender<(usize, Part)>,
) -> Result<Part, NoClient> {
    // Boxed: it reads files of many forms, once.
    let client = Box::pin(client::connect(cluster)).await?;
    let (changes, received) = mpsc::channel(CHANGES);
    let source: Arc<Path> = Path::new(name).into();
    let follower = Follower {
        store: Store::new(source.clone(), Watched::all()),
        shared: Shared::new(client, source, changes),
        received,
        watchers: JoinSet::new(),
        secrets: HashMap::new(),
        updates,
        index,
    };
    let part = follower.store.part();
    tokio::spawn(follower.run());
    Ok(part)
}

/// Brings together what the watches find.
struct Follower {
    store: Store,
    shared: Arc<Shared>,
    received: mpsc::Receiver<(Arc<Watched>, Change)>,
    /// They end with this.
    watchers: JoinSet<()>,
    secrets: HashMap<Watched, AbortHandle>,
    updates: mpsc::Sender<(usize, Part)>,
    index: usize,
}

impl Follower {
    async fn run(mut self) {
        for watched in Watched::all() {
            self.watchers.spawn(Watcher::new(self.shared.clone(), watched).run());
        }
        self.watchers.spawn(watch_definitions(self.shared.clone()));
        let mut pace = Pace::default();
        loop {
            let due = pace.due();
            let due = async {
                match due {
                    Some(moment) => sleep_until(moment.into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = self.updates.closed() => return,
                Some((watched, change)) = self.received.recv() => {
                    let changed = self.store.apply(&watched, change);
                    pace.note(changed, self.store.standing(), Instant::now());
                }
                () = due => {
                    self.follow_secrets();
                    if self.updates.send((self.index, self.store.part())).await.is_err() {
                        return;
                    }
                    pace.handed_on();
                }
            }
        }
    }

    fn follow_secrets(&mut self) {
        let (new, gone) = self.store.follow_secrets();
        for watched in gone {
            if let Some(watcher) = self.secrets.remove(&watched) {
                watcher.abort();
            }
        }
        for watched in new {
            let watcher = Watcher::new(self.shared.clone(), watched.clone()).run();
            self.secrets.insert(watched, self.watchers.spawn(watcher));
        }
        // Those that were given up.
        while self.watchers.try_join_next().is_some() {}
    }
}
