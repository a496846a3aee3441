//! `heddle stat`: who is in the mesh and how they fare, from the sidecars' metrics.

mod table;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use clap::Args;
use serde::{Deserialize, Serialize};

pub(crate) use self::table::{Totals, render, rows};
use crate::control_plane::{Admin, Location};

/// Shows services, endpoints, success rate, rate, latency and mTLS share.
#[derive(Args, Debug)]
pub(crate) struct StatArgs {
    #[command(flatten)]
    location: Location,
    /// Print the workloads as JSON, once
    #[arg(long)]
    json: bool,
    /// Print one table and end
    #[arg(long)]
    once: bool,
    /// Time between tables, and the time that rates are taken over, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=3600))]
    interval: u64,
}

/// Runs the command.
#[allow(clippy::print_stdout)]
pub(crate) async fn run(args: StatArgs) -> anyhow::Result<()> {
    let admin = Admin::new(args.location)?;
    if args.json {
        let mut shown = serde_json::to_value(&admin.workloads().await?)?;
        shown["alerts"] = serde_json::to_value(alerts(&admin).await?)?;
        println!("{shown}");
        return Ok(());
    }
    let interval = Duration::from_secs(args.interval);
    let mut before = observe(&admin).await?;
    loop {
        tokio::time::sleep(interval).await;
        let now = observe(&admin).await?;
        let table = render(&rows(&before, &now)) + &table::alerts(&alerts(&admin).await?);
        if args.once {
            print!("{table}");
            return Ok(());
        }
        // Clear and home: the table stays in place.
        print!("\x1b[2J\x1b[H{table}");
        before = now;
    }
}

/// What fires.
async fn alerts(admin: &Admin) -> anyhow::Result<Vec<Alert>> {
    #[derive(Deserialize)]
    struct Alerts {
        alerts: Vec<Alert>,
    }
    match admin.ask("/alerts").await? {
        Some(answer) => Ok(serde_json::from_slice::<Alerts>(&answer)?.alerts),
        // An older control plane.
        None => Ok(Vec::new()),
    }
}

/// An alert that fires, as the control plane shows it.
#[derive(Debug, Deserialize, Serialize)]
pub(crate) struct Alert {
    alert: String,
    service: String,
    direction: String,
    summary: String,
    value: f64,
    instances: usize,
    since: String,
    #[serde(flatten)]
    more: serde_json::Map<String, serde_json::Value>,
}

/// What all sidecars say at one moment.
pub(crate) struct Observation {
    at: Instant,
    services: BTreeMap<String, Totals>,
}

/// Asks every workload; one that does not answer is counted without its numbers.
pub(crate) async fn observe(admin: &Admin) -> anyhow::Result<Observation> {
    let mut services: BTreeMap<String, Totals> = BTreeMap::new();
    for workload in admin.workloads().await?.workloads {
        let service = services.entry(format!("{}/{}", workload.namespace, workload.service)).or_default();
        service.count(&workload);
        if let Ok(samples) = admin.metrics(&workload).await {
            service.add(&samples);
        }
    }
    Ok(Observation { at: Instant::now(), services })
}
