//! The fields after the last chunk.
//!
//! Trailers may say how a body turned out, never how the message is to be
//! read or who sent it: a receiver that merges them into the head would be
//! fooled (RFC 9110, 6.5.1).

use memchr::memchr;

use crate::http1::body::BadBody;
use crate::http1::fields::is_trace_field;
use crate::sanitize::headers::{is_forbidden_trailer, is_valid_name, is_valid_value};

/// What the start of a trailer section is.
pub(crate) enum Trailer<'a> {
    /// A line that has not ended yet.
    Incomplete,
    /// The empty line that ends the message.
    End,
    /// A field; its line, the ending included, is `length` bytes long.
    Field { length: usize, name: &'a [u8], value: &'a [u8] },
}

/// Reads the first line of `input`.
pub(crate) fn next(input: &[u8]) -> Result<Trailer<'_>, BadBody> {
    let Some(end) = memchr(b'\n', input) else { return Ok(Trailer::Incomplete) };
    let Some(line) = input[..end].strip_suffix(b"\r") else { return Err(BadBody::Trailer) };
    if line.is_empty() {
        return Ok(Trailer::End);
    }
    let colon = memchr(b':', line).ok_or(BadBody::Trailer)?;
    let (name, value) = (&line[..colon], &line[colon + 1..]);
    if !is_valid_name(name) || !is_valid_value(value) {
        return Err(BadBody::Trailer);
    }
    Ok(Trailer::Field { length: end + 1, name, value: value.trim_ascii() })
}

/// Whether a field of this name may be a trailer: nothing that frames, routes
/// or authenticates, and nothing that says whose trace it is.
pub(crate) fn is_allowed(name: &[u8]) -> bool {
    !is_forbidden_trailer(name) && !is_trace_field(name)
}
