//! What header fields mean to a hop, shared by requests and responses: which
//! end here, which decide the framing, and what `Connection` may ask for.

use httparse::Header;

use crate::http1::BadHead;
use crate::sanitize::answer::ERROR_HEADER;
use crate::sanitize::chain::{ATTEMPT_HEADER, RETRY_HEADER};
use crate::sanitize::headers::{Known, ROUTE_HEADER, elements, is_valid_name, may_be_nominated};

/// Where a head comes from: decides whether `heddle-*` fields are believed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Origin {
    /// An application or anything else that is no sidecar: mesh fields are removed.
    Outside,
    /// A sidecar whose identity was proved: mesh fields are kept.
    Mesh,
}

/// The fields that are treated specially.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Field {
    Accept,
    Connection,
    ContentLength,
    ContentType,
    Expect,
    HeddleError,
    /// [`ATTEMPT_HEADER`]: from sidecar to sidecar, and no further.
    HeddleAttempt,
    /// [`RETRY_HEADER`]: likewise.
    HeddleRetry,
    Host,
    /// Ends at this hop and says nothing that we need.
    HopByHop,
    /// Believed only from a sidecar.
    Mesh,
    /// Between sidecars; ends here.
    HeddleRoute,
    Priority,
    ProxyAuthenticate,
    ProxyAuthorization,
    Trace(TraceField),
    TransferEncoding,
    Upgrade,
    /// Passed on as it is.
    EndToEnd,
}

/// Fields that carry a trace context and are written anew by each hop.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum TraceField {
    Traceparent,
    Tracestate,
    B3,
    B3TraceId,
    B3SpanId,
    B3ParentSpanId,
    B3Sampled,
    B3Flags,
}

impl Field {
    /// The field that a name stands for. By length first: most fields of
    /// real requests need no comparison at all.
    pub(crate) fn of(name: &[u8]) -> Self {
        let is = |other: &str| name.eq_ignore_ascii_case(other.as_bytes());
        match name.len() {
            2 if is("b3") => return Self::Trace(TraceField::B3),
            6 if is("accept") => return Self::Accept,
            8 if is("priority") => return Self::Priority,
            10 if is("tracestate") => return Self::Trace(TraceField::Tracestate),
            10 if is("x-b3-flags") => return Self::Trace(TraceField::B3Flags),
            11 if is("traceparent") => return Self::Trace(TraceField::Traceparent),
            11 if is("x-b3-spanid") => return Self::Trace(TraceField::B3SpanId),
            12 if is("content-type") => return Self::ContentType,
            12 if is(ERROR_HEADER) => return Self::HeddleError,
            12 if is(RETRY_HEADER) => return Self::HeddleRetry,
            12 if is(ROUTE_HEADER) => return Self::HeddleRoute,
            12 if is("x-b3-traceid") => return Self::Trace(TraceField::B3TraceId),
            12 if is("x-b3-sampled") => return Self::Trace(TraceField::B3Sampled),
            14 if is(ATTEMPT_HEADER) => return Self::HeddleAttempt,
            // Only together with an upgrade to h2c, which is never passed on.
            14 if is("http2-settings") => return Self::HopByHop,
            17 if is("x-b3-parentspanid") => return Self::Trace(TraceField::B3ParentSpanId),
            18 if is("proxy-authenticate") => return Self::ProxyAuthenticate,
            19 if is("proxy-authorization") => return Self::ProxyAuthorization,
            _ => {}
        }
        match Known::of(name) {
            Some(Known::Connection) => Self::Connection,
            Some(Known::KeepAlive | Known::ProxyConnection | Known::Te) => Self::HopByHop,
            Some(Known::Upgrade) => Self::Upgrade,
            Some(Known::TransferEncoding) => Self::TransferEncoding,
            Some(Known::ContentLength) => Self::ContentLength,
            Some(Known::Host) => Self::Host,
            Some(Known::Expect) => Self::Expect,
            Some(Known::Mesh | Known::PeerIdentity) => Self::Mesh,
            Some(Known::Trailer) | None => Self::EndToEnd,
        }
    }
}

impl TraceField {
    /// Its name.
    pub(crate) const fn name(self) -> &'static [u8] {
        match self {
            Self::Traceparent => b"traceparent",
            Self::Tracestate => b"tracestate",
            Self::B3 => b"b3",
            Self::B3TraceId => b"x-b3-traceid",
            Self::B3SpanId => b"x-b3-spanid",
            Self::B3ParentSpanId => b"x-b3-parentspanid",
            Self::B3Sampled => b"x-b3-sampled",
            Self::B3Flags => b"x-b3-flags",
        }
    }
}

/// Whether a field belongs to a trace context.
pub(crate) fn is_trace_field(name: &[u8]) -> bool {
    matches!(Field::of(name), Field::Trace(_))
}

/// Most `Connection` lines that are looked at; more is no honest peer.
const MAX_CONNECTION_LINES: usize = 4;

/// The `Connection` fields of a head.
#[derive(Default)]
pub(crate) struct Connection<'a> {
    lines: [&'a [u8]; MAX_CONNECTION_LINES],
    count: usize,
    /// Whether an option names a field, so that fields must be compared with them.
    names_fields: bool,
    pub(crate) close: bool,
    pub(crate) keep_alive: bool,
    pub(crate) upgrade: bool,
}

impl<'a> Connection<'a> {
    /// Notes one `Connection` line.
    pub(crate) fn add(&mut self, value: &'a [u8]) -> Result<(), BadHead> {
        *self.lines.get_mut(self.count).ok_or(BadHead::Connection)? = value;
        self.count += 1;
        for option in elements(value) {
            if option.eq_ignore_ascii_case(b"close") {
                self.close = true;
            } else if option.eq_ignore_ascii_case(b"keep-alive") {
                self.keep_alive = true;
            } else if option.eq_ignore_ascii_case(b"upgrade") {
                self.upgrade = true;
            // A client could otherwise make us remove what another hop relies on.
            } else if !is_valid_name(option) || !may_be_nominated(option) {
                return Err(BadHead::Connection);
            } else {
                self.names_fields = true;
            }
        }
        Ok(())
    }

    /// Whether an option names this field, which then ends here.
    pub(crate) fn names(&self, name: &[u8]) -> bool {
        self.names_fields
            && self.lines[..self.count]
                .iter()
                .any(|line| elements(line).any(|option| option.eq_ignore_ascii_case(name)))
    }

    /// Whether the connection may be used again after this message.
    pub(crate) fn persists(&self, version_11: bool) -> bool {
        !self.close && (version_11 || self.keep_alive)
    }
}

/// The framing that the fields of a head ask for.
#[derive(Clone, Copy, Default)]
pub(crate) struct Framing {
    pub(crate) length: Option<u64>,
    pub(crate) chunked: bool,
}

impl Framing {
    /// Notes a `Content-Length`.
    pub(crate) fn add_length(&mut self, value: &[u8]) -> Result<(), BadHead> {
        // 18 digits stay below 2^63, where every parser's integers agree.
        let plausible = matches!(value.len(), 1..=18) && value.iter().all(u8::is_ascii_digit);
        if self.length.is_some() || !plausible {
            return Err(BadHead::ContentLength);
        }
        self.length = Some(value.iter().fold(0, |number, digit| number * 10 + u64::from(digit - b'0')));
        Ok(())
    }

    /// Notes a `Transfer-Encoding`.
    pub(crate) fn add_encoding(&mut self, value: &[u8]) -> Result<(), BadHead> {
        if self.chunked || !value.eq_ignore_ascii_case(b"chunked") {
            return Err(BadHead::TransferEncoding);
        }
        self.chunked = true;
        Ok(())
    }

    /// Whether at most one of them was there.
    pub(crate) fn check(self, version_11: bool) -> Result<Self, BadHead> {
        match self {
            Self { length: Some(_), chunked: true } => Err(BadHead::LengthAndEncoding),
            Self { chunked: true, .. } if !version_11 => Err(BadHead::UnexpectedEncoding),
            _ => Ok(self),
        }
    }
}

/// Whether what follows an `Upgrade` is a protocol that may become a tunnel.
/// Another version of HTTP may not: its requests would pass unseen.
pub(crate) fn is_tunnelable(upgrade: &[u8]) -> bool {
    let mut protocols = elements(upgrade).peekable();
    protocols.peek().is_some()
        && protocols.all(|protocol| {
            let starts = |with: &[u8]| {
                protocol.get(..with.len()).is_some_and(|start| start.eq_ignore_ascii_case(with))
            };
            !starts(b"h2") && !starts(b"http")
        })
}

/// Writes a field.
pub(crate) fn write_field(out: &mut Vec<u8>, name: &[u8], value: &[u8]) {
    out.extend_from_slice(name);
    out.extend_from_slice(b": ");
    out.extend_from_slice(value);
    out.extend_from_slice(b"\r\n");
}

/// Writes a field as it came.
pub(crate) fn copy_field(out: &mut Vec<u8>, field: &Header<'_>) {
    write_field(out, field.name.as_bytes(), field.value);
}
