//! New paths for old ones, of redirects and rewrites.

use crate::sanitize::path::{BadPath, path};

/// How a path is replaced (Gateway API, `HTTPPathModifier`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PathEdit {
    /// By this path.
    Full(Box<[u8]>),
    /// In the part that the rule's prefix match took.
    Prefix {
        /// That prefix without its final slash; empty for the root.
        prefix: Box<[u8]>,
        /// What stands in its place, without a final slash.
        replacement: Box<[u8]>,
    },
}

/// A path of the configuration that no request could have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadRoutePath {
    /// Not even its normal form is acceptable.
    #[error(transparent)]
    Path(#[from] BadPath),
    /// It has a `?`.
    #[error("the path has a query")]
    Query,
}

impl PathEdit {
    /// Replaces the whole path; an empty one is the root.
    ///
    /// # Errors
    /// If it is no path.
    pub fn full(path: &str) -> Result<Self, BadRoutePath> {
        normal(&rooted(path)).map(Self::Full)
    }

    /// Replaces a prefix; neither needs its slashes at the ends.
    ///
    /// # Errors
    /// If one is no path.
    pub fn prefix(prefix: &str, replacement: &str) -> Result<Self, BadRoutePath> {
        let open = |path: &str| -> Result<Box<[u8]>, BadRoutePath> {
            let normal = normal(&rooted(path))?;
            Ok(normal.strip_suffix(b"/").unwrap_or(&normal).into())
        };
        Ok(Self::Prefix { prefix: open(prefix)?, replacement: open(replacement)? })
    }

    /// The new path; `None` if nothing is to be replaced: the asterisk of
    /// `OPTIONS`, a tunnel, a path without the prefix.
    pub fn apply(&self, path: &[u8]) -> Option<Vec<u8>> {
        if path.first() != Some(&b'/') {
            return None;
        }
        match self {
            Self::Full(full) => Some(full.to_vec()),
            Self::Prefix { prefix, replacement } => {
                let rest = path.strip_prefix(&**prefix).filter(|rest| matches!(rest, [] | [b'/', ..]))?;
                let replaced = [replacement, rest].concat();
                Some(if replaced.is_empty() { b"/".to_vec() } else { replaced })
            }
        }
    }
}

/// The normal form of a path of the configuration, so that it is compared with
/// what requests have after they were sanitised.
///
/// # Errors
/// If no request could have it.
pub fn normal(text: &str) -> Result<Box<[u8]>, BadRoutePath> {
    if text.contains('?') {
        return Err(BadRoutePath::Query);
    }
    let mut normal = Vec::with_capacity(text.len());
    path(text.as_bytes(), &mut normal)?;
    Ok(normal.into())
}

fn rooted(path: &str) -> String {
    if path.starts_with('/') { path.to_owned() } else { format!("/{path}") }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The table of the specification at `HTTPPathModifier.replacePrefixMatch`.
    #[test]
    fn a_prefix_is_replaced_as_the_specification_lists() {
        for (path, prefix, replacement, expected) in [
            ("/foo/bar", "/foo", "/xyz", "/xyz/bar"),
            ("/foo/bar", "/foo", "/xyz/", "/xyz/bar"),
            ("/foo/bar", "/foo/", "/xyz", "/xyz/bar"),
            ("/foo/bar", "/foo/", "/xyz/", "/xyz/bar"),
            ("/foo", "/foo", "/xyz", "/xyz"),
            ("/foo/", "/foo", "/xyz", "/xyz/"),
            ("/foo/bar", "/foo", "", "/bar"),
            ("/foo/", "/foo", "", "/"),
            ("/foo", "/foo", "", "/"),
            ("/foo/", "/foo", "/", "/"),
            ("/foo", "/foo", "/", "/"),
            ("/", "/", "/xyz", "/xyz/"),
            ("/bar", "/", "/xyz", "/xyz/bar"),
            ("/foo/bar", "/foo", "xyz", "/xyz/bar"),
        ] {
            let edit = PathEdit::prefix(prefix, replacement).unwrap();
            let got = edit.apply(path.as_bytes()).map(|path| String::from_utf8(path).unwrap());
            assert_eq!(got.as_deref(), Some(expected), "{path} {prefix} {replacement}");
        }
    }

    #[test]
    fn what_is_no_path_stays() {
        let edit = PathEdit::prefix("/foo", "/xyz").unwrap();
        for path in ["*", "", "/foobar", "/other"] {
            assert_eq!(edit.apply(path.as_bytes()), None, "{path}");
        }
        assert_eq!(PathEdit::full("/a").unwrap().apply(b"*"), None);
        assert_eq!(PathEdit::full("").unwrap().apply(b"/a").as_deref(), Some(b"/".as_slice()));
    }

    #[test]
    fn configured_paths_take_the_form_that_requests_have() {
        assert_eq!(&*normal("/%7ea/../b%c3").unwrap(), b"/b%C3");
        assert_eq!(normal("/a?b"), Err(BadRoutePath::Query));
        assert_eq!(normal("a"), Err(BadRoutePath::Path(BadPath::NotAbsolute)));
        assert!(PathEdit::full("/a b").is_err() && PathEdit::prefix("/a", "/%2f").is_err());
    }

    proptest! {
        /// What a rewrite makes is a path in normal form again.
        #[test]
        fn a_rewritten_path_is_normal(
            prefix in "(/[a-c]{1,2}){0,2}/?", rest in "(/[a-c]{1,2}){0,2}/?", replacement in "(/[x-z]){0,2}/?"
        ) {
            let edit = PathEdit::prefix(&prefix, &replacement).unwrap();
            let path = normal(&rooted(&format!("{}{rest}", prefix.trim_end_matches('/')))).unwrap();
            let rewritten = String::from_utf8(edit.apply(&path).unwrap()).unwrap();
            prop_assert_eq!(&*normal(&rewritten).unwrap(), rewritten.as_bytes());
        }
    }
}
