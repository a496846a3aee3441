//! The texts that routes are made of: names of headers, expressions, paths.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::crd::Violation;
use crate::pattern::Pattern;

/// A header's name (RFC 9110, section 5.1), in lower case.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct HeaderName(String);

/// A text that is no header's name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no header's name")]
pub struct InvalidHeaderName(String);

impl HeaderName {
    /// The name in lower case.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether it belongs to the proxy: it frames the message, ends at the next
    /// hop, says whom a request is for or who asks. No route may change it.
    pub fn is_reserved(&self) -> bool {
        const RESERVED: [&str; 13] = [
            "client-cert",
            "client-cert-chain",
            "connection",
            "content-length",
            "expect",
            "host",
            "keep-alive",
            "proxy-connection",
            "te",
            "trailer",
            "transfer-encoding",
            "upgrade",
            "x-forwarded-client-cert",
        ];
        RESERVED.contains(&self.as_str()) || self.0.starts_with("heddle-")
    }
}

impl fmt::Display for HeaderName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for HeaderName {
    type Err = InvalidHeaderName;

    fn from_str(text: &str) -> Result<Self, InvalidHeaderName> {
        if text.len() <= 256 && is_token(text) {
            Ok(Self(text.to_ascii_lowercase()))
        } else {
            Err(InvalidHeaderName(text.into()))
        }
    }
}

impl Serialize for HeaderName {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for HeaderName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Cow::<str>::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

impl JsonSchema for HeaderName {
    fn schema_name() -> Cow<'static, str> {
        "HeaderName".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "pattern": "^[A-Za-z0-9!#$%&'*+.^_`|~-]{1,256}$" })
    }
}

/// A token of RFC 9110, section 5.6.2: what names of headers and cookies are made of.
pub(in crate::crd) fn is_token(text: &str) -> bool {
    let token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    !text.is_empty() && text.bytes().all(token)
}

/// A DNS subdomain in lower case (RFC 1123), as names of sections and hosts are.
pub(in crate::crd) fn is_section_name(text: &str) -> bool {
    let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    let label = |label: &str| {
        label.bytes().all(inner) && !label.is_empty() && !label.starts_with('-') && !label.ends_with('-')
    };
    text.len() <= 253 && text.split('.').all(label)
}

/// The same as [`header_value`], as far as the CRD schemas can say it.
pub(in crate::crd) const HEADER_VALUE: &str =
    r"^[^\x00-\x20\x7f]([^\x00-\x08\x0a-\x1f\x7f]*[^\x00-\x20\x7f])?$";

/// What a header's value may be (RFC 9110, section 5.5) and the CRDs allow.
pub(in crate::crd) fn header_value(path: &str, value: &str, violations: &mut Vec<Violation>) {
    let visible = |byte: u8| byte == b'\t' || !byte.is_ascii_control();
    if value.is_empty() || value.len() > 4096 {
        violations.push(Violation::new(path, "has to have between 1 and 4096 characters"));
    } else if !value.bytes().all(visible) || value.trim() != value {
        violations.push(Violation::new(path, format!("{value:?} cannot be a header's value")));
    }
}

/// An expression that is meant to match the whole of a text, as sidecars compile it.
pub(super) fn expression(path: &str, expression: &str, limit: usize, violations: &mut Vec<Violation>) {
    if expression.is_empty() || expression.len() > limit {
        let message = format!("has to have between 1 and {limit} characters");
        violations.push(Violation::new(path, message));
    } else if let Err(reason) = Pattern::new(expression) {
        violations.push(Violation::new(path, format!("{expression:?} is no regular expression: {reason}")));
    }
}

/// What the expressions of one route may take together in each sidecar that calls its
/// parents, in bytes: thirty-two of the largest, five hundred of those that people write.
const EXPRESSIONS_SIZE: usize = 4 << 20;

/// Judges what the expressions of a route take together.
pub(super) fn expressions<'a>(expressions: impl Iterator<Item = &'a str>, violations: &mut Vec<Violation>) {
    let sizes = expressions.filter_map(|expression| Some(Pattern::new(expression).ok()?.size()));
    let size: usize = sizes.sum();
    if size > EXPRESSIONS_SIZE {
        let message = format!(
            "has expressions that take {} KiB when they are compiled; {} KiB at most are allowed",
            size >> 10,
            EXPRESSIONS_SIZE >> 10
        );
        violations.push(Violation::new("spec.rules[*].matches", message));
    }
}

/// A path of which requests could be: what a sidecar would refuse in a request
/// can neither be matched nor be sent.
pub(in crate::crd) fn path_value(path: &str, value: &str, violations: &mut Vec<Violation>) {
    if value.len() > 1024 {
        violations.push(Violation::new(path, "is longer than 1024 characters"));
        return;
    }
    let lower = value.to_ascii_lowercase();
    let bytes = lower.as_bytes();
    let bad_escape = bytes.iter().enumerate().filter(|(_, byte)| **byte == b'%').any(|(at, _)| {
        !bytes.get(at + 1..at + 3).is_some_and(|digits| digits.iter().all(u8::is_ascii_hexdigit))
    });
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-/._~!$&'()*+,;=:@%".contains(&byte);
    let decoded = lower.replace("%2e", ".");
    let dots = |segment: &str| matches!(segment.split(';').next(), Some("." | ".."));
    let reason = if !lower.bytes().all(plain) || bad_escape {
        "has characters that have to be percent-encoded"
    } else if ["%2f", "%5c", "%00"].iter().any(|escape| lower.contains(escape)) {
        "has an encoded slash, backslash or NUL, which no request may have"
    } else if decoded.contains("//") || decoded.split('/').any(dots) {
        "is not in normal form: it has empty, '.' or '..' segments"
    } else {
        return;
    };
    violations.push(Violation::new(path, format!("{value:?} {reason}")));
}
