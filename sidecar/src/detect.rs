//! What protocol a connection speaks, from its first bytes.
//!
//! Pure: bytes in, verdict out. A verdict is given only when no continuation
//! could change it, so a first packet that is split or slow is never an error
//! and never guessed at. Whoever reads the bytes decides how long to wait and
//! what to do about a client that stays silent.

/// What the bytes so far say.
#[derive(Debug, PartialEq, Eq, Clone)]
pub enum Verdict {
    /// Too few bytes to tell.
    Undecided,
    /// HTTP/1.x: a request line.
    Http1,
    /// HTTP/2 with prior knowledge: the connection preface.
    Http2,
    /// A TLS ClientHello.
    Tls(ClientHello),
    /// Nothing we know.
    Opaque,
}

/// The part of a ClientHello that decides where a connection goes.
#[derive(Debug, PartialEq, Eq, Clone, Default)]
pub struct ClientHello {
    /// Whether a protocol of the mesh is among its ALPN protocols: the client is a sidecar.
    pub is_mesh: bool,
}

/// The connection preface of HTTP/2 (RFC 9113, section 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Longest method name that may begin a request line. The registry's longest has 17 letters.
const LONGEST_METHOD: usize = 24;

/// Longest request line: as long as the longest request head.
const LONGEST_LINE: usize = 64 * 1024;

/// Looks at all bytes received so far.
pub fn detect(bytes: &[u8]) -> Verdict {
    match bytes.first() {
        None => Verdict::Undecided,
        Some(0x16) => tls(bytes),
        Some(_) if bytes.starts_with(PREFACE) => Verdict::Http2,
        Some(_) if PREFACE.starts_with(bytes) => Verdict::Undecided,
        Some(_) => http1(bytes),
    }
}

/// A line that reads `METHOD SP target SP HTTP/1.x` up to its line feed.
fn http1(bytes: &[u8]) -> Verdict {
    let method = bytes.iter().take_while(|b| b.is_ascii_uppercase() || matches!(b, b'-' | b'_')).count();
    if method > LONGEST_METHOD {
        return Verdict::Opaque;
    }
    let Some(after) = bytes.get(method) else { return Verdict::Undecided };
    if method == 0 || *after != b' ' {
        return Verdict::Opaque;
    }
    let rest = &bytes[method + 1..];
    let Some(end) = memchr::memchr3(b'\n', b'\r', 0, rest) else {
        return if bytes.len() < LONGEST_LINE { Verdict::Undecided } else { Verdict::Opaque };
    };
    let line = &rest[..end];
    match line.strip_suffix(b" HTTP/1.1").or_else(|| line.strip_suffix(b" HTTP/1.0")) {
        Some(_) => Verdict::Http1,
        None => Verdict::Opaque,
    }
}

/// A handshake record with a ClientHello (RFC 8446, sections 4.1.2 and 5.1).
fn tls(bytes: &[u8]) -> Verdict {
    if bytes.get(1).is_some_and(|major| *major != 3) || bytes.get(5).is_some_and(|kind| *kind != 1) {
        return Verdict::Opaque;
    }
    // The hello may be spread over several records; all but their headers is one message.
    let mut message = Vec::new();
    let mut rest = bytes;
    loop {
        if let Some(header) = message.get(..4) {
            let length = usize::from(header[1]) << 16 | usize::from(header[2]) << 8 | usize::from(header[3]);
            if length > LONGEST_HELLO {
                return Verdict::Opaque;
            }
            if let Some(body) = message.get(4..4 + length) {
                return parse_hello(body).map_or(Verdict::Opaque, Verdict::Tls);
            }
        }
        let Some((header, following)) = rest.split_at_checked(5) else { return Verdict::Undecided };
        let length = usize::from(header[3]) << 8 | usize::from(header[4]);
        if header[0] != 0x16 || length == 0 {
            return Verdict::Opaque;
        }
        let available = length.min(following.len());
        message.extend_from_slice(&following[..available]);
        if available < length && message.len() < 4 {
            return Verdict::Undecided;
        }
        rest = &following[available..];
        if rest.is_empty() && available < length {
            // Only a hello that ends inside this record could still be complete.
            return match message.get(..4) {
                Some(h)
                    if message.len()
                        >= 4 + (usize::from(h[1]) << 16 | usize::from(h[2]) << 8 | usize::from(h[3])) =>
                {
                    continue;
                }
                _ => Verdict::Undecided,
            };
        }
    }
}

/// Post-quantum key shares make hellos of 1.7 KB; this is far beyond any real one.
const LONGEST_HELLO: usize = 32 * 1024;

fn parse_hello(body: &[u8]) -> Option<ClientHello> {
    let mut reader = Reader(body);
    reader.take(2 + 32)?;
    reader.vector8()?;
    reader.vector16()?;
    reader.vector8()?;
    let mut hello = ClientHello::default();
    if reader.0.is_empty() {
        return Some(hello);
    }
    let mut extensions = Reader(reader.vector16()?);
    while !extensions.0.is_empty() {
        let kind = extensions.u16()?;
        let data = extensions.vector16()?;
        // application_layer_protocol_negotiation (RFC 7301)
        if kind == 16 {
            let mut protocols = Reader(Reader(data).vector16()?);
            while !protocols.0.is_empty() {
                hello.is_mesh |= protocols.vector8()?.starts_with(b"heddle/");
            }
        }
    }
    Some(hello)
}

/// Takes a TLS presentation-language structure apart.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    fn u16(&mut self) -> Option<usize> {
        self.take(2).map(|b| usize::from(b[0]) << 8 | usize::from(b[1]))
    }

    fn vector8(&mut self) -> Option<&'a [u8]> {
        let length = self.take(1)?[0];
        self.take(length.into())
    }

    fn vector16(&mut self) -> Option<&'a [u8]> {
        let length = self.u16()?;
        self.take(length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hello(alpn: &[u8]) -> Vec<u8> {
        let config = rustls::ClientConfig::builder_with_provider(heddle_api::tls::provider())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(rustls::RootCertStore::empty())
            .with_no_client_auth();
        let mut config = config;
        config.alpn_protocols = vec![b"other".to_vec(), alpn.to_vec()];
        let name = "p80.heddle.internal".try_into().unwrap();
        let mut connection = rustls::ClientConnection::new(config.into(), name).unwrap();
        let mut bytes = Vec::new();
        connection.write_tls(&mut bytes).unwrap();
        bytes
    }

    /// Every prefix must be undecided until the verdict falls.
    fn settles(bytes: &[u8], verdict: &Verdict) {
        let mut decided = false;
        for end in 0..=bytes.len() {
            match detect(&bytes[..end]) {
                Verdict::Undecided => assert!(!decided, "undecided again at {end}"),
                found => {
                    assert_eq!(&found, verdict, "at {end}");
                    decided = true;
                }
            }
        }
        assert!(decided, "{bytes:?} stays undecided");
    }

    #[test]
    fn a_verdict_does_not_depend_on_how_the_bytes_arrive() {
        settles(b"GET / HTTP/1.1\r\nhost: a\r\n", &Verdict::Http1);
        settles(b"M-SEARCH * HTTP/1.0\n", &Verdict::Http1);
        settles(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0", &Verdict::Http2);
        settles(b"PRI * HTTP/1.1\r\n", &Verdict::Http1);
        settles(b"SET key value\r\n", &Verdict::Opaque);
        settles(b"PING\r\n", &Verdict::Opaque);
        settles(b"EHLO example\r\n", &Verdict::Opaque);
        settles(b"*1\r\n$4\r\nPING\r\n", &Verdict::Opaque);
        settles(b"\0\0\0\x08\x04\xd2\x16\x2f", &Verdict::Opaque);
        settles(b"GET /\r\n", &Verdict::Opaque);
    }

    #[test]
    fn a_client_hello_tells_sidecars_from_other_tls() {
        settles(&hello(b"heddle/h1"), &Verdict::Tls(ClientHello { is_mesh: true }));
        settles(&hello(b"h2"), &Verdict::Tls(ClientHello { is_mesh: false }));
    }

    #[test]
    fn a_hello_in_many_records_is_put_together() {
        let whole = hello(b"heddle/tcp");
        let mut split = Vec::new();
        for part in whole[5..].chunks(7) {
            split.extend_from_slice(&[0x16, 3, 1, 0, u8::try_from(part.len()).unwrap()]);
            split.extend_from_slice(part);
        }
        settles(&split, &Verdict::Tls(ClientHello { is_mesh: true }));
    }

    #[test]
    fn broken_tls_is_opaque() {
        settles(b"\x16\x02", &Verdict::Opaque);
        settles(b"\x16\x03\x01\x00\x05\x02", &Verdict::Opaque);
        settles(b"\x16\x03\x01\x00\x05\x01\xff\xff\xff\x00", &Verdict::Opaque);
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_settle_at_most_once(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..200)) {
            let mut verdict = Verdict::Undecided;
            for end in 0..=bytes.len() {
                let found = detect(&bytes[..end]);
                if verdict != Verdict::Undecided {
                    assert_eq!(found, verdict);
                }
                verdict = found;
            }
        }
    }
}
