//! A sidecar in a pod, whose network rules bring it every connection.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::Duration;

use heddle_tests::netns::{NODE, Namespace, Network, POD};
use heddle_tests::pod::{Pod, SIDECAR_USER, at, fetch};
use heddle_tests::resolver::{question, resolve, told};
use heddle_tests::{eventually, exchange, forge, get};

/// The whole rules, written and read back, in whatever state they are found.
#[test]
fn rules_are_set_again_checked_and_removed() {
    let Some(pod) = Pod::new(&[]) else { return };
    let run = |flags: &[&str]| {
        let output = pod.init(flags);
        (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    assert!(run(&["--check"]).0);
    assert!(run(&[]).0, "they may be set twice");
    assert!(run(&["--check"]).0);
    let other = ["--skip-outbound-ports", "5432,6000-6010", "--skip-outbound-cidrs", "10.9.0.0/16,fd09::/16"];
    let (found, reason) = run(&[&other[..], &["--check"]].concat());
    assert!(!found && reason.contains("not in force"), "{reason}");
    assert!(run(&other).0, "others replace them");
    assert!(run(&[&other[..], &["--check"]].concat()).0 && !run(&["--check"]).0);
    assert!(run(&["--remove"]).0 && !run(&["--check"]).0);
    assert!(run(&["--remove"]).0, "there may be nothing to remove");
    let list = |item: &dyn Fn(usize) -> String| (1..=64).map(item).collect::<Vec<_>>().join(",");
    let (ports, networks) = (list(&|i| format!("{i}000-{i}001")), list(&|i| format!("fd00:{i}::/32")));
    let most =
        ["--skip-inbound-ports", &ports, "--skip-outbound-ports", &ports, "--skip-outbound-cidrs", &networks];
    let (done, reason) = run(&most);
    assert!(done, "as many as may be: {reason}");
    assert!(run(&[&most[..], &["--check"]].concat()).0);
    let (done, reason) = run(&["--skip-inbound-ports", "80-70"]);
    assert!(!done && reason.contains("80-70"), "{reason}");

    let mut unprivileged = Command::new(heddle_tests::binary("heddle-sidecar"));
    unprivileged.arg("init").uid(0);
    let mut stripped = Command::new("setpriv");
    stripped.args(["--bounding-set", "-net_admin", "--inh-caps", "-net_admin", "--"]);
    stripped.arg(unprivileged.get_program()).arg("init");
    let namespace = Namespace::new();
    let output = namespace.inside(|| stripped.output()).unwrap();
    let reason = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && reason.contains("capability NET_ADMIN"), "{reason}");
}

/// Without a sidecar, what is intercepted is refused, and what is left alone arrives.
#[test]
fn what_goes_around_the_sidecar_is_what_the_settings_say() {
    let Some(pod) = Pod::new(&["--skip-inbound-ports", "9000-9001"]) else { return };
    let server = pod.app_on_node(NODE[0], "outside");
    let server6 = pod.app_on_node(NODE[1], "outside");
    let (v4, v6) = (at(NODE[0], server.port()), at(NODE[1], server6.port()));
    let reaches = |to: SocketAddr| {
        pod.network.pod.inside(|| match TcpStream::connect_timeout(&to, Duration::from_secs(5)) {
            Ok(_) => true,
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => false,
            Err(error) => panic!("{to}: {error}"),
        })
    };
    assert!(!reaches(v4) && !reaches(v6));
    let by_sidecar = |to: SocketAddr| {
        let script = format!("exec 3<>/dev/tcp/{}/{}", to.ip(), to.port());
        let mut bash = Command::new("bash");
        bash.args(["-c", &script]).uid(SIDECAR_USER).gid(SIDECAR_USER);
        pod.network.pod.inside(|| bash.status()).unwrap().success()
    };
    assert!(by_sidecar(v4) && by_sidecar(v6), "what the sidecar calls is left alone");

    let port = v4.port().to_string();
    assert!(pod.init(&["--skip-outbound-ports", &port]).status.success());
    assert!(reaches(v4) && (v6.port() == v4.port() || !reaches(v6)));
    assert!(pod.init(&["--skip-outbound-cidrs", "10.64.0.0/10"]).status.success());
    assert!(reaches(v4) && !reaches(v6));
    assert!(pod.init(&["--skip-outbound-cidrs", "fd70::/12"]).status.success());
    assert!(!reaches(v4) && reaches(v6));

    assert!(pod.init(&["--skip-inbound-ports", "9000-9001"]).status.success());
    let _apps: Vec<_> =
        ["0.0.0.0:9000", "[::]:9001", "[::]:9002", "127.0.0.1:9003"].map(|at| pod.app(at, "app")).into();
    let reached = |ip: &str, port: u16| {
        let to = at(ip, port);
        pod.network.node.inside(|| TcpStream::connect_timeout(&to, Duration::from_secs(5)).is_ok())
    };
    assert!(
        reached(POD[0], 9000) && reached(POD[1], 9001) && !reached(POD[0], 9002) && !reached(POD[1], 9002)
    );
    // Within the pod nothing is intercepted.
    assert!(reaches(at(POD[0], 9002)) && reaches(at("127.0.0.1", 9003)) && reaches(at("::1", 9002)));
}

#[test]
fn what_the_application_calls_goes_through_the_sidecar() {
    let Some(pod) = Pod::new(&[]) else { return };
    let sidecar = pod.sidecar(&[]);
    for (ip, node) in NODE.iter().zip(Network::node_addresses()) {
        let server = pod.app_on_node(ip, "outside");
        let to = SocketAddr::new(node, server.port());
        let answer = pod.network.pod.inside(|| fetch(to));
        assert_eq!(answer.as_deref(), Some("outside"), "{to}");
    }
    pod.counted(&["heddle_tcp_connections_total", "direction=\"outbound\"", "service=\"passthrough\""], 2.0);
    // What was made to the sidecar itself has no destination.
    let own = pod.network.pod.inside(|| get(at("127.0.0.1", 7101), "x", "/")).unwrap();
    assert_eq!(own.0, 508, "{}", own.1);
    assert!(own.1.contains("loop"), "{}", own.1);
    drop(sidecar);
}

#[test]
fn calls_from_the_mesh_reach_the_application_at_its_own_port() {
    let Some(pod) = Pod::new(&[]) else { return };
    let _sidecar = pod.sidecar(&["--port", "http:8080:http"]);
    let _apps = [pod.app("[::]:8080", "declared"), pod.app("0.0.0.0:8081", "undeclared")];
    let _hidden = pod.app("127.0.0.1:8082", "hidden");
    let certificate = pod.certificate("client");
    let call = |ip: &str, dialled: u16, named: u16| {
        pod.network.node.inside(|| forge::call(at(ip, dialled), named, Some(&certificate)))
    };
    for ip in POD {
        assert!(call(ip, 8080, 8080).unwrap().ends_with("declared"), "{ip}");
        assert!(call(ip, 7102, 8080).unwrap().ends_with("declared"), "{ip}, by the listener's own port");
    }
    assert!(call(POD[0], 8081, 8081).unwrap().ends_with("undeclared"));
    let hidden = call(POD[0], 8082, 8082).unwrap();
    assert!(hidden.contains("heddle-error: connect_failure"), "{hidden}");
    assert!(call(POD[0], 8080, 8081).is_err(), "the server name names another port");
    for own in [7101, 7102, 7153, 7190] {
        let answer = call(POD[0], 7102, own).unwrap();
        assert!(
            answer.starts_with("HTTP/1.1 508") && answer.contains("heddle-error: loop"),
            "{own}: {answer}"
        );
    }
    assert!(call(POD[0], 7101, 7101).unwrap().contains("heddle-error: loop"));
    pod.counted(
        &["heddle_requests_total", "direction=\"inbound\"", "/sa/client\"", "tls=\"mutual\"", "code=\"200\""],
        5.0,
    );
}

#[test]
fn calls_from_outside_the_mesh_are_refused_and_counted() {
    let Some(pod) = Pod::new(&[]) else { return };
    let _sidecar = pod.sidecar(&["--port", "http:8080:http"]);
    let _app = pod.app("[::]:8080", "reached");
    for ip in POD {
        for port in [8080, 7102, 8099] {
            let request = "GET / HTTP/1.1\r\nhost: web\r\nconnection: close\r\n\r\n";
            let answer = pod.network.node.inside(|| exchange(at(ip, port), request)).unwrap();
            assert!(answer.starts_with("HTTP/1.1 403"), "{ip} {port}: {answer}");
            assert!(answer.contains("heddle-error: tls_required"), "{ip} {port}: {answer}");
        }
    }
    pod.counted(&["heddle_requests_total", "direction=\"inbound\"", "error=\"tls_required\""], 6.0);
    pod.counted(&["heddle_tls_handshakes_total", "reason=\"plaintext\""], 6.0);
    // What is no HTTP is cut off.
    let cut = |bytes: &'static [u8]| {
        pod.network.node.inside(|| {
            let mut stream = TcpStream::connect(at(POD[0], 8080)).unwrap();
            stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
            stream.write_all(bytes).unwrap();
            let mut answer = Vec::new();
            match stream.read_to_end(&mut answer) {
                Ok(_) => assert!(answer.is_empty(), "{answer:?}"),
                Err(error) => assert_eq!(error.kind(), ErrorKind::ConnectionReset),
            }
        });
    };
    cut(b"*1\r\n$4\r\nPING\r\n");
    cut(b"\0\0\0\x08\x04\xd2\x16\x2f");
    pod.counted(&["heddle_tcp_connections_total", "direction=\"inbound\"", "error=\"tls_required\""], 2.0);
    // A certificate of nobody's, or none.
    let stranger = forge::Authority::unknown().sign(&["spiffe://heddle.local/ns/default/sa/client"], 2040);
    for certificate in [None, Some(&stranger)] {
        assert!(pod.network.node.inside(|| forge::call(at(POD[0], 8080), 8080, certificate)).is_err());
    }
}

#[test]
fn names_of_the_cluster_are_the_clusters_and_others_may_be_the_meshs() {
    let Some(pod) = Pod::new(&[]) else { return };
    pod.network.node.inside(|| {
        let socket = UdpSocket::bind((NODE[0], 53)).unwrap();
        std::thread::spawn(move || resolve(&socket));
    });
    pod.control_plane.apply(
        "external.yaml",
        "apiVersion: heddle.dev/v1alpha1\nkind: ExternalService\nmetadata: {name: payments, namespace: default}\n\
         spec: {hosts: [api.payments.example], ports: [{name: http, port: 80, protocol: HTTP}], \
         endpoints: [{address: 192.0.2.7}]}\n",
    );
    let _sidecar = pod.sidecar(&["--resolver", NODE[0]]);
    // Whatever resolver is asked, by whatever port.
    let ask = |name: &str| {
        pod.network.pod.inside(|| {
            let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
            socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
            socket.connect("10.96.0.10:53").unwrap();
            socket.send(&question(7, name)).unwrap();
            let mut reply = [0; 512];
            let length = socket.recv(&mut reply).unwrap();
            told(&reply[..length])
        })
    };
    assert_eq!(ask("www.example"), Some([192, 0, 2, 53].into()));
    assert_eq!(ask("api.payments.example.default.svc.cluster.local"), None);
    let synthetic = eventually("the external service has an address", || {
        ask("api.payments.example").filter(|address| *address != IpAddr::from([192, 0, 2, 53]))
    });
    assert!(synthetic.to_string().starts_with("240.240."), "{synthetic}");
    // A service that the cluster's DNS does not know, but the mesh does: ours.
    let web = eventually("the workload itself has an address", || ask("web.default.svc.cluster.local"));
    assert!(web.to_string().starts_with("240.240."), "{web}");

    // The sidecar's queries have ports of their own; one that an application used a moment ago
    // must not bring them back. More queries than the kernel would forget in time:
    pod.network.pod.inside(|| {
        for id in 0..2000 {
            let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
            socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
            socket.connect((NODE[0], 53)).unwrap();
            socket.send(&question(id, "www.example")).unwrap();
            let mut reply = [0; 512];
            let length = socket.recv(&mut reply).expect("each is answered");
            assert_eq!(told(&reply[..length]), Some([192, 0, 2, 53].into()));
        }
    });

    let by_tcp = pod.network.pod.inside(|| {
        let mut stream = TcpStream::connect("10.96.0.10:53").unwrap();
        let message = question(9, "web.default.svc.cluster.local");
        stream.write_all(&u16::try_from(message.len()).unwrap().to_be_bytes()).unwrap();
        stream.write_all(&message).unwrap();
        let mut length = [0; 2];
        stream.read_exact(&mut length).unwrap();
        let mut reply = vec![0; u16::from_be_bytes(length).into()];
        stream.read_exact(&mut reply).unwrap();
        told(&reply)
    });
    // Without a resolver that speaks TCP the cluster says nothing.
    assert!(by_tcp.is_none() || by_tcp == Some(web), "{by_tcp:?}");
}

#[test]
fn the_application_may_call_its_own_service() {
    let Some(pod) = Pod::new(&[]) else { return };
    pod.network.node.inside(|| {
        let socket = UdpSocket::bind((NODE[0], 53)).unwrap();
        std::thread::spawn(move || resolve(&socket));
    });
    let _app = pod.app("0.0.0.0:8080", "myself");
    let _sidecar = pod.sidecar(&["--resolver", NODE[0], "--port", "http:8080:http"]);
    pod.network.node.inside(|| pod.control_plane.workloads("web", 1));
    let answer = pod.network.pod.inside(|| {
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        socket.connect("10.96.0.10:53").unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let address = eventually("it has an address", || {
            socket.send(&question(1, "web.default.svc.cluster.local")).unwrap();
            let mut reply = [0; 512];
            let length = socket.recv(&mut reply).ok()?;
            told(&reply[..length])
        });
        eventually("it answers", || {
            get(SocketAddr::new(address, 8080), "web", "/").filter(|answer| answer.0 == 200)
        })
    });
    assert_eq!(answer.1, "myself");
    pod.counted(&["heddle_requests_total", "direction=\"inbound\"", "/sa/web\"", "code=\"200\""], 1.0);
    let direct = pod.network.pod.inside(|| fetch(at(POD[0], 8080)));
    assert_eq!(direct.as_deref(), Some("myself"), "its own address is no other place");
}

#[test]
fn a_sidecar_ends_when_its_application_is_gone_and_not_before() {
    let Some(pod) = Pod::new(&[]) else { return };
    let mut alone = pod.sidecar(&[]);
    let begun = std::time::Instant::now();
    assert!(alone.terminate().success());
    assert!(begun.elapsed() < Duration::from_secs(60), "nothing is open and nobody is there");

    let server = pod.app_on_node(NODE[0], "outside");
    let app = pod.app("0.0.0.0:8080", "app");
    let mut sidecar = pod.sidecar(&[]);
    sidecar.signal("TERM");
    sidecar.said("draining");
    assert_eq!(pod.admin("/ready").unwrap().0, 503);
    let certificate = pod.certificate("client");
    let until = std::time::Instant::now() + Duration::from_secs(3);
    while std::time::Instant::now() < until {
        // Longer than a sidecar whose application is gone would stay.
        let outbound = pod.network.pod.inside(|| fetch(at(NODE[0], server.port())));
        assert_eq!(outbound.as_deref(), Some("outside"));
        let inbound = pod.network.node.inside(|| forge::call(at(POD[0], 8080), 8080, Some(&certificate)));
        assert!(inbound.unwrap().ends_with("app"));
        std::thread::sleep(Duration::from_millis(200));
    }
    pod.network.pod.inside(|| app.stop());
    assert!(sidecar.ended().success());
}

/// Two native sidecars waited for each other until the kubelet had no patience any more.
#[test]
fn a_native_sidecar_waits_for_no_other_sidecar() {
    let Some(pod) = Pod::new(&[]) else { return };
    let other = pod.app("0.0.0.0:9100", "another sidecar");
    let mut sidecar = pod.sidecar(&["--native-sidecar"]);
    let begun = std::time::Instant::now();
    assert!(sidecar.terminate().success());
    assert!(begun.elapsed() < Duration::from_secs(60), "after {:?}", begun.elapsed());
    pod.network.pod.inside(|| other.stop());
}

/// A pod came up before the CNI plugin of its node, and was outside the mesh without anybody being told.
#[test]
fn a_sidecar_is_not_ready_before_its_connections_are_brought_to_it() {
    let Some(pod) = Pod::new(&[]) else { return };
    assert!(pod.init(&["--remove"]).status.success());
    // Who listens where the sidecar calls itself is not taken for it.
    let _other = pod.app("127.0.0.1:7199", "another");
    let sidecar = pod.sidecar_starting(&[]);
    let complaint = sidecar.said("are not brought to the sidecar");
    assert!(complaint.contains("heddle-init") && complaint.contains("CNI"), "{complaint}");
    let (status, reason) = pod.admin("/ready").expect("it answers");
    assert!(status == 503 && reason.contains("network rules"), "{status} {reason}");
    assert!(pod.init(&[]).status.success());
    sidecar.said("the sidecar is ready");
    assert_eq!(pod.admin("/ready").expect("it answers").0, 200);
    assert!(sidecar.log().contains("are brought to the sidecar"));
}

/// Rules of iptables are set family by family, and one may be missing.
#[test]
fn a_sidecar_is_not_ready_while_one_family_goes_around_it() {
    let Some(pod) = Pod::new(&["--by", "nftables-by-family"]) else { return };
    let nft = |command: &str| {
        let output = pod.network.pod.inside(|| Command::new("nft").args(command.split(' ')).output());
        assert!(output.expect("nft is installed").status.success(), "{command}");
    };
    nft("delete table ip6 heddle");
    let sidecar = pod.sidecar_starting(&[]);
    assert!(sidecar.said("are not brought to the sidecar").contains("[::1]:7199"));
    assert!(pod.init(&["--by", "nftables-by-family"]).status.success());
    sidecar.said("the sidecar is ready");
}
