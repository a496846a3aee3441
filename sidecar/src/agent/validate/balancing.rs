//! The load balancing part of a traffic policy.

use std::time::Duration;

use heddle_api::discovery::v1;
use http::HeaderName;

use super::{Invalid, policy, unknown};
use crate::policy::balance::{Algorithm, Balancing};
use crate::policy::hash_key::{Cookie, HashOn};

pub(super) fn balancing(wire: v1::LoadBalancer) -> Result<Balancing, Invalid> {
    let hashed = wire.algorithm == v1::BalancingAlgorithm::ConsistentHash as i32;
    if wire.hash.is_some() && !hashed {
        return Err(Invalid::new("hash", "it has a meaning only with CONSISTENT_HASH"));
    }
    let algorithm = match v1::BalancingAlgorithm::try_from(wire.algorithm) {
        Ok(v1::BalancingAlgorithm::PeakEwma) => Algorithm::PeakEwma,
        Ok(v1::BalancingAlgorithm::LeastRequest) => Algorithm::LeastRequest,
        Ok(v1::BalancingAlgorithm::RoundRobin) => Algorithm::RoundRobin,
        Ok(v1::BalancingAlgorithm::Random) => Algorithm::Random,
        Ok(v1::BalancingAlgorithm::ConsistentHash) => {
            let key = wire.hash.and_then(|hash| hash.key);
            let key = key.ok_or_else(|| Invalid::new("hash", "it is needed by CONSISTENT_HASH"))?;
            Algorithm::ConsistentHash(hash_on(key).map_err(|e| e.within("hash"))?)
        }
        Err(_) => return Err(unknown("algorithm", wire.algorithm)),
    };
    let slow_start = match wire.slow_start {
        None => None,
        Some(window) => match policy::duration("slow_start", window)? {
            Duration::ZERO => return Err(Invalid::new("slow_start", "a window of no time is none")),
            window => Some(window),
        },
    };
    if let Some(percent @ 101..) = wire.panic_threshold {
        return Err(Invalid::new("panic_threshold", format!("{percent} is more than 100")));
    }
    Ok(Balancing {
        algorithm,
        slow_start,
        prefer_zone: wire.prefer_zone,
        panic_threshold: wire.panic_threshold,
    })
}

fn hash_on(key: v1::hash_key::Key) -> Result<HashOn, Invalid> {
    Ok(match key {
        v1::hash_key::Key::Header(name) => HashOn::Header(header(&name)?),
        v1::hash_key::Key::Cookie(wire) => HashOn::Cookie(cookie(wire).map_err(|e| e.within("cookie"))?),
        v1::hash_key::Key::SourceIp(true) => HashOn::SourceIp,
        v1::hash_key::Key::SourceIp(false) => return Err(Invalid::new("source_ip", "it can only be true")),
        v1::hash_key::Key::Query(name) if name.is_empty() => {
            return Err(Invalid::new("query", "it is empty"));
        }
        v1::hash_key::Key::Query(name) => HashOn::Query(name.into()),
    })
}

fn cookie(wire: v1::HashCookie) -> Result<Cookie, Invalid> {
    let mut attributes = String::new();
    if let Some(ttl) = wire.ttl {
        // Less than a second would be none, which deletes a cookie.
        let seconds = policy::duration("ttl", ttl)?.as_secs_f64().ceil();
        attributes.push_str(&format!("; Max-Age={seconds}"));
    }
    if !wire.path.is_empty() {
        if !wire.path.starts_with('/') || wire.path.bytes().any(|b| !(0x20..0x7f).contains(&b) || b == b';') {
            return Err(Invalid::new("path", format!("{:?} is no path of a cookie", wire.path)));
        }
        attributes.push_str(&format!("; Path={}", wire.path));
    }
    // No script has any use for it.
    attributes.push_str("; HttpOnly");
    // Names of cookies are tokens, as those of headers are, but with their case.
    if wire.name.parse::<HeaderName>().is_err() {
        return Err(Invalid::new("name", format!("{:?} is no name of a cookie", wire.name)));
    }
    Ok(Cookie { name: wire.name.into(), attributes: attributes.into() })
}

fn header(name: &str) -> Result<HeaderName, Invalid> {
    name.parse().map_err(|_| Invalid::new("header", format!("{name:?} is no name of a header")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hashed(key: Option<v1::hash_key::Key>) -> v1::LoadBalancer {
        v1::LoadBalancer {
            algorithm: v1::BalancingAlgorithm::ConsistentHash.into(),
            hash: Some(v1::HashKey { key }),
            ..v1::LoadBalancer::default()
        }
    }

    fn header(name: &str) -> Option<v1::hash_key::Key> {
        Some(v1::hash_key::Key::Header(name.into()))
    }

    fn with_cookie(name: &str, seconds: i64, path: &str) -> v1::LoadBalancer {
        let ttl = (seconds != 0).then_some(prost_types::Duration { seconds, nanos: 1 });
        let cookie = v1::HashCookie { name: name.into(), ttl, path: path.into() };
        hashed(Some(v1::hash_key::Key::Cookie(cookie)))
    }

    #[test]
    fn absent_fields_mean_the_better_of_two() {
        assert_eq!(balancing(v1::LoadBalancer::default()).unwrap(), Balancing::default());
    }

    #[test]
    fn keys_are_taken_over() {
        let on = |wire| match balancing(wire).unwrap().algorithm {
            Algorithm::ConsistentHash(on) => on,
            other => panic!("{other:?}"),
        };
        assert_eq!(on(hashed(header("X-User"))), HashOn::Header(HeaderName::from_static("x-user")));
        assert_eq!(on(hashed(Some(v1::hash_key::Key::SourceIp(true)))), HashOn::SourceIp);
        let cookie = |attributes: &str| Cookie { name: "tie".into(), attributes: attributes.into() };
        let long = cookie("; Max-Age=61; Path=/a; HttpOnly");
        assert_eq!(on(with_cookie("tie", 60, "/a")), HashOn::Cookie(long));
        assert_eq!(on(with_cookie("tie", 0, "")), HashOn::Cookie(cookie("; HttpOnly")));
    }

    #[test]
    fn impossible_values_are_refused_by_path() {
        let default = v1::LoadBalancer::default;
        let zero = Some(prost_types::Duration::default());
        for (wire, path) in [
            (v1::LoadBalancer { algorithm: 9, ..default() }, "algorithm: "),
            (v1::LoadBalancer { algorithm: 4, ..default() }, "hash: "),
            (hashed(None), "hash: "),
            (v1::LoadBalancer { algorithm: 0, ..hashed(header("a")) }, "hash: "),
            (hashed(header("a b")), "hash.header: "),
            (hashed(Some(v1::hash_key::Key::SourceIp(false))), "hash.source_ip: "),
            (hashed(Some(v1::hash_key::Key::Query(String::new()))), "hash.query: "),
            (with_cookie("a=b", 0, ""), "hash.cookie.name: "),
            (with_cookie("a", -1, ""), "hash.cookie.ttl: "),
            (with_cookie("a", 0, "a"), "hash.cookie.path: "),
            (with_cookie("a", 0, "/;b"), "hash.cookie.path: "),
            (v1::LoadBalancer { slow_start: zero, ..default() }, "slow_start: "),
            (v1::LoadBalancer { panic_threshold: Some(101), ..default() }, "panic_threshold: "),
        ] {
            let error = balancing(wire).unwrap_err().to_string();
            assert!(error.starts_with(path), "{error} should begin with {path}");
        }
    }
}
