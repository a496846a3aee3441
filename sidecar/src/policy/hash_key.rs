//! What a request is hashed by, so that equal keys go to the same endpoint.
//!
//! The hash is the same in every sidecar, process and version: they have to
//! agree. It is no protection against keys that were made to collide; the
//! bounded load of [`crate::policy::balance`] is.

use std::net::IpAddr;

use crate::policy::rng::Rng;

/// Which part of a request is its key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HashOn {
    /// The values of a header.
    Header(Box<str>),
    /// A cookie, which is set where the client has none.
    Cookie(Cookie),
    /// The client's address.
    SourceIp,
    /// A query parameter, as it is written.
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

/// Where a key is looked for.
pub trait Source {
    /// The values of a field, in their order. Names are compared without case.
    fn fields<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a [u8]>;
    /// What stands between `?` and the end of the target.
    fn query(&self) -> &[u8];
    /// The client's address, if it is known.
    fn client(&self) -> Option<IpAddr>;
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
    pub fn affinity(&self, source: &impl Source, rng: &Rng) -> Affinity {
        match self {
            Self::Header(name) => {
                let join = |before: Option<u64>, value: &[u8]| Some(mix(before.unwrap_or(0), hash(value)));
                Affinity { key: source.fields(name).fold(None, join), set_cookie: None }
            }
            Self::Cookie(cookie) => {
                let sent = source.fields("cookie").find_map(|field| cookie.in_field(field));
                match sent {
                    Some(value) => Affinity { key: Some(hash(value)), set_cookie: None },
                    None => cookie.made(rng),
                }
            }
            Self::SourceIp => Affinity { key: source.client().map(of_address), set_cookie: None },
            Self::Query(name) => {
                let pairs = source.query().split(|byte| *byte == b'&');
                let value =
                    pairs.filter_map(|pair| split(pair, b'=')).find(|(key, _)| *key == name.as_bytes());
                Affinity { key: value.map(|(_, value)| hash(value)), set_cookie: None }
            }
        }
    }

    /// The tie of a connection without requests: only its client's address can make one.
    pub fn of_connection(&self, client: Option<IpAddr>) -> Option<u64> {
        matches!(self, Self::SourceIp).then(|| client.map(of_address)).flatten()
    }
}

impl Cookie {
    /// Its value in a `Cookie` field; an empty one is none.
    fn in_field<'a>(&self, field: &'a [u8]) -> Option<&'a [u8]> {
        let pairs = field.split(|byte| *byte == b';').map(<[u8]>::trim_ascii);
        let named =
            pairs.filter_map(|pair| split(pair, b'=')).filter(|(name, _)| *name == self.name.as_bytes());
        named.map(|(_, value)| value).find(|value| !value.is_empty())
    }

    fn made(&self, rng: &Rng) -> Affinity {
        let value = format!("{:016x}", rng.bits());
        let set_cookie = format!("{}={value}{}", self.name, self.attributes);
        Affinity { key: Some(hash(value.as_bytes())), set_cookie: Some(set_cookie.into()) }
    }
}

fn split(pair: &[u8], at: u8) -> Option<(&[u8], &[u8])> {
    let middle = pair.iter().position(|byte| *byte == at)?;
    Some((&pair[..middle], &pair[middle + 1..]))
}

/// IPv4 clients have the same key on sockets of both families.
fn of_address(address: IpAddr) -> u64 {
    match address.to_canonical() {
        IpAddr::V4(address) => hash(&address.octets()),
        IpAddr::V6(address) => hash(&address.octets()),
    }
}

/// 64 well-mixed bits of some bytes: the folded multiplication of wyhash (Wang Yi, public
/// domain), eight bytes at a time.
pub fn hash(bytes: &[u8]) -> u64 {
    let (words, rest) = bytes.as_chunks::<8>();
    let state = words.iter().fold(bytes.len() as u64, |state, word| mix(state, u64::from_le_bytes(*word)));
    let mut last = [0; 8];
    last[..rest.len()].copy_from_slice(rest);
    mix(mix(state, u64::from_le_bytes(last)), 0)
}

fn mix(state: u64, word: u64) -> u64 {
    let product = u128::from(state ^ 0xa076_1d64_78bd_642f) * u128::from(word ^ 0xe703_7ed1_a0b4_28db);
    #[expect(clippy::cast_possible_truncation, reason = "folds both halves")]
    let folded = (product >> 64) as u64 ^ product as u64;
    folded
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Request {
        fields: &'static [(&'static str, &'static str)],
        query: &'static str,
        client: Option<IpAddr>,
    }

    impl Source for Request {
        fn fields<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a [u8]> {
            let named = self.fields.iter().filter(move |(field, _)| field.eq_ignore_ascii_case(name));
            named.map(|(_, value)| value.as_bytes())
        }

        fn query(&self) -> &[u8] {
            self.query.as_bytes()
        }

        fn client(&self) -> Option<IpAddr> {
            self.client
        }
    }

    fn request(fields: &'static [(&'static str, &'static str)], query: &'static str) -> Request {
        Request { fields, query, client: None }
    }

    fn key(on: &HashOn, request: &Request) -> Option<u64> {
        on.affinity(request, &Rng::new(1)).key
    }

    #[test]
    fn the_hash_never_changes() {
        // Sidecars of different versions have to agree.
        let known = [9_453_038_937_549_525_072, 2_442_438_697_980_503_658, 18_007_671_211_155_060_347];
        assert_eq!([hash(b""), hash(b"a"), hash(b"user-4711")], known);
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
        let on = HashOn::Header("x-user".into());
        let a = key(&on, &request(&[("X-User", "a")], ""));
        let ab = key(&on, &request(&[("x-user", "a"), ("other", "c"), ("x-user", "b")], ""));
        let ba = key(&on, &request(&[("x-user", "b"), ("x-user", "a")], ""));
        assert!(a.is_some() && a != ab && ab != ba);
        assert_eq!(a, key(&on, &request(&[("x-user", "a"), ("other", "d")], "")));
        assert_eq!(key(&on, &request(&[("x-users", "a")], "")), None);
    }

    #[test]
    fn a_cookie_is_found_among_others_and_made_where_there_is_none() {
        let cookie = Cookie { name: "heddle".into(), attributes: "; Path=/; Max-Age=60".into() };
        let on = HashOn::Cookie(cookie);
        let sent = request(&[("cookie", "a=1; xheddle=no"), ("cookie", "b=2;heddle=abc; c=3")], "");
        assert_eq!(on.affinity(&sent, &Rng::new(1)), Affinity { key: Some(hash(b"abc")), set_cookie: None });
        for without in [request(&[("cookie", "heddles=abc; heddle=")], ""), request(&[], "")] {
            let affinity = on.affinity(&without, &Rng::new(1));
            let set = affinity.set_cookie.unwrap();
            let value = set.strip_prefix("heddle=").and_then(|set| set.strip_suffix("; Path=/; Max-Age=60"));
            assert_eq!(affinity.key, value.map(|value| hash(value.as_bytes())));
        }
    }

    #[test]
    fn a_query_parameter_is_found_by_its_whole_name() {
        let on = HashOn::Query("user".into());
        assert_eq!(key(&on, &request(&[], "a=1&user=x&user=y")), Some(hash(b"x")));
        for none in ["", "users=x", "user", "a=user=x"] {
            assert_eq!(key(&on, &request(&[], none)), None, "{none}");
        }
    }

    #[test]
    fn a_client_has_one_key_whatever_the_family_of_the_socket() {
        let of = |address: &str| {
            let client = Some(address.parse().unwrap());
            assert_eq!(HashOn::Query("a".into()).of_connection(client), None);
            assert_eq!(
                key(&HashOn::SourceIp, &Request { client, ..request(&[], "") }),
                HashOn::SourceIp.of_connection(client)
            );
            HashOn::SourceIp.of_connection(client)
        };
        assert!(of("10.0.0.1").is_some());
        assert_eq!(of("10.0.0.1"), of("::ffff:10.0.0.1"));
        assert_ne!(of("10.0.0.1"), of("10.0.0.2"));
        assert_eq!(HashOn::SourceIp.of_connection(None), None);
    }
}
