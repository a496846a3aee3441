//! Whom a request is for: `Host`, `:authority` and the authority of an
//! absolute-form target.
//!
//! Stricter than RFC 3986, section 3.2: no user information, no percent-encodings
//! and no sub-delimiters in names (`a,b` is what two joined `Host` headers look
//! like), no zone identifiers, no future address forms.

use std::net::Ipv6Addr;

/// A valid authority, taken apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Authority<'a> {
    /// The host as written: a name, an IPv4 address, or an IPv6 address
    /// without its brackets.
    pub host: &'a str,
    /// The port, if there is one.
    pub port: Option<u16>,
}

/// Why an authority is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadAuthority {
    /// There is no host.
    #[error("the host is empty")]
    Empty,
    /// More than 255 bytes, which no name has.
    #[error("the host is longer than a name can be")]
    TooLong,
    /// `user@host`.
    #[error("the host has user information")]
    UserInfo,
    /// A byte that a host may not have.
    #[error("the host has a byte that is not allowed")]
    BadByte,
    /// Brackets without an IPv6 address.
    #[error("the host is no IPv6 address")]
    BadAddress,
    /// No number from 1 to 65535.
    #[error("the port is no number from 1 to 65535")]
    BadPort,
}

/// The longest name (RFC 1035) with a final dot, and a port's six bytes.
const MAX_LEN: usize = 254 + 6;

/// Takes `host`, `host:port`, `[v6]` or `[v6]:port` apart.
///
/// # Errors
/// If it is not one of these.
pub fn authority(value: &[u8]) -> Result<Authority<'_>, BadAuthority> {
    if value.is_empty() {
        return Err(BadAuthority::Empty);
    }
    if value.len() > MAX_LEN {
        return Err(BadAuthority::TooLong);
    }
    let text = std::str::from_utf8(value).map_err(|_| BadAuthority::BadByte)?;
    let (host, rest) = match text.strip_prefix('[') {
        Some(bracketed) => {
            let (address, rest) = bracketed.split_once(']').ok_or(BadAuthority::BadAddress)?;
            address.parse::<Ipv6Addr>().map_err(|_| BadAuthority::BadAddress)?;
            (address, rest)
        }
        None => {
            let end = value.iter().position(|&byte| !is_name_byte(byte)).unwrap_or(value.len());
            if end < value.len() && value[end] != b':' {
                return Err(if value.contains(&b'@') {
                    BadAuthority::UserInfo
                } else {
                    BadAuthority::BadByte
                });
            }
            text.split_at(end)
        }
    };
    if host.is_empty() {
        return Err(BadAuthority::Empty);
    }
    let port = match rest.strip_prefix(':') {
        None if rest.is_empty() => None,
        None => return Err(BadAuthority::BadByte),
        // RFC 3986 allows an empty port; it means the default.
        Some("") => None,
        Some(digits) => Some(port(digits).ok_or_else(|| {
            if digits.contains('@') { BadAuthority::UserInfo } else { BadAuthority::BadPort }
        })?),
    };
    Ok(Authority { host, port })
}

fn is_name_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~')
}

/// `str::parse` would take a sign too.
fn port(digits: &str) -> Option<u16> {
    let number = digits.bytes().all(|byte| byte.is_ascii_digit()).then(|| digits.parse().ok())??;
    (number != 0).then_some(number)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn hosts_and_ports_are_told_apart() {
        for (text, host, port) in [
            ("users", "users", None),
            ("users.shop.svc.cluster.local.", "users.shop.svc.cluster.local.", None),
            ("Users:8080", "Users", Some(8080)),
            ("users:", "users", None),
            ("10.0.0.1:1", "10.0.0.1", Some(1)),
            ("[::1]", "::1", None),
            ("[fe80::1]:65535", "fe80::1", Some(65535)),
            ("a_b~c-d", "a_b~c-d", None),
            ("a:00080", "a", Some(80)),
        ] {
            assert_eq!(authority(text.as_bytes()), Ok(Authority { host, port }), "{text}");
        }
    }

    #[test]
    fn what_is_no_plain_host_and_port_is_refused() {
        let long = "a".repeat(261);
        for (text, expected) in [
            ("", BadAuthority::Empty),
            (":80", BadAuthority::Empty),
            (long.as_str(), BadAuthority::TooLong),
            ("user@host", BadAuthority::UserInfo),
            ("user:secret@host", BadAuthority::UserInfo),
            ("a,b", BadAuthority::BadByte),
            ("a b", BadAuthority::BadByte),
            ("a/b", BadAuthority::BadByte),
            ("a%41", BadAuthority::BadByte),
            ("a\0", BadAuthority::BadByte),
            ("é", BadAuthority::BadByte),
            ("::1", BadAuthority::Empty),
            ("[::1", BadAuthority::BadAddress),
            ("[]", BadAuthority::BadAddress),
            ("[::1%25eth0]", BadAuthority::BadAddress),
            ("[1.2.3.4]", BadAuthority::BadAddress),
            ("[::1]x", BadAuthority::BadByte),
            ("a:0", BadAuthority::BadPort),
            ("a:65536", BadAuthority::BadPort),
            ("a:+1", BadAuthority::BadPort),
            ("a:1:2", BadAuthority::BadPort),
        ] {
            assert_eq!(authority(text.as_bytes()), Err(expected), "{text:?}");
        }
    }

    proptest! {
        /// What is accepted has only bytes of hosts, and is valid for `http` too.
        #[test]
        fn what_is_accepted_is_an_authority_to_others(value in "[a-zA-Z0-9.:@%,~_\\[\\] -]{0,12}") {
            if let Ok(parsed) = authority(value.as_bytes()) {
                let theirs: http::uri::Authority = value.parse().expect("valid for the http crate");
                prop_assert_eq!(theirs.host().trim_matches(['[', ']']), parsed.host);
                prop_assert_eq!(theirs.port_u16(), parsed.port);
            }
        }
    }
}
