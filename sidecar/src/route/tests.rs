//! The tables against an oracle that scores every match of every rule straight
//! from the written precedence, over alphabets so small that ties are common.

use std::cmp::Reverse;
use std::sync::Arc;

use ::http::{HeaderName, Request};
use proptest::prelude::*;

use super::*;

fn rule(at: usize) -> Arc<Rule> {
    Arc::new(Rule { label: at.to_string().into(), ..Rule::default() })
}

/// A test of a value as the oracle understands it.
#[derive(Debug, Clone)]
enum Wanted {
    Exact(&'static str),
    /// `[12]`
    Digit,
    In(Vec<&'static str>),
    NotIn(Vec<&'static str>),
}

impl Wanted {
    fn holds(&self, value: Option<&str>) -> bool {
        match self {
            Self::Exact(wanted) => value == Some(wanted),
            Self::Digit => matches!(value, Some("1" | "2")),
            Self::In(values) => value.is_some_and(|value| values.contains(&value)),
            Self::NotIn(values) => !value.is_some_and(|value| values.contains(&value)),
        }
    }

    fn standard(&self) -> bool {
        matches!(self, Self::Exact(_) | Self::Digit)
    }

    fn compile(&self) -> Test {
        let list = |values: &[&str]| values.iter().map(|value| value.as_bytes().into()).collect();
        match self {
            Self::Exact(value) => Test::Exact(value.as_bytes().into()),
            Self::Digit => Test::Regex(Pattern::new("[12]").unwrap()),
            Self::In(values) => Test::In(list(values)),
            Self::NotIn(values) => Test::NotIn(list(values)),
        }
    }
}

type Fields = Vec<(&'static str, Wanted)>;

/// The conditions that count: of several standard ones for a name the first.
fn counted(fields: &Fields) -> Fields {
    let mut counted: Fields = Vec::new();
    for (name, wanted) in fields {
        let repeated = counted.iter().any(|(other, before)| other == name && before.standard());
        if !(wanted.standard() && repeated) {
            counted.push((name, wanted.clone()));
        }
    }
    counted
}

fn headers(fields: &Fields) -> Vec<(HeaderName, Test)> {
    fields.iter().map(|(name, wanted)| (HeaderName::from_static(name), wanted.compile())).collect()
}

#[derive(Debug, Clone)]
enum Path {
    Exact(&'static str),
    Prefix(&'static str),
    /// `/a.*`
    BeginsWithA,
}

#[derive(Debug, Clone)]
struct Match {
    path: Path,
    method: Option<&'static str>,
    headers: Fields,
    query: Fields,
}

#[derive(Debug, Clone)]
struct Asked {
    method: &'static str,
    path: &'static str,
    query: Vec<(&'static str, &'static str)>,
    headers: Vec<(&'static str, &'static str)>,
}

impl Asked {
    fn target(&self) -> String {
        let pairs: Vec<String> = self.query.iter().map(|(name, value)| format!("{name}={value}")).collect();
        if pairs.is_empty() { self.path.to_owned() } else { format!("{}?{}", self.path, pairs.join("&")) }
    }

    fn http1(&self) -> Vec<u8> {
        let fields: String =
            self.headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
        format!("{} {} HTTP/1.1\r\nhost: users\r\n{fields}", self.method, self.target()).into_bytes()
    }

    fn http2(&self) -> ::http::request::Parts {
        let request = Request::builder().method(self.method).uri(format!("http://users{}", self.target()));
        let request =
            self.headers.iter().fold(request, |request, (name, value)| request.header(*name, *value));
        request.body(()).unwrap().into_parts().0
    }

    fn passes(&self, conditions: &Fields, given: &[(&'static str, &'static str)]) -> bool {
        conditions.iter().all(|(name, wanted)| {
            let values: Vec<&str> =
                given.iter().filter(|(other, _)| other == name).map(|(_, v)| *v).collect();
            // Several header fields are one list; of a repeated parameter the first counts.
            let value = if name.starts_with("x-") {
                values.join(",")
            } else {
                values.first().copied().unwrap_or_default().into()
            };
            wanted.holds((!values.is_empty()).then_some(&value))
        })
    }
}

/// What Gateway API says about one match, best last; `None` if it does not hold.
fn score(wanted: &Match, asked: &Asked, order: usize) -> Option<impl Ord + use<>> {
    let trimmed = |path: &str| path.trim_end_matches('/').to_owned();
    let (kind, length) = match wanted.path {
        Path::Exact(path) => (asked.path == path).then_some((3, 0))?,
        Path::Prefix(prefix) => {
            let inside = format!("{}/", trimmed(asked.path)).starts_with(&format!("{}/", trimmed(prefix)));
            inside.then_some((2, trimmed(prefix).len()))?
        }
        Path::BeginsWithA => asked.path.starts_with("/a").then_some((1, 0))?,
    };
    let (headers, query) = (counted(&wanted.headers), counted(&wanted.query));
    let holds = wanted.method.is_none_or(|method| method == asked.method)
        && asked.passes(&headers, &asked.headers)
        && asked.passes(&query, &asked.query);
    let counts = (wanted.method.is_some(), headers.len(), query.len());
    holds.then_some((kind, length, counts, Reverse(order)))
}

fn value() -> impl Strategy<Value = &'static str> {
    prop::sample::select(vec!["1", "2", "3", "1,2"])
}

fn wanted() -> impl Strategy<Value = Wanted> {
    prop_oneof![
        4 => value().prop_map(Wanted::Exact),
        1 => Just(Wanted::Digit),
        1 => prop::collection::vec(value(), 0..3).prop_map(Wanted::In),
        1 => prop::collection::vec(value(), 0..3).prop_map(Wanted::NotIn),
    ]
}

fn fields(names: [&'static str; 2], most: usize) -> impl Strategy<Value = Fields> {
    prop::collection::vec((prop::sample::select(names.to_vec()), wanted()), 0..=most)
}

const PATHS: [&str; 6] = ["/", "/a", "/a/", "/a/b", "/ab", "/b"];

fn some_match() -> impl Strategy<Value = Match> {
    let path = prop_oneof![
        prop::sample::select(PATHS.to_vec()).prop_map(Path::Exact),
        prop::sample::select(PATHS.to_vec()).prop_map(Path::Prefix),
        // Enough of one path that its matches are indexed.
        Just(Path::Prefix("/")),
        Just(Path::BeginsWithA),
    ];
    let method = prop::option::weighted(0.3, prop::sample::select(vec!["GET", "POST"]));
    (path, method, fields(["x-a", "x-b"], 3), fields(["q", "Q"], 2))
        .prop_map(|(path, method, headers, query)| Match { path, method, headers, query })
}

fn asked() -> impl Strategy<Value = Asked> {
    let pairs = |names: [&'static str; 2]| {
        prop::collection::vec((prop::sample::select(names.to_vec()), value()), 0..3)
    };
    let path = prop::sample::select([&PATHS[..], &["/a/b/c", "/ab/", "/c"]].concat());
    (prop::sample::select(vec!["GET", "POST"]), path, pairs(["q", "Q"]), pairs(["x-a", "x-b"]))
        .prop_map(|(method, path, query, headers)| Asked { method, path, query, headers })
}

fn label(found: Option<&Arc<Rule>>) -> Option<usize> {
    found.map(|rule| rule.label.parse().unwrap())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn an_http_request_falls_to_the_rule_of_the_written_precedence(
        rules in prop::collection::vec(prop::collection::vec(some_match(), 0..4), 0..80),
        requests in prop::collection::vec(asked(), 1..20),
    ) {
        let compile = |wanted: &Match| HttpMatch {
            path: match wanted.path {
                Path::Exact(path) => PathMatch::Exact(path.as_bytes().into()),
                Path::Prefix(path) => PathMatch::Prefix(path.as_bytes().into()),
                Path::BeginsWithA => PathMatch::Regex(Pattern::new("/a.*").unwrap()),
            },
            method: wanted.method.map(|method| method.as_bytes().into()),
            headers: headers(&wanted.headers),
            query: wanted.query.iter().map(|(n, w)| (n.as_bytes().into(), w.compile())).collect(),
        };
        let table = HttpTable::new(rules.iter().enumerate().map(|(at, matches)| {
            (matches.iter().map(compile).collect(), rule(at))
        }));
        let default = Match { path: Path::Prefix("/"), method: None, headers: vec![], query: vec![] };
        for request in &requests {
            let all = rules.iter().enumerate().flat_map(|(at, matches)| {
                let matches = if matches.is_empty() { std::slice::from_ref(&default) } else { matches };
                matches.iter().filter_map(move |wanted| score(wanted, request, at).map(|score| (score, at)))
            });
            let expected = all.max_by(|(a, _), (b, _)| a.cmp(b)).map(|(_, at)| at);
            let bytes = request.http1();
            prop_assert_eq!(label(table.select(&Http1Head::new(&bytes))), expected, "{:?}", request);
            prop_assert_eq!(label(table.select(&request.http2())), expected, "{:?}", request);
        }
    }
}

/// The name of a service or method: exact, or an expression, `[NAME]`.
#[derive(Debug, Clone)]
enum Name {
    Exact(&'static str),
    Regex(&'static str),
}

#[derive(Debug, Clone)]
struct Call {
    service: Option<Name>,
    method: Option<Name>,
    headers: Fields,
}

/// The same for gRPC; an expression counts as half a character.
fn grpc_score(wanted: &Call, asked: &Asked, order: usize) -> Option<impl Ord + use<>> {
    let names: Vec<&str> = asked.path.split('/').skip(1).collect();
    let called = match names[..] {
        [service, method] => Some((service, method)),
        _ => None,
    };
    let points = |wanted: &Option<Name>, is: Option<&str>| match (wanted, is) {
        (None, _) => Some(0),
        (Some(Name::Exact(name)), Some(is)) if *name == is => Some(2 * is.len()),
        (Some(Name::Regex(name)), Some(is)) if *name == is => Some(1),
        _ => None,
    };
    let service = points(&wanted.service, called.map(|(service, _)| service))?;
    let method = points(&wanted.method, called.map(|(_, method)| method))?;
    let headers = counted(&wanted.headers);
    asked.passes(&headers, &asked.headers).then_some((service, method, headers.len(), Reverse(order)))
}

fn name(names: [&'static str; 2]) -> impl Strategy<Value = Option<Name>> {
    let some = (prop::sample::select(names.to_vec()), any::<bool>())
        .prop_map(|(name, exact)| if exact { Name::Exact(name) } else { Name::Regex(name) });
    prop::option::of(some)
}

fn some_call() -> impl Strategy<Value = Call> {
    (name(["S", "T"]), name(["M", "N"]), fields(["x-a", "x-b"], 3))
        .prop_map(|(service, method, headers)| Call { service, method, headers })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn a_grpc_call_falls_to_the_rule_of_the_written_precedence(
        rules in prop::collection::vec(prop::collection::vec(some_call(), 0..3), 0..40),
        paths in prop::collection::vec(
            prop::sample::select(vec!["/S/M", "/T/N", "/S/N", "/S", "/S/M/N", "/U/M"]), 1..8),
        given in prop::collection::vec((prop::sample::select(vec!["x-a", "x-b"]), value()), 0..3),
    ) {
        let compile = |name: &Option<Name>| name.as_ref().map(|name| match name {
            Name::Exact(name) => NameMatch::Exact(name.as_bytes().into()),
            Name::Regex(name) => NameMatch::Regex(Pattern::new(&format!("[{name}]")).unwrap()),
        });
        let table = GrpcTable::new(rules.iter().enumerate().map(|(at, calls)| {
            let compile = |call: &Call| GrpcMatch {
                service: compile(&call.service),
                method: compile(&call.method),
                headers: headers(&call.headers),
            };
            (calls.iter().map(compile).collect(), rule(at))
        }));
        let default = Call { service: None, method: None, headers: vec![] };
        for path in paths {
            let request = Asked { method: "POST", path, query: vec![], headers: given.clone() };
            let all = rules.iter().enumerate().flat_map(|(at, calls)| {
                let calls = if calls.is_empty() { std::slice::from_ref(&default) } else { calls };
                let request = &request;
                calls.iter().filter_map(move |call| grpc_score(call, request, at).map(|score| (score, at)))
            });
            let expected = all.max_by(|(a, _), (b, _)| a.cmp(b)).map(|(_, at)| at);
            prop_assert_eq!(label(table.select(&request.http2())), expected, "{:?}", request);
        }
    }
}

/// A request as few users would write it still falls where it reads.
#[test]
fn a_query_parameter_is_matched_decoded_and_by_its_first_value() {
    let test = Test::Exact(b"a b".as_slice().into());
    let matches = HttpMatch { query: vec![(b"q".as_slice().into(), test)], ..HttpMatch::default() };
    let table = HttpTable::new([(vec![matches], rule(0))]);
    for (target, expected) in
        [("/?q=a%20b", true), ("/?q=a+b&q=c", true), ("/?q=c&q=a+b", false), ("/?Q=a+b", false), ("/", false)]
    {
        let bytes = format!("GET {target} HTTP/1.1\r\nhost: users\r\n");
        assert_eq!(table.select(&Http1Head::new(bytes.as_bytes())).is_some(), expected, "{target}");
    }
}

/// HTTP/2 may take cookies apart (RFC 9113, section 8.2.3), and they were put together as a list then.
#[test]
fn cookies_are_one_field_in_both_versions() {
    let test = Test::Exact(b"a=1; b=2".as_slice().into());
    let matches = HttpMatch { headers: vec![(::http::header::COOKIE, test)], ..HttpMatch::default() };
    let table = HttpTable::new([(vec![matches], rule(0))]);
    let one = b"GET / HTTP/1.1\r\nhost: users\r\ncookie: a=1; b=2\r\n";
    assert!(table.select(&Http1Head::new(one)).is_some());
    let two = Request::get("http://users/").header("cookie", "a=1").header("cookie", "b=2");
    let (two, ()) = two.body(()).unwrap().into_parts();
    assert!(table.select(&two).is_some());
}

/// A service's or a method's expression takes the whole name and no more.
#[test]
fn an_expression_for_a_service_does_not_match_its_method() {
    let table = |service: Option<&str>, method: Option<&str>| {
        let name = |pattern: &str| NameMatch::Regex(Pattern::new(pattern).unwrap());
        let wanted = GrpcMatch { service: service.map(name), method: method.map(name), headers: vec![] };
        GrpcTable::new([(vec![wanted], rule(0))])
    };
    let selects = |table: &GrpcTable, path: &str| {
        let bytes = format!("POST {path} HTTP/1.1\r\nhost: users\r\n");
        table.select(&Http1Head::new(bytes.as_bytes())).is_some()
    };
    let service = table(Some(r"shop\..*"), None);
    assert!(selects(&service, "/shop.Users/Find") && !selects(&service, "/x.shop.Users/Find"));
    assert!(!selects(&service, "/shop.Users/Find/x") && !selects(&service, "/shop.Users"));
    let method = table(None, Some("Find.*|List"));
    assert!(selects(&method, "/a/FindAll") && selects(&method, "/b/List") && !selects(&method, "/Find/x"));
}
