//! AdmissionReview (admission.k8s.io/v1): from the bytes of a request to those
//! of its answer.

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::Deserialize;
use serde_json::{Value, json};
use tracing::info;

use super::{mutation, validation};
use crate::injection::Injector;
use crate::metrics::Admission;

/// Which webhook is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Inject,
    Validate,
}

impl Kind {
    /// As it is counted.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Inject => "inject",
            Self::Validate => "validate",
        }
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Review {
    api_version: String,
    kind: String,
    request: Request,
}

/// By what is answered.
#[derive(Debug, Default)]
pub(super) struct Rules {
    pub(super) injector: Injector,
    /// The control plane's own namespace.
    pub(super) namespace: String,
}

/// What is asked about.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Request {
    pub(super) uid: String,
    /// `CREATE`, `UPDATE`, `DELETE` or `CONNECT`.
    #[serde(default)]
    pub(super) operation: String,
    /// Such as `status` or `ephemeralcontainers`; empty if it is about the object itself.
    #[serde(default)]
    pub(super) sub_resource: String,
    /// The object's namespace, which the object itself may not say; empty for kinds of the cluster.
    #[serde(default)]
    pub(super) namespace: String,
    /// The object as it would be.
    #[serde(default)]
    pub(super) object: Value,
    /// As it was, if it is changed.
    #[serde(default)]
    pub(super) old_object: Value,
}

/// What is answered.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Verdict {
    Allowed {
        /// JSON Patch (RFC 6902); empty: as it is.
        patch: Vec<Value>,
        /// What kubectl shows.
        warnings: Vec<String>,
    },
    /// Each reason on its own.
    Refused(Vec<String>),
}

impl Verdict {
    /// As it is, without a word.
    pub(super) const ALLOWED: Self = Self::Allowed { patch: Vec::new(), warnings: Vec::new() };
}

/// A request that is no review that we know.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unreadable {
    #[error("no AdmissionReview: {0}")]
    Json(#[from] serde_json::Error),
    #[error(
        "{kind} of {api_version} is not the AdmissionReview of admission.k8s.io/v1 that is understood here"
    )]
    Other { kind: String, api_version: String },
}

/// Longer than any name that Kubernetes takes; what is asked about was not checked yet.
const LONGEST_NAME: usize = 253;

const API_VERSION: &str = "admission.k8s.io/v1";

/// Kubernetes cuts warnings off there.
const LONGEST_WARNING: usize = 256;

/// More reasons help nobody; kubectl shows them in one line.
const MOST_REASONS: usize = 16;

/// The same for one of them, in characters: it may repeat what an object has, and is logged.
const LONGEST_REASON: usize = 512;

/// How a review is counted, and the answer to it.
pub(super) type Answered = Result<(Admission, Vec<u8>), Unreadable>;

/// Answers the review in `body`.
pub(super) fn answer(kind: Kind, body: &[u8], rules: &Rules) -> Answered {
    let review: Review = serde_json::from_slice(body)?;
    if (review.api_version.as_str(), review.kind.as_str()) != (API_VERSION, "AdmissionReview") {
        return Err(Unreadable::Other { kind: review.kind, api_version: review.api_version });
    }
    let request = review.request;
    let verdict = match kind {
        Kind::Inject => mutation::inject(&request, rules),
        Kind::Validate => validation::validate(&request),
    };
    let (admission, response) = match verdict {
        Verdict::Allowed { patch, warnings } => {
            let mut response = json!({"uid": request.uid, "allowed": true});
            let admission = if patch.is_empty() { Admission::Allowed } else { Admission::Patched };
            if !patch.is_empty() {
                response["patchType"] = "JSONPatch".into();
                response["patch"] = BASE64.encode(Value::from(patch).to_string()).into();
            }
            if !warnings.is_empty() {
                response["warnings"] = warnings.into_iter().map(warning).collect();
            }
            (admission, response)
        }
        Verdict::Refused(mut reasons) => {
            let more = reasons.len().saturating_sub(MOST_REASONS);
            reasons.truncate(MOST_REASONS);
            reasons.iter_mut().for_each(|reason| cut(reason, LONGEST_REASON));
            if more > 0 {
                reasons.push(format!("and {more} more"));
            }
            let message = reasons.join("; ");
            info!(
                webhook = kind.name(),
                namespace = request.namespace,
                object = name(&request.object).chars().take(LONGEST_NAME).collect::<String>(),
                message,
                "refused"
            );
            let status = json!({"code": 422, "reason": "Invalid", "message": message});
            (Admission::Refused, json!({"uid": request.uid, "allowed": false, "status": status}))
        }
    };
    let review = json!({"apiVersion": API_VERSION, "kind": "AdmissionReview", "response": response});
    Ok((admission, review.to_string().into_bytes()))
}

/// A text that fits into a warning header.
fn warning(text: String) -> String {
    let mut text = format!("heddle: {}", text.replace(['\n', '\r'], " "));
    cut(&mut text, LONGEST_WARNING);
    text
}

/// Cuts a text off after so many characters.
fn cut(text: &mut String, longest: usize) {
    if let Some((end, _)) = text.char_indices().nth(longest) {
        text.truncate(end);
    }
}

fn name(object: &Value) -> &str {
    let metadata = &object["metadata"];
    metadata["name"].as_str().or_else(|| metadata["generateName"].as_str()).unwrap_or_default()
}

#[cfg(test)]
mod tests;
