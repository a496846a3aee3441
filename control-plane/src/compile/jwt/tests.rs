use heddle_api::discovery::v1;

use super::super::tests::{model, model_after, model_in_cluster, model_with_keys, service, workload};
use crate::keys::{Found, KeyPlace};
use crate::model::{InForce, Model};

const SHOP: &str = "apiVersion: v1
kind: Service
metadata: {name: users, namespace: shop}
spec:
  ports: [{name: http, port: 80, targetPort: http}, {name: admin, port: 81, targetPort: admin}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: users, namespace: shop}
spec:
  parentRefs: [{group: '', kind: Service, name: users, port: 80}]
  rules:
  - {backendRefs: [{name: users, port: 80}], matches: [{path: {type: PathPrefix, value: /a}}]}
  - {name: b, backendRefs: [{name: users, port: 81}], matches: [{path: {type: PathPrefix, value: /b}}]}
---
apiVersion: v1
kind: Secret
metadata: {name: s, namespace: shop}
stringData: {key: 'a secret of thirty-two bytes and a few', short: 'hush'}
---
";

const USERS: &str = "targetRefs: [{group: '', kind: Service, name: users}]";
const SHARED: &str = "{name: shared, issuer: i, hmacSecretRef: {name: s, key: key}}";
const PUBLIC: &str = "{name: public, issuer: i, audiences: [users], jwks: {inline: '{\"keys\":[{\"kty\":\"OKP\",\"crv\":\"Ed25519\",\"kid\":\"k\",\"x\":\"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA\"}]}'}, claimsToHeaders: [{claim: sub, header: X-User}]}";

fn policy(name: &str, rest: &str, providers: &str) -> String {
    format!(
        "apiVersion: heddle.dev/v1alpha1\nkind: JwtPolicy\nmetadata: {{name: {name}, namespace: shop}}\nspec:\n  {rest}\n  providers: [{providers}]\n---\n"
    )
}

fn policies_of(text: &str) -> (Vec<v1::JwtPolicy>, Model) {
    let mut users = workload("shop/users", "users-1", &[("http", 8080), ("admin", 8081)]);
    users.labels.insert("app".into(), "users".into());
    let model = model(text, std::slice::from_ref(&users));
    (model.workload_for(&users).jwt_policies, model)
}

fn scopes(policy: &v1::JwtPolicy) -> Vec<(u32, &str)> {
    policy.scopes.iter().map(|scope| (scope.port, scope.mark.as_str())).collect()
}

fn unresolved(model: &Model, kind: &str) -> Vec<String> {
    model.statuses.iter().find(|status| status.kind == kind).unwrap().unresolved.clone()
}

#[test]
fn a_policy_reaches_the_workloads_that_it_names_with_its_keys() {
    let port = "targetRefs: [{group: '', kind: Service, name: users, sectionName: admin}]";
    let selected = "required: false\n  selector: {matchLabels: {app: users}}";
    let other = "selector: {matchLabels: {app: other}}";
    let text = [
        SHOP,
        &policy("all", USERS, PUBLIC),
        &policy("port", port, SHARED),
        &policy("selected", selected, PUBLIC),
        &policy("z-other", other, PUBLIC),
    ];
    let (policies, model) = policies_of(&text.concat());
    let names: Vec<_> = policies.iter().map(|p| (p.source.as_str(), p.required)).collect();
    assert_eq!(names, [("shop/all", true), ("shop/port", true), ("shop/selected", false)]);
    assert_eq!(scopes(&policies[0]), [(8080, ""), (8081, "")]);
    assert_eq!(scopes(&policies[1]), [(8081, "")]);
    assert_eq!(scopes(&policies[2]), [(0, "")]);
    let provider = &policies[0].providers[0];
    assert_eq!(
        (provider.audiences.as_slice(), provider.headers[0].name.as_str()),
        (["users".to_owned()].as_slice(), "x-user")
    );
    assert_eq!((provider.keys[0].id.as_str(), provider.keys[0].algorithms.len()), ("k", 2));
    let shared = &policies[1].providers[0].keys[0];
    assert_eq!(shared.algorithms, ["HS256"]);
    assert!(!format!("{shared:?}").contains("secret of"), "{shared:?}");
    assert_eq!(unresolved(&model, "JwtPolicy"), [] as [&str; 0]);
}

#[test]
fn a_rule_is_protected_at_its_backends_by_its_mark() {
    let rule =
        "targetRefs: [{group: gateway.networking.k8s.io, kind: HTTPRoute, name: users, sectionName: b}]";
    let (policies, model) = policies_of(&[SHOP, &policy("rule", rule, PUBLIC)].concat());
    assert_eq!(scopes(&policies[0]), [(8081, "HTTPRoute/shop/users/b")]);
    let users = service(&model, "shop/users");
    let Some(v1::route_set::Rules::Http(rules)) = &users.routes[0].rules else { panic!() };
    assert_eq!((rules.rules[0].mark.as_str(), rules.rules[1].mark.as_str()), ("", "HTTPRoute/shop/users/b"));
}

#[test]
fn what_cannot_be_verified_is_told_and_accepts_nothing() {
    for (provider, told) in [
        ("{name: a, issuer: i, hmacSecretRef: {name: s, key: none}}", "Secret shop/s none"),
        (
            "{name: a, issuer: i, hmacSecretRef: {name: s, key: short}}",
            "Secret shop/s short: shorter than 32 bytes",
        ),
        (
            "{name: a, issuer: i, jwks: {secretRef: {name: s, key: key}}}",
            "Secret shop/s key: is no JSON Web Key set",
        ),
        ("{name: a, issuer: i, jwks: {url: 'https://a/'}}", "key set https://a/: not read as yet"),
    ] {
        let (policies, model) = policies_of(&[SHOP, &policy("a", USERS, provider)].concat());
        let provider = &policies[0].providers[0];
        assert_eq!((provider.keys.len(), provider.keys_pending), (0, told.contains("https")));
        assert!(unresolved(&model, "JwtPolicy")[0].starts_with(told), "{:?}", model.statuses);
        assert!(told.replace("key set ", "").starts_with(&provider.keys_from), "{provider:?}");
    }
}

/// A policy of a cluster could have the control plane read its own files, such as one that never ends, and
/// ask what listens on its own machine.
#[test]
fn a_policy_of_a_cluster_reaches_no_files_and_no_loopback_addresses() {
    for (jwks, in_folder, why) in [
        ("file: dev/stdin", "not read as yet", "a policy of a cluster has no files beside it"),
        (
            "url: 'http://127.0.0.1:7290/statuses'",
            "not read as yet",
            "for a policy of a cluster keys are fetched by https:// alone",
        ),
        (
            "url: 'https://127.0.0.1:7200/'",
            "not read as yet",
            "the host is the control plane's own machine, where nothing is for policies of a cluster",
        ),
        ("url: 'https://a/'", "not read as yet", "not read as yet"),
    ] {
        let provider = format!("{{name: a, issuer: i, jwks: {{{jwks}}}}}");
        let text = [SHOP, &policy("a", USERS, &provider)].concat();
        for (model, told) in [(policies_of(&text).1, in_folder), (model_in_cluster(&text), why)] {
            let unresolved = unresolved(&model, "JwtPolicy");
            assert!(unresolved[0].ends_with(told), "{unresolved:?} / {told}");
            assert_eq!(model.wanted_keys.len(), usize::from(told == "not read as yet"), "{unresolved:?}");
        }
    }
}

/// The control plane is no workload, so it cannot get keys from one that takes the mesh's TLS alone; "it cannot be
/// reached" told nobody why.
#[test]
fn keys_at_a_service_of_the_mesh_are_told_to_be_out_of_reach() {
    let url = "https://users.shop.svc.cluster.local/keys";
    let place = KeyPlace::Url(url.into());
    let found = Found { keys: None, error: Some("it cannot be reached".into()) };
    let found = [(place, found)].into();
    let provider = format!("{{name: a, issuer: i, jwks: {{url: '{url}'}}}}");
    let text = [SHOP, &policy("a", USERS, &provider)].concat();
    let users = workload("shop/users", "users-1", &[("http", 8080)]);
    for (registered, told) in [(vec![users], true), (Vec::new(), false)] {
        let model = model_with_keys(&text, &registered, &found);
        let unresolved = unresolved(&model, "JwtPolicy");
        assert_eq!(unresolved[0].contains("shop/users is in the mesh"), told, "{unresolved:?}");
        assert!(unresolved[0].contains("it cannot be reached"), "{unresolved:?}");
    }
}

#[test]
fn a_refused_policy_keeps_its_last_good_version_or_lets_nothing_pass() {
    let gateway = "targetRefs: [{group: '', kind: Service, name: users}, {group: gateway.networking.k8s.io, kind: Gateway, name: edge}]";
    let bad = [SHOP, &policy("a", gateway, PUBLIC)].concat();
    let (policies, model) = policies_of(&bad);
    assert!(policies[0].required && policies[0].providers.is_empty());
    assert_eq!(scopes(&policies[0]), [(8080, ""), (8081, "")]);
    let status = model.statuses.iter().find(|status| status.kind == "JwtPolicy").unwrap();
    assert_eq!(
        (status.refusals[0].path.as_str(), status.in_force),
        ("spec.targetRefs[1].kind", InForce::Nothing)
    );
    let users = workload("shop/users", "users-1", &[("http", 8080), ("admin", 8081)]);
    let good = model_of(&[SHOP, &policy("a", USERS, PUBLIC)].concat(), &users);
    let after = model_after(&good, &bad, std::slice::from_ref(&users));
    assert_eq!(after.workload_for(&users).jwt_policies[0].providers.len(), 1);
}

fn model_of(text: &str, users: &crate::model::Registration) -> Model {
    model(text, std::slice::from_ref(users))
}

#[test]
fn a_secret_that_breaks_keeps_the_keys_that_were_good() {
    let secret = |value: &str| {
        format!(
            "apiVersion: v1\nkind: Secret\nmetadata: {{name: k, namespace: shop}}\nstringData: {{jwks: '{value}'}}\n---\n"
        )
    };
    let set = "{\"keys\":[{\"kty\":\"OKP\",\"crv\":\"Ed25519\",\"x\":\"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA\"}]}";
    let tokens = policy("a", USERS, "{name: a, issuer: i, jwks: {secretRef: {name: k, key: jwks}}}");
    let users = workload("shop/users", "users-1", &[("http", 8080)]);
    let good = model_of(&[SHOP, &secret(set), &tokens].concat(), &users);
    let keys = |model: &Model| model.workload_for(&users).jwt_policies[0].providers[0].keys.len();
    assert_eq!(keys(&good), 1);
    let broken = model_after(&good, &[SHOP, &secret("hush"), &tokens].concat(), std::slice::from_ref(&users));
    assert_eq!(keys(&broken), 1);
    assert!(unresolved(&broken, "JwtPolicy")[0].contains("is no JSON Web Key set"));
    let gone = model_after(&broken, &[SHOP, &tokens].concat(), std::slice::from_ref(&users));
    assert_eq!(keys(&gone), 0, "one that is taken away is taken away");
}

#[test]
fn clients_verify_a_canarys_claim_but_never_learn_a_secret() {
    let canary = "apiVersion: heddle.dev/v1alpha1\nkind: TrafficPolicy\nmetadata: {name: canary, namespace: shop}\nspec:\n  targetRefs: [{group: gateway.networking.k8s.io, kind: HTTPRoute, name: users}]\n  canary: {by: {claim: sub}}\n---\n";
    let providers = |text: &str| {
        let model = policies_of(text).1;
        let users = service(&model, "shop/users");
        let Some(v1::route_set::Rules::Http(rules)) = &users.routes[0].rules else { panic!() };
        let Some(v1::canary::By::Claim(claim)) = rules.rules[0].canary.clone().unwrap().by else { panic!() };
        let names: Vec<String> = claim.providers.iter().map(|provider| provider.name.clone()).collect();
        (names, unresolved(&model, "TrafficPolicy"))
    };
    let both = [SHARED, ", ", PUBLIC].concat();
    let (names, told) = providers(&[SHOP, canary, &policy("a", USERS, &both)].concat());
    assert_eq!((names, told.len()), (vec!["public".to_owned()], 0));
    let (names, told) = providers(&[SHOP, canary].concat());
    assert_eq!((names.len(), told), (0, vec!["JwtPolicy for HTTPRoute shop/users".to_owned()]));
}
