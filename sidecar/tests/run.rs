//! `run` from outside: real processes, namespaces and sockets, as an ordinary
//! user and, where the tests run as root, as root as well.
//!
//! This program is several in one: the tests; `check`, which is `heddle check`; `launcher`, which is `heddle run`
//! with a stand-in for the sidecar that says where a connection wanted to go;
//! and `client`, an application that connects somewhere and prints the answer.

// Without the usual harness clippy does not see that this is a test.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

#[path = "run/client.rs"]
mod client;
#[path = "run/harness.rs"]
mod harness;
#[path = "run/stand_in.rs"]
mod stand_in;

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::process::ExitStatusExt;
use std::process::Stdio;

use harness::{User, free_port, wait_until};

fn main() {
    let mut arguments = std::env::args_os().skip(1);
    match arguments.next().as_deref().and_then(std::ffi::OsStr::to_str) {
        Some("launcher") => stand_in::launch(),
        Some("check") => stand_in::check(),
        Some("client") => client::main(&arguments.map(|a| a.into_string().unwrap()).collect::<Vec<_>>()),
        filter => harness::run(filter.filter(|f| !f.starts_with('-')), TESTS),
    }
}

const TESTS: &[harness::Test] = &[
    ("the_exit_status_is_the_applications", the_exit_status_is_the_applications),
    ("failures_of_the_launcher_have_their_own_statuses", failures_of_the_launcher_have_their_own_statuses),
    ("pipes_and_environment_pass_through", pipes_and_environment_pass_through),
    ("the_application_gains_and_leaks_nothing", the_application_gains_and_leaks_nothing),
    ("names_and_addresses_lead_to_the_sidecar", names_and_addresses_lead_to_the_sidecar),
    ("nat_is_a_substitute_for_tproxy", nat_is_a_substitute_for_tproxy),
    ("dns_answers_for_any_resolver", dns_answers_for_any_resolver),
    ("the_hosts_loopback_is_reachable", the_hosts_loopback_is_reachable),
    ("two_applications_share_a_port_and_are_published", two_applications_share_a_port_and_are_published),
    ("what_stays_behind_keeps_its_network_and_no_pipe", what_stays_behind_keeps_its_network_and_no_pipe),
    ("without_a_sidecar_calls_fail", without_a_sidecar_calls_fail),
    ("check_finds_what_works", check_finds_what_works),
    ("explicit_mode_maps_services_to_loopback", explicit_mode_maps_services_to_loopback),
];

fn the_exit_status_is_the_applications(user: &User) {
    assert_eq!(user.launch(&[], &["sh", "-c", "exit 42"]).status.code(), Some(42));
    assert_eq!(user.launch(&[], &["sh", "-c", "kill -9 $$"]).status.signal(), Some(9));
    assert_eq!(user.launch(&[], &["sh", "-c", "kill -TERM $$"]).status.signal(), Some(15));
    // A program that ignores SIGPIPE would get an error instead of the signal.
    let piped = "{ yes; echo $? >&2; } | head -n1";
    assert_eq!(user.launch(&[], &["sh", "-c", piped]).stderr_without_events(), "141\n");
}

fn failures_of_the_launcher_have_their_own_statuses(user: &User) {
    let missing = user.launch(&[], &["/nonexistent/program"]);
    assert_eq!(missing.status.code(), Some(127));
    assert!(missing.stderr_without_events().starts_with("heddle: /nonexistent/program: No such file"));
    assert_eq!(user.launch(&[], &["/etc/passwd"]).status.code(), Some(126));
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let publish = format!("{}:80", taken.local_addr().unwrap().port());
    let failed = user.launch(&["--publish", &publish], &["true"]);
    assert_eq!(failed.status.code(), Some(125));
    assert!(failed.stderr_without_events().contains(&format!("--publish {publish}")), "{failed:?}");
}

fn pipes_and_environment_pass_through(user: &User) {
    let mut child = user
        .command(&[], &["sh", "-c", "cat; echo \"$GREETING\" >&2; pwd"])
        .env("GREETING", "hello")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(b"through\n").unwrap();
    let output = harness::Outcome::from(child.wait_with_output().unwrap());
    let here = std::env::current_dir().unwrap();
    assert_eq!(output.stdout, format!("through\n{}\n", here.display()));
    assert_eq!(output.stderr_without_events(), "hello\n");
    assert!(output.stderr.contains(r#""event":"listening""#), "{}", output.stderr);
}

fn the_application_gains_and_leaks_nothing(user: &User) {
    let script =
        "id -u; grep CapEff /proc/self/status; grep SigIgn /proc/self/status; ls -1 /proc/self/fd | wc -l";
    let inside = user.launch(&[], &["sh", "-c", script]).stdout;
    let outside = user.plain(&["sh", "-c", script]).stdout;
    assert_eq!(inside, outside);
}

fn names_and_addresses_lead_to_the_sidecar(user: &User) {
    interception(user, "tproxy");
}

fn nat_is_a_substitute_for_tproxy(user: &User) {
    interception(user, "redirect");
}

fn interception(user: &User, how: &str) {
    let get = |target: &str| user.launch(&["--interception", how], &user.client(&["connect", target])).stdout;
    for name in ["users", "users.shop", "users.shop.svc", "USERS.shop.svc.cluster.local."] {
        assert_eq!(get(&format!("{name}:80")), "service shop/users:80\n", "{name}");
    }
    assert_eq!(get("203.0.113.7:4711"), "address 203.0.113.7:4711\n");
    assert_eq!(get("[2001:db8::7]:4711"), "address [2001:db8::7]:4711\n");
    assert!(get("nobody.shop.svc:80").starts_with("error: "), "an absent service has no address");
}

fn dns_answers_for_any_resolver(user: &User) {
    for how in ["tproxy", "redirect"] {
        for (transport, resolver) in [
            ("udp", "8.8.8.8"),
            ("udp", "127.0.0.53"),
            ("udp", "2001:4860:4860::8888"),
            ("tcp", "9.9.9.9"),
            ("tcp", "::1"),
        ] {
            let client = user.client(&["dns", transport, resolver, "users.shop.svc.cluster.local"]);
            let answer = user.launch(&["--interception", how], &client).stdout;
            assert!(answer.starts_with("code 0 240.240."), "{how} {transport} {resolver}: {answer}");
        }
    }
    let absent = user.client(&["dns", "udp", "8.8.8.8", "nobody.shop.svc"]);
    assert_eq!(user.launch(&[], &absent).stdout, "code 3\n");
}

fn the_hosts_loopback_is_reachable(user: &User) {
    let host = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = host.local_addr().unwrap().port();
    let answering = std::thread::spawn(move || {
        let (mut stream, _) = host.accept().unwrap();
        stream.write_all(b"from the host\n").unwrap();
        host
    });
    let target = format!("127.0.0.1:{port}");
    assert_eq!(user.launch(&[], &user.client(&["connect", &target])).stdout, "from the host\n");
    let host = answering.join().unwrap();
    // Who listens inside comes first.
    let number = port.to_string();
    let both = user.client(&["serve-and-connect", &number]);
    assert_eq!(user.launch(&[], &both).stdout, "from inside\n");
    drop(host);
    let closed = user.launch(&[], &user.client(&["connect", &target])).stdout;
    assert!(closed.starts_with("error: Connection refused"), "{closed}");
}

fn two_applications_share_a_port_and_are_published(user: &User) {
    let mut children = Vec::new();
    for answer in ["one", "two"] {
        let (host, other) = (free_port(), free_port());
        let publish = format!("{host}:80,{other}:80");
        let client = user.client(&["serve", "80", answer]);
        let child = user.command(&["--publish", &publish], &client).stderr(Stdio::null()).spawn().unwrap();
        children.push((child, [host, other], answer));
    }
    for (child, ports, answer) in &mut children {
        for port in ports {
            wait_until("the published port answers", || {
                let mut text = String::new();
                let stream = TcpStream::connect(("127.0.0.1", *port));
                let _ = stream.and_then(|mut stream| stream.read_to_string(&mut text));
                text == format!("{answer}\n")
            });
        }
        child.kill().unwrap();
        child.wait().unwrap();
    }
}

fn what_stays_behind_keeps_its_network_and_no_pipe(user: &User) {
    let file = user.directory().join("late");
    let before = user.logs();
    let client = user.client(&["connect", "users:80"]).join(" ");
    let script =
        format!("(sleep 1; {client} > {} ) </dev/null >/dev/null 2>&1 & echo started", file.display());
    assert_eq!(user.launch(&[], &["sh", "-c", &script]).stdout, "started\n");
    wait_until("the process left behind reaches the mesh", || {
        std::fs::read_to_string(&file).is_ok_and(|text| text == "service shop/users:80\n")
    });
    wait_until("the sidecar ends and takes its log away", || {
        user.logs().iter().all(|log| before.contains(log))
    });
}

fn without_a_sidecar_calls_fail(user: &User) {
    let client = user.client(&["connect-after-kill", "users:80"]);
    let outcome = user.launch(&[], &client);
    assert!(outcome.stdout.starts_with("error: "), "{outcome:?}");
}

fn explicit_mode_maps_services_to_loopback(user: &User) {
    let script = format!("{} $HEDDLE_SERVICE_USERS_ADDR", user.client(&["connect"]).join(" "));
    let outcome = user.launch(&["--explicit", "--upstream", "users:8000"], &["sh", "-c", &script]);
    assert_eq!(outcome.stdout, "service shop/users:8000\n", "{outcome:?}");
    assert!(outcome.stderr.contains(r#""variable":"HEDDLE_SERVICE_USERS_ADDR""#));
    assert!(outcome.stderr.contains(r#""variable":"HEDDLE_OUTBOUND""#));
}

fn check_finds_what_works(user: &User) {
    let outcome = user.plain(&[user.program(), "check", "--control-plane", "127.0.0.1:1"]);
    let good: Vec<&str> = outcome.stdout.lines().filter(|line| line.starts_with("ok ")).collect();
    assert_eq!(good.len(), 4, "{}", outcome.stdout);
    assert!(outcome.stdout.contains("FAIL  control plane"), "{}", outcome.stdout);
}
