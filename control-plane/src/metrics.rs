//! What the control plane counts, as Prometheus text.
//!
//! Labels have few values: resource types are those that this version knows,
//! everything else is `other`.

mod process;

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use heddle_api::discovery::{ResourceType, v1};
use tokio::sync::watch;

use crate::source::Watches;

/// All counters.
#[derive(Debug, Default)]
pub(crate) struct Metrics {
    pushed: PerType,
    acked: PerType,
    known_partly: PerType,
    refused: PerType,
    issued: [AtomicU64; PROOFS.len()],
    issue_refused: AtomicU64,
    registrations_refused: AtomicU64,
    handshakes_failed: AtomicU64,
    connections_refused: AtomicU64,
    compilations: AtomicU64,
    compile_microseconds: AtomicU64,
    bundle_errors: AtomicU64,
    notified: [AtomicU64; NOTIFIED.len()],
    statuses_written: AtomicU64,
    status_writes_failed: AtomicU64,
    leading: OnceLock<watch::Receiver<bool>>,
    admitted: [[AtomicU64; ADMISSIONS.len()]; WEBHOOKS.len()],
    keys_read: [AtomicU64; 2],
}

/// How the bearer of a new certificate proved who it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Proof {
    JoinToken,
    Certificate,
    ServiceAccountToken,
}

/// How a try to tell of an alert ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Notified {
    Delivered,
    Retried,
    Dropped,
}

const NOTIFIED: [&str; 3] = ["delivered", "retried", "dropped"];

/// How a webhook answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Admission {
    Allowed,
    Patched,
    Refused,
    Unreadable,
}

const ADMISSIONS: [&str; 4] = ["allowed", "patched", "refused", "unreadable"];
const WEBHOOKS: [&str; 2] = ["inject", "validate"];

/// What others know and the text also says.
#[derive(Debug, Default)]
pub(crate) struct Gauges {
    pub(crate) registered: usize,
    pub(crate) awaited: usize,
    /// Pods that report here, and to other control planes.
    pub(crate) reporting: (usize, usize),
    pub(crate) streams: usize,
    /// Those of them that are of sidecars of each minor version.
    pub(crate) versions: BTreeMap<Option<(u64, u64)>, usize>,
    pub(crate) connections: usize,
    pub(crate) source_errors: usize,
    pub(crate) source_errors_total: u64,
    pub(crate) watches: Watches,
    pub(crate) resources: usize,
    pub(crate) certificate_expiry: u64,
    pub(crate) authority_expiry: u64,
}

/// So many versions of sidecars are shown.
const MAX_VERSIONS: usize = 16;

const TYPES: [(&str, &str); 5] = [
    (v1::Address::TYPE_URL, "Address"),
    (v1::Mesh::TYPE_URL, "Mesh"),
    (v1::Service::TYPE_URL, "Service"),
    (v1::TrustBundle::TYPE_URL, "TrustBundle"),
    (v1::Workload::TYPE_URL, "Workload"),
];

const PROOFS: [&str; 3] = ["join_token", "certificate", "service_account_token"];

/// One counter per resource type, the last for all others.
type PerType = [AtomicU64; TYPES.len() + 1];

impl Metrics {
    pub(crate) fn config_pushed(&self, type_url: &str) {
        count(&self.pushed, type_url);
    }

    pub(crate) fn config_acked(&self, type_url: &str) {
        count(&self.acked, type_url);
    }

    pub(crate) fn config_known_partly(&self, type_url: &str) {
        count(&self.known_partly, type_url);
    }

    pub(crate) fn config_refused(&self, type_url: &str) {
        count(&self.refused, type_url);
    }

    pub(crate) fn certificate_issued(&self, proof: Proof) {
        self.issued[proof as usize].fetch_add(1, Relaxed);
    }

    pub(crate) fn certificate_refused(&self) {
        self.issue_refused.fetch_add(1, Relaxed);
    }

    pub(crate) fn registration_refused(&self) {
        self.registrations_refused.fetch_add(1, Relaxed);
    }

    pub(crate) fn handshake_failed(&self) {
        self.handshakes_failed.fetch_add(1, Relaxed);
    }

    pub(crate) fn connection_refused(&self) {
        self.connections_refused.fetch_add(1, Relaxed);
    }

    pub(crate) fn compiled(&self, took: std::time::Duration) {
        self.compilations.fetch_add(1, Relaxed);
        self.compile_microseconds.fetch_add(u64::try_from(took.as_micros()).unwrap_or(u64::MAX), Relaxed);
    }

    pub(crate) fn bundle_error(&self) {
        self.bundle_errors.fetch_add(1, Relaxed);
    }

    pub(crate) fn notified(&self, result: Notified) {
        self.notified[result as usize].fetch_add(1, Relaxed);
    }

    pub(crate) fn status_written(&self, written: bool) {
        let counter = if written { &self.statuses_written } else { &self.status_writes_failed };
        counter.fetch_add(1, Relaxed);
    }

    /// Shows whether this replica holds the lease from now on.
    pub(crate) fn follow_lease(&self, leading: watch::Receiver<bool>) {
        let _ = self.leading.set(leading);
    }

    /// Counts an answer of one of [`WEBHOOKS`].
    pub(crate) fn admitted(&self, webhook: &str, admission: Admission) {
        if let Some(index) = WEBHOOKS.iter().position(|known| *known == webhook) {
            self.admitted[index][admission as usize].fetch_add(1, Relaxed);
        }
    }

    /// A key set of an issuer was read, or could not be.
    pub(crate) fn keys_read(&self, well: bool) {
        self.keys_read[usize::from(well)].fetch_add(1, Relaxed);
    }

    /// Everything in the Prometheus text format.
    pub(crate) fn text(&self, gauges: &Gauges) -> String {
        let mut text = Text(String::with_capacity(4096));
        text.family("heddle_build_info", "gauge", "What runs here.");
        let version = env!("CARGO_PKG_VERSION");
        text.sample("heddle_build_info", &format!("{{version=\"{version}\",part=\"control-plane\"}}"), 1);
        text.per_type("heddle_config_pushes_total", "Responses sent on discovery streams.", &self.pushed);
        text.per_type("heddle_config_acks_total", "Responses that sidecars took over.", &self.acked);
        let help = "Responses that sidecars took over, but for what they do not know.";
        text.per_type("heddle_config_partial_acks_total", help, &self.known_partly);
        text.per_type("heddle_config_nacks_total", "Responses that sidecars refused.", &self.refused);
        let name = "heddle_alert_notifications_total";
        text.family(name, "counter", "Tries to tell a webhook of an alert, by how they ended.");
        for (result, counter) in NOTIFIED.iter().zip(&self.notified) {
            text.sample(name, &format!("{{result=\"{result}\"}}"), counter.load(Relaxed));
        }
        let name = "heddle_admission_requests_total";
        text.family(name, "counter", "Reviews that the API server asked for, by webhook and answer.");
        for (webhook, counters) in WEBHOOKS.iter().zip(&self.admitted) {
            for (result, counter) in ADMISSIONS.iter().zip(counters) {
                let labels = format!("{{webhook=\"{webhook}\",result=\"{result}\"}}");
                text.sample(name, &labels, counter.load(Relaxed));
            }
        }
        let name = "heddle_key_set_reads_total";
        text.family(name, "counter", "Readings of key sets of token issuers, by how they ended.");
        for (result, counter) in ["failed", "read"].iter().zip(&self.keys_read) {
            text.sample(name, &format!("{{result=\"{result}\"}}"), counter.load(Relaxed));
        }
        text.family(
            "heddle_certificates_issued_total",
            "counter",
            "Certificates signed, by how the bearer proved who it is.",
        );
        for (proof, counter) in PROOFS.iter().zip(&self.issued) {
            text.sample(
                "heddle_certificates_issued_total",
                &format!("{{proof=\"{proof}\"}}"),
                counter.load(Relaxed),
            );
        }
        let counters = [
            ("heddle_certificates_refused_total", "Requests to sign that were refused.", &self.issue_refused),
            (
                "heddle_registrations_refused_total",
                "Registrations that were refused.",
                &self.registrations_refused,
            ),
            (
                "heddle_handshakes_failed_total",
                "Connections that ended before TLS was established.",
                &self.handshakes_failed,
            ),
            ("heddle_connections_refused_total", "Connections over the limit.", &self.connections_refused),
            ("heddle_compilations_total", "Compilations of the model.", &self.compilations),
            (
                "heddle_trust_bundle_errors_total",
                "Changes of roots.pem, or of Secret heddle-ca, that could not be used.",
                &self.bundle_errors,
            ),
        ];
        for (name, help, counter) in counters {
            text.family(name, "counter", help);
            text.sample(name, "", counter.load(Relaxed));
        }
        text.family("heddle_compile_seconds_total", "counter", "Time spent on compilations.");
        #[allow(clippy::cast_precision_loss)]
        let seconds = self.compile_microseconds.load(Relaxed) as f64 / 1e6;
        text.sample("heddle_compile_seconds_total", "", seconds);
        text.family("heddle_registrations", "gauge", "Registered workloads.");
        text.sample("heddle_registrations", "{state=\"live\"}", gauges.registered);
        text.sample("heddle_registrations", "{state=\"lost\"}", gauges.awaited);
        let name = "heddle_reporting_pods";
        text.family(name, "gauge", "Pods that tell how they fare, here or to another control plane.");
        let (here, elsewhere) = gauges.reporting;
        text.sample(name, "{to=\"this\"}", here);
        text.sample(name, "{to=\"another\"}", elsewhere);
        text.family("heddle_source_errors_total", "counter", "Errors in sources since the start.");
        text.sample("heddle_source_errors_total", "", gauges.source_errors_total);
        text.family("heddle_source_watches", "gauge", "Watches of Kubernetes API servers.");
        let Watches { live, lost, absent } = gauges.watches;
        for (state, count) in [("live", live), ("lost", lost), ("absent", absent)] {
            text.sample("heddle_source_watches", &format!("{{state=\"{state}\"}}"), count);
        }
        text.family("heddle_sidecars", "gauge", "Connected sidecars, by minor version.");
        for (place, (version, count)) in gauges.versions.iter().enumerate() {
            let label = match version {
                // Whoever has a certificate can say anything.
                _ if place >= MAX_VERSIONS => continue,
                Some((major, minor)) => format!("{major}.{minor}"),
                None => "unknown".into(),
            };
            text.sample("heddle_sidecars", &format!("{{version=\"{label}\"}}"), count);
        }
        let levels = [
            ("heddle_discovery_streams", "Open discovery streams.", gauges.streams),
            ("heddle_connections", "Open connections to discovery and identity.", gauges.connections),
            ("heddle_source_errors", "Parts of sources that are not in force now.", gauges.source_errors),
            ("heddle_resources", "Resources in the model.", gauges.resources),
        ];
        for (name, help, level) in levels {
            text.family(name, "gauge", help);
            text.sample(name, "", level);
        }
        if let Some(leading) = self.leading.get() {
            text.family("heddle_leader", "gauge", "Whether this replica writes to the cluster.");
            text.sample("heddle_leader", "", u8::from(*leading.borrow()));
            let name = "heddle_status_writes_total";
            text.family(name, "counter", "Writes of objects' statuses, by how they ended.");
            for (result, counter) in
                [("written", &self.statuses_written), ("failed", &self.status_writes_failed)]
            {
                text.sample(name, &format!("{{result=\"{result}\"}}"), counter.load(Relaxed));
            }
        }
        text.family(
            "heddle_certificate_expiry_timestamp_seconds",
            "gauge",
            "When the control plane's own certificate ends.",
        );
        text.sample("heddle_certificate_expiry_timestamp_seconds", "", gauges.certificate_expiry);
        let name = "heddle_authority_expiry_timestamp_seconds";
        text.family(name, "gauge", "When the mesh's authority ends, and signs no certificate any more.");
        text.sample(name, "", gauges.authority_expiry);
        process::add(&mut text);
        text.0
    }
}

fn count(counters: &PerType, type_url: &str) {
    let index = TYPES.iter().position(|(known, _)| *known == type_url).unwrap_or(TYPES.len());
    counters[index].fetch_add(1, Relaxed);
}

struct Text(String);

impl Text {
    fn family(&mut self, name: &str, kind: &str, help: &str) {
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    fn sample(&mut self, name: &str, labels: &str, value: impl std::fmt::Display) {
        let _ = writeln!(self.0, "{name}{labels} {value}");
    }

    fn per_type(&mut self, name: &str, help: &str, counters: &PerType) {
        self.family(name, "counter", help);
        let names = TYPES.iter().map(|(_, name)| *name).chain(["other"]);
        for (kind, counter) in names.zip(counters) {
            self.sample(name, &format!("{{type=\"{kind}\"}}"), counter.load(Relaxed));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_appear_under_their_labels() {
        let metrics = Metrics::default();
        metrics.config_pushed(v1::Service::TYPE_URL);
        metrics.config_refused("type.googleapis.com/unknown.Thing");
        metrics.certificate_issued(Proof::JoinToken);
        let versions = [(None, 1), (Some((0, 1)), 2)].into();
        let text = metrics.text(&Gauges {
            registered: 2,
            versions,
            authority_expiry: 1_900_000_000,
            ..Gauges::default()
        });
        for line in [
            "heddle_config_pushes_total{type=\"Service\"} 1",
            "heddle_config_nacks_total{type=\"other\"} 1",
            "heddle_certificates_issued_total{proof=\"join_token\"} 1",
            "heddle_certificates_issued_total{proof=\"certificate\"} 0",
            "heddle_registrations{state=\"live\"} 2",
            "heddle_sidecars{version=\"0.1\"} 2",
            "heddle_sidecars{version=\"unknown\"} 1",
            "heddle_authority_expiry_timestamp_seconds 1900000000",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} is not in\n{text}");
        }
    }
}
