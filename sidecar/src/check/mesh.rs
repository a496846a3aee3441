//! Whether a control plane can be joined, and what it reports about its sources
//! and about the policies and routes in them.

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use heddle_api::runtime_file::RuntimeFile;
use serde_json::Value;

use super::Finding;
use crate::runtime_dir;
use crate::settings::DEFAULT_CONTROL_PLANE;

/// How long a control plane may take to answer.
const PATIENCE: Duration = Duration::from_secs(2);

/// Errors that are shown; a broken folder may have thousands.
const SHOWN: usize = 20;

/// The most that an admin listener's answer may be.
const LARGEST_ANSWER: u64 = 16 * 1024 * 1024;

pub(super) fn control_plane(address: &str) -> Vec<Finding> {
    const SUBJECT: &str = "control plane";
    let resolved = address.to_socket_addrs().ok().and_then(|mut all| all.next());
    let Some(socket) = resolved else {
        return vec![Finding::bad(
            SUBJECT,
            format!("{address} is no address"),
            "give --control-plane HOST:PORT",
        )];
    };
    if let Err(error) = TcpStream::connect_timeout(&socket, PATIENCE) {
        return vec![if address == DEFAULT_CONTROL_PLANE {
            Finding::good(SUBJECT, format!("none at {address} ({error}); `heddle run` starts one"))
        } else {
            Finding::bad(
                SUBJECT,
                format!("{address}: {error}"),
                "start it, or name another with --control-plane",
            )
        }];
    }
    let mut findings = vec![Finding::good(SUBJECT, format!("answers at {address}"))];
    if !socket.ip().is_loopback() {
        return findings;
    }
    let path = runtime_dir::path().join(RuntimeFile::name(socket.port()));
    let file = fs::read(&path).ok().and_then(|text| serde_json::from_slice::<RuntimeFile>(&text).ok());
    match file {
        Some(file) => {
            findings.extend(data_directory(Path::new(&file.data_dir)));
            findings.extend(sources(&file.admin));
            findings.extend(judged(&file.admin));
        }
        None => findings.push(Finding::degraded(
            "join token",
            format!(
                "{} is missing: the control plane belongs to another user or runs elsewhere",
                path.display()
            ),
            "get a token where it runs, by `heddle-control-plane token`, and give --join-token FILE",
        )),
    }
    findings
}

/// The directory of keys and the keys themselves must be their owner's alone.
fn data_directory(directory: &Path) -> Vec<Finding> {
    const SUBJECT: &str = "data directory";
    let mut findings = Vec::new();
    // Others may see the directory, but not put anything into it.
    let paths = [
        (directory.to_owned(), 0o022),
        (directory.join("token.key"), 0o077),
        (directory.join("ca.pem"), 0o077),
    ];
    for (path, forbidden) in paths {
        match fs::metadata(&path) {
            Ok(metadata) if metadata.mode() & forbidden != 0 => findings.push(Finding::bad(
                SUBJECT,
                format!("{} is open to others (mode {:o})", path.display(), metadata.mode() & 0o777),
                format!("chmod go= {}", path.display()),
            )),
            Ok(_) => {}
            Err(error) => findings.push(Finding::bad(
                SUBJECT,
                format!("{}: {error}", path.display()),
                "run as the control plane's user, or give --join-token FILE",
            )),
        }
    }
    if findings.is_empty() {
        findings.push(Finding::good(SUBJECT, format!("{} is its owner's alone", directory.display())));
    }
    findings
}

/// Errors in the manifests that the control plane reads.
fn sources(admin: &str) -> Vec<Finding> {
    const SUBJECT: &str = "sources";
    let answer = match get(admin, "/errors") {
        Ok(answer) => answer,
        Err(reason) => {
            return vec![Finding::degraded(SUBJECT, reason, "see the control plane's log")];
        }
    };
    let errors = answer["errors"].as_array().map(Vec::as_slice).unwrap_or_default();
    if errors.is_empty() {
        return vec![Finding::good(SUBJECT, "no errors")];
    }
    let found = errors.iter().take(SHOWN).map(|error| {
        let text = |key: &str| error[key].as_str().unwrap_or_default().to_owned();
        let place = format!("{}:{}", text("file"), error["line"]);
        let field = Some(text("field")).filter(|field| !field.is_empty());
        let what = field.map_or_else(|| text("message"), |field| format!("{field}: {}", text("message")));
        let remedy = "correct the file; until then its last good content is in force";
        Finding::degraded(SUBJECT, format!("{place}: {what}"), remedy)
    });
    let mut findings: Vec<Finding> = found.collect();
    if errors.len() > SHOWN {
        let rest = format!("{} more errors", errors.len() - SHOWN);
        findings.push(Finding::degraded(SUBJECT, rest, format!("http://{admin}/errors has them all")));
    }
    findings
}

/// Policies and routes that are refused, and routes that have no effect at a parent.
fn judged(admin: &str) -> Vec<Finding> {
    const SUBJECT: &str = "policies and routes";
    let answer = match get(admin, "/statuses") {
        Ok(answer) => answer,
        Err(reason) => {
            return vec![Finding::degraded(SUBJECT, reason, "see the control plane's log")];
        }
    };
    let objects = ["policies", "routes"].into_iter().flat_map(|list| items(&answer[list]));
    let mut found: Vec<(String, &str)> =
        objects.flat_map(|object| [refusals(object), unbound(object)].concat()).collect();
    if found.is_empty() {
        return vec![Finding::good(SUBJECT, "none is refused")];
    }
    let more = found.len().saturating_sub(SHOWN);
    found.truncate(SHOWN);
    let mut findings: Vec<Finding> =
        found.into_iter().map(|(what, remedy)| Finding::degraded(SUBJECT, what, remedy)).collect();
    if more > 0 {
        let rest = format!("{more} more");
        findings.push(Finding::degraded(SUBJECT, rest, format!("http://{admin}/statuses has them all")));
    }
    findings
}

fn items(list: &Value) -> &[Value] {
    list.as_array().map(Vec::as_slice).unwrap_or_default()
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or_default()
}

fn named(object: &Value) -> String {
    format!("{} {}/{}", text(object, "kind"), text(object, "namespace"), text(object, "name"))
}

/// What is wrong with a policy or route, each with what to do about it.
fn refusals(object: &Value) -> Vec<(String, &'static str)> {
    let remedy = match text(object, "inForce") {
        "lastGood" => "correct it; until then its last good version is in force",
        _ => "correct it; until then it has no effect",
    };
    let refusals = items(&object["refusals"]).iter().map(|refusal| {
        let place = refusal["file"].as_str().map(|file| format!("{file}:{}: ", refusal["line"]));
        let place = place.unwrap_or_default();
        let (field, message) = (text(refusal, "field"), text(refusal, "message"));
        (format!("{place}{}: {field}: {message}", named(object)), remedy)
    });
    refusals.collect()
}

/// The parents at which a route has no effect, or not all that it asks for.
fn unbound(route: &Value) -> Vec<(String, &'static str)> {
    let parents = items(&route["parents"]).iter().flat_map(|parent| {
        let at = format!(
            "{} at {} {}",
            named(route),
            text(&parent["parentRef"], "kind"),
            text(&parent["parentRef"], "name")
        );
        let failed =
            items(&parent["conditions"]).iter().filter(|condition| text(condition, "status") == "False");
        failed.map(move |condition| {
            let (reason, message) = (text(condition, "reason"), text(condition, "message"));
            (format!("{at}: {reason}: {message}"), "correct the route, or start the service that it names")
        })
    });
    parents.collect()
}

/// The JSON at `path` of a local admin listener. One request without a
/// runtime, whose threads would make the other probes impossible.
fn get(admin: &str, path: &str) -> Result<Value, String> {
    let describe = |error: &dyn std::fmt::Display| format!("http://{admin}{path}: {error}");
    let address: SocketAddr = admin.parse().map_err(|error| describe(&error))?;
    let exchange = || {
        let mut stream = TcpStream::connect_timeout(&address, PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        // HTTP/1.0: the answer ends with the connection and is not chunked.
        write!(stream, "GET {path} HTTP/1.0\r\nhost: {admin}\r\n\r\n")?;
        let mut answer = String::new();
        stream.take(LARGEST_ANSWER).read_to_string(&mut answer)?;
        std::io::Result::Ok(answer)
    };
    let answer = exchange().map_err(|error| describe(&error))?;
    let body = answer.split_once("\r\n\r\n").map(|(_, body)| body).unwrap_or_default();
    serde_json::from_str(body).map_err(|error| describe(&error))
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::thread;

    use super::*;
    use crate::check::State;

    /// A server that gives its first request this answer, and the request.
    fn answering(body: impl Into<String>) -> (String, thread::JoinHandle<String>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let admin = listener.local_addr().unwrap().to_string();
        let body = body.into();
        let server = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            // All of it: what is left unread at the end would reset the connection.
            let mut request = Vec::new();
            while !request.ends_with(b"\r\n\r\n") {
                let mut byte = [0];
                stream.read_exact(&mut byte).unwrap();
                request.extend(byte);
            }
            write!(stream, "HTTP/1.0 200 OK\r\n\r\n{body}").unwrap();
            String::from_utf8(request).unwrap()
        });
        (admin, server)
    }

    #[test]
    fn errors_of_sources_are_told_with_their_place() {
        let (admin, server) = answering(
            r#"{"errors":[{"file":"a.yaml","line":3,"column":1,"field":"spec.x","message":"is wrong"}]}"#,
        );
        let findings = sources(&admin);
        assert!(server.join().unwrap().starts_with("GET /errors HTTP/1.0\r\n"));
        assert_eq!(findings.len(), 1);
        assert_eq!(
            (findings[0].state, findings[0].detail.as_str()),
            (State::Degraded, "a.yaml:3: spec.x: is wrong")
        );
    }

    #[test]
    fn refused_policies_and_routes_are_told_with_their_place() {
        let status = serde_json::json!({
            "policies": [{"kind": "TrafficPolicy", "namespace": "shop", "name": "fine", "inForce": "current", "refusals": []}],
            "routes": [{
                "kind": "HTTPRoute", "namespace": "shop", "name": "users", "inForce": "lastGood",
                "refusals": [{"file": "a.yaml", "line": 7, "field": "spec.rules[0]", "message": "is wrong"}],
                "parents": [{
                    "parentRef": {"kind": "Service", "name": "users"},
                    "conditions": [
                        {"type": "Accepted", "status": "False", "reason": "Conflicted", "message": "it is taken"},
                        {"type": "ResolvedRefs", "status": "True", "reason": "ResolvedRefs", "message": ""},
                    ],
                }],
            }],
        });
        let (admin, server) = answering(status.to_string());
        let findings = judged(&admin);
        server.join().unwrap();
        let told: Vec<&str> = findings.iter().map(|finding| finding.detail.as_str()).collect();
        assert_eq!(
            told,
            [
                "a.yaml:7: HTTPRoute shop/users: spec.rules[0]: is wrong",
                "HTTPRoute shop/users at Service users: Conflicted: it is taken"
            ]
        );
        assert!(findings.iter().all(|finding| finding.state == State::Degraded));
    }

    #[test]
    fn keys_that_others_may_read_are_bad() {
        use std::os::unix::fs::PermissionsExt;
        let directory = tempfile::tempdir().unwrap();
        for name in ["token.key", "ca.pem"] {
            fs::write(directory.path().join(name), "").unwrap();
            fs::set_permissions(directory.path().join(name), fs::Permissions::from_mode(0o600)).unwrap();
        }
        assert_eq!(data_directory(directory.path())[0].state, State::Good);
        fs::set_permissions(directory.path().join("ca.pem"), fs::Permissions::from_mode(0o640)).unwrap();
        let findings = data_directory(directory.path());
        assert_eq!((findings.len(), findings[0].state), (1, State::Bad));
        assert!(findings[0].remedy.as_ref().unwrap().starts_with("chmod go= "));
    }

    #[test]
    fn no_control_plane_is_bad_only_where_one_was_named() {
        let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
        assert_eq!(control_plane(&closed)[0].state, State::Bad);
        assert_eq!(control_plane("nothing")[0].state, State::Bad);
    }
}
