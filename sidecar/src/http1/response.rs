//! Response heads: parsed in place, written for the client in the same pass.
//!
//! What a response's framing means depends on the request it answers, and how
//! its body is sent on depends on the version of the client; the
//! [`Exchange`] says both. The head is left open: the caller appends its own
//! fields and ends it with [`ResponseHead::finish`].

use std::mem::MaybeUninit;
use std::time::SystemTime;

use http::HeaderName;
use httparse::Header;

use crate::http1::body::{Body, Coding};
use crate::http1::fields::{Connection, Field, Framing, Origin, copy_field, write_field};
use crate::http1::request::RequestHead;
use crate::http1::{BadHead, HeadScan, MAX_FIELDS, Method, Version};
use crate::policy::retry::{Advice, Failure};
use crate::reason::Reason;
use crate::route::{field_value, lines, split_line};
use crate::sanitize::chain::NO_RETRY;

/// What must be known of a request to read its response.
#[derive(Clone, Copy, Debug)]
pub struct Exchange {
    /// The request's method.
    pub method: Method,
    /// The client's version.
    pub client: Version,
    /// Whether an upgrade was offered.
    pub upgrade: bool,
    /// Whether the upstream is a sidecar, to be believed about `heddle-error`.
    pub origin: Origin,
}

impl Exchange {
    /// The exchange that a request begins.
    pub fn new(request: &RequestHead, origin: Origin) -> Self {
        Self { method: request.method, client: request.version, upgrade: request.upgrade, origin }
    }
}

/// A response, as far as the hop must know it.
#[derive(Debug)]
pub struct ResponseHead {
    /// Length of the head in the input.
    pub consumed: usize,
    /// The status code.
    pub status: u16,
    /// What it means for the exchange.
    pub role: Role,
    /// Takes the body from the input to the output.
    pub body: Body,
    /// Whether the upstream's connection may be used again after the body.
    pub keep_alive: bool,
    /// Whether only the end of the connection can tell the client the body's end.
    pub close_delimited: bool,
    /// Why the mesh answered in the application's place; only from a sidecar.
    pub mesh_error: Option<Reason>,
    /// Whether retries further on were of no use; only from a sidecar.
    pub already_retried: bool,
    client: Version,
}

/// What a response that failed so, of which the head begins `written`, says about another try.
pub(super) fn advice(failure: Failure, written: &[u8]) -> Advice {
    let (_, fields) = split_line(written);
    let field =
        |name: &HeaderName| lines(fields).find_map(|line| field_value(line, name.as_str().as_bytes()));
    Advice::read(failure, field, SystemTime::now)
}

/// What a response means for the exchange.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Role {
    /// An interim response; the answer is yet to come. To a client of
    /// HTTP/1.0 nothing was written.
    Interim,
    /// The answer.
    Final,
    /// The connection becomes a tunnel behind this head.
    Tunnel,
}

impl ResponseHead {
    /// Parses the head at the start of `input` and appends what is forwarded
    /// to `out`. `None`: more input is needed. After an error `out` is as before.
    pub fn parse(
        input: &[u8],
        scan: &mut HeadScan,
        exchange: &Exchange,
        out: &mut Vec<u8>,
    ) -> Result<Option<Self>, BadHead> {
        // Nothing may stand before a status line: it would be the remains of another message.
        if !input.iter().zip(b"HTTP/1.").all(|(got, wanted)| got == wanted) {
            return Err(BadHead::StartLine);
        }
        let Some(end) = scan.end(input)? else { return Ok(None) };
        let before = out.len();
        let head = parse_complete(&input[..end], exchange, out);
        if head.is_err() {
            out.truncate(before);
        }
        head.map(Some)
    }

    /// Ends the head in `out`. `keep_alive`: whether the client's connection
    /// stays open after the response.
    pub fn finish(&self, keep_alive: bool, out: &mut Vec<u8>) {
        match (self.role, self.client) {
            (Role::Interim, Version::Http10) => return,
            (Role::Final, _) if !keep_alive || self.close_delimited => {
                out.extend_from_slice(b"connection: close\r\n");
            }
            (Role::Final, Version::Http10) => out.extend_from_slice(b"connection: keep-alive\r\n"),
            _ => {}
        }
        out.extend_from_slice(b"\r\n");
    }
}

fn parse_complete(input: &[u8], exchange: &Exchange, out: &mut Vec<u8>) -> Result<ResponseHead, BadHead> {
    let mut fields = [const { MaybeUninit::<Header<'_>>::uninit() }; MAX_FIELDS];
    let mut parsed = httparse::Response::new(&mut []);
    let config = httparse::ParserConfig::default();
    match config.parse_response_with_uninit_headers(&mut parsed, input, &mut fields)? {
        httparse::Status::Complete(consumed) if consumed == input.len() => {}
        // The scan and httparse disagree about the end; neither is to be believed.
        _ => return Err(BadHead::StartLine),
    }
    let (Some(status @ 100..), Some(minor)) = (parsed.code, parsed.version) else {
        return Err(BadHead::StartLine);
    };
    let version_11 = minor == 1;
    let role = match status {
        101 if !exchange.upgrade => return Err(BadHead::UnaskedUpgrade),
        101 => Role::Tunnel,
        100..200 => Role::Interim,
        200..300 if exchange.method == Method::Connect => Role::Tunnel,
        _ => Role::Final,
    };
    let mut head = ResponseHead {
        consumed: input.len(),
        status,
        role,
        body: Body::empty(),
        keep_alive: false,
        close_delimited: false,
        mesh_error: None,
        already_retried: false,
        client: exchange.client,
    };
    let mut connection = Connection::default();
    for field in parsed.headers.iter() {
        if field.name.len() == 10 && field.name.eq_ignore_ascii_case("connection") {
            connection.add(field.value)?;
        }
    }

    let start = out.len();
    out.reserve(input.len() + ADDED);
    out.extend_from_slice(b"HTTP/1.1 ");
    out.extend_from_slice(itoa::Buffer::new().format(status).as_bytes());
    out.push(b' ');
    out.extend_from_slice(parsed.reason.unwrap_or("").as_bytes());
    out.extend_from_slice(b"\r\n");
    let mut framing = Framing::default();
    for field in parsed.headers.iter() {
        match Field::of(field.name.as_bytes()) {
            Field::Connection | Field::HopByHop => continue,
            Field::ContentLength => {
                framing.add_length(field.value)?;
                continue;
            }
            Field::TransferEncoding => {
                framing.add_encoding(field.value)?;
                continue;
            }
            Field::Upgrade if status == 101 => {
                out.extend_from_slice(b"connection: upgrade\r\n");
                write_field(out, b"upgrade", field.value);
                continue;
            }
            // 426 names in it what the client should have asked for.
            Field::Upgrade if status != 426 => continue,
            // Meant by a proxy for its client; an upstream that says 407 is one.
            Field::ProxyAuthenticate if status != 407 => continue,
            Field::HeddleAttempt => continue,
            Field::HeddleRetry => {
                head.already_retried = exchange.origin == Origin::Mesh && field.value == NO_RETRY;
                continue;
            }
            Field::Mesh | Field::HeddleError if exchange.origin == Origin::Outside => continue,
            // It belongs to requests.
            Field::HeddleRoute => continue,
            Field::HeddleError => head.mesh_error = Reason::from_wire(field.value),
            _ => {}
        }
        if !connection.names(field.name.as_bytes()) {
            copy_field(out, field);
        }
    }
    let framing = framing.check(version_11)?;
    head.keep_alive = connection.persists(version_11);
    head.frame(framing, exchange.method, out)?;
    if role == Role::Interim && exchange.client == Version::Http10 {
        out.truncate(start);
    }
    Ok(head)
}

/// Room for what a head gains: the framing, `connection`, and the mesh's own fields.
const ADDED: usize = 128;

impl ResponseHead {
    /// Settles the body by the rules of RFC 9112, 6.3, and writes its framing for the client.
    fn frame(&mut self, framing: Framing, method: Method, out: &mut Vec<u8>) -> Result<(), BadHead> {
        let write_length = |out: &mut Vec<u8>, length: u64| {
            write_field(out, b"content-length", itoa::Buffer::new().format(length).as_bytes());
        };
        let write_chunked = |out: &mut Vec<u8>| out.extend_from_slice(b"transfer-encoding: chunked\r\n");
        match (self.role, self.status, framing) {
            // The fields of an accepted CONNECT are to be ignored.
            (Role::Tunnel, 200.., _) => {}
            // These never have content; who announces some would perhaps also send it.
            (Role::Interim | Role::Tunnel, ..) | (_, 204, _) => {
                if framing.chunked {
                    return Err(BadHead::UnexpectedEncoding);
                }
                if framing.length.is_some_and(|length| length > 0) {
                    return Err(BadHead::ContentLength);
                }
            }
            // The framing tells what the answer to a GET would have had.
            (_, status, Framing { length, chunked }) if method == Method::Head || status == 304 => {
                if let Some(length) = length {
                    write_length(out, length);
                } else if chunked && self.client == Version::Http11 {
                    write_chunked(out);
                }
            }
            (_, _, Framing { length: Some(length), .. }) => {
                write_length(out, length);
                self.body = Body::of_length(length);
            }
            (_, _, Framing { chunked, .. }) => {
                let coding = match self.client {
                    Version::Http11 => {
                        write_chunked(out);
                        Coding::Chunked
                    }
                    Version::Http10 => {
                        self.close_delimited = true;
                        Coding::Plain
                    }
                };
                if chunked {
                    self.body = Body::chunked(coding);
                } else {
                    self.body = Body::until_close(coding);
                    self.keep_alive = false;
                }
            }
        }
        Ok(())
    }
}
