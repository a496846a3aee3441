//! The key sets of token issuers that are read from files and URLs: what is
//! wanted, what was found, and when to look again.
//!
//! Policies say what they want; compiling takes what is known. The last set that
//! was good stays in force, however long its place cannot be read.

mod fetch;
mod schedule;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use heddle_api::jwk::Jwk;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tracing::{info, warn};

use self::fetch::read;
use self::schedule::Schedule;
use crate::discovery::Published;
use crate::https::Client;
use crate::metrics::Metrics;

/// Where a key set is.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum KeyPlace {
    /// By its URL.
    Url(String),
    /// By its path.
    File(PathBuf),
}

impl std::fmt::Display for KeyPlace {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Url(url) => f.write_str(url),
            Self::File(path) => path.display().fmt(f),
        }
    }
}

/// How a place is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Terms {
    /// How often.
    pub(crate) refresh: Duration,
    /// Limit on one reading.
    pub(crate) timeout: Duration,
}

/// The places that policies in force name.
pub(crate) type WantedKeys = BTreeMap<KeyPlace, Terms>;

/// What is known of a place.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Found {
    /// The keys of the last set that was good.
    pub keys: Option<Arc<[Jwk]>>,
    /// Why the last reading gave none.
    pub error: Option<String>,
}

/// What is known of all places.
pub type FoundKeys = BTreeMap<KeyPlace, Found>;

/// Places that are read at the same time; who may write policies may name as many as they like, each with a
/// server that takes its time. A quarter of the files that a process may commonly have open.
const MOST_AT_ONCE: usize = 256;

/// Reads the places that are wanted.
pub(crate) struct KeyReader {
    pub(crate) published: watch::Receiver<Option<Arc<Published>>>,
    /// What was found, for the pipeline.
    pub(crate) found: watch::Sender<Arc<FoundKeys>>,
    pub(crate) metrics: Arc<Metrics>,
}

impl KeyReader {
    /// Works until it is dropped.
    pub(crate) async fn run(mut self) {
        // No URL, no certificates to look for.
        let mut client: Option<Arc<Client>> = None;
        let mut schedule = Schedule::default();
        let mut reading: JoinSet<(KeyPlace, Result<Vec<Jwk>, String>)> = JoinSet::new();
        loop {
            let wanted = self.published.borrow_and_update().as_ref().map(|p| p.model.wanted_keys.clone());
            if let Some(wanted) = wanted {
                self.forget(&wanted);
                schedule.follow(wanted, Instant::now());
            }
            while reading.len() < MOST_AT_ONCE
                && let Some((place, terms)) = schedule.due(Instant::now())
            {
                let client = client.get_or_insert_with(|| Arc::new(Client::new("keys are fetched"))).clone();
                reading.spawn(async move {
                    let read = tokio::time::timeout(terms.timeout, read(&client, &place)).await;
                    let read = read.unwrap_or_else(|_| Err(format!("no answer within {:?}", terms.timeout)));
                    (place, read)
                });
            }
            let next = schedule.next().filter(|_| reading.len() < MOST_AT_ONCE);
            let due = async {
                match next {
                    Some(next) => tokio::time::sleep_until(next.into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                changed = self.published.changed() => if changed.is_err() {
                    return;
                },
                Some(Ok((place, result))) = reading.join_next() => {
                    schedule.read(&place, result.is_ok(), chance(), Instant::now());
                    self.take(&place, result);
                },
                () = due => {}
            }
        }
    }

    /// Takes over what a reading gave.
    fn take(&self, place: &KeyPlace, result: Result<Vec<Jwk>, String>) {
        self.metrics.keys_read(result.is_ok());
        self.found.send_if_modified(|all| {
            let before = all.get(place).cloned().unwrap_or_default();
            let after = match &result {
                Ok(keys) => Found { keys: Some(keys.as_slice().into()), error: None },
                Err(error) => Found { error: Some(error.clone()), ..before.clone() },
            };
            if before == after {
                return false;
            }
            match &after.error {
                Some(error) => warn!(%place, kept = after.keys.is_some(), "no keys of tokens: {error}"),
                None => {
                    info!(%place, keys = after.keys.as_ref().map_or(0, |keys| keys.len()), "keys of tokens")
                }
            }
            Arc::make_mut(all).insert(place.clone(), after);
            true
        });
    }

    /// Forgets what nobody wants any more.
    fn forget(&self, wanted: &WantedKeys) {
        // Nothing has to be compiled for it.
        self.found.send_if_modified(|all| {
            if all.keys().any(|place| !wanted.contains_key(place)) {
                Arc::make_mut(all).retain(|place, _| wanted.contains_key(place));
            }
            false
        });
    }
}

/// A number from 0 to 1, for nothing secret.
fn chance() -> f64 {
    let nanos = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().subsec_nanos();
    f64::from(nanos % 1000) / 1000.0
}
