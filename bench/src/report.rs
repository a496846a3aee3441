//! From outcomes to a Markdown table: medians over the rounds, their spread,
//! and the ratio to HAProxy in the same run.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::Write as _;

use crate::Peer;
use crate::scenario::{Outcome, Scenario};

#[derive(Default)]
pub(crate) struct Report(Vec<(Peer, Scenario, Outcome)>);

/// A figure of an outcome: its name, how to find it, and whether less is better.
type Figure = (&'static str, fn(&Outcome) -> Option<f64>);

const FIGURES: [Figure; 8] = [
    ("per second", |o| o.per_second),
    ("CPU µs, both proxies", |o| o.cpu_us),
    ("p50 µs", |o| o.p50_us),
    ("p99 µs", |o| o.p99_us),
    ("longest µs", |o| o.longest_us),
    ("requests over 5 ms", |o| o.slow),
    ("resident MiB, at rest", |o| o.idle_mib),
    ("resident MiB, 5,000 idle connections", |o| o.loaded_mib),
];

impl Report {
    pub(crate) fn add(&mut self, peer: Peer, scenario: Scenario, outcome: Outcome) {
        self.0.push((peer, scenario, outcome));
    }

    pub(crate) fn markdown(&self, peers: &[Peer], scenarios: &[Scenario]) -> String {
        let mut text = String::from("| scenario | figure |");
        for peer in peers {
            write!(text, " {peer} |").expect("writing to a string");
        }
        text.push_str(" heddle / haproxy |\n| --- | --- |");
        text.push_str(&" --- |".repeat(peers.len() + 1));
        text.push('\n');
        for scenario in scenarios {
            for (name, figure) in FIGURES {
                let values: BTreeMap<usize, Vec<f64>> = peers
                    .iter()
                    .enumerate()
                    .map(|(index, peer)| (index, self.values(*peer, *scenario, figure)))
                    .filter(|(_, values)| !values.is_empty())
                    .collect();
                if values.is_empty() {
                    continue;
                }
                write!(text, "| {scenario:?} | {name} |").expect("writing to a string");
                for index in 0..peers.len() {
                    match values.get(&index) {
                        Some(values) => write!(
                            text,
                            " {} ({}–{}) |",
                            short(median(values)),
                            short(values[0]),
                            short(values[values.len() - 1])
                        ),
                        None => write!(text, " – |"),
                    }
                    .expect("writing to a string");
                }
                let of = |peer| peers.iter().position(|p| *p == peer).and_then(|index| values.get(&index));
                match (of(Peer::Heddle), of(Peer::Haproxy)) {
                    (Some(ours), Some(theirs)) => writeln!(text, " {:.2} |", median(ours) / median(theirs)),
                    _ => writeln!(text, " – |"),
                }
                .expect("writing to a string");
            }
        }
        text
    }

    /// Sorted.
    fn values(&self, peer: Peer, scenario: Scenario, figure: fn(&Outcome) -> Option<f64>) -> Vec<f64> {
        let mine = self.0.iter().filter(|(p, s, _)| *p == peer && *s == scenario);
        let mut values: Vec<f64> = mine.filter_map(|(_, _, outcome)| figure(outcome)).collect();
        values.sort_by(f64::total_cmp);
        values
    }
}

/// Of sorted values.
fn median(values: &[f64]) -> f64 {
    values[values.len() / 2]
}

fn short(value: f64) -> String {
    if value >= 100.0 { format!("{value:.0}") } else { format!("{value:.1}") }
}

#[allow(clippy::print_stderr)]
pub(crate) fn progress(round: usize, peer: Peer, scenario: Scenario, outcome: &Outcome) {
    let figures =
        FIGURES.iter().filter_map(|(name, figure)| Some(format!("{name} {}", short(figure(outcome)?))));
    eprintln!("round {round}: {scenario:?}, {peer}: {}", figures.collect::<Vec<_>>().join(", "));
}

#[allow(clippy::print_stdout)]
pub(crate) fn print(table: &str) {
    print!("{table}");
}

pub(crate) fn write_raw(
    file: &mut std::fs::File,
    round: usize,
    peer: Peer,
    scenario: Scenario,
    outcome: &Outcome,
) -> std::io::Result<()> {
    let figures: serde_json::Map<_, _> =
        FIGURES.iter().filter_map(|(name, figure)| Some(((*name).into(), figure(outcome)?.into()))).collect();
    let line = serde_json::json!({"round": round, "peer": peer.to_string(), "scenario": format!("{scenario:?}"), "figures": figures});
    writeln!(file, "{line}")
}
