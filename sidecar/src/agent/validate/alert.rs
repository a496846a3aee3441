//! The alert rules of a workload.

use std::collections::HashSet;
use std::time::Duration;

use heddle_api::discovery::v1;
use heddle_api::discovery::v1::alert::Condition as Wire;
use heddle_api::name::ServiceName;

use super::{Invalid, policy};
use crate::config::{Against, WatchedAlert};
use crate::policy::alert::{AlertRule, Condition};
use crate::reason::Reason;
use crate::telemetry::metrics::Direction;

/// Those of a handful of policies; each is looked at every second.
const MAX_ALERTS: usize = 256;

const HOUR: Duration = Duration::from_secs(3600);

pub(super) fn alerts(wire: Vec<v1::Alert>) -> Result<Vec<WatchedAlert>, Invalid> {
    if wire.len() > MAX_ALERTS {
        return Err(Invalid::new("alerts", format!("they are more than {MAX_ALERTS}")));
    }
    let mut ids = HashSet::new();
    let mut alerts = Vec::with_capacity(wire.len());
    for (index, wire) in wire.into_iter().enumerate() {
        let within = |e: Invalid| e.within(&format!("alerts[{index}]"));
        if wire.id.is_empty() || !ids.insert(wire.id.clone()) {
            return Err(within(Invalid::new("id", format!("{:?} is empty or not unique", wire.id))));
        }
        alerts.push(alert(wire).map_err(within)?);
    }
    Ok(alerts)
}

fn alert(wire: v1::Alert) -> Result<WatchedAlert, Invalid> {
    let share = |path: &str, percent: f64| {
        let valid = percent > 0.0 && percent <= 100.0;
        if valid {
            Ok(percent)
        } else {
            Err(Invalid::new(path, format!("{percent} is not above 0 and up to 100")))
        }
    };
    let rate = |path: &str, rate: f64| {
        let valid = rate.is_finite() && rate > 0.0;
        if valid { Ok(rate) } else { Err(Invalid::new(path, format!("{rate} is no number above 0"))) }
    };
    let (condition, against) = match wire.condition {
        Some(Wire::ErrorRate(v1::ErrorRate { percent, class })) => {
            (Condition::ShareFrom(share("error_rate.percent", percent)?), against(&class)?)
        }
        Some(Wire::RequestsAbove(above)) => {
            (Condition::RateAbove(rate("requests_above", above)?), Against::None)
        }
        Some(Wire::RequestsBelow(below)) => {
            (Condition::RateBelow(rate("requests_below", below)?), Against::None)
        }
        Some(Wire::Latency(v1::LatencyAbove { percentile, above })) => {
            // The percentile is above the limit when more than the rest is slower.
            let faster = share("latency.percentile", percentile)?;
            let above = above.ok_or_else(|| Invalid::new("latency.above", "there is none"))?;
            let above = policy::duration("latency.above", above)?;
            (Condition::ShareAbove(100.0 - faster), Against::SlowerThan(above))
        }
        None => return Err(Invalid::new("condition", "it is of no kind that this sidecar knows")),
    };
    let service = match wire.service.as_str() {
        "" => None,
        name => Some(name.parse::<ServiceName>().map_err(|e| Invalid::new("service", e.to_string()))?),
    };
    let time = |path: &str, time: Option<prost_types::Duration>| {
        time.map_or(Ok(Duration::ZERO), |time| policy::duration(path, time))
    };
    let (window, hold) = (time("window", wire.window)?, time("hold", wire.hold)?);
    if window < Duration::from_secs(1) || window > HOUR {
        return Err(Invalid::new("window", format!("{window:?} is not between 1s and 1h")));
    }
    if hold > HOUR {
        return Err(Invalid::new("hold", format!("{hold:?} is longer than 1h")));
    }
    Ok(WatchedAlert {
        id: wire.id,
        rule: AlertRule { condition, window, min_requests: wire.min_requests.into(), hold },
        against,
        direction: if wire.outbound { Direction::Outbound } else { Direction::Inbound },
        service,
    })
}

fn against(class: &str) -> Result<Against, Invalid> {
    Ok(match class {
        "" => Against::ServerErrors,
        "5xx" => Against::Status5xx,
        "4xx" => Against::Status4xx,
        "grpc" => Against::Grpc,
        word => {
            let reason = Reason::ALL.into_iter().find(|reason| reason.as_str() == word);
            let unknown =
                || Invalid::new("error_rate.class", format!("this sidecar knows no reason {word:?}"));
            Against::Reason(reason.ok_or_else(unknown)?)
        }
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use heddle_api::crd::ALERT_REASONS;

    use super::*;

    fn wire() -> v1::Alert {
        v1::Alert {
            id: "shop/users/errors".into(),
            condition: Some(Wire::ErrorRate(v1::ErrorRate { percent: 5.0, class: "circuit_open".into() })),
            outbound: true,
            service: "shop/users".into(),
            window: Some(prost_types::Duration { seconds: 60, nanos: 0 }),
            min_requests: 20,
            hold: None,
        }
    }

    #[test]
    fn policies_may_name_every_reason_and_no_other_word() {
        let reasons: BTreeSet<&str> = Reason::ALL.map(Reason::as_str).into();
        assert_eq!(ALERT_REASONS.iter().copied().collect::<BTreeSet<_>>(), reasons);
        assert!(reasons.into_iter().all(|reason| against(reason).is_ok()));
    }

    #[test]
    fn a_percentile_is_a_share_of_slower_requests() {
        let above = Some(prost_types::Duration { seconds: 1, nanos: 0 });
        let latency = Wire::Latency(v1::LatencyAbove { percentile: 99.0, above });
        let valid = alert(v1::Alert { condition: Some(latency), ..wire() }).unwrap();
        assert_eq!(valid.rule.condition, Condition::ShareAbove(1.0));
        assert_eq!(valid.against, Against::SlowerThan(Duration::from_secs(1)));
    }

    #[test]
    fn every_refusal_names_the_field() {
        let seconds = |seconds| Some(prost_types::Duration { seconds, nanos: 0 });
        let errors =
            |percent, class: &str| Some(Wire::ErrorRate(v1::ErrorRate { percent, class: class.into() }));
        let latency = |percentile, above| Some(Wire::Latency(v1::LatencyAbove { percentile, above }));
        assert!(alerts(vec![wire()]).is_ok());
        for (wrong, path) in [
            (v1::Alert { id: String::new(), ..wire() }, "id"),
            (v1::Alert { condition: None, ..wire() }, "condition"),
            (v1::Alert { condition: errors(0.0, ""), ..wire() }, "error_rate.percent"),
            (v1::Alert { condition: errors(5.0, "bored"), ..wire() }, "error_rate.class"),
            (v1::Alert { condition: Some(Wire::RequestsAbove(f64::NAN)), ..wire() }, "requests_above"),
            (v1::Alert { condition: Some(Wire::RequestsBelow(0.0)), ..wire() }, "requests_below"),
            (v1::Alert { condition: latency(101.0, seconds(1)), ..wire() }, "latency.percentile"),
            (v1::Alert { condition: latency(99.0, None), ..wire() }, "latency.above"),
            (v1::Alert { service: "users".into(), ..wire() }, "service"),
            (v1::Alert { window: None, ..wire() }, "window"),
            (v1::Alert { window: seconds(3601), ..wire() }, "window"),
            (v1::Alert { hold: seconds(3601), ..wire() }, "hold"),
        ] {
            let error = alerts(vec![wrong]).unwrap_err().to_string();
            assert!(error.starts_with(&format!("alerts[0].{path}: ")), "{error} should name {path}");
        }
        assert!(alerts(vec![wire(), wire()]).unwrap_err().to_string().starts_with("alerts[1].id"));
    }
}
