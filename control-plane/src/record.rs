//! A text that outlives the control plane: a file beside its keys or, in a cluster, a `ConfigMap`.
//!
//! It is a help, not a truth: one that cannot be read is the same as none, and one that cannot be
//! written holds up nobody for longer than [`TIMEOUT`].

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{Api, Patch, PatchParams};
use serde_json::json;
use tracing::warn;

use crate::ca::store;
use crate::kubernetes::FIELD_MANAGER;

/// Limit on reading or writing once. People wait for an alert meanwhile.
const TIMEOUT: Duration = Duration::from_secs(2);

/// How often it is read before it counts as none, and the pauses between.
const TRIES: usize = 3;
const PAUSE: Duration = Duration::from_millis(500);

/// Where the text is.
pub(crate) enum Record {
    File(PathBuf),
    ConfigMap {
        maps: Api<ConfigMap>,
        name: &'static str,
        /// The key in it.
        key: &'static str,
    },
}

/// Why it was not read or written; the operator's to mend.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RecordError {
    #[error("{}: {error}", path.display())]
    File { path: PathBuf, error: io::Error },
    #[error("ConfigMap {name}: {error}")]
    ConfigMap { name: &'static str, error: kube::Error },
    #[error("no answer within {TIMEOUT:?}")]
    Silence,
}

impl Record {
    /// What is written there; `None` if nothing is, or if it cannot be read.
    pub(crate) async fn load<T>(&self, read: impl Fn(&str) -> Result<T, serde_json::Error>) -> Option<T> {
        let mut tries = 1;
        let text = loop {
            let error = match bounded(self.load_once()).await {
                Ok(text) => break text?,
                Err(error) => error,
            };
            if tries == TRIES {
                warn!(%error, "what an earlier control plane knew cannot be read");
                return None;
            }
            tries += 1;
            tokio::time::sleep(PAUSE).await;
        };
        let read = read(&text);
        read.inspect_err(|error| warn!(%error, "what an earlier control plane knew cannot be read")).ok()
    }

    /// Replaces what is written there.
    ///
    /// # Errors
    /// If it cannot be written within two seconds.
    pub(crate) async fn store(&self, text: String) -> Result<(), RecordError> {
        bounded(self.store_once(text)).await
    }

    async fn load_once(&self) -> Result<Option<String>, RecordError> {
        match self {
            Self::File(path) => {
                let at = path.clone();
                match blocking(move || std::fs::read_to_string(at)).await {
                    Ok(text) => Ok(Some(text)),
                    Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
                    Err(error) => Err(RecordError::File { path: path.clone(), error }),
                }
            }
            Self::ConfigMap { maps, name, key } => {
                let found = maps.get_opt(name).await;
                let found = found.map_err(|error| RecordError::ConfigMap { name, error })?;
                Ok(found.and_then(|map| map.data?.remove(*key)))
            }
        }
    }

    async fn store_once(&self, text: String) -> Result<(), RecordError> {
        match self {
            Self::File(path) => {
                let at = path.clone();
                let stored = blocking(move || store::replace(&at, text.as_bytes())).await;
                stored.map_err(|error| RecordError::File { path: path.clone(), error })
            }
            Self::ConfigMap { maps, name, key } => {
                let map = json!({
                    "apiVersion": "v1",
                    "kind": "ConfigMap",
                    "metadata": {"name": name, "labels": {"app.kubernetes.io/part-of": "heddle"}},
                    "data": {*key: text},
                });
                let parameters = PatchParams::apply(FIELD_MANAGER).force();
                let written = maps.patch(name, &parameters, &Patch::Apply(map)).await;
                written.map(drop).map_err(|error| RecordError::ConfigMap { name, error })
            }
        }
    }
}

async fn bounded<T>(work: impl Future<Output = Result<T, RecordError>>) -> Result<T, RecordError> {
    tokio::time::timeout(TIMEOUT, work).await.unwrap_or(Err(RecordError::Silence))
}

/// Streams and their keepalives never wait for a disk.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_file_is_read_as_it_was_written_and_one_that_makes_no_sense_is_none() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("numbers.json");
        let record = Record::File(path.clone());
        let read = |text: &str| serde_json::from_str::<Vec<u32>>(text);
        assert_eq!(record.load(read).await, None);
        record.store("[1,2]".into()).await.unwrap();
        assert_eq!(record.load(read).await, Some(vec![1, 2]));
        std::fs::write(&path, "[1,").unwrap();
        assert_eq!(record.load(read).await, None);
        let nowhere = Record::File(scratch.path().join("nowhere/numbers.json"));
        assert!(nowhere.store("[]".into()).await.unwrap_err().to_string().contains("nowhere"));
    }
}
