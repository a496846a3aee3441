//! What routing reads of a request, whichever version of HTTP it came in.
//!
//! [`Http1Head`] looks at the sanitised head that [`crate::http1::request`]
//! wrote, [`http::request::Parts`] is what HTTP/2 has. Both say the same about
//! the same request. Nothing here allocates.

use http::HeaderName;
use http::header::HOST;
use http::request::Parts;
use memchr::memchr;

/// A request's head, sanitised: the path is normal, there is one authority.
pub trait Head {
    /// The method's token.
    fn method(&self) -> &[u8];

    /// The path without its query; `*` for `OPTIONS *`, empty for `CONNECT`.
    fn path(&self) -> &[u8];

    /// What follows the first `?` of the target, as it came.
    fn query(&self) -> Option<&[u8]>;

    /// The authority that the request is for, perhaps with a port; may be empty.
    fn authority(&self) -> &[u8];

    /// The values of a header in their order. `host` is the authority.
    fn values(&self, name: &HeaderName) -> impl Iterator<Item = &[u8]>;

    /// The first value of a header.
    fn first(&self, name: &HeaderName) -> Option<&[u8]> {
        self.values(name).next()
    }
}

/// An HTTP/1 request's head as it is forwarded:
/// `METHOD target HTTP/1.1`, `host` and the other fields, each with its CRLF.
/// Whether the empty line at the end is there already makes no difference.
#[derive(Debug, Clone, Copy)]
pub struct Http1Head<'a> {
    method: &'a [u8],
    target: &'a [u8],
    fields: &'a [u8],
}

impl<'a> Http1Head<'a> {
    /// Reads the first line of what [`crate::http1::request::RequestHead`] wrote.
    pub fn new(bytes: &'a [u8]) -> Self {
        let (line, fields) = split_line(bytes);
        let (method, rest) = split_at_byte(line, b' ');
        let (target, _version) = split_at_byte(rest, b' ');
        Self { method, target, fields }
    }

    fn has_path(&self) -> bool {
        matches!(self.target, [b'/', ..] | b"*")
    }
}

impl Head for Http1Head<'_> {
    fn method(&self) -> &[u8] {
        self.method
    }

    fn path(&self) -> &[u8] {
        if self.has_path() { split_at_byte(self.target, b'?').0 } else { b"" }
    }

    fn query(&self) -> Option<&[u8]> {
        let mark = memchr(b'?', self.target).filter(|_| self.has_path())?;
        self.target.get(mark + 1..)
    }

    fn authority(&self) -> &[u8] {
        self.first(&HOST).unwrap_or_default()
    }

    fn values(&self, name: &HeaderName) -> impl Iterator<Item = &[u8]> {
        let name = name.as_str().as_bytes();
        lines(self.fields).filter_map(move |line| field_value(line, name))
    }
}

impl Head for Parts {
    fn method(&self) -> &[u8] {
        self.method.as_str().as_bytes()
    }

    fn path(&self) -> &[u8] {
        // `Uri::path` says "/" for an authority alone.
        self.uri.path_and_query().map_or(b"", |target| target.path().as_bytes())
    }

    fn query(&self) -> Option<&[u8]> {
        self.uri.query().map(str::as_bytes)
    }

    fn authority(&self) -> &[u8] {
        self.uri.authority().map_or(b"", |authority| authority.as_str().as_bytes())
    }

    fn values(&self, name: &HeaderName) -> impl Iterator<Item = &[u8]> {
        let authority = (*name == HOST).then(|| Head::authority(self)).filter(|host| !host.is_empty());
        authority.into_iter().chain(self.headers.get_all(name).into_iter().map(|value| value.as_bytes()))
    }
}

/// The lines of a field section, up to its end or an empty line.
pub(crate) fn lines(mut fields: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        let (line, rest) = split_line(fields);
        fields = rest;
        (!line.is_empty()).then_some(line)
    })
}

/// The names and values of the fields of an HTTP/1 head.
pub(crate) fn fields(head: &[u8]) -> impl Iterator<Item = (&[u8], &[u8])> {
    lines(split_line(head).1).filter_map(|line| {
        let colon = memchr(b':', line)?;
        Some((&line[..colon], line[colon + 1..].trim_ascii()))
    })
}

/// The first line without its CRLF, and what follows it.
pub(crate) fn split_line(bytes: &[u8]) -> (&[u8], &[u8]) {
    let (line, rest) = split_at_byte(bytes, b'\n');
    (line.strip_suffix(b"\r").unwrap_or(line), rest)
}

/// The value of a line, if it is a field of this name, given in lower case.
pub(crate) fn field_value<'a>(line: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    // The colon's place rules most lines out without a comparison.
    if line.get(name.len()) != Some(&b':') || !line[..name.len()].eq_ignore_ascii_case(name) {
        return None;
    }
    Some(line[name.len() + 1..].trim_ascii())
}

/// What is before the first such byte and what is behind it.
fn split_at_byte(bytes: &[u8], byte: u8) -> (&[u8], &[u8]) {
    match memchr(byte, bytes) {
        Some(at) => (&bytes[..at], &bytes[at + 1..]),
        None => (bytes, b""),
    }
}

#[cfg(test)]
mod tests {
    use http::Request;
    use http::header::COOKIE;
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn an_http1_head_is_read_with_and_without_its_end() {
        let open =
            b"GET /a/b?x=1?2 HTTP/1.1\r\nhost: users:80\r\nCookie: a=1\r\ncookie: b=2\r\nx-empty: \r\n";
        let mut closed = open.to_vec();
        closed.extend_from_slice(b"\r\nx-body: 1\r\n");
        for bytes in [open.as_slice(), &closed] {
            let head = Http1Head::new(bytes);
            assert_eq!(head.method(), b"GET");
            assert_eq!((head.path(), head.query()), (b"/a/b".as_slice(), Some(b"x=1?2".as_slice())));
            assert_eq!(head.authority(), b"users:80");
            assert_eq!(head.values(&COOKIE).collect::<Vec<_>>(), [b"a=1", b"b=2"]);
            assert_eq!(head.first(&HeaderName::from_static("x-empty")), Some(b"".as_slice()));
            assert_eq!(head.first(&HeaderName::from_static("x-body")), None);
        }
    }

    #[test]
    fn a_tunnel_has_no_path_and_the_asterisk_is_one() {
        let head = Http1Head::new(b"CONNECT users:80 HTTP/1.1\r\nhost: users:80\r\n");
        assert_eq!((head.path(), head.query()), (b"".as_slice(), None));
        assert_eq!(Http1Head::new(b"OPTIONS * HTTP/1.1\r\nhost: users\r\n").path(), b"*");
        let (parts, ()) = Request::connect("users:80").body(()).unwrap().into_parts();
        assert_eq!(Head::path(&parts), b"");
    }

    proptest! {
        /// A request reads the same in both versions.
        #[test]
        fn both_versions_say_the_same(
            path in "(/[a-c]{0,2}){1,3}",
            query in prop::option::of("[a-c=&?]{0,6}"),
            fields in prop::collection::vec(("x-[ab]", "[a-z]{0,3}"), 0..6),
        ) {
            let target = query.as_ref().map_or_else(|| path.clone(), |query| format!("{path}?{query}"));
            let mut bytes = format!("PUT {target} HTTP/1.1\r\nhost: users.shop\r\n").into_bytes();
            let mut request = Request::put(format!("http://users.shop{target}"));
            for (name, value) in &fields {
                bytes.extend_from_slice(format!("{}: {value}\r\n", name.to_uppercase()).as_bytes());
                request = request.header(name, value);
            }
            let (two, ()) = request.body(()).unwrap().into_parts();
            let one = Http1Head::new(&bytes);
            prop_assert_eq!(Head::method(&one), Head::method(&two));
            prop_assert_eq!(one.path(), Head::path(&two));
            prop_assert_eq!(one.query(), Head::query(&two));
            prop_assert_eq!(one.authority(), Head::authority(&two));
            for name in ["x-a", "x-b", "host", "x-c"] {
                let name = HeaderName::from_static(name);
                prop_assert_eq!(one.first(&name), two.first(&name));
                prop_assert_eq!(one.values(&name).collect::<Vec<_>>(), two.values(&name).collect::<Vec<_>>());
            }
        }
    }
}
