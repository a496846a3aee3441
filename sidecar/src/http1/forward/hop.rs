//! The head of a request as each of its tries needs it: at its end are the lines
//! that the next hop's sidecar alone may see.

use super::Request;
use crate::hop::HopFields;
use crate::io::WriteBuffer;
use crate::upstream::Endpoint;

/// Where a head ends. Its last lines, before the empty one, are the mesh's own, if it has any.
#[derive(Debug, Clone, Copy)]
pub(super) struct HeadEnd {
    at: usize,
    /// The length of the mesh's own lines.
    own: usize,
}

const EMPTY_LINE: usize = b"\r\n".len();

impl HeadEnd {
    /// The end of a head of this length, without lines of the mesh.
    pub(super) fn new(at: usize) -> Self {
        Self { at, own: 0 }
    }

    /// The length of the head as it is sent.
    #[inline]
    pub(super) fn at(self) -> usize {
        self.at
    }

    /// Writes `fields` to the head that `request` begins with, in the place of those of the try before.
    #[inline]
    pub(super) fn tell(&mut self, request: &mut Vec<u8>, fields: &HopFields<'_>) {
        if self.own > 0 || !fields.is_empty() {
            self.replace(request, fields);
        }
    }

    fn replace(&mut self, request: &mut Vec<u8>, fields: &HopFields<'_>) {
        let mut lines = Vec::with_capacity(96);
        fields.write_http1(&mut lines);
        let start = self.at - EMPTY_LINE - self.own;
        let length = lines.len();
        request.splice(start..start + self.own, lines);
        (self.at, self.own) = (start + length + EMPTY_LINE, length);
    }

    /// A copy of `request` without lines of the mesh.
    pub(super) fn untold(self, request: &[u8]) -> Vec<u8> {
        let end = self.at - EMPTY_LINE;
        [&request[..end - self.own], &request[end..]].concat()
    }
}

impl Request {
    /// Makes the head say what `endpoint` is to know about the try that begins.
    pub(super) fn tell(&mut self, out: &mut WriteBuffer, endpoint: &Endpoint) {
        let before = self.head_end.at();
        let fields = HopFields::new(self.routed.as_deref(), self.progress.retries, endpoint);
        self.head_end.tell(&mut out.bytes, &fields);
        // They are not at the cost of the body.
        self.sending.held = (self.sending.held - before).saturating_add(self.head_end.at());
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;
    use proptest::prelude::*;

    use super::*;

    const HEAD: &str = "GET / HTTP/1.1\r\nhost: users\r\n";

    proptest! {
        /// Whatever the tries before were told, a head has the lines of this one and nothing else.
        #[test]
        fn a_try_is_told_what_is_its_own(
            tries in prop::collection::vec((prop::option::of("[a-z/]{1,20}"), 0_u32..200), 1..6),
            body in "[a-z\r\n]{0,20}",
        ) {
            let mut request = format!("{HEAD}\r\n{body}").into_bytes();
            let mut end = HeadEnd::new(HEAD.len() + EMPTY_LINE);
            for (mark, retry) in tries {
                let mut lines = String::new();
                if let Some(mark) = &mark {
                    lines += &format!("heddle-route: {mark}\r\n");
                }
                if retry > 0 {
                    lines += &format!("heddle-attempt: {retry}\r\n");
                }
                let mark = mark.map(|mark| HeaderValue::from_str(&mark).unwrap());
                end.tell(&mut request, &HopFields::of_sidecar(mark.as_ref(), retry));
                prop_assert_eq!(request.clone(), format!("{HEAD}{lines}\r\n{body}").into_bytes());
                prop_assert_eq!(end.at(), HEAD.len() + lines.len() + EMPTY_LINE);
                prop_assert_eq!(end.untold(&request), format!("{HEAD}\r\n{body}").into_bytes());
            }
        }
    }
}
