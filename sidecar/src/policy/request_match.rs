//! Which requests a policy is about.

use http::HeaderName;

use crate::route::Head;

/// Requests of which all that is said here holds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RequestMatch {
    /// The method's token.
    pub method: Option<Box<[u8]>>,
    /// A path in normal form without its final slash, empty for the root; matched by whole elements.
    pub path_prefix: Option<Box<[u8]>>,
    /// Headers of which one value is exactly this.
    pub headers: Box<[(HeaderName, Box<[u8]>)]>,
}

impl RequestMatch {
    /// Whether it holds of a request.
    pub fn holds<H: Head>(&self, head: &H) -> bool {
        self.method.as_deref().is_none_or(|method| method == head.method())
            && self.path_prefix.as_deref().is_none_or(|prefix| {
                head.path().strip_prefix(prefix).is_some_and(|rest| matches!(rest, [] | [b'/', ..]))
            })
            && self.headers.iter().all(|(name, wanted)| head.values(name).any(|value| value == &**wanted))
    }

    /// Whether any of `matches` holds, or there are none.
    pub fn any<H: Head>(matches: &[Self], head: &H) -> bool {
        matches.is_empty() || matches.iter().any(|wanted| wanted.holds(head))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::route::Http1Head;

    proptest! {
        /// A request is matched as its description reads, element by element.
        #[test]
        fn a_match_says_what_the_rules_say(
            method in prop::option::of(prop::sample::select(vec!["GET", "PUT"])),
            prefix in prop::option::of("(/[ab]{1,2}){0,2}"),
            wanted in prop::option::of(("x-[ab]", "[yz]")),
            actual in prop::sample::select(vec!["GET", "PUT"]),
            path in "(/[ab]{1,2}){1,3}",
            fields in prop::collection::vec(("x-[ab]", "[yz]"), 0..4),
        ) {
            let lines: String = fields.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
            let text = format!("{actual} {path}?q HTTP/1.1\r\nhost: users\r\n{lines}\r\n");
            let request = RequestMatch {
                method: method.map(|method| method.as_bytes().into()),
                path_prefix: prefix.as_ref().map(|prefix| prefix.as_bytes().into()),
                headers: wanted.iter().map(|(name, value)| {
                    (HeaderName::try_from(name.as_str()).unwrap(), value.as_bytes().into())
                }).collect(),
            };
            let elements = |path: &str| path.split('/').skip(1).map(str::to_owned).collect::<Vec<_>>();
            let expected = method.is_none_or(|method| method == actual)
                && prefix.as_ref().is_none_or(|prefix| elements(&path).starts_with(&elements(prefix)))
                && wanted.as_ref().is_none_or(|wanted| fields.contains(wanted));
            prop_assert_eq!(request.holds(&Http1Head::new(text.as_bytes())), expected);
        }
    }

    #[test]
    fn no_match_at_all_stands_for_every_request() {
        let head = Http1Head::new(b"GET / HTTP/1.1\r\n\r\n");
        let other = RequestMatch { method: Some(b"PUT".as_slice().into()), ..RequestMatch::default() };
        assert!(RequestMatch::any(&[], &head));
        assert!(!RequestMatch::any(std::slice::from_ref(&other), &head));
        assert!(RequestMatch::any(&[other, RequestMatch::default()], &head));
    }
}
