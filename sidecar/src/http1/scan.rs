//! Finds the end of a head, line by line.
//!
//! A head is parsed only once it is complete, so one that trickles in costs
//! one pass over its bytes, not one per read. The scan also settles the line
//! endings: httparse tolerates a bare line feed, and others read one as
//! part of a value.

use memchr::memchr;

use crate::http1::{BadHead, MAX_HEAD};

/// How far a head that is still arriving was looked at.
#[derive(Default, Clone, Copy, Debug)]
pub struct HeadScan {
    /// Bytes that need not be looked at again: everything up to the last line feed seen, and what
    /// followed it without another.
    seen: usize,
    /// Where the current line starts.
    line: usize,
    /// Whether a line with something on it was seen; empty ones before are skipped.
    begun: bool,
}

impl HeadScan {
    /// The length of the head at the start of `input`, empty lines before and
    /// after included, or `None` if more is needed. `input` must start with
    /// the same bytes as at the call before, unless that one found an end.
    pub(crate) fn end(&mut self, input: &[u8]) -> Result<Option<usize>, BadHead> {
        let limit = input.len().min(MAX_HEAD);
        while let Some(found) = memchr(b'\n', &input[self.seen..limit]) {
            let at = self.seen + found;
            let line = &input[self.line..at];
            if line.last() != Some(&b'\r') {
                return Err(BadHead::BareLineFeed);
            }
            self.seen = at + 1;
            self.line = self.seen;
            if line.len() > 1 {
                self.begun = true;
            } else if self.begun {
                *self = Self::default();
                return Ok(Some(at + 1));
            }
        }
        self.seen = limit;
        if limit == MAX_HEAD { Err(BadHead::TooLong) } else { Ok(None) }
    }

    /// Whether some of a head, if only an empty line, was seen.
    pub fn is_underway(self) -> bool {
        self.seen > 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_is_found_however_the_head_is_split() {
        let head = b"\r\nGET / HTTP/1.1\r\nhost: a\r\n\r\nrest";
        for split in 0..head.len() {
            let mut scan = HeadScan::default();
            let early = scan.end(&head[..split]).expect("well-formed");
            assert_eq!(early, (split >= 29).then_some(29));
            if early.is_none() {
                assert_eq!(scan.end(head), Ok(Some(29)));
            }
        }
    }

    #[test]
    fn a_bare_line_feed_is_refused_wherever_it_stands() {
        for head in ["\nGET / HTTP/1.1\r\n\r\n", "GET / HTTP/1.1\n", "GET / HTTP/1.1\r\na: b\n\r\n"] {
            assert_eq!(HeadScan::default().end(head.as_bytes()), Err(BadHead::BareLineFeed), "{head:?}");
        }
    }

    #[test]
    fn a_head_of_just_the_limit_passes_and_one_byte_more_does_not() {
        let mut head = vec![b'a'; MAX_HEAD - 4];
        head.extend_from_slice(b"\r\n\r\n");
        assert_eq!(HeadScan::default().end(&head), Ok(Some(MAX_HEAD)));
        head.insert(0, b'a');
        assert_eq!(HeadScan::default().end(&head), Err(BadHead::TooLong));
    }
}
