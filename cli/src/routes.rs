//! `heddle routes`: every route, what it attaches to, where it leads, and
//! whether it is accepted or why not.

use std::fmt::Write;

use anyhow::Context;
use clap::Args;
use serde_json::Value;

use crate::control_plane::{Admin, Location};

/// Lists routes
#[derive(Args, Debug)]
pub(crate) struct RoutesArgs {
    #[command(flatten)]
    location: Location,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Runs the command.
#[allow(clippy::print_stdout)]
pub(crate) async fn run(args: RoutesArgs) -> anyhow::Result<()> {
    let admin = Admin::open(args.location).await?;
    let answer = admin.ask("/routes").await?.context("this control plane tells of no routes")?;
    let routes: Value = serde_json::from_slice(&answer).context("the list of routes is no JSON")?;
    if args.json {
        println!("{routes}");
    } else {
        print!("{}", text(&routes));
    }
    Ok(())
}

fn text(routes: &Value) -> String {
    let mut text =
        format!("{:<10} {:<32} {:<28} {:<10} {}\n", "KIND", "ROUTE", "PARENT", "ACCEPTED", "WHY NOT");
    for route in list(&routes["routes"]) {
        write_route(&mut text, route).expect("writing to a string");
    }
    text
}

fn write_route(out: &mut String, route: &Value) -> std::fmt::Result {
    let word = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let name = format!("{}/{}", word(&route["namespace"]), word(&route["name"]));
    let kind = word(&route["kind"]);
    for refusal in list(&route["refusals"]) {
        let why = format!("{}: {}", word(&refusal["field"]), word(&refusal["message"]));
        writeln!(out, "{kind:<10} {name:<32} {:<28} {:<10} {why}", "-", "False")?;
    }
    for parent in list(&route["parents"]) {
        let own = &parent["parentRef"];
        let namespace =
            own["namespace"].as_str().unwrap_or_else(|| route["namespace"].as_str().unwrap_or_default());
        let port = own["port"].as_u64().map(|port| format!(":{port}")).unwrap_or_default();
        let section = own["sectionName"].as_str().map(|name| format!(" {name}")).unwrap_or_default();
        let shown = format!("{namespace}/{}{port}{section}", word(&own["name"]));
        let conditions = list(&parent["conditions"]);
        let accepted = conditions.iter().find(|condition| condition["type"] == "Accepted");
        let accepted = accepted.map_or_else(String::new, |condition| word(&condition["status"]));
        let failed = conditions
            .iter()
            .filter(|condition| (condition["type"] == "PartiallyInvalid") == (condition["status"] == "True"));
        let why: Vec<String> = failed
            .map(|condition| format!("{}: {}", word(&condition["reason"]), word(&condition["message"])))
            .collect();
        let line = format!("{kind:<10} {name:<32} {shown:<28} {accepted:<10} {}", why.join("; "));
        writeln!(out, "{}", line.trim_end())?;
    }
    for rule in list(&route["rules"]) {
        let backends = list(&rule["backends"]).iter().map(|backend| match backend["invalid"].as_str() {
            Some(why) => format!("invalid ({why}) weight {}", backend["weight"]),
            None => format!("{}:{} weight {}", word(&backend["service"]), backend["port"], backend["weight"]),
        });
        let backends = backends.collect::<Vec<_>>().join(", ");
        let backends = if backends.is_empty() { "no backend".into() } else { backends };
        writeln!(out, "  rule {}: {backends}", word(&rule["name"]))?;
    }
    Ok(())
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map(Vec::as_slice).unwrap_or_default()
}
