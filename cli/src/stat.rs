//! `heddle stat`: who is in the mesh and how they fare, from the sidecars' metrics.
//! Workloads are found by service, by owner and one by one.

mod table;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, IsTerminal};
use std::time::{Duration, Instant};

use clap::Args;
use futures_util::{StreamExt, stream};
use heddle_sidecar::output;
use serde::{Deserialize, Serialize};
use serde_json::json;

pub(crate) use self::table::{Totals, render, rows};
use crate::control_plane::{AT_ONCE, Admin, Location, Workload};

/// Shows services, endpoints, success rate, rate, latency and mTLS share.
#[derive(Args, Debug)]
pub(crate) struct StatArgs {
    /// Only workloads of this service or owner (such as a deployment), or the one of this name (a pod's),
    /// as NAME or NAMESPACE/NAME
    #[arg(value_name = "[NAMESPACE/]NAME")]
    workload: Option<String>,
    /// Only workloads of this namespace
    #[arg(long, short, value_name = "NAMESPACE")]
    namespace: Option<String>,
    /// What makes a line of the table
    #[arg(long, value_enum, default_value_t = By::Service)]
    by: By,
    #[command(flatten)]
    location: Location,
    /// Print the workloads as JSON, once
    #[arg(long)]
    json: bool,
    /// Print one table and end, as is done where the output is no terminal
    #[arg(long)]
    once: bool,
    /// Time between tables, and the time that rates are taken over, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=3600))]
    interval: u64,
}

/// What workloads are put together by.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum By {
    /// The service that they serve
    #[default]
    Service,
    /// Who made them, such as a deployment
    Owner,
    /// Nothing: each has its line
    Workload,
}

/// Which workloads are shown, and how.
#[derive(Debug, Default)]
pub(crate) struct Selection {
    namespace: Option<String>,
    name: Option<String>,
    by: By,
}

impl Selection {
    fn new(args: &StatArgs) -> Self {
        let named = args.workload.as_deref().map(|name| match name.split_once('/') {
            Some((namespace, name)) => (Some(namespace), Some(name)),
            None => (None, Some(name)),
        });
        let (namespace, name) = named.unwrap_or_default();
        let namespace = namespace.map(str::to_owned).or_else(|| args.namespace.clone());
        Self { namespace, name: name.map(str::to_owned), by: args.by }
    }

    fn has(&self, workload: &Workload) -> bool {
        let names = [&*workload.service, workload.owner(), workload.instance()];
        self.namespace.as_ref().is_none_or(|namespace| *namespace == workload.namespace)
            && self.name.as_deref().is_none_or(|name| names.contains(&name))
    }

    /// The line that a workload is counted in.
    fn line(&self, workload: &Workload) -> String {
        let name = match self.by {
            By::Service => &workload.service,
            By::Owner => workload.owner(),
            By::Workload => workload.instance(),
        };
        format!("{}/{name}", workload.namespace)
    }

    /// Whether an alert is at a service that is shown.
    fn has_alert(&self, alert: &Alert, shown: &BTreeSet<String>) -> bool {
        (self.namespace.is_none() && self.name.is_none()) || shown.contains(&alert.service)
    }
}

/// Runs the command.
pub(crate) async fn run(args: StatArgs) -> anyhow::Result<()> {
    let selection = Selection::new(&args);
    let admin = Admin::open(args.location).await?;
    let interval = Duration::from_secs(args.interval);
    if args.json {
        let workloads = selected(&admin, &selection).await?;
        let alerts = alerts(&admin, &selection, &services(&workloads)).await?;
        return output::print(&format!("{}\n", json!({"workloads": workloads, "alerts": alerts})));
    }
    let mut before = observe(&admin, &selection).await?;
    loop {
        tokio::time::sleep(interval).await;
        let now = observe(&admin, &selection).await?;
        let alerts = alerts(&admin, &selection, &now.services).await?;
        let table = render(&rows(&before, &now)) + &table::alerts(&alerts);
        if args.once || !io::stdout().is_terminal() {
            return output::print(&table);
        }
        // Clear and home: the table stays in place.
        output::print(&format!("\x1b[2J\x1b[H{table}"))?;
        before = now;
    }
}

/// What fires.
async fn alerts(
    admin: &Admin,
    selection: &Selection,
    shown: &BTreeSet<String>,
) -> anyhow::Result<Vec<Alert>> {
    #[derive(Deserialize)]
    struct Alerts {
        alerts: Vec<Alert>,
    }
    match admin.ask("/alerts").await? {
        Some(answer) => {
            let Alerts { mut alerts } = serde_json::from_slice(&answer)?;
            alerts.retain(|alert| selection.has_alert(alert, shown));
            Ok(alerts)
        }
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
    lines: BTreeMap<String, Totals>,
    /// The services that they are of.
    services: BTreeSet<String>,
}

async fn selected(admin: &Admin, selection: &Selection) -> anyhow::Result<Vec<Workload>> {
    let mut workloads = admin.workloads().await?.workloads;
    workloads.retain(|workload| selection.has(workload));
    Ok(workloads)
}

fn services(workloads: &[Workload]) -> BTreeSet<String> {
    workloads.iter().map(|workload| format!("{}/{}", workload.namespace, workload.service)).collect()
}

/// Asks every workload; one that does not answer is counted without its numbers.
pub(crate) async fn observe(admin: &Admin, selection: &Selection) -> anyhow::Result<Observation> {
    let workloads = selected(admin, selection).await?;
    let asked = workloads.iter().map(|workload| async move { (workload, admin.metrics(workload).await) });
    let answers: Vec<_> = stream::iter(asked).buffered(AT_ONCE).collect().await;
    let mut lines: BTreeMap<String, Totals> = BTreeMap::new();
    for (workload, samples) in answers {
        let line = lines.entry(selection.line(workload)).or_default();
        line.count(workload);
        if let Ok(samples) = samples {
            line.add(&samples);
        }
    }
    Ok(Observation { at: Instant::now(), lines, services: services(&workloads) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_workload_is_found_by_its_service_its_owner_and_its_own_name() {
        let more = json!({"owner": "cart", "instance": "cart-5d4f8c-x2x9z"});
        let serde_json::Value::Object(more) = more else { unreachable!("it is an object") };
        let pod = Workload {
            service: "basket".into(),
            namespace: "shop".into(),
            identity: String::new(),
            admin: String::new(),
            pid: 0,
            more,
        };
        let selection = |namespace: Option<&str>, name: Option<&str>, by| Selection {
            namespace: namespace.map(str::to_owned),
            name: name.map(str::to_owned),
            by,
        };
        for (namespace, name, found) in [
            (None, None, true),
            (None, Some("basket"), true),
            (Some("shop"), Some("cart"), true),
            (None, Some("cart-5d4f8c-x2x9z"), true),
            (Some("other"), Some("cart"), false),
            (Some("other"), None, false),
            (None, Some("car"), false),
        ] {
            assert_eq!(selection(namespace, name, By::Service).has(&pod), found, "{namespace:?} {name:?}");
        }
        let line = |by| selection(None, None, by).line(&pod);
        assert_eq!(
            [line(By::Service), line(By::Owner), line(By::Workload)],
            ["shop/basket", "shop/cart", "shop/cart-5d4f8c-x2x9z"]
        );
    }
}
