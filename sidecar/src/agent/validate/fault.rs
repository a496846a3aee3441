//! The faults that clients of a service meet, and the requests that policies are about.

use http::HeaderName;

use heddle_api::discovery::v1;

use super::policy::duration;
use super::{Invalid, port};
use crate::config::Port;
use crate::policy::fault::{Abort, Fault};
use crate::policy::request_match::RequestMatch;
use crate::route::normal_path;

pub(super) fn faults(wire: Vec<v1::Fault>, ports: &[Port]) -> Result<Vec<Fault>, Invalid> {
    let valid = |(index, wire)| fault(wire, ports).map_err(|e| e.within(&format!("faults[{index}]")));
    wire.into_iter().enumerate().map(valid).collect()
}

/// A fault of a rule: for requests to whichever port.
pub(super) fn of_rule(wire: v1::Fault) -> Result<Fault, Invalid> {
    match wire.port {
        0 => fault(wire, &[]),
        number => Err(Invalid::new("port", format!("a rule has no port, but this is for {number}"))),
    }
}

fn fault(wire: v1::Fault, ports: &[Port]) -> Result<Fault, Invalid> {
    let number = match wire.port {
        0 => None,
        number => Some(port("port", number)?),
    };
    if let Some(number) = number.filter(|number| ports.iter().all(|p| p.number != *number)) {
        return Err(Invalid::new("port", format!("the service has no port {number}")));
    }
    let delay = match wire.delay {
        Some(v1::FaultDelay { fixed, percent: share }) => {
            let fixed = fixed.ok_or_else(|| Invalid::new("delay.fixed", "there is none"))?;
            Some((duration("delay.fixed", fixed)?, percent("delay.percent", share)?))
        }
        None => None,
    };
    let abort = match wire.abort {
        Some(v1::FaultAbort { status, grpc_status, percent: share }) => {
            let abort = Abort {
                status: code("abort.status", status, 200, 599)?,
                grpc_status: code("abort.grpc_status", grpc_status, 1, 16)?,
            };
            if abort == (Abort { status: None, grpc_status: None }) {
                return Err(Invalid::new("abort", "it has no status"));
            }
            Some((abort, percent("abort.percent", share)?))
        }
        None => None,
    };
    if delay.is_none() && abort.is_none() {
        return Err(Invalid::new("delay", "there is neither a delay nor an abort"));
    }
    let matches = request_matches(wire.matches)?;
    Ok(Fault { source: wire.source.as_str().into(), port: number, matches, delay, abort })
}

/// A code between two others; `None` for 0.
fn code<T: TryFrom<u32>>(path: &str, code: u32, min: u32, max: u32) -> Result<Option<T>, Invalid> {
    let invalid = || Invalid::new(path, format!("{code} is not between {min} and {max}"));
    match code {
        0 => Ok(None),
        code if (min..=max).contains(&code) => T::try_from(code).map(Some).map_err(|_| invalid()),
        _ => Err(invalid()),
    }
}

fn percent(path: &str, percent: u32) -> Result<u8, Invalid> {
    let valid = u8::try_from(percent).ok().filter(|percent| *percent <= 100);
    valid.ok_or_else(|| Invalid::new(path, format!("{percent} is not between 0 and 100")))
}

/// The requests that a policy is about.
pub(super) fn request_matches(wire: Vec<v1::RequestMatch>) -> Result<Box<[RequestMatch]>, Invalid> {
    let valid =
        |(index, wire)| request_match(wire).map_err(|e: Invalid| e.within(&format!("matches[{index}]")));
    wire.into_iter().enumerate().map(valid).collect()
}

fn request_match(wire: v1::RequestMatch) -> Result<RequestMatch, Invalid> {
    let path_prefix = match wire.path_prefix.as_str() {
        "" => None,
        prefix => {
            let normal = normal_path(prefix).map_err(|e| Invalid::new("path_prefix", e.to_string()))?;
            Some(normal.strip_suffix(b"/").unwrap_or(&normal).into())
        }
    };
    let header = |(index, wire): (usize, v1::HeaderEquals)| {
        let name = HeaderName::try_from(wire.name.as_str());
        let name = name.map_err(|e| Invalid::new(format!("headers[{index}].name"), e.to_string()))?;
        Ok((name, wire.value.as_bytes().into()))
    };
    Ok(RequestMatch {
        method: Some(wire.method).filter(|method| !method.is_empty()).map(|method| method.as_bytes().into()),
        path_prefix,
        headers: wire.headers.into_iter().enumerate().map(header).collect::<Result<_, Invalid>>()?,
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::config::AppProtocol;

    fn wire() -> v1::Fault {
        v1::Fault {
            source: "shop/a".into(),
            port: 80,
            delay: Some(v1::FaultDelay {
                fixed: Some(prost_types::Duration { seconds: 2, nanos: 0 }),
                percent: 10,
            }),
            abort: Some(v1::FaultAbort { status: 503, grpc_status: 0, percent: 100 }),
            matches: vec![v1::RequestMatch {
                method: "GET".into(),
                path_prefix: "/v1/".into(),
                headers: vec![v1::HeaderEquals { name: "X-Test".into(), value: "yes".into() }],
            }],
        }
    }

    fn check(change: impl FnOnce(&mut v1::Fault)) -> Result<Vec<Fault>, String> {
        let mut message = wire();
        change(&mut message);
        let ports = [Port { number: 80, protocol: AppProtocol::Http, policy: None, tls: None }];
        faults(vec![message], &ports).map_err(|e| e.to_string())
    }

    #[test]
    fn a_fault_is_taken_over() {
        let fault = &check(|_| {}).unwrap()[0];
        assert_eq!((fault.port, fault.delay), (Some(80), Some((Duration::from_secs(2), 10))));
        assert_eq!(fault.abort, Some((Abort { status: Some(503), grpc_status: None }, 100)));
        assert_eq!(fault.matches[0].path_prefix.as_deref(), Some(b"/v1".as_slice()));
    }

    #[test]
    fn what_cannot_be_is_refused_by_its_path() {
        for (change, path) in [
            ((|f| f.port = 81) as fn(&mut v1::Fault), "faults[0].port: "),
            (|f| f.delay.as_mut().unwrap().percent = 101, "faults[0].delay.percent: "),
            (|f| f.abort.as_mut().unwrap().status = 600, "faults[0].abort.status: "),
            (|f| f.abort.as_mut().unwrap().status = 0, "faults[0].abort: "),
            (|f| f.matches[0].path_prefix = "v1".into(), "faults[0].matches[0].path_prefix: "),
            (|f| f.matches[0].headers[0].name = " ".into(), "faults[0].matches[0].headers[0].name: "),
        ] {
            let error = check(change).unwrap_err();
            assert!(error.starts_with(path), "{error} / {path}");
        }
    }
}
