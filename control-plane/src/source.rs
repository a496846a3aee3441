//! Where objects come from: folders of manifests, merged into one set.
//!
//! A source never fails once it runs: what cannot be read becomes a
//! [`SourceError`] beside the objects, and its last good content stays in
//! force. Judging policies is left to [`crate::compile`].

mod document;
mod folder;
mod object;
mod tree;

use std::collections::HashSet;
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use tokio::sync::{mpsc, watch};

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
}

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

#[cfg(test)]
impl Objects {
    /// The objects that `text` would be in a file named `file`.
    pub(crate) fn parse(file: &Path, text: &str) -> Result<Self, Vec<SourceError>> {
        let mut objects = Self::default();
        for object in document::read(&file.into(), text)?.objects {
            objects.insert(&object).map_err(|error| vec![error])?;
        }
        Ok(objects)
    }
}

/// Reads every source once, then keeps watching them until all receivers are gone.
pub async fn watch(sources: Vec<SourceSpec>) -> watch::Receiver<Content> {
    // One update per source may wait: the next scan of a source waits for its last to be taken.
    let (updates, mut received) = mpsc::channel(sources.len().max(1));
    let mut parts = Vec::with_capacity(sources.len());
    for (index, SourceSpec::Folder(path)) in sources.into_iter().enumerate() {
        parts.push(folder::watch(path, index, updates.clone()).await);
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
    receiver
}

/// What one source holds.
#[derive(Debug, Default)]
struct Part {
    objects: Vec<object::Object>,
    errors: Vec<SourceError>,
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
            "{}; what was read last stays in force",
            error.message
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
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Location {
    /// The file.
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
