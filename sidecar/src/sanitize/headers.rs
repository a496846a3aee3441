//! What a header means to a proxy, by its name alone; the same for HTTP/1 and
//! HTTP/2, requests and responses.
//!
//! [`Known::of`] runs for every header of every message: it looks at the length
//! first, then compares with the one or two names of that length. What to do
//! about a header is the codecs' part; nothing here allocates.

/// A header that a proxy has to care about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Known {
    /// Names the headers that belong to the connection.
    Connection,
    /// Hop-by-hop.
    KeepAlive,
    /// Hop-by-hop, though never standardised.
    ProxyConnection,
    /// Hop-by-hop; `te: trailers` is the only value that HTTP/2 lets pass.
    Te,
    /// Hop-by-hop; set again by whoever performs an upgrade.
    Upgrade,
    /// Framing.
    TransferEncoding,
    /// Framing.
    ContentLength,
    /// Announces trailers; end-to-end.
    Trailer,
    /// Whom the request is for.
    Host,
    /// `expect: 100-continue`.
    Expect,
    /// `heddle-*`: spoken between sidecars, believed from no one else.
    Mesh,
    /// Says who a TLS client was; believed only from a mesh peer that checked it.
    PeerIdentity,
}

/// What the names of the mesh's own headers begin with.
pub const MESH_PREFIX: &[u8] = b"heddle-";

/// Names the rule that a request fell to, between sidecars, where rate limits ask for it.
pub const ROUTE_HEADER: &str = "heddle-route";

/// What stands there in the place of a rule's mark where the request is a caller's health check.
/// Rules' marks begin with the kind of their route.
pub const PROBE_MARK: &str = "#probe";

impl Known {
    /// What the name, in any case, stands for; `None` for most headers.
    #[inline]
    pub fn of(name: &[u8]) -> Option<Self> {
        let found = match name.len() {
            2 if is(name, b"te") => Some(Self::Te),
            4 if is(name, b"host") => Some(Self::Host),
            6 if is(name, b"expect") => Some(Self::Expect),
            7 if is(name, b"upgrade") => Some(Self::Upgrade),
            7 if is(name, b"trailer") => Some(Self::Trailer),
            10 if is(name, b"connection") => Some(Self::Connection),
            10 if is(name, b"keep-alive") => Some(Self::KeepAlive),
            11 if is(name, b"client-cert") => Some(Self::PeerIdentity),
            14 if is(name, b"content-length") => Some(Self::ContentLength),
            16 if is(name, b"proxy-connection") => Some(Self::ProxyConnection),
            17 if is(name, b"transfer-encoding") => Some(Self::TransferEncoding),
            // RFC 9440, and what Envoy calls the same.
            17 if is(name, b"client-cert-chain") => Some(Self::PeerIdentity),
            23 if is(name, b"x-forwarded-client-cert") => Some(Self::PeerIdentity),
            _ => None,
        };
        if found.is_none() && is_mesh(name) { Some(Self::Mesh) } else { found }
    }

    /// Whether it ends at the next hop (RFC 9110, section 7.6.1) and is never
    /// passed on as it is.
    pub const fn is_hop_by_hop(self) -> bool {
        matches!(
            self,
            Self::Connection
                | Self::KeepAlive
                | Self::ProxyConnection
                | Self::Te
                | Self::Upgrade
                | Self::TransferEncoding
        )
    }
}

/// Whether a name, in any case, is this one. With the length known to the
/// compiler and no branch per byte this is a handful of vector instructions.
#[inline]
fn is<const N: usize>(name: &[u8], known: &[u8; N]) -> bool {
    <&[u8; N]>::try_from(name).is_ok_and(|name| {
        name.iter().zip(known).fold(true, |same, (byte, known)| same & (byte.to_ascii_lowercase() == *known))
    })
}

/// Whether a name is one of the mesh's own.
#[inline]
fn is_mesh(name: &[u8]) -> bool {
    // One comparison rules most names out.
    name.len() >= MESH_PREFIX.len()
        && name[6] == b'-'
        && name[..MESH_PREFIX.len()].eq_ignore_ascii_case(MESH_PREFIX)
}

/// Whether a trailer field is dropped: framing, routing, authentication,
/// conditions and content metadata are of no use after the fact, and dangerous
/// where trailers are merged into headers (RFC 9110, section 6.5.1).
pub fn is_forbidden_trailer(name: &[u8]) -> bool {
    /// Besides all that [`Known`] names. Sorted.
    const FORBIDDEN: [&str; 24] = [
        "age",
        "authorization",
        "cache-control",
        "content-encoding",
        "content-range",
        "content-type",
        "cookie",
        "date",
        "expires",
        "if-match",
        "if-modified-since",
        "if-none-match",
        "if-range",
        "if-unmodified-since",
        "location",
        "max-forwards",
        "pragma",
        "proxy-authenticate",
        "proxy-authorization",
        "range",
        "retry-after",
        "set-cookie",
        "vary",
        "www-authenticate",
    ];
    // Trailers are rare; a linear search is good enough.
    Known::of(name).is_some() || FORBIDDEN.iter().any(|known| name.eq_ignore_ascii_case(known.as_bytes()))
}

/// Whether `Connection` may name this header as hop-by-hop, and so have it
/// removed. End-to-end headers whose loss would change who asks for what may
/// not be named; such a message is refused.
pub fn may_be_nominated(name: &[u8]) -> bool {
    const END_TO_END: [&str; 12] = [
        "authorization",
        "baggage",
        "cache-control",
        "content-type",
        "cookie",
        "forwarded",
        "set-cookie",
        "traceparent",
        "tracestate",
        "x-forwarded-for",
        "x-forwarded-host",
        "x-forwarded-proto",
    ];
    let known = match Known::of(name) {
        None => true,
        Some(known) => known.is_hop_by_hop() && known != Known::TransferEncoding,
    };
    known && !END_TO_END.iter().any(|header| name.eq_ignore_ascii_case(header.as_bytes()))
}

/// The elements of a comma-separated value such as `Connection`'s, trimmed,
/// without empty ones.
pub fn elements(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    value.split(|&byte| byte == b',').map(<[u8]>::trim_ascii).filter(|element| !element.is_empty())
}

/// Whether a name is a token (RFC 9110, section 5.6.2).
pub fn is_valid_name(name: &[u8]) -> bool {
    !name.is_empty() && name.iter().all(|&byte| TOKEN[usize::from(byte)])
}

/// Whether a value, trimmed already, has only what RFC 9110, section 5.5 allows:
/// visible characters, spaces, tabs and bytes above 127.
pub fn is_valid_value(value: &[u8]) -> bool {
    // Without a branch per byte this becomes vector code.
    let bad = |byte: u8| u8::from(byte < b' ') & u8::from(byte != b'\t') | u8::from(byte == 0x7F);
    value.iter().fold(0, |any, &byte| any | bad(byte)) == 0
}

static TOKEN: [bool; 256] = {
    let mut token = [false; 256];
    let mut byte = 0;
    while byte < 128_u8 {
        token[byte as usize] = byte.is_ascii_alphanumeric()
            || matches!(
                byte,
                b'!' | b'#'
                    | b'$'
                    | b'%'
                    | b'&'
                    | b'\''
                    | b'*'
                    | b'+'
                    | b'-'
                    | b'.'
                    | b'^'
                    | b'_'
                    | b'`'
                    | b'|'
                    | b'~'
            );
        byte += 1;
    }
    token
};

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NAMES: [(&str, Known); 14] = [
        ("connection", Known::Connection),
        ("keep-alive", Known::KeepAlive),
        ("proxy-connection", Known::ProxyConnection),
        ("te", Known::Te),
        ("upgrade", Known::Upgrade),
        ("transfer-encoding", Known::TransferEncoding),
        ("content-length", Known::ContentLength),
        ("trailer", Known::Trailer),
        ("host", Known::Host),
        ("expect", Known::Expect),
        ("heddle-error", Known::Mesh),
        ("client-cert", Known::PeerIdentity),
        ("client-cert-chain", Known::PeerIdentity),
        ("x-forwarded-client-cert", Known::PeerIdentity),
    ];

    #[test]
    fn every_known_name_is_found_in_any_case() {
        for (name, known) in NAMES {
            assert_eq!(Known::of(name.as_bytes()), Some(known));
            assert_eq!(Known::of(name.to_ascii_uppercase().as_bytes()), Some(known));
        }
    }

    #[test]
    fn the_meshs_own_names_are_found_by_their_beginning() {
        for name in ["heddle-", "Heddle-Error", "HEDDLE-SOMETHING-NEW", "heddle-cert"] {
            assert_eq!(Known::of(name.as_bytes()), Some(Known::Mesh), "{name}");
        }
        for name in ["heddle", "x-heddle-error", "heddl-error", ""] {
            assert_eq!(Known::of(name.as_bytes()), None, "{name}");
        }
    }

    #[test]
    fn trailers_carry_no_framing_routing_or_credentials() {
        for name in
            ["Content-Length", "transfer-encoding", "HOST", "authorization", "Set-Cookie", "heddle-error"]
        {
            assert!(is_forbidden_trailer(name.as_bytes()), "{name}");
        }
        for name in ["grpc-status", "grpc-message", "x-checksum", "server-timing"] {
            assert!(!is_forbidden_trailer(name.as_bytes()), "{name}");
        }
    }

    #[test]
    fn connection_may_not_remove_what_decides_who_asks_for_what() {
        for name in ["close", "keep-alive", "TE", "upgrade", "x-custom"] {
            assert!(may_be_nominated(name.as_bytes()), "{name}");
        }
        for name in
            ["Content-Length", "transfer-encoding", "host", "Authorization", "x-forwarded-for", "heddle-x"]
        {
            assert!(!may_be_nominated(name.as_bytes()), "{name}");
        }
    }

    #[test]
    fn elements_are_trimmed_and_never_empty() {
        let list = |value: &'static str| elements(value.as_bytes()).collect::<Vec<_>>();
        assert_eq!(list(" close ,\tte,,x "), [b"close".as_slice(), b"te", b"x"]);
        assert!(list(" , ,").is_empty());
    }

    proptest! {
        #[test]
        fn only_listed_names_are_known(name in "[a-zA-Z-]{0,24}") {
            let lower = name.to_ascii_lowercase();
            let listed = NAMES.iter().find(|(known, _)| *known == lower).map(|(_, known)| *known);
            let expected = listed.or_else(|| lower.starts_with("heddle-").then_some(Known::Mesh));
            prop_assert_eq!(Known::of(name.as_bytes()), expected);
        }

        /// Names and values are valid exactly if they are to the `http` crate,
        /// which takes empty names for invalid as well.
        #[test]
        fn validity_equals_that_of_the_http_crate(bytes in prop::collection::vec(any::<u8>(), 0..12)) {
            prop_assert_eq!(is_valid_name(&bytes), http::HeaderName::from_bytes(&bytes).is_ok());
            prop_assert_eq!(is_valid_value(&bytes), http::HeaderValue::from_bytes(&bytes).is_ok());
        }
    }
}
