use http::Request;

use super::*;

fn cors(origins: &[&str]) -> Cors {
    Cors {
        origins: origins.iter().map(|origin| OriginPattern::new(origin).unwrap()).collect(),
        credentials: false,
        methods: Allowed::None,
        headers: Allowed::None,
        expose: Allowed::None,
        max_age: DEFAULT_MAX_AGE,
    }
}

fn preflight(cors: &Cors, origin: &str, asked_headers: Option<&str>) -> Vec<(String, String)> {
    let mut request = Request::options("http://users/")
        .header("origin", origin)
        .header("access-control-request-method", "PUT");
    if let Some(asked) = asked_headers {
        request = request.header("access-control-request-headers", asked);
    }
    let (head, ()) = request.body(()).unwrap().into_parts();
    told(&cors.preflight(&head).expect("a preflight"))
}

fn told(headers: &HeaderMap) -> Vec<(String, String)> {
    let text = |(name, value): (&HeaderName, &HeaderValue)| {
        let name = name.as_str().trim_start_matches("access-control-").to_owned();
        (name, value.to_str().unwrap().to_owned())
    };
    let mut told: Vec<_> = headers.iter().map(text).collect();
    told.sort();
    told
}

fn is(told: &[(String, String)], expected: &[(&str, &str)]) {
    let told: Vec<_> = told.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    assert_eq!(told, expected);
}

#[test]
fn origins_are_covered_by_scheme_host_and_port() {
    for (pattern, origin, expected) in [
        ("*", "http://any.org:1234", true),
        ("*", "null", true),
        ("https://a.org", "https://a.org", true),
        ("https://a.org", "https://a.org:443", true),
        ("https://a.org:443", "https://A.ORG", true),
        ("https://a.org", "https://a.org:8443", false),
        ("https://a.org", "http://a.org", false),
        ("https://a.org", "https://b.a.org", false),
        ("https://a.org", "null", false),
        ("http://a.org:8080", "http://a.org:8080", true),
        ("https://*.bar.com", "https://x.bar.com", true),
        ("https://*.bar.com", "https://x.y.bar.com", true),
        ("https://*.bar.com", "https://bar.com", false),
        ("https://*.bar.com", "https://.bar.com", false),
        ("https://*.bar.com", "https://xbar.com", false),
        ("https://*.bar.com", "https://x.bar.com.evil.org", false),
        ("https://*.bar.com", "https://evil.org/x.bar.com", false),
        ("https://*.bar.com", "https://x.bar.com:444", false),
        ("https://*", "https://any.org", true),
        ("https://*", "http://any.org", false),
        ("http://[::1]:80", "http://[::1]", true),
        ("app://x", "app://x", true),
        ("app://x", "app://x:80", false),
    ] {
        assert_eq!(
            OriginPattern::new(pattern).unwrap().covers(origin.as_bytes()),
            expected,
            "{pattern} {origin}"
        );
    }
    for bad in
        ["", "a.org", "https://", "https://a*.org", "https://*a.org", "https://a.org/", "https://a.org:x"]
    {
        assert_eq!(OriginPattern::new(bad), None, "{bad}");
    }
}

#[test]
fn a_preflight_is_answered_with_what_is_configured() {
    let configured = Cors {
        methods: Allowed::new(&["GET", "PUT"]).unwrap(),
        headers: Allowed::new(&["X-A", "X-B"]).unwrap(),
        expose: Allowed::new(&["X-C"]).unwrap(),
        credentials: true,
        max_age: Duration::from_secs(60),
        ..cors(&["https://a.org"])
    };
    is(
        &preflight(&configured, "https://a.org", Some("x-a")),
        &[
            ("allow-credentials", "true"),
            ("allow-headers", "X-A, X-B"),
            ("allow-methods", "GET, PUT"),
            ("allow-origin", "https://a.org"),
            ("expose-headers", "X-C"),
            ("max-age", "60"),
            ("vary", "origin"),
        ],
    );
    is(&preflight(&configured, "https://b.org", None), &[("vary", "origin")]);
}

#[test]
fn a_wildcard_is_one_only_without_credentials() {
    let all = Cors { methods: Allowed::Any, headers: Allowed::Any, ..cors(&["*"]) };
    is(
        &preflight(&all, "https://a.org", Some("x-a")),
        &[("allow-headers", "*"), ("allow-methods", "*"), ("allow-origin", "*"), ("max-age", "5")],
    );
    let all = Cors { credentials: true, ..all };
    is(
        &preflight(&all, "https://a.org", None),
        &[
            ("allow-credentials", "true"),
            ("allow-methods", "PUT"),
            ("allow-origin", "https://a.org"),
            ("max-age", "5"),
            ("vary", "origin"),
        ],
    );
    let asked = preflight(&all, "https://a.org", Some("x-a, x-b"));
    assert!(asked.contains(&("allow-headers".into(), "x-a, x-b".into())));
}

#[test]
fn only_options_with_an_origin_and_a_method_is_a_preflight() {
    let cors = cors(&["*"]);
    for (method, names, expected) in [
        ("OPTIONS", &["origin", "access-control-request-method"][..], true),
        ("OPTIONS", &["origin"], false),
        ("OPTIONS", &["access-control-request-method"], false),
        ("GET", &["origin", "access-control-request-method"], false),
    ] {
        let request = Request::builder().method(method).uri("http://users/");
        let request = names.iter().fold(request, |request, name| request.header(*name, "https://a.org"));
        let (head, ()) = request.body(()).unwrap().into_parts();
        assert_eq!(cors.preflight(&head).is_some(), expected, "{method} {names:?}");
    }
}

#[test]
fn an_answer_says_what_the_rule_says_and_not_what_the_application_does() {
    let configured = Cors { expose: Allowed::new(&["X-C"]).unwrap(), ..cors(&["https://a.org"]) };
    let response = |origin: Option<&'static str>| {
        let mut headers = HeaderMap::new();
        headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, HeaderValue::from_static("*"));
        headers.insert(VARY, HeaderValue::from_static("accept"));
        configured.edit_response(origin.map(HeaderValue::from_static).as_ref(), &mut headers);
        told(&headers)
    };
    is(
        &response(Some("https://a.org")),
        &[
            ("allow-origin", "https://a.org"),
            ("expose-headers", "X-C"),
            ("vary", "accept"),
            ("vary", "origin"),
        ],
    );
    is(&response(Some("https://b.org")), &[("vary", "accept"), ("vary", "origin")]);
    is(&response(None), &[("allow-origin", "*"), ("vary", "accept"), ("vary", "origin")]);
}

/// Browsers take a `*` for a name where credentials are, so that nothing would be exposed.
#[test]
fn with_credentials_every_name_of_the_answer_is_exposed() {
    let all = Cors { expose: Allowed::Any, ..cors(&["https://a.org"]) };
    let exposed = |cors: &Cors| {
        let mut headers = HeaderMap::new();
        for (name, value) in [("x-total", "7"), ("set-cookie", "a=1"), ("etag", "b"), ("vary", "accept")] {
            headers.append(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        headers.append("x-total", HeaderValue::from_static("8"));
        cors.edit_response(Some(&HeaderValue::from_static("https://a.org")), &mut headers);
        headers.get(ACCESS_CONTROL_EXPOSE_HEADERS).map(|names| names.to_str().unwrap().to_owned())
    };
    assert_eq!(exposed(&all).as_deref(), Some("*"));
    let all = Cors { credentials: true, ..all };
    let names = exposed(&all).unwrap();
    let mut names: Vec<_> = names.split(", ").collect();
    names.sort_unstable();
    assert_eq!(names, ["etag", "x-total"]);
    let preflight = preflight(&all, "https://a.org", None);
    assert!(preflight.iter().all(|(name, _)| name != "expose-headers"), "{preflight:?}");
    let head = b"HTTP/1.1 200 OK\r\nX-Total: 7\r\nETag: b\r\n";
    let mut one = crate::route::Http1Response::new(head);
    all.edit_response(Some(&HeaderValue::from_static("https://a.org")), &mut one);
    let mut out = Vec::new();
    one.write(&mut out);
    let out = String::from_utf8(out).unwrap();
    assert!(out.contains("access-control-expose-headers: x-total, etag\r\n"), "{out}");
}

#[test]
fn lists_are_lists_of_names() {
    assert_eq!(Allowed::new::<&str>(&[]), Ok(Allowed::None));
    assert_eq!(Allowed::new(&["GET", "*"]), Ok(Allowed::Any));
    assert!(Allowed::new(&["a b"]).is_err() && Allowed::new(&["a,b"]).is_err());
}
