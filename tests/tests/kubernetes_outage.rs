//! An API server that is away: nothing fails meanwhile, and what was changed arrives when it is back.

use std::time::{Duration, Instant};

use anyhow::ensure;
use heddle_tests::cluster::{Cluster, Settings, of_heddle};
use heddle_tests::eventually;
use heddle_tests::trials::one_of_three;

/// How long the API server is away, in seconds.
const OUTAGE: &str = "HEDDLE_OUTAGE";

#[test]
fn an_api_server_that_is_away_stops_nothing_and_is_followed_when_it_is_back() {
    one_of_three(api_server_is_away);
}

#[allow(clippy::print_stdout)]
fn api_server_is_away() -> anyhow::Result<()> {
    let Some(mut cluster) = Cluster::meshed(1, &[]) else { return Ok(()) };
    let length = std::env::var(OUTAGE).map_or(10, |seconds| seconds.parse().expect("whole seconds"));
    cluster.start_shopper("node-0");
    cluster.nothing_failed("something happened");
    let before = cluster.served();
    cluster.kill_api_server();
    std::thread::sleep(Duration::from_secs(length));
    cluster.start_api_server();
    cluster.nothing_failed("the API server was back");
    let during = cluster.served() - before;
    println!("{during} requests while the API server was away for {length} s, none failed");
    ensure!(during as u64 > length * 5, "{during} requests in {length} s");
    let after = cluster.close_prices();
    ensure!(after < SOON_AFTER, "after {after:?}");
    Ok(())
}

/// How soon changes that were made while the API server was away have to be in effect when it is back.
const SOON_AFTER: Duration = Duration::from_secs(10);

/// What is changed meanwhile: a policy for a service that the client does not use, and a new service.
const MEANWHILE: &str = r#"
apiVersion: heddle.dev/v1alpha1
kind: FaultPolicy
metadata: {name: closed, namespace: shop}
spec:
  targetRefs: [{group: "", kind: Service, name: cart}]
  abort: {status: 418, percent: 100}
---
apiVersion: v1
kind: Service
metadata: {name: costs, namespace: shop}
spec:
  selector: {app: prices}
  ports: [{name: http, port: 80, targetPort: 8080}]
"#;

/// The pods of `prices` of which a field, if it is there, is not empty.
fn prices(cluster: &Cluster, field: &str) -> Vec<String> {
    let output = format!("jsonpath={{range .items[?({field})]}}{{.metadata.name}} {{end}}");
    let names = cluster.kubectl(&["get", "pods", "-n", "shop", "-l", "app=prices", "-o", &output]);
    names.split_whitespace().map(str::to_owned).collect()
}

#[test]
fn changes_made_while_the_api_server_was_away_arrive_when_it_is_back() {
    one_of_three(changes_meanwhile);
}

#[allow(clippy::print_stdout)]
fn changes_meanwhile() -> anyhow::Result<()> {
    let settings = Settings { images: of_heddle(), second_api_server: true, ..Settings::default() };
    let Some(mut cluster) = Cluster::meshed_with(&settings, &[]) else { return Ok(()) };
    cluster.start_shopper("node-0");
    cluster.nothing_failed("something happened");

    // The control plane has lost the cluster, and life goes on.
    cluster.kill_api_server();
    let first = prices(&cluster, "@.status.podIP");
    cluster.apply(MEANWHILE);
    cluster.kubectl(&["scale", "-n", "shop", "deploy/prices", "--replicas=4"]);
    cluster.kubectl(&["delete", "-n", "shop", "pod", &first[0], "--wait=false"]);
    eventually("there are more pods", || {
        let now = prices(&cluster, "@.status.podIP");
        (now.len() == 4 && !now.contains(&first[0])).then_some(())
    });
    cluster.nothing_failed("pods came and went without the control plane");
    let cart = cluster.ask("http://cart/").expect("it runs");
    assert!(cart.contains("StatusCode=200"), "nobody has told of the policy: {cart}");

    cluster.start_api_server();
    let back = Instant::now();
    eventually("the policy is in effect", || {
        cluster.ask("http://cart/").ok().filter(|answer| answer.contains("StatusCode=418"))
    });
    eventually("the new service is served", || {
        let answer = cluster.ask("http://costs/").ok()?;
        (answer.contains("StatusCode=200") && answer.contains("Hostname=prices-")).then_some(())
    });
    ensure!(back.elapsed() < SOON_AFTER, "after {:?}", back.elapsed());
    println!("a policy and a service were in effect {:?} after the API server was back", back.elapsed());
    // New pods could not prove to anybody who they are; now they can.
    cluster.rolled_out("shop", "deploy/prices");
    println!("new pods were ready after {:?}", back.elapsed());
    eventually("new pods are asked", || {
        let answer = cluster.ask("http://prices/").ok()?;
        (answer.contains("Hostname=prices-") && first.iter().all(|name| !answer.contains(name))).then_some(())
    });
    cluster.nothing_failed("the API server was back");
    Ok(())
}
