//! A collection as a stream of what was heard of it, for those who need no
//! more: failures are logged here, once each time, and tried again.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures_util::stream::Stream;
use serde::de::DeserializeOwned;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Duration, sleep};
use tracing::{info, warn};

use super::{ApiServer, Collection, Ended, Heard, Listener, Versioned, Watch, jittered};
use crate::source::ObjectName;

/// What happened in a collection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Followed<T> {
    /// These and no others are there.
    Listed(Vec<T>),
    Applied(T),
    Deleted(ObjectName),
    /// There is no such collection, or not any more.
    NotServed,
}

/// Changes that may wait for who follows; more have the watch wait, and with it the API server.
const CHANGES: usize = 64;

/// Between two looks for a collection that is not served.
const LOOK: Duration = Duration::from_secs(10);

/// Follows `collection` until what is returned is dropped. `what` names it in log lines, `keep`
/// reduces each object to what is needed of it.
pub(crate) fn follow<S, T>(
    server: Arc<ApiServer>,
    collection: Collection,
    what: &'static str,
    keep: fn(S) -> T,
) -> Following<T>
where
    S: Versioned + DeserializeOwned + Clone + Send + 'static,
    T: Send + 'static,
{
    let (changes, heard) = mpsc::channel(CHANGES);
    let watch = Watch::new(server, collection, Ear { changes, what, keep, failing: false });
    let mut task = JoinSet::new();
    task.spawn(run(watch));
    Following { heard, _task: task }
}

/// The stream of one collection. It never ends by itself.
pub(crate) struct Following<T> {
    heard: mpsc::Receiver<Followed<T>>,
    /// Ends with this.
    _task: JoinSet<()>,
}

impl<T> Stream for Following<T> {
    type Item = Followed<T>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.heard.poll_recv(cx)
    }
}

struct Ear<S, T> {
    changes: mpsc::Sender<Followed<T>>,
    what: &'static str,
    keep: fn(S) -> T,
    failing: bool,
}

impl<S, T> Listener for Ear<S, T>
where
    S: Versioned + DeserializeOwned + Clone + Send,
    T: Send,
{
    type Sent = S;
    type Kept = T;

    fn keep(&self, sent: S) -> T {
        (self.keep)(sent)
    }

    async fn hear(&mut self, heard: Heard<T>) -> bool {
        let change = match heard {
            Heard::Listed(all) => Followed::Listed(all),
            Heard::Applied(one) => Followed::Applied(one),
            Heard::Deleted(name) => Followed::Deleted(name),
            Heard::Live => {
                if std::mem::take(&mut self.failing) {
                    info!(what = self.what, "watched again");
                }
                return true;
            }
            Heard::Doubted => return true,
            Heard::Lost(failure) => {
                if !std::mem::replace(&mut self.failing, true) {
                    warn!(what = self.what, %failure, "cannot be watched; what is known stays in force");
                }
                return true;
            }
        };
        self.changes.send(change).await.is_ok()
    }

    async fn closed(&self) {
        self.changes.closed().await;
    }
}

async fn run<S, T>(mut watch: Watch<Ear<S, T>>)
where
    S: Versioned + DeserializeOwned + Clone + Send,
    T: Send,
{
    while watch.run().await == Ended::NotServed {
        if watch.listener.changes.send(Followed::NotServed).await.is_err() {
            return;
        }
        tokio::select! {
            () = sleep(jittered(LOOK)) => {}
            () = watch.listener.changes.closed() => return,
        }
    }
}
