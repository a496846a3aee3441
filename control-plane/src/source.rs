//! Where objects come from: folders of manifests and clusters, merged into one set.
//!
//! A source never fails once it runs: what cannot be read becomes a
//! [`SourceError`] beside the objects, and its last good content stays in
//! force. Judging policies is left to [`crate::compile`].

mod document;
mod folder;
mod kubernetes;
mod object;
mod tree;

use std::collections::HashSet;
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use heddle_api::crd::Violation;
use tokio::sync::{mpsc, watch};

use crate::kubernetes::client::{Cluster, NoClient};
pub use kubernetes::Watches;
pub use object::{ObjectName, Objects, Origin, Sourced};

/// All sources' objects at one moment.
#[derive(Debug, Default, Clone)]
pub struct Content {
    /// What is in force.
    pub objects: Arc<Objects>,
    /// What could not be read; empty if all is well.
    pub errors: Arc<[SourceError]>,
    /// How many errors have appeared since the start, for a counter.
    pub errors_total: u64,
    /// Whether a source has not said yet all that it holds: the objects are fewer than there are.
    pub pending: bool,
    /// How the watches of clusters stand.
    pub watches: Watches,
}

/// Where to read objects from: `dir:PATH`, `kubernetes` or `kubernetes:CONTEXT`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SourceSpec {
    /// A folder of manifests, with its subfolders.
    Folder(PathBuf),
    /// A Kubernetes cluster.
    Kubernetes(Cluster),
}

/// A text that names no source.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no source; sources are dir:PATH, kubernetes and kubernetes:CONTEXT")]
pub struct InvalidSource(String);

impl FromStr for SourceSpec {
    type Err = InvalidSource;

    fn from_str(text: &str) -> Result<Self, InvalidSource> {
        match text.split_once(':') {
            Some(("dir", path)) if !path.is_empty() => Ok(Self::Folder(path.into())),
            Some(("kubernetes", context)) if !context.is_empty() => {
                Ok(Self::Kubernetes(Cluster::Context(context.into())))
            }
            None if text == "kubernetes" => Ok(Self::Kubernetes(Cluster::Inferred)),
            _ => Err(InvalidSource(text.into())),
        }
    }
}

impl fmt::Display for SourceSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Folder(path) => write!(f, "dir:{}", path.display()),
            Self::Kubernetes(Cluster::Inferred) => f.write_str("kubernetes"),
            Self::Kubernetes(Cluster::Context(context)) => write!(f, "kubernetes:{context}"),
        }
    }
}

/// What is wrong with an object, by the field, as it would be told if a source had it.
pub(crate) fn violations(object: serde_json::Value) -> Vec<Violation> {
    let place: Arc<Path> = Path::new("").into();
    let errors = document::read_object(&place, &tree::Node::from(object)).err().unwrap_or_default();
    errors.into_iter().map(|error| Violation { path: error.field, message: error.message }).collect()
}

impl Objects {
    /// The objects that `text` would be in a file named `file`.
    ///
    /// # Errors
    /// Everything that is wrong with it.
    pub fn parse(file: &Path, text: &str) -> Result<Self, Vec<SourceError>> {
        let mut objects = Self::default();
        for object in document::read(&file.into(), text)?.objects {
            objects.insert(&object).map_err(|error| vec![error])?;
        }
        Ok(objects)
    }
}

/// Reads every folder once, then keeps watching all sources until all receivers are gone. Clusters
/// are waited for by nobody: until all of them have answered the content is [pending](Content::pending).
///
/// # Errors
/// If it is not known how to reach a cluster.
pub async fn watch(sources: Vec<SourceSpec>) -> Result<watch::Receiver<Content>, NoClient> {
    // One update per source may wait: the next scan of a source waits for its last to be taken.
    let (updates, mut received) = mpsc::channel(sources.len().max(1));
    let mut parts = Vec::with_capacity(sources.len());
    for (index, source) in sources.into_iter().enumerate() {
        let updates = updates.clone();
        parts.push(match source {
            SourceSpec::Folder(path) => folder::watch(path, index, updates).await,
            SourceSpec::Kubernetes(ref cluster) => {
                kubernetes::watch(cluster, &source.to_string(), index, updates).await?
            }
        });
    }
    let mut content = Content::default();
    merge(&parts, &mut content);
    let (sender, receiver) = watch::channel(content);
    tokio::spawn(async move {
        loop {
            tokio::select! {
                () = sender.closed() => return,
                update = received.recv() => {
                    let Some((index, part)) = update else { return };
                    parts[index] = part;
                    sender.send_modify(|content| merge(&parts, content));
                }
            }
        }
    });
    Ok(receiver)
}

/// What one source holds.
#[derive(Debug, Default)]
struct Part {
    objects: Vec<object::Object>,
    errors: Vec<SourceError>,
    /// Whether it has not said yet all that it holds.
    pending: bool,
    watches: Watches,
}

/// Makes `content` that of `parts`, and logs and counts the errors that are new.
fn merge(parts: &[Part], content: &mut Content) {
    let mut objects = Objects::default();
    let mut errors: Vec<SourceError> = parts.iter().flat_map(|part| part.errors.iter().cloned()).collect();
    for object in parts.iter().flat_map(|part| &part.objects) {
        errors.extend(objects.insert(object).err());
    }
    let known: HashSet<&SourceError> = content.errors.iter().collect();
    let mut appeared = 0;
    for error in errors.iter().filter(|error| !known.contains(error)) {
        tracing::error!(
            file = %error.location.file.display(),
            line = error.location.line,
            field = error.field,
            "{}{}",
            error.message,
            if error.keeps_the_last() { "; what was read last stays in force" } else { "" }
        );
        appeared += 1;
    }
    if errors.is_empty() && !content.errors.is_empty() {
        tracing::info!("all sources can be read again");
    }
    *content = Content {
        objects: Arc::new(objects),
        errors: errors.into(),
        errors_total: content.errors_total + appeared,
        pending: parts.iter().any(|part| part.pending),
        watches: parts.iter().map(|part| part.watches).fold(Watches::default(), Watches::plus),
    };
}

/// Why a part of a source is not in force.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct SourceError {
    /// Where it is written.
    pub location: Location,
    /// The field, such as `spec.retry.backoff.jitter`; empty if the document as a whole is wrong.
    pub field: String,
    /// What is wrong.
    pub message: String,
    /// The object of a cluster that is refused; its status says so.
    pub object: Option<Arc<RefusedObject>>,
}

/// An object that is in a cluster and cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct RefusedObject {
    /// Its kind, such as `TrafficPolicy`.
    pub kind: &'static str,
    /// Its namespace and name.
    pub name: ObjectName,
    /// Which version of it was judged.
    pub generation: i64,
    /// Whether an earlier version is in force.
    pub last_good: bool,
}

impl SourceError {
    fn new(location: Location, field: String, message: String) -> Self {
        Self { location, field, message, object: None }
    }

    /// Whether what was read there before is in force.
    fn keeps_the_last(&self) -> bool {
        self.object.as_ref().is_none_or(|object| object.last_good)
    }
}

impl fmt::Display for SourceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.location)?;
        if !self.field.is_empty() {
            write!(f, "{}: ", self.field)?;
        }
        f.write_str(&self.message)
    }
}

/// A place in a file, or an object of a cluster.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Location {
    /// The file; in a cluster `kubernetes:KIND/NAMESPACE/NAME`.
    pub file: Arc<Path>,
    /// Line, from 1; 0 if unknown.
    pub line: u32,
    /// Column in characters, from 1; 0 if unknown.
    pub column: u32,
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.file.display())?;
        if self.line > 0 {
            write!(f, ":{}:{}", self.line, self.column)?;
        }
        Ok(())
    }
}
