//! The limits on requests to the workload.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Instant;

use heddle_api::discovery::v1;
use http::{HeaderName, HeaderValue};

use super::fault::request_matches;
use super::policy::duration;
use super::{Invalid, port};
use crate::config::{PortLimits, Workload};
use crate::policy::rate_limit::{Buckets, KeyPart, Probes, Quota, RateLimit};

/// The limits of each port. One that `before` knew keeps its buckets: the same name in the same
/// policy, with the same key.
pub(super) fn rate_limits(
    wire: &[v1::RateLimit],
    before: Option<&Workload>,
) -> Result<Vec<PortLimits>, Invalid> {
    let known: Vec<&RateLimit> = before.map_or_else(Vec::new, |before| {
        before.rate_limits.iter().flat_map(|port| port.limits.iter()).collect()
    });
    let mut ports: BTreeMap<u16, Vec<RateLimit>> = BTreeMap::new();
    let mut names = BTreeSet::new();
    for (index, wire) in wire.iter().enumerate() {
        let within = |e: Invalid| e.within(&format!("rate_limits[{index}]"));
        if !names.insert((&wire.source, &wire.name)) {
            return Err(within(Invalid::new("name", format!("{:?} is not unique", wire.name))));
        }
        let limit = rate_limit(wire, &known).map_err(within)?;
        for (number, marks) in scopes(&wire.scopes).map_err(within)? {
            ports.entry(number).or_default().push(RateLimit { marks, ..limit.clone() });
        }
    }
    let made = |(port, limits): (u16, Vec<RateLimit>)| {
        let known = before.and_then(|before| before.rate_limits(port));
        let probes =
            known.map_or_else(|| Arc::new(Probes::new(Instant::now())), |known| known.probes.clone());
        PortLimits { port, limits: limits.into(), probes }
    };
    Ok(ports.into_iter().map(made).collect())
}

/// A limit for all requests that match.
fn rate_limit(wire: &v1::RateLimit, known: &[&RateLimit]) -> Result<RateLimit, Invalid> {
    for (field, text) in [("source", &wire.source), ("name", &wire.name)] {
        // It is written into a quoted string.
        if text.is_empty() || text.bytes().any(|b| !b.is_ascii_graphic() || matches!(b, b'"' | b'\\')) {
            return Err(Invalid::new(field, format!("{text:?} is no name")));
        }
    }
    let parts = wire.key.iter().enumerate();
    let parts = parts.map(|(index, wire)| key_part(wire).map_err(|e| e.within(&format!("key[{index}]"))));
    let key: Arc<[KeyPart]> = parts.collect::<Result<_, Invalid>>()?;
    let per = wire.per.ok_or_else(|| Invalid::new("per", "there is none"))?;
    let quota = Quota::new(wire.requests, duration("per", per)?, wire.burst)
        .ok_or_else(|| Invalid::new("requests", "there is no such quota"))?;
    let same = known
        .iter()
        .find(|known| *known.source == *wire.source && *known.name == *wire.name && known.key == key);
    Ok(RateLimit {
        source: wire.source.as_str().into(),
        name: wire.name.as_str().into(),
        marks: None,
        matches: Vec::from(request_matches(wire.matches.clone())?).into(),
        quota,
        buckets: match same {
            Some(known) => {
                if known.quota != quota {
                    known.buckets.fit(&quota, Instant::now());
                }
                known.buckets.clone()
            }
            None => Arc::new(Buckets::new(!key.is_empty(), Instant::now())),
        },
        key,
    })
}

/// The ports, each with the marks that it is about; `None`: it is about every request.
type Scopes = BTreeMap<u16, Option<Arc<[Box<[u8]>]>>>;

fn scopes(wire: &[v1::RateLimitScope]) -> Result<Scopes, Invalid> {
    let mut ports: BTreeMap<u16, Vec<&str>> = BTreeMap::new();
    for (index, scope) in wire.iter().enumerate() {
        let number = port(&format!("scopes[{index}].port"), scope.port)?;
        ports.entry(number).or_default().push(&scope.mark);
    }
    let marks = |marks: Vec<&str>| {
        let all = marks.contains(&"");
        (!all).then(|| marks.iter().map(|mark| mark.as_bytes().into()).collect())
    };
    Ok(ports.into_iter().map(|(number, scope)| (number, marks(scope))).collect())
}

fn key_part(wire: &v1::RateLimitKey) -> Result<KeyPart, Invalid> {
    use v1::rate_limit_key::Key;
    match &wire.key {
        Some(Key::Identity(true)) => Ok(KeyPart::Identity),
        Some(Key::SourceAddress(true)) => Ok(KeyPart::SourceAddress),
        Some(Key::Route(true)) => Ok(KeyPart::Route),
        Some(Key::Header(name)) => match HeaderName::try_from(name.as_str()) {
            Ok(name) => Ok(KeyPart::Header(name)),
            Err(error) => Err(Invalid::new("header", error.to_string())),
        },
        Some(Key::Claim(path)) if !path.is_empty() => Ok(KeyPart::Claim(path.as_str().into())),
        Some(Key::Claim(_)) => Err(Invalid::new("claim", "it is empty")),
        Some(Key::Identity(false) | Key::SourceAddress(false) | Key::Route(false)) => {
            Err(Invalid::new("key", "what is not the key is left out"))
        }
        None => Err(Invalid::new("key", "it is of no kind that this sidecar knows")),
    }
}

/// What the requests of a rule carry to the sidecars of its backends.
pub(super) fn mark(wire: &str) -> Result<Option<HeaderValue>, Invalid> {
    if wire.is_empty() {
        return Ok(None);
    }
    HeaderValue::from_str(wire).map(Some).map_err(|e| Invalid::new("mark", e.to_string()))
}

#[cfg(test)]
mod tests {
    use super::super::workload;
    use super::*;

    fn wire() -> v1::RateLimit {
        let scope = |port, mark: &str| v1::RateLimitScope { port, mark: mark.into() };
        let key = v1::rate_limit_key::Key::Header("X-User".into());
        v1::RateLimit {
            source: "shop/limits".into(),
            name: "one".into(),
            scopes: vec![scope(8080, ""), scope(8081, "a"), scope(8081, "b"), scope(8080, "c")],
            matches: vec![v1::RequestMatch { method: "PUT".into(), ..v1::RequestMatch::default() }],
            key: vec![v1::RateLimitKey { key: Some(key) }],
            requests: 10,
            per: Some(prost_types::Duration { seconds: 60, nanos: 0 }),
            burst: 20,
        }
    }

    fn own(limits: Vec<v1::RateLimit>, before: Option<&Workload>) -> Result<Workload, String> {
        let message = v1::Workload {
            namespace: "shop".into(),
            service: "users".into(),
            rate_limits: limits,
            ..v1::Workload::default()
        };
        workload(&message, before).map_err(|e| e.to_string())
    }

    #[test]
    fn a_limit_is_taken_over_for_each_port() {
        let own = own(vec![wire()], None).unwrap();
        let (all, some) =
            (&own.rate_limits(8080).unwrap().limits[0], &own.rate_limits(8081).unwrap().limits[0]);
        assert!(all.marks.is_none() && own.rate_limits(80).is_none());
        assert_eq!(some.marks.as_ref().unwrap().len(), 2);
        assert!(Arc::ptr_eq(&all.buckets, &some.buckets), "it is one limit");
        assert_eq!(
            (all.matches.len(), &*all.key),
            (1, [KeyPart::Header("x-user".parse().unwrap())].as_slice())
        );
    }

    #[test]
    fn buckets_outlive_everything_but_another_key() {
        let before = own(vec![wire()], None).unwrap();
        let buckets = |own: &Workload| own.rate_limits(8080).unwrap().limits[0].buckets.clone();
        let kept = |change: fn(&mut v1::RateLimit)| {
            let mut message = wire();
            change(&mut message);
            Arc::ptr_eq(&buckets(&own(vec![message], Some(&before)).unwrap()), &buckets(&before))
        };
        assert!(kept(|limit| (limit.requests, limit.burst) = (1, 1)));
        assert!(kept(|limit| limit.matches.clear()));
        assert!(!kept(|limit| limit.key.clear()));
        assert!(!kept(|limit| limit.name = "two".into()));
    }

    #[test]
    fn what_cannot_be_is_refused_by_its_path() {
        for (change, path) in [
            ((|l| l.source.clear()) as fn(&mut v1::RateLimit), "rate_limits[0].source: "),
            (|l| l.name = "a\"b".into(), "rate_limits[0].name: "),
            (|l| l.scopes[1].port = 0, "rate_limits[0].scopes[1].port: "),
            (|l| l.matches[0].path_prefix = "v1".into(), "rate_limits[0].matches[0].path_prefix: "),
            (|l| l.key[0].key = None, "rate_limits[0].key[0].key: "),
            (
                |l| l.key[0].key = Some(v1::rate_limit_key::Key::Header(" ".into())),
                "rate_limits[0].key[0].header: ",
            ),
            (|l| l.requests = 0, "rate_limits[0].requests: "),
            (|l| l.per = None, "rate_limits[0].per: "),
        ] {
            let mut message = wire();
            change(&mut message);
            let error = own(vec![message], None).unwrap_err();
            assert!(error.starts_with(path), "{error} / {path}");
        }
        let twice = own(vec![wire(), wire()], None).unwrap_err();
        assert!(twice.starts_with("rate_limits[1].name: "), "{twice}");
        assert!(mark("HTTPRoute/a/b/c").unwrap().is_some() && mark("\n").is_err());
    }
}
