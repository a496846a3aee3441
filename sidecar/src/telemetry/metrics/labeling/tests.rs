use std::time::Duration;

use http::Request;
use http::request::Parts;
use proptest::prelude::*;

use super::super::{Direction, Outcome, Tls};
use super::vocabulary::FORGOTTEN_AFTER;
use super::*;

fn head(fields: &[(&str, &[u8])]) -> Parts {
    let request =
        fields.iter().fold(Request::get("/"), |request, (name, value)| request.header(*name, *value));
    request.body(()).expect("it is a request").into_parts().0
}

fn header(label: &str, field: &str, vocabulary: &Arc<Vocabulary>) -> AddedLabel {
    let name = HeaderName::try_from(field).expect("it is a name");
    let source = Source::Header { name, absent: "unknown".into(), vocabulary: vocabulary.clone() };
    AddedLabel { name: label.into(), source }
}

fn labeling(added: &[AddedLabel]) -> Arc<Labeling> {
    Arc::new(Labeling { added: added.into(), removes_peer: false, removes_route: false })
}

fn standard(route: &str) -> RequestLabels {
    RequestLabels {
        direction: Direction::Inbound,
        service: "users".into(),
        namespace: "shop".into(),
        route: route.into(),
        peer: "spiffe://mesh/ns/shop/sa/web".into(),
        tls: Tls::Mutual,
        added: None,
    }
}

/// A worker and what its requests are counted as.
struct Worker {
    registry: Registry,
    shard: Shard,
    labeler: Rc<Labeler>,
}

impl Worker {
    fn new(registry: &Registry, labeling: &Arc<Labeling>) -> Self {
        let labeler = Rc::new(Labeler::new(labeling.clone(), registry));
        Self { registry: registry.clone(), shard: registry.shard(), labeler }
    }

    fn serve(&self, head: &Parts) {
        let standard = self.shard.requests(&standard("default"));
        let metrics = self.labeler.read(Some(head)).metrics(&standard, &self.shard);
        metrics.begin().finish(Outcome { code: 200, ..Outcome::default() }, Duration::from_millis(1));
    }

    /// The value under which a request with this one would be counted.
    fn label(&self, value: &str) -> Arc<str> {
        let ids = self.labeler.read(Some(&head(&[("x-tenant", value.as_bytes())]))).ids;
        let added = self.labeler.labels(ids, &standard("default")).added;
        added.expect("there is one label")[0].1.clone()
    }

    fn sweep(&self, now: Instant) {
        self.labeler.sweep(now);
        self.shard.sweep();
    }

    /// The sum of all samples of a metric with these labels.
    fn value(&self, name: &str, labels: &[&str]) -> u64 {
        let text = self.registry.encode();
        let samples = text.lines().filter(|line| line.starts_with(&format!("{name}{{")));
        let samples = samples.filter(|line| labels.iter().all(|label| line.contains(label)));
        samples
            .map(|line| line.rsplit(' ').next().and_then(|value| value.parse::<u64>().ok()).unwrap_or(0))
            .sum()
    }
}

const TOTAL: &str = "heddle_requests_total";
const OVERFLOWS: &str = "heddle_metric_label_overflow_total";

#[test]
fn requests_are_counted_under_what_they_say() {
    let vocabulary = Arc::new(Vocabulary::new(Admits::First(10)));
    let fixed = AddedLabel { name: "cell".into(), source: Source::Value("eu\"1".into()) };
    let route = AddedLabel { name: "rule".into(), source: Source::Route };
    let worker =
        Worker::new(&Registry::new(), &labeling(&[header("tenant", "x-tenant", &vocabulary), fixed, route]));
    worker.serve(&head(&[("x-tenant", b"acme"), ("x-tenant", b"second")]));
    worker.serve(&head(&[("x-tenant", b"acme")]));
    worker.serve(&head(&[("x-tenant", b"")]));
    worker.serve(&head(&[]));
    let all = r#"cell="eu\"1",rule="default"}"#;
    assert_eq!(worker.value(TOTAL, &[r#"tenant="acme""#, all]), 2);
    assert_eq!(worker.value(TOTAL, &[r#"tenant="unknown""#, all]), 2);
    assert_eq!(worker.value(TOTAL, &[]), 4, "each once");
    let durations = "heddle_request_duration_seconds_count";
    assert_eq!(worker.value(durations, &[r#"tenant="acme""#]), 2);
    // What judges services sees them all.
    let outcomes: u64 =
        worker.registry.outcomes().iter().flat_map(|(_, counts)| counts).map(|(_, n)| n).sum();
    assert_eq!(outcomes, 4);
}

#[test]
fn values_beyond_the_bound_are_counted_together_by_all_workers() {
    let vocabulary = Arc::new(Vocabulary::new(Admits::First(3)));
    let (registry, labeling) = (Registry::new(), labeling(&[header("tenant", "x-tenant", &vocabulary)]));
    let workers = [Worker::new(&registry, &labeling), Worker::new(&registry, &labeling)];
    for (at, tenant) in ["a", "b", "c", "d", "e", "f", "a", "b", "c"].into_iter().enumerate() {
        workers[at % 2].serve(&head(&[("x-tenant", tenant.as_bytes())]));
    }
    let value = |tenant: &str| workers[0].value(TOTAL, &[&format!("tenant=\"{tenant}\"")]);
    assert_eq!(["a", "b", "c", "d", "e", "f", "other"].map(value), [2, 2, 2, 0, 0, 0, 3]);
    assert_eq!(workers[0].value(OVERFLOWS, &["label=\"tenant\""]), 3);
    // Whoever met one too many knows all, and asks nobody any more.
    let locked = vocabulary.lock();
    workers[1].labeler.read(Some(&head(&[("x-tenant", b"g")])));
    workers[1].labeler.read(Some(&head(&[("x-tenant", b"a")])));
    drop(locked);
}

#[test]
fn a_client_cannot_make_up_values_that_are_not_listed_or_cannot_be_shown() {
    let listed = Arc::new(Vocabulary::new(Admits::Listed(Box::new(["free".into(), "paid".into()]))));
    let any = Arc::new(Vocabulary::new(Admits::First(10)));
    let labels = [header("plan", "x-plan", &listed), header("any", "x-any", &any)];
    let worker = Worker::new(&Registry::new(), &labeling(&labels));
    worker.serve(&head(&[("x-plan", b"paid")]));
    worker.serve(&head(&[("x-plan", b"royal")]));
    assert_eq!(worker.value(TOTAL, &["plan=\"paid\""]), 1);
    assert_eq!(worker.value(TOTAL, &["plan=\"other\""]), 1);
    for wrong in [&[b'x'; MAX_VALUE + 1][..], b"\xff\xfe", b"a\tb"] {
        worker.serve(&head(&[("x-any", wrong)]));
    }
    worker.serve(&head(&[("x-any", "\u{fc}ber \"\\".as_bytes())]));
    assert_eq!(worker.value(TOTAL, &["any=\"other\""]), 3);
    assert_eq!(worker.value(TOTAL, &["any=\"\u{fc}ber \\\"\\\\\""]), 1);
    assert_eq!(any.len(), 1);
}

/// Series by a client's values once could have taken the room of all services'.
#[test]
fn values_of_requests_never_take_the_room_of_services() {
    let registry = Registry::with_limit(100);
    let names = ["a", "b"].map(|name| (name, Arc::new(Vocabulary::new(Admits::First(MAX_VALUES)))));
    let labels = names.map(|(name, vocabulary)| header(name, name, &vocabulary));
    let worker = Worker::new(&registry, &labeling(&labels));
    for value in 0..200 {
        let value = value.to_string();
        worker.serve(&head(&[("a", value.as_bytes()), ("b", value.as_bytes())]));
    }
    let sets = registry.encode().lines().filter(|line| line.starts_with(&format!("{TOTAL}{{"))).count();
    assert!((40..=51).contains(&sets), "{sets}");
    assert_eq!(worker.value(TOTAL, &["service=\"users\""]), 200, "none lost its service");
    assert!(worker.value(TOTAL, &["service=\"users\"", "a=\"other\",b=\"other\""]) >= 149);
    let other = RequestLabels { service: "orders".into(), ..standard("default") };
    worker.shard.requests(&other).begin().finish(Outcome::default(), Duration::ZERO);
    assert_eq!(worker.value(TOTAL, &["service=\"orders\""]), 1);
}

#[test]
fn what_is_removed_is_empty_and_its_series_are_one() {
    let removing = |removes_peer, removes_route| {
        Arc::new(Labeling { added: Box::default(), removes_peer, removes_route })
    };
    let registry = Registry::new();
    for (peer, route, left) in [(true, false, r#"route="default""#), (true, true, r#"route="""#)] {
        let worker = Worker::new(&registry, &removing(peer, route));
        worker.serve(&head(&[]));
        assert_eq!(worker.value(TOTAL, &[left, r#"peer="""#]), 1, "{left}");
        assert_eq!(worker.value("heddle_request_duration_seconds_count", &[left]), 1, "{left}");
    }
}

#[test]
fn series_that_nobody_uses_any_more_go() {
    let vocabulary = Arc::new(Vocabulary::new(Admits::First(3)));
    let worker = Worker::new(&Registry::new(), &labeling(&[header("tenant", "x-tenant", &vocabulary)]));
    worker.serve(&head(&[("x-tenant", b"acme")]));
    for _ in 0..40 {
        worker.labeler.sweep(Instant::now());
        worker.shard.sweep();
    }
    assert_eq!(worker.value(TOTAL, &[]), 0);
    worker.serve(&head(&[("x-tenant", b"acme")]));
    assert_eq!(worker.value(TOTAL, &["tenant=\"acme\""]), 1);
}

const MINUTE: Duration = Duration::from_secs(60);

/// A value once kept its place for as long as the process lived, and those that came later were `other` for ever.
#[test]
fn a_value_that_no_request_has_for_an_hour_gives_its_place_to_another() {
    let vocabulary = Arc::new(Vocabulary::new(Admits::First(2)));
    let (registry, labeling) = (Registry::new(), labeling(&[header("tenant", "x-tenant", &vocabulary)]));
    let workers = [Worker::new(&registry, &labeling), Worker::new(&registry, &labeling)];
    let serve = |worker: &Worker, tenant: &str| worker.serve(&head(&[("x-tenant", tenant.as_bytes())]));
    let count = |tenant: &str| workers[0].value(TOTAL, &[&format!("tenant=\"{tenant}\"")]);
    let mut now = Instant::now();
    serve(&workers[0], "gone");
    serve(&workers[1], "stays");
    let mut minutes = 0;
    while count("new") == 0 {
        // All the while both of them meet more than there is room for.
        serve(&workers[0], "new");
        serve(&workers[1], "new");
        serve(&workers[0], "stays");
        minutes += 1;
        now += MINUTE;
        workers.iter().for_each(|worker| worker.sweep(now));
        assert!(minutes < 100, "it keeps its place");
    }
    assert!((60..=63).contains(&minutes), "{minutes}");
    assert_eq!((count("gone"), count("stays")), (0, minutes + 1));
    serve(&workers[0], "gone");
    assert_eq!(count("gone"), 0, "there is no room now");
    for _ in 0..62 {
        now += MINUTE;
        serve(&workers[1], "new");
        workers.iter().for_each(|worker| worker.sweep(now));
    }
    serve(&workers[1], "stays");
    assert_eq!(count("stays"), 1, "what comes back begins anew");
}

#[test]
fn what_is_listed_stays_and_a_new_labeling_forgets_nothing() {
    let listed = Arc::new(Vocabulary::new(Admits::Listed(Box::new(["free".into()]))));
    let first = Arc::new(Vocabulary::new(Admits::First(1)));
    let registry = Registry::new();
    let worker = |vocabulary| Worker::new(&registry, &labeling(&[header("tenant", "x-tenant", vocabulary)]));
    let start = Instant::now();
    let plans = worker(&listed);
    for minute in 1..200 {
        plans.sweep(start + MINUTE * minute);
    }
    assert_eq!(&*plans.label("free"), "free");
    // One that is replaced, while a request holds it, keeps no place; but what was used lately has its own.
    let (before, after) = (worker(&first), worker(&first));
    assert_eq!(&*before.label("a"), "a");
    let request = before.labeler.read(Some(&head(&[("x-tenant", b"a")])));
    before.labeler.retire();
    after.sweep(start);
    assert_eq!(&*after.label("b"), "other");
    for minute in 1..=62 {
        after.sweep(start + MINUTE * minute);
    }
    assert_eq!(&*after.label("b"), "b");
    drop(request);
    assert_eq!(&*after.label("b"), "b");
}

proptest! {
    /// Against what a list of all requests says: nothing is counted as another value, no more have
    /// a place than may, and whoever comes by within the hour keeps it.
    #[test]
    fn a_value_is_counted_as_itself_or_as_other(
        steps in prop::collection::vec((0_usize..3, 0_u8..5, 0_u32..40), 1..200),
    ) {
        const BOUND: usize = 3;
        let vocabulary = Arc::new(Vocabulary::new(Admits::First(BOUND)));
        let (registry, labeling) = (Registry::new(), labeling(&[header("tenant", "x-tenant", &vocabulary)]));
        let workers = [(); 3].map(|()| Worker::new(&registry, &labeling));
        let mut now = Instant::now();
        // When each that has a place was asked for last.
        let mut placed: HashMap<String, Instant> = HashMap::new();
        for (worker, value, minutes) in steps {
            for _ in 0..minutes {
                now += MINUTE;
                workers.iter().for_each(|worker| worker.labeler.sweep(now));
            }
            placed.retain(|_, asked| now - *asked < FORGOTTEN_AFTER + 4 * MINUTE);
            let value = value.to_string();
            let label = workers[worker].label(&value);
            prop_assert!(*label == *value || &*label == "other", "{} for {}", label, value);
            let kept = placed.get(&value).is_some_and(|asked| now - *asked < FORGOTTEN_AFTER);
            prop_assert!(!kept || *label == *value, "{} was there lately", value);
            let has_room = placed.len() < BOUND;
            prop_assert!(!has_room || *label == *value, "there is room for {}", value);
            if *label == *value {
                placed.insert(value, now);
            }
            prop_assert!(vocabulary.len() <= BOUND);
        }
    }
}
