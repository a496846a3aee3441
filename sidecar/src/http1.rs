//! HTTP/1: a codec that parses in place and writes what is forwarded in the
//! same pass, and the exchange built on it.
//!
//! The codec does no I/O and keeps no header map: a head is read from one
//! buffer and written, sanitised, into another, left open so that the caller
//! can append its own fields. It accepts only what every parser reads alike;
//! anything that two parsers could frame differently is refused, never
//! repaired. Which requests are allowed, and where they go, is decided elsewhere.

pub mod body;
mod connection;
mod exchange;
mod fields;
mod forward;
mod limits;
mod method;
mod mirror;
pub mod request;
pub mod response;
mod scan;
mod span;
mod target;
mod trailers;

#[cfg(test)]
mod differential;
#[cfg(test)]
mod smuggling;

pub(crate) use connection::serve;
pub use fields::Origin;
pub(crate) use fields::write_field;
pub use method::Method;
pub use scan::HeadScan;
pub use span::Span;

use crate::reason::Reason;
use crate::sanitize::path::BadPath;

/// Largest accepted head, and largest accepted trailer section, in bytes. Real
/// heads stay below 16 KiB; the bound is what one connection may hold in memory.
pub const MAX_HEAD: usize = 64 * 1024;

/// Most fields accepted in a head.
pub const MAX_FIELDS: usize = 128;

/// The version that a peer speaks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Version {
    /// HTTP/1.0: no chunked bodies, no interim responses, one request per
    /// connection unless asked otherwise.
    Http10,
    /// HTTP/1.1.
    Http11,
}

/// Why a head was refused. The text is for logs and error bodies; it never
/// repeats bytes of the peer.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum BadHead {
    /// Longer than [`MAX_HEAD`].
    #[error("the head is longer than {MAX_HEAD} bytes")]
    TooLong,
    /// More than [`MAX_FIELDS`] fields.
    #[error("the head has more than {MAX_FIELDS} fields")]
    TooManyFields,
    /// A line that ends without a carriage return.
    #[error("a line of the head ends in a bare line feed")]
    BareLineFeed,
    /// Not HTTP/1.0 or HTTP/1.1.
    #[error("the version is neither HTTP/1.0 nor HTTP/1.1")]
    Version,
    /// The first line is malformed.
    #[error("the start line is malformed")]
    StartLine,
    /// A field is malformed: its name, its value, or the space between.
    #[error("a header field is malformed")]
    Field,
    /// The target does not fit the method or is malformed.
    #[error("the request target is malformed")]
    Target,
    /// The path cannot be normalised safely.
    #[error(transparent)]
    Path(#[from] BadPath),
    /// HTTP/1.1 without `Host`.
    #[error("the request has no Host")]
    MissingHost,
    /// More than one `Host`.
    #[error("the request has more than one Host")]
    DuplicateHost,
    /// A malformed authority.
    #[error("the authority is malformed")]
    Authority,
    /// Both framings at once.
    #[error("both Content-Length and Transfer-Encoding")]
    LengthAndEncoding,
    /// A `Content-Length` that is repeated, a list, or no number.
    #[error("the Content-Length is repeated or not a number")]
    ContentLength,
    /// Anything but exactly one `chunked`.
    #[error("the Transfer-Encoding is not exactly \"chunked\"")]
    TransferEncoding,
    /// Chunked in a message that cannot be.
    #[error("Transfer-Encoding where it is not allowed")]
    UnexpectedEncoding,
    /// `Connection` that is malformed or names a field that is no hop's business.
    #[error("the Connection field is malformed or names an end-to-end field")]
    Connection,
    /// Begun, but not ended in time.
    #[error("the head did not arrive in time")]
    TooSlow,
    /// A 101 that nobody asked for.
    #[error("the upstream switched protocols unasked")]
    UnaskedUpgrade,
}

impl BadHead {
    /// The reason that goes to the client when a request was refused.
    pub const fn reason(self) -> Reason {
        match self {
            Self::TooLong | Self::TooManyFields => Reason::HeaderTooLarge,
            _ => Reason::BadRequest,
        }
    }
}

impl From<httparse::Error> for BadHead {
    fn from(error: httparse::Error) -> Self {
        match error {
            httparse::Error::TooManyHeaders => Self::TooManyFields,
            httparse::Error::Version => Self::Version,
            httparse::Error::HeaderName | httparse::Error::HeaderValue => Self::Field,
            httparse::Error::NewLine | httparse::Error::Status | httparse::Error::Token => Self::StartLine,
        }
    }
}
