//! Where objects come from: folders of manifests, merged into one set.
//!
//! A source never fails once it runs: what cannot be read becomes a
//! [`SourceError`] beside the objects, and its last good content stays in
//! force. Judging policies is left to [`crate::compile`].

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;

use tokio::sync::watch;

/// All sources' objects at one moment.
#[derive(Debug, Default, Clone)]
pub struct Content {
    /// What is in force.
    pub objects: Arc<Objects>,
    /// What could not be read; empty if all is well.
    pub errors: Arc<[SourceError]>,
    /// How many errors have appeared since the start, for a counter.
    pub errors_total: u64,
}

/// Typed objects by namespace and name.
#[derive(Debug, Default)]
pub struct Objects {}

/// Where to read objects from: `dir:PATH`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SourceSpec {
    /// A folder of manifests, with its subfolders.
    Folder(PathBuf),
}

/// A text that names no source.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no source; this version reads dir:PATH")]
pub struct InvalidSource(String);

impl FromStr for SourceSpec {
    type Err = InvalidSource;

    fn from_str(text: &str) -> Result<Self, InvalidSource> {
        match text.split_once(':') {
            Some(("dir", path)) if !path.is_empty() => Ok(Self::Folder(path.into())),
            _ => Err(InvalidSource(text.into())),
        }
    }
}

impl fmt::Display for SourceSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Folder(path) => write!(f, "dir:{}", path.display()),
        }
    }
}

/// Reads every source once, then keeps watching them until all receivers are gone.
pub async fn watch(sources: Vec<SourceSpec>) -> watch::Receiver<Content> {
    let _ = sources;
    watch::channel(Content::default()).1
}

/// Why a part of a source is not in force.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceError {
    /// Where it is written.
    pub location: Location,
    /// The field, such as `spec.retry.backoff.jitter`; empty if the document as a whole is wrong.
    pub field: String,
    /// What is wrong.
    pub message: String,
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

/// A place in a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Location {
    /// The file.
    pub file: Arc<std::path::Path>,
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

/// An object's namespace and name; the namespace is empty for kinds of the whole cluster.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ObjectName {
    /// The namespace.
    pub namespace: String,
    /// The name.
    pub name: String,
}

impl fmt::Display for ObjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.namespace.is_empty() {
            f.write_str(&self.name)
        } else {
            write!(f, "{}/{}", self.namespace, self.name)
        }
    }
}
