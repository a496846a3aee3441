//! What commands print where nobody reads it or it cannot be written, and what they say of what was
//! typed wrongly.

use std::fs::{self, File};
use std::net::TcpListener;
use std::process::{Command, Output, Stdio};

use heddle_tests::mesh::missing;
use heddle_tests::{ControlPlane, Process, binary, eventually, get};
use serde_json::Value;

/// Runs a program without the variables of whoever runs the tests.
fn run(program: &str, args: &[&str], stdout: Stdio) -> Output {
    let home = tempfile::tempdir().expect("there is room");
    let mut command = Command::new(binary(program));
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("HEDDLE_")) {
        command.env_remove(name);
    }
    for folder in ["HOME", "XDG_RUNTIME_DIR", "XDG_DATA_HOME"] {
        command.env(folder, home.path());
    }
    command.env_remove("KUBECONFIG").env_remove("RUST_BACKTRACE");
    command.args(args).stdin(Stdio::null()).stdout(stdout).stderr(Stdio::piped());
    command.spawn().and_then(|child| child.wait_with_output()).expect("the program runs")
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// A pipe that nobody reads, as that of `| head -1` soon is.
fn unread() -> Stdio {
    let (reader, writer) = std::io::pipe().expect("there are descriptors");
    drop(reader);
    writer.into()
}

fn full_disk() -> Stdio {
    File::options().write(true).open("/dev/full").expect("Linux has it").into()
}

#[test]
fn what_is_printed_needs_no_reader_but_room() {
    let mut mesh = ControlPlane::start();
    mesh.apply(
        "users.yaml",
        "apiVersion: v1\nkind: Service\nmetadata: {name: users}\nspec: {ports: [{port: 80}]}\n",
    );
    eventually("the service is known", || {
        get(mesh.admin(), "localhost", "/service?name=default/users").filter(|(status, _)| *status == 200)
    });
    let admin = format!("--control-plane-admin={}", mesh.admin());
    let commands: [(&str, &[&str]); 9] = [
        ("heddle", &["install"]),
        ("heddle", &["stat", &admin]),
        ("heddle", &["stat", "--json", &admin]),
        ("heddle", &["routes", &admin]),
        ("heddle", &["routes", "--json", &admin]),
        ("heddle", &["policy", "explain", "users", &admin]),
        ("heddle", &["policy", "explain", "users", "--json", &admin]),
        ("heddle-control-plane", &["crds"]),
        ("heddle-control-plane", &["token", "--service", "users"]),
    ];
    for (program, args) in commands {
        let output = run(program, args, unread());
        assert_eq!((output.status.code(), said(&output)), (Some(0), String::new()), "{program} {args:?}");
        let output = run(program, args, full_disk());
        let expected = format!("{program}: cannot write to standard output: No space left on device");
        assert_eq!(output.status.code(), Some(1), "{program} {args:?}");
        assert!(said(&output).starts_with(&expected), "{program} {args:?}: {}", said(&output));
    }
    // What is found counts, whoever reads it.
    let output = run("heddle", &["check", "--control-plane", "nowhere"], unread());
    let expected = "heddle: this machine is not ready; see above\n";
    assert_eq!((output.status.code(), said(&output).as_str()), (Some(1), expected));
    mesh.kill();
}

#[test]
fn an_error_says_each_cause_once() {
    let output = run("heddle", &["run", "--service", "A_b", "--", "true"], Stdio::null());
    let expected = "heddle: --service, --namespace: \"default/A_b\" is no service name (namespace/name, each a DNS label)\n";
    assert_eq!((output.status.code(), said(&output).as_str()), (Some(125), expected));

    for (flag, value) in [("--trust-domain", "A_@"), ("--cluster-domain", "..."), ("--source", "kubernetes")]
    {
        let output = run("heddle-control-plane", &["--listen=127.0.0.1:0", flag, value], Stdio::null());
        let said = said(&output);
        assert!(said.starts_with(&format!("heddle-control-plane: {flag}: ")), "{said}");
        assert_eq!(said.lines().count(), 1, "{said}");
        assert_eq!(said.matches(" is no ").count() + said.matches("No such file").count(), 1, "{said}");
    }

    // One that listened and does not any more.
    let gone = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a port");
    let admin = format!("--control-plane-admin={gone}");
    let output = run("heddle", &["routes", &admin], Stdio::null());
    let expected = format!("heddle: no control plane answers at http://{gone}/routes: Connection refused");
    assert!(said(&output).starts_with(&expected), "{}", said(&output));
}

/// `heddle run` once took `--config` and read nothing: what the file said was not in force, and that there
/// was no such file was not told.
#[test]
fn a_programs_settings_may_come_from_a_file() {
    let folder = tempfile::tempdir().expect("there is room");
    let written = |name: &str, text: &str| {
        let path = folder.path().join(name);
        fs::write(&path, text).expect("there is room");
        path.display().to_string()
    };
    let run = |file: &str| run("heddle", &["run", "--config", file, "--", "true"], Stdio::null());

    let good = written("good.yaml", "explicit: true\nservice: from-the-file\ncontrolPlane: 127.0.0.1:1\n");
    let output = run(&good);
    assert_eq!(output.status.code(), Some(125), "{}", said(&output));
    assert!(said(&output).contains("token --service from-the-file --namespace default"), "{}", said(&output));

    let wrong = written("wrong.yaml", "servce: users\n");
    let output = run(&wrong);
    assert_eq!(output.status.code(), Some(2), "{}", said(&output));
    assert!(said(&output).contains("wrong.yaml: servce: there is no such setting"), "{}", said(&output));

    let missing = folder.path().join("missing.yaml");
    let output = run(&missing.display().to_string());
    assert_eq!(output.status.code(), Some(2), "{}", said(&output));
    assert!(said(&output).contains("missing.yaml: No such file"), "{}", said(&output));
}

/// `heddle stat` once asked this machine, whichever machine was named.
#[test]
fn a_control_plane_elsewhere_is_not_taken_for_one_on_this_machine() {
    // An address for documentation, of which nothing is asked.
    let output = run("heddle", &["stat", "--once", "--control-plane", "192.0.2.1:7200"], Stdio::null());
    let said = said(&output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.starts_with("heddle: --control-plane 192.0.2.1:7200: is not on this machine"), "{said}");
    assert!(said.contains("--control-plane-admin"), "{said}");
}

#[test]
fn a_port_that_was_asked_for_is_not_replaced_by_another() {
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = taken.local_addr().expect("it is bound").port().to_string();
    let output = run("heddle", &["demo", "--port", &port], Stdio::null());
    assert_eq!(output.status.code(), Some(1), "{}", said(&output));
    let expected = format!("heddle: cannot listen on 127.0.0.1:{port}: Address already in use");
    assert!(said(&output).starts_with(&expected), "{}", said(&output));
}

#[test]
fn a_context_means_a_cluster() {
    let output = run("heddle", &["check", "--context", "nowhere"], Stdio::null());
    assert_eq!(output.status.code(), Some(1), "{}", said(&output));
    assert!(said(&output).starts_with("heddle: no cluster to ask: "), "{}", said(&output));
}

/// `heddle run` once waited in silence for a control plane that did not answer, and for one at an address
/// that is none.
#[test]
fn what_a_program_waits_for_is_said() {
    let mut mesh = ControlPlane::start();
    let token = mesh.token("users").display().to_string();
    mesh.kill();
    let address = mesh.address().to_string();
    let flags =
        ["run", "--explicit", "--service", "users", "--join-token", &token, "--control-plane", &address];
    let mut program = Process::start(Command::new(binary("heddle")).args(flags).args(["--", "true"]));
    let line = program.said("\"event\":\"waiting\"");
    assert!(line.contains(&format!("control plane {address}: Connection refused")), "{line}");
    mesh.restart();
    assert!(program.ended().success(), "{}", program.log());

    for wrong in ["nowhere", "::1:7200", "[::1]", "127.0.0.1:0", ":7200"] {
        let output =
            run("heddle", &["run", "--service=users", "--control-plane", wrong, "--", "true"], Stdio::null());
        assert_eq!(output.status.code(), Some(2), "{wrong}: {}", said(&output));
        let expected = format!("{wrong:?} is not HOST:PORT");
        assert!(said(&output).contains(&expected), "{wrong}: {}", said(&output));
    }
}

/// A demo that could not end its processes, as when its terminal's machine lost power, once left them all
/// behind.
#[test]
fn a_demo_that_is_killed_leaves_no_services_behind() {
    let probe = run("heddle", &["check", "--control-plane", "nowhere", "--json"], Stdio::piped());
    let found: Value = serde_json::from_slice(&probe.stdout).expect("it is JSON");
    let findings = found["findings"].as_array().expect("there are findings");
    let is_bad = |finding: &&Value| finding["state"] == "bad" && finding["subject"] != "control plane";
    if let Some(finding) = findings.iter().find(is_bad) {
        missing(&format!("{}: {}", finding["subject"], finding["detail"]));
        return;
    }
    let folder = tempfile::tempdir().expect("there is room");
    let mut command = Command::new(binary("heddle"));
    for name in ["HOME", "XDG_RUNTIME_DIR", "XDG_DATA_HOME", "TMPDIR"] {
        command.env(name, folder.path());
    }
    let mut demo = Process::start(command.args(["demo", "--port", "0"]));
    let printed = eventually("the demo is open", || {
        let printed = demo.printed();
        printed.iter().any(|line| line.starts_with("Ctrl-C ends everything")).then_some(printed)
    });
    let pid = |line: &String| line.split("pid ").nth(1)?.split_whitespace().next()?.parse::<u32>().ok();
    let pids: Vec<u32> = printed.iter().filter_map(pid).collect();
    let (control_plane, services) = pids.split_first().expect("it lists them");
    assert_eq!(services.len(), 4, "{printed:?}");
    demo.kill();
    for service in services {
        let process = format!("/proc/{service}/exe");
        eventually("the services end", || fs::read_link(&process).is_err().then_some(()));
    }
    // It would end by itself when no sidecar has been connected for a while.
    let _ = Command::new("kill").arg(control_plane.to_string()).status();
}
