//! When to look at a folder again.
//!
//! A burst of events is waited out, because an edit is several of them
//! (truncate, write, rename). A file that a program has written to and not yet
//! closed is named, so that half of it is not taken for the whole.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use notify::event::{AccessKind, AccessMode, EventKind, ModifyKind};
use notify::{RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until, timeout_at};

/// An editor's save takes a few milliseconds; the rest is margin.
const QUIET: Duration = Duration::from_millis(50);

/// An edit is live after this time even while others follow without pause.
const MAX_DELAY: Duration = Duration::from_millis(400);

/// Without events the folder is looked at this often: network file systems report no changes.
const RESCAN: Duration = Duration::from_secs(2);

/// A program that keeps a file open without writing for so long has finished with it.
const ABANDONED: Duration = Duration::from_secs(10);

/// The changes below one folder.
pub(super) struct Changes {
    shared: Arc<Shared>,
    watcher: Option<RecommendedWatcher>,
    next_rescan: Instant,
}

#[derive(Default)]
struct Shared {
    event: Notify,
    /// Files that were written to and not closed, with the time of the last write.
    being_written: Mutex<HashMap<PathBuf, Instant>>,
}

impl Changes {
    /// Begins to watch `root`; where that is not possible, only looks now and then.
    pub(super) fn watch(root: &Path) -> Self {
        let mut changes =
            Self { shared: Arc::default(), watcher: None, next_rescan: Instant::now() + RESCAN };
        changes.ensure_watched(root, false);
        changes
    }

    /// Watches again what could not be watched, or went away meanwhile.
    pub(super) fn ensure_watched(&mut self, root: &Path, gone: bool) {
        if gone {
            self.watcher = None;
        } else if self.watcher.is_none() {
            match self.start(root) {
                Ok(watcher) => self.watcher = Some(watcher),
                Err(error) => {
                    let every = RESCAN.as_secs();
                    tracing::warn!(
                        "{} cannot be watched, only read every {every} s: {error}",
                        root.display()
                    );
                }
            }
        }
    }

    fn start(&self, root: &Path) -> notify::Result<RecommendedWatcher> {
        let shared = self.shared.clone();
        let mut watcher =
            notify::recommended_watcher(move |event: notify::Result<notify::Event>| match event {
                Ok(event) => shared.note(&event),
                // Events were lost: look at everything.
                Err(_) => shared.event.notify_one(),
            })?;
        watcher.watch(root, RecursiveMode::Recursive)?;
        // What happened before the watch began would otherwise wait for the next rescan.
        self.shared.event.notify_one();
        Ok(watcher)
    }

    /// Waits until something changed and the burst is over, or until it is time to look anyway.
    /// Returns the files that are being written to. Nothing is lost when the future is dropped.
    pub(super) async fn settled(&mut self) -> HashSet<PathBuf> {
        if timeout_at(self.next_rescan, self.shared.event.notified()).await.is_ok() {
            let latest = Instant::now() + MAX_DELAY;
            let mut quiet = Instant::now() + QUIET;
            while quiet < latest && timeout_at(quiet, self.shared.event.notified()).await.is_ok() {
                quiet = Instant::now() + QUIET;
            }
            sleep_until(quiet.min(latest)).await;
        }
        let now = Instant::now();
        self.next_rescan = now + RESCAN;
        let mut being_written = self.shared.being_written.lock().unwrap_or_else(PoisonError::into_inner);
        being_written.retain(|_, last_write| now.duration_since(*last_write) < ABANDONED);
        being_written.keys().cloned().collect()
    }
}

impl Shared {
    fn note(&self, event: &notify::Event) {
        let mut being_written = self.being_written.lock().unwrap_or_else(PoisonError::into_inner);
        match event.kind {
            // Closed, gone, or another file has the name now.
            EventKind::Access(AccessKind::Close(AccessMode::Write))
            | EventKind::Remove(_)
            | EventKind::Modify(ModifyKind::Name(_)) => {
                being_written.retain(|path, _| !event.paths.contains(path));
            }
            // Only Linux reports when a file is closed.
            EventKind::Modify(ModifyKind::Data(_)) if cfg!(target_os = "linux") => {
                let now = Instant::now();
                being_written.extend(event.paths.iter().map(|path| (path.clone(), now)));
            }
            EventKind::Create(_) | EventKind::Modify(_) | EventKind::Any | EventKind::Other => {}
            // Reading is no change; our own would wake us for ever.
            EventKind::Access(_) => return,
        }
        self.event.notify_one();
    }
}
