//! What a request is hashed by, so that equal keys go to the same endpoint.
//!
//! The hash is the same in every sidecar, process and version: they have to
//! agree. It is no protection against keys that were made to collide; the
//! bounded load of [`crate::policy::balance`] is.

use std::net::IpAddr;

use http::HeaderName;

use crate::policy::rng::Rng;
use crate::route::{Head, cookies, query_parameter, stable_hash};

/// Which part of a request is its key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HashOn {
    /// The values of a header.
    Header(HeaderName),
    /// A cookie, which is set where the client has none.
    Cookie(Cookie),
    /// The client's address.
    SourceIp,
    /// The first value of a query parameter.
    Query(Box<str>),
}

/// A cookie that binds a client to an endpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cookie {
    /// Its name.
    pub name: Box<str>,
    /// What follows its value in `Set-Cookie`, beginning with a semicolon.
    pub attributes: Box<str>,
}

/// A request's tie to an endpoint.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Affinity {
    /// What it is hashed to; `None`: nothing ties it.
    pub key: Option<u64>,
    /// The value of a `Set-Cookie` that its response needs.
    pub set_cookie: Option<Box<str>>,
}

impl HashOn {
    /// The tie of a request. One without a key goes anywhere, one without a
    /// cookie gets one.
    pub fn affinity(&self, head: &impl Head, client: Option<IpAddr>, rng: &Rng) -> Affinity {
        let key = match self {
            // Each value under the hash of those before it: their order and their borders count.
            Self::Header(name) => head.values(name).fold(None, |before: Option<u64>, value| {
                Some(stable_hash(before.unwrap_or_default(), value))
            }),
            Self::Cookie(cookie) => {
                let sent = cookies(head, cookie.name.as_bytes()).find(|value| !value.is_empty());
                match sent {
                    Some(value) => Some(hash(value)),
                    None => return cookie.made(rng),
                }
            }
            Self::SourceIp => client.map(of_address),
            Self::Query(name) => {
                let value = head.query().and_then(|query| query_parameter(query, name.as_bytes()));
                value.map(|value| hash(&value))
            }
        };
        Affinity { key, set_cookie: None }
    }

    /// The tie of a connection without requests: only its client's address can make one.
    pub fn of_connection(&self, client: Option<IpAddr>) -> Option<u64> {
        matches!(self, Self::SourceIp).then(|| client.map(of_address)).flatten()
    }
}

impl Cookie {
    fn made(&self, rng: &Rng) -> Affinity {
        let value = format!("{:016x}", rng.bits());
        let set_cookie = format!("{}={value}{}", self.name, self.attributes);
        Affinity { key: Some(hash(value.as_bytes())), set_cookie: Some(set_cookie.into()) }
    }
}

/// IPv4 clients have the same key on sockets of both families.
fn of_address(address: IpAddr) -> u64 {
    match address.to_canonical() {
        IpAddr::V4(address) => hash(&address.octets()),
        IpAddr::V6(address) => hash(&address.octets()),
    }
}

/// The hash of a key, or of an endpoint's id.
pub fn hash(bytes: &[u8]) -> u64 {
    stable_hash(0, bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::route::Http1Head;

    fn affinity(on: &HashOn, head: &str) -> Affinity {
        on.affinity(&Http1Head::new(head.as_bytes()), None, &Rng::new(1))
    }

    fn key(on: &HashOn, head: &str) -> Option<u64> {
        affinity(on, head).key
    }

    #[test]
    fn similar_keys_are_spread_evenly() {
        let mut counts = [0_u32; 16];
        for user in 0..100_000_u32 {
            counts[(hash(format!("user-{user}").as_bytes()) >> 60) as usize] += 1;
        }
        // Five standard deviations (sqrt(100000 / 16 * 15 / 16) = 77).
        assert!(counts.iter().all(|count| count.abs_diff(6250) < 385), "{counts:?}");
    }

    #[test]
    fn all_values_of_a_header_count_in_their_order() {
        let on = HashOn::Header(HeaderName::from_static("x-user"));
        let of = |fields: &str| key(&on, &format!("GET / HTTP/1.1\r\nhost: users\r\n{fields}\r\n"));
        let a = of("X-User: a\r\n");
        let ab = of("x-user: a\r\nother: c\r\nx-user: b\r\n");
        assert!(a.is_some() && a != ab && ab != of("x-user: b\r\nx-user: a\r\n"));
        assert_ne!(ab, of("x-user: ab\r\n"));
        assert_eq!(a, of("other: d\r\nx-user: a\r\n"));
        assert_eq!(of("x-users: a\r\n"), None);
    }

    #[test]
    fn a_cookie_is_found_among_others_and_made_where_there_is_none() {
        let cookie = Cookie { name: "tie".into(), attributes: "; Path=/; Max-Age=60".into() };
        let on = HashOn::Cookie(cookie);
        let of = |fields: &str| affinity(&on, &format!("GET / HTTP/1.1\r\nhost: users\r\n{fields}\r\n"));
        let sent = of("cookie: a=1; xtie=no\r\ncookie: b=2; tie=abc; c=3\r\n");
        assert_eq!(sent, Affinity { key: Some(hash(b"abc")), set_cookie: None });
        for without in ["cookie: ties=abc; tie=\r\n", ""] {
            let affinity = of(without);
            let set = affinity.set_cookie.unwrap();
            let value = set.strip_prefix("tie=").and_then(|set| set.strip_suffix("; Path=/; Max-Age=60"));
            assert_eq!(affinity.key, value.map(|value| hash(value.as_bytes())));
        }
    }

    #[test]
    fn a_query_parameter_is_found_by_its_whole_name() {
        let on = HashOn::Query("user".into());
        let of = |target: &str| key(&on, &format!("GET {target} HTTP/1.1\r\nhost: users\r\n\r\n"));
        assert_eq!(of("/?a=1&user=x&user=y"), Some(hash(b"x")));
        for none in ["/", "/?users=x", "/?a=user=x"] {
            assert_eq!(of(none), None, "{none}");
        }
    }

    #[test]
    fn a_client_has_one_key_whatever_the_family_of_the_socket() {
        let of = |address: &str| {
            let client = Some(address.parse().unwrap());
            assert_eq!(HashOn::Query("a".into()).of_connection(client), None);
            let head = Http1Head::new(b"GET / HTTP/1.1\r\nhost: users\r\n\r\n");
            let key = HashOn::SourceIp.affinity(&head, client, &Rng::new(1)).key;
            assert_eq!(key, HashOn::SourceIp.of_connection(client));
            key
        };
        assert!(of("10.0.0.1").is_some());
        assert_eq!(of("10.0.0.1"), of("::ffff:10.0.0.1"));
        assert_ne!(of("10.0.0.1"), of("10.0.0.2"));
        assert_eq!(HashOn::SourceIp.of_connection(None), None);
    }
}
