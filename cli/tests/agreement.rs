//! What the control plane accepts, no sidecar refuses: a service of which one part is refused keeps
//! its old state as a whole, so a route that both sides read differently would keep endpoints from
//! being known.

use std::path::Path;

use heddle_api::discovery::v1;
use heddle_api::name::ServiceName;
use heddle_control_plane::compile::{Inputs, MeshDefaults, compile};
use heddle_control_plane::keys::FoundKeys;
use heddle_control_plane::model::{InForce, Model, Scores};
use heddle_control_plane::source::Objects;
use heddle_sidecar::explain::Service;
use serde_json::{Value, json};

/// Whether the control plane takes the rule over; fails if a sidecar does not.
fn agreed(rule: &Value) -> bool {
    let route = json!({
        "apiVersion": "gateway.networking.k8s.io/v1",
        "kind": "HTTPRoute",
        "metadata": {"name": "users", "namespace": "shop"},
        "spec": {"parentRefs": [{"group": "", "kind": "Service", "name": "users"}], "rules": [rule]},
    });
    let service = json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "users", "namespace": "shop"},
        "spec": {"ports": [{"name": "http", "port": 80}]},
    });
    let text = format!("{service}\n---\n{route}\n");
    let Ok(objects) = Objects::parse(Path::new("shop.yaml"), &text) else { return false };
    let mesh = MeshDefaults {
        trust_domain: "heddle.local".parse().expect("it is one"),
        cluster_domain: "cluster.local".into(),
    };
    let inputs = Inputs {
        objects: &objects,
        registrations: &[],
        scores: &Scores::default(),
        found_keys: &FoundKeys::new(),
        mesh: &mesh,
    };
    let model = compile(&inputs, &Model::default());
    let accepted = model.statuses[0].in_force == InForce::Current;
    let name: ServiceName = "shop/users".parse().expect("it is one");
    let resource = model.resource::<v1::Service>(name.as_str()).expect("there is a Service");
    if let Err(refused) = Service::decode(&name, "shop", &resource.bytes) {
        panic!("{refused}\n{rule}");
    }
    accepted
}

/// Values of which the one side may think otherwise than the other.
fn texts() -> Vec<String> {
    let mut texts: Vec<String> = [
        "",
        "/",
        "//",
        "/a",
        "/a/",
        "a",
        "/%7E",
        "/%7e/",
        "/%0a",
        "/%0A/x",
        "/%00",
        "/%2f",
        "/%5C",
        "/%25",
        "/%3f",
        "/%23x",
        "/%20",
        "/%ff",
        "/%5b",
        "/%4",
        "/%zz",
        "/a;b",
        "/a:b@c",
        "/!$&'()*+,;=",
        "/..a",
        "/.a",
        "/...",
        "/..",
        "/.",
        "/a/./b",
        "/;x",
        "/.;x",
        "/a/..;/b",
        "/%2e;x",
        "/%2E%2e/b",
        "/a?b",
        "/a#b",
        "/a b",
        "/ä",
        "/a\\b",
        "/a|b",
        "/a\"b",
        "/[a]",
        "/{a}",
        "/a\tb",
        "/a\nb",
        " ",
        "a b",
        "a\tb",
        "\ta",
        "ä",
        "~",
        "\"",
        ",",
        "a,b",
        "a=b&c",
        "%",
        "a\u{7f}",
        "a\r\nb: c",
        "host",
        "Host",
        "te",
        "heddle-x",
        "HEDDLE-route",
        "content-length",
        "trailer",
        "expect",
        "x-forwarded-client-cert",
        "client-cert",
        "set-cookie",
        "!#$%&'*+.^_`|~-09az",
        "a:b",
        "1.2.3.4",
        "256.1.1.1",
        "1.2.3",
        "0",
        "a-b.c",
        "-a",
        "a-",
        "a..b",
        "a.",
        "*.a",
        "A.com",
        "xn--a",
        "a_b",
        "a:80",
        "[::1]",
        "user@host",
        "https://*",
        "https://*.a.com",
        "https://*a.com",
        "http://a.com:0",
        "http://a.com:08080",
        "http://a.com:65536",
        "http://[::1]",
        "https://A.com",
        "https://a_b.com",
        "null",
        "*",
        "https://a.com/",
        "ftp://a.com",
        "GET",
        "get",
        "G T",
        "[0-9]+",
        "(",
        "a)|(b",
        "(?i)a",
        "(?x) a # b",
        "(?x) a",
        "\\pL",
        "\\d\\s\\w",
        "\\bfoo\\b",
        "^a$",
        "(?=a)",
        "(a)\\1",
        "a{1000}",
        "((a{100}){100}){100}",
        "(?P<n>a)",
        "[[:alpha:]]",
        "(?-u:\\xff)",
        "\\xff",
        "\\u{ff}",
        "(?u)é",
        "(?s).*",
        "0s",
        "1ms",
        "99999h99999h99999h99999h",
    ]
    .map(str::to_owned)
    .into();
    for length in [63, 64, 128, 129, 253, 254, 256, 257, 1024, 1025, 4096, 4097] {
        texts.push("a".repeat(length));
        texts.push(format!("/{}", "a".repeat(length - 1)));
    }
    texts
}

/// Rules with a text at each place that takes one.
fn rules(text: &str) -> Vec<Value> {
    let mut rules = Vec::new();
    for kind in ["Exact", "PathPrefix", "RegularExpression"] {
        rules.push(json!({"matches": [{"path": {"type": kind, "value": text}}]}));
    }
    for kind in ["Exact", "RegularExpression"] {
        rules.push(json!({"matches": [{"headers": [{"type": kind, "name": "x", "value": text}]}]}));
        rules.push(json!({"matches": [{"queryParams": [{"type": kind, "name": "x", "value": text}]}]}));
        rules.push(json!({"matches": [{"headers": [{"type": kind, "name": text, "value": "x"}]}]}));
        rules.push(json!({"matches": [{"queryParams": [{"type": kind, "name": text, "value": "x"}]}]}));
    }
    rules.push(json!({"matches": [{"method": text}]}));
    rules.push(json!({"name": text}));
    for action in [
        json!({"set": [{"name": text, "value": "x"}]}),
        json!({"add": [{"name": "x", "value": text}]}),
        json!({"remove": [text]}),
    ] {
        rules.push(json!({"filters": [{"type": "RequestHeaderModifier", "requestHeaderModifier": action}]}));
        rules
            .push(json!({"filters": [{"type": "ResponseHeaderModifier", "responseHeaderModifier": action}]}));
    }
    for change in [
        json!({"hostname": text}),
        json!({"path": {"type": "ReplaceFullPath", "replaceFullPath": text}}),
        json!({"path": {"type": "ReplacePrefixMatch", "replacePrefixMatch": text}}),
    ] {
        rules.push(json!({"filters": [{"type": "URLRewrite", "urlRewrite": change}]}));
        rules.push(json!({"filters": [{"type": "RequestRedirect", "requestRedirect": change}]}));
    }
    for cors in [
        json!({"allowOrigins": [text]}),
        json!({"allowMethods": [text]}),
        json!({"allowHeaders": [text]}),
        json!({"exposeHeaders": [text]}),
    ] {
        rules.push(json!({"filters": [{"type": "CORS", "cors": cors}]}));
    }
    for backend in [
        json!({"name": text, "port": 80}),
        json!({"name": "users", "namespace": text, "port": 80}),
        json!({"name": "users", "group": text, "port": 80}),
        json!({"name": "users", "kind": text, "port": 80}),
    ] {
        rules.push(json!({"filters": [{"type": "RequestMirror", "requestMirror": {"backendRef": backend}}]}));
        rules.push(json!({"backendRefs": [backend]}));
    }
    rules.push(json!({"filters": [{"type": "ExtensionRef", "extensionRef": {"kind": text, "name": text}}]}));
    rules.push(json!({"sessionPersistence": {"sessionName": text}}));
    rules.push(json!({"sessionPersistence": {"sessionName": text, "type": "Header"}}));
    rules.push(json!({"sessionPersistence": {"idleTimeout": text, "absoluteTimeout": text}}));
    rules.push(json!({"timeouts": {"request": text, "backendRequest": text}}));
    rules.push(json!({"retry": {"backoff": text}}));
    rules
}

#[test]
fn what_the_control_plane_accepts_no_sidecar_refuses() {
    let texts = texts();
    let (mut asked, mut accepted) = (0, 0);
    for rule in texts.iter().flat_map(|text| rules(text)) {
        asked += 1;
        accepted += usize::from(agreed(&rule));
    }
    for number in
        [0, 1, 99, 100, 301, 304, 399, 400, 503, 599, 600, 65535, 65536, 1_000_000, 1_000_001, u32::MAX]
    {
        for rule in [
            json!({"backendRefs": [{"name": "users", "port": 80, "weight": number}]}),
            json!({"backendRefs": [{"name": "users", "port": number}]}),
            json!({"retry": {"codes": [number], "attempts": number}}),
            json!({"filters": [{"type": "RequestRedirect", "requestRedirect": {"statusCode": number}}]}),
            json!({"filters": [{"type": "RequestRedirect", "requestRedirect": {"port": number}}]}),
            json!({"filters": [{"type": "CORS", "cors": {"maxAge": number}}]}),
            json!({"filters": [{"type": "RequestMirror", "requestMirror": {
                "backendRef": {"name": "users", "port": 80}, "percent": number}}]}),
            json!({"filters": [{"type": "RequestMirror", "requestMirror": {
                "backendRef": {"name": "users", "port": 80}, "fraction": {"numerator": number, "denominator": number}}}]}),
        ] {
            asked += 1;
            accepted += usize::from(agreed(&rule));
        }
    }
    // Neither is everything accepted nor nothing.
    assert!(accepted > asked / 10 && accepted < asked * 9 / 10, "{accepted} of {asked}");
}
