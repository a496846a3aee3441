//! `heddle demo --check`: exercises the mesh without a screen and says what held.

use std::fmt::Write;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use heddle_sidecar::output;
use serde_json::Value;

use super::shop::Shop;
use crate::control_plane::{Admin, Location};
use crate::metrics::Sample;

/// What was tried, and how it went.
struct Finding {
    claim: &'static str,
    result: anyhow::Result<String>,
}

pub(super) async fn run() -> anyhow::Result<ExitCode> {
    let mut shop = Shop::start(Some(0)).await?;
    let admin = Admin::open(Location::at(shop.control_plane_admin())).await?;
    let findings = vec![
        Finding {
            claim: "a request passes through three plain services",
            result: answer(&shop, &admin).await,
        },
        Finding { claim: "both replicas of users take part", result: replicas(&shop, &admin).await },
        Finding { claim: "every call between services is mutual TLS", result: identities(&admin).await },
        Finding {
            claim: "errors of the application arrive unchanged",
            result: not_found(&shop, &admin).await,
        },
        Finding {
            claim: "a replica killed under load costs no request",
            result: killed(&mut shop, &admin).await,
        },
        Finding {
            claim: "no control plane, no difference",
            result: without_control_plane(&mut shop, &admin).await,
        },
    ];
    shop.stop().await;
    let (table, all) = render(&findings);
    output::print(&table)?;
    Ok(if all { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn render(findings: &[Finding]) -> (String, bool) {
    let mut table = String::new();
    for finding in findings {
        let (verdict, detail) = match &finding.result {
            Ok(detail) => ("held", detail.clone()),
            Err(error) => ("FAILED", format!("{error:#}")),
        };
        writeln!(table, "{verdict:<7} {:<46} {detail}", finding.claim).expect("writing to a string");
    }
    (table, findings.iter().all(|finding| finding.result.is_ok()))
}

async fn account(shop: &Shop, admin: &Admin) -> anyhow::Result<Value> {
    let (status, body) = admin.get(&format!("{}/account/2", shop.url())).await?;
    ensure!(status == 200, "status {status}: {body}");
    serde_json::from_str(&body).with_context(|| format!("no JSON: {body}"))
}

async fn answer(shop: &Shop, admin: &Admin) -> anyhow::Result<String> {
    let body = account(shop, admin).await?;
    ensure!(body["account"]["user"] == "Grace", "the answer is {body}");
    Ok("storefront → orders → users answered".into())
}

/// Requests that are spread over the replicas.
const SPREAD: usize = 64;

/// Requests under way at once: a replica that is busy is not chosen again.
const TOGETHER: usize = 8;

async fn replicas(shop: &Shop, admin: &Admin) -> anyhow::Result<String> {
    let mut counts = std::collections::BTreeMap::<u64, usize>::new();
    for _ in 0..SPREAD / TOGETHER {
        let together = (0..TOGETHER).map(|_| account(shop, admin));
        for answer in futures_util::future::join_all(together).await {
            let served = answer?["account"]["servedBy"]["users"].as_u64();
            *counts.entry(served.context("no process in the answer")?).or_default() += 1;
        }
    }
    ensure!(counts.len() == 2, "of {SPREAD} requests, processes served {counts:?}");
    Ok(format!("of {SPREAD} requests, processes served {counts:?}"))
}

async fn identities(admin: &Admin) -> anyhow::Result<String> {
    let mut mutual = 0.0;
    for workload in admin.workloads().await?.workloads {
        for sample in admin.metrics(&workload).await? {
            // The published entry is the host's own, and says so.
            if sample.name != "heddle_requests_total" || is_entry(&sample) || reached_nobody(&sample) {
                continue;
            }
            ensure!(
                sample.label("tls") == "mutual" && sample.label("peer").starts_with("spiffe://"),
                "{} of {} has {:?}",
                sample.name,
                workload.service,
                sample.labels
            );
            mutual += sample.value;
        }
    }
    ensure!(mutual > 0.0, "no request was counted");
    Ok(format!("{mutual} requests counted, each with the peer's SPIFFE ID"))
}

fn is_entry(sample: &Sample) -> bool {
    sample.label("direction") == "inbound" && sample.label("service") == "storefront"
}

/// Whether the requests were refused for want of anybody to ask, as the first ones may be while the
/// shop opens.
fn reached_nobody(sample: &Sample) -> bool {
    matches!(sample.label("error"), "no_healthy_endpoint" | "unknown_service")
}

async fn not_found(shop: &Shop, admin: &Admin) -> anyhow::Result<String> {
    let (status, body) = admin.get(&format!("{}/account/99", shop.url())).await?;
    ensure!(status == 404 && body.contains("no user 99"), "status {status}: {body}");
    Ok(format!("{status}: {}", body.trim()))
}

/// How long the load lasts around a failure.
const LOAD: Duration = Duration::from_secs(3);

/// Requests one after the other for a while, counting those that fail.
async fn load(shop_url: &str, admin: &Admin) -> (usize, Vec<String>) {
    let (until, url) = (Instant::now() + LOAD, format!("{shop_url}/account/1"));
    let (mut sent, mut failed) = (0, Vec::new());
    while Instant::now() < until {
        sent += 1;
        match admin.get(&url).await {
            Ok((200, _)) => {}
            Ok((status, body)) => failed.push(format!("{status}: {}", body.trim())),
            Err(error) => failed.push(format!("{error:#}")),
        }
    }
    (sent, failed)
}

fn without_failure((sent, failed): (usize, Vec<String>)) -> anyhow::Result<String> {
    ensure!(failed.is_empty(), "{} of {sent} requests failed, the first with {}", failed.len(), failed[0]);
    Ok(format!("{sent} requests, none failed"))
}

async fn killed(shop: &mut Shop, admin: &Admin) -> anyhow::Result<String> {
    let url = shop.url();
    let strike = async {
        tokio::time::sleep(LOAD / 3).await;
        shop.kill_replica().await
    };
    let (loaded, struck) = tokio::join!(load(&url, admin), strike);
    struck?;
    without_failure(loaded)
}

async fn without_control_plane(shop: &mut Shop, admin: &Admin) -> anyhow::Result<String> {
    let url = shop.url();
    let strike = async {
        tokio::time::sleep(LOAD / 6).await;
        shop.kill_control_plane().await?;
        tokio::time::sleep(LOAD / 3).await;
        shop.restart_control_plane().await
    };
    let (loaded, struck) = tokio::join!(load(&url, admin), strike);
    struck?;
    without_failure(loaded)
}
