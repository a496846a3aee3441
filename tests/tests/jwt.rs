//! JwtPolicies through real sidecars: each field by a test that fails without
//! it, for both versions of HTTP and for gRPC. Tokens are made by another library.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::{Arc, Mutex};

use heddle_tests::backend::runtime;
use heddle_tests::tokens::{Algorithm, Signer, key_set, now};
use heddle_tests::{App, ControlPlane, Process, eventually, exchange, get, response};
use serde_json::json;

const SERVICE: &str = "targetRefs: [{group: '', kind: Service, name: users}]";
const SECRET: &str = "a secret of an issuer, of more than thirty-two bytes";

/// A service of one replica that notes the requests that reach it, and a client.
struct Shop {
    control_plane: ControlPlane,
    client: Process,
    server: Process,
    reached: Arc<Mutex<Vec<String>>>,
    _app: App,
}

impl Shop {
    fn start() -> Self {
        Self::start_with(&["--label", "app=users", "--port", "http:80:http"])
    }

    fn start_with(ports: &[&str]) -> Self {
        let control_plane = ControlPlane::start();
        let reached = Arc::<Mutex<Vec<String>>>::default();
        let seen = reached.clone();
        let app = App::answering(move |head| {
            seen.lock().expect("nobody panics with it").push(head.to_owned());
            response("here")
        });
        let address = format!("127.0.0.1:{}", app.port());
        let server = control_plane.sidecar("users", [ports, &["--app", &address]].concat());
        server.said("the sidecar is ready");
        let client = control_plane.sidecar("client", [] as [&str; 0]);
        control_plane.workloads("users", 1);
        client.said("the sidecar is ready");
        eventually("the service answers", || {
            get(client.listening("outbound"), "users", "/").filter(|(status, _)| *status == 200)
        });
        Self { control_plane, client, server, reached, _app: app }
    }

    fn at(&self) -> SocketAddr {
        self.client.listening("outbound")
    }

    /// What a GET gives, with these further fields.
    fn ask(&self, target: &str, fields: &str) -> String {
        let request = format!("GET {target} HTTP/1.1\r\nhost: users\r\nconnection: close\r\n{fields}\r\n");
        exchange(self.at(), &request).expect("there is an answer")
    }

    fn show(&self, token: &str) -> String {
        self.ask("/", &bearer(token))
    }

    /// Puts a policy with these providers into force, and waits until a request without a token meets it.
    fn protect(&self, rest: &str, providers: &str) {
        self.control_plane.apply("tokens.yaml", &policy("tokens", rest, providers));
        eventually("a request without a token is refused", || {
            self.ask("/", "").starts_with("HTTP/1.1 401").then_some(())
        });
    }

    /// The head of the last request that reached the application.
    fn last(&self) -> String {
        self.reached.lock().expect("nobody panics with it").last().cloned().unwrap_or_default()
    }

    fn count(&self) -> usize {
        self.reached.lock().expect("nobody panics with it").len()
    }

    /// The server's metrics.
    fn metrics(&self) -> String {
        get(self.server.listening("admin"), "localhost", "/metrics").expect("it answers").1
    }
}

fn bearer(token: &str) -> String {
    format!("authorization: Bearer {token}\r\n")
}

fn policy(name: &str, rest: &str, providers: &str) -> String {
    format!(
        "apiVersion: heddle.dev/v1alpha1\nkind: JwtPolicy\nmetadata: {{name: {name}, namespace: default}}\nspec:\n  {rest}\n  providers: [{providers}]\n---\n"
    )
}

/// A provider with these keys and further fields.
fn provider(signers: &[&Signer], rest: &str) -> String {
    let keys = key_set(signers);
    format!("{{name: accounts, issuer: 'https://accounts.example', jwks: {{inline: '{keys}'}}{rest}}}")
}

fn is_admitted(answer: &str) -> bool {
    match answer.split(' ').nth(1) {
        Some("200") => true,
        Some("401") => false,
        _ => panic!("{answer}"),
    }
}

/// The value of a field.
fn field<'a>(answer: &'a str, name: &str) -> Option<&'a str> {
    answer.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
}

#[test]
fn tokens_of_each_kind_are_accepted_and_nothing_else_is() {
    let shop = Shop::start();
    let (rsa, ec, ed) = (
        Signer::new("rsa", Algorithm::RS256),
        Signer::new("ec", Algorithm::ES256),
        Signer::new("ed", Algorithm::EdDSA),
    );
    let shared = Signer::shared(Algorithm::HS256, SECRET.as_bytes());
    let secret = format!(
        "apiVersion: v1\nkind: Secret\nmetadata: {{name: s, namespace: default}}\nstringData: {{key: '{SECRET}'}}\n"
    );
    shop.control_plane.apply("secret.yaml", &secret);
    let public = provider(&[&rsa, &ec, &ed], ", audiences: [users], clockSkew: 1s");
    let own = "{name: own, issuer: own, hmacSecretRef: {name: s, key: key}}";
    shop.protect(SERVICE, &format!("{public}, {own}"));
    for signer in [&rsa, &ec, &ed] {
        assert!(is_admitted(&shop.show(&signer.token(json!({})))));
    }
    assert!(is_admitted(&shop.show(&shared.token(json!({"iss": "own", "aud": null})))));
    let unsigned = rsa.token(json!({}));
    let payload = unsigned.split('.').nth(1).expect("it has three parts");
    // {"alg":"none"}
    let none = format!("eyJhbGciOiJub25lIn0.{payload}.");
    let modulus = rsa.jwk()["n"].as_str().expect("it has one").to_owned();
    let confused = Signer::shared(Algorithm::HS256, modulus.as_bytes()).token(json!({}));
    let stranger = Signer::new("ec", Algorithm::ES256);
    let unknown = Signer::new("other", Algorithm::ES256);
    let before = shop.count();
    for (token, cause) in [
        (none, "key"),
        (confused, "key"),
        (unknown.token(json!({})), "key"),
        (stranger.token(json!({})), "signature"),
        (ec.token(json!({"iss": "https://other.example"})), "issuer"),
        (ec.token(json!({"aud": "others"})), "audience"),
        (ec.token(json!({"aud": null})), "audience"),
        (ec.token(json!({"exp": now() - 10})), "expired"),
        (ec.token(json!({"exp": null})), "expired"),
        (ec.token(json!({"nbf": now() + 100})), "early"),
        (ec.token(json!({"iat": now() + 100})), "early"),
        (ec.token(json!({"exp": "soon"})), "malformed"),
        (format!("{}.x", ec.token(json!({}))), "malformed"),
        (ec.token(json!({"pad": "x".repeat(16 * 1024)})), "malformed"),
        ("hush".into(), "malformed"),
        // The issuer of the shared key cannot be the other one.
        (shared.token(json!({})), "key"),
    ] {
        let refused = |metrics: &str| {
            let labels = format!(
                "heddle_jwt_refused_total{{service=\"users\",namespace=\"default\",policy=\"default/tokens\",cause=\"{cause}\"}}"
            );
            let line = metrics.lines().find_map(|line| line.strip_prefix(&labels)).map(str::trim);
            line.map_or(0, |count| count.parse::<u32>().expect("it is a number"))
        };
        let known = refused(&shop.metrics());
        let answer = shop.show(&token);
        assert!(answer.starts_with("HTTP/1.1 401 Unauthorized\r\n"), "{cause}: {answer}");
        assert_eq!(field(&answer, "heddle-error"), Some("unauthenticated"));
        let challenge = field(&answer, "www-authenticate").expect("it says how");
        assert!(challenge.starts_with("Bearer error=\"invalid_token\", error_description=\""), "{challenge}");
        assert_eq!(refused(&shop.metrics()), known + 1, "{cause}");
    }
    let twice = [bearer(&ec.token(json!({}))), bearer(&ec.token(json!({})))].concat();
    assert!(!is_admitted(&shop.ask("/", &twice)), "two are one too many");
    let answer = shop.ask("/", "accept: application/json\r\n");
    assert_eq!(field(&answer, "www-authenticate"), Some("Bearer"), "nothing is told who shows nothing");
    assert!(answer.contains("\"policy\":\"default/tokens\""), "{answer}");
    assert_eq!(shop.count(), before, "nothing reached the application");
}

#[test]
fn http2_and_grpc_need_the_same_tokens() {
    let shop = Shop::start();
    let ec = Signer::new("ec", Algorithm::ES256);
    shop.protect(SERVICE, &provider(&[&ec], ", claimsToHeaders: [{claim: sub, header: x-user}]"));
    let token = format!("Bearer {}", ec.token(json!({"sub": "ann"})));
    runtime().block_on(async {
        let tcp = tokio::net::TcpStream::connect(shop.at()).await.expect("it listens");
        let (mut connection, driver) = h2::client::handshake(tcp).await.expect("it speaks HTTP/2");
        tokio::spawn(driver);
        for (grpc, token, status, grpc_status) in [
            (false, None, 401, None),
            (false, Some("Bearer x"), 401, None),
            (true, None, 200, Some("16")),
            (true, Some("Bearer x"), 200, Some("16")),
        ] {
            let mut request = http::Request::get("http://users/a.A/Call");
            if grpc {
                request = request.header("content-type", "application/grpc").header("te", "trailers");
            }
            if let Some(token) = token {
                request = request.header("authorization", token);
            }
            let request = request.body(()).expect("it is a request");
            let (answer, _) = connection.send_request(request, true).expect("it is open");
            let answer = answer.await.expect("there is an answer");
            assert_eq!(answer.status().as_u16(), status);
            assert_eq!(answer.headers()["heddle-error"], "unauthenticated");
            assert!(answer.headers().contains_key("www-authenticate"), "{answer:?}");
            let found = answer.headers().get("grpc-status").map(|value| value.to_str().expect("it is text"));
            assert_eq!(found, grpc_status);
        }
        // The application speaks HTTP/1 alone: one that is admitted gets as far as to it.
        let request = http::Request::get("http://users/").header("authorization", &token);
        let request = request.body(()).expect("it is a request");
        let (answer, _) = connection.send_request(request, true).expect("it is open");
        let answer = answer.await.expect("there is an answer");
        assert_ne!(
            answer.headers().get("heddle-error").map(|v| v.as_bytes()),
            Some(b"unauthenticated".as_slice())
        );
    });
}

#[test]
fn claims_are_told_by_us_alone_and_tokens_only_where_they_are_wanted() {
    let shop = Shop::start();
    let ec = Signer::new("ec", Algorithm::ES256);
    let headers = "claimsToHeaders: [{claim: sub, header: X-User}, {claim: realm.roles, header: x-roles}]";
    let from = "from: [{header: {name: x-token}}, {query: t}, {cookie: t}], forward: false";
    shop.protect(SERVICE, &provider(&[&ec], &format!(", {headers}")));
    shop.control_plane.apply(
        "tokens.yaml",
        &policy(
            "tokens",
            &format!("required: false\n  {SERVICE}"),
            &[
                provider(&[&ec], &format!(", {headers}")),
                provider(&[&ec], &format!(", {from}")).replace("accounts,", "hidden,"),
            ]
            .join(", "),
        ),
    );
    eventually("a token is not needed any more", || is_admitted(&shop.ask("/", "")).then_some(()));
    let forged = "X-User: root\r\nx-roles: admin\r\nx-other: kept\r\n";
    assert!(is_admitted(&shop.ask("/", forged)));
    let seen = shop.last().to_ascii_lowercase();
    assert!(!seen.contains("root") && !seen.contains("x-roles") && seen.contains("x-other: kept"), "{seen}");
    let token = ec.token(json!({"sub": "ann", "realm": {"roles": ["dev", "ops"]}}));
    assert!(is_admitted(&shop.ask("/", &format!("{forged}{}", bearer(&token)))));
    let seen = shop.last();
    assert!(seen.contains("x-user: ann") && seen.contains("x-roles: dev,ops"), "{seen}");
    assert!(!seen.contains("root") && seen.contains(&token), "{seen}");
    for (target, fields) in [
        ("/a?x=1".to_owned(), format!("x-token: {token}\r\ncookie: a=1\r\n")),
        (format!("/a?t={token}&x=1"), "cookie: a=1\r\n".into()),
        ("/a?x=1".to_owned(), format!("cookie: a=1; t={token}\r\n")),
    ] {
        assert!(is_admitted(&shop.ask(&target, &fields)), "{target} {fields}");
        let seen = shop.last();
        assert!(!seen.contains(&token) && seen.contains("GET /a?x=1 "), "{seen}");
        assert!(seen.contains("cookie: a=1\n"), "{seen}");
    }
    assert!(!is_admitted(&shop.show("hush")), "one that is shown has to be good, needed or not");
    assert!(!is_admitted(&shop.ask("/?t=hush", "")));
    assert!(is_admitted(&shop.ask("/", "authorization: Basic aHVzaA==\r\n")), "another scheme is no token");
}

#[test]
fn a_token_that_was_verified_is_remembered_until_the_policy_changes() {
    let shop = Shop::start();
    let ec = Signer::new("ec", Algorithm::ES256);
    shop.protect(SERVICE, &provider(&[&ec], ""));
    let token = ec.token(json!({}));
    let verified = || {
        let metrics = shop.metrics();
        let line = metrics.lines().find(|line| line.starts_with("heddle_jwt_verified_total{"));
        line.and_then(|line| line.rsplit(' ').next()?.parse::<u32>().ok()).unwrap_or_default()
    };
    for _ in 0..5 {
        assert!(is_admitted(&shop.show(&token)));
    }
    assert_eq!(verified(), 1);
    shop.control_plane
        .apply("tokens.yaml", &policy("tokens", SERVICE, &provider(&[&ec], ", audiences: [none]")));
    eventually("the new policy is in force", || (!is_admitted(&shop.show(&token))).then_some(()));
}

#[test]
fn keys_are_fetched_and_follow_their_rotation() {
    let shop = Shop::start();
    let (old, new) = (Signer::new("old", Algorithm::ES256), Signer::new("new", Algorithm::EdDSA));
    let published = Arc::new(Mutex::new(response(&key_set(&[&old]))));
    let serving = published.clone();
    let issuer = App::answering(move |head| {
        assert!(head.starts_with("GET /keys?v=1 HTTP/1.1"), "{head}");
        serving.lock().expect("nobody panics with it").clone()
    });
    let publish = |answer: String| *published.lock().expect("nobody panics with it") = answer;
    let url = format!("http://127.0.0.1:{}/keys?v=1", issuer.port());
    let jwks = format!(
        "{{name: accounts, issuer: 'https://accounts.example', jwks: {{url: '{url}', cacheDuration: 1s, timeout: 5s}}}}"
    );
    shop.protect(SERVICE, &jwks);
    let (of_old, of_new) = (old.token(json!({})), new.token(json!({})));
    eventually("the first key counts", || is_admitted(&shop.show(&of_old)).then_some(()));
    assert!(!is_admitted(&shop.show(&of_new)));
    publish(response(&key_set(&[&old, &new])));
    eventually("the second key counts, too", || is_admitted(&shop.show(&of_new)).then_some(()));
    assert!(is_admitted(&shop.show(&of_old)));
    for broken in ["HTTP/1.1 503 Not Now\r\ncontent-length: 0\r\n\r\n".into(), response("{\"keys\": []}")] {
        publish(broken);
        let failed = || {
            let (_, metrics) = get(shop.control_plane.admin(), "localhost", "/metrics").expect("it answers");
            let line = "heddle_key_set_reads_total{result=\"failed\"} ";
            let line = metrics.lines().find_map(|found| found.strip_prefix(line)).expect("it is counted");
            line.parse::<u32>().expect("it is a number")
        };
        let before = failed();
        eventually("it was tried", || (failed() > before).then_some(()));
        assert!(is_admitted(&shop.show(&of_old)), "the last set that was good stays in force");
    }
    publish(response(&key_set(&[&new])));
    eventually("the first key is over", || (!is_admitted(&shop.show(&of_old))).then_some(()));
    assert!(is_admitted(&shop.show(&of_new)));
}

#[test]
fn keys_come_from_files_and_secrets_and_outlive_the_control_plane() {
    let mut shop = Shop::start();
    let (ec, ed) = (Signer::new("ec", Algorithm::ES256), Signer::new("ed", Algorithm::EdDSA));
    let file = shop.control_plane.manifests().join("keys.json");
    std::fs::write(&file, key_set(&[&ec])).expect("there is room");
    let secret = format!(
        "apiVersion: v1\nkind: Secret\nmetadata: {{name: s, namespace: default}}\nstringData: {{keys: '{}'}}\n",
        key_set(&[&ed])
    );
    shop.control_plane.apply("secret.yaml", &secret);
    let providers = "{name: a, issuer: 'https://accounts.example', jwks: {file: keys.json, cacheDuration: 1s}}, {name: b, issuer: b, jwks: {secretRef: {name: s, key: keys}}}";
    shop.protect(SERVICE, providers);
    let (of_file, of_secret) = (ec.token(json!({})), ed.token(json!({"iss": "b"})));
    eventually("the file's key counts", || is_admitted(&shop.show(&of_file)).then_some(()));
    assert!(is_admitted(&shop.show(&of_secret)));
    std::fs::remove_file(&file).expect("it is there");
    shop.control_plane.restart();
    shop.control_plane.workloads("users", 1);
    shop.control_plane.apply(
        "tokens.yaml",
        &policy(
            "tokens",
            SERVICE,
            &format!("{providers}, {{name: c, issuer: c, jwks: {{secretRef: {{name: s, key: keys}}}}}}"),
        ),
    );
    let third = ed.token(json!({"iss": "c"}));
    // Who was registered at a port that the system chose has to come back first.
    eventually("the control plane is back", || shop.show(&third).contains(" 200 ").then_some(()));
    assert!(is_admitted(&shop.show(&of_file)), "a control plane that cannot read it takes nothing away");
}

#[test]
fn workloads_are_selected_by_label_and_bytes_prove_nothing() {
    let shop =
        Shop::start_with(&["--label", "app=users", "--port", "http:80:http", "--port", "raw:8181:tcp"]);
    let other = shop.control_plane.sidecar("other", ["--upstream", "users:8181"]);
    other.said("the sidecar is ready");
    let at = eventually("the upstream's address is told", || {
        let log = other.log();
        let lines = log.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
        let mut addresses = lines.filter_map(|line| line["addr"].as_str()?.parse::<SocketAddr>().ok());
        addresses.find(|address| address.port() == 8181)
    });
    // Whether anything comes back; nothing does for a connection that is refused.
    let speak = || {
        let mut stream = TcpStream::connect(at).expect("it listens");
        let _ = stream.write_all(b"GET / HTTP/1.1\r\nhost: any\r\n\r\n");
        stream.read(&mut [0; 16]).is_ok_and(|length| length > 0)
    };
    assert!(speak());
    let ec = Signer::new("ec", Algorithm::ES256);
    shop.control_plane.apply(
        "other.yaml",
        &policy("other", "selector: {matchLabels: {app: other}}", &provider(&[&ec], "")),
    );
    let selected = "selector: {matchLabels: {app: users}}";
    shop.protect(selected, &provider(&[&ec], ""));
    assert!(is_admitted(&shop.show(&ec.token(json!({})))), "only the policy that selects it counts");
    assert!(!speak(), "an opaque connection shows no token");
    let metrics = shop.metrics();
    let refused =
        metrics.lines().find(|line| line.contains("error=\"unauthenticated\"") && line.contains("tcp"));
    assert!(refused.is_some(), "{metrics}");
    shop.control_plane.apply(
        "tokens.yaml",
        &policy("tokens", &format!("required: false\n  {selected}"), &provider(&[&ec], "")),
    );
    eventually("a token is not needed any more", || is_admitted(&shop.ask("/", "")).then_some(()));
    eventually("bytes pass where none is needed", || speak().then_some(()));
}

#[test]
fn what_was_never_good_lets_nothing_pass() {
    let shop = Shop::start();
    let ec = Signer::new("ec", Algorithm::ES256);
    let both = "targetRefs: [{group: '', kind: Service, name: users}, {group: gateway.networking.k8s.io, kind: Gateway, name: edge}]";
    shop.protect(both, &provider(&[&ec], ""));
    let answer = shop.show(&ec.token(json!({})));
    assert!(!is_admitted(&answer) && answer.contains("default/tokens"), "{answer}");
    let shown = shop.control_plane.shows("/statuses").to_string();
    assert!(shown.contains("spec.targetRefs[1].kind"), "{shown}");
    shop.control_plane.apply("tokens.yaml", &policy("tokens", SERVICE, &provider(&[&ec], "")));
    eventually("the good version is in force", || {
        is_admitted(&shop.show(&ec.token(json!({})))).then_some(())
    });
    shop.control_plane
        .apply("tokens.yaml", &policy("tokens", both, &provider(&[&ec], ", audiences: [none]")));
    eventually("the bad version is refused", || {
        shop.control_plane.shows("/statuses").to_string().contains("spec.targetRefs[1].kind").then_some(())
    });
    assert!(is_admitted(&shop.show(&ec.token(json!({})))), "the last good version stays in force");
}

#[test]
fn a_limit_counts_by_a_claim_that_was_verified() {
    let shop = Shop::start();
    let ec = Signer::new("ec", Algorithm::ES256);
    shop.protect(SERVICE, &provider(&[&ec], ""));
    shop.control_plane.apply(
        "limits.yaml",
        &format!("apiVersion: heddle.dev/v1alpha1\nkind: RateLimitPolicy\nmetadata: {{name: limits, namespace: default}}\nspec:\n  {SERVICE}\n  limits: [{{requests: 2, per: 1h, key: [{{claim: tenant.id}}], match: [{{pathPrefix: /v1}}]}}]\n"),
    );
    let admitted = |tenant: &str| {
        let token = bearer(&ec.token(json!({"tenant": {"id": tenant}})));
        let answers = (0..4).map(|_| shop.ask("/v1", &token));
        answers.filter(|answer| answer.starts_with("HTTP/1.1 200")).count()
    };
    eventually("the limit is in force", || {
        let token = bearer(&ec.token(json!({"tenant": {"id": "first"}})));
        field(&shop.ask("/v1", &token), "ratelimit").map(|_| ())
    });
    assert_eq!((admitted("a"), admitted("b"), admitted("a")), (2, 2, 0));
}

#[test]
fn a_canary_by_claim_keeps_its_users_and_believes_no_one_else() {
    let shop = Shop::start();
    let ec = Signer::new("ec", Algorithm::ES256);
    let app = App::start("green");
    let address = format!("127.0.0.1:{}", app.port());
    let green = shop.control_plane.sidecar("green", ["--port", "http:80:http", "--app", &address]);
    green.said("the sidecar is ready");
    shop.control_plane.workloads("green", 1);
    shop.control_plane.apply(
        "canary.yaml",
        &[
            "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {name: users, namespace: default}\nspec:\n  parentRefs: [{group: '', kind: Service, name: users, port: 80}]\n  rules:\n  - backendRefs: [{name: users, port: 80, weight: 50}, {name: green, port: 80, weight: 50}]\n---\napiVersion: heddle.dev/v1alpha1\nkind: TrafficPolicy\nmetadata: {name: canary, namespace: default}\nspec:\n  targetRefs: [{group: gateway.networking.k8s.io, kind: HTTPRoute, name: users}]\n  canary: {by: {claim: sub}}\n---\n",
            &policy("tokens", &format!("required: false\n  {SERVICE}"), &provider(&[&ec], "")),
        ]
        .concat(),
    );
    let colour = |token: &str| {
        let answer = shop.show(token);
        if answer.ends_with("green") {
            "green"
        } else if answer.ends_with("here") {
            "blue"
        } else {
            "refused"
        }
    };
    let token = |user: usize| ec.token(json!({"sub": format!("user-{user}")}));
    let colours = |token: &str, times: usize| (0..times).map(|_| colour(token)).collect::<BTreeSet<_>>();
    eventually("the canary is in force", || {
        let all: BTreeSet<_> = (0..20).map(|user| colour(&token(user))).collect();
        let stays = colours(&token(0), 10).len() == 1;
        (stays && all.contains("green") && all.contains("blue")).then_some(())
    });
    for user in 0..10 {
        assert_eq!(colours(&token(user), 6).len(), 1, "user {user} stays where it is");
    }
    // The same user by another token of hers, and by one that someone else made for her.
    let again = ec.token(json!({"sub": "user-1", "jti": "other"}));
    assert_eq!(colours(&again, 3), colours(&token(1), 3));
    let forged = Signer::new("ec", Algorithm::ES256).token(json!({"sub": "user-1"}));
    assert!(colours(&forged, 40).len() > 1, "it says nothing about who it is");
}
