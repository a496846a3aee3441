//! `heddle routes`: every route, what it attaches to, where it leads, and
//! whether it is accepted or why not.

use std::fmt::Write;

use anyhow::Context;
use clap::Args;
use heddle_sidecar::output;
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
pub(crate) async fn run(args: RoutesArgs) -> anyhow::Result<()> {
    let admin = Admin::open(args.location).await?;
    let answer = admin.ask("/routes").await?.context("this control plane tells of no routes")?;
    let routes: Value = serde_json::from_slice(&answer).context("the list of routes is no JSON")?;
    if args.json { output::print(&format!("{routes}\n")) } else { output::print(&text(&routes)) }
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
    if list(&route["parents"]).is_empty() && list(&route["refusals"]).is_empty() {
        let others: Vec<String> = list(&route["unresolved"]).iter().map(word).collect();
        let others = if others.is_empty() { "-".into() } else { others.join(", ") };
        writeln!(out, "{kind:<10} {name:<32} {others:<28} {:<10} no parent is a Service", "-")?;
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
        let filters = list(&rule["filters"]).iter().map(word);
        let parts: Vec<String> = filters.chain(backends).collect();
        let parts = if parts.is_empty() { "no backend".into() } else { parts.join(", ") };
        writeln!(out, "  rule {}: {parts}", word(&rule["name"]))?;
    }
    Ok(())
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map(Vec::as_slice).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_route_says_where_it_leads_and_what_keeps_it_from_there() {
        let shown = text(&json!({"routes": [
            {
                "kind": "HTTPRoute", "namespace": "shop", "name": "users", "refusals": [], "unresolved": [],
                "parents": [{
                    "parentRef": {"name": "users", "port": 80},
                    "conditions": [
                        {"type": "Accepted", "status": "True", "reason": "Accepted", "message": "in force"},
                        {"type": "ResolvedRefs", "status": "False", "reason": "BackendNotFound", "message": "gone"},
                    ],
                }],
                "rules": [
                    {"name": "moved", "filters": ["RequestRedirect"], "backends": []},
                    {"name": "1", "filters": ["CORS"],
                        "backends": [{"service": "shop/users", "port": 80, "weight": 1, "invalid": null}]},
                    {"name": "2", "filters": [], "backends": []},
                ],
            },
            {
                "kind": "HTTPRoute", "namespace": "shop", "name": "edge", "refusals": [], "parents": [],
                "unresolved": ["Gateway shop/edge"], "rules": [],
            },
        ]}));
        let lines: Vec<String> =
            shown.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
        assert_eq!(
            lines,
            [
                "KIND ROUTE PARENT ACCEPTED WHY NOT",
                "HTTPRoute shop/users shop/users:80 True BackendNotFound: gone",
                "rule moved: RequestRedirect",
                "rule 1: CORS, shop/users:80 weight 1",
                "rule 2: no backend",
                "HTTPRoute shop/edge Gateway shop/edge - no parent is a Service",
            ]
        );
    }
}
