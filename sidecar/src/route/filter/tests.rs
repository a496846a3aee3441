use http::{Method, Request, request};
use proptest::prelude::*;

use super::*;
use crate::policy::rng::Rng;
use crate::route::edit::{Http1Request, Http1Response};
use crate::route::head::Http1Head;
use crate::route::redirect::{RedirectStatus, Scheme};

const FRONT: Front = Front { scheme: Scheme::Http, port: 80 };

fn field(name: &'static str, value: &'static str) -> (HeaderName, HeaderValue) {
    (HeaderName::from_static(name), HeaderValue::from_static(value))
}

fn edits(
    set: &[(&'static str, &'static str)],
    add: &[(&'static str, &'static str)],
    remove: &[&'static str],
) -> HeaderEdits {
    let fields = |list: &[(&'static str, &'static str)]| list.iter().map(|(n, v)| field(n, v)).collect();
    let remove = remove.iter().map(|name| HeaderName::from_static(name)).collect();
    HeaderEdits::new(fields(set), fields(add), remove).unwrap()
}

fn http1(filters: &Filters, head: &str) -> String {
    let mut request = Http1Request::new(head.as_bytes());
    filters.edit_request(&mut request).unwrap();
    let mut out = b"before".to_vec();
    let places = request.write(&mut out);
    let now = Http1Head::new(&out[6..]);
    assert_eq!(places.method.of(&out), Head::method(&now));
    assert_eq!(places.path.of(&out), now.path());
    assert_eq!(places.authority.of(&out), now.authority());
    assert!(places.target.of(&out).starts_with(now.path()));
    String::from_utf8(out.split_off(6)).unwrap()
}

#[test]
fn a_request_is_changed_in_place_and_stays_open_if_it_was() {
    let filters: Filters = [
        Filter::RequestHeaders(edits(&[("x-set", "new")], &[("x-add", "2")], &["x-gone"])),
        Filter::Rewrite(Rewrite {
            host: RewrittenHost::new("two.example.org"),
            path: Some(PathEdit::prefix("/one", "/two").unwrap()),
        }),
    ]
    .into_iter()
    .collect();
    let head = "GET /one/x?q=1 HTTP/1.1\r\nhost: users:80\r\nX-Set: a\r\nX-Add: 1\r\nX-Gone: 1\r\nx-set: b\r\ncontent-length: 3\r\n";
    let expected = "GET /two/x?q=1 HTTP/1.1\r\nhost: two.example.org\r\nx-set: new\r\nX-Add: 1\r\ncontent-length: 3\r\nx-add: 2\r\n";
    assert_eq!(http1(&filters, head), expected);
    assert_eq!(http1(&filters, &format!("{head}\r\n")), format!("{expected}\r\n"));
    // A tunnel stays as it is, but for its headers.
    let tunnel = "CONNECT users:80 HTTP/1.1\r\nhost: users:80\r\nx-gone: 1\r\n";
    let expected = "CONNECT users:80 HTTP/1.1\r\nhost: users:80\r\nx-set: new\r\nx-add: 2\r\n";
    assert_eq!(http1(&filters, tunnel), expected);
}

#[test]
fn filters_apply_in_their_order() {
    let filters: Filters = [
        Filter::RequestHeaders(edits(&[("x-a", "1")], &[], &[])),
        Filter::RequestHeaders(edits(&[], &[("x-a", "2")], &["x-b"])),
        Filter::RequestHeaders(edits(&[("x-b", "3")], &[], &[])),
    ]
    .into_iter()
    .collect();
    assert!(filters.edits_request() && !filters.edits_response());
    let changed = http1(&filters, "GET / HTTP/1.1\r\nhost: users\r\nx-b: 0\r\n");
    assert_eq!(changed, "GET / HTTP/1.1\r\nhost: users\r\nx-a: 1\r\nx-a: 2\r\nx-b: 3\r\n");
}

#[test]
fn a_response_is_changed_on_its_way_back() {
    let filters: Filters =
        [Filter::ResponseHeaders(edits(&[("x-a", "1")], &[("set-cookie", "b=2")], &["server"]))]
            .into_iter()
            .collect();
    let head = b"HTTP/1.1 200 OK\r\nServer: x\r\nset-cookie: a=1\r\ntransfer-encoding: chunked\r\n";
    let mut response = Http1Response::new(head);
    filters.edit_response(&Noted::default(), &mut response);
    let mut out = Vec::new();
    response.write(&mut out);
    let expected =
        "HTTP/1.1 200 OK\r\nset-cookie: a=1\r\ntransfer-encoding: chunked\r\nx-a: 1\r\nset-cookie: b=2\r\n";
    assert_eq!(String::from_utf8(out).unwrap(), expected);
}

#[test]
fn headers_of_the_proxy_itself_are_not_for_filters() {
    for name in [
        "content-length",
        "transfer-encoding",
        "connection",
        "keep-alive",
        "te",
        "upgrade",
        "trailer",
        "host",
        "expect",
        "heddle-error",
        "x-forwarded-client-cert",
    ] {
        let name = HeaderName::from_static(name);
        let value = HeaderValue::from_static("1");
        let reserved = Err((name.clone(), BadEdit::Reserved));
        assert_eq!(HeaderEdits::new(vec![(name.clone(), value.clone())], vec![], vec![]).map(drop), reserved);
        assert_eq!(HeaderEdits::new(vec![], vec![(name.clone(), value)], vec![]).map(drop), reserved);
        assert_eq!(HeaderEdits::new(vec![], vec![], vec![name]).map(drop), reserved);
    }
    let twice = HeaderEdits::new(vec![field("x-a", "1")], vec![], vec![HeaderName::from_static("x-a")]);
    assert_eq!(twice.unwrap_err().1, BadEdit::Repeated);
}

#[test]
fn the_first_filter_that_answers_does() {
    let redirect = || Filter::Redirect(Redirect { status: RedirectStatus::Permanent, ..Redirect::default() });
    let head = Http1Head::new(b"GET /a HTTP/1.1\r\nhost: users\r\n");
    let of = |list: Vec<Filter>| -> Filters { list.into_iter().collect() };
    let unresolved = || Filter::Unresolved("no such filter".into());
    assert!(of(vec![Filter::RequestHeaders(HeaderEdits::default())]).answer(&head, FRONT).is_none());
    let Some(Early::Reply(reply)) = of(vec![redirect(), unresolved()]).answer(&head, FRONT) else {
        panic!("no redirect")
    };
    assert_eq!(
        (reply.status, &reply.headers["location"]),
        (308, &HeaderValue::from_static("http://users/a"))
    );
    let mut out = Vec::new();
    reply.write_http1(true, &mut out);
    let expected = "HTTP/1.1 308 Permanent Redirect\r\nlocation: http://users/a\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
    assert_eq!(String::from_utf8(out).unwrap(), expected);
    let broken = of(vec![unresolved(), redirect()]);
    assert!(matches!(broken.answer(&head, FRONT), Some(Early::Refuse("no such filter"))));
}

/// Requests from one origin, by any method.
fn cors() -> Cors {
    Cors {
        origins: [crate::route::OriginPattern::new("https://a.org").unwrap()].into(),
        credentials: false,
        methods: crate::route::Allowed::Any,
        headers: crate::route::Allowed::None,
        expose: crate::route::Allowed::None,
        max_age: crate::route::DEFAULT_MAX_AGE,
    }
}

#[test]
fn a_preflight_is_answered_and_its_request_served() {
    let filters: Filters = [Filter::Cors(cors())].into_iter().collect();
    let asking = Http1Head::new(
        b"OPTIONS / HTTP/1.1\r\nhost: users\r\norigin: https://a.org\r\naccess-control-request-method: PUT\r\n",
    );
    let Some(Early::Reply(reply)) = filters.answer(&asking, FRONT) else { panic!("no answer") };
    assert_eq!(
        (reply.status, &reply.headers["access-control-allow-origin"]),
        (204, &HeaderValue::from_static("https://a.org"))
    );
    let then = Http1Head::new(b"PUT / HTTP/1.1\r\nhost: users\r\norigin: https://a.org\r\n");
    assert!(filters.answer(&then, FRONT).is_none());
    let mut headers = HeaderMap::new();
    filters.edit_response(&filters.note(&then), &mut headers);
    assert_eq!(headers["access-control-allow-origin"], "https://a.org");
}

/// A page that was sent elsewhere could not follow, and what is set on every answer was not on these.
#[test]
fn what_a_rule_answers_itself_passes_its_filters_for_responses() {
    let filters: Filters = [
        Filter::Cors(cors()),
        Filter::Redirect(Redirect::default()),
        Filter::ResponseHeaders(edits(&[("x-by", "mesh")], &[], &[])),
    ]
    .into_iter()
    .collect();
    let answer = |fields: &str| {
        let head = format!("{fields}\r\n");
        match filters.answer(&Http1Head::new(head.as_bytes()), FRONT) {
            Some(Early::Reply(reply)) => reply,
            other => panic!("{other:?}"),
        }
    };
    let redirect = answer("GET /a HTTP/1.1\r\nhost: users\r\norigin: https://a.org");
    assert_eq!(
        (redirect.status, &redirect.headers["location"]),
        (302, &HeaderValue::from_static("http://users/a"))
    );
    assert_eq!(redirect.headers["access-control-allow-origin"], "https://a.org");
    assert_eq!(redirect.headers["x-by"], "mesh");
    let preflight = answer(
        "OPTIONS / HTTP/1.1\r\nhost: users\r\norigin: https://a.org\r\naccess-control-request-method: PUT",
    );
    assert_eq!((preflight.status, &preflight.headers["x-by"]), (204, &HeaderValue::from_static("mesh")));
    assert_eq!(preflight.headers.get_all("vary").iter().count(), 1);
}

#[test]
fn a_rewritten_host_is_a_host_alone() {
    for good in ["users", "users.example.org", "10.0.0.1"] {
        assert!(RewrittenHost::new(good).is_some(), "{good}");
    }
    for bad in ["", "users:80", "users:", "a b", "a,b", "u@users", "*.example.org"] {
        assert!(RewrittenHost::new(bad).is_none(), "{bad}");
    }
}

#[test]
fn a_target_that_grows_too_long_is_an_error() {
    let long = format!("/{}", "a".repeat(1000));
    let rewrite = Rewrite { host: None, path: Some(PathEdit::prefix("/x", &long).unwrap()) };
    let filters: Filters = [Filter::Rewrite(rewrite)].into_iter().collect();
    let head = format!("GET /x/{} HTTP/1.1\r\nhost: users\r\n", "b".repeat(64_800));
    assert_eq!(filters.edit_request(&mut Http1Request::new(head.as_bytes())), Err(TooLong));
}

#[test]
fn copies_are_taken_of_the_share_asked_for() {
    let target = Target::Service { name: "shop/users".parse().unwrap(), port: 80 };
    let mirror = |numerator, denominator| Mirror { target: target.clone(), numerator, denominator };
    let rng = Rng::new(3);
    let taken = |mirror: &Mirror| (0..100_000).filter(|_| mirror.takes(&rng)).count();
    assert_eq!((taken(&mirror(100, 100)), taken(&mirror(0, 100))), (100_000, 0));
    assert!(taken(&mirror(1, 3)).abs_diff(33_333) < 600);
    assert_eq!(taken(&Mirror { target: Target::Invalid("gone".into()), ..mirror(1, 1) }), 0);
}

fn http2(parts: &request::Parts) -> (String, Vec<(String, String)>) {
    let text =
        |(name, value): (&HeaderName, &HeaderValue)| (name.to_string(), value.to_str().unwrap().to_owned());
    let mut fields: Vec<_> = parts.headers.iter().map(text).collect();
    fields.push(("host".into(), parts.uri.authority().unwrap().to_string()));
    fields.sort_by(|(a, _), (b, _)| a.cmp(b));
    (parts.uri.path_and_query().unwrap().to_string(), fields)
}

proptest! {
    /// A request changes the same way in both versions.
    #[test]
    fn both_versions_change_alike(
        path in prop::sample::select(vec!["/", "/a", "/a/", "/a/b?x=/a", "/b?", "/ab"]),
        fields in prop::collection::vec(("x-[abc]", "[0-9]"), 0..6),
        set in any::<bool>(), add in any::<bool>(), remove in any::<bool>(), host in any::<bool>(), rewrite in any::<bool>(),
    ) {
        let list = |used: bool, field: (&'static str, &'static str)| if used { vec![field] } else { vec![] };
        let filters: Filters = [
            Filter::RequestHeaders(edits(
                &list(set, ("x-a", "s")), &list(add, ("x-b", "t")), if remove { &["x-c"] } else { &[] },
            )),
            Filter::Rewrite(Rewrite {
                host: host.then(|| RewrittenHost::new("other").unwrap()),
                path: rewrite.then(|| PathEdit::prefix("/a", "/z").unwrap()),
            }),
        ].into_iter().collect();
        let mut text = format!("PUT {path} HTTP/1.1\r\nhost: users\r\n");
        let mut request = Request::builder().method(Method::PUT).uri(format!("http://users{path}"));
        for (name, value) in &fields {
            text.push_str(&format!("{}: {value}\r\n", name.to_uppercase()));
            request = request.header(name, value);
        }
        let (mut parts, ()) = request.body(()).unwrap().into_parts();
        filters.edit_request(&mut parts).unwrap();
        let one = http1(&filters, &text);
        let mut lines = one.lines();
        let target = lines.next().and_then(|line| line.split(' ').nth(1)).unwrap().to_owned();
        let mut fields: Vec<(String, String)> = lines
            .map(|line| line.split_once(": ").unwrap())
            .map(|(name, value)| (name.to_lowercase(), value.to_owned()))
            .collect();
        fields.sort_by(|(a, _), (b, _)| a.cmp(b));
        prop_assert_eq!((target, fields), http2(&parts));
    }
}
