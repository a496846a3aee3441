//! The normal form of a request's path: what policies match is what the
//! application gets.
//!
//! RFC 3986, section 6.2.2: dot segments are resolved (above the root stays at
//! the root), unreserved characters are decoded, other percent-encodings get
//! upper-case digits, and printable characters that no URI may contain are
//! encoded. Beyond the RFC `//` becomes `/`. Refused is what servers are known
//! to read differently: encoded slash, backslash or NUL, a raw backslash,
//! controls, non-ASCII bytes, broken encodings, fragments, and dot segments
//! with parameters (`..;x`). The query is copied as it is.
//!
//! The result is a fixed point. `*`, authority-form and absolute-form targets
//! are the caller's to take apart.

use memchr::memrchr;

/// Where the parts of a normalised target are in the output buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PathInfo {
    /// Where the path starts: the buffer's length before.
    pub start: usize,
    /// Where the path ends: at the `?`, or the buffer's length after.
    pub end: usize,
}

impl PathInfo {
    /// The path in the buffer it was written to.
    pub fn path(self, out: &[u8]) -> &[u8] {
        &out[self.start..self.end]
    }
}

/// Why a target is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadPath {
    /// It does not begin with a slash.
    #[error("the path does not begin with '/'")]
    NotAbsolute,
    /// A `%` without two hexadecimal digits.
    #[error("the path has a '%' without two hexadecimal digits")]
    BadEscape,
    /// `%2F`, `%5C` or `%00`.
    #[error("the path has an encoded slash, backslash or NUL")]
    EncodedSeparator,
    /// `\`.
    #[error("the path has a backslash")]
    Backslash,
    /// A control character or a space.
    #[error("the target has a control character or a space")]
    Control,
    /// A byte above 127.
    #[error("the path has a byte that is not ASCII")]
    NotAscii,
    /// `#`.
    #[error("the target has a fragment")]
    Fragment,
    /// `/.;…` or `/..;…`, which some servers read as a dot segment.
    #[error("the path has a dot segment with parameters")]
    DotParameters,
}

/// Appends the normal form of an origin-form target to `out`. On an error `out`
/// is as before.
///
/// # Errors
/// If the target is not acceptable.
pub fn path(target: &[u8], out: &mut Vec<u8>) -> Result<PathInfo, BadPath> {
    let start = out.len();
    let result = normalise(target, out);
    if result.is_err() {
        out.truncate(start);
    }
    result
}

fn normalise(target: &[u8], out: &mut Vec<u8>) -> Result<PathInfo, BadPath> {
    if target.first() != Some(&b'/') {
        return Err(BadPath::NotAbsolute);
    }
    let start = out.len();
    // Most paths are normal already: all before `plain` is copied as it is.
    let plain = plain_prefix(target);
    let mut at = match target.get(plain) {
        None | Some(b'?') => plain,
        // The segment that needs work is done as a whole.
        Some(_) => memrchr(b'/', &target[..plain]).unwrap_or(0),
    };
    out.extend_from_slice(&target[..at]);
    while target.get(at) == Some(&b'/') {
        at = segment(target, at + 1, start, out)?;
    }
    let end = out.len();
    let query = &target[at..];
    let bad = |byte: u8| u8::from(byte <= b' ') | u8::from(byte == 0x7F) | u8::from(byte == b'#');
    if query.iter().fold(0, |any, &byte| any | bad(byte)) != 0 {
        return Err(if query.contains(&b'#') { BadPath::Fragment } else { BadPath::Control });
    }
    out.extend_from_slice(query);
    Ok(PathInfo { start, end })
}

/// How much of a target is in normal form for certain, up to its query.
fn plain_prefix(target: &[u8]) -> usize {
    // A segment that is empty or begins with a dot needs a look, too.
    let stops = |previous: u8, byte: u8| {
        let class = CLASSES[usize::from(byte)];
        class & OTHER | class & SLASH_OR_DOT & u8::from(previous == b'/')
    };
    // Eight at a time first: a branch per byte would cost more than the rest.
    let mut at = 1;
    while let Some(group) = target[at - 1..].first_chunk::<9>()
        && (1..9).fold(0, |any, n| any | stops(group[n - 1], group[n])) == 0
    {
        at += 8;
    }
    (at..target.len()).find(|&at| stops(target[at - 1], target[at]) != 0).unwrap_or(target.len())
}

/// Appends one segment, which starts at `at` after its slash, resolved against
/// what was written from `start` on. Returns where it ended.
fn segment(target: &[u8], mut at: usize, start: usize, out: &mut Vec<u8>) -> Result<usize, BadPath> {
    let slash = out.len();
    out.push(b'/');
    loop {
        let rest = &target[at..];
        let run = rest.iter().position(|&byte| !is_plain_or_dot(byte)).unwrap_or(rest.len());
        out.extend_from_slice(&rest[..run]);
        at += run;
        match target.get(at) {
            None | Some(b'/' | b'?') => break,
            Some(b'%') => {
                escape(&target[at + 1..], out)?;
                at += 3;
            }
            Some(&byte) => {
                encode(byte, out)?;
                at += 1;
            }
        }
    }
    let last = !matches!(target.get(at), Some(b'/'));
    match &out[slash + 1..] {
        // An empty segment counts only at the end, as the final slash.
        [] if !last => out.truncate(slash),
        [b'.'] => out.truncate(slash + usize::from(last)),
        [b'.', b'.'] => {
            out.truncate(slash);
            let parent = memrchr(b'/', &out[start..]).map_or(start, |parent| start + parent);
            out.truncate(parent);
            if last {
                out.push(b'/');
            }
        }
        [b'.', b';', ..] | [b'.', b'.', b';', ..] => return Err(BadPath::DotParameters),
        _ => {}
    }
    Ok(at)
}

/// Appends what the digits after a `%` stand for.
fn escape(digits: &[u8], out: &mut Vec<u8>) -> Result<(), BadPath> {
    let &[high, low, ..] = digits else { return Err(BadPath::BadEscape) };
    let (Some(high), Some(low)) = (hex(high), hex(low)) else { return Err(BadPath::BadEscape) };
    match high << 4 | low {
        0 | b'/' | b'\\' => return Err(BadPath::EncodedSeparator),
        byte if is_unreserved(byte) => out.push(byte),
        byte => push_escape(byte, out),
    }
    Ok(())
}

/// Appends a byte that cannot stand in a path as it is.
fn encode(byte: u8, out: &mut Vec<u8>) -> Result<(), BadPath> {
    match byte {
        b'\\' => Err(BadPath::Backslash),
        b'#' => Err(BadPath::Fragment),
        0..=b' ' | 0x7F => Err(BadPath::Control),
        0x80.. => Err(BadPath::NotAscii),
        _ => {
            push_escape(byte, out);
            Ok(())
        }
    }
}

fn push_escape(byte: u8, out: &mut Vec<u8>) {
    const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
    out.extend_from_slice(&[b'%', DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 15)]]);
}

fn hex(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        b'A'..=b'F' => Some(digit - b'A' + 10),
        _ => None,
    }
}

/// Of a byte that stays, unless it follows a slash.
const SLASH_OR_DOT: u8 = 1;

/// Of a byte that needs a look: `%`, `?`, or one that may not stand in a path.
const OTHER: u8 = 2;

/// What to do about a byte; 0 for those of `pchar` (RFC 3986, section 3.3), which stay.
static CLASSES: [u8; 256] = {
    let mut classes = [OTHER; 256];
    let mut byte = 0;
    while byte < 128_u8 {
        if is_unreserved(byte) || is_delimiter(byte) {
            classes[byte as usize] = 0;
        }
        byte += 1;
    }
    classes[b'/' as usize] = SLASH_OR_DOT;
    classes[b'.' as usize] = SLASH_OR_DOT;
    classes
};

fn is_plain_or_dot(byte: u8) -> bool {
    CLASSES[usize::from(byte)] == 0 || byte == b'.'
}

const fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~')
}

/// `sub-delims`, `:` and `@`.
const fn is_delimiter(byte: u8) -> bool {
    matches!(byte, b'!' | b'$' | b'&' | b'\'' | b'(' | b')' | b'*' | b'+' | b',' | b';' | b'=' | b':' | b'@')
}

#[cfg(test)]
mod tests;
