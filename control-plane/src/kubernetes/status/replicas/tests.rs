use serde_json::json;

use super::*;
use crate::source::ObjectName;

const OWN: &str = "own";

fn key(name: &str) -> Key {
    ("TrafficPolicy", ObjectName { namespace: "shop".into(), name: name.into() })
}

fn standing(policies: &[(&str, i64, usize, usize)]) -> Standing {
    let policy = |(name, generation, sidecars, acknowledged): &(&str, i64, usize, usize)| {
        let count = Count { sidecars: *sidecars, acknowledged: *acknowledged, ..Count::default() };
        (key(name), (*generation, count))
    };
    policies.iter().map(policy).collect()
}

fn answer(replica: &str, revision: u64, policies: &[(&str, i64, usize, usize)]) -> Answer {
    Answer { replica: replica.into(), revision, policies: Arc::new(standing(policies)) }
}

fn at(names: &[&str]) -> Places {
    let place = |name: &&str| ((*name).to_owned(), BTreeSet::from([([10, 0, 0, 1], 7200).into()]));
    names.iter().map(place).collect()
}

fn sum(told: &Told, own: &Standing, name: &str) -> Count {
    told.add_to(own)[&key(name)].1
}

#[test]
fn the_sidecars_of_all_replicas_are_added_up() {
    let (mut others, now) = (Others::default(), Instant::now());
    let own = standing(&[("users", 3, 2, 2), ("new", 1, 0, 0)]);
    others.expect(at(&["a", "b", "me"]), now);
    assert!(!others.told(now).complete, "nobody has said anything yet");
    others.answered("a", answer("a-1", 1, &[("users", 3, 4, 3), ("new", 1, 1, 1)]), OWN, now);
    others.answered("b", answer("b-1", 1, &[("users", 2, 9, 9)]), OWN, now);
    others.answered("me", answer(OWN, 7, &[("users", 3, 2, 2)]), OWN, now);
    let told = others.told(now);
    assert!(told.complete);
    let expected = Count { sidecars: 6, acknowledged: 5, behind: 1, ..Count::default() };
    assert_eq!(sum(&told, &own, "users"), expected, "what is said of another version does not count");
    assert_eq!(sum(&told, &own, "new").behind, 1, "b has not heard of it");
    let asked: Vec<String> = others.to_ask().into_iter().map(|(name, ..)| name).collect();
    assert_eq!(asked, ["a", "b"], "nobody asks itself twice");
}

#[test]
fn a_replica_that_says_nothing_is_not_left_out() {
    let (mut others, start) = (Others::default(), Instant::now());
    let own = standing(&[("users", 3, 2, 2)]);
    others.expect(at(&["a"]), start);
    others.answered("a", answer("a-1", 1, &[("users", 3, 4, 4)]), OWN, start);
    let soon = start + PATIENCE / 2;
    assert_eq!(sum(&others.told(soon), &own, "users").sidecars, 6, "it may come back any moment");
    let late = start + PATIENCE;
    let expected = Count { sidecars: 2, acknowledged: 2, silent: 1, ..Count::default() };
    assert_eq!(sum(&others.told(late), &own, "users"), expected);
    // One that was never heard: as long as it may be about to answer, nothing is said.
    others.expect(at(&["a", "b"]), late);
    assert!(!others.told(late).complete);
    assert!(others.told(late + PATIENCE).complete);
    assert_eq!(sum(&others.told(late + PATIENCE), &own, "users").silent, 2);
    // Those that are gone are missed by nobody.
    others.expect(Places::new(), late);
    let told = others.told(late);
    assert_eq!((told.complete, sum(&told, &own, "users")), (true, own[&key("users")].1));
}

#[test]
fn the_same_answers_are_the_same() {
    let (mut others, now) = (Others::default(), Instant::now());
    others.expect(at(&["a"]), now);
    others.answered("a", answer("a-1", 1, &[]), OWN, now);
    let first = others.told(now);
    assert!(first.is(&others.told(now)));
    assert!(!first.is(&others.told(now + PATIENCE)));
    others.answered("a", answer("a-1", 2, &[]), OWN, now);
    assert!(!first.is(&others.told(now)));
    // A restarted one counts from the beginning.
    others.answered("a", answer("a-2", 1, &[]), OWN, now);
    assert!(!first.is(&others.told(now)));
}

#[test]
fn replicas_are_the_endpoints_of_the_service() {
    let slice = |name: &str, labels: serde_json::Value, endpoints: serde_json::Value| {
        let slice: EndpointSlice = serde_json::from_value(json!({
            "metadata": {"name": name, "namespace": "heddle-system", "labels": labels},
            "addressType": "IPv4",
            "endpoints": endpoints,
            "ports": [{"name": "webhook", "port": 7210}, {"name": "discovery", "port": 7200}],
        }))
        .unwrap();
        slice
    };
    let ours = json!({"kubernetes.io/service-name": "heddle-control-plane"});
    let pod = |address: &str, name: &str, serving: bool| {
        json!({"addresses": [address], "conditions": {"ready": false, "serving": serving},
               "targetRef": {"kind": "Pod", "name": name}})
    };
    let four = json!([pod("10.0.0.1", "a", true), pod("10.0.0.2", "b", false), {"addresses": ["10.0.0.9"]}]);
    let slices = [
        slice("four", ours.clone(), four),
        slice("six", ours, json!([pod("fd00::1", "a", true)])),
        slice("foreign", json!({"kubernetes.io/service-name": "users"}), json!([pod("10.0.0.3", "c", true)])),
    ];
    let found = places(slices.iter(), "heddle-system");
    let address = |text: &str| text.parse::<SocketAddr>().unwrap();
    let expected = Places::from([
        ("10.0.0.9:7200".to_owned(), BTreeSet::from([address("10.0.0.9:7200")])),
        ("a".to_owned(), BTreeSet::from([address("10.0.0.1:7200"), address("[fd00::1]:7200")])),
    ]);
    assert_eq!(found, expected);
    assert!(places(slices.iter(), "elsewhere").is_empty());
}
