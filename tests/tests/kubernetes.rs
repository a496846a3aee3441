//! The test cluster itself, without a mesh: what Kubernetes promises is true of it.

use std::process::Command;

use heddle_tests::cluster::{Cluster, Settings};
use heddle_tests::eventually;

#[test]
fn a_service_is_reached_by_its_name() {
    let Some(cluster) = Cluster::start() else { return };
    cluster.deploy_shop(false);
    for url in [
        "http://prices/",
        "http://prices.shop/",
        "http://prices.shop.svc.cluster.local/",
        "grpc://prices:7070",
    ] {
        let answer = cluster.exec("shop", "deploy/cart", "app", &["client", url]).expect("it is reached");
        assert!(answer.contains("StatusCode=200") && answer.contains("Hostname=prices-"), "{url}: {answer}");
    }
    let nobody = cluster.exec("shop", "deploy/cart", "app", &["client", "http://nobody/"]);
    assert!(nobody.is_err_and(|complaint| complaint.contains("no such host")));

    // Without endpoints a connection is refused at once.
    cluster.kubectl(&["scale", "-n", "shop", "deploy/prices", "--replicas=0"]);
    let refused = || {
        let answer = cluster.exec("shop", "deploy/cart", "app", &["client", "http://prices/"]);
        answer.is_err_and(|complaint| complaint.contains("connection refused")).then_some(())
    };
    eventually("nobody is there", refused);
}

#[test]
fn pods_get_what_they_ask_for() {
    let Some(cluster) = Cluster::start() else { return };
    cluster.apply(include_str!("kubernetes/pods.yaml"));
    cluster.wait("pods", "pod/sources", "condition=Ready");
    let sh =
        |command: &str| cluster.exec("pods", "sources", "app", &["sh", "-c", command]).expect("it succeeds");

    let environment = sh("env");
    for variable in [
        "SECOND=one and two, $(FIRST)",
        "PASSWORD=swordfish",
        "NODE=node-0",
        "ANNOTATION=a note",
        "LIMIT=64",
        "SETTING_other=value",
        "IPS=10.244.",
        "KUBERNETES_SERVICE_HOST=10.96.0.1",
    ] {
        assert!(environment.contains(variable), "{variable}: {environment}");
    }
    assert!(!environment.contains("MISSING="), "{environment}");
    assert_eq!(sh("id -u; id -g; id -G | tr ' ' '\\n' | grep -c 7102"), "7100\n7101\n1\n");
    assert_eq!(sh("! touch /anywhere 2>/dev/null && touch /scratch/here && echo so"), "so\n");
    assert_eq!(sh("cat /etc/one-setting /var/run/secrets/heddle.dev/password"), "helloswordfish");
    // The API server adds labels of its own.
    assert!(sh("cat /var/run/secrets/heddle.dev/labels").starts_with("app=\"sources\""));
    let claims =
        sh("cut -d. -f2 /var/run/secrets/heddle.dev/token | tr _- /+ | base64 -d 2>/dev/null || true");
    assert!(
        claims.contains(r#""aud":["heddle.dev"]"#) && claims.contains(r#""pod":{"name":"sources""#),
        "{claims}"
    );

    // Files follow their sources.
    cluster.kubectl(&[
        "patch",
        "-n",
        "pods",
        "configmap/settings",
        "-p",
        r#"{"data":{"greeting":"good day"}}"#,
    ]);
    cluster.kubectl(&[
        "create",
        "-n",
        "pods",
        "configmap",
        "appears-later",
        "--from-literal=roots.pem=roots",
    ]);
    eventually("files are updated", || {
        let files = "cat /etc/settings/greeting; cat /var/run/secrets/heddle.dev/roots.pem";
        let text = cluster.exec("pods", "sources", "app", &["sh", "-c", files]).ok()?;
        (text == "good dayroots").then_some(())
    });

    cluster.wait("pods", "pod/privileges", "jsonpath={.status.phase}=Succeeded");
    cluster.wait("pods", "job/work", "condition=Complete");
    assert_eq!(cluster.kubectl(&["logs", "-n", "pods", "job/work", "-c", "work"]), "worked\n");
    let sidecar = "jsonpath={.items[0].status.initContainerStatuses[0].state.terminated.exitCode}";
    let code = cluster.kubectl(&["get", "pods", "-n", "pods", "-l", "job-name=work", "-o", sidecar]);
    assert_eq!(code, "0", "the sidecar ends after the work");

    let status = |field: &str| {
        let path = format!("jsonpath={{.status.containerStatuses[0].{field}}}");
        cluster.kubectl(&["get", "-n", "pods", "pod/restarted", "-o", &path])
    };
    eventually("it is started again", || {
        status("restartCount").parse::<u32>().is_ok_and(|count| count > 0).then_some(())
    });
    assert_eq!(status("ready"), "false");
    eventually("it can be told that it is ready", || {
        cluster.exec("pods", "restarted", "app", &["touch", "/kept/ready"]).ok()
    });
    cluster.wait("pods", "pod/restarted", "condition=Ready");

    cluster.rolled_out("pods", "statefulset/member");
    let peer = ["client", "http://member-1.members:8080/"];
    let answer = cluster.exec("pods", "member-0", "app", &peer).expect("members have names");
    assert!(answer.contains("Hostname=member-1"), "{answer}");
}

#[test]
fn pods_go_on_without_the_api_server_and_move_when_a_node_is_drained() {
    let Some(mut cluster) = Cluster::start_with(&Settings { nodes: 2, ..Settings::default() }) else {
        return;
    };
    cluster.apply_shop(false);
    cluster.rolled_out("shop", "deploy/cart");
    let ip = "jsonpath={.spec.clusterIP}";
    let url = format!("http://{}/", cluster.kubectl(&["get", "-n", "shop", "service/cart", "-o", ip]));
    let served = |cluster: &Cluster| {
        let output = cluster.command("curl").args(["--silent", "--fail", "--max-time", "5", &url]).output();
        output.expect("there is curl").status.success()
    };
    cluster.kill_api_server();
    assert!(cluster.try_kubectl(&["get", "--raw", "/readyz", "--request-timeout=2s"]).is_err());
    assert!((0..50).all(|_| served(&cluster)), "the Service works without the API server");
    cluster.start_api_server();

    // Both a rolling update and a drain leave no request unanswered, of pods that wait before they end.
    cluster.kubectl(&["rollout", "restart", "-n", "shop", "deploy/cart"]);
    let done = ["rollout", "status", "-n", "shop", "deploy/cart", "--watch=false"];
    eventually("the update is done", || {
        assert!(served(&cluster), "a request fails while pods are replaced");
        cluster.kubectl(&done).contains("successfully rolled out").then_some(())
    });
    cluster.drain("node-0");
    cluster.rolled_out("shop", "deploy/cart");
    let nodes = ["get", "pods", "-n", "shop", "-o", "jsonpath={.items[*].spec.nodeName}"];
    eventually("the last pod has left the node", || {
        (!cluster.kubectl(&nodes).contains("node-0")).then_some(())
    });
    assert!(served(&cluster));
}

#[test]
fn nothing_is_left_of_a_cluster() {
    let Some(cluster) = Cluster::start() else { return };
    let (process, directory) = (cluster.process(), cluster.directory().to_owned());
    cluster.apply_shop(false);
    cluster.rolled_out("shop", "deploy/cart");
    drop(cluster);
    let directory_name =
        directory.file_name().and_then(|name| name.to_str()).expect("it has a name").to_owned();
    let left = Command::new("pgrep").args(["--full", &directory_name]).output().expect("there is pgrep");
    assert!(left.stdout.is_empty(), "{}", String::from_utf8_lossy(&left.stdout));
    assert!(!directory.exists() && !std::path::Path::new(&format!("/proc/{process}")).exists());
}
