//! Alert rules as sidecars read them, and who is told.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use heddle_api::crd::{self, Alert, AlertCondition, GatewayDuration, RequestDirection, Webhook};
use heddle_api::discovery::v1;

use crate::compile::traffic::duration;
use crate::source::{ObjectName, Objects};

const DEFAULT_WINDOW: Duration = Duration::from_secs(60);
const DEFAULT_MIN_REQUESTS: u32 = 20;
const DEFAULT_REPEAT: Duration = Duration::from_secs(4 * 3600);

/// The rules in force by their ids.
pub(crate) type AlertRules = BTreeMap<String, Arc<Rule>>;

/// What the control plane has to know of a rule.
#[derive(Debug, PartialEq)]
pub(crate) struct Rule {
    /// The policy that has it, and its name there.
    pub(crate) policy: ObjectName,
    pub(crate) name: String,
    pub(crate) direction: RequestDirection,
    /// What it says, for people.
    pub(crate) summary: String,
    /// How often a firing alert is told again.
    pub(crate) repeat: Duration,
    pub(crate) target: Option<Target>,
}

/// Who is told.
#[derive(Debug, PartialEq)]
pub(crate) struct Target {
    pub(crate) url: http::Uri,
    /// Where the key is written, as `namespace/name` and the entry.
    pub(crate) secret: (ObjectName, String),
    /// `None`: there is no such key.
    pub(crate) key: Option<Key>,
}

/// The key of signatures. Shown nowhere.
#[derive(PartialEq)]
pub(crate) struct Key(pub(crate) Box<[u8]>);

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key(..)")
    }
}

/// The unique name of a rule.
pub(super) fn id(policy: &ObjectName, alert: &Alert) -> String {
    format!("{policy}/{}", alert.name)
}

/// The rule as sidecars evaluate it; nothing of who is told is in it.
pub(super) fn wire(policy: &ObjectName, alert: &Alert) -> v1::Alert {
    let AlertCondition { error_rate, request_rate, latency } = &alert.when;
    let errors = error_rate.as_ref().map(|rate| {
        let class = rate.class.clone().unwrap_or_default();
        v1::alert::Condition::ErrorRate(v1::ErrorRate { percent: rate.percent, class })
    });
    let above = request_rate.as_ref().and_then(|rate| rate.above).map(v1::alert::Condition::RequestsAbove);
    let below = request_rate.as_ref().and_then(|rate| rate.below).map(v1::alert::Condition::RequestsBelow);
    let slow = latency.as_ref().map(|latency| {
        let above = Some(duration(latency.above.get()));
        v1::alert::Condition::Latency(v1::LatencyAbove { percentile: latency.percentile, above })
    });
    let time = |time: Option<GatewayDuration>, default| duration(time.map_or(default, GatewayDuration::get));
    let destination = alert.destination(&policy.namespace);
    v1::Alert {
        id: id(policy, alert),
        // Exactly one is given, or the object would have been refused.
        condition: errors.or(above).or(below).or(slow),
        outbound: alert.direction == Some(RequestDirection::Outbound),
        service: destination.map(|name| name.to_string()).unwrap_or_default(),
        window: Some(time(alert.window, DEFAULT_WINDOW)),
        min_requests: alert.min_requests.unwrap_or(DEFAULT_MIN_REQUESTS),
        hold: Some(time(alert.hold, Duration::ZERO)),
    }
}

/// What the control plane keeps of the rule.
pub(super) fn rule(policy: &ObjectName, alert: &Alert, objects: &Objects) -> Rule {
    let target = alert.webhook.as_ref().and_then(|Webhook { url, secret_ref }| {
        let name = ObjectName { namespace: policy.namespace.clone(), name: secret_ref.name.clone() };
        let secret = objects.secrets.get(&name);
        let key = secret.and_then(|secret| secret.value.value(&secret_ref.key)).map(|key| Key(key.into()));
        // An object with another would have been refused.
        let url = url.parse().ok()?;
        Some(Target { url, secret: (name, secret_ref.key.clone()), key })
    });
    Rule {
        policy: policy.clone(),
        name: alert.name.clone(),
        direction: alert.direction.unwrap_or_default(),
        summary: summary(alert),
        repeat: alert.repeat.map_or(DEFAULT_REPEAT, GatewayDuration::get),
        target,
    }
}

fn summary(alert: &Alert) -> String {
    let AlertCondition { error_rate, request_rate, latency } = &alert.when;
    let window = alert.window.unwrap_or(DEFAULT_WINDOW.into());
    let what = match (error_rate, request_rate, latency) {
        (Some(rate), _, _) => {
            format!(
                "{}% or more of requests fail ({})",
                rate.percent,
                rate.class.as_deref().unwrap_or("5xx, grpc")
            )
        }
        (_, Some(crd::RequestRate { above: Some(above), .. }), _) => format!("more than {above} requests/s"),
        (_, Some(crd::RequestRate { below: Some(below), .. }), _) => format!("fewer than {below} requests/s"),
        (_, _, Some(latency)) => format!("p{} above {}", latency.percentile, latency.above),
        _ => String::new(),
    };
    let to = alert.service.as_ref().map(|service| format!(" of those to {service}")).unwrap_or_default();
    format!("{what} over {window}{to}")
}

/// Where the keys are that a policy's webhooks need and nobody has, as "Secret namespace/name KEY".
pub(in crate::compile) fn missing_keys(
    policy: &ObjectName,
    alerts: &[Alert],
    objects: &Objects,
) -> Vec<String> {
    let targets = alerts.iter().filter_map(|alert| rule(policy, alert, objects).target);
    let missing = targets.filter(|target| target.key.is_none());
    missing.map(|Target { secret: (name, key), .. }| format!("Secret {name} {key}")).collect()
}
