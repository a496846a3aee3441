//! TCPRoutes and GRPCRoutes on a service, through real sidecars.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::Command;
use std::time::Duration;

use heddle_tests::mesh::installed;
use heddle_tests::{App, ControlPlane, Process, eventually, get, response};

/// The sidecar of an application that listens on `app`.
fn workload(control_plane: &ControlPlane, name: &str, port: &str, app: u16) -> Process {
    let address = format!("127.0.0.1:{app}");
    let sidecar = control_plane.sidecar(name, ["--port", port, "--app", &address]);
    sidecar.said("the sidecar is ready");
    control_plane.workloads(name, 1);
    sidecar
}

/// Who answers on a connection that is opaque to the mesh, to each of `requests`; nobody once it breaks.
fn answers(at: SocketAddr, requests: usize) -> Vec<String> {
    let stream = TcpStream::connect(at).expect("the sidecar listens");
    stream.set_read_timeout(Some(Duration::from_secs(20))).expect("it is a time");
    let mut reader = BufReader::new(stream);
    let mut answer = || {
        reader.get_mut().write_all(b"GET / HTTP/1.1\r\nhost: any\r\n\r\n").ok()?;
        let mut length = 0;
        loop {
            let mut line = String::new();
            if reader.read_line(&mut line).ok()? == 0 {
                return None;
            }
            if let Some(value) = line.strip_prefix("content-length: ") {
                length = value.trim().parse().ok()?;
            }
            if line == "\r\n" {
                break;
            }
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body).ok()?;
        String::from_utf8(body).ok()
    };
    (0..requests).map_while(|_| answer()).collect()
}

#[test]
fn a_tcp_route_shares_out_connections_whatever_they_speak() {
    let control_plane = ControlPlane::start();
    let apps = ["users", "users-v2"].map(|name| {
        let app = App::answering(move |request| response(&format!("{name}\n{request}")));
        let sidecar = workload(&control_plane, name, "http:8080:http", app.port());
        (app, sidecar)
    });
    let client = control_plane.sidecar("client", ["--upstream", "users:8080"]);
    client.said("the sidecar is ready");
    let at = eventually("the upstream's address is told", || {
        let log = client.log();
        let lines = log.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
        let mut addresses = lines.filter_map(|line| line["addr"].as_str()?.parse::<SocketAddr>().ok());
        addresses.find(|address| address.port() == 8080)
    });
    let route = |backends: &str| {
        control_plane.apply(
            "tcp.yaml",
            &format!(
                "apiVersion: gateway.networking.k8s.io/v1alpha2\nkind: TCPRoute\nmetadata: {{name: users, namespace: default}}\nspec:\n  parentRefs: [{{group: '', kind: Service, name: users, port: 8080}}]\n  rules: [{{backendRefs: [{backends}]}}]\n"
            ),
        );
    };
    route(
        "{name: users, port: 8080, weight: 2}, {name: users-v2, port: 8080, weight: 1}, {name: nowhere, port: 8080, weight: 1}",
    );
    eventually("the route is in force", || answers(at, 1).is_empty().then_some(()));
    let mut counts = BTreeMap::new();
    for _ in 0..200 {
        let answers = answers(at, 3);
        let names: Vec<&str> = answers.iter().filter_map(|answer| answer.lines().next()).collect();
        let name = names.first().copied().unwrap_or_default().to_owned();
        assert!(names.is_empty() || names == [name.as_str(); 3], "a connection has one backend: {names:?}");
        for answer in &answers {
            assert_eq!(answer, &format!("{name}\nGET / HTTP/1.1\nhost: any\n"), "nothing is added");
        }
        *counts.entry(name).or_insert(0) += 1;
    }
    // Five standard deviations around a half and a quarter of 200.
    assert!((65..=135).contains(&counts["users"]), "{counts:?}");
    assert!((20..=80).contains(&counts["users-v2"]) && (20..=80).contains(&counts[""]), "{counts:?}");

    // Where requests say where they go, each meets the same rule.
    let by_name = control_plane.sidecar("by-name", [] as [&str; 0]);
    by_name.said("the sidecar is ready");
    route("{name: users-v2, port: 8080}");
    eventually("requests by name follow the route", || {
        let (_, body) = get(by_name.listening("outbound"), "users:8080", "/")?;
        body.starts_with("users-v2").then_some(())
    });

    route("{name: users, port: 8080, weight: 0}");
    eventually("nothing has a weight", || (0..20).all(|_| answers(at, 1).is_empty()).then_some(()));
    std::fs::remove_file(control_plane.manifests().join("tcp.yaml")).unwrap();
    eventually("without a route the service answers", || (answers(at, 1).len() == 1).then_some(()));
    drop(apps);
}

/// A server that answers every method with its own name and the method's.
const GRPC_SERVER: &str = "
import sys
from concurrent import futures
import grpc

class Any(grpc.GenericRpcHandler):
    def service(self, details):
        answer = (sys.argv[1] + ' ' + details.method).encode()
        return grpc.unary_unary_rpc_method_handler(lambda request, context: answer)

server = grpc.server(futures.ThreadPoolExecutor(2))
server.add_generic_rpc_handlers((Any(),))
print('port=%d' % server.add_insecure_port('127.0.0.1:0'), file=sys.stderr, flush=True)
server.start()
server.wait_for_termination()
";

/// Calls methods through a sidecar and prints the answers or the names of the statuses.
const GRPC_CLIENT: &str = "
import sys
import grpc

options = (('grpc.default_authority', 'kinds:50051'), ('grpc.enable_http_proxy', 0))
channel = grpc.insecure_channel(sys.argv[1], options=options)
for method in sys.argv[2:]:
    try:
        print(channel.unary_unary(method)(b'', timeout=20).decode())
    except grpc.RpcError as error:
        print(error.code().name)
";

#[test]
fn a_grpc_route_sends_methods_where_it_says_and_implements_no_others() {
    let python = std::env::var("HEDDLE_TEST_PYTHON").unwrap_or_else(|_| "python3".to_owned());
    let Some(python) = installed(&python, &["-c", "import grpc"]) else { return };
    let control_plane = ControlPlane::start();
    let _servers = ["kinds", "kinds-v2"].map(|name| {
        let server = Process::start(Command::new(&python).args(["-c", GRPC_SERVER, name]));
        let port = server.said("port=").trim_start_matches("port=").parse().expect("it is a port");
        (workload(&control_plane, name, "grpc:50051:grpc", port), server)
    });
    let client = control_plane.sidecar("client", [] as [&str; 0]);
    client.said("the sidecar is ready");
    let at = client.listening("outbound").to_string();
    control_plane.apply(
        "grpc.yaml",
        "
apiVersion: gateway.networking.k8s.io/v1
kind: GRPCRoute
metadata: {name: kinds, namespace: default}
spec:
  parentRefs: [{group: '', kind: Service, name: kinds, port: 50051}]
  rules:
  - matches: [{method: {service: test.Kinds, method: Canary}}]
    backendRefs: [{name: kinds-v2, port: 50051}]
  - matches: [{method: {service: test.Kinds}}]
    backendRefs: [{name: kinds, port: 50051}]
  - matches: [{method: {method: Broken}}]
    backendRefs: [{name: nowhere, port: 50051}]
",
    );
    let calls = ["/test.Kinds/Unary", "/test.Kinds/Canary", "/other.Kinds/Unary", "/other.Kinds/Broken"];
    let expected = "kinds /test.Kinds/Unary\nkinds-v2 /test.Kinds/Canary\nUNIMPLEMENTED\nUNAVAILABLE\n";
    eventually("all calls are routed", || {
        let output = Command::new(&python).args(["-c", GRPC_CLIENT, &at]).args(calls).output().ok()?;
        (output.stdout == expected.as_bytes()).then_some(())
    });
}
