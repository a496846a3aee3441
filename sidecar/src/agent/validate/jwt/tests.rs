use super::super::workload;
use super::*;

fn wire() -> v1::JwtPolicy {
    let scope = |port, mark: &str| v1::JwtScope { port, mark: mark.into() };
    let header = v1::JwtHeader { name: "authorization".into(), prefix: "Bearer ".into() };
    v1::JwtPolicy {
        source: "shop/tokens".into(),
        scopes: vec![scope(8080, ""), scope(8081, "a")],
        required: true,
        providers: vec![v1::JwtProvider {
            name: "accounts".into(),
            issuer: "https://accounts.example".into(),
            keys: vec![v1::JwtKey {
                id: "k".into(),
                algorithms: vec!["HS256".into()],
                key: Some(v1::jwt_key::Key::Secret(vec![7; 32])),
            }],
            locations: vec![v1::JwtLocation { location: Some(v1::jwt_location::Location::Header(header)) }],
            headers: vec![v1::ClaimHeader { claim: "sub".into(), name: "x-user".into() }],
            clock_skew: Some(prost_types::Duration { seconds: 60, nanos: 0 }),
            keys_from: "https://accounts.example/keys".into(),
            ..v1::JwtProvider::default()
        }],
    }
}

fn own(policies: Vec<v1::JwtPolicy>, before: Option<&Workload>) -> Result<Workload, String> {
    let message = v1::Workload {
        namespace: "shop".into(),
        service: "users".into(),
        jwt_policies: policies,
        ..v1::Workload::default()
    };
    workload(&message, before).map_err(|e| e.to_string())
}

#[test]
fn a_policy_is_taken_over_for_each_port() {
    let of = |own: &Workload, port| own.gates.at(port).map(|gate| gate.policies().len());
    let some = own(vec![wire()], None).unwrap();
    assert_eq!([8080, 8081, 80].map(|port| of(&some, port)), [Some(1), Some(1), None]);
    assert!(some.gates.at(8081).unwrap().policies()[0].marks.is_some());
    let mut every = wire();
    (every.source, every.scopes) = ("shop/all".into(), vec![v1::JwtScope::default()]);
    let both = own(vec![wire(), every], None).unwrap();
    assert_eq!([8080, 8081, 80].map(|port| of(&both, port)), [Some(2), Some(2), Some(1)]);
    assert!(own(Vec::new(), None).unwrap().gates.at(80).is_none());
}

#[test]
fn what_did_not_change_is_kept() {
    let before = own(vec![wire()], None).unwrap();
    let same = own(vec![wire()], Some(&before)).unwrap();
    assert!(Arc::ptr_eq(same.gates.at(8080).unwrap(), before.gates.at(8080).unwrap()));
    let mut other = wire();
    other.required = false;
    let other = own(vec![other], Some(&before)).unwrap();
    assert!(!Arc::ptr_eq(other.gates.at(8080).unwrap(), before.gates.at(8080).unwrap()));
}

/// A control plane that has just started has not read the issuers' keys yet.
#[test]
fn keys_that_are_not_read_as_yet_are_those_of_before() {
    let before = own(vec![wire()], None).unwrap();
    let mut pending = wire();
    (pending.providers[0].keys, pending.providers[0].keys_pending) = (Vec::new(), true);
    let keys = |own: &Workload| own.gates.at(8080).unwrap().policies()[0].policy.providers[0].keys.len();
    let after = own(vec![pending.clone()], Some(&before)).unwrap();
    assert_eq!(keys(&after), 1);
    assert_eq!(keys(&own(vec![pending.clone()], Some(&after)).unwrap()), 1);
    assert_eq!(keys(&own(vec![pending.clone()], None).unwrap()), 0);
    let mut other = pending.clone();
    other.providers[0].issuer = "other".into();
    assert_eq!(keys(&own(vec![other], Some(&before)).unwrap()), 0, "of another issuer");
    // A place was changed because its keys were stolen, and they stayed in force for as long as the new one was away.
    let mut moved = pending.clone();
    moved.providers[0].keys_from = "https://accounts.example/new".into();
    assert_eq!(keys(&own(vec![moved], Some(&before)).unwrap()), 0, "of another place");
    let mut older = wire();
    older.providers[0].keys_from.clear();
    let before = own(vec![older], None).unwrap();
    assert_eq!(keys(&own(vec![pending], Some(&before)).unwrap()), 1, "nobody said where they came from");
}

#[test]
fn what_cannot_be_is_refused_by_its_path() {
    type Change = fn(&mut v1::JwtPolicy);
    let inner = "jwt_policies[0].providers[0].";
    let cases: [(Change, &str); 13] = [
        (|p| p.source.clear(), "jwt_policies[0].source: "),
        (|p| p.scopes[1].port = 65536, "jwt_policies[0].scopes[1].port: "),
        (|p| p.providers[0].name.clear(), "name: "),
        (|p| p.providers[0].issuer.clear(), "issuer: "),
        (|p| p.providers[0].keys[0].key = None, "keys[0].key: "),
        (|p| p.providers[0].keys[0].algorithms = vec!["none".into()], "keys[0].key: "),
        (|p| p.providers[0].keys[0].algorithms.clear(), "keys[0].key: "),
        (|p| p.providers[0].keys[0].key = Some(v1::jwt_key::Key::Secret(vec![7; 31])), "keys[0].key: "),
        (|p| p.providers[0].keys = vec![p.providers[0].keys[0].clone(); MAX_KEYS + 1], "keys: "),
        (|p| p.providers[0].locations.clear(), "locations: "),
        (|p| p.providers[0].locations[0].location = None, "locations[0].location: "),
        (|p| p.providers[0].headers[0].name = "heddle-x".into(), "headers[0].name: "),
        (|p| p.providers[0].headers[0].claim.clear(), "headers[0].claim: "),
    ];
    for (change, path) in cases {
        let mut message = wire();
        change(&mut message);
        let expected = if path.starts_with("jwt") { path.to_owned() } else { format!("{inner}{path}") };
        let error = own(vec![message], None).unwrap_err();
        assert!(error.starts_with(&expected), "{error} / {expected}");
    }
    let twice = own(vec![wire(), wire()], None).unwrap_err();
    assert!(twice.starts_with("jwt_policies[1].source: "), "{twice}");
}

/// A canary's users stayed where they were, until a control plane started anew and told of no keys.
#[test]
fn canaries_keep_their_keys_as_well() {
    let set = |pending: bool| {
        let mut provider = wire().providers.remove(0);
        if pending {
            (provider.keys, provider.keys_pending) = (Vec::new(), true);
        }
        let claim = v1::ClaimCanary { claim: "sub".into(), providers: vec![provider] };
        let canary = v1::Canary { by: Some(v1::canary::By::Claim(claim)) };
        let rule = v1::HttpRule { canary: Some(canary), ..v1::HttpRule::default() };
        let rules = v1::route_set::Rules::Http(v1::HttpRoutes { rules: vec![rule] });
        v1::RouteSet { port: 80, client_namespace: String::new(), rules: Some(rules) }
    };
    let before = PortRoutes {
        port: 80,
        client_namespace: None,
        encoded: set(false).encode_to_vec().into(),
        table: Arc::new(crate::routing::Table::Tcp(Arc::default())),
    };
    let mut told = set(true);
    keep_keys(&mut told, &[]);
    assert_eq!(told, set(true), "nothing is known");
    let mut moved = told.clone();
    canaries(&mut moved).for_each(|claim| claim.providers[0].keys_from = "https://a/".into());
    let unchanged = moved.clone();
    keep_keys(&mut moved, std::slice::from_ref(&before));
    assert_eq!(moved, unchanged, "keys of another place");
    keep_keys(&mut told, &[before]);
    assert_eq!(told, set(false), "so that nothing is compiled again");
}
