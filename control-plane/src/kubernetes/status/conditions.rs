//! Conditions of objects (meta/v1 `Condition`), as their statuses say them. Pure.

use serde_json::{Value, json};

/// One condition (meta/v1 `Condition`) without its times.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Said {
    pub(crate) kind: &'static str,
    /// `True`, `False` or `Unknown`.
    pub(crate) status: &'static str,
    pub(crate) reason: &'static str,
    pub(crate) message: String,
}

/// The definitions allow eight times as many; nobody reads more.
const MAX_MESSAGE: usize = 4096;

/// A truth value as conditions write it.
pub(super) fn truth(status: bool) -> &'static str {
    if status { "True" } else { "False" }
}

/// Whether the object is accepted, and why.
pub(crate) fn accepted(status: bool, reason: &'static str, message: &str) -> Said {
    Said { kind: "Accepted", status: truth(status), reason, message: message.into() }
}

/// `said` as conditions; the time of a transition stays where the status did.
pub(crate) fn all(said: &[Said], old: &[Value], generation: i64, now: &str) -> Vec<Value> {
    let condition = |said: &Said| {
        let before = old.iter().find(|old| old["type"] == said.kind && old["status"] == said.status);
        let since = before.and_then(|before| before["lastTransitionTime"].as_str()).unwrap_or(now);
        json!({
            "type": said.kind,
            "status": said.status,
            "reason": said.reason,
            "message": shortened(&said.message),
            "observedGeneration": generation,
            "lastTransitionTime": since,
        })
    };
    said.iter().map(condition).collect()
}

fn shortened(message: &str) -> &str {
    let mut end = message.len().min(MAX_MESSAGE);
    while !message.is_char_boundary(end) {
        end -= 1;
    }
    &message[..end]
}
