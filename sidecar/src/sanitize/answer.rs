//! The mesh's own answers: one wording for HTTP/1, HTTP/2 and gRPC.
//!
//! Every answer names its [`Reason`] in `heddle-error`. The body is JSON for a
//! client that accepts it, one plain line otherwise; for gRPC there is none and
//! the status travels in the headers ("Trailers-Only"). `docs/errors.md` lists
//! the reasons and is rendered from the table beside this.

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderName, HeaderValue};
use http::{Response, StatusCode};

use crate::reason::{Codes, Reason};

mod reasons;

pub use reasons::meaning;

/// The header that names the reason.
pub const ERROR_HEADER: &str = "heddle-error";

/// What the mesh says instead of an application.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Answer<'a> {
    /// Why.
    pub reason: Reason,
    /// How it is coded.
    pub codes: Codes,
    /// What exactly, for a person; empty: the reason's general meaning.
    pub message: &'a str,
    /// The service it was for, `name.namespace`; empty if not known.
    pub service: &'a str,
    /// The policy that asked for it, `namespace/name`; empty if none did.
    pub policy: &'a str,
    /// The trace it belongs to; empty if there is none.
    pub trace_id: &'a str,
    /// After how many seconds to try again, if that can be said: `retry-after`, or for
    /// gRPC the pushback of its proposal A6.
    pub retry_after: Option<u32>,
    /// Further fields, their values in ASCII.
    pub fields: &'a [(&'static str, String)],
}

/// What the client understands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// One line of text.
    Plain,
    /// A JSON object.
    Json,
    /// gRPC status in the headers, no body.
    Grpc,
}

impl Form {
    /// The form for a request with these `content-type` and `accept` headers.
    ///
    /// JSON if `accept` names it, or takes anything without naming a text type
    /// as browsers do; no `accept` gets text.
    pub fn of(content_type: Option<&[u8]>, accept: Option<&[u8]>) -> Self {
        if content_type.is_some_and(is_grpc) {
            Self::Grpc
        } else if accept.is_some_and(accepts_json) {
            Self::Json
        } else {
            Self::Plain
        }
    }

    const fn content_type(self) -> &'static str {
        match self {
            Self::Plain => "text/plain; charset=utf-8",
            Self::Json => "application/json",
            Self::Grpc => "application/grpc",
        }
    }
}

/// What else decides how an HTTP/1 answer is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Http1 {
    /// The request was HEAD: the body stays away, its length does not.
    pub head: bool,
    /// The connection ends after this.
    pub close: bool,
}

impl<'a> Answer<'a> {
    /// An answer that says no more than its reason.
    pub const fn new(reason: Reason) -> Self {
        Self {
            reason,
            codes: reason.codes(),
            message: "",
            service: "",
            policy: "",
            trace_id: "",
            retry_after: reason.retry_after(),
            fields: &[],
        }
    }

    /// The HTTP status in this form.
    pub const fn status(&self, form: Form) -> u16 {
        match form {
            Form::Grpc => 200,
            Form::Plain | Form::Json => self.codes.http,
        }
    }

    /// Whether the status rules a body out, and the field that says its length
    /// (RFC 9110, sections 8.6, 15.3.5 and 15.4.5).
    fn is_bodiless(&self, form: Form) -> bool {
        matches!(self.status(form), 204 | 304)
    }

    /// Appends the complete answer as HTTP/1.1.
    pub fn write_http1(&self, form: Form, how: Http1, out: &mut Vec<u8>) {
        let body = self.body(form);
        let status = self.status(form);
        let phrase = StatusCode::from_u16(status).ok().and_then(|s| s.canonical_reason()).unwrap_or("");
        let mut digits = itoa::Buffer::new();
        let mut put = |parts: &[&[u8]]| parts.iter().for_each(|part| out.extend_from_slice(part));
        put(&[b"HTTP/1.1 ", digits.format(status).as_bytes(), b" ", phrase.as_bytes(), b"\r\n"]);
        put(&[ERROR_HEADER.as_bytes(), b": ", self.reason.as_str().as_bytes(), b"\r\n"]);
        put(&[b"content-type: ", form.content_type().as_bytes(), b"\r\n"]);
        if form == Form::Grpc {
            put(&[b"grpc-status: ", digits.format(self.codes.grpc).as_bytes(), b"\r\n"]);
            put(&[b"grpc-message: ", self.grpc_message().as_bytes(), b"\r\n"]);
        }
        if let Some((name, value)) = self.retry_field(form) {
            put(&[name.as_bytes(), b": ", digits.format(value).as_bytes(), b"\r\n"]);
        }
        for (name, value) in self.fields {
            put(&[name.as_bytes(), b": ", value.as_bytes(), b"\r\n"]);
        }
        if !self.is_bodiless(form) {
            put(&[b"content-length: ", digits.format(body.len()).as_bytes(), b"\r\n"]);
        }
        if how.close {
            put(&[b"connection: close\r\n"]);
        }
        put(&[b"\r\n"]);
        if !how.head {
            put(&[&body]);
        }
    }

    /// The answer for HTTP/2: a head, and the body that follows if it is not empty.
    pub fn http2(&self, form: Form) -> (Response<()>, Bytes) {
        let body = self.body(form);
        let mut response = Response::new(());
        *response.status_mut() =
            StatusCode::from_u16(self.status(form)).expect("reasons have valid statuses");
        let headers = response.headers_mut();
        headers.insert(HeaderName::from_static(ERROR_HEADER), HeaderValue::from_static(self.reason.as_str()));
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(form.content_type()));
        if form == Form::Grpc {
            headers.insert(HeaderName::from_static("grpc-status"), u16::from(self.codes.grpc).into());
            let message = HeaderValue::try_from(self.grpc_message()).expect("percent-encoded text is valid");
            headers.insert(HeaderName::from_static("grpc-message"), message);
        } else if !self.is_bodiless(form) {
            headers.insert(CONTENT_LENGTH, body.len().into());
        }
        if let Some((name, value)) = self.retry_field(form) {
            headers.insert(HeaderName::from_static(name), value.into());
        }
        for (name, value) in self.fields {
            headers.insert(HeaderName::from_static(name), HeaderValue::try_from(value).expect("it is ASCII"));
        }
        (response, body.into())
    }

    fn retry_field(&self, form: Form) -> Option<(&'static str, u64)> {
        let seconds = u64::from(self.retry_after?);
        Some(match form {
            Form::Plain | Form::Json => ("retry-after", seconds),
            Form::Grpc => ("grpc-retry-pushback-ms", seconds * 1000),
        })
    }

    fn body(&self, form: Form) -> Vec<u8> {
        let mut body = Vec::new();
        match form {
            Form::Grpc => {}
            _ if self.is_bodiless(form) || self.codes.http == 205 => {}
            Form::Plain => {
                body.extend_from_slice(self.line().as_bytes());
                body.push(b'\n');
            }
            Form::Json => self.json(&mut body),
        }
        body
    }

    fn json(&self, body: &mut Vec<u8>) {
        let mut digits = itoa::Buffer::new();
        body.extend_from_slice(b"{\"error\":{\"code\":");
        body.extend_from_slice(digits.format(self.codes.http).as_bytes());
        let members = [
            ("reason", self.reason.as_str()),
            ("message", self.text()),
            ("service", self.service),
            ("policy", self.policy),
            ("traceId", self.trace_id),
        ];
        for (name, value) in members.into_iter().filter(|(_, value)| !value.is_empty()) {
            body.extend_from_slice(b",\"");
            body.extend_from_slice(name.as_bytes());
            body.extend_from_slice(b"\":");
            serde_json::to_writer(&mut *body, value).expect("a string always serialises to memory");
        }
        body.extend_from_slice(b"}}\n");
    }

    /// All in one line: `heddle: reason: message (service users.shop, policy shop/users)`.
    fn line(&self) -> String {
        let mut line = format!("heddle: {}: {}", self.reason, self.text());
        let details = [("service", self.service), ("policy", self.policy), ("trace", self.trace_id)];
        let mut separator = " (";
        for (name, value) in details.into_iter().filter(|(_, value)| !value.is_empty()) {
            line.extend([separator, name, " ", value]);
            separator = ", ";
        }
        if separator != " (" {
            line.push(')');
        }
        // A message may quote what a peer sent: it must stay one line.
        line.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
    }

    /// The line, percent-encoded as gRPC's protocol asks ("Percent-Byte-Encoded").
    fn grpc_message(&self) -> String {
        const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
        let mut encoded = String::new();
        for byte in self.line().bytes() {
            // Spaces stay: `%x20-24 / %x26-7E` is what needs no encoding.
            if matches!(byte, b' '..=b'~') && byte != b'%' {
                encoded.push(char::from(byte));
            } else {
                let digits = [byte >> 4, byte & 15].map(|digit| char::from(DIGITS[usize::from(digit)]));
                encoded.push('%');
                encoded.extend(digits);
            }
        }
        encoded
    }

    fn text(&self) -> &'a str {
        if self.message.is_empty() { meaning(self.reason).cause } else { self.message }
    }
}

fn is_grpc(content_type: &[u8]) -> bool {
    let rest = match content_type.get(..16) {
        Some(start) if start.eq_ignore_ascii_case(b"application/grpc") => &content_type[16..],
        _ => return false,
    };
    // `application/grpc-web` is another protocol.
    matches!(rest.first(), None | Some(b'+' | b';' | b' '))
}

fn accepts_json(accept: &[u8]) -> bool {
    let (mut json, mut anything, mut text) = (None, false, false);
    for range in crate::sanitize::headers::elements(accept) {
        let mut parts = range.split(|&byte| byte == b';').map(<[u8]>::trim_ascii);
        let media = parts.next().unwrap_or_default();
        let refused = parts.any(is_zero_quality);
        let is = |name: &str| media.eq_ignore_ascii_case(name.as_bytes());
        if is("application/json") {
            json = Some(!refused);
        } else if is("application/*") || has_json_suffix(media) {
            json = json.or(Some(!refused));
        } else if is("*/*") {
            anything = !refused;
        } else if media.get(..5).is_some_and(|start| start.eq_ignore_ascii_case(b"text/")) {
            text = true;
        }
    }
    json.unwrap_or(anything && !text)
}

/// A structured syntax suffix (RFC 6839, section 3.1).
fn has_json_suffix(media: &[u8]) -> bool {
    media.last_chunk::<5>().is_some_and(|end| end.eq_ignore_ascii_case(b"+json"))
}

/// `q=0`, `q=0.0` and so on: not acceptable (RFC 9110, section 12.4.2).
fn is_zero_quality(parameter: &[u8]) -> bool {
    match parameter {
        [b'q' | b'Q', b'=', value @ ..] => value.iter().all(|byte| matches!(byte, b'0' | b'.')),
        _ => false,
    }
}

#[cfg(test)]
mod tests;
