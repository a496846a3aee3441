//! Conditions on requests.

use serde::Deserialize;

use super::text::{self, HeaderName};
use crate::crd::Violation;

/// A condition on the path (`HTTPPathMatch`).
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(from = "WirePath")]
pub enum PathMatch {
    /// This path, case-sensitive.
    Exact(String),
    /// These path elements and any that follow; a trailing slash has no meaning.
    Prefix(String),
    /// A path that the expression matches as a whole.
    Regex(String),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WirePath {
    #[serde(default)]
    r#type: PathType,
    value: Option<String>,
}

#[derive(Default, Deserialize)]
enum PathType {
    Exact,
    #[default]
    PathPrefix,
    RegularExpression,
}

impl From<WirePath> for PathMatch {
    fn from(wire: WirePath) -> Self {
        let value = wire.value.unwrap_or_else(|| "/".into());
        match wire.r#type {
            PathType::Exact => Self::Exact(value),
            PathType::PathPrefix => Self::Prefix(value),
            PathType::RegularExpression => Self::Regex(value),
        }
    }
}

impl PathMatch {
    /// The expression, if it is one.
    pub(super) fn expression(&self) -> Option<&str> {
        match self {
            Self::Exact(_) | Self::Prefix(_) => None,
            Self::Regex(expression) => Some(expression),
        }
    }

    pub(super) fn validate(&self, path: &str, violations: &mut Vec<Violation>) {
        let path = format!("{path}.value");
        match self {
            Self::Exact(value) | Self::Prefix(value) => {
                if !value.starts_with('/') {
                    violations.push(Violation::new(path, format!("{value:?} does not begin with '/'")));
                } else {
                    text::path_value(&path, value, violations);
                }
            }
            Self::Regex(expression) => text::expression(&path, expression, 1024, violations),
        }
    }
}

/// A condition on a text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TextMatch {
    /// This text, case-sensitive.
    Exact(String),
    /// A text that the expression matches as a whole.
    Regex(String),
}

#[derive(Clone, Copy, Default, Deserialize)]
pub(super) enum TextType {
    #[default]
    Exact,
    RegularExpression,
}

impl TextMatch {
    /// The expression, if it is one.
    pub(super) fn expression(&self) -> Option<&str> {
        match self {
            Self::Exact(_) => None,
            Self::Regex(expression) => Some(expression),
        }
    }

    pub(super) fn new(kind: TextType, value: String) -> Self {
        match kind {
            TextType::Exact => Self::Exact(value),
            TextType::RegularExpression => Self::Regex(value),
        }
    }
}

/// A condition on a header (`HTTPHeaderMatch`).
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(from = "WireHeader")]
pub struct HeaderMatch {
    /// Its name.
    pub name: HeaderName,
    /// What it has to be.
    pub value: TextMatch,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WireHeader {
    #[serde(default)]
    r#type: TextType,
    name: HeaderName,
    value: String,
}

impl From<WireHeader> for HeaderMatch {
    fn from(wire: WireHeader) -> Self {
        Self { name: wire.name, value: TextMatch::new(wire.r#type, wire.value) }
    }
}

impl HeaderMatch {
    pub(super) fn validate(&self, path: &str, violations: &mut Vec<Violation>) {
        let path = format!("{path}.value");
        match &self.value {
            TextMatch::Exact(value) => text::header_value(&path, value, violations),
            TextMatch::Regex(expression) => text::expression(&path, expression, 4096, violations),
        }
    }
}

/// A condition on a query parameter (`HTTPQueryParamMatch`).
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(from = "WireQuery")]
pub struct QueryMatch {
    /// Its name, case-sensitive.
    pub name: String,
    /// What its first value has to be.
    pub value: TextMatch,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WireQuery {
    #[serde(default)]
    r#type: TextType,
    name: String,
    value: String,
}

impl From<WireQuery> for QueryMatch {
    fn from(wire: WireQuery) -> Self {
        Self { name: wire.name, value: TextMatch::new(wire.r#type, wire.value) }
    }
}

impl QueryMatch {
    pub(super) fn validate(&self, path: &str, violations: &mut Vec<Violation>) {
        if self.name.len() > 256 || !text::is_token(&self.name) {
            let message = format!("{:?} is no name of a query parameter", self.name);
            violations.push(Violation::new(format!("{path}.name"), message));
        }
        let path = format!("{path}.value");
        match &self.value {
            TextMatch::Exact(value) if value.is_empty() || value.len() > 1024 => {
                violations.push(Violation::new(path, "has to have between 1 and 1024 characters"));
            }
            TextMatch::Exact(_) => {}
            TextMatch::Regex(expression) => text::expression(&path, expression, 1024, violations),
        }
    }
}

/// Judges the conditions on headers of the match at `path`. Of several on one
/// name the first counts, which is no mistake in the words of the specification.
pub(super) fn headers(path: &str, headers: &[HeaderMatch], violations: &mut Vec<Violation>) {
    super::at_most(super::MAX_ENTRIES, &format!("{path}.headers"), headers.len(), violations);
    for (index, header) in headers.iter().enumerate() {
        header.validate(&format!("{path}.headers[{index}]"), violations);
    }
}
