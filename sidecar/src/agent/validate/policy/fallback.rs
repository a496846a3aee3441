//! Fallbacks.

use bytes::Bytes;
use heddle_api::discovery::v1;
use heddle_api::name::ServiceName;
use http::{HeaderMap, HeaderName, HeaderValue};

use super::{Invalid, duration, unknown};
use crate::policy::fallback::{FallbackPolicy, FixedResponse, StaleCache, Step, Trigger};
use crate::route::may_edit;

/// No policy has more, and each is gone through where it is in force.
const MAX_ENTRIES: usize = 16;

/// What a policy may take of a sidecar's memory at most: for good responses, and for one fixed one.
const MAX_CACHE: u64 = 1 << 30;
const MAX_BODY: usize = 64 << 10;

pub(super) fn fallback(wire: v1::Fallback) -> Result<FallbackPolicy, Invalid> {
    for (path, count) in [("on", wire.on.len()), ("steps", wire.steps.len())] {
        if !(1..=MAX_ENTRIES).contains(&count) {
            return Err(Invalid::new(path, format!("it has {count} entries, not 1 to {MAX_ENTRIES}")));
        }
    }
    let on = wire.on.iter().enumerate();
    let on = on.map(|(index, value)| trigger(*value).ok_or_else(|| unknown(&format!("on[{index}]"), *value)));
    let on = on.collect::<Result<_, _>>()?;
    let mut steps: Vec<Step> = Vec::with_capacity(wire.steps.len());
    for (index, wire) in wire.steps.into_iter().enumerate() {
        let path = format!("steps[{index}]");
        let step = step(wire).map_err(|e| e.within(&path))?;
        let cache = |step: &Step| matches!(step, Step::StaleCache(_));
        if cache(&step) && steps.iter().any(cache) {
            return Err(Invalid::new(path, "there is a stale cache already"));
        }
        steps.push(step);
    }
    Ok(FallbackPolicy { on, steps: steps.into() })
}

fn trigger(value: i32) -> Option<Trigger> {
    Some(match v1::FallbackReason::try_from(value).ok()? {
        v1::FallbackReason::Unspecified => return None,
        v1::FallbackReason::CircuitOpen => Trigger::CircuitOpen,
        v1::FallbackReason::NoHealthyEndpoint => Trigger::NoHealthyEndpoint,
        v1::FallbackReason::Timeout => Trigger::Timeout,
    })
}

fn step(wire: v1::FallbackStep) -> Result<Step, Invalid> {
    use v1::fallback_step::Step as Wire;
    Ok(match wire.step {
        None => return Err(Invalid::new("step", "it is none that this version knows")),
        Some(Wire::StaleCache(wire)) => {
            Step::StaleCache(stale_cache(&wire).map_err(|e| e.within("stale_cache"))?)
        }
        Some(Wire::Service(wire)) => {
            let name = ServiceName::new(&wire.namespace, &wire.name);
            Step::Service(name.map_err(|e| Invalid::new("service.name", e.to_string()))?)
        }
        Some(Wire::Response(wire)) => {
            Step::Response(Box::new(response(wire).map_err(|e| e.within("response"))?))
        }
    })
}

fn stale_cache(wire: &v1::StaleCache) -> Result<StaleCache, Invalid> {
    let max_age = wire.max_age.map(|time| duration("max_age", time)).transpose()?.unwrap_or_default();
    if max_age.is_zero() {
        return Err(Invalid::new("max_age", "it keeps nothing"));
    }
    let max_bytes =
        usize::try_from(wire.max_bytes).ok().filter(|_| (1..=MAX_CACHE).contains(&wire.max_bytes));
    let max_bytes = max_bytes
        .ok_or_else(|| Invalid::new("max_bytes", format!("{} is not 1 to {MAX_CACHE}", wire.max_bytes)))?;
    Ok(StaleCache { max_age, max_bytes })
}

fn response(wire: v1::FallbackResponse) -> Result<FixedResponse, Invalid> {
    let status = u16::try_from(wire.status).ok().filter(|status| (200..=599).contains(status));
    let status =
        status.ok_or_else(|| Invalid::new("status", format!("{} is not 200 to 599", wire.status)))?;
    let mut headers = HeaderMap::with_capacity(wire.headers.len());
    for (index, header) in wire.headers.iter().enumerate() {
        let path = |field: &str| format!("headers[{index}].{field}");
        let name = HeaderName::from_bytes(header.name.as_bytes())
            .map_err(|_| Invalid::new(path("name"), format!("{:?} is no header", header.name)))?;
        may_edit(&name).map_err(|e| Invalid::new(path("name"), format!("{name}: {e}")))?;
        let value = HeaderValue::from_bytes(header.value.as_bytes())
            .map_err(|_| Invalid::new(path("value"), "it has bytes that no header may have"))?;
        if headers.insert(name, value).is_some() {
            return Err(Invalid::new(path("name"), format!("{} is there twice", header.name)));
        }
    }
    if wire.body.len() > MAX_BODY {
        return Err(Invalid::new("body", format!("it is longer than {MAX_BODY} bytes")));
    }
    if !wire.body.is_empty() && matches!(status, 204 | 205 | 304) {
        return Err(Invalid::new("body", format!("a response with status {status} has none")));
    }
    Ok(FixedResponse::new(status, headers, Bytes::from(wire.body)))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use v1::fallback_step::Step as Wire;

    use super::*;

    fn with(step: Wire) -> Result<FallbackPolicy, String> {
        let steps = vec![v1::FallbackStep { step: Some(step) }];
        fallback(v1::Fallback { on: vec![1, 3], steps }).map_err(|e| e.to_string())
    }

    fn cache(seconds: i64, max_bytes: u64) -> Wire {
        let max_age = Some(prost_types::Duration { seconds, nanos: 0 });
        Wire::StaleCache(v1::StaleCache { max_age, max_bytes })
    }

    fn answer(status: u32, headers: &[(&str, &str)], body: &str) -> Wire {
        let header =
            |(name, value): &(&str, &str)| v1::Header { name: (*name).into(), value: (*value).into() };
        let headers = headers.iter().map(header).collect();
        Wire::Response(v1::FallbackResponse { status, headers, body: body.into() })
    }

    #[test]
    fn steps_are_taken_over() {
        let policy = with(cache(60, 4096)).unwrap();
        assert!(policy.on.contains(Trigger::CircuitOpen) && policy.on.contains(Trigger::Timeout));
        assert!(!policy.on.contains(Trigger::NoHealthyEndpoint));
        let expected = StaleCache { max_age: Duration::from_secs(60), max_bytes: 4096 };
        assert_eq!(policy.stale_cache(), Some(expected));
        let service = v1::FallbackService { namespace: "shop".into(), name: "readonly".into() };
        let policy = with(Wire::Service(service)).unwrap();
        assert_eq!(*policy.steps, [Step::Service("shop/readonly".parse().unwrap())]);
        let policy = with(answer(503, &[("x-mine", "1")], "later")).unwrap();
        let Step::Response(response) = &policy.steps[0] else { panic!("{policy:?}") };
        assert_eq!((response.status, &*response.body), (503, b"later".as_slice()));
        assert_eq!(response.headers["x-mine"], "1");
    }

    #[test]
    fn impossible_values_are_refused_by_path() {
        let long = "x".repeat(MAX_BODY + 1);
        for (step, path) in [
            (cache(0, 4096), "steps[0].stale_cache.max_age: "),
            (cache(-1, 4096), "steps[0].stale_cache.max_age: "),
            (cache(1, 0), "steps[0].stale_cache.max_bytes: "),
            (cache(1, MAX_CACHE + 1), "steps[0].stale_cache.max_bytes: "),
            (Wire::Service(v1::FallbackService::default()), "steps[0].service.name: "),
            (answer(199, &[], ""), "steps[0].response.status: "),
            (answer(600, &[], ""), "steps[0].response.status: "),
            (answer(200, &[("a b", "1")], ""), "steps[0].response.headers[0].name: "),
            (answer(200, &[("heddle-x", "1")], ""), "steps[0].response.headers[0].name: "),
            (answer(200, &[("x", "1"), ("x", "2")], ""), "steps[0].response.headers[1].name: "),
            (answer(200, &[("x", "a\nb")], ""), "steps[0].response.headers[0].value: "),
            (answer(204, &[], "x"), "steps[0].response.body: "),
            (answer(200, &[], &long), "steps[0].response.body: "),
        ] {
            let error = with(step).unwrap_err();
            assert!(error.starts_with(path), "{error} should begin with {path}");
        }
        let step = || v1::FallbackStep { step: Some(cache(1, 4096)) };
        for (on, steps, path) in [
            (vec![], vec![step()], "on: "),
            (vec![0], vec![step()], "on[0]: "),
            (vec![1, 9], vec![step()], "on[1]: "),
            (vec![1], vec![], "steps: "),
            (vec![1], vec![v1::FallbackStep::default()], "steps[0].step: "),
            (vec![1], vec![step(), step()], "steps[1]: "),
        ] {
            let error = fallback(v1::Fallback { on, steps }).unwrap_err().to_string();
            assert!(error.starts_with(path), "{error} should begin with {path}");
        }
    }
}
