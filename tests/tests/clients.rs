//! Programs of many makers, unchanged, in the mesh: what they ask for arrives,
//! and what is between the sidecars is mutual TLS.

use std::fs;
use std::path::Path;
use std::process::Command;

use heddle_tests::mesh::{Mesh, installed, is_root, program};
use heddle_tests::ports::Reserved;
use heddle_tests::{Process, eventually};

/// What the web server has to give.
const PAGE: &str = "the page that was asked for";

#[test]
fn a_page_is_fetched_over_mutual_tls_and_counted_once_on_each_side() {
    fetches_a_page(&Mesh::start());
}

#[test]
fn a_page_is_fetched_over_mutual_tls_by_users_without_privileges() {
    if let Some(mesh) = Mesh::start_unprivileged() {
        fetches_a_page(&mesh);
    }
}

fn fetches_a_page(mesh: &Mesh) {
    let _web = web(mesh);
    // What the program prints goes to standard error, which the harness reads while it stays.
    let script = "curl -sS http://web:8000/page >&2; echo >&2; exec sleep 600";
    let client = mesh.run("client", &[], &["sh", "-c", script]);
    client.said(PAGE);

    let counted = |at, direction, peer| {
        let peer = format!("peer=\"spiffe://heddle.local/ns/default/sa/{peer}\"");
        let direction = format!("direction=\"{direction}\"");
        let parts = [
            "heddle_requests_total{",
            &direction,
            "service=\"web\"",
            "code=\"200\"",
            &peer,
            "tls=\"mutual\"",
        ];
        eventually(&format!("{at} has counted"), || Some(mesh.metric(at, &parts)).filter(|sum| *sum > 0.0))
    };
    assert_eq!(counted("client", "outbound", "web"), 1.0);
    assert_eq!(counted("web", "inbound", "client"), 1.0);
    for at in ["client", "web"] {
        assert_eq!(mesh.metric(at, &["heddle_requests_total{"]), 1.0, "{at} has counted nothing else");
    }
}

#[test]
fn between_the_sidecars_are_only_tls_records() {
    if !is_root() || installed("tcpdump", &["--version"]).is_none() {
        return;
    }
    let mesh = Mesh::start();
    let _web = web(&mesh);
    let inbound = mesh.workload("web").unwrap()["inboundPort"].to_string();
    let capture = mesh.directory().join("capture.pcap");
    let mut command = Command::new("tcpdump");
    command.args(["-i", "lo", "-U", "--immediate-mode", "-Z", "root", "-w"]).arg(&capture);
    let mut tcpdump = Process::start(command.args(["tcp", "port", &inbound]));
    tcpdump.said("listening on lo");

    let marker = "a-secret-of-the-request";
    let url = format!("http://web:8000/page?{marker}");
    assert_eq!(mesh.answer("client", &["curl", "-sS", "-H", &format!("x-marker: {marker}"), &url]), PAGE);
    let has = |bytes: &[u8], part: &[u8]| bytes.windows(part.len()).any(|window| window == part);
    let captured = || fs::read(&capture).unwrap_or_default();
    eventually("application data was captured", || has(&captured(), &[0x17, 0x03, 0x03]).then_some(()));
    assert!(tcpdump.terminate().success());

    let bytes = captured();
    assert!(has(&bytes, &[0x16, 0x03, 0x01]) || has(&bytes, &[0x16, 0x03, 0x03]), "there is no handshake");
    assert!(has(&bytes, b"p8000.heddle.internal"), "the handshake names the port");
    for plain in [marker, PAGE, "HTTP/1.1", "SimpleHTTP", "x-marker"] {
        assert!(!has(&bytes, plain.as_bytes()), "{plain:?} was sent in the clear");
    }
}

#[test]
fn the_client_of_node_works() {
    let Some(node) = installed("node", &["-e", "fetch"]) else { return };
    fetched_by(&[&node, &program("client.mjs"), "http://web:8000/page"]);
}

#[test]
fn the_client_of_java_works() {
    let Some(java) = installed("java", &["--version"]) else { return };
    fetched_by(&[&java, &program("Client.java"), "http://web:8000/page"]);
}

/// A static program resolves names by itself: no library can be what puts it into the mesh.
#[test]
fn the_static_client_of_go_works() {
    let Some(go) = installed("go", &["version"]) else { return };
    let directory = tempfile::tempdir().unwrap();
    let client = directory.path().join("client");
    let mut build = Command::new(go);
    build.args(["build", "-o"]).arg(&client).arg(program("client.go")).env("CGO_ENABLED", "0");
    assert!(build.status().unwrap().success());
    fetched_by(&[client.to_str().unwrap(), "http://web:8000/page"]);
}

fn fetched_by(client: &[&str]) {
    let mesh = Mesh::start();
    let _web = web(&mesh);
    assert_eq!(mesh.answer("client", client), PAGE);
}

#[test]
fn all_kinds_of_grpc_call_work_with_trailers_statuses_and_deadlines() {
    let Some(python) = python_with("grpc") else { return };
    for declared in ["grpc:50051", "50051"] {
        let mesh = Mesh::start();
        let _server = mesh.serve("kinds", declared, &[&python, &program("grpc_server.py")]);
        assert_eq!(mesh.answer("client", &[&python, &program("grpc_client.py")]), "passed\n", "{declared}");
    }
}

#[test]
fn web_sockets_carry_messages_both_ways() {
    let Some(python) = python_with("websockets") else { return };
    let mesh = Mesh::start();
    let _server = mesh.serve("chat", "http:8000", &[&python, &program("websocket_server.py")]);
    assert_eq!(mesh.answer("client", &[&python, &program("websocket_client.py")]), "passed\n");
}

#[test]
fn tls_of_the_applications_own_passes_untouched() {
    let mesh = Mesh::start();
    let made = rcgen::generate_simple_self_signed(["bank".to_owned()]).unwrap();
    let certificate = mesh.directory().join("bank.pem");
    fs::write(&certificate, made.cert.pem() + &made.signing_key.serialize_pem()).unwrap();
    fs::write(mesh.directory().join("page"), PAGE).unwrap();
    let _bank = mesh.serve("bank", "8443", &[python(), &program("tls_server.py"), "bank.pem"]);
    let trusted = certificate.to_str().unwrap();
    assert_eq!(mesh.answer("client", &["curl", "-sS", "--cacert", trusted, "https://bank:8443/page"]), PAGE);
}

#[test]
fn redis_works_on_a_port_of_no_declared_protocol() {
    let (Some(server), Some(client)) =
        (installed("redis-server", &["--version"]), installed("redis-cli", &["--version"]))
    else {
        return;
    };
    let mesh = Mesh::start();
    let _redis = mesh.serve("redis", "6379", &[&server, "--save", ""]);
    let script =
        format!("{client} -h redis ping && {client} -h redis set key value && {client} -h redis get key");
    assert_eq!(mesh.answer("client", &["sh", "-c", &script]), "PONG\nOK\nvalue\n");
}

#[test]
fn postgres_works_on_a_port_of_no_declared_protocol() {
    let Some(psql) = installed("psql", &["--version"]) else { return };
    let Some(programs) = postgres() else { return };
    // Postgres refuses to run as root.
    let Some(mesh) = Mesh::start_unprivileged() else { return };
    let data = mesh.directory().join("postgres");
    let data = data.to_str().unwrap();
    let mut init = mesh.command(format!("{programs}/initdb"));
    let init =
        init.args(["--pgdata", data, "--auth", "trust", "--username", "me", "--no-sync"]).output().unwrap();
    assert!(init.status.success(), "{init:?}");

    let sockets = mesh.directory().to_str().unwrap();
    let server = [&format!("{programs}/postgres"), "-D", data, "-k", sockets, "-F"];
    let mut server = mesh.serve("db", "5432", &server);
    let ask = [&psql, "-h", "db", "-U", "me", "-d", "postgres", "-At", "-c", "select 40 + 2"];
    assert_eq!(mesh.answer("client", &ask), "42\n");
    // Its children would stay if it were killed.
    assert!(server.terminate().success());
}

#[test]
fn a_banner_of_a_server_that_speaks_first_comes_soon() {
    let mesh = Mesh::start();
    let _mail = mesh.serve("mail", "25", &[python(), &program("banner.py")]);
    let answer = mesh.answer("client", &[python(), &program("banner_client.py")]);
    let [took, banner, reply] = answer.lines().collect::<Vec<_>>()[..] else { panic!("{answer}") };
    assert_eq!((banner, reply), ("220 mail ready", "250 HELO me"));
    // Not after the ten seconds in which a client that speaks first would have spoken.
    assert!(took.parse::<u64>().unwrap() < 5000, "it took {took} ms");
}

/// `nc` with no input does this: it ends its half before the server has said a word.
/// Once that counted as having left, and the server was not even asked.
#[test]
fn a_client_that_only_listens_is_told_what_the_server_says() {
    let mesh = Mesh::start();
    let _mail = mesh.serve("mail", "25", &[python(), &program("banner.py")]);
    let listen = "import socket; mail = socket.create_connection(('mail', 25)); \
                  mail.shutdown(socket.SHUT_WR); print(mail.makefile().read(), end='')";
    for _ in 0..3 {
        assert_eq!(mesh.answer("client", &[python(), "-c", listen]), "220 mail ready\n");
    }
}

#[test]
fn exit_statuses_and_pipes_are_the_programs_own() {
    let mesh = Mesh::start();
    let input = "one\ntwo\n".repeat(20_000);
    let output = mesh.output("client", &["sh", "-c", "cat; echo to the other side >&2; exit 42"], &input);
    assert_eq!(output.status.code(), Some(42));
    assert!(output.stdout == input.as_bytes(), "{} bytes came through", output.stdout.len());
    assert!(String::from_utf8_lossy(&output.stderr).contains("to the other side"));
    assert_eq!(mesh.output("client", &["/no/such/program"], "").status.code(), Some(127));
}

#[test]
fn a_published_port_is_reached_from_the_host() {
    let mesh = Mesh::start();
    let reserved = Reserved::at(([127, 0, 0, 1], 0).into());
    let port = reserved.address().port();
    let published = format!("{port}:8000");
    fs::write(mesh.directory().join("page"), PAGE).unwrap();
    let flags = ["--port", "8000", "--publish", &published];
    let _web = mesh.run("web", &flags, &[python(), "-m", "http.server", "8000"]);
    let url = format!("http://127.0.0.1:{port}/page");
    eventually("the published port answers", || {
        let output = Command::new("curl").args(["-sSf", &url]).output().expect("curl runs");
        (output.stdout == PAGE.as_bytes()).then_some(())
    });
}

/// A web server with one page.
fn web(mesh: &Mesh) -> Process {
    fs::write(mesh.directory().join("page"), PAGE).expect("there is room");
    mesh.serve("web", "http:8000", &[python(), "-m", "http.server", "8000"])
}

/// The system's Python, which every user may run, as opposed to one in somebody's home.
fn python() -> &'static str {
    if Path::new("/usr/bin/python3").exists() { "/usr/bin/python3" } else { "python3" }
}

/// A Python that has a module of others.
fn python_with(module: &str) -> Option<String> {
    let python = std::env::var("HEDDLE_TEST_PYTHON").unwrap_or_else(|_| python().to_owned());
    installed(&python, &["-c", &format!("import {module}")])
}

/// The folder of the newest Postgres server, which Debian keeps out of the path.
fn postgres() -> Option<String> {
    let versions = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let newest =
        versions.map(|entry| entry.path().join("bin")).filter(|bin| bin.join("initdb").exists()).max();
    let folder = newest.map_or_else(String::new, |bin| format!("{}/", bin.display()));
    installed(&format!("{folder}postgres"), &["--version"])?;
    Some(folder.trim_end_matches('/').to_owned())
}
