//! Tokens are made by another library (`jsonwebtoken`) than the one under test.

use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime};

use heddle_api::jwk::{KeySet, PublicKey};
use jsonwebtoken::jwk::Jwk;
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use proptest::prelude::*;
use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384, PKCS_RSA_SHA256, RsaKeySize};
use serde_json::{Value, json};

use super::*;
use crate::route::{Http1Head, Http1Request};

const SECRET: &[u8] = b"a secret that two share and none else, of more than sixty-four bytes";
const NOW: u64 = 1_700_000_000;

fn at(seconds: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
}

fn rsa() -> &'static EncodingKey {
    static KEY: OnceLock<EncodingKey> = OnceLock::new();
    KEY.get_or_init(|| {
        let key = KeyPair::generate_rsa_for(&PKCS_RSA_SHA256, RsaKeySize::_2048).unwrap();
        // The library wants PKCS #1, which PKCS #8 has inside, behind 26 bytes for a key of this size.
        EncodingKey::from_rsa_der(&key.serialize_der()[26..])
    })
}

fn ec(algorithm: Algorithm) -> EncodingKey {
    let kind = if algorithm == Algorithm::ES256 { &PKCS_ECDSA_P256_SHA256 } else { &PKCS_ECDSA_P384_SHA384 };
    EncodingKey::from_ec_der(&KeyPair::generate_for(kind).unwrap().serialize_der())
}

fn ed() -> EncodingKey {
    let random = aws_lc_rs::rand::SystemRandom::new();
    let der = aws_lc_rs::signature::Ed25519KeyPair::generate_pkcs8(&random).unwrap();
    // The library wants the first version of PKCS #8 (RFC 8410): a header, then the private key.
    let header = [0x30, 0x2E, 2, 1, 0, 0x30, 5, 6, 3, 0x2B, 0x65, 0x70, 4, 0x22, 4, 0x20];
    EncodingKey::from_ed_der(&[&header, &der.as_ref()[16..48]].concat())
}

/// The key that verifies what another signs, as its issuer publishes it.
fn public(id: &str, key: &EncodingKey, algorithm: Algorithm) -> Key {
    let mut jwk = serde_json::to_value(Jwk::from_encoding_key(key, algorithm).unwrap()).unwrap();
    jwk["kid"] = id.into();
    jwk.as_object_mut().unwrap().remove("alg");
    let set = KeySet::parse(json!({"keys": [jwk]}).to_string().as_bytes()).unwrap();
    let key = &set.keys[0];
    let material = match &key.key {
        PublicKey::Rsa { modulus, exponent } => Material::Rsa { modulus, exponent },
        PublicKey::Ec(point) => Material::Ec(point),
        PublicKey::Ed25519(bytes) => Material::Ed25519(bytes),
    };
    Key::new(&key.id, key.algorithms.iter().copied(), material).unwrap()
}

fn shared() -> Key {
    Key::new("", ["HS256", "HS384", "HS512"], Material::Secret(SECRET)).unwrap()
}

fn bearer() -> Location {
    Location::Header { name: http::header::AUTHORIZATION, prefix: "Bearer ".into() }
}

fn provider(keys: Vec<Key>) -> Provider {
    Provider {
        name: "accounts".into(),
        issuer: "https://accounts.example".into(),
        audiences: ["users".into(), "others".into()].into(),
        keys: keys.into(),
        keys_from: Box::default(),
        locations: [bearer()].into(),
        stripped: false,
        headers: [
            ("sub".into(), "x-user".parse().unwrap()),
            ("realm.roles".into(), "x-roles".parse().unwrap()),
        ]
        .into(),
        lookalikes: ["x_user", "x_roles"].map(|name| name.parse().unwrap()).into(),
        skew: Duration::from_secs(60),
    }
}

#[test]
fn what_looks_like_a_header_is_known() {
    let of = |name: &str| lookalikes(&name.parse().unwrap()).map(|name| name.to_string()).collect::<Vec<_>>();
    assert_eq!(of("x-user"), ["x_user"]);
    assert_eq!(of("x-user-id"), ["x_user-id", "x-user_id", "x_user_id"]);
    assert_eq!((of("user").len(), of("a-b-c-d-e-f-g").len()), (0, 15));
    // It was the other way round that a client could send another header in place of ours.
    assert_eq!(of("x_user"), ["x-user"]);
    assert_eq!(of("x_user-id"), ["x-user-id", "x_user_id", "x-user_id"]);
}

fn claims() -> Value {
    json!({
        "iss": "https://accounts.example", "aud": "users", "exp": NOW + 300, "sub": "mallory's friend",
        "realm": {"roles": ["admin", "dev"], "deep": {"x": 1}}, "https://example.com/tier": "gold",
        "age": 7, "ok": true, "none": null,
    })
}

fn signed(algorithm: Algorithm, id: Option<&str>, claims: &Value, key: &EncodingKey) -> String {
    encode(&Header { kid: id.map(str::to_owned), ..Header::new(algorithm) }, claims, key).unwrap()
}

fn hs256(claims: &Value) -> String {
    signed(Algorithm::HS256, None, claims, &EncodingKey::from_secret(SECRET))
}

fn verify(token: &str, provider: &Provider, now: u64) -> Result<Verified, Flaw> {
    Token::parse(token.as_bytes())?.verify(provider, at(now))
}

#[test]
fn each_algorithm_is_verified_with_the_key_it_belongs_to() {
    let secret = || EncodingKey::from_secret(SECRET);
    let (p256, p384, ed) = (ec(Algorithm::ES256), ec(Algorithm::ES384), ed());
    for (algorithm, signer, key) in [
        (Algorithm::RS256, rsa().clone(), public("k", rsa(), Algorithm::RS256)),
        (Algorithm::RS384, rsa().clone(), public("k", rsa(), Algorithm::RS256)),
        (Algorithm::RS512, rsa().clone(), public("k", rsa(), Algorithm::RS256)),
        (Algorithm::PS256, rsa().clone(), public("k", rsa(), Algorithm::RS256)),
        (Algorithm::PS512, rsa().clone(), public("k", rsa(), Algorithm::RS256)),
        (Algorithm::ES256, p256.clone(), public("k", &p256, Algorithm::ES256)),
        (Algorithm::ES384, p384.clone(), public("k", &p384, Algorithm::ES384)),
        (Algorithm::EdDSA, ed.clone(), public("k", &ed, Algorithm::EdDSA)),
        (Algorithm::HS256, secret(), shared()),
        (Algorithm::HS384, secret(), shared()),
        (Algorithm::HS512, secret(), shared()),
    ] {
        let token = signed(algorithm, None, &claims(), &signer);
        let provider = provider(vec![key]);
        assert!(verify(&token, &provider, NOW).is_ok(), "{algorithm:?}");
        let mut forged = token.clone().into_bytes();
        // A bit of the signature that base64 does not drop.
        let at = forged.len() - 8;
        forged[at] = if forged[at] == b'A' { b'B' } else { b'A' };
        let forged = String::from_utf8(forged).unwrap();
        assert_eq!(verify(&forged, &provider, NOW), Err(Flaw::Signature), "{algorithm:?}");
    }
}

#[test]
fn what_a_token_says_of_its_algorithm_cannot_change_what_a_key_is_for() {
    let key = public("k", rsa(), Algorithm::RS256);
    let provider = provider(vec![key]);
    // Signed with what everyone knows of the key, in each form that a library might take for a secret.
    let jwk = Jwk::from_encoding_key(rsa(), Algorithm::RS256).unwrap();
    let jwk = serde_json::to_value(jwk).unwrap();
    for secret in [jwk.to_string(), jwk["n"].as_str().unwrap().to_owned()] {
        let confused = EncodingKey::from_secret(secret.as_bytes());
        let token = signed(Algorithm::HS256, Some("k"), &claims(), &confused);
        assert_eq!(verify(&token, &provider, NOW), Err(Flaw::Key));
    }
    let payload = hs256(&claims());
    let payload = payload.split('.').nth(1).unwrap();
    for header in [r#"{"alg":"none"}"#, r#"{"alg":"None"}"#, r#"{"alg":""}"#, r#"{"alg":"RS256 "}"#] {
        use base64::Engine;
        let header = base64::prelude::BASE64_URL_SAFE_NO_PAD.encode(header);
        assert_eq!(verify(&format!("{header}.{payload}."), &provider, NOW), Err(Flaw::Key), "{header}");
    }
}

#[test]
fn a_key_is_meant_by_its_name_or_has_none() {
    let (a, b) = (ec(Algorithm::ES256), ec(Algorithm::ES256));
    let of = |id, key: &EncodingKey| public(id, key, Algorithm::ES256);
    let token = |id| signed(Algorithm::ES256, id, &claims(), &b);
    for (keys, id, expected) in [
        (vec![of("a", &a), of("b", &b)], Some("b"), Ok(())),
        (vec![of("a", &a), of("b", &b)], Some("a"), Err(Flaw::Signature)),
        (vec![of("a", &a), of("b", &b)], Some("c"), Err(Flaw::Key)),
        (vec![of("a", &a), of("b", &b)], None, Ok(())),
        (vec![of("a", &a), of("", &b)], Some("c"), Ok(())),
        (vec![of("a", &a), of("a", &b)], Some("a"), Ok(())),
        (vec![of("a", &a)], None, Err(Flaw::Signature)),
        (vec![], None, Err(Flaw::Key)),
    ] {
        assert_eq!(verify(&token(id), &provider(keys), NOW).map(drop), expected);
    }
}

#[test]
fn what_is_no_token_is_malformed() {
    use base64::Engine;
    let token = hs256(&claims());
    let parts: Vec<&str> = token.split('.').collect();
    let encode = |text: &str| base64::prelude::BASE64_URL_SAFE_NO_PAD.encode(text);
    let critical = encode(r#"{"alg":"HS256","crit":["b64"],"b64":false}"#);
    let nothing = encode(r#"{"alg":"HS256","crit":null}"#);
    for text in [
        String::new(),
        "a".into(),
        "..".into(),
        parts[..2].join("."),
        format!("{token}.{}", parts[2]),
        format!("{token}="),
        format!(" {token}"),
        format!("{critical}.{}.{}", parts[1], parts[2]),
        format!("{nothing}.{}.{}", parts[1], parts[2]),
        format!("{}.{}.{}", parts[0], encode("[1]"), parts[2]),
        format!("{}.{}.{}", encode("{}"), parts[1], parts[2]),
        format!("{}.{}", token, "A".repeat(MAX_TOKEN)),
    ] {
        assert!(Token::parse(text.as_bytes()).is_err(), "{text}");
    }
}

#[test]
fn claims_are_told_in_words() {
    let claims = verify(&hs256(&claims()), &provider(vec![shared()]), NOW).unwrap();
    for (path, text) in [
        ("sub", Some("mallory's friend")),
        ("realm.roles", Some("admin,dev")),
        ("realm.deep.x", Some("1")),
        ("https://example.com/tier", Some("gold")),
        ("age", Some("7")),
        ("ok", Some("true")),
        ("none", None),
        ("realm", None),
        ("realm.none", None),
        ("sub.x", None),
    ] {
        assert_eq!(claims.claims().text(path).as_deref(), text, "{path}");
    }
    let told: Vec<_> =
        claims.headers().iter().map(|(name, value)| (name.as_str(), value.to_str().unwrap())).collect();
    assert_eq!(told, [("x-user", "mallory's friend"), ("x-roles", "admin,dev")]);
}

#[test]
fn a_claim_that_no_header_can_hold_is_not_told() {
    let mut claims = claims();
    claims["sub"] = "a\r\nx-admin: yes".into();
    let verified = verify(&hs256(&claims), &provider(vec![shared()]), NOW).unwrap();
    assert_eq!(verified.headers().iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(), ["x-roles"]);
}

/// Who may choose a name at the issuer was told as two groups, or as another user.
#[test]
fn a_claim_that_would_be_read_as_another_is_not_told() {
    for (claim, told) in [
        (json!(["dev", "ops"]), Some("dev,ops")),
        (json!(["dev,admin"]), None),
        (json!(["dev", " admin"]), None),
        (json!(["dev", ""]), None),
        (json!("last, first"), Some("last, first")),
        (json!(" root"), None),
        (json!("root\t"), None),
        (json!("ro ot"), Some("ro ot")),
    ] {
        let mut claims = claims();
        claims["sub"] = claim.clone();
        let verified = verify(&hs256(&claims), &provider(vec![shared()]), NOW).unwrap();
        assert_eq!(verified.claims().text("sub").as_deref(), told, "{claim}");
        let header = verified.headers().iter().find(|(name, _)| name == "x-user");
        assert_eq!(header.map(|(_, value)| value.to_str().unwrap()), told, "{claim}");
    }
}

proptest! {
    /// A token is accepted exactly if all the rules, written down one by one, hold.
    #[test]
    fn a_token_is_accepted_by_the_rules(
        issuer in prop::sample::select(vec!["https://accounts.example", "https://accounts.example/", "other"]),
        audience in prop::sample::select(vec![
            json!(null), json!("users"), json!("nobody"), json!(["nobody", "others"]), json!([]), json!(7),
        ]),
        expires in prop::option::of(NOW - 200..NOW + 200),
        before in prop::option::of(NOW - 200..NOW + 200),
        issued in prop::option::of(NOW - 200..NOW + 200),
        skew in prop::sample::select(vec![0_u64, 60]),
        anyone in any::<bool>(),
    ) {
        let mut claims = json!({"iss": issuer});
        for (name, value) in [("exp", &expires), ("nbf", &before), ("iat", &issued)] {
            if let Some(value) = value {
                claims[name] = (*value).into();
            }
        }
        if !audience.is_null() {
            claims["aud"] = audience.clone();
        }
        let mut provider = provider(vec![shared()]);
        provider.skew = Duration::from_secs(skew);
        if anyone {
            provider.audiences = Box::default();
        }
        let rules = [
            issuer == "https://accounts.example",
            expires.is_some_and(|expires| NOW < expires + skew),
            before.is_none_or(|before| before <= NOW + skew),
            issued.is_none_or(|issued| issued <= NOW + skew),
            anyone || audience == json!("users") || audience == json!(["nobody", "others"]),
        ];
        prop_assert_eq!(verify(&hs256(&claims), &provider, NOW).is_ok(), rules.iter().all(|rule| *rule));
    }
}

fn policy(source: &str, required: bool, providers: Vec<Provider>) -> PortPolicy {
    let policy = Policy { source: source.into(), required, providers: providers.into() };
    PortPolicy { policy: Arc::new(policy), marks: None }
}

fn head(lines: &str) -> Vec<u8> {
    format!("GET /a?x=1&t=q&y=2 HTTP/1.1\r\nhost: users\r\n{lines}\r\n").into_bytes()
}

fn admit<'g>(gate: &'g Gate, lines: &str) -> Result<Admission, Denied<'g>> {
    gate.admit(&Http1Head::new(&head(lines)), None, &mut Cache::default(), at(NOW))
}

fn flaw(gate: &Gate, lines: &str) -> Option<(String, Flaw)> {
    admit(gate, lines).err().map(|denied| (denied.policy.source.to_string(), denied.flaw))
}

#[test]
fn a_request_needs_what_its_policies_need_and_shows_nothing_else() {
    let token = hs256(&claims());
    let mut foreign = claims();
    foreign["iss"] = "other".into();
    let foreign = hs256(&foreign);
    let field = |token: &str| format!("Authorization: bearer {token}\r\n");
    let optional = Gate::new([policy("a", false, vec![provider(vec![shared()])])]);
    let required = Gate::new([policy("a", true, vec![provider(vec![shared()])])]);
    for gate in [&optional, &required] {
        assert_eq!(flaw(gate, &field(&token)), None);
        assert_eq!(flaw(gate, &field("x")), Some(("a".into(), Flaw::Malformed)));
        assert_eq!(flaw(gate, &field(&foreign)), Some(("a".into(), Flaw::Issuer)));
        let twice = format!("{}{}", field(&token), field(&token));
        assert_eq!(flaw(gate, &twice), Some(("a".into(), Flaw::Several)));
        let beside = format!("{}authorization: Basic abc\r\n", field(&token));
        assert_eq!(flaw(gate, &beside), Some(("a".into(), Flaw::Several)));
    }
    for none in ["", "authorization: Basic abc\r\n", "authorization: Bearer\r\n", "x-token: abc\r\n"] {
        assert_eq!(flaw(&optional, none), None);
        assert_eq!(flaw(&required, none), Some(("a".into(), Flaw::Missing)));
    }
    assert_eq!(optional.refuses_bytes().map(|policy| &*policy.source), None);
    assert_eq!(required.refuses_bytes().map(|policy| &*policy.source), Some("a"));
    // Policies add up: a token of either is accepted, and each that needs one needs its own.
    let other = || Provider { issuer: "other".into(), ..provider(vec![shared()]) };
    let both = |needed| {
        Gate::new([policy("a", false, vec![provider(vec![shared()])]), policy("b", needed, vec![other()])])
    };
    assert_eq!(flaw(&both(false), &field(&token)), None);
    assert_eq!(flaw(&both(true), &field(&token)), Some(("b".into(), Flaw::Missing)));
    assert_eq!(flaw(&both(true), &field(&foreign)), None);
    let refused = Gate::new([policy("a", true, Vec::new())]);
    assert_eq!(flaw(&refused, &field(&token)), Some(("a".into(), Flaw::Refused)));
}

#[test]
fn a_policy_of_a_rule_is_about_its_requests() {
    let marked = PortPolicy {
        marks: Some([b"m".as_slice().into()].into()),
        ..policy("a", true, vec![provider(vec![shared()])])
    };
    let gate = Gate::new([marked]);
    let bytes = head("");
    let asked = |mark: Option<&[u8]>| {
        gate.admit(&Http1Head::new(&bytes), mark, &mut Cache::default(), at(NOW))
            .map(drop)
            .map_err(|d| d.flaw)
    };
    assert_eq!(asked(Some(b"m")), Err(Flaw::Missing));
    assert_eq!((asked(Some(b"n")), asked(None)), (Ok(()), Ok(())));
    assert_eq!(gate.refuses_bytes().map(|policy| &*policy.source), None);
}

fn edited(gate: &Gate, lines: &str) -> String {
    let head = head(lines);
    let admission = gate.admit(&Http1Head::new(&head), None, &mut Cache::default(), at(NOW)).unwrap();
    if !admission.edits() {
        return String::from_utf8(head).unwrap();
    }
    let mut request = Http1Request::new(&head);
    admission.edit(&mut request).unwrap();
    let mut out = Vec::new();
    request.write(&mut out);
    String::from_utf8(out).unwrap()
}

#[test]
fn claims_are_told_by_us_alone() {
    let gate = Gate::new([policy("a", false, vec![provider(vec![shared()])])]);
    let forged = "X-User: root\r\nx_user: root\r\nx-roles: admin\r\nx-other: 1\r\n";
    let without = edited(&gate, forged);
    assert!(!without.contains("root") && !without.contains("roles") && without.contains("x-other: 1"));
    let with = edited(&gate, &format!("{forged}authorization: Bearer {}\r\n", hs256(&claims())));
    assert!(
        with.contains("x-user: mallory's friend\r\n") && with.contains("x-roles: admin,dev\r\n"),
        "{with}"
    );
    assert!(!with.contains("root"), "{with}");
    assert!(with.contains("Bearer"), "it is forwarded");
    assert_eq!(edited(&gate, "x-other: 1\r\n"), String::from_utf8(head("x-other: 1\r\n")).unwrap());
}

#[test]
fn a_token_that_is_not_forwarded_is_taken_out_of_its_place() {
    let stripped = |location| {
        let provider = Provider {
            locations: [location].into(),
            stripped: true,
            headers: Box::default(),
            ..provider(vec![shared()])
        };
        Gate::new([policy("a", true, vec![provider])])
    };
    let token = hs256(&claims());
    let header = edited(&stripped(bearer()), &format!("authorization: Bearer {token}\r\nx-a: 1\r\n"));
    assert_eq!(header, String::from_utf8(head("x-a: 1\r\n")).unwrap());
    let cookie = stripped(Location::Cookie("t".into()));
    assert_eq!(
        edited(&cookie, &format!("cookie: a=1; t={token}; tt=2\r\n")),
        String::from_utf8(head("cookie: a=1; tt=2\r\n")).unwrap()
    );
    assert_eq!(edited(&cookie, &format!("cookie: t={token}\r\n")), String::from_utf8(head("")).unwrap());
    let query = stripped(Location::Query("t".into()));
    let head = format!("GET /a?x=1&t={token}&y=2 HTTP/1.1\r\nhost: users\r\n\r\n");
    let admission =
        query.admit(&Http1Head::new(head.as_bytes()), None, &mut Cache::default(), at(NOW)).unwrap();
    let mut request = Http1Request::new(head.as_bytes());
    admission.edit(&mut request).unwrap();
    let mut out = Vec::new();
    request.write(&mut out);
    assert_eq!(String::from_utf8(out).unwrap(), "GET /a?x=1&y=2 HTTP/1.1\r\nhost: users\r\n\r\n");
}

#[test]
fn a_token_that_is_known_costs_no_signature_until_it_is_over() {
    let gate = Gate::new([policy("a", true, vec![provider(vec![shared()])])]);
    let bytes = head(&format!("authorization: Bearer {}\r\n", hs256(&claims())));
    let mut cache = Cache::default();
    let mut ask = |now| {
        let admitted = gate.admit(&Http1Head::new(&bytes), None, &mut cache, at(now));
        admitted.map(|admission| admission.verified).map_err(|denied| denied.flaw)
    };
    assert_eq!([ask(NOW), ask(NOW), ask(NOW + 359)], [Ok(1), Ok(0), Ok(0)]);
    assert_eq!(ask(NOW + 360), Err(Flaw::Expired));
}

#[test]
fn what_is_remembered_is_bounded_and_never_of_another_gate() {
    let gates = [0, 1].map(|_| Gate::new([policy("a", true, vec![provider(vec![shared()])])]));
    let mut cache = Cache::default();
    let mut ask = |gate: &Gate, user: usize| {
        let mut claims = claims();
        claims["sub"] = user.into();
        let bytes = head(&format!("authorization: Bearer {}\r\n", hs256(&claims)));
        gate.admit(&Http1Head::new(&bytes), None, &mut cache, at(NOW)).unwrap().verified
    };
    assert_eq!([ask(&gates[0], 0), ask(&gates[1], 0), ask(&gates[1], 0)], [1, 1, 0]);
    for user in 0..3000 {
        ask(&gates[0], user);
        assert_eq!(ask(&gates[1], 0), 0, "what is asked for stays");
    }
    assert!(cache.len() <= 2048);
}

/// Tokens that were asked for again weighed nothing, so that long ones took many times what they may.
#[test]
fn what_is_remembered_is_bounded_in_bytes_also_if_it_is_asked_for_again() {
    let verified = std::rc::Rc::new(verify(&hs256(&claims()), &provider(vec![shared()]), NOW).unwrap());
    let name = |nth: usize| {
        let mut digest = [0; 32];
        digest[..8].copy_from_slice(&nth.to_be_bytes());
        (digest, 0, 0, 0)
    };
    let mut cache = Cache::default();
    for nth in 0..1500 {
        cache.insert(name(nth), verified.clone(), 12 << 10);
        (nth.saturating_sub(400)..nth).for_each(|before| drop(cache.get(&name(before))));
        assert!(cache.weight() <= 4 << 20, "{nth}: {}", cache.weight());
    }
}
