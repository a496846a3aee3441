//! The kubelet's probes of an application in a pod, which its sidecar makes.

use std::io::Write;
use std::net::TcpStream;
use std::time::Duration;

use anyhow::ensure;
use heddle_tests::netns::POD;
use heddle_tests::pod::{Pod, at};
use heddle_tests::trials::one_of_three;
use heddle_tests::{eventually, exchange, forge, get};
use rustls::version::{TLS12, TLS13};

#[test]
fn probes_reach_the_application_under_strict_tls() {
    let Some(pod) = Pod::new(&[]) else { return };
    let probes = r#"{
        "/probe/app/liveness": {"httpGet": {"port": 8080, "path": "/healthz"}},
        "/probe/app/readiness": {"tcpSocket": {"port": 8081}, "timeoutSeconds": 5}
    }"#;
    let _sidecar = pod.sidecar(&["--probes", probes]);
    assert_eq!(pod.admin("/ready").unwrap().0, 200);
    assert_eq!(pod.admin("/live").unwrap().0, 200);
    assert_eq!(pod.admin("/metrics").unwrap().0, 200);
    for path in ["/config", "/probe/app/startup", "/"] {
        assert_eq!(pod.admin(path).unwrap().0, 403, "{path}");
    }
    let (status, reason) = pod.admin("/probe/app/liveness").unwrap();
    assert_eq!(status, 503, "{reason}");
    assert!(reason.contains("10.77.0.2:8080"), "{reason}");
    let _app = pod.app("0.0.0.0:8080", "healthy");
    assert_eq!(pod.admin("/probe/app/liveness").unwrap(), (200, "answered with 200\n".into()));
    assert_eq!(pod.admin("/probe/app/readiness").unwrap().0, 503);
    let _other = pod.app("10.77.0.2:8081", "");
    assert_eq!(pod.admin("/probe/app/readiness").unwrap().0, 200);
}

/// Under strict TLS nobody outside the mesh reaches the application; its probes, and its hooks above all, must
/// not be a way around that, nor may anybody keep the kubelet from being answered.
#[test]
fn probes_are_made_for_the_kubelet_whoever_else_asks() {
    let Some(pod) = Pod::new(&[]) else { return };
    let probes = r#"{
        "/probe/app/liveness": {"httpGet": {"port": 8080}},
        "/probe/app/pre-stop": {"httpGet": {"port": 8080, "path": "/stop"}}
    }"#;
    let _sidecar = pod.sidecar(&["--probes", probes, "--probe-key", "the-key"]);
    let _app = pod.app("0.0.0.0:8080", "healthy");
    let ask = |path: &str, header: &str| {
        let request = format!("GET {path} HTTP/1.1\r\nhost: pod\r\n{header}connection: close\r\n\r\n");
        pod.network.node.inside(|| exchange(at(POD[0], 7190), &request)).unwrap()
    };
    for path in ["/probe/app/liveness", "/probe/app/pre-stop"] {
        for header in ["", "heddle-probe: a-key\r\n"] {
            assert!(ask(path, header).starts_with("HTTP/1.1 403"), "{path} {header}");
        }
        assert!(ask(path, "heddle-probe: the-key\r\n").starts_with("HTTP/1.1 200"), "{path}");
    }
    // A crowd from one address, each of whom says a little and waits.
    let crowd: Vec<TcpStream> = pod.network.node.inside(|| {
        let join = |_| {
            let mut stream = TcpStream::connect(at(POD[1], 7190)).unwrap();
            let _ = stream.write_all(b"GET /live HTTP/1.1\r\n");
            stream
        };
        (0..200).map(join).collect()
    });
    one_of_three(|| {
        let begun = std::time::Instant::now();
        assert!(ask("/probe/app/liveness", "heddle-probe: the-key\r\n").starts_with("HTTP/1.1 200"));
        // The kubelet waits no longer than that.
        ensure!(begun.elapsed() < Duration::from_secs(1), "it took {:?}", begun.elapsed());
        Ok(())
    });
    drop(crowd);
}

/// The kubelet speaks with servers that know no TLS 1.3; their pods would never have become ready.
#[test]
fn probes_by_https_reach_servers_of_tls_1_2_and_nothing_else_speaks_it() {
    let Some(pod) = Pod::new(&[]) else { return };
    let probes = r#"{
        "/probe/app/liveness": {"httpGet": {"port": 8443, "scheme": "HTTPS"}, "timeoutSeconds": 5},
        "/probe/app/readiness": {"httpGet": {"port": 8444, "scheme": "HTTPS"}, "timeoutSeconds": 5}
    }"#;
    let _sidecar = pod.sidecar(&["--probes", probes, "--port", "http:8080:http"]);
    let _app = pod.app("[::]:8080", "app");
    let unknown = forge::Authority::unknown().sign(&["spiffe://example/app"], 2040);
    for (version, port, path) in
        [(&TLS12, 8443, "/probe/app/liveness"), (&TLS13, 8444, "/probe/app/readiness")]
    {
        pod.network.pod.inside(|| forge::serve_by(version, "http/1.1", at(POD[0], port), &unknown));
        assert_eq!(pod.admin(path), Some((200, "answered with 200\n".into())), "{version:?}");
    }
    let certificate = pod.certificate("client");
    let call = |version| {
        pod.network.node.inside(|| forge::call_by(version, at(POD[0], 8080), 8080, Some(&certificate)))
    };
    assert!(call(&TLS13).is_ok_and(|answer| answer.ends_with("app")));
    let refused = call(&TLS12);
    assert!(
        refused.as_ref().is_err_and(|error| error.to_string().contains("ProtocolVersion")),
        "{refused:?}"
    );
}

/// A pod's sidecar knew nothing of its application but how its calls fare.
#[test]
fn probes_tell_how_the_workload_is() {
    let Some(pod) = Pod::new(&[]) else { return };
    let probes = r#"{
        "/probe/app/readiness": {"httpGet": {"port": 8080}, "timeoutSeconds": 10},
        "/probe/app/liveness": {"httpGet": {"port": 8081}, "timeoutSeconds": 10}
    }"#;
    let _sidecar = pod.sidecar(&["--probes", probes]);
    let config = || {
        let at = at("127.0.0.1", 7190);
        let (_, config) = pod.network.pod.inside(|| get(at, "localhost", "/config")).expect("it answers");
        serde_json::from_str::<serde_json::Value>(&config).expect("it is JSON")
    };
    let is = |state: &str| pod.metric(&["heddle_workload_health", &format!("state=\"{state}\"")]) == 1.0;
    assert_eq!(config()["appReady"], false, "nothing was heard of it");
    let probe = |kind: &str| pod.admin(&format!("/probe/app/{kind}")).expect("it answers").0;
    assert_eq!(probe("readiness"), 503);
    let app = pod.app("0.0.0.0:8080", "ready");
    assert_eq!(probe("readiness"), 200);
    eventually("it is ready", || (config()["appReady"] == true).then_some(()));
    assert!(is("warming"));
    eventually("half of what is asked fails", || {
        assert_eq!((probe("readiness"), probe("liveness")), (200, 503));
        is("critical").then_some(())
    });
    assert_eq!(config()["health"]["cause"], "checks");
    pod.network.pod.inside(|| app.stop());
    eventually("it is not ready any more", || {
        assert_eq!(probe("readiness"), 503);
        (config()["appReady"] == false).then_some(())
    });
}
