use heddle_api::discovery::ResourceType;

use super::*;
use crate::agent::subscriptions::{ABSENT, IDLE};

fn fresh(now: Instant) -> Knowledge {
    let mut knowledge = Knowledge::new("mesh.local".parse().unwrap(), "shop", Addresses::default(), now);
    knowledge.connected(now);
    knowledge
}

fn name(text: &str) -> ServiceName {
    text.parse().unwrap()
}

fn resource<M: ResourceType>(name: &str, version: &str, message: &M) -> Resource {
    let value = message.encode_to_vec();
    let any = prost_types::Any { type_url: M::TYPE_URL.into(), value };
    Resource { name: name.into(), version: version.into(), resource: Some(any), aliases: Vec::new() }
}

fn users(address: &str) -> v1::Service {
    let endpoint = v1::Endpoint { id: "1".into(), address: address.into(), ..v1::Endpoint::default() };
    v1::Service {
        namespace: "shop".into(),
        name: "users".into(),
        endpoints: vec![endpoint],
        addresses: vec!["10.96.0.1".into()],
        ..v1::Service::default()
    }
}

fn push(resources: Vec<Resource>, removed: &[&str]) -> DeltaDiscoveryResponse {
    DeltaDiscoveryResponse {
        resources,
        removed_resources: removed.iter().map(ToString::to_string).collect(),
        ..DeltaDiscoveryResponse::default()
    }
}

fn found(snapshot: &Snapshot) -> Arc<Service> {
    match &snapshot.services[&name("shop/users")] {
        Lookup::Found(service) => service.clone(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_service_goes_from_pending_to_found_to_absent() {
    let now = Instant::now();
    let mut knowledge = fresh(now);
    assert_eq!(knowledge.want(Want::Service(name("shop/users")), now), Ok(true));
    assert!(matches!(knowledge.snapshot().services[&name("shop/users")], Lookup::Pending));
    let response = push(vec![resource("shop/users", "1", &users("10.0.0.1"))], &[]);
    let applied = knowledge.apply(Kind::Service, response, now);
    assert!(applied.changed && applied.shortfalls.is_empty());
    let snapshot = knowledge.snapshot();
    assert_eq!(found(&snapshot).endpoints.len(), 1);
    let synthetic: IpAddr = knowledge.synthetic.assign(&name("shop/users")).unwrap().into();
    for address in ["10.96.0.1".parse().unwrap(), synthetic] {
        assert_eq!(snapshot.addresses[&address], Lookup::Found(name("shop/users")));
    }
    assert!(knowledge.apply(Kind::Service, push(Vec::new(), &["shop/users"]), now).changed);
    let snapshot = knowledge.snapshot();
    assert!(matches!(snapshot.services[&name("shop/users")], Lookup::Absent));
    assert!(snapshot.addresses.is_empty());
    assert!(knowledge.expire(now + ABSENT));
    assert!(knowledge.snapshot().services.is_empty());
}

/// A pod's address that another pod gets must not keep the first one's identity.
#[test]
fn an_address_is_the_workload_that_has_it_now() {
    let now = Instant::now();
    let mut knowledge = fresh(now);
    let ip: IpAddr = "10.0.0.1".parse().unwrap();
    knowledge.want(Want::Address(ip), now).unwrap();
    let pod = |id: &str, account: &str| {
        let mut workload = users("10.0.0.1");
        workload.endpoints[0].id = id.into();
        workload.endpoints[0].identity = format!("spiffe://mesh.local/ns/shop/sa/{account}");
        workload.endpoints[0].intercepted = true;
        workload.name = account.into();
        let (namespace, name) = ("shop".into(), account.into());
        v1::Address { namespace, name, workload: Some(workload) }
    };
    for (version, account) in [("1", "users"), ("2", "orders")] {
        let response = push(vec![resource("10.0.0.1", version, &pod(account, account))], &[]);
        assert!(knowledge.apply(Kind::Address, response, now).changed);
        let snapshot = knowledge.snapshot();
        let mesh = snapshot.workloads[&ip].endpoints[0].mesh.clone().unwrap();
        assert_eq!((mesh.identity.account(), mesh.inbound), (account, None));
        assert!(snapshot.services.is_empty(), "nothing else is asked for");
    }
    knowledge.apply(Kind::Address, push(Vec::new(), &["10.0.0.1"]), now);
    assert!(knowledge.snapshot().workloads.is_empty());
}

#[test]
fn an_invalid_update_is_refused_by_path_and_the_last_good_stays() {
    let now = Instant::now();
    let mut knowledge = fresh(now);
    let _ = knowledge.want(Want::Service(name("shop/users")), now);
    let good = push(vec![resource("shop/users", "1", &users("10.0.0.1"))], &[]);
    knowledge.apply(Kind::Service, good, now);
    let before = found(&knowledge.snapshot());
    let bad = push(vec![resource("shop/users", "2", &users("nowhere"))], &[]);
    let applied = knowledge.apply(Kind::Service, bad, now);
    let [refused] = applied.shortfalls.as_slice() else { panic!("{applied:?}") };
    assert_eq!((refused.resource.as_str(), refused.refused), ("shop/users", true));
    assert!(refused.reason.starts_with("endpoints[0].address: "), "{refused:?}");
    assert!(!applied.changed);
    assert!(Arc::ptr_eq(&before, &found(&knowledge.snapshot())));
    knowledge.disconnected();
    let opening = knowledge.connected(now);
    let services = opening.iter().find(|change| change.kind == Kind::Service).unwrap();
    assert_eq!(services.versions["shop/users"], "1", "the refused version is not claimed");
}

/// A resource with a field that only a newer version has.
fn newer(version: &str, number: u32) -> DeltaDiscoveryResponse {
    let mut resource = resource("shop/users", version, &users("10.0.0.2"));
    let body = &mut resource.resource.as_mut().unwrap().value;
    prost::encoding::string::encode(number, &"new".to_owned(), body);
    push(vec![resource], &[])
}

#[test]
fn what_is_not_known_is_told_and_the_rest_is_in_force() {
    let now = Instant::now();
    let mut knowledge = fresh(now);
    let _ = knowledge.want(Want::Service(name("shop/users")), now);
    for _ in 0..2 {
        let applied = knowledge.apply(Kind::Service, newer("1", 999), now);
        let [told] = applied.shortfalls.as_slice() else { panic!("{applied:?}") };
        assert!(!told.refused && told.reason.ends_with("does not know: 999"), "{told:?}");
        assert_eq!(found(&knowledge.snapshot()).endpoints.len(), 1);
    }
    let opening = knowledge.connected(now);
    let services = opening.iter().find(|change| change.kind == Kind::Service).unwrap();
    assert!(services.versions.is_empty(), "the next control plane is told, too");
}

#[test]
fn nothing_is_made_of_a_resource_whose_vital_field_is_not_known() {
    let now = Instant::now();
    let mut knowledge = fresh(now);
    let _ = knowledge.want(Want::Service(name("shop/users")), now);
    knowledge.apply(Kind::Service, push(vec![resource("shop/users", "1", &users("10.0.0.1"))], &[]), now);
    let applied = knowledge.apply(Kind::Service, newer("2", 1000), now);
    assert!(applied.refused() && applied.shortfalls[0].reason.starts_with("1000: "), "{applied:?}");
    let address: IpAddr = [10, 0, 0, 1].into();
    assert_eq!(found(&knowledge.snapshot()).endpoints[0].address, address);
}

/// Who may write routes in a namespace could have kept all others from any news of a service.
#[test]
fn what_clients_of_other_namespaces_are_told_is_nothing_to_us() {
    let now = Instant::now();
    let mut knowledge = fresh(now);
    let _ = knowledge.want(Want::Service(name("shop/users")), now);
    let broken = |namespace: &str| {
        let mut service = users("10.0.0.1");
        service.ports.push(v1::ServicePort { port: 80, ..v1::ServicePort::default() });
        let set = v1::RouteSet { port: 80, client_namespace: namespace.into(), rules: None };
        service.routes.push(set);
        push(vec![resource("shop/users", namespace, &service)], &[])
    };
    let applied = knowledge.apply(Kind::Service, broken("bank"), now);
    assert!(applied.changed && applied.shortfalls.is_empty(), "{applied:?}");
    assert!(found(&knowledge.snapshot()).routes.is_empty());
    let applied = knowledge.apply(Kind::Service, broken("shop"), now);
    assert!(applied.refused() && applied.shortfalls[0].reason.contains("routes[0].rules"), "{applied:?}");
}

#[test]
fn unchanged_services_keep_their_arc_and_changed_ones_their_usage() {
    let now = Instant::now();
    let mut knowledge = fresh(now);
    let _ = knowledge.want(Want::Service(name("shop/users")), now);
    let version = |version, address| push(vec![resource("shop/users", version, &users(address))], &[]);
    knowledge.apply(Kind::Service, version("1", "10.0.0.1"), now);
    let first = found(&knowledge.snapshot());
    assert!(!knowledge.apply(Kind::Service, version("1", "10.0.0.1"), now).changed);
    assert!(Arc::ptr_eq(&first, &found(&knowledge.snapshot())));
    knowledge.apply(Kind::Service, version("2", "10.0.0.2"), now);
    let second = found(&knowledge.snapshot());
    assert!(!Arc::ptr_eq(&first, &second) && Arc::ptr_eq(&first.usage, &second.usage));
}

/// Users, with endpoints at the addresses of these names.
fn outside(version: &str, names: &[&str]) -> DeltaDiscoveryResponse {
    let dns = names.iter().map(|name| v1::DnsEndpoint { name: (*name).into(), ..Default::default() });
    let external = Some(v1::External { dns: dns.collect() });
    let message = v1::Service { external, endpoints: Vec::new(), ..users("10.0.0.1") };
    push(vec![resource("shop/users", version, &message)], &[])
}

fn ids(knowledge: &Knowledge) -> Option<Vec<String>> {
    match &knowledge.snapshot().services[&name("shop/users")] {
        Lookup::Found(service) => Some(service.endpoints.iter().map(|e| e.id.clone()).collect()),
        _ => None,
    }
}

fn at(last: u8) -> IpAddr {
    [192, 0, 2, last].into()
}

#[test]
fn a_service_comes_into_force_when_all_of_its_names_were_asked_for() {
    let now = Instant::now();
    let mut knowledge = fresh(now);
    let _ = knowledge.want(Want::Service(name("shop/users")), now);
    assert!(!knowledge.apply(Kind::Service, outside("1", &["a.example", "b.example"]), now).changed);
    assert_eq!(knowledge.names(), ["a.example".into(), "b.example".into()].into());
    assert!(!knowledge.resolved("a.example", vec![at(1), at(2)]));
    assert_eq!(ids(&knowledge), None);
    assert!(knowledge.resolved("b.example", Vec::new()), "nowhere is an answer");
    assert_eq!(ids(&knowledge).unwrap(), ["a.example/192.0.2.1", "a.example/192.0.2.2"]);
    assert!(knowledge.resolved("a.example", vec![at(2)]));
    assert_eq!(ids(&knowledge).unwrap(), ["a.example/192.0.2.2"]);
    assert!(!knowledge.resolved("c.example", vec![at(3)]));
}

#[test]
fn other_names_replace_the_old_ones_at_once_when_they_are_known() {
    let now = Instant::now();
    let mut knowledge = fresh(now);
    let _ = knowledge.want(Want::Service(name("shop/users")), now);
    knowledge.apply(Kind::Service, outside("1", &["a.example"]), now);
    knowledge.resolved("a.example", vec![at(1)]);
    found(&knowledge.snapshot()).usage.touch(7);
    knowledge.apply(Kind::Service, outside("2", &["b.example"]), now);
    assert_eq!(knowledge.names().len(), 2, "both are in use");
    assert!(knowledge.resolved("a.example", vec![at(2)]));
    assert_eq!(ids(&knowledge).unwrap(), ["a.example/192.0.2.2"]);
    assert!(knowledge.resolved("b.example", vec![at(3)]));
    assert_eq!(ids(&knowledge).unwrap(), ["b.example/192.0.2.3"]);
    assert_eq!(found(&knowledge.snapshot()).usage.last(), 7);
    assert_eq!(knowledge.names(), ["b.example".into()].into());
    knowledge.apply(Kind::Service, push(Vec::new(), &["shop/users"]), now);
    assert!(knowledge.names().is_empty());
}

#[test]
fn an_address_leads_to_its_service() {
    let now = Instant::now();
    let mut knowledge = fresh(now);
    let ip: IpAddr = "10.96.0.9".parse().unwrap();
    assert_eq!(knowledge.want(Want::Address(ip), now), Ok(true));
    let message = v1::Address { namespace: "shop".into(), name: "users".into(), workload: None };
    knowledge.apply(Kind::Address, push(vec![resource("10.96.0.9", "1", &message)], &[]), now);
    let snapshot = knowledge.snapshot();
    assert_eq!(snapshot.addresses[&ip], Lookup::Found(name("shop/users")));
    assert!(matches!(snapshot.services[&name("shop/users")], Lookup::Pending));
    assert!(knowledge.changes().iter().any(|change| change.subscribe == ["shop/users"]));
}

#[test]
fn synthetic_addresses_are_answered_without_discovery() {
    let now = Instant::now();
    let mut knowledge = fresh(now);
    let ip: IpAddr = knowledge.synthetic.assign(&name("shop/users")).unwrap().into();
    assert_eq!(knowledge.want(Want::Address(ip), now), Ok(true));
    assert_eq!(knowledge.snapshot().addresses[&ip], Lookup::Found(name("shop/users")));
    let changes = knowledge.changes();
    assert_eq!((changes.len(), changes[0].kind), (1, Kind::Service));
    assert!(knowledge.expire(now + IDLE));
    assert!(knowledge.snapshot().addresses.is_empty());
}

#[test]
fn use_by_workers_keeps_a_service_and_the_permanent_ones_are_never_taken_away() {
    let now = Instant::now();
    let mut knowledge = fresh(now);
    let _ = knowledge.want(Want::Service(name("shop/users")), now);
    let response = push(vec![resource("shop/users", "1", &users("10.0.0.1"))], &[]);
    knowledge.apply(Kind::Service, response, now);
    let later = now + IDLE - Duration::from_secs(1);
    found(&knowledge.snapshot()).usage.touch(uptime(later));
    assert!(!knowledge.expire(now + IDLE + Duration::from_secs(5)));
    let message = v1::Mesh { trust_domain: "mesh.local".into(), egress: 0, cluster_domain: "c".into() };
    knowledge.apply(Kind::Mesh, push(vec![resource("mesh", "1", &message)], &[]), now);
    assert!(!knowledge.apply(Kind::Mesh, push(Vec::new(), &["mesh"]), now).changed);
    assert!(knowledge.snapshot().mesh.is_some());
}
