//! What a verified token says.

use std::borrow::Cow;

use serde_json::{Map, Value};

/// The claims of a token.
#[derive(Debug, Clone, PartialEq)]
pub struct Claims(pub(super) Map<String, Value>);

impl Claims {
    /// A claim in words: a text, number or truth value as it is, a list of such with commas. `None`
    /// if there is nothing by this path, or nothing that can be said so and be read as nothing else: who may
    /// choose a name at the issuer must not become two groups by a comma in it, nor another user by a space.
    pub fn text(&self, path: &str) -> Option<Cow<'_, str>> {
        let value = self.get(path)?;
        match value {
            Value::Array(items) => {
                let item = |item| scalar(item).filter(|text| is_plain(text) && !text.contains(','));
                let texts: Option<Vec<Cow<'_, str>>> = items.iter().map(item).collect();
                texts.map(|texts| texts.join(",").into())
            }
            value => scalar(value),
        }
        .filter(|text| is_plain(text))
    }

    /// The claim by a path. A name with dots in it comes before what the dots would lead to, as in
    /// `https://example.com/role`.
    fn get(&self, path: &str) -> Option<&Value> {
        if let Some(value) = self.0.get(path) {
            return Some(value);
        }
        let (first, rest) = path.split_once('.')?;
        rest.split('.').try_fold(self.0.get(first)?, |value, part| value.as_object()?.get(part))
    }

    /// Who issued the token.
    pub fn issuer(&self) -> Option<&str> {
        self.str("iss")
    }

    pub(super) fn str(&self, name: &str) -> Option<&str> {
        self.0.get(name)?.as_str()
    }

    /// A NumericDate (RFC 7519, section 2), in whole seconds since 1970.
    ///
    /// # Errors
    /// If it is there and is none.
    pub(super) fn date(&self, name: &str) -> Result<Option<u64>, ()> {
        /// Beyond it a number of seconds is no longer exact; some two hundred million years.
        const LATEST: f64 = 9_007_199_254_740_992.0;
        match self.0.get(name) {
            None => Ok(None),
            Some(Value::Number(number)) => match (number.as_u64(), number.as_f64()) {
                (Some(seconds), _) => Ok(Some(seconds)),
                #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped before")]
                (None, Some(seconds)) => Ok(Some(seconds.clamp(0.0, LATEST) as u64)),
                (None, None) => Err(()),
            },
            Some(_) => Err(()),
        }
    }

    /// Whether the token is for one of these (RFC 7519, section 4.1.3).
    pub(super) fn is_for(&self, audiences: &[Box<str>]) -> bool {
        let named = |value: &Value| {
            value.as_str().is_some_and(|said| audiences.iter().any(|audience| **audience == *said))
        };
        match self.0.get("aud") {
            Some(Value::Array(said)) => said.iter().any(named),
            Some(said) => named(said),
            None => false,
        }
    }
}

/// Whether a field of a head holds it as it is: what is empty, or has spaces at an end, is read as something else
/// (RFC 9110, section 5.5).
fn is_plain(text: &str) -> bool {
    !text.is_empty() && text.trim_matches([' ', '\t']).len() == text.len()
}

fn scalar(value: &Value) -> Option<Cow<'_, str>> {
    match value {
        Value::String(text) => Some(text.as_str().into()),
        Value::Number(number) => Some(number.to_string().into()),
        Value::Bool(truth) => Some(if *truth { "true" } else { "false" }.into()),
        Value::Null | Value::Array(_) | Value::Object(_) => None,
    }
}
