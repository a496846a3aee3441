//! How a pod's rules are set where the kernel cannot take them as one nftables table, with real packets.

use std::fs;
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::os::unix::fs::symlink;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use heddle_tests::forge;
use heddle_tests::mesh::installed;
use heddle_tests::netns::{NODE, Network, POD};
use heddle_tests::pod::{Pod, SIDECAR_USER, at, fetch};
use heddle_tests::resolver::{question, resolve, told};

/// What `nft` says about the tables of the pod.
fn tables(pod: &Pod) -> String {
    let output = pod.network.pod.inside(|| Command::new("nft").args(["list", "tables"]).output());
    String::from_utf8_lossy(&output.expect("nft is installed").stdout).into_owned()
}

/// Whether rules that are set this way, in a pod that had them in another, do all that rules have to do.
fn intercept(pod: &Pod, by: &str, programs: Option<&Path>) {
    let init = |flags: &[&str]| {
        let output = pod.init_with(&[&["--by", by], flags].concat(), programs);
        (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    for _ in 0..2 {
        let (done, said) = init(&[]);
        assert!(done, "{said}");
    }
    assert!(init(&["--check"]).0);
    assert!(!tables(pod).contains("inet heddle"), "what was set before is gone: {}", tables(pod));
    let other = ["--skip-outbound-ports", "5432,6000-6010", "--skip-outbound-cidrs", "10.9.0.0/16,fd09::/16"];
    assert!(!init(&[&other[..], &["--check"]].concat()).0, "they are others");
    assert!(init(&other).0 && !init(&["--check"]).0 && init(&[&other[..], &["--check"]].concat()).0);

    // Without a sidecar nothing of the application gets out, and nothing comes in.
    assert!(init(&["--skip-outbound-cidrs", "10.64.0.0/10", "--skip-inbound-ports", "9000-9001"]).0);
    let servers = NODE.map(|ip| pod.app_on_node(ip, "outside"));
    let to = |index: usize| at(NODE[index], servers[index].port());
    let reaches = |to: SocketAddr| {
        pod.network.pod.inside(|| TcpStream::connect_timeout(&to, Duration::from_secs(5)).is_ok())
    };
    let _apps: Vec<_> = ["0.0.0.0:9000", "[::]:9001", "[::]:9002"].map(|at| pod.app(at, "app")).into();
    let reached = |ip: &str, port: u16| {
        let to = at(ip, port);
        pod.network.node.inside(|| TcpStream::connect_timeout(&to, Duration::from_secs(5)).is_ok())
    };
    assert!(reaches(to(0)), "it is skipped");
    assert!(!reaches(to(1)), "IPv6 is not");
    assert!(reached(POD[0], 9000) && reached(POD[1], 9001));
    assert!(!reached(POD[0], 9002) && !reached(POD[1], 9002));
    assert!(reaches(at(POD[0], 9002)) && reaches(at("::1", 9002)), "within the pod nothing is intercepted");
    assert!(init(&[]).0);
    for index in [0, 1] {
        assert!(!reaches(to(index)));
        let script = format!("exec 3<>/dev/tcp/{}/{}", NODE[index], servers[index].port());
        let mut bash = Command::new("bash");
        bash.args(["-c", &script]).uid(SIDECAR_USER).gid(SIDECAR_USER);
        assert!(
            pod.network.pod.inside(|| bash.status()).expect("bash runs").success(),
            "what the sidecar calls"
        );
    }

    // With one all goes through it.
    pod.network.node.inside(|| {
        let socket = UdpSocket::bind((NODE[0], 53)).expect("nobody else is there");
        std::thread::spawn(move || resolve(&socket));
    });
    let _app = pod.app("[::]:8080", "app");
    let _sidecar = pod.sidecar(&["--resolver", NODE[0], "--port", "http:8080:http"]);
    for (index, node) in Network::node_addresses().into_iter().enumerate() {
        let to = SocketAddr::new(node, servers[index].port());
        assert_eq!(pod.network.pod.inside(|| fetch(to)).as_deref(), Some("outside"), "{to}");
    }
    pod.counted(&["heddle_tcp_connections_total", "direction=\"outbound\"", "service=\"passthrough\""], 2.0);
    let certificate = pod.certificate("client");
    for ip in POD {
        let answer = pod.network.node.inside(|| forge::call(at(ip, 8080), 8080, Some(&certificate)));
        assert!(answer.as_ref().is_ok_and(|answer| answer.ends_with("app")), "{ip}: {answer:?}");
    }
    // More queries than there are ports that the kernel would have forgotten meanwhile.
    pod.network.pod.inside(|| {
        for id in 0..1000 {
            let socket = UdpSocket::bind("0.0.0.0:0").expect("there are ports");
            socket.set_read_timeout(Some(Duration::from_secs(20))).expect("it is a socket");
            socket.connect("10.96.0.10:53").expect("there is a route");
            socket.send(&question(id, "www.example")).expect("it is sent");
            let mut reply = [0; 512];
            let length = socket.recv(&mut reply).expect("each is answered");
            assert_eq!(told(&reply[..length]), Some(IpAddr::from([192, 0, 2, 53])));
        }
    });

    assert!(init(&["--remove"]).0 && !init(&["--check"]).0);
    assert!(reaches(to(0)) && reaches(to(1)), "what was set is gone");
}

#[test]
fn a_table_for_each_family_does_what_one_for_both_does() {
    let Some(pod) = Pod::new(&[]) else { return };
    intercept(&pod, "nftables-by-family", None);
}

/// A folder in which the programs of iptables are those of one kind.
fn programs(multi: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("there is room for temporary files");
    for family in ["iptables", "ip6tables"] {
        for program in [family.to_owned(), format!("{family}-restore")] {
            symlink(multi, folder.path().join(program)).expect("it is new");
        }
    }
    folder
}

#[test]
fn iptables_do_what_nftables_do() {
    if installed("iptables", &["--version"]).is_none() {
        return;
    }
    for kind in ["nft", "legacy"] {
        let Some(pod) = Pod::new(&[]) else { return };
        let multi = format!("/usr/sbin/xtables-{kind}-multi");
        assert!(fs::exists(&multi).is_ok_and(|is| is), "{multi} belongs to iptables");
        let programs = programs(&multi);
        // With no more than the injector gives to whoever asks for it.
        let confined = |capabilities: &[&str]| {
            let output = pod.init_confined(&["--by", "iptables"], programs.path(), capabilities);
            (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
        };
        let (done, said) = confined(&["net_admin", "net_raw"]);
        assert!(done, "{kind}: {said}");
        let (done, said) = confined(&["net_admin"]);
        assert_eq!(done, kind == "nft", "{kind}: {said}");
        assert!(done || said.contains("capability NET_RAW"), "{said}");
        intercept(&pod, "iptables", Some(programs.path()));
    }
}
