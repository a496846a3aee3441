//! A folder of manifests, watched.
//!
//! Each file keeps its last good content until it can be read again or is
//! deleted; a folder that cannot be read keeps everything. Hidden files and
//! folders are left out, so the swap files of editors and the `..data` of
//! mounted ConfigMaps never count. The watch is only a hint to look again:
//! what changed is found by comparing, and is looked for now and then anyway.

mod changes;

use std::collections::{BTreeMap, HashSet};
use std::fs::{self, Metadata};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use tokio::sync::mpsc;

use super::document::{self, FileContent};
use super::{Location, Part, SourceError};
use changes::Changes;

/// Larger files are no manifests: etcd holds no object above 1.5 MiB.
const MAX_FILE_BYTES: u64 = 16 << 20;

/// Deeper folders are a mistake such as a source of `/`.
const MAX_DEPTH: usize = 16;

/// Reads the folder once, then keeps sending what it holds under `index` when that changes.
pub(super) async fn watch(root: PathBuf, index: usize, updates: mpsc::Sender<(usize, Part)>) -> Part {
    // Absolute, because that is how changes are reported, whatever the path was called.
    let root = std::path::absolute(&root).unwrap_or(root);
    let mut changes = Changes::watch(&root);
    let mut folder = scan(Folder::new(root), HashSet::new()).await;
    let part = folder.part();
    tokio::spawn(async move {
        loop {
            tokio::select! {
                () = updates.closed() => return,
                being_written = changes.settled() => {
                    folder = scan(folder, being_written).await;
                    changes.ensure_watched(&folder.root, folder.unreadable.is_some());
                    if folder.changed && updates.send((index, folder.part())).await.is_err() {
                        return;
                    }
                }
            }
        }
    });
    part
}

/// Looks at the files on a thread that may block.
async fn scan(mut folder: Folder, being_written: HashSet<PathBuf>) -> Folder {
    let scanned = tokio::task::spawn_blocking(move || {
        folder.scan(&being_written);
        folder
    });
    scanned.await.expect("scanning does not panic and is not cancelled")
}

struct Folder {
    root: PathBuf,
    /// By path, so that the order of objects does not depend on the file system's.
    files: BTreeMap<PathBuf, File>,
    /// Why the folder itself cannot be read.
    unreadable: Option<SourceError>,
    /// What was skipped and said so.
    announced: HashSet<String>,
    /// Whether the last scan found anything new.
    changed: bool,
}

#[derive(Default)]
struct File {
    /// What the file looked like when it was read last.
    fingerprint: Option<Fingerprint>,
    good: FileContent,
    errors: Vec<SourceError>,
}

/// Differs when a file was written or replaced.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Fingerprint {
    modified: Option<SystemTime>,
    length: u64,
    inode: u64,
}

impl From<&Metadata> for Fingerprint {
    fn from(metadata: &Metadata) -> Self {
        #[cfg(unix)]
        let inode = std::os::unix::fs::MetadataExt::ino(metadata);
        #[cfg(not(unix))]
        let inode = 0;
        Self { modified: metadata.modified().ok(), length: metadata.len(), inode }
    }
}

impl Folder {
    fn new(root: PathBuf) -> Self {
        Self { root, files: BTreeMap::new(), unreadable: None, announced: HashSet::new(), changed: false }
    }

    fn part(&self) -> Part {
        let errors = self.unreadable.iter().chain(self.files.values().flat_map(|file| &file.errors));
        Part {
            objects: self.files.values().flat_map(|file| file.good.objects.iter().cloned()).collect(),
            errors: errors.cloned().collect(),
            ..Part::default()
        }
    }

    /// Looks for what changed, leaving alone what is being written.
    fn scan(&mut self, being_written: &HashSet<PathBuf>) {
        self.changed = false;
        let mut found = Vec::new();
        if let Err((path, error)) = find(&self.root, 0, &mut found) {
            let message = format!("cannot be read: {error}");
            let location = Location { file: path.into(), line: 0, column: 0 };
            let unreadable = Some(SourceError::new(location, String::new(), message));
            self.changed = self.unreadable != unreadable;
            self.unreadable = unreadable;
            return;
        }
        self.changed |= self.unreadable.take().is_some();
        let before = self.files.len();
        let present: HashSet<&PathBuf> = found.iter().collect();
        self.files.retain(|path, _| present.contains(path));
        self.changed |= self.files.len() != before;
        for path in found {
            if being_written.contains(&path) {
                continue;
            }
            let file = self.files.entry(path.clone()).or_default();
            if file.refresh(&path) {
                self.changed = true;
                for (object, reason) in &file.good.skipped {
                    if self.announced.insert(object.clone()) {
                        tracing::info!(file = %path.display(), "{object} is skipped: {reason}");
                    }
                }
            }
        }
        if self.changed {
            let skipped = self.files.values().flat_map(|file| &file.good.skipped);
            let skipped: HashSet<&String> = skipped.map(|(object, _)| object).collect();
            self.announced.retain(|object| skipped.contains(object));
        }
    }
}

impl File {
    /// Reads the file if it is another than last time.
    fn refresh(&mut self, path: &Path) -> bool {
        // Taken before reading: a write in between shows as another fingerprint next time.
        let fingerprint = fs::metadata(path).ok().as_ref().map(Fingerprint::from);
        if fingerprint.is_some() && fingerprint == self.fingerprint {
            return false;
        }
        self.fingerprint = fingerprint;
        let name: Arc<Path> = path.into();
        let whole = |message| {
            let location = Location { file: name.clone(), line: 0, column: 0 };
            vec![SourceError::new(location, String::new(), message)]
        };
        let read = if fingerprint.is_some_and(|fingerprint| fingerprint.length > MAX_FILE_BYTES) {
            Err(whole(format!("is larger than {MAX_FILE_BYTES} bytes")))
        } else {
            match fs::read_to_string(path) {
                // Many programs empty a file before they write it.
                Ok(text) if text.trim().is_empty() && !self.good.objects.is_empty() => {
                    Err(whole("is empty; delete the file to remove its objects".into()))
                }
                Ok(text) => document::read(&name, &text),
                Err(error) => Err(whole(format!("cannot be read: {error}"))),
            }
        };
        match read {
            Ok(content) => {
                self.good = content;
                self.errors.clear();
                true
            }
            Err(errors) => {
                let changed = self.errors != errors;
                self.errors = errors;
                changed
            }
        }
    }
}

/// The manifests below `folder`, or the folder that cannot be read and why.
fn find(folder: &Path, depth: usize, found: &mut Vec<PathBuf>) -> Result<(), (PathBuf, io::Error)> {
    let fail = |error| (folder.to_owned(), error);
    if depth > MAX_DEPTH {
        return Err(fail(io::Error::other(format!("is more than {MAX_DEPTH} folders deep"))));
    }
    for entry in fs::read_dir(folder).map_err(fail)? {
        let entry = entry.map_err(fail)?;
        let path = entry.path();
        if entry.file_name().to_string_lossy().starts_with('.') {
            continue;
        }
        // Links to files are followed, links to folders are not: they could lead back.
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            match find(&path, depth + 1, found) {
                // It was deleted just now.
                Err((_, error)) if error.kind() == io::ErrorKind::NotFound => {}
                other => other?,
            }
        } else if is_manifest(&path) && path.is_file() {
            found.push(path);
        }
    }
    Ok(())
}

/// By extension; the files of `kubectl apply -k` that are no objects are none.
fn is_manifest(path: &Path) -> bool {
    let extension = path.extension().and_then(|extension| extension.to_str());
    let stem = path.file_stem().and_then(|stem| stem.to_str());
    matches!(extension, Some("yaml" | "yml" | "json")) && stem != Some("kustomization")
}

#[cfg(test)]
mod tests;
