use proptest::prelude::*;

use super::*;
use crate::route::backend::Target;
use crate::route::filter::Filters;
use crate::route::head::Http1Head;

fn at(seconds: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(1_800_000_000 + seconds)
}

fn backend(name: &str) -> Backend {
    let target = Target::Service { name: name.parse().unwrap(), port: 80 };
    Backend { target, weight: 0, filters: Filters::default() }
}

fn cookie(permanent: bool) -> Carrier {
    Carrier::Cookie { name: "s".into(), permanent }
}

fn session(carrier: Carrier, absolute: Option<u64>, idle: Option<u64>) -> Session {
    let limit = |seconds: Option<u64>| seconds.map(Duration::from_secs);
    Session::new(carrier, "shop/users/0", limit(absolute), limit(idle)).unwrap()
}

/// The field of a first answer by `endpoint`, at 0.
fn first(session: &Session, endpoint: &str) -> (HeaderName, String) {
    let tag = EndpointTag::of(endpoint);
    let (name, value) = session.field(None, &backend("shop/users"), tag, false, at(0)).unwrap();
    (name, value.to_str().unwrap().to_owned())
}

fn read(session: &Session, fields: &str, now: u64) -> Option<Token> {
    let head = format!("GET / HTTP/1.1\r\nhost: users\r\n{fields}");
    session.read(&Http1Head::new(head.as_bytes()), at(now))
}

fn cookie_of(set: &str) -> &str {
    set.split(';').next().unwrap()
}

#[test]
fn a_cookie_leads_back_to_its_endpoint_among_other_cookies() {
    let session = session(cookie(false), None, None);
    let (name, value) = first(&session, "users-1");
    assert_eq!(name, SET_COOKIE);
    assert!(value.ends_with("; Path=/; HttpOnly; SameSite=Lax"), "{value}");
    assert!(!value.contains("users"), "{value}");
    let sent = format!("cookie: theme=dark; {}; x=1\r\n", cookie_of(&value));
    let token = read(&session, &sent, 9_999_999).unwrap();
    assert_eq!(token.endpoint(), EndpointTag::of("users-1"));
    let backends = [backend("shop/orders"), backend("shop/users")];
    assert!(std::ptr::eq(token.backend(&backends).unwrap(), &backends[1]));
    assert!(token.backend(&backends[..1]).is_none());
    // Nothing new to say while it goes on.
    assert!(session.field(Some(&token), &backends[1], token.endpoint(), false, at(1)).is_none());
    // Another endpoint had to answer: a new session.
    let other = EndpointTag::of("users-2");
    assert!(session.field(Some(&token), &backends[1], other, false, at(1)).is_some());
}

#[test]
fn a_header_carries_a_session_too() {
    let session = session(Carrier::Header(HeaderName::from_static("x-session")), None, None);
    let (name, value) = first(&session, "users-1");
    assert_eq!(name, "x-session");
    assert!(read(&session, &format!("X-Session: {value}\r\n"), 1).is_some());
    assert!(read(&session, &format!("cookie: x-session={value}\r\n"), 1).is_none());
}

#[test]
fn only_a_permanent_cookie_has_an_age_and_the_proxy_ends_both() {
    for permanent in [false, true] {
        let session = session(cookie(permanent), Some(60), None);
        let (_, value) = first(&session, "users-1");
        assert_eq!(value.contains("; Max-Age=60"), permanent, "{value}");
        assert!(!value.contains("Expires"), "{value}");
        let sent = format!("cookie: {}\r\n", cookie_of(&value));
        assert!(read(&session, &sent, 59).is_some() && read(&session, &sent, 60).is_none());
    }
}

#[test]
fn use_prolongs_an_idle_limit_up_to_the_absolute_one() {
    let session = session(cookie(true), Some(100), Some(10));
    let backend = backend("shop/users");
    let (_, mut value) = first(&session, "users-1");
    let mut last = 0;
    for now in (9..100).step_by(9) {
        let token = read(&session, &format!("cookie: {}\r\n", cookie_of(&value)), now).unwrap();
        let (_, next) = session.field(Some(&token), &backend, token.endpoint(), true, at(now)).unwrap();
        value = next.to_str().unwrap().to_owned();
        assert!(
            value.contains("; Secure") && value.ends_with(&format!("; Max-Age={}", 100 - now)),
            "{value}"
        );
        last = now;
    }
    let sent = format!("cookie: {}\r\n", cookie_of(&value));
    assert!(read(&session, &sent, last).is_some() && read(&session, &sent, 100).is_none());
    let (_, value) = first(&session, "users-1");
    assert!(read(&session, &format!("cookie: {}\r\n", cookie_of(&value)), 10).is_none());
}

#[test]
fn sessions_belong_to_one_rule() {
    let session = session(cookie(false), None, None);
    let other = Session::new(cookie(false), "shop/users/1", None, None).unwrap();
    let sent = format!("cookie: {}\r\n", cookie_of(&first(&session, "users-1").1));
    assert!(read(&session, &sent, 0).is_some() && read(&other, &sent, 0).is_none());
    // Where both names meet, each finds its own.
    let both =
        format!("cookie: {}; {}\r\n", cookie_of(&first(&session, "a").1), cookie_of(&first(&other, "b").1));
    assert_eq!(read(&other, &both, 0).unwrap().endpoint(), EndpointTag::of("b"));
    assert_ne!(Session::default_cookie("shop/users/0"), Session::default_cookie("shop/users/1"));
}

#[test]
fn what_cannot_be_kept_is_refused() {
    let new = |carrier| Session::new(carrier, "r", None, None).map(drop);
    assert_eq!(new(cookie(true)), Err(BadSession::Unlimited));
    let named = |name: &str| Carrier::Cookie { name: name.into(), permanent: false };
    assert_eq!(new(named("a b")), Err(BadSession::Name));
    assert_eq!(new(named("a;b")), Err(BadSession::Name));
    for name in ["host", "heddle-session", "connection"] {
        assert!(new(Carrier::Header(HeaderName::from_static(name)),).is_err(), "{name}");
    }
}

proptest! {
    /// Foreign text is no session, and reading it never panics.
    #[test]
    fn foreign_tokens_are_none(text in "[0-9a-fA-F+é]{0,70}") {
        let session = session(Carrier::Header(HeaderName::from_static("x-s")), None, None);
        prop_assert_eq!(session.decode(text.as_bytes()), None);
    }

    #[test]
    fn tokens_survive_the_journey(backend: u64, endpoint: u64, begun: u32, used: u32) {
        let session = session(Carrier::Header(HeaderName::from_static("x-s")), None, None);
        let token = Token { backend, endpoint: EndpointTag(endpoint), begun, used };
        prop_assert_eq!(session.decode(session.encode(&token).as_bytes()), Some(token));
    }
}
