//! Bodies: finds where a body ends and writes it onward in the framing that
//! the receiver understands.
//!
//! Chunks keep their boundaries, so that a stream arrives in the pieces in
//! which it was sent, but each size is written anew and chunk extensions end
//! here: they are hop-by-hop, and parsers disagree about their ends. A body that is
//! delimited by the end of its connection is sent on in chunks where possible: then the
//! receiver can tell its end from an abort.

use crate::http1::MAX_HEAD;
use crate::http1::trailers::{self, Trailer};

/// Takes one body from an input to an output.
#[derive(Clone, Debug)]
pub struct Body {
    state: State,
    coding: Coding,
    /// Whether the fields after the last chunk end here.
    ends_trailers: bool,
    received: u64,
}

/// How the content is written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Coding {
    /// As it is; the receiver knows its end by length or by the connection's.
    Plain,
    /// In chunks.
    Chunked,
}

/// Why a body cannot be taken further; the connection is of no more use.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum BadBody {
    /// A size line or the end of a chunk is malformed.
    #[error("a chunk is malformed")]
    Chunk,
    /// A chunk extension longer than anyone needs.
    #[error("a chunk extension is longer than {MAX_EXTENSION} bytes")]
    ExtensionTooLong,
    /// A trailer field is malformed.
    #[error("a trailer field is malformed")]
    Trailer,
    /// The trailers are longer than a head may be.
    #[error("the trailers are longer than {MAX_HEAD} bytes")]
    TrailersTooLong,
    /// The connection ended before the body did.
    #[error("the connection ended within the body")]
    Truncated,
}

/// Extensions carry nothing that is used in the wild (signatures of some
/// object stores need 90 bytes); unbounded, one would be free work for us.
const MAX_EXTENSION: u16 = 256;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    Done,
    Length(u64),
    UntilClose,
    Size { size: u64, digits: u8 },
    Extension { size: u64, length: u16 },
    SizeLf { size: u64 },
    Data(u64),
    DataCr,
    DataLf,
    Trailers { used: usize },
}

impl Body {
    /// No body at all.
    pub const fn empty() -> Self {
        Self::new(State::Done, Coding::Plain)
    }

    /// A body of known length, written as it is.
    pub const fn of_length(length: u64) -> Self {
        Self::new(if length == 0 { State::Done } else { State::Length(length) }, Coding::Plain)
    }

    /// A body that comes in chunks.
    pub const fn chunked(coding: Coding) -> Self {
        Self::new(State::Size { size: 0, digits: 0 }, coding)
    }

    /// A body that ends with its connection.
    pub const fn until_close(coding: Coding) -> Self {
        Self::new(State::UntilClose, coding)
    }

    const fn new(state: State, coding: Coding) -> Self {
        Self { state, coding, ends_trailers: false, received: 0 }
    }

    /// The same body, its content alone written; `None` if only the end of its connection says
    /// where it ends, which might as well be an abort.
    pub(crate) fn to_plain(&self) -> Option<Self> {
        (self.state != State::UntilClose).then(|| Self { coding: Coding::Plain, ..self.clone() })
    }

    /// Whether fields may follow it.
    pub(crate) fn has_trailers(&self) -> bool {
        matches!(self.state, State::Size { .. })
    }

    /// The fields that follow it are not sent on, which any recipient may do (RFC 9110, section 6.5.1).
    pub(crate) fn end_trailers(&mut self) {
        self.ends_trailers = true;
    }

    /// Whether all of it was taken.
    pub fn is_complete(&self) -> bool {
        self.state == State::Done
    }

    /// Bytes of content that are still to come, if that is known.
    pub fn length_left(&self) -> Option<u64> {
        match self.state {
            State::Length(left) => Some(left),
            _ => None,
        }
    }

    /// Bytes of content taken so far, framing not counted.
    pub fn received(&self) -> u64 {
        self.received
    }

    /// Takes what belongs to the body from the start of `input`, appends what
    /// is sent on to `out`, and says how much was taken. What is left over
    /// belongs to the next message if the body is complete; otherwise it is part
    /// of a line and must be presented again with more behind it.
    pub fn relay(&mut self, input: &[u8], out: &mut Vec<u8>) -> Result<usize, BadBody> {
        match self.state {
            State::Done => Ok(0),
            State::Length(left) => {
                let taken = prefix(input, left);
                out.extend_from_slice(taken);
                let left = left - taken.len() as u64;
                self.state = if left == 0 { State::Done } else { State::Length(left) };
                self.received += taken.len() as u64;
                Ok(taken.len())
            }
            State::UntilClose => {
                self.received += input.len() as u64;
                match self.coding {
                    Coding::Plain => out.extend_from_slice(input),
                    // An empty chunk would be the last one.
                    Coding::Chunked if input.is_empty() => {}
                    Coding::Chunked => {
                        write_size(out, input.len() as u64);
                        out.extend_from_slice(input);
                        out.extend_from_slice(b"\r\n");
                    }
                }
                Ok(input.len())
            }
            _ => self.relay_chunks(input, out),
        }
    }

    /// The connection that the body came from has ended, cleanly.
    pub fn end_of_input(&mut self, out: &mut Vec<u8>) -> Result<(), BadBody> {
        match self.state {
            State::Done => Ok(()),
            State::UntilClose => {
                if self.coding == Coding::Chunked {
                    out.extend_from_slice(b"0\r\n\r\n");
                }
                self.state = State::Done;
                Ok(())
            }
            _ => Err(BadBody::Truncated),
        }
    }

    fn relay_chunks(&mut self, input: &[u8], out: &mut Vec<u8>) -> Result<usize, BadBody> {
        let mut at = 0;
        while let Some(&byte) = input.get(at) {
            self.state = match self.state {
                State::Data(left) => {
                    let taken = prefix(&input[at..], left);
                    out.extend_from_slice(taken);
                    at += taken.len();
                    self.received += taken.len() as u64;
                    let left = left - taken.len() as u64;
                    self.state = if left == 0 { State::DataCr } else { State::Data(left) };
                    continue;
                }
                State::Trailers { used } => match trailers::next(&input[at..])? {
                    Trailer::Incomplete => {
                        // The caller's buffer holds as much as the limit: it can always read more.
                        if used + (input.len() - at) >= MAX_HEAD {
                            return Err(BadBody::TrailersTooLong);
                        }
                        return Ok(at);
                    }
                    Trailer::End => {
                        if self.coding == Coding::Chunked {
                            out.extend_from_slice(b"\r\n");
                        }
                        self.state = State::Done;
                        return Ok(at + 2);
                    }
                    Trailer::Field { length, name, value } => {
                        if used + length > MAX_HEAD {
                            return Err(BadBody::TrailersTooLong);
                        }
                        if self.coding == Coding::Chunked && !self.ends_trailers && trailers::is_allowed(name)
                        {
                            crate::http1::fields::write_field(out, name, value);
                        }
                        at += length;
                        self.state = State::Trailers { used: used + length };
                        continue;
                    }
                },
                State::Size { size, digits } => match (byte, hex_digit(byte)) {
                    // 15 digits stay below 2^63, where every parser's integers agree.
                    (_, Some(digit)) if digits < 15 => {
                        State::Size { size: size << 4 | u64::from(digit), digits: digits + 1 }
                    }
                    (b'\r', _) if digits > 0 => State::SizeLf { size },
                    (b';', _) if digits > 0 => State::Extension { size, length: 0 },
                    _ => return Err(BadBody::Chunk),
                },
                State::Extension { size, length } => match byte {
                    b'\r' => State::SizeLf { size },
                    b'\t' | b' '..=b'~' | 0x80.. if length < MAX_EXTENSION => {
                        State::Extension { size, length: length + 1 }
                    }
                    b'\t' | b' '..=b'~' | 0x80.. => return Err(BadBody::ExtensionTooLong),
                    _ => return Err(BadBody::Chunk),
                },
                State::SizeLf { size } if byte == b'\n' => {
                    if self.coding == Coding::Chunked {
                        write_size(out, size);
                    }
                    if size == 0 { State::Trailers { used: 0 } } else { State::Data(size) }
                }
                State::DataCr if byte == b'\r' => State::DataLf,
                State::DataLf if byte == b'\n' => {
                    if self.coding == Coding::Chunked {
                        out.extend_from_slice(b"\r\n");
                    }
                    State::Size { size: 0, digits: 0 }
                }
                _ => return Err(BadBody::Chunk),
            };
            at += 1;
        }
        Ok(at)
    }
}

fn prefix(input: &[u8], most: u64) -> &[u8] {
    match usize::try_from(most) {
        Ok(most) if most < input.len() => &input[..most],
        _ => input,
    }
}

fn hex_digit(byte: u8) -> Option<u8> {
    match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        b'A'..=b'F' => Some(byte - b'A' + 10),
        _ => None,
    }
}

/// Writes a chunk's size line.
fn write_size(out: &mut Vec<u8>, size: u64) {
    let digits = (64 - size.leading_zeros()).div_ceil(4).max(1);
    for digit in (0..digits).rev() {
        out.push(b"0123456789abcdef"[(size >> (digit * 4) & 15) as usize]);
    }
    out.extend_from_slice(b"\r\n");
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Feeds `input` in pieces that end at `cuts`, as a connection would.
    fn relay_in_pieces(
        mut body: Body,
        input: &[u8],
        cuts: &[usize],
    ) -> Result<(Vec<u8>, usize, u64), BadBody> {
        let mut out = Vec::new();
        let mut taken = 0;
        for end in cuts.iter().copied().chain([input.len()]) {
            if end > taken {
                taken += body.relay(&input[taken..end], &mut out)?;
            }
        }
        if body.is_complete() { Ok((out, taken, body.received())) } else { Err(BadBody::Truncated) }
    }

    fn relay(body: Body, input: &[u8]) -> Result<(Vec<u8>, usize, u64), BadBody> {
        relay_in_pieces(body, input, &[])
    }

    #[test]
    fn a_body_of_known_length_ends_where_it_says() {
        let (out, taken, received) = relay(Body::of_length(3), b"abcNEXT").expect("complete");
        assert_eq!((out.as_slice(), taken, received), (&b"abc"[..], 3, 3));
        assert!(Body::of_length(0).is_complete());
    }

    #[test]
    fn chunks_keep_their_boundaries_and_lose_their_extensions() {
        let input = b"003;a=\"b\"\r\nabc\r\nA\r\n0123456789\r\n0\r\n\r\nNEXT";
        let (out, taken, received) = relay(Body::chunked(Coding::Chunked), input).expect("complete");
        assert_eq!(out, b"3\r\nabc\r\na\r\n0123456789\r\n0\r\n\r\n");
        assert_eq!((taken, received), (input.len() - 4, 13));
    }

    #[test]
    fn a_peer_of_http_10_gets_content_without_chunks_and_trailers() {
        let (out, ..) = relay(Body::chunked(Coding::Plain), b"3\r\nabc\r\n1\r\nd\r\n0\r\nx: y\r\n\r\n")
            .expect("complete");
        assert_eq!(out, b"abcd");
    }

    #[test]
    fn a_body_delimited_by_close_becomes_chunks_and_its_end_the_last_one() {
        let mut out = Vec::new();
        let mut body = Body::until_close(Coding::Chunked);
        assert_eq!(body.relay(b"hello, hello, hello", &mut out), Ok(19));
        assert_eq!(body.relay(b"", &mut out), Ok(0));
        assert!(!body.is_complete());
        body.end_of_input(&mut out).expect("its end is its delimiter");
        assert_eq!(out, b"13\r\nhello, hello, hello\r\n0\r\n\r\n");
        assert!(body.is_complete());
    }

    #[test]
    fn the_end_of_the_connection_within_a_body_is_never_a_clean_end() {
        for mut body in [Body::of_length(1), Body::chunked(Coding::Chunked), Body::chunked(Coding::Plain)] {
            let mut out = Vec::new();
            assert_eq!(body.end_of_input(&mut out), Err(BadBody::Truncated));
            assert_eq!(out, b"");
        }
    }

    #[test]
    fn trailers_that_could_change_the_message_are_dropped() {
        let input =
            b"0\r\nGrpc-Status: 0\r\ncontent-length: 5\r\nHEDDLE-error: reset\r\nx-sum:  abc \r\n\r\n";
        let (out, taken, _) = relay(Body::chunked(Coding::Chunked), input).expect("complete");
        assert_eq!(out, b"0\r\nGrpc-Status: 0\r\nx-sum: abc\r\n\r\n");
        assert_eq!(taken, input.len());
    }

    #[test]
    fn malformed_chunks_are_refused() {
        for (input, error) in [
            ("\r\n", BadBody::Chunk),
            ("g\r\n", BadBody::Chunk),
            ("-1\r\n", BadBody::Chunk),
            ("0x1\r\n", BadBody::Chunk),
            (" 1\r\n", BadBody::Chunk),
            ("1 \r\n", BadBody::Chunk),
            ("1\n", BadBody::Chunk),
            ("1\rX", BadBody::Chunk),
            ("1\r\naX", BadBody::Chunk),
            ("1\r\na\n", BadBody::Chunk),
            ("1\r\na\rX", BadBody::Chunk),
            ("1;a\n", BadBody::Chunk),
            ("1;a\0", BadBody::Chunk),
            ("1000000000000000\r\n", BadBody::Chunk),
            ("0\r\nx: y\n", BadBody::Trailer),
            ("0\r\n x: y\r\n", BadBody::Trailer),
            ("0\r\nx : y\r\n", BadBody::Trailer),
            ("0\r\n: y\r\n", BadBody::Trailer),
            ("0\r\nx\r\n", BadBody::Trailer),
            ("0\r\nx: \0\r\n", BadBody::Trailer),
            ("0\r\nx: a\rb\r\n", BadBody::Trailer),
        ] {
            assert_eq!(relay(Body::chunked(Coding::Chunked), input.as_bytes()), Err(error), "{input:?}");
        }
        let long = format!("1;{}\r\n", "a".repeat(300));
        assert_eq!(relay(Body::chunked(Coding::Chunked), long.as_bytes()), Err(BadBody::ExtensionTooLong));
    }

    #[test]
    fn trailers_are_bounded_in_one_line_and_in_sum() {
        let one = format!("0\r\nx: {}", "a".repeat(MAX_HEAD));
        assert_eq!(relay(Body::chunked(Coding::Chunked), one.as_bytes()), Err(BadBody::TrailersTooLong));
        let many = format!("0\r\n{}", "x: aaaaaaaaaaaa\r\n".repeat(MAX_HEAD / 16 + 1));
        assert_eq!(relay(Body::chunked(Coding::Chunked), many.as_bytes()), Err(BadBody::TrailersTooLong));
    }

    proptest! {
        /// However the bytes arrive, the same comes out.
        #[test]
        fn splits_make_no_difference(
            chunks in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..40), 0..6),
            trailers in prop::collection::vec("[a-z-]{1,8}: ?[ -~]{0,20}", 0..3),
            cuts in prop::collection::vec(0_usize..400, 0..20),
            flip in prop::option::of((0_usize..400, any::<u8>())),
        ) {
            let mut input = Vec::new();
            for chunk in &chunks {
                write_size(&mut input, chunk.len() as u64);
                input.extend_from_slice(chunk);
                input.extend_from_slice(b"\r\n");
            }
            input.extend_from_slice(b"0\r\n");
            for trailer in &trailers {
                input.extend_from_slice(trailer.as_bytes());
                input.extend_from_slice(b"\r\n");
            }
            input.extend_from_slice(b"\r\n");
            if let Some((at, with)) = flip {
                let length = input.len();
                input[at % length] = with;
            }
            let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut % (input.len() + 1)).collect();
            cuts.sort_unstable();
            for coding in [Coding::Chunked, Coding::Plain] {
                let whole = relay(Body::chunked(coding), &input);
                prop_assert_eq!(&whole, &relay_in_pieces(Body::chunked(coding), &input, &cuts));
                if flip.is_none() {
                    let (out, taken, received) = whole.expect("well-formed");
                    prop_assert_eq!(taken, input.len());
                    prop_assert_eq!(received, chunks.iter().map(Vec::len).sum::<usize>() as u64);
                    if coding == Coding::Plain {
                        prop_assert_eq!(out, chunks.concat());
                    }
                }
            }
        }
    }
}
