//! The Prometheus text exposition format, version 0.0.4.

use std::collections::BTreeMap;
use std::fmt::{Display, Write};
use std::time::Instant;

use super::cell::{BUCKETS, Cell, Histogram};
use super::labels::Added;
use super::{Families, fallback};

/// What a metric is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Kind {
    Counter,
    Gauge,
    Histogram,
}

impl Kind {
    fn as_str(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
        }
    }
}

/// Writes families one after the other: `family`, then its samples.
#[derive(Default)]
pub(super) struct Encoder {
    out: String,
}

/// `fmt::Write` for `String` has no failure to report.
const INFALLIBLE: &str = "writing to a String cannot fail";

impl Encoder {
    pub(super) fn family(&mut self, name: &str, kind: Kind, help: &str) {
        let kind = kind.as_str();
        write!(self.out, "# HELP {name} {help}\n# TYPE {name} {kind}\n").expect(INFALLIBLE);
    }

    pub(super) fn integer(&mut self, name: &str, labels: &[(&str, &str)], value: u64) {
        self.sample(name, "", labels, None, value);
    }

    pub(super) fn float(&mut self, name: &str, labels: &[(&str, &str)], value: f64) {
        self.sample(name, "", labels, None, value);
    }

    fn histogram(&mut self, name: &str, labels: &[(&str, &str)], histogram: &Histogram) {
        let mut count = 0;
        let bounds = BUCKETS.iter().map(|(_, text)| *text).chain(["+Inf"]);
        for (cell, bound) in histogram.buckets.iter().zip(bounds) {
            count += cell.get();
            self.sample(name, "_bucket", labels, Some(bound), count);
        }
        let nanoseconds = histogram.nanoseconds.get();
        // Seconds and the rest apart: a quotient of f64 would lose precision after 104 days.
        let (seconds, rest) = (nanoseconds / 1_000_000_000, nanoseconds % 1_000_000_000);
        self.sample(name, "_sum", labels, None, format_args!("{seconds}.{rest:09}"));
        self.sample(name, "_count", labels, None, count);
    }

    fn sample(
        &mut self,
        name: &str,
        suffix: &str,
        labels: &[(&str, &str)],
        bound: Option<&str>,
        value: impl Display,
    ) {
        self.out.push_str(name);
        self.out.push_str(suffix);
        let mut separator = '{';
        for (name, value) in labels.iter().copied().chain(bound.map(|bound| ("le", bound))) {
            self.out.push(separator);
            separator = ',';
            self.out.push_str(name);
            self.out.push_str("=\"");
            escape(value, &mut self.out);
            self.out.push('"');
        }
        if separator == ',' {
            self.out.push('}');
        }
        writeln!(self.out, " {value}").expect(INFALLIBLE);
    }

    pub(super) fn finish(self) -> String {
        self.out
    }
}

/// A label value's escapes: backslash, double quote and line feed.
fn escape(value: &str, out: &mut String) {
    for part in value.split_inclusive(['\\', '"', '\n']) {
        match part.strip_suffix(['\\', '"', '\n']) {
            None => out.push_str(part),
            Some(plain) => {
                out.push_str(plain);
                out.push('\\');
                out.push(match part.as_bytes()[plain.len()] {
                    b'\n' => 'n',
                    other => char::from(other),
                });
            }
        }
    }
}

/// The families that workers write.
pub(super) fn families(families: &Families, encoder: &mut Encoder) {
    requests(families, encoder);
    routes(families, encoder);
    retries(families, encoder);
    super::hedge::encode(families, encoder);
    endpoints(families, encoder);
    fallback::encode(&families.fallbacks, encoder);
    tcp(families, encoder);
}

fn requests(families: &Families, encoder: &mut Encoder) {
    let name = "heddle_requests_total";
    encoder.family(name, Kind::Counter, "Requests that ended, by how they ended.");
    for (labels, outcomes) in families.requests.totals() {
        for (key, count) in outcomes.sorted() {
            let outcome = key.outcome();
            let code = outcome.map_or(super::labels::OTHER.to_owned(), |outcome| outcome.code.to_string());
            let grpc_status =
                outcome.and_then(|outcome| outcome.grpc_status).map_or(String::new(), |s| s.to_string());
            let error = outcome.and_then(|outcome| outcome.error).map_or("", |reason| reason.as_str());
            let standard = [
                ("direction", labels.direction.as_str()),
                ("service", &*labels.service),
                ("namespace", &*labels.namespace),
                ("route", &*labels.route),
                ("code", &*code),
                ("grpc_status", &*grpc_status),
                ("error", error),
                ("peer", &*labels.peer),
                ("tls", labels.tls.as_str()),
            ];
            let labels: Vec<_> = standard.into_iter().chain(added(&labels.added)).collect();
            encoder.integer(name, &labels, count);
        }
    }
}

/// The labels that a policy adds.
fn added(added: &Option<Added>) -> impl Iterator<Item = (&str, &str)> {
    added.iter().flat_map(|added| added.iter()).map(|(name, value)| (&**name, &**value))
}

fn routes(families: &Families, encoder: &mut Encoder) {
    let routes = families.routes.totals();
    let name = "heddle_request_duration_seconds";
    encoder.family(name, Kind::Histogram, "Time from a request's first byte to its response's last.");
    for (labels, cells) in &routes {
        let standard = [
            ("direction", labels.direction.as_str()),
            ("service", &*labels.service),
            ("namespace", &*labels.namespace),
            ("route", &*labels.route),
        ];
        let labels: Vec<_> = standard.into_iter().chain(added(&labels.added)).collect();
        encoder.histogram(name, &labels, &cells.duration);
    }
    let name = "heddle_requests_in_flight";
    encoder.family(name, Kind::Gauge, "Requests that have begun and not ended.");
    let mut in_flight: BTreeMap<_, u64> = BTreeMap::new();
    for (labels, cells) in &routes {
        let sum = in_flight.entry((labels.direction, &*labels.service, &*labels.namespace)).or_default();
        *sum = sum.saturating_add(cells.in_flight.get());
    }
    for ((direction, service, namespace), count) in in_flight {
        let labels = [("direction", direction.as_str()), ("service", service), ("namespace", namespace)];
        encoder.integer(name, &labels, count);
    }
}

fn retries(families: &Families, encoder: &mut Encoder) {
    let retries = families.retries.totals();
    let name = "heddle_retries_total";
    encoder.family(name, Kind::Counter, "Retries that were made, by how they ended.");
    for (labels, cells) in &retries {
        for (outcome, cell) in [("success", &cells.succeeded), ("failure", &cells.failed)] {
            let labels = [
                ("service", &*labels.service),
                ("namespace", &*labels.namespace),
                ("route", &*labels.route),
                ("outcome", outcome),
            ];
            encoder.integer(name, &labels, cell.get());
        }
    }
    let name = "heddle_retry_budget_exhausted_total";
    encoder.family(name, Kind::Counter, "Retries that the policy allowed and the budget did not.");
    for (labels, cells) in &retries {
        let labels =
            [("service", &*labels.service), ("namespace", &*labels.namespace), ("route", &*labels.route)];
        encoder.integer(name, &labels, cells.exhausted.get());
    }
}

fn endpoints(families: &Families, encoder: &mut Encoder) {
    let name = "heddle_circuit_state";
    encoder.family(
        name,
        Kind::Gauge,
        "An endpoint's circuit, or without an endpoint the service's: 0 closed, 1 half-open, 2 open.",
    );
    let now = Instant::now();
    for (labels, cell) in families.circuits.totals() {
        let labels = [
            ("service", &*labels.service),
            ("namespace", &*labels.namespace),
            ("endpoint", &*labels.endpoint),
        ];
        encoder.integer(name, &labels, cell.circuit(now).state as u64);
    }
    let name = "heddle_endpoints";
    encoder.family(name, Kind::Gauge, "A service's endpoints, by state.");
    for (labels, cells) in families.endpoints.totals() {
        let states =
            [("healthy", &cells.healthy), ("unhealthy", &cells.unhealthy), ("ejected", &cells.ejected)];
        for (state, cell) in states {
            let labels = [("service", &*labels.service), ("namespace", &*labels.namespace), ("state", state)];
            encoder.integer(name, &labels, cell.get());
        }
    }
}

fn tcp(families: &Families, encoder: &mut Encoder) {
    let all = families.tcp.totals();
    let base = |labels: &super::TcpLabels| {
        let labels = labels.clone();
        move |encoder: &mut Encoder, name: &str, more: Option<(&str, &str)>, value: u64| {
            let mut set = vec![
                ("direction", labels.direction.as_str()),
                ("service", &*labels.service),
                ("namespace", &*labels.namespace),
                ("peer", &*labels.peer),
                ("tls", labels.tls.as_str()),
            ];
            set.extend(more);
            encoder.integer(name, &set, value);
        }
    };
    let name = "heddle_tcp_connections_total";
    encoder.family(name, Kind::Counter, "Opaque connections, carried or refused.");
    for (labels, cells) in &all {
        for (key, count) in cells.connections.sorted() {
            let error = key.outcome().and_then(|outcome| outcome.error).map_or("", |reason| reason.as_str());
            base(labels)(encoder, name, Some(("error", error)), count);
        }
    }
    let name = "heddle_tcp_connections_open";
    encoder.family(name, Kind::Gauge, "Opaque connections that are open.");
    for (labels, cells) in &all {
        base(labels)(encoder, name, None, cells.open.get());
    }
    let name = "heddle_tcp_bytes_total";
    encoder.family(name, Kind::Counter, "Bytes of opaque connections, sent to or received from the server.");
    for (labels, cells) in &all {
        let flows: [(&str, &Cell); 2] = [("sent", &cells.sent), ("received", &cells.received)];
        for (flow, cell) in flows {
            base(labels)(encoder, name, Some(("flow", flow)), cell.get());
        }
    }
}
