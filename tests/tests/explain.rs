//! What `heddle policy explain` and `heddle routes` tell about a mesh.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::Output;

use heddle_tests::backend::Backend;
use heddle_tests::tokens::{Algorithm, Signer, key_set};
use heddle_tests::{App, ControlPlane, Process, binary, eventually, exchange, get};
use serde_json::Value;

/// `shop/users` and its canary, endpoints outside the mesh, a producer's and a
/// consumer's routes, and a policy at each level.
fn manifests(users: u16, canary: u16) -> String {
    let service = |name: &str, app: u16| {
        format!(
            "apiVersion: v1
kind: Service
metadata: {{name: {name}, namespace: shop}}
spec: {{ports: [{{name: main, port: 80, appProtocol: http}}, {{name: other, port: 81, appProtocol: http}}]}}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {{name: {name}-1, namespace: shop, labels: {{kubernetes.io/service-name: {name}}}}}
addressType: IPv4
ports: [{{name: main, port: {app}}}, {{name: other, port: {app}}}]
endpoints: [{{addresses: [127.0.0.1]}}]
---
"
        )
    };
    let policy = |name: &str, namespace: &str, target: &str, spec: &str| {
        format!(
            "apiVersion: heddle.dev/v1alpha1
kind: TrafficPolicy
metadata: {{name: {name}, namespace: {namespace}}}
spec:
  targetRefs: [{{{target}}}]
{spec}
---
"
        )
    };
    let route = "group: gateway.networking.k8s.io, kind: HTTPRoute, name: producer";
    let users_target = "group: '', kind: Service, name: users";
    [
        service("users", users),
        service("canary", canary),
        "apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: producer, namespace: shop}
spec:
  parentRefs: [{group: '', kind: Service, name: users, port: 80}]
  rules:
  - name: gold
    matches: [{headers: [{name: x-tier, value: gold}]}]
    timeouts: {backendRequest: 2s}
    retry: {codes: [503], attempts: 4}
    backendRefs: [{name: users, port: 80}]
  - name: split
    matches: [{path: {type: PathPrefix, value: /split}}]
    backendRefs: [{name: users, port: 80, weight: 75}, {name: canary, port: 81, weight: 25}]
  - matches: [{path: {type: Exact, value: /old}}]
    filters: [{type: RequestRedirect, requestRedirect: {hostname: new, statusCode: 301}}]
  - matches: [{path: {type: Exact, value: /gone}}]
    backendRefs: [{name: nowhere, port: 80}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: consumer, namespace: default}
spec:
  parentRefs: [{group: '', kind: Service, name: users, namespace: shop, port: 80}]
  rules:
  - name: ours
    matches: [{path: {type: PathPrefix, value: /mine}}]
    backendRefs: [{name: users, namespace: shop, port: 80}]
---
"
        .into(),
        policy("on-rule", "shop", &format!("{route}, sectionName: gold"), "  timeouts: {request: 11s}"),
        policy(
            "on-route",
            "shop",
            route,
            "  timeouts: {request: 12s}\n  retry: {methods: [GET]}\n  when: [{header: x-beta, notIn: ['no']}]\n  canary: {by: {header: x-user}}",
        ),
        policy(
            "on-port",
            "shop",
            &format!("{users_target}, sectionName: main"),
            "  timeouts: {request: 13s, connect: 3s}",
        ),
        policy(
            "on-service",
            "shop",
            users_target,
            "  timeouts: {request: 14s, connect: 4s, idle: 4m}\n  circuitBreaker: {consecutiveFailures: 2, maxEjectedPercent: 100, open: {base: 1h, max: 1h}}\n  healthCheck: {tcp: {}, interval: 1h}",
        ),
        // Later by name than the one before it, which files order by.
        policy("on-service-too", "shop", users_target, "  timeouts: {idle: 9m}\n  limits: {requests: 77}"),
        policy(
            "on-namespace",
            "shop",
            "group: '', kind: Namespace, name: shop",
            "  limits: {connections: 55, requests: 56}",
        ),
        policy(
            "on-mesh",
            "heddle-system",
            "group: heddle.dev, kind: MeshConfig, name: mesh",
            "  limits: {connections: 65, pendingRequests: 66}",
        ),
        "apiVersion: heddle.dev/v1alpha1
kind: FaultPolicy
metadata: {name: chaos, namespace: shop}
spec:
  targetRefs: [{group: '', kind: Service, name: users}]
  match: [{headers: [{name: x-chaos, value: 'yes'}]}]
  delay: {fixed: 2s, percent: 10}
---
"
        .into(),
    ]
    .concat()
}

struct Mesh {
    control_plane: ControlPlane,
    client: Process,
    _backends: [Backend; 2],
}

fn start() -> Mesh {
    let backends = [Backend::always(500), Backend::always(200)];
    let control_plane = ControlPlane::start();
    control_plane.apply("mesh.yaml", &manifests(backends[0].port(), backends[1].port()));
    eventually("the policies are in force", || {
        control_plane.shows("/statuses").to_string().contains("on-service-too").then_some(())
    });
    let client = control_plane.sidecar("client", ["--workers", "1"]);
    client.said("the sidecar is ready");
    control_plane.workloads("client", 1);
    Mesh { control_plane, client, _backends: backends }
}

impl Mesh {
    fn heddle(&self, args: &[&str]) -> Output {
        let admin = self.control_plane.admin().to_string();
        let mut command = std::process::Command::new(binary("heddle"));
        command.args(args).args(["--control-plane-admin", &admin]).output().expect("the command runs")
    }

    fn text(&self, args: &[&str]) -> String {
        let output = self.heddle(args);
        let (text, error) =
            (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "{args:?}: {text}{error}");
        text.into_owned()
    }

    fn explain(&self, args: &[&str]) -> Value {
        let args = [&["policy", "explain"], args, &["--json"]].concat();
        serde_json::from_str(&self.text(&args)).expect("it is JSON")
    }

    fn refused(&self, args: &[&str]) -> String {
        let output = self.heddle(&[&["policy", "explain"], args].concat());
        assert!(!output.status.success(), "{args:?}");
        String::from_utf8_lossy(&output.stderr).into_owned()
    }
}

/// A field at the one backend: its value, and whose it is as "object level".
fn field(report: &Value, path: &str) -> (Value, String) {
    let fields = report["backends"][0]["policy"].as_array().expect("there is a policy");
    let field =
        fields.iter().find(|field| field["field"] == path).unwrap_or_else(|| panic!("no {path}: {report}"));
    let from = &field["from"];
    let part = |name: &str| from[name].as_str().unwrap_or_default();
    let whose =
        if from.is_null() { "default".into() } else { format!("{} {}", part("object"), part("level")) };
    (field["value"].clone(), whose)
}

fn is(report: &Value, path: &str, value: impl Into<Value>, whose: &str) {
    assert_eq!(field(report, path), (value.into(), whose.to_owned()), "{path}");
}

#[test]
fn each_field_is_told_with_the_object_that_says_it() {
    let mesh = start();
    let gold = mesh.explain(&["users", "--from", "shop", "--port", "80", "--header", "X-Tier: gold"]);
    assert_eq!(
        gold["route"],
        serde_json::json!({"kind": "HTTPRoute", "route": "shop/producer", "rule": "gold"})
    );
    assert_eq!((&gold["decision"], &gold["backends"][0]["service"]), (&"sent".into(), &"shop/users".into()));
    is(&gold, "timeouts.request", "11s", "shop/on-rule rule");
    is(&gold, "retry.methods", vec!["GET"], "shop/on-route route");
    is(&gold, "canary.by", serde_json::json!({"header": "x-user"}), "shop/on-route route");
    assert_eq!(field(&gold, "when").1, "shop/on-route route");
    is(&gold, "timeouts.connect", "3s", "shop/on-port port");
    is(&gold, "circuitBreaker.consecutiveFailures", 2, "shop/on-service service");
    // Of two policies on the same service the older one, by name among files.
    is(&gold, "timeouts.idle", "4m", "shop/on-service service");
    is(&gold, "limits.requests", 77, "shop/on-service-too service");
    is(&gold, "limits.connections", 55, "shop/on-namespace namespace");
    is(&gold, "limits.pendingRequests", 66, "heddle-system/on-mesh mesh");
    // The route's own words come before any policy.
    is(&gold, "timeouts.perTry", "2s", "shop/producer rule");
    is(&gold, "retry.attempts", 4, "shop/producer rule");
    is(&gold, "loadBalancer.algorithm", "PeakEwma", "default");
    is(&gold, "retry.budget.percent", 20, "default");

    // Without a route's policy, a service's; at a port without its own, that of all ports.
    let plain = mesh.explain(&["shop/users", "--port", "81"]);
    assert!(plain["route"].is_null(), "{plain}");
    is(&plain, "timeouts.request", "14s", "shop/on-service service");
    is(&plain, "timeouts.connect", "4s", "shop/on-service service");
    is(&plain, "healthCheck.interval", "1h", "shop/on-service service");
    is(&plain, "healthCheck.healthyAfter", 2, "default");
    is(&plain, "retry.methods", vec!["GET", "HEAD", "OPTIONS", "PUT", "DELETE"], "default");

    // Faults are told of the requests that they are about.
    assert!(plain["backends"][0]["fault"].is_null(), "{plain}");
    let chaos = mesh.explain(&["shop/users", "--port", "81", "--header", "x-chaos: yes"]);
    let fault =
        serde_json::json!({"object": "shop/chaos", "delay": {"fixed": "2s", "percent": 10}, "abort": null});
    assert_eq!(chaos["backends"][0]["fault"], fault);

    let text = mesh.text(&["policy", "explain", "users.shop", "--port", "80", "--header", "x-tier:gold"]);
    assert!(text.contains("HTTPRoute shop/producer, rule gold"), "{text}");
    let line =
        |field: &str| text.lines().find(|line| line.trim_start().starts_with(field)).unwrap_or_default();
    assert!(line("timeouts.request").ends_with("TrafficPolicy shop/on-rule (rule)"), "{text}");
    assert!(line("timeouts.request").contains(" 11s "), "{text}");
    assert!(line("retry.attempts").ends_with("HTTPRoute shop/producer (rule)"), "{text}");
    assert!(line("loadBalancer.algorithm").ends_with("(default)"), "{text}");
}

#[test]
fn the_rule_is_the_one_that_the_client_would_meet() {
    let mesh = start();
    let of = |args: &[&str]| mesh.explain(&[&["shop/users", "--port", "80"], args].concat());
    // A consumer's namespace meets its own routes in place of the producer's.
    assert_eq!(of(&["--from", "default", "--path", "/mine/1"])["route"]["route"], "default/consumer");
    assert_eq!(of(&["--from", "default", "--path", "/split"])["decision"], "noMatch");
    // A condition of a policy narrows a rule; without the canary's header users go by chance.
    assert_eq!(of(&["--path", "/split", "--header", "x-beta: no"])["decision"], "noMatch");
    let split = of(&["--path", "/split"]);
    assert_eq!(split["decision"], "byWeight");
    let shares: Vec<(&str, f64)> = split["backends"]
        .as_array()
        .unwrap()
        .iter()
        .map(|backend| (backend["service"].as_str().unwrap(), backend["share"].as_f64().unwrap()))
        .collect();
    assert_eq!(shares, [("shop/users", 0.75), ("shop/canary", 0.25)]);
    let ann = of(&["--path", "/split", "--header", "x-user: ann"]);
    assert_eq!((&ann["decision"], ann["backends"].as_array().unwrap().len()), (&"sent".into(), 1));
    let redirected = of(&["--path", "/old"]);
    assert_eq!((&redirected["decision"], &redirected["detail"]), (&"reply".into(), &301.into()));
    let gone = of(&["--path", "/gone"]);
    assert_eq!(gone["decision"], "refused");
    assert!(gone["detail"].as_str().unwrap().contains("nowhere"), "{gone}");

    let routes = mesh.text(&["routes"]);
    assert!(routes.contains("shop/producer") && routes.contains("default/consumer"), "{routes}");
    assert!(routes.contains("rule split: shop/users:80 weight 75, shop/canary:81 weight 25"), "{routes}");
    assert!(routes.contains("BackendNotFound"), "{routes}");
    let json: Value = serde_json::from_str(&mesh.text(&["routes", "--json"])).expect("it is JSON");
    assert_eq!(json["routes"].as_array().map(Vec::len), Some(2));
}

#[test]
fn an_open_breaker_is_told_with_its_reason_and_its_end() {
    let mesh = start();
    let outbound = mesh.client.listening("outbound");
    eventually("the breaker opens", || {
        let (status, _) = get(outbound, "users.shop:81", "/")?;
        (status == 503).then_some(())
    });
    let args = ["shop/users", "--port", "81", "--from", "default/client"];
    let report = eventually("the circuit is shown", || {
        let report = mesh.explain(&args);
        (report["backends"][0]["callers"][0]["endpoints"][0]["circuit"]["state"] == "open").then_some(report)
    });
    let caller = &report["backends"][0]["callers"][0];
    assert_eq!(caller["workload"], "default/client");
    let circuit = &caller["endpoints"][0]["circuit"];
    assert!(circuit["reason"].is_string() && circuit["until"].is_string(), "{circuit}");
    let text = mesh.text(&[&["policy", "explain"], args.as_slice()].concat());
    assert!(text.contains("seen by default/client") && text.contains("circuit open, "), "{text}");
    assert_eq!(caller["endpoints"][0]["health"], "healthy", "nobody but the breaker is against it");
    // Somebody else's sidecars are not asked.
    let other = mesh.explain(&["shop/users", "--port", "81", "--from", "default/other"]);
    assert_eq!(other["backends"][0]["callers"].as_array().map(Vec::len), Some(0));
}

#[test]
fn rate_limits_are_told_with_what_is_left_of_them() {
    let control_plane = ControlPlane::start();
    let app = App::start("here");
    let address = format!("127.0.0.1:{}", app.port());
    let ports = ["--port", "main:80:http", "--port", "other:81:http", "--app", &address];
    let server = control_plane.sidecar("users", ports);
    server.said("the sidecar is ready");
    let client = control_plane.sidecar("client", [] as [&str; 0]);
    client.said("the sidecar is ready");
    control_plane.workloads("users", 1);
    let policy = |name: &str, target: &str, limits: &str| {
        format!(
            "apiVersion: heddle.dev/v1alpha1\nkind: RateLimitPolicy\nmetadata: {{name: {name}, namespace: default}}\nspec:\n  targetRefs: [{target}]\n  limits: [{limits}]\n---\n"
        )
    };
    let route = "apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: users, namespace: default}
spec:
  parentRefs: [{group: '', kind: Service, name: users, port: 80}]
  rules: [{name: all, backendRefs: [{name: users, port: 80}]}]
---
";
    let rule = "{group: gateway.networking.k8s.io, kind: HTTPRoute, name: users, sectionName: all}";
    let port = "{group: '', kind: Service, name: users, sectionName: main}";
    let service = "{group: '', kind: Service, name: users}";
    let limits = [
        policy("on-rule", rule, "{requests: 5, per: 1h, match: [{method: PUT}]}"),
        policy("on-port", port, "{name: few, requests: 3, per: 1h, burst: 7, match: [{pathPrefix: /v1}]}"),
        policy(
            "on-service",
            service,
            "{name: each, requests: 1, per: 1h, key: [{header: x-user}, {identity: true}]}",
        ),
    ];
    control_plane.apply("mesh.yaml", &[route.to_owned(), limits.concat()].concat());
    let outbound = client.listening("outbound");
    let ask = |path: &str, user: &str| {
        let request =
            format!("GET {path} HTTP/1.1\r\nhost: users\r\nx-user: {user}\r\nconnection: close\r\n\r\n");
        exchange(outbound, &request).unwrap_or_default()
    };
    // Until the limits are in force no token is taken.
    eventually("both limits hold", || ask("/v1", "ann").contains("ratelimit: ").then_some(()));
    eventually("the one of the user is empty", || ask("/", "ann").starts_with("HTTP/1.1 429").then_some(()));
    let admin = control_plane.admin().to_string();
    let explain = |args: &[&str]| {
        let mut command = std::process::Command::new(binary("heddle"));
        let output =
            command.args(["policy", "explain", "default/users", "--control-plane-admin", &admin]).args(args);
        let output = output.output().expect("the command runs");
        String::from_utf8(output.stdout).expect("it is text")
    };
    let report: Value =
        serde_json::from_str(&explain(&["--port", "80", "--path", "/v1/x", "--json"])).unwrap();
    let told = report["backends"][0]["rateLimits"].as_array().expect("there are some");
    let names: Vec<_> = told.iter().map(|limit| (&limit["object"], &limit["limit"])).collect();
    assert_eq!(
        names,
        [(&"default/on-port".into(), &"few".into()), (&"default/on-service".into(), &"each".into())],
        "{report}"
    );
    let few = &told[0];
    assert_eq!((&few["requests"], &few["per"], &few["burst"]), (&3.into(), &"1h".into(), &7.into()));
    assert_eq!(few["match"], serde_json::json!([{"pathPrefix": "/v1"}]));
    assert_eq!(
        (&few["workloads"][0]["workload"], &few["workloads"][0]["remaining"]),
        (&"default/users".into(), &6.into())
    );
    let each = &told[1];
    assert_eq!(each["key"], serde_json::json!([{"header": "x-user"}, {"identity": true}]));
    assert_eq!(
        (&each["workloads"][0]["usedBuckets"], &each["workloads"][0]["emptyBuckets"]),
        (&1.into(), &1.into())
    );
    // At the other port there is neither the port's nor the rule's.
    let text = explain(&["--port", "81", "--method", "PUT", "--path", "/v1"]);
    assert!(text.contains("RateLimitPolicy default/on-service, each") && !text.contains("on-port"), "{text}");
    assert!(text.contains("1 buckets are not full, 1 of them empty"), "{text}");
    let text = explain(&["--port", "80", "--method", "PUT", "--path", "/v1"]);
    let line =
        |field: &str| text.lines().find(|line| line.trim_start().starts_with(field)).unwrap_or_default();
    assert!(line("rateLimit.requests").ends_with("RateLimitPolicy default/on-port, few"), "{text}");
    assert!(
        text.contains("RateLimitPolicy default/on-rule, limit-0") && text.contains(": 6 of 7 left"),
        "{text}"
    );
}

#[test]
fn tokens_are_told_with_where_their_keys_come_from_and_whether_they_would_pass() {
    let control_plane = ControlPlane::start();
    let app = App::start("here");
    let address = format!("127.0.0.1:{}", app.port());
    let ports = ["--label", "app=users", "--port", "main:80:http", "--port", "other:81:http"];
    let server = control_plane.sidecar("users", [&ports[..], &["--app", &address]].concat());
    server.said("the sidecar is ready");
    control_plane.workloads("users", 1);
    let signer = Signer::new("first", Algorithm::ES256);
    let keys = key_set(&[&signer]);
    let policy = |name: &str, rest: &str, providers: &str| {
        format!(
            "apiVersion: heddle.dev/v1alpha1\nkind: JwtPolicy\nmetadata: {{name: {name}, namespace: default}}\nspec:\n  {rest}\n  providers: [{providers}]\n---\n"
        )
    };
    let secret = "apiVersion: v1\nkind: Secret\nmetadata: {name: s, namespace: default}\nstringData: {key: 'a secret of thirty-two bytes and a few'}\n---\n";
    let port = "targetRefs: [{group: '', kind: Service, name: users, sectionName: main}]";
    control_plane.apply(
        "tokens.yaml",
        &[
            secret.to_owned(),
            policy(
                "all",
                "required: false\n  selector: {matchLabels: {app: users}}",
                "{name: own, issuer: own, hmacSecretRef: {name: s, key: key}}",
            ),
            policy(
                "main",
                port,
                &format!(
                    "{{name: accounts, issuer: 'https://accounts.example', audiences: [users], jwks: {{inline: '{keys}'}}, claimsToHeaders: [{{claim: sub, header: x-user}}], clockSkew: 5s}}, {{name: away, issuer: away, jwks: {{file: none.json}}}}"
                ),
            ),
        ]
        .concat(),
    );
    let admin = control_plane.admin().to_string();
    let directory = tempfile::tempdir().expect("there is room");
    let file = directory.path().join("token");
    let explain = |token: Option<&str>, args: &[&str]| {
        let mut command = std::process::Command::new(binary("heddle"));
        command.args(["policy", "explain", "default/users", "--control-plane-admin", &admin]).args(args);
        if let Some(token) = token {
            std::fs::write(&file, format!("{token}\n")).expect("there is room");
            command.arg("--token").arg(&file);
        }
        let output = command.output().expect("the command runs");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).expect("it is text")
    };
    let tokens = |token: Option<&str>, port: &str| {
        let report: Value = serde_json::from_str(&explain(token, &["--port", port, "--json"])).ok()?;
        assert!(!report.to_string().contains("Bearer e"), "a token is not told");
        Some(report["backends"][0]["tokens"].clone())
    };
    let told = eventually("the policies are told, and what is missing", || {
        let told = tokens(None, "80")?;
        let missing = told["policies"][1]["unresolved"][0].as_str()?.to_owned();
        (missing.contains("none.json: it cannot be read")).then_some(told)
    });
    let names: Vec<_> =
        told["policies"].as_array().unwrap().iter().map(|p| (&p["object"], &p["required"])).collect();
    assert_eq!(names, [(&"default/all".into(), &false.into()), (&"default/main".into(), &true.into())]);
    let accounts = &told["policies"][1]["providers"][0];
    let expected = serde_json::json!({
        "name": "accounts",
        "issuer": "https://accounts.example",
        "audiences": ["users"],
        "keys": {"from": "the policy itself", "known": [{"kid": "first", "algorithms": ["ES256"]}]},
        "from": [{"header": {"name": "authorization", "prefix": "Bearer "}}],
        "forward": true,
        "claimsToHeaders": [{"claim": "sub", "header": "x-user"}],
        "clockSkew": "5s",
    });
    assert_eq!(*accounts, expected);
    let away = &told["policies"][1]["providers"][1]["keys"];
    assert_eq!(away["known"], serde_json::json!([]), "{away}");
    assert!(away["from"].as_str().unwrap().ends_with("none.json"), "{away}");
    let own = &told["policies"][0]["providers"][0]["keys"];
    assert_eq!(*own, serde_json::json!({"from": "Secret default/s key", "known": "a shared secret"}));
    let decision = |token: Option<&str>, port: &str| tokens(token, port).unwrap()["decision"].clone();
    assert_eq!(
        told["decision"],
        serde_json::json!({"verdict": "refused", "object": "default/main", "cause": "missing", "message": "the request has no token"})
    );
    let good = signer.token(serde_json::json!({"sub": "ann"}));
    assert_eq!(
        decision(Some(&good), "80"),
        serde_json::json!({"verdict": "admitted", "tokens": 1, "headers": [{"name": "x-user", "value": "ann"}]})
    );
    let over = signer.token(serde_json::json!({"exp": 1000}));
    assert_eq!(decision(Some(&over), "80")["cause"], "expired");
    // At the other port there is the workloads' policy alone, whose secret is nobody else's.
    assert_eq!(tokens(None, "81").unwrap()["policies"].as_array().map(Vec::len), Some(1));
    assert_eq!(decision(None, "81")["verdict"], "admitted");
    let shared = Signer::shared(Algorithm::HS256, b"a secret of thirty-two bytes and a few");
    let shared = shared.token(serde_json::json!({"iss": "own"}));
    assert_eq!(
        decision(Some(&shared), "81"),
        serde_json::json!({"verdict": "unknown", "object": "default/all"})
    );
    let mut admin = TcpStream::connect(control_plane.admin()).expect("it listens");
    let asked = "GET /tokens?service=default/users&port=81 HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n";
    admin.write_all(asked.as_bytes()).expect("it is open");
    let mut raw = Vec::new();
    admin.read_to_end(&mut raw).expect("it answers");
    let raw = String::from_utf8_lossy(&raw);
    assert!(raw.contains("default/all") && !raw.contains("thirty-two"), "{raw}");
    let text = explain(Some(&good), &["--port", "80"]);
    let line =
        |field: &str| text.lines().find(|line| line.trim_start().starts_with(field)).unwrap_or_default();
    assert!(line("jwt.issuer").ends_with("JwtPolicy default/all, own"), "{text}");
    assert!(text.contains("    admitted, tokens that count: 1, x-user: ann\n"), "{text}");
    assert!(text.contains("    missing: key set "), "{text}");
    let text = explain(None, &["--port", "80"]);
    assert!(
        text.contains(
            "401 unauthenticated (gRPC: UNAUTHENTICATED) by JwtPolicy default/main: the request has no token"
        ),
        "{text}"
    );
}

#[test]
fn what_cannot_be_explained_is_refused_with_the_reason() {
    let mesh = start();
    for (args, reason) in [
        (&["shop/nobody"][..], "the control plane knows no service shop/nobody"),
        (&["a b"], "\"a b\" is no name of a service"),
        (&["shop/users"][..0], "SERVICE"),
        (&["shop/users", "--port", "99"], "shop/users has no port 99; there are 80, 81"),
        (&["shop/users", "--path", "/a%2fb"], "a sidecar refuses this request"),
        (&["shop/users", "--path", "/a b"], "a sidecar refuses this request"),
        (&["shop/users", "--header", "novalue"], "a header is written NAME:VALUE"),
        (&["shop/users", "--from", "a/b/c"], "--from a/b/c: no NAMESPACE or NAMESPACE/SERVICE"),
    ] {
        let error = mesh.refused(args);
        assert!(error.contains(reason), "{args:?}: {error}");
    }
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").expect("a port is free");
    let address = nobody.local_addr().expect("it is bound").to_string();
    drop(nobody);
    let mut command = std::process::Command::new(binary("heddle"));
    let output = command.args(["routes", "--control-plane-admin", &address]).output().expect("it runs");
    assert!(String::from_utf8_lossy(&output.stderr).contains("no control plane answers"), "{output:?}");
}
