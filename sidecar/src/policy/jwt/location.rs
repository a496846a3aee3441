//! Where a request shows a token.

use std::borrow::Cow;

use http::HeaderName;

use crate::route::{Head, cookies, query_values};

/// A place where tokens are looked for.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Location {
    /// A header.
    Header {
        /// Its name.
        name: HeaderName,
        /// What comes before the token, in any case. A value without it is no token.
        prefix: Box<str>,
    },
    /// A query parameter.
    Query(Box<str>),
    /// A cookie.
    Cookie(Box<str>),
}

/// What a request shows in one place.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Shown<'h> {
    Nothing,
    Token(Cow<'h, [u8]>),
    /// Several things of which one is a token: who reads another one than we do would be deceived.
    Several,
}

impl Location {
    /// What a request shows here.
    pub(super) fn look<'h, H: Head>(&'h self, head: &'h H) -> Shown<'h> {
        match self {
            Self::Header { name, prefix } => {
                let token = |value: &'h [u8]| {
                    let (start, rest) = value.split_at_checked(prefix.len())?;
                    start.eq_ignore_ascii_case(prefix.as_bytes()).then(|| Cow::Borrowed(rest.trim_ascii()))
                };
                only(head.values(name).map(token))
            }
            Self::Query(name) => {
                let query = head.query().unwrap_or_default();
                only(query_values(query, name.as_bytes()).map(Some))
            }
            Self::Cookie(name) => {
                only(cookies(head, name.as_bytes()).map(|value| Some(Cow::Borrowed(value))))
            }
        }
    }
}

/// The one value, if it is a token and not empty.
fn only<'h>(values: impl Iterator<Item = Option<Cow<'h, [u8]>>>) -> Shown<'h> {
    let (mut shown, mut count) = (Shown::Nothing, 0);
    for value in values {
        count += 1;
        if let Some(token) = value.filter(|token| !token.is_empty()) {
            shown = Shown::Token(token);
        }
    }
    match shown {
        Shown::Token(_) if count > 1 => Shown::Several,
        shown => shown,
    }
}
