//! Request heads: parsed in place, written sanitised in the same pass.
//!
//! What is written is always an HTTP/1.1 head in origin form (authority form
//! for `CONNECT`) with exactly one `Host` in front, without hop-by-hop fields
//! and with the framing last. It is left open: the caller appends its own fields and
//! ends it with [`RequestHead::finish`].

use std::mem::MaybeUninit;

use httparse::Header;

use crate::http1::body::{Body, Coding};
use crate::http1::fields::{
    Connection, Field, Framing, Origin, TraceField, copy_field, is_tunnelable, write_field,
};
use crate::http1::target::{Target, is_authority};
use crate::http1::{BadHead, HeadScan, MAX_FIELDS, Method, Span, Version};
use crate::policy::concurrency::Urgency;
use crate::sanitize;
use crate::sanitize::answer::Form;

/// A request, as far as the hop must know it.
#[derive(Debug)]
pub struct RequestHead {
    /// Length of the head in the input.
    pub consumed: usize,
    /// The method.
    pub method: Method,
    /// The method's token, in the output.
    pub method_token: Span,
    /// The normalised path without query, in the output. For `CONNECT` empty,
    /// for `OPTIONS *` the asterisk.
    pub path: Span,
    /// The path with its query, in the output.
    pub target: Span,
    /// The authority that routes the request, in the output; may be empty.
    pub authority: Span,
    /// The version that the client speaks.
    pub version: Version,
    /// Takes the body from the input to the output.
    pub body: Body,
    /// Whether the client lets the connection be used again.
    pub keep_alive: bool,
    /// Whether the client waits for `100 Continue` before it sends the body.
    pub expects_continue: bool,
    /// Whether an upgrade is offered to the upstream.
    pub upgrade: bool,
    /// The trace context, in the input; withheld from the output.
    pub trace: TraceFields,
    /// What a sidecar said of the rule that it fell to, in the input; withheld from the output.
    pub mark: Option<Span>,
    /// The form of an answer that the mesh makes itself.
    pub form: Form,
    /// How urgent the client says that it is.
    pub urgency: Urgency,
    /// Whether a sidecar says that it is a retry.
    pub is_retry: bool,
}

/// The fields of a trace context, in the input, in the order in which they came.
#[derive(Clone, Copy, Debug)]
pub struct TraceFields {
    fields: [(TraceField, Span); MAX_TRACE_FIELDS],
    count: usize,
}

/// W3C's two and the six of B3, once each; what is beyond is dropped.
const MAX_TRACE_FIELDS: usize = 8;

impl TraceFields {
    /// Name, in lower case, and value of each, given the input they were parsed from.
    pub fn of(self, input: &[u8]) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.fields.into_iter().take(self.count).map(|(field, value)| (field.name(), value.of(input)))
    }

    fn note(&mut self, field: TraceField, value: Span) {
        if let Some(place) = self.fields.get_mut(self.count) {
            *place = (field, value);
            self.count += 1;
        }
    }
}

impl Default for TraceFields {
    fn default() -> Self {
        Self { fields: [(TraceField::Traceparent, Span::default()); MAX_TRACE_FIELDS], count: 0 }
    }
}

impl RequestHead {
    /// Parses the head at the start of `input` and appends what is forwarded
    /// to `out`. `None`: more input is needed. After an error `out` is as before.
    pub fn parse(
        input: &[u8],
        scan: &mut HeadScan,
        origin: Origin,
        out: &mut Vec<u8>,
    ) -> Result<Option<Self>, BadHead> {
        let Some(end) = scan.end(input)? else { return Ok(None) };
        let before = out.len();
        let head = parse_complete(&input[..end], origin, out);
        if head.is_err() {
            out.truncate(before);
        }
        head.map(Some)
    }

    /// The part of the head in `out` that the method, the target and the
    /// authority lie in, to look them up in after `out` is used again.
    pub(crate) fn told(&self, out: &[u8]) -> Box<[u8]> {
        out[..self.authority.end()].into()
    }

    /// Ends the head in `out`.
    pub fn finish(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(b"\r\n");
    }
}

fn parse_complete(input: &[u8], origin: Origin, out: &mut Vec<u8>) -> Result<RequestHead, BadHead> {
    let mut fields = [const { MaybeUninit::<Header<'_>>::uninit() }; MAX_FIELDS];
    let mut parsed = httparse::Request::new(&mut []);
    match parsed.parse_with_uninit_headers(input, &mut fields)? {
        httparse::Status::Complete(consumed) if consumed == input.len() => {}
        // The scan and httparse disagree about the end; neither is to be believed.
        _ => return Err(BadHead::StartLine),
    }
    let (Some(method_token), Some(target), Some(minor)) = (parsed.method, parsed.path, parsed.version) else {
        return Err(BadHead::StartLine);
    };
    let method = Method::from_token(method_token.as_bytes());
    let version = if minor == 1 { Version::Http11 } else { Version::Http10 };
    let target = Target::parse(method, target.as_bytes())?;
    let survey = Survey::of(parsed.headers)?;
    let authority = survey.authority(target, version)?;

    out.reserve(input.len() + ADDED);
    let start = out.len();
    out.extend_from_slice(method_token.as_bytes());
    let method_token = Span::new(start, out.len());
    out.push(b' ');
    let start = out.len();
    let path = match target {
        Target::Origin { path, .. } => {
            let info = sanitize::path::path(path, out)?;
            Span::new(info.start, info.end)
        }
        Target::Asterisk { .. } => {
            out.push(b'*');
            Span::new(start, out.len())
        }
        Target::Authority(authority) => {
            out.extend_from_slice(authority);
            Span::default()
        }
    };
    let target = Span::new(start, out.len());
    out.extend_from_slice(b" HTTP/1.1\r\nhost: ");
    let start = out.len();
    out.extend_from_slice(authority);
    let authority = Span::new(start, out.len());
    out.extend_from_slice(b"\r\n");

    let mut head = RequestHead {
        consumed: input.len(),
        method,
        method_token,
        path,
        target,
        authority,
        version,
        body: Body::empty(),
        keep_alive: survey.connection.persists(version == Version::Http11),
        expects_continue: false,
        upgrade: false,
        trace: TraceFields::default(),
        form: Form::Plain,
        mark: None,
        urgency: Urgency::default(),
        is_retry: false,
    };
    let mut framing = Framing::default();
    let mut upgrade = Upgrade::None;
    let (mut content_type, mut accept) = (None, None);
    for field in parsed.headers.iter() {
        match Field::of(field.name.as_bytes()) {
            Field::Host | Field::Connection | Field::HopByHop => continue,
            Field::ContentLength => {
                framing.add_length(field.value)?;
                continue;
            }
            Field::TransferEncoding => {
                framing.add_encoding(field.value)?;
                continue;
            }
            Field::Upgrade => {
                upgrade = upgrade.and(field.value);
                continue;
            }
            Field::Trace(kind) => {
                head.trace.note(kind, Span::within(input, field.value));
                continue;
            }
            Field::HeddleAttempt => {
                head.is_retry |= origin == Origin::Mesh;
                continue;
            }
            Field::HeddleRetry => continue,
            Field::HeddleRoute => {
                if origin == Origin::Mesh {
                    head.mark = Some(Span::within(input, field.value));
                }
                continue;
            }
            Field::Mesh | Field::HeddleError if origin == Origin::Outside => continue,
            // Meant for the proxy that a client chose; for CONNECT that is the upstream.
            Field::ProxyAuthorization if method != Method::Connect => continue,
            Field::Accept => accept = Some(field.value),
            Field::ContentType => content_type = Some(field.value),
            Field::Priority => head.urgency = Urgency::of_field(field.value),
            // To a client of 1.0 no interim response may be sent, so none is asked for.
            Field::Expect if version == Version::Http10 => continue,
            Field::Expect => head.expects_continue = field.value.eq_ignore_ascii_case(b"100-continue"),
            _ => {}
        }
        if !survey.connection.names(field.name.as_bytes()) {
            copy_field(out, field);
        }
    }
    head.form = Form::of(content_type, accept);
    let framing = framing.check(version == Version::Http11)?;
    if method == Method::Connect && (framing.chunked || framing.length.is_some_and(|length| length > 0)) {
        // Content of CONNECT has no meaning; what follows it is the tunnel's.
        return Err(BadHead::UnexpectedEncoding);
    }
    if framing.chunked {
        out.extend_from_slice(b"transfer-encoding: chunked\r\n");
        head.body = Body::chunked(Coding::Chunked);
    } else if let Some(length) = framing.length {
        write_field(out, b"content-length", itoa::Buffer::new().format(length).as_bytes());
        head.body = Body::of_length(length);
    }
    // What follows an upgrade's head is either a body or the new protocol;
    // with both in play a proxy and its upstream could come to differ.
    if let Upgrade::One(value) = upgrade
        && survey.connection.upgrade
        && version == Version::Http11
        && head.body.is_complete()
        && method != Method::Connect
        && is_tunnelable(value)
    {
        head.upgrade = true;
        out.extend_from_slice(b"connection: upgrade\r\n");
        write_field(out, b"upgrade", value);
    }
    Ok(head)
}

/// Room for what a head gains: the framing, and the mesh's own fields
/// (a traceparent is 71 bytes).
const ADDED: usize = 256;

/// What must be known before the first field is written.
struct Survey<'a> {
    host: Option<&'a [u8]>,
    connection: Connection<'a>,
}

impl<'a> Survey<'a> {
    fn of(fields: &[Header<'a>]) -> Result<Self, BadHead> {
        let mut survey = Self { host: None, connection: Connection::default() };
        for field in fields {
            if field.name.len() == 4 && field.name.eq_ignore_ascii_case("host") {
                if survey.host.replace(field.value).is_some() {
                    return Err(BadHead::DuplicateHost);
                }
            } else if field.name.len() == 10 && field.name.eq_ignore_ascii_case("connection") {
                survey.connection.add(field.value)?;
            }
        }
        Ok(survey)
    }

    /// The authority that counts: the target's over the field's (RFC 9112, 3.2.2).
    fn authority(&self, target: Target<'a>, version: Version) -> Result<&'a [u8], BadHead> {
        let host = match self.host {
            Some(host) if !is_authority(host) => return Err(BadHead::Authority),
            Some(host) => host,
            None if version == Version::Http11 => return Err(BadHead::MissingHost),
            None => b"",
        };
        let authority = match target {
            Target::Authority(authority) => authority,
            Target::Origin { authority, .. } | Target::Asterisk { authority } => authority.unwrap_or(host),
        };
        if is_authority(authority) { Ok(authority) } else { Err(BadHead::Authority) }
    }
}

/// The `Upgrade` fields seen; several are not worth understanding.
#[derive(Clone, Copy)]
enum Upgrade<'a> {
    None,
    One(&'a [u8]),
    Several,
}

impl<'a> Upgrade<'a> {
    fn and(self, value: &'a [u8]) -> Self {
        match self {
            Self::None => Self::One(value),
            _ => Self::Several,
        }
    }
}
