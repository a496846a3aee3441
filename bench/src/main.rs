//! Measures pairs of proxies side by side: client → proxy ══ mTLS ══ proxy → origin.
//!
//! One run measures every scenario for every peer, interleaved over several
//! rounds, so that the machine's drift meets all alike; what counts is the
//! ratio in one run. CPU time is the scheduler's own (`schedstat`), of both
//! proxies together. Every answer's status is checked by the load generators.

mod certificates;
mod load;
mod origin;
mod peers;
mod process;
mod report;
mod scenario;

use std::time::Duration;

use anyhow::Context;
use clap::{Parser, Subcommand, ValueEnum};

use crate::peers::Pair;
use crate::process::Standing;
use crate::scenario::Scenario;

/// Measures Heddle side by side with Envoy and HAProxy
#[derive(Parser)]
struct Cli {
    #[command(subcommand)]
    command: Option<Part>,
    /// Who is measured
    #[arg(long, value_delimiter = ',', default_values_t = [Peer::Heddle, Peer::Haproxy, Peer::Envoy])]
    peers: Vec<Peer>,
    /// What is measured [default: everything]
    #[arg(long, value_delimiter = ',')]
    scenarios: Vec<Scenario>,
    /// How often; medians are reported
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Length of one load
    #[arg(long, default_value_t = 5)]
    seconds: u64,
    /// The directory with Heddle's binaries [default: this program's]
    #[arg(long, value_name = "DIR")]
    binaries: Option<std::path::PathBuf>,
    /// The Envoy binary [default: looked for in PATH and beside the Python of HEDDLE_TEST_PYTHON]
    #[arg(long, value_name = "FILE")]
    envoy: Option<std::path::PathBuf>,
    /// Where raw results go, as JSON lines
    #[arg(long, value_name = "FILE")]
    raw: Option<std::path::PathBuf>,
}

#[derive(Subcommand)]
enum Part {
    /// The origin behind the proxies
    #[command(hide = true)]
    Origin,
    /// A load generator
    #[command(hide = true)]
    Load(load::own::Args),
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum, Debug)]
enum Peer {
    Heddle,
    Haproxy,
    Envoy,
}

impl std::fmt::Display for Peer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Heddle => "heddle",
            Self::Haproxy => "haproxy",
            Self::Envoy => "envoy",
        })
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let cli = Cli::parse();
    match &cli.command {
        Some(Part::Origin) => return origin::run().await,
        Some(Part::Load(args)) => return load::own::run(args).await,
        None => {}
    }
    let scenarios =
        if cli.scenarios.is_empty() { Scenario::value_variants().to_vec() } else { cli.scenarios.clone() };
    let folder = tempfile::TempDir::with_prefix("heddle-bench-")?;
    certificates::write(folder.path())?;
    let best = Standing::best().await;
    let mut raw = cli.raw.as_ref().map(std::fs::File::create).transpose().context("--raw")?;
    let mut report = report::Report::default();
    for round in 0..cli.rounds {
        for scenario in &scenarios {
            for peer in cli.peers.iter().filter(|peer| scenario.concerns(**peer)) {
                let standing = if scenario.is_of_latency() { best } else { Standing::Ordinary };
                let origin = origin::start(standing).await?;
                let context = peers::Context { folder: folder.path(), origin: &origin, cli: &cli };
                let mut pair = Pair::start(*peer, *scenario, &context).await?;
                let result = scenario.measure(&mut pair, standing, Duration::from_secs(cli.seconds)).await;
                let result = result.with_context(|| format!("{peer}, {scenario:?}, round {round}"))?;
                pair.stop().await;
                report::progress(round, *peer, *scenario, &result);
                if let Some(file) = &mut raw {
                    report::write_raw(file, round, *peer, *scenario, &result)?;
                }
                report.add(*peer, *scenario, result);
            }
        }
    }
    report::print(&report.markdown(&cli.peers, &scenarios));
    Ok(())
}
