use serde_json::{Value, json};

use super::*;

fn spec(change: impl FnOnce(&mut Value)) -> Result<JwtPolicySpec, serde_json::Error> {
    let keys = json!({"keys": [{"kty": "OKP", "crv": "Ed25519", "x": "A".repeat(42) + "E"}]});
    let mut whole = json!({
        "targetRefs": [{"group": "", "kind": "Service", "name": "users"}],
        "required": false,
        "providers": [{
            "name": "accounts", "issuer": "https://accounts.example", "audiences": ["users"],
            "jwks": {"inline": keys.to_string()},
            "from": [{"header": {"name": "X-Token", "prefix": "JWT "}}, {"query": "access_token"}, {"cookie": "t"}],
            "forward": false, "clockSkew": "30s",
            "claimsToHeaders": [{"claim": "realm.roles", "header": "X-Roles"}],
        }],
    });
    change(&mut whole);
    serde_json::from_value(whole)
}

fn paths(spec: &JwtPolicySpec) -> Vec<String> {
    let metadata = Metadata { name: "tokens".into(), ..Metadata::default() };
    spec.validate(&metadata).into_iter().map(|violation| violation.path).collect()
}

#[test]
fn the_whole_kind_parses_and_writes_back() {
    let parsed = spec(|_| {}).unwrap();
    assert_eq!(paths(&parsed), [] as [&str; 0]);
    let written = serde_json::to_value(&parsed).unwrap();
    assert_eq!(serde_json::from_value::<JwtPolicySpec>(written).unwrap(), parsed);
    let least = spec(|whole| {
        whole["required"] = Value::Null;
        let provider = &mut whole["providers"][0];
        provider["from"] = json!([]);
    });
    let least = least.unwrap();
    assert!(least.is_required());
    let from = least.providers[0].locations();
    assert_eq!(from[0].header.as_ref().unwrap().prefix(), "Bearer ");
}

#[test]
fn what_cannot_be_is_refused_by_its_path() {
    type Change = fn(&mut Value);
    let provider = "spec.providers[0]";
    let cases: [(Change, &str); 30] = [
        (|s| s["targetRefs"] = json!([]), "spec"),
        (|s| s["selector"] = json!({"matchLabels": {"a": "b"}}), "spec.selector"),
        (
            |s| {
                s["targetRefs"] = json!([]);
                s["selector"] = json!({"matchLabels": {}});
            },
            "spec.selector.matchLabels",
        ),
        (|s| s["providers"] = json!([]), "spec.providers"),
        (
            |s| {
                let same = s["providers"][0].clone();
                s["providers"] = json!([same, same]);
            },
            "spec.providers[1].name",
        ),
        (|s| s["providers"][0]["name"] = "A b".into(), ".name"),
        (|s| s["providers"][0]["issuer"] = "".into(), ".issuer"),
        (|s| s["providers"][0]["issuer"] = "a\nb".into(), ".issuer"),
        (|s| s["providers"][0]["audiences"] = json!([""]), ".audiences[0]"),
        (|s| s["providers"][0]["jwks"] = Value::Null, ""),
        (|s| s["providers"][0]["hmacSecretRef"] = json!({"name": "s", "key": "k"}), ""),
        (
            |s| {
                s["providers"][0]["jwks"] = Value::Null;
                s["providers"][0]["hmacSecretRef"] = json!({"name": "", "key": "k"});
            },
            ".hmacSecretRef.name",
        ),
        (|s| s["providers"][0]["jwks"] = json!({}), ".jwks"),
        (|s| s["providers"][0]["jwks"]["file"] = "a".into(), ".jwks"),
        (|s| s["providers"][0]["jwks"] = json!({"inline": "{}"}), ".jwks.inline"),
        (|s| s["providers"][0]["jwks"] = json!({"file": "../keys"}), ".jwks.file"),
        (|s| s["providers"][0]["jwks"] = json!({"file": "/etc/keys"}), ".jwks.file"),
        (|s| s["providers"][0]["jwks"] = json!({"url": "http://accounts.example/keys"}), ".jwks.url"),
        (|s| s["providers"][0]["jwks"] = json!({"url": "https://u@a/"}), ".jwks.url"),
        (|s| s["providers"][0]["jwks"] = json!({"url": "https://a/", "timeout": "1h"}), ".jwks.timeout"),
        (
            |s| s["providers"][0]["jwks"] = json!({"url": "https://a/", "cacheDuration": "0s"}),
            ".jwks.cacheDuration",
        ),
        (|s| s["providers"][0]["jwks"]["cacheDuration"] = "1m".into(), ".jwks.cacheDuration"),
        (
            |s| s["providers"][0]["jwks"] = json!({"secretRef": {"name": "s", "key": ""}}),
            ".jwks.secretRef.key",
        ),
        (|s| s["providers"][0]["clockSkew"] = "11m".into(), ".clockSkew"),
        (|s| s["providers"][0]["from"] = json!([{}]), ".from[0]"),
        (|s| s["providers"][0]["from"] = json!([{"cookie": "a b"}]), ".from[0].cookie"),
        (|s| s["providers"][0]["from"] = json!([{"header": {"name": "host"}}]), ".from[0].header.name"),
        (|s| s["providers"][0]["claimsToHeaders"][0]["claim"] = "a..b".into(), ".claimsToHeaders[0].claim"),
        (
            |s| s["providers"][0]["claimsToHeaders"][0]["header"] = "heddle-x".into(),
            ".claimsToHeaders[0].header",
        ),
        (
            |s| s["providers"][0]["claimsToHeaders"][0]["header"] = "x-token".into(),
            ".claimsToHeaders[0].header",
        ),
    ];
    for (change, path) in cases {
        let expected = if path.starts_with("spec") { path.to_owned() } else { format!("{provider}{path}") };
        assert_eq!(paths(&spec(change).unwrap()), [expected]);
    }
}

#[test]
fn keys_come_from_where_nobody_changes_them_on_the_way() {
    for (url, sound) in [
        ("https://accounts.example/keys", true),
        ("http://127.0.0.1:8080/keys", true),
        ("http://[::1]/keys", true),
        ("http://localhost/keys", true),
        ("http://10.0.0.1/keys", false),
        ("ftp://localhost/", false),
        ("https://accounts.example/#a", false),
    ] {
        let parsed = spec(|s| s["providers"][0]["jwks"] = json!({"url": url})).unwrap();
        assert_eq!(paths(&parsed).is_empty(), sound, "{url}");
    }
}
