//! Injection into manifests: YAML streams, as `heddle inject` reads and writes them.
//!
//! A document that injection does not change is given back byte for byte, and one that
//! is changed keeps each line that nothing changes in (`edit`). One whose text cannot be changed so is written
//! anew: its fields stay in their order and the comments above it stay, those inside it go.

mod edit;

use std::fmt;

use heddle_api::crd::Violation;
use serde_json::{Map, Value};

use super::options::PREFIX;
use super::pod::{object, text};
use super::workload::{self, template};
use super::{Candidate, INJECT, Injector, OPTION_NAMES, Outcome, Removed, remove};

/// What to do with each pod and template of a stream.
#[derive(Debug, Clone, Copy)]
pub enum Action<'a> {
    /// Add the sidecar.
    Inject(&'a Injector),
    /// Take it away.
    Remove,
}

/// A stream after an action.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Stream {
    /// All documents.
    pub text: String,
    /// What became of each object, in order.
    pub lines: Vec<Line>,
}

/// What became of an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// As kubectl names it: `deployment/web`.
    pub object: String,
    /// What was done.
    pub done: Done,
}

/// What was done with an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Done {
    /// It has a sidecar now; notes say what may surprise.
    Injected(Vec<String>),
    /// It is as it was before injection.
    Restored,
    /// It was left as it is, because of this.
    Skipped(String),
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let object = &self.object;
        match &self.done {
            Done::Injected(notes) => {
                write!(f, "{object} injected")?;
                notes.iter().try_for_each(|note| write!(f, "\n{object} note: {note}"))
            }
            Done::Restored => write!(f, "{object} restored"),
            Done::Skipped(why) => write!(f, "{object} skipped: {why}"),
        }
    }
}

/// Something in a stream that keeps the whole from being done.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {}{message}", [object, field].map(|place| if place.is_empty() { String::new() } else { format!("{place}: ") }).concat())]
pub struct Fault {
    /// The line on which the document starts, or on which it cannot be read.
    pub line: usize,
    /// As kubectl names it; empty where it cannot be read.
    pub object: String,
    /// The field, from the object's root.
    pub field: String,
    /// What is wrong.
    pub message: String,
}

/// Does `action` in every document of `input`.
///
/// # Errors
/// Everything that cannot be read or is refused. Nothing is done by half then.
pub fn act(input: &str, action: Action<'_>) -> Result<Stream, Vec<Fault>> {
    let (mut stream, mut faults) = (Stream::default(), Vec::new());
    for document in documents(input) {
        let mut work = Work { action, line: document.line, lines: &mut stream.lines, faults: &mut faults };
        match document.read() {
            Ok(Some(value)) => match work.object(&value) {
                Some(changed) => match document.change(&value, &changed) {
                    Ok(text) => stream.text += &text,
                    Err(message) => work.fault("", "", message),
                },
                None => stream.text += document.text,
            },
            Ok(None) => stream.text += document.text,
            Err((line, message)) => {
                work.line = line;
                work.fault("", "", message);
            }
        }
    }
    if faults.is_empty() { Ok(stream) } else { Err(faults) }
}

/// Puts a stream after another, as documents of their own.
pub fn join(streams: &mut String, next: &str) {
    if !streams.is_empty() {
        if !streams.ends_with('\n') {
            streams.push('\n');
        }
        if !next.lines().next().is_some_and(is_marker) {
            streams.push_str("---\n");
        }
    }
    streams.push_str(next);
}

struct Work<'a> {
    action: Action<'a>,
    line: usize,
    lines: &'a mut Vec<Line>,
    faults: &'a mut Vec<Fault>,
}

impl Work<'_> {
    fn fault(&mut self, object: &str, field: &str, message: impl Into<String>) {
        let (object, field) = (object.to_owned(), field.to_owned());
        self.faults.push(Fault { line: self.line, object, field, message: message.into() });
    }

    fn skip(&mut self, object: String, why: impl Into<String>) {
        self.lines.push(Line { object, done: Done::Skipped(why.into()) });
    }

    /// The object after the action; `None` if it stays as it is.
    fn object(&mut self, object: &Value) -> Option<Value> {
        let fields = object.as_object();
        let known = fields.and_then(|fields| Some((text(fields, "apiVersion")?, text(fields, "kind")?)));
        let Some((api_version, kind)) = known else {
            self.skip(format!("document at line {}", self.line), "it is no Kubernetes object");
            return None;
        };
        if (api_version, kind) == ("v1", "List") {
            return self.list(object);
        }
        let (name, shown) = name(object, kind);
        let Some(path) = template(api_version, kind) else {
            let why = if has_template(object) {
                format!(
                    "{kind} of {api_version} is not known to make pods; the webhook injects those that it makes"
                )
            } else {
                "it makes no pods".to_owned()
            };
            self.skip(shown, why);
            return None;
        };
        let Some(pod) = path.iter().try_fold(object, |value, field| value.get(*field)) else {
            self.fault(&shown, &path.join("."), "is needed");
            return None;
        };
        let result = match self.action {
            Action::Inject(injector) => self.inject(injector, pod, name, !path.is_empty(), object),
            Action::Remove => remove(pod).map(|removed| match removed {
                Removed::Restored(pod) => (Some(pod), Done::Restored),
                Removed::NotInjected => (None, Done::Skipped("it has no sidecar that was injected".into())),
            }),
        };
        match result {
            Ok((changed, done)) => {
                self.lines.push(Line { object: shown, done });
                let mut whole = object.clone();
                let place = path.iter().try_fold(&mut whole, |value, field| value.get_mut(*field))?;
                *place = changed?;
                Some(whole)
            }
            Err(violations) => {
                let prefix = path.join(".");
                for Violation { path, message } in violations {
                    let dot = if prefix.is_empty() || path.is_empty() { "" } else { "." };
                    self.fault(&shown, &format!("{prefix}{dot}{path}"), message);
                }
                None
            }
        }
    }

    fn list(&mut self, list: &Value) -> Option<Value> {
        let items = list["items"].as_array().map_or(&[][..], Vec::as_slice);
        let changed: Vec<_> = items.iter().map(|item| self.object(item)).collect();
        if changed.iter().all(Option::is_none) {
            return None;
        }
        let mut whole = list.clone();
        let items = items.iter().zip(changed).map(|(item, changed)| changed.unwrap_or_else(|| item.clone()));
        whole["items"] = items.collect();
        Some(whole)
    }

    fn inject(
        &self,
        injector: &Injector,
        pod: &Value,
        name: &str,
        is_template: bool,
        object: &Value,
    ) -> Result<(Option<Value>, Done), Vec<Violation>> {
        let owner = if is_template { name } else { workload::owner(pod) };
        match injector.inject(Candidate { pod, owner, wanted: true, nonce: "" })? {
            Outcome::Injected { pod, mut notes } => {
                if is_template {
                    notes.extend(misplaced(object));
                }
                Ok((Some(pod), Done::Injected(notes)))
            }
            Outcome::Skipped(skip) => Ok((None, Done::Skipped(skip.to_string()))),
        }
    }
}

/// The object's name, and how kubectl shows it.
fn name<'a>(object: &'a Value, kind: &str) -> (&'a str, String) {
    let metadata = &object["metadata"];
    let name = metadata["name"].as_str().or_else(|| metadata["generateName"].as_str()).unwrap_or_default();
    (name, format!("{}/{name}", kind.to_lowercase()))
}

/// Whether there is a template where most kinds have theirs.
fn has_template(object: &Value) -> bool {
    object["spec"]["template"]["spec"]["containers"].is_array()
}

/// Words of ours that stand on the object instead of its pods' template, where nobody reads them.
fn misplaced(object: &Value) -> Vec<String> {
    let Some(metadata) = object.as_object().and_then(|fields| self::object(fields, &["metadata"])) else {
        return Vec::new();
    };
    let keys = |texts: &str| {
        let map = self::object(metadata, &[texts]);
        map.into_iter().flat_map(Map::keys).cloned().collect::<Vec<String>>()
    };
    let ours = |key: &String| {
        key == INJECT || key.strip_prefix(PREFIX).is_some_and(|name| OPTION_NAMES.contains(&name))
    };
    let note = |key| format!("{key} counts on the pods' template only, not on the object that holds it");
    keys("labels").into_iter().chain(keys("annotations")).filter(ours).map(note).collect()
}

/// One document of a stream with everything around it, from its `---` to the next.
struct Document<'a> {
    text: &'a str,
    /// The number of its first line.
    line: usize,
}

/// The documents of a stream. No scalar can hold a line that looks like the marker (YAML 1.2,
/// section 9.1.2), so that it suffices to look at lines.
fn documents(input: &str) -> Vec<Document<'_>> {
    let (mut documents, mut start, mut start_line, mut at) = (Vec::new(), 0, 1, 0);
    for (index, line) in input.split_inclusive('\n').enumerate() {
        if is_marker(line) && at > start {
            documents.push(Document { text: &input[start..at], line: start_line });
            (start, start_line) = (at, index + 1);
        }
        at += line.len();
    }
    documents.push(Document { text: &input[start..], line: start_line });
    documents
}

fn is_marker(line: &str) -> bool {
    line.strip_prefix("---").is_some_and(|rest| rest.is_empty() || rest.starts_with([' ', '\t', '\r', '\n']))
}

/// Nothing that a document's content could start with.
fn is_blank_or_comment(line: &str) -> bool {
    let line = line.trim_start();
    line.is_empty() || line.starts_with('#')
}

/// More comment lines in a row than any licence header has.
const MAX_COMMENT_LINES: usize = 10_000;

impl Document<'_> {
    /// What it holds, if anything.
    ///
    /// # Errors
    /// The line, and what is wrong there.
    fn read(&self) -> Result<Option<Value>, (usize, String)> {
        let empty = |line: &str| {
            let line = line.strip_prefix("---").unwrap_or(line);
            is_blank_or_comment(line) || line.starts_with('%') || line.trim_end() == "..."
        };
        if self.text.trim_start_matches('\u{feff}').lines().all(empty) {
            return Ok(None);
        }
        // As kubectl reads it, by YAML 1.1: `defaultMode: 0644` is octal, `yes` is true.
        let options = serde_saphyr::options! {
            budget: serde_saphyr::budget! { max_buffered_comment_events: MAX_COMMENT_LINES },
            legacy_octal_numbers: true,
            with_snippet: false,
        };
        let value: Value = serde_saphyr::from_str_with_options(self.text, options).map_err(|error| {
            let line = error.location().map_or(1, |location| location.line());
            let message = error.to_string();
            let message = message.lines().next().unwrap_or_default();
            let line = usize::try_from(line).unwrap_or(1).max(1);
            (self.line + line - 1, message.split(" at line ").next().unwrap_or(message).to_owned())
        })?;
        Ok((!value.is_null()).then_some(value))
    }

    /// The document, which holds `before`, with `after` in its place.
    fn change(&self, before: &Value, after: &Value) -> Result<String, String> {
        // What kubectl would read has to be what was meant, whatever was made of the text, and whatever the
        // two libraries think of quoting.
        let says = |text: &str| matches!(Document { text, line: 1 }.read(), Ok(Some(read)) if read == *after);
        let edited = edit::edit(self.text, before, after).filter(|text| says(text));
        if let Some(text) = edited {
            return Ok(text);
        }
        let text = self.write(after)?;
        if says(&text) { Ok(text) } else { Err("would be read differently after it was written".into()) }
    }

    /// The document with `value` in place of its content.
    fn write(&self, value: &Value) -> Result<String, String> {
        let written = to_yaml(value)?;
        let mut text = String::new();
        for line in self.text.split_inclusive('\n') {
            match line.strip_prefix("---") {
                Some(rest) if is_marker(line) && text.is_empty() => {
                    text += if is_blank_or_comment(rest) { line } else { "---\n" };
                    if !is_blank_or_comment(rest) {
                        break;
                    }
                }
                _ if is_blank_or_comment(line) => text += line,
                _ => break,
            }
        }
        text += &written;
        if !text.ends_with('\n') {
            text.push('\n');
        }
        Ok(text)
    }
}

/// A value as YAML.
fn to_yaml(value: &Value) -> Result<String, String> {
    // Folding long lines is for prose; what is long here is for machines.
    let options = serde_saphyr::ser_options! { folded_wrap_chars: usize::MAX };
    serde_saphyr::to_string_with_options(value, options)
        .map_err(|error| format!("cannot be written as YAML: {error}"))
}
