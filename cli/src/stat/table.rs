//! From two observations to a table.

use std::collections::BTreeMap;
use std::fmt::Write;

use super::{Alert, Observation};
use crate::control_plane::Workload;
use crate::metrics::Sample;

/// Sums over a service's workloads since they started, seen from their inbound side.
#[derive(Default, Clone)]
pub(crate) struct Totals {
    workloads: usize,
    ready: usize,
    /// The worst of its workloads' states; `None` if none says how it is.
    health: Option<Health>,
    requests: f64,
    failed: f64,
    mutual: f64,
    /// Requests up to each latency, by the bound in seconds as text.
    buckets: BTreeMap<String, f64>,
}

impl Totals {
    pub(super) fn count(&mut self, workload: &Workload) {
        self.workloads += 1;
        self.ready += usize::from(workload.more.get("ready").is_none_or(|ready| ready != false));
        let health = workload.more.get("health").and_then(|word| Health::of(word.as_str()?));
        self.health = self.health.max(health);
    }

    pub(super) fn add(&mut self, samples: &[Sample]) {
        for sample in samples {
            match (sample.name.as_str(), sample.label("direction")) {
                ("heddle_requests_total", "inbound") => {
                    self.requests += sample.value;
                    if is_failure(sample) {
                        self.failed += sample.value;
                    }
                    if sample.label("tls") == "mutual" {
                        self.mutual += sample.value;
                    }
                }
                ("heddle_request_duration_seconds_bucket", "inbound") => {
                    *self.buckets.entry(sample.label("le").to_owned()).or_default() += sample.value;
                }
                _ => {}
            }
        }
    }
}

/// How a workload is, the worst last.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Health {
    Healthy,
    Sampling,
    Warming,
    Degraded,
    Warning,
    Critical,
}

impl Health {
    /// By its word; `None` for what only other versions say.
    fn of(word: &str) -> Option<Self> {
        use Health::{Critical, Degraded, Healthy, Sampling, Warming, Warning};
        [Healthy, Sampling, Warming, Degraded, Warning, Critical].into_iter().find(|one| one.word() == word)
    }

    fn word(self) -> &'static str {
        match self {
            Self::Healthy => "healthy",
            Self::Sampling => "sampling",
            Self::Warming => "warming",
            Self::Degraded => "degraded",
            Self::Warning => "warning",
            Self::Critical => "critical",
        }
    }
}

/// An answer of the server's own fault: 5xx, or a gRPC status other than OK
/// and those that blame the caller.
fn is_failure(sample: &Sample) -> bool {
    let blames_caller = ["", "0", "1", "3", "5", "6", "7", "9", "11", "16"];
    sample.label("code").starts_with('5') || !blames_caller.contains(&sample.label("grpc_status"))
}

/// A line of the table.
#[derive(Debug, PartialEq)]
pub(crate) struct Row {
    pub(crate) service: String,
    pub(crate) endpoints: String,
    pub(crate) health: Option<Health>,
    /// Share of requests that did not fail, 0 to 1; `None` without requests.
    pub(crate) success: Option<f64>,
    pub(crate) per_second: f64,
    /// p50, p95, p99 in milliseconds.
    pub(crate) latency: [Option<f64>; 3],
    pub(crate) mutual: Option<f64>,
}

/// What happened between two observations.
pub(crate) fn rows(before: &Observation, now: &Observation) -> Vec<Row> {
    let seconds = now.at.saturating_duration_since(before.at).as_secs_f64().max(0.001);
    let none = Totals::default();
    let row = |(service, totals): (&String, &Totals)| {
        let earlier = before.lines.get(service).unwrap_or(&none);
        // A workload that left takes its counts along: less than before means none.
        let since = |now: f64, before: f64| (now - before).max(0.0);
        let requests = since(totals.requests, earlier.requests);
        let share = |part: f64| (requests > 0.0).then(|| part / requests);
        let buckets: Vec<(f64, f64)> = totals
            .buckets
            .iter()
            .filter_map(|(bound, count)| {
                let earlier = earlier.buckets.get(bound).copied().unwrap_or(0.0);
                Some((bound.parse().ok()?, since(*count, earlier)))
            })
            .collect();
        Row {
            service: service.clone(),
            endpoints: format!("{}/{}", totals.ready, totals.workloads),
            health: totals.health,
            success: share(requests - since(totals.failed, earlier.failed)),
            per_second: requests / seconds,
            latency: [0.5, 0.95, 0.99].map(|q| quantile(&buckets, q).map(|s| s * 1000.0)),
            mutual: share(since(totals.mutual, earlier.mutual)),
        }
    };
    now.lines.iter().map(row).collect()
}

/// The quantile by linear interpolation inside its bucket, as Prometheus does it.
fn quantile(buckets: &[(f64, f64)], quantile: f64) -> Option<f64> {
    let mut buckets = buckets.to_vec();
    buckets.sort_by(|a, b| a.0.total_cmp(&b.0));
    let total = buckets.last()?.1;
    if total <= 0.0 {
        return None;
    }
    let rank = quantile * total;
    let at = buckets.iter().position(|(_, count)| *count >= rank)?;
    let (below, counted) = if at == 0 { (0.0, 0.0) } else { buckets[at - 1] };
    let (bound, count) = buckets[at];
    if bound.is_infinite() {
        return Some(below);
    }
    let inside = count - counted;
    Some(if inside > 0.0 { below + (bound - below) * (rank - counted) / inside } else { bound })
}

pub(crate) fn render(rows: &[Row]) -> String {
    let mut text = format!(
        "{:<32} {:>5} {:>9} {:>9} {:>9} {:>9} {:>9} {:>9} {:>6}\n",
        "SERVICE", "READY", "HEALTH", "SUCCESS", "REQ/S", "P50", "P95", "P99", "MTLS"
    );
    let percent = |share: Option<f64>| share.map_or("-".into(), |share| format!("{:.2}%", share * 100.0));
    let whole = |share: Option<f64>| share.map_or("-".into(), |share| format!("{:.0}%", share * 100.0));
    let time = |time: Option<f64>| time.map_or("-".into(), |ms| format!("{ms:.1}ms"));
    for row in rows {
        let [p50, p95, p99] = row.latency.map(time);
        writeln!(
            text,
            "{:<32} {:>5} {:>9} {:>9} {:>9.1} {p50:>9} {p95:>9} {p99:>9} {:>6}",
            row.service,
            row.endpoints,
            row.health.map_or("-", Health::word),
            percent(row.success),
            row.per_second,
            whole(row.mutual)
        )
        .expect("writing to a string");
    }
    text
}

/// The alerts that fire, below the table; nothing if none does.
pub(super) fn alerts(alerts: &[Alert]) -> String {
    let mut text = String::new();
    if !alerts.is_empty() {
        text += &format!("\n{:<32} {:<24} {:>10}  {}\n", "SERVICE", "ALERT", "VALUE", "SAYS");
    }
    for alert in alerts {
        let Alert { alert, service, direction, summary, value, instances, since, .. } = alert;
        let value = format!("{value:.1}");
        writeln!(
            text,
            "{service:<32} {alert:<24} {value:>10}  {summary}; {direction}, at {instances} since {since}"
        )
        .expect("writing to a string");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quantile_lies_inside_its_bucket() {
        let buckets = [(0.001, 50.0), (0.002, 90.0), (f64::INFINITY, 100.0)];
        assert_eq!(quantile(&buckets, 0.5), Some(0.001));
        assert!((quantile(&buckets, 0.7).unwrap() - 0.0015).abs() < 1e-9);
        assert_eq!(quantile(&buckets, 0.99), Some(0.002));
        assert_eq!(quantile(&[], 0.5), None);
    }

    #[test]
    fn a_service_is_as_its_worst_workload() {
        let workload = |health: &str| Workload {
            service: "users".into(),
            namespace: "shop".into(),
            identity: String::new(),
            admin: String::new(),
            pid: 0,
            more: [("health".to_owned(), health.into())].into_iter().collect(),
        };
        let mut totals = Totals::default();
        for (word, worst) in [
            ("unknown", None),
            ("healthy", Some(Health::Healthy)),
            ("warning", Some(Health::Warning)),
            ("warming", Some(Health::Warning)),
        ] {
            totals.count(&workload(word));
            assert_eq!(totals.health, worst);
        }
    }

    #[test]
    fn only_the_servers_own_fault_is_a_failure() {
        let sample = |code: &str, grpc: &str| Sample {
            name: String::new(),
            labels: [("code".into(), code.into()), ("grpc_status".into(), grpc.into())].into(),
            value: 1.0,
        };
        assert!(is_failure(&sample("503", "")) && is_failure(&sample("200", "14")));
        assert!(
            !is_failure(&sample("404", ""))
                && !is_failure(&sample("200", "5"))
                && !is_failure(&sample("200", "0"))
        );
    }
}
