//! Looks into a request's head after it was sanitised.

use std::net::{IpAddr, SocketAddr};

use crate::http1::request::RequestHead;
use crate::policy::hash_key::Source;

/// A head that is complete.
pub(super) struct Lookup<'a> {
    target: &'a [u8],
    /// What follows the target, fields and all.
    rest: &'a [u8],
    client: Option<SocketAddr>,
}

impl<'a> Lookup<'a> {
    /// `out` is what the head was written to, from its beginning on.
    pub(super) fn new(head: &RequestHead, out: &'a [u8], client: Option<SocketAddr>) -> Self {
        Self { target: head.target.of(out), rest: &out[head.target.end()..], client }
    }
}

impl Source for Lookup<'_> {
    fn fields<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a [u8]> {
        // The first line is the rest of the request line.
        let lines = self.rest.split(|byte| *byte == b'\n').skip(1).map(|line| line.trim_ascii_end());
        let fields = lines.take_while(|line| !line.is_empty());
        fields.filter_map(move |line| {
            let (field, value) = line.split_at_checked(name.len())?;
            let value = value.strip_prefix(b":")?;
            field.eq_ignore_ascii_case(name.as_bytes()).then(|| value.trim_ascii())
        })
    }

    fn query(&self) -> &[u8] {
        let question = self.target.iter().position(|byte| *byte == b'?');
        question.map_or(b"", |question| &self.target[question + 1..])
    }

    fn client(&self) -> Option<IpAddr> {
        self.client.map(|client| client.ip())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http1::{HeadScan, Origin};

    #[test]
    fn fields_and_query_of_what_is_forwarded_are_found() {
        let input = b"GET /a?b=c HTTP/1.1\r\nHost: users\r\nX-User:  7 \r\nx-users: no\r\nx-user: 8\r\n\r\n";
        let mut out = Vec::new();
        let head =
            RequestHead::parse(input, &mut HeadScan::default(), Origin::Outside, &mut out).unwrap().unwrap();
        head.finish(&mut out);
        out.extend_from_slice(b"x-user: of the body\r\n\r\n");
        let lookup = Lookup::new(&head, &out, None);
        let values = |name| lookup.fields(name).collect::<Vec<_>>();
        assert_eq!(values("x-user"), [b"7", b"8"]);
        assert_eq!(values("HOST"), [b"users"]);
        assert!(values("get /a?b=c http/1.1").is_empty() && values("user").is_empty());
        assert_eq!(lookup.query(), b"b=c");
    }
}
