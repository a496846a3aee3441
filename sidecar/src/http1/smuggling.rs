//! Ways to make two parsers disagree, and what becomes of each: a table told
//! in sentences. Most are published attacks on proxies. It is one file, however long, so that
//! what is not in it is seen to be missing.

use crate::http1::body::Body;
use crate::http1::request::RequestHead;
use crate::http1::response::{Exchange, ResponseHead, Role};
use crate::http1::{BadHead, HeadScan, MAX_FIELDS, Method, Origin, Version};
use crate::sanitize::answer::Form;

fn request_from(origin: Origin, input: &str) -> Result<(RequestHead, String), BadHead> {
    let mut out = b"before".to_vec();
    let parsed = RequestHead::parse(input.as_bytes(), &mut HeadScan::default(), origin, &mut out);
    if parsed.is_err() {
        assert_eq!(out, b"before", "an error leaves the output as it was");
    }
    let mut head = parsed?.expect("a whole head was given");
    head.finish(&mut out);
    let mut rest = out.split_off(6);
    let taken = head.body.relay(&input.as_bytes()[head.consumed..], &mut rest).expect("a good body");
    head.consumed += taken;
    Ok((head, String::from_utf8(rest).expect("tests are text")))
}

fn request(input: &str) -> Result<(RequestHead, String), BadHead> {
    request_from(Origin::Outside, input)
}

fn exchange(method: Method, client: Version) -> Exchange {
    Exchange { method, client, upgrade: false, origin: Origin::Outside }
}

fn response_to(exchange: Exchange, input: &str) -> Result<(ResponseHead, String), BadHead> {
    let mut out = Vec::new();
    let parsed = ResponseHead::parse(input.as_bytes(), &mut HeadScan::default(), &exchange, &mut out);
    let mut head = parsed?.expect("a whole head was given");
    head.finish(true, &mut out);
    let taken = head.body.relay(&input.as_bytes()[head.consumed..], &mut out).expect("a good body");
    head.consumed += taken;
    Ok((head, String::from_utf8(out).expect("tests are text")))
}

fn response(input: &str) -> Result<(ResponseHead, String), BadHead> {
    response_to(exchange(Method::Get, Version::Http11), input)
}

#[test]
fn what_two_parsers_could_read_differently_is_refused() {
    let cases: &[(&str, &str, BadHead)] = &[
        (
            "both framings: the front may believe one, the back the other",
            "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 3\r\ntransfer-encoding: chunked\r\n\r\n",
            BadHead::LengthAndEncoding,
        ),
        (
            "both framings in the other order",
            "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\ncontent-length: 0\r\n\r\n",
            BadHead::LengthAndEncoding,
        ),
        (
            "two lengths that differ",
            "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 3\r\ncontent-length: 4\r\n\r\n",
            BadHead::ContentLength,
        ),
        (
            "two lengths that agree, which nobody needs",
            "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 3\r\nContent-Length: 3\r\n\r\n",
            BadHead::ContentLength,
        ),
        (
            "a list of lengths",
            "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 3, 3\r\n\r\n",
            BadHead::ContentLength,
        ),
        (
            "a signed length",
            "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: +3\r\n\r\n",
            BadHead::ContentLength,
        ),
        (
            "a negative length",
            "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: -1\r\n\r\n",
            BadHead::ContentLength,
        ),
        (
            "a hexadecimal length",
            "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 0x3\r\n\r\n",
            BadHead::ContentLength,
        ),
        ("an empty length", "POST / HTTP/1.1\r\nhost: a\r\ncontent-length:\r\n\r\n", BadHead::ContentLength),
        (
            "a length beyond 63 bits that wraps in some",
            "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 18446744073709551617\r\n\r\n",
            BadHead::ContentLength,
        ),
        (
            "an encoding before chunked, which some ignore",
            "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: gzip, chunked\r\n\r\n",
            BadHead::TransferEncoding,
        ),
        (
            "chunked that is not last",
            "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked, identity\r\n\r\n",
            BadHead::TransferEncoding,
        ),
        (
            "chunked twice in one field",
            "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked, chunked\r\n\r\n",
            BadHead::TransferEncoding,
        ),
        (
            "chunked twice in two fields",
            "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n\r\n",
            BadHead::TransferEncoding,
        ),
        (
            "an encoding that only looks like chunked",
            "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: xchunked\r\n\r\n",
            BadHead::TransferEncoding,
        ),
        (
            "chunked in quotes",
            "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: \"chunked\"\r\n\r\n",
            BadHead::TransferEncoding,
        ),
        (
            "chunked with a vertical tab, which some trim",
            "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: \u{b}chunked\r\n\r\n",
            BadHead::Field,
        ),
        (
            "identity, which the standard removed",
            "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: identity\r\n\r\n",
            BadHead::TransferEncoding,
        ),
        (
            "chunked from a client of 1.0",
            "POST / HTTP/1.0\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n",
            BadHead::UnexpectedEncoding,
        ),
        (
            "space before the colon, which some strip and some keep",
            "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding : chunked\r\n\r\n",
            BadHead::Field,
        ),
        (
            "a folded line, which some join and some do not",
            "POST / HTTP/1.1\r\nhost: a\r\nx: y\r\n transfer-encoding: chunked\r\n\r\n",
            BadHead::Field,
        ),
        ("a folded first line", "GET / HTTP/1.1\r\n host: a\r\n\r\n", BadHead::Field),
        (
            "a field without a name",
            "GET / HTTP/1.1\r\nhost: a\r\n: transfer-encoding: chunked\r\n\r\n",
            BadHead::Field,
        ),
        ("a field without a colon", "GET / HTTP/1.1\r\nhost: a\r\nchunked\r\n\r\n", BadHead::Field),
        ("a NUL in a value", "GET / HTTP/1.1\r\nhost: a\r\nx: a\0b\r\n\r\n", BadHead::Field),
        ("a NUL in a name", "GET / HTTP/1.1\r\nhost: a\r\nx\0: a\r\n\r\n", BadHead::Field),
        (
            "a bare carriage return in a value",
            "GET / HTTP/1.1\r\nhost: a\r\nx: a\rcontent-length: 3\r\n\r\n",
            BadHead::Field,
        ),
        (
            "a bare line feed in a value",
            "GET / HTTP/1.1\r\nhost: a\r\nx: a\ncontent-length: 3\r\n\r\n",
            BadHead::BareLineFeed,
        ),
        (
            "a bare line feed that ends the head for some",
            "GET / HTTP/1.1\r\nhost: a\r\n\nx: y\r\n\r\n",
            BadHead::BareLineFeed,
        ),
        ("bare line feeds all through", "GET / HTTP/1.1\nhost: a\n\n", BadHead::BareLineFeed),
        ("no Host", "GET / HTTP/1.1\r\n\r\n", BadHead::MissingHost),
        ("no Host beside an absolute target", "GET http://a/ HTTP/1.1\r\n\r\n", BadHead::MissingHost),
        ("two Hosts", "GET / HTTP/1.1\r\nhost: a\r\nHost: b\r\n\r\n", BadHead::DuplicateHost),
        ("two Hosts that agree", "GET / HTTP/1.1\r\nhost: a\r\nhost: a\r\n\r\n", BadHead::DuplicateHost),
        ("two Hosts in 1.0", "GET / HTTP/1.0\r\nhost: a\r\nhost: b\r\n\r\n", BadHead::DuplicateHost),
        ("a Host with a user", "GET / HTTP/1.1\r\nhost: a@b\r\n\r\n", BadHead::Authority),
        ("a Host with a path", "GET / HTTP/1.1\r\nhost: a/b\r\n\r\n", BadHead::Authority),
        ("two Hosts in a list", "GET / HTTP/1.1\r\nhost: a, b\r\n\r\n", BadHead::Authority),
        ("a Host with a space", "GET / HTTP/1.1\r\nhost: a b\r\n\r\n", BadHead::Authority),
        ("an absolute target with a user", "GET http://u@a/ HTTP/1.1\r\nhost: a\r\n\r\n", BadHead::Authority),
        ("a target without a slash", "GET x HTTP/1.1\r\nhost: a\r\n\r\n", BadHead::Target),
        ("a target of another scheme", "GET file:///etc HTTP/1.1\r\nhost: a\r\n\r\n", BadHead::Target),
        ("CONNECT without a port", "CONNECT a HTTP/1.1\r\nhost: a\r\n\r\n", BadHead::Target),
        ("CONNECT to a path", "CONNECT / HTTP/1.1\r\nhost: a\r\n\r\n", BadHead::Target),
        (
            "CONNECT with content, which may be read as the tunnel's",
            "CONNECT a:1 HTTP/1.1\r\nhost: a\r\ncontent-length: 3\r\n\r\nabc",
            BadHead::UnexpectedEncoding,
        ),
        ("two spaces in the request line", "GET  / HTTP/1.1\r\nhost: a\r\n\r\n", BadHead::StartLine),
        ("a space in the target", "GET /a b HTTP/1.1\r\nhost: a\r\n\r\n", BadHead::Version),
        ("a tab in the request line", "GET\t/ HTTP/1.1\r\nhost: a\r\n\r\n", BadHead::StartLine),
        ("a method that is no token", "G(T / HTTP/1.1\r\nhost: a\r\n\r\n", BadHead::StartLine),
        ("HTTP/0.9", "GET /\r\n\r\n", BadHead::StartLine),
        ("version 1.2", "GET / HTTP/1.2\r\nhost: a\r\n\r\n", BadHead::Version),
        ("version 2.0", "GET / HTTP/2.0\r\nhost: a\r\n\r\n", BadHead::Version),
        ("a version in lower case", "GET / http/1.1\r\nhost: a\r\n\r\n", BadHead::Version),
        (
            "Connection that names Host",
            "GET / HTTP/1.1\r\nhost: a\r\nconnection: close, Host\r\n\r\n",
            BadHead::Connection,
        ),
        (
            "Connection that names the framing",
            "POST / HTTP/1.1\r\nhost: a\r\nconnection: content-length\r\ncontent-length: 3\r\n\r\nabc",
            BadHead::Connection,
        ),
        (
            "Connection that names the credentials",
            "GET / HTTP/1.1\r\nhost: a\r\nconnection: authorization\r\n\r\n",
            BadHead::Connection,
        ),
        (
            "Connection that names what a proxy in front vouches for",
            "GET / HTTP/1.1\r\nhost: a\r\nconnection: x-forwarded-for\r\n\r\n",
            BadHead::Connection,
        ),
        (
            "Connection that is no list of tokens",
            "GET / HTTP/1.1\r\nhost: a\r\nconnection: a b\r\n\r\n",
            BadHead::Connection,
        ),
    ];
    for (told, input, expected) in cases {
        match request(input) {
            Err(error) => assert_eq!(error, *expected, "{told}"),
            Ok((_, out)) => panic!("{told} was forwarded as {out:?}"),
        }
    }
}

#[test]
fn what_is_forwarded_is_written_anew() {
    let cases: &[(&str, &str, &str)] = &[
        (
            "a plain request gets its Host in front",
            "GET /a?b=%2F HTTP/1.1\r\nAccept: */*\r\nHost: a\r\n\r\n",
            "GET /a?b=%2F HTTP/1.1\r\nhost: a\r\nAccept: */*\r\n\r\n",
        ),
        (
            "an absolute target outweighs Host and becomes a path",
            "GET http://real:80/x HTTP/1.1\r\nhost: other\r\n\r\n",
            "GET /x HTTP/1.1\r\nhost: real:80\r\n\r\n",
        ),
        (
            "an absolute target without a path asks OPTIONS of the server",
            "OPTIONS http://real HTTP/1.1\r\nhost: other\r\n\r\n",
            "OPTIONS * HTTP/1.1\r\nhost: real\r\n\r\n",
        ),
        (
            "OPTIONS of the server",
            "OPTIONS * HTTP/1.1\r\nhost: a\r\n\r\n",
            "OPTIONS * HTTP/1.1\r\nhost: a\r\n\r\n",
        ),
        (
            "CONNECT keeps its authority, and what is meant for the proxy it asks",
            "CONNECT b:443 HTTP/1.1\r\nhost: a\r\nproxy-authorization: x\r\n\r\nTUNNEL",
            "CONNECT b:443 HTTP/1.1\r\nhost: b:443\r\nproxy-authorization: x\r\n\r\n",
        ),
        (
            "hop-by-hop fields and what Connection names end here",
            "GET / HTTP/1.1\r\nhost: a\r\nconnection: keep-alive, X-Hop\r\nkeep-alive: timeout=5\r\nx-hop: 1\r\nte: trailers\r\nproxy-connection: keep-alive\r\nproxy-authorization: x\r\nupgrade: foo\r\nx: y\r\n\r\n",
            "GET / HTTP/1.1\r\nhost: a\r\nx: y\r\n\r\n",
        ),
        (
            "mesh fields from outside end here",
            "GET / HTTP/1.1\r\nhost: a\r\nHeddle-Error: reset\r\nheddle-x: y\r\nheddlex: z\r\n\r\n",
            "GET / HTTP/1.1\r\nhost: a\r\nheddlex: z\r\n\r\n",
        ),
        (
            "a length is written in its plainest form",
            "POST / HTTP/1.1\r\nhost: a\r\nContent-Length: 003\r\n\r\nabcGET",
            "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 3\r\n\r\nabc",
        ),
        (
            "chunked in any case is one framing",
            "POST / HTTP/1.1\r\nhost: a\r\nTransfer-Encoding: CHUNKED\r\n\r\n1\r\na\r\n0\r\n\r\nGET",
            "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n1\r\na\r\n0\r\n\r\n",
        ),
        (
            "an upgrade is offered onward",
            "GET / HTTP/1.1\r\nhost: a\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n\r\n",
            "GET / HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n",
        ),
        (
            "an upgrade to h2c would hide requests and is not offered",
            "GET / HTTP/1.1\r\nhost: a\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: x\r\n\r\n",
            "GET / HTTP/1.1\r\nhost: a\r\n\r\n",
        ),
        (
            "nor one hidden behind another protocol",
            "GET / HTTP/1.1\r\nhost: a\r\nConnection: Upgrade\r\nUpgrade: websocket, h2c\r\n\r\n",
            "GET / HTTP/1.1\r\nhost: a\r\n\r\n",
        ),
        (
            "nor one in a request with a body",
            "POST / HTTP/1.1\r\nhost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\ncontent-length: 1\r\n\r\nx",
            "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 1\r\n\r\nx",
        ),
        (
            "nor one from a client of 1.0",
            "GET / HTTP/1.0\r\nhost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
            "GET / HTTP/1.1\r\nhost: a\r\n\r\n",
        ),
        (
            "a client of 1.0 gets no interim response, so none is asked for",
            "POST / HTTP/1.0\r\ncontent-length: 1\r\nexpect: 100-continue\r\n\r\nx",
            "POST / HTTP/1.1\r\nhost: \r\ncontent-length: 1\r\n\r\nx",
        ),
        (
            "an empty line before the request is skipped",
            "\r\nGET / HTTP/1.1\r\nhost: a\r\n\r\n",
            "GET / HTTP/1.1\r\nhost: a\r\n\r\n",
        ),
        (
            "the trace context is withheld, for the hop writes its own",
            "GET / HTTP/1.1\r\nhost: a\r\ntraceparent: t\r\ntracestate: s\r\nb3: 0\r\nX-B3-TraceId: i\r\n\r\n",
            "GET / HTTP/1.1\r\nhost: a\r\n\r\n",
        ),
    ];
    for (told, input, expected) in cases {
        let (_, out) = request(input).unwrap_or_else(|error| panic!("{told}: {error}"));
        assert_eq!(out, *expected, "{told}");
    }
}

#[test]
fn spans_point_at_what_they_name() {
    let input = "PURGE /a/b?c=d HTTP/1.1\r\nhost: users.shop:80\r\ntraceparent: 00-1\r\nb3: 0\r\naccept: application/json\r\nexpect: 100-Continue\r\ncontent-length: 4\r\n\r\n";
    let mut out = b"before".to_vec();
    let head = RequestHead::parse(input.as_bytes(), &mut HeadScan::default(), Origin::Outside, &mut out)
        .expect("well-formed")
        .expect("complete");
    assert_eq!(head.method, Method::Other);
    assert_eq!(head.method_token.of(&out), b"PURGE");
    assert_eq!(head.path.of(&out), b"/a/b");
    assert_eq!(head.target.of(&out), b"/a/b?c=d");
    assert_eq!(head.authority.of(&out), b"users.shop:80");
    let trace: Vec<_> = head.trace.of(input.as_bytes()).collect();
    assert_eq!(trace, [(&b"traceparent"[..], &b"00-1"[..]), (b"b3", b"0")]);
    assert_eq!(head.form, Form::Json);
    assert!(head.expects_continue && head.keep_alive);
    assert!(!head.upgrade && !head.body.is_complete());
}

#[test]
fn a_sidecar_is_believed_about_mesh_fields() {
    let (_, out) =
        request_from(Origin::Mesh, "GET / HTTP/1.1\r\nhost: a\r\nheddle-x: y\r\n\r\n").expect("fine");
    assert_eq!(out, "GET / HTTP/1.1\r\nhost: a\r\nheddle-x: y\r\n\r\n");
    let mut of_mesh = exchange(Method::Get, Version::Http11);
    of_mesh.origin = Origin::Mesh;
    let input = "HTTP/1.1 503 x\r\nheddle-error: connect_failure\r\ncontent-length: 0\r\n\r\n";
    let (head, out) = response_to(of_mesh, input).expect("fine");
    assert_eq!(head.mesh_error, Some(crate::reason::Reason::ConnectFailure));
    assert!(out.contains("heddle-error"));
    let (head, out) = response(input).expect("fine");
    assert_eq!(head.mesh_error, None);
    assert!(!out.contains("heddle-error"));
}

#[test]
fn too_many_fields_are_told_apart_from_malformed_ones() {
    let head = |count: usize| format!("GET / HTTP/1.1\r\nhost: a\r\n{}\r\n", "x: y\r\n".repeat(count - 1));
    assert!(request(&head(MAX_FIELDS)).is_ok());
    let error = request(&head(MAX_FIELDS + 1)).expect_err("one too many");
    assert_eq!((error, error.reason().status()), (BadHead::TooManyFields, 431));
}

#[test]
fn whether_a_client_stays_follows_its_version_and_wish() {
    for (head, stays) in [
        ("GET / HTTP/1.1\r\nhost: a\r\n\r\n", true),
        ("GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n", false),
        ("GET / HTTP/1.1\r\nhost: a\r\nconnection: keep-alive, close\r\n\r\n", false),
        ("GET / HTTP/1.0\r\n\r\n", false),
        ("GET / HTTP/1.0\r\nconnection: Keep-Alive\r\n\r\n", true),
    ] {
        assert_eq!(request(head).expect("well-formed").0.keep_alive, stays, "{head:?}");
    }
}

#[test]
fn responses_that_could_be_split_are_refused() {
    let cases: &[(&str, &str, BadHead)] = &[
        (
            "both framings",
            "HTTP/1.1 200 OK\r\ncontent-length: 3\r\ntransfer-encoding: chunked\r\n\r\n",
            BadHead::LengthAndEncoding,
        ),
        (
            "two lengths",
            "HTTP/1.1 200 OK\r\ncontent-length: 3\r\ncontent-length: 3\r\n\r\n",
            BadHead::ContentLength,
        ),
        (
            "an encoding that we cannot undo",
            "HTTP/1.1 200 OK\r\ntransfer-encoding: gzip, chunked\r\n\r\n",
            BadHead::TransferEncoding,
        ),
        (
            "chunked from a server of 1.0",
            "HTTP/1.0 200 OK\r\ntransfer-encoding: chunked\r\n\r\n",
            BadHead::UnexpectedEncoding,
        ),
        (
            "chunked where no content may be",
            "HTTP/1.1 204 No Content\r\ntransfer-encoding: chunked\r\n\r\n",
            BadHead::UnexpectedEncoding,
        ),
        (
            "a length where no content may be",
            "HTTP/1.1 204 No Content\r\ncontent-length: 3\r\n\r\n",
            BadHead::ContentLength,
        ),
        (
            "a length in an interim response",
            "HTTP/1.1 103 Early Hints\r\ncontent-length: 3\r\n\r\n",
            BadHead::ContentLength,
        ),
        (
            "an upgrade that nobody asked for",
            "HTTP/1.1 101 Switching\r\nconnection: upgrade\r\nupgrade: h2c\r\n\r\n",
            BadHead::UnaskedUpgrade,
        ),
        ("remains of another message in front", "\r\nHTTP/1.1 200 OK\r\n\r\n", BadHead::StartLine),
        ("a status of two digits", "HTTP/1.1 20 OK\r\n\r\n", BadHead::StartLine),
        ("a status below 100", "HTTP/1.1 099 OK\r\n\r\n", BadHead::StartLine),
        ("a bare line feed", "HTTP/1.1 200 OK\r\nx: a\nset-cookie: b\r\n\r\n", BadHead::BareLineFeed),
        ("a bare carriage return", "HTTP/1.1 200 OK\r\nx: a\rb\r\n\r\n", BadHead::Field),
        ("a folded line", "HTTP/1.1 200 OK\r\nx: a\r\n b\r\n\r\n", BadHead::Field),
        ("space before a colon", "HTTP/1.1 200 OK\r\ncontent-length : 3\r\n\r\n", BadHead::Field),
        ("version 2.0", "HTTP/2.0 200 OK\r\n\r\n", BadHead::StartLine),
        (
            "Connection that names the framing",
            "HTTP/1.1 200 OK\r\nconnection: content-length\r\ncontent-length: 3\r\n\r\n",
            BadHead::Connection,
        ),
    ];
    for (told, input, expected) in cases {
        match response(input) {
            Err(error) => assert_eq!(error, *expected, "{told}"),
            Ok((_, out)) => panic!("{told} was forwarded as {out:?}"),
        }
    }
}

#[test]
fn the_body_of_a_response_follows_the_request_and_the_client() {
    let chunks = "3\r\nabc\r\n0\r\nx: y\r\n\r\n";
    let cases: &[(&str, Method, Version, &str, &str)] = &[
        (
            "HEAD has no body, whatever the length",
            Method::Head,
            Version::Http11,
            "HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\n",
            "HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\n",
        ),
        (
            "HEAD has no body, whatever the encoding",
            Method::Head,
            Version::Http11,
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n",
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n",
        ),
        (
            "304 tells the length of what it does not send",
            Method::Get,
            Version::Http11,
            "HTTP/1.1 304 Not Modified\r\ncontent-length: 3\r\n\r\n",
            "HTTP/1.1 304 Not Modified\r\ncontent-length: 3\r\n\r\n",
        ),
        (
            "204 loses a length of nothing",
            Method::Get,
            Version::Http11,
            "HTTP/1.1 204 No Content\r\ncontent-length: 0\r\n\r\n",
            "HTTP/1.1 204 No Content\r\n\r\n",
        ),
        (
            "an interim response is passed on without hop-by-hop fields",
            Method::Post,
            Version::Http11,
            "HTTP/1.1 103 Early Hints\r\nlink: x\r\nconnection: keep-alive\r\n\r\n",
            "HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n",
        ),
        (
            "a client of 1.0 gets no interim response",
            Method::Post,
            Version::Http10,
            "HTTP/1.1 100 Continue\r\n\r\n",
            "",
        ),
        (
            "CONNECT's success begins a tunnel, whatever the fields",
            Method::Connect,
            Version::Http11,
            "HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nabc",
            "HTTP/1.1 200 OK\r\n\r\n",
        ),
        (
            "CONNECT's failure has a body",
            Method::Connect,
            Version::Http11,
            "HTTP/1.1 407 No\r\nproxy-authenticate: basic\r\ncontent-length: 3\r\n\r\nabc",
            "HTTP/1.1 407 No\r\nproxy-authenticate: basic\r\ncontent-length: 3\r\n\r\nabc",
        ),
        (
            "a body until the end of the connection becomes chunks",
            Method::Get,
            Version::Http11,
            "HTTP/1.0 200 OK\r\n\r\nabc",
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n",
        ),
        (
            "for a client of 1.0 it stays so",
            Method::Get,
            Version::Http10,
            "HTTP/1.1 200 OK\r\n\r\nabc",
            "HTTP/1.1 200 OK\r\nconnection: close\r\n\r\nabc",
        ),
        (
            "a client of 1.0 that stays is told so",
            Method::Get,
            Version::Http10,
            "HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nabc",
            "HTTP/1.1 200 OK\r\ncontent-length: 3\r\nconnection: keep-alive\r\n\r\nabc",
        ),
        (
            "hop-by-hop fields of a response end here",
            Method::Get,
            Version::Http11,
            "HTTP/1.1 200 OK\r\nconnection: close, x-hop\r\nx-hop: 1\r\nkeep-alive: 5\r\nupgrade: h2c\r\nproxy-authenticate: x\r\ncontent-length: 0\r\n\r\n",
            "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n",
        ),
    ];
    for (told, method, client, input, expected) in cases {
        let (_, out) =
            response_to(exchange(*method, *client), input).unwrap_or_else(|error| panic!("{told}: {error}"));
        assert_eq!(out, *expected, "{told}");
    }
    let input = format!("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n{chunks}");
    let (head, out) = response_to(exchange(Method::Get, Version::Http10), &input).expect("well-formed");
    assert_eq!(out, "HTTP/1.1 200 OK\r\nconnection: close\r\n\r\nabc");
    assert!(head.close_delimited && head.keep_alive && head.body.is_complete());
}

#[test]
fn an_upgrade_that_was_asked_for_becomes_a_tunnel() {
    let mut asked = exchange(Method::Get, Version::Http11);
    asked.upgrade = true;
    let (head, out) = response_to(
        asked,
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nx: y\r\n\r\nFRAMES",
    )
    .expect("well-formed");
    assert_eq!(head.role, Role::Tunnel);
    assert_eq!(
        out,
        "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\nx: y\r\n\r\n"
    );
}

#[test]
fn whether_an_upstream_stays_follows_its_version_wish_and_framing() {
    for (head, stays) in [
        ("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n", true),
        ("HTTP/1.1 200 OK\r\n\r\n", false),
        ("HTTP/1.1 204 OK\r\n\r\n", true),
        ("HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 0\r\n\r\n", false),
        ("HTTP/1.0 200 OK\r\ncontent-length: 0\r\n\r\n", false),
        ("HTTP/1.0 200 OK\r\nconnection: keep-alive\r\ncontent-length: 0\r\n\r\n", true),
    ] {
        assert_eq!(response(head).expect("well-formed").0.keep_alive, stays, "{head:?}");
    }
}

#[test]
fn a_head_is_the_same_however_it_arrives() {
    let input =
        b"POST /x HTTP/1.1\r\nhost: a\r\nx: y\r\ntransfer-encoding: chunked\r\n\r\n1\r\na\r\n0\r\n\r\n";
    let mut whole = Vec::new();
    let mut scan = HeadScan::default();
    RequestHead::parse(input, &mut scan, Origin::Outside, &mut whole).expect("good").expect("whole");
    let mut out = Vec::new();
    let mut scan = HeadScan::default();
    let arrived = (0..=input.len()).find_map(|end| {
        RequestHead::parse(&input[..end], &mut scan, Origin::Outside, &mut out).expect("good")
    });
    assert_eq!(arrived.map(|head| head.consumed), Some(input.len() - 11));
    assert_eq!(out, whole);
}

#[test]
fn heads_stay_small() {
    // Both live in the future of every connection.
    assert!(size_of::<RequestHead>() <= 256, "{}", size_of::<RequestHead>());
    assert!(size_of::<ResponseHead>() <= 96, "{}", size_of::<ResponseHead>());
    assert!(size_of::<Body>() <= 40, "{}", size_of::<Body>());
}
