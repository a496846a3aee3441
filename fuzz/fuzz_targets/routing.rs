//! A request falls to the same rule and is tied to the same endpoint whether it came as HTTP/1 or as HTTP/2.
#![no_main]

use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime};

use heddle_sidecar::http1::request::RequestHead;
use heddle_sidecar::http1::{HeadScan, Origin};
use heddle_sidecar::policy::hash_key::HashOn;
use heddle_sidecar::policy::rng::Rng;
use heddle_sidecar::route::{
    Carrier, Front, Head, Http1Head, HttpMatch, HttpTable, OriginPattern, PathEdit, PathMatch, Pattern,
    Redirect, Rule, Scheme, Session, Test,
};
use http::header::{HOST, ORIGIN};
use http::request::Parts;
use http::{HeaderName, HeaderValue, Request, Uri};
use libfuzzer_sys::fuzz_target;

const USER: HeaderName = HeaderName::from_static("x-user");

struct Routes {
    table: HttpTable,
    keys: [HashOn; 2],
    session: Session,
    redirect: Redirect,
}

fn routes() -> &'static Routes {
    static ROUTES: OnceLock<Routes> = OnceLock::new();
    ROUTES.get_or_init(|| {
        let pattern = |text: &str| Pattern::new(text).expect("it is an expression");
        let any = HttpMatch::default;
        let of = |path: PathMatch| HttpMatch { path, ..any() };
        let matches = [
            HttpMatch { headers: vec![(USER, Test::Exact(b"1"[..].into()))], ..any() },
            HttpMatch { headers: vec![(HOST, Test::Regex(pattern("[a-z.]+")))], ..any() },
            HttpMatch { query: vec![(b"a b"[..].into(), Test::NotIn([b"1"[..].into()].into()))], ..any() },
            HttpMatch { method: Some(b"POST"[..].into()), ..any() },
            of(PathMatch::Exact(b"/a"[..].into())),
            of(PathMatch::Prefix(b"/a/b"[..].into())),
            of(PathMatch::Regex(pattern("/(x|y+)*/z?"))),
        ];
        let rules = matches.into_iter().enumerate().map(|(place, wanted)| {
            (vec![wanted], Arc::new(Rule { label: place.to_string().into(), ..Rule::default() }))
        });
        let cookie = Carrier::Cookie { name: "s".into(), permanent: false };
        Routes {
            table: HttpTable::new(rules),
            keys: [HashOn::Header(USER), HashOn::Query("u".into())],
            session: Session::new(cookie, "a/b/0", None, Some(Duration::from_secs(60)))
                .expect("it can be kept"),
            redirect: Redirect {
                path: Some(PathEdit::prefix("/a", "/c").expect("they are paths")),
                ..Redirect::default()
            },
        }
    })
}

fuzz_target!(|input: &[u8]| {
    let mut bytes = Vec::new();
    let parsed = RequestHead::parse(input, &mut HeadScan::default(), Origin::Outside, &mut bytes);
    let Ok(Some(_)) = parsed else { return };
    let first = Http1Head::new(&bytes);
    let Some(second) = as_http2(&bytes) else { return };
    let routes = routes();
    let label = |rule: Option<&Arc<Rule>>| rule.map(|rule| rule.label.clone());
    assert_eq!(label(routes.table.select(&first)), label(routes.table.select(&second)));
    for key in &routes.keys {
        let rng = Rng::new(1);
        assert_eq!(key.affinity(&first, None, &rng), key.affinity(&second, None, &rng));
    }
    let now = SystemTime::UNIX_EPOCH;
    assert_eq!(routes.session.read(&first, now), routes.session.read(&second, now));
    let front = Front { scheme: Scheme::Http, port: 80 };
    let location = routes.redirect.location(&first, front);
    assert_eq!(location, routes.redirect.location(&second, front));
    assert!(HeaderValue::from_bytes(&location).is_ok(), "a location is one line");
    if let Some(origin) = first.first(&ORIGIN) {
        let mine = OriginPattern::new("https://*.example.com:8443").expect("it is a pattern");
        if mine.covers(origin) {
            let origin = origin.to_ascii_lowercase();
            let host = origin.strip_prefix(b"https://").expect("the scheme is ours");
            let host =
                &host[..host.iter().rposition(|&byte| byte == b':').expect("the port is not the usual one")];
            assert!(host.len() > 12 && host.ends_with(b".example.com"), "{origin:?}");
        }
    }
});

/// The same request as it would have come by HTTP/2; `None` if it could not have.
fn as_http2(head: &[u8]) -> Option<Parts> {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).ok();
    let mut lines = head.split(|&byte| byte == b'\n').map(<[u8]>::trim_ascii);
    let line = text(lines.next()?)?;
    let mut words = line.split(' ');
    let (method, target) = (words.next()?, words.next()?);
    if !target.starts_with('/') {
        return None;
    }
    let mut request = Request::new(());
    *request.method_mut() = method.parse().ok()?;
    let mut authority = String::new();
    for line in lines.filter(|line| !line.is_empty()) {
        let colon = line.iter().position(|&byte| byte == b':')?;
        let (name, value) = (HeaderName::from_bytes(&line[..colon]).ok()?, line[colon + 1..].trim_ascii());
        if name == HOST {
            authority = text(value)?;
        } else {
            request.headers_mut().append(name, HeaderValue::from_bytes(value).ok()?);
        }
    }
    if authority.is_empty() {
        return None;
    }
    *request.uri_mut() =
        Uri::builder().scheme("http").authority(authority).path_and_query(target).build().ok()?;
    Some(request.into_parts().0)
}
