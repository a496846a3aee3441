//! core/v1 `Secret`, for the keys that policies refer to. What it holds shows
//! neither in `Debug` nor in an error.

use std::collections::BTreeMap;
use std::fmt;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde::Deserialize;

use super::{Metadata, Violation};

/// Values by key.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Secret {
    /// Name and namespace.
    pub metadata: Metadata,
    /// In base64.
    #[serde(default)]
    data: BTreeMap<String, String>,
    /// As they are; they come before those of `data`.
    #[serde(default)]
    string_data: BTreeMap<String, String>,
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let keys: Vec<&String> = self.data.keys().chain(self.string_data.keys()).collect();
        f.debug_struct("Secret").field("metadata", &self.metadata).field("keys", &keys).finish()
    }
}

impl Secret {
    /// A value; `None`: there is no such key, or nothing behind it.
    pub fn value(&self, key: &str) -> Option<Vec<u8>> {
        let plain = self.string_data.get(key).map(|text| text.clone().into_bytes());
        plain.or_else(|| decoded(self.data.get(key)?)).filter(|value| !value.is_empty())
    }

    /// What is wrong with it.
    pub fn validate(&self) -> Vec<Violation> {
        let wrong = self.data.iter().filter(|(_, text)| decoded(text).is_none());
        wrong.map(|(key, _)| Violation::new(format!("data.{key}"), "is no base64")).collect()
    }
}

fn decoded(text: &str) -> Option<Vec<u8>> {
    // As they are written in files: over several lines.
    let text: String = text.split_ascii_whitespace().collect();
    BASE64_STANDARD.decode(text).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secret(rest: &str) -> Secret {
        serde_saphyr::from_str(&format!("{{metadata: {{name: s, namespace: shop}}, {rest}}}")).unwrap()
    }

    #[test]
    fn values_are_read_and_shown_nowhere() {
        let secret = secret("data: {a: 'aHVzaA==', empty: ''}, stringData: {b: quiet}");
        assert_eq!(secret.value("a").unwrap(), b"hush");
        assert_eq!(secret.value("b").unwrap(), b"quiet");
        assert_eq!((secret.value("c"), secret.value("empty")), (None, None));
        let shown = format!("{secret:?}");
        assert!(!shown.contains("hush") && !shown.contains("aHVza") && !shown.contains("quiet"), "{shown}");
    }

    #[test]
    fn what_is_no_base64_is_refused_without_being_told() {
        let violations = secret("data: {a: 'not base64!'}").validate();
        assert_eq!(violations, [Violation::new("data.a", "is no base64")]);
    }
}
