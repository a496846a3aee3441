use http::header::{EXPIRES, HeaderValue};
use http::request::Parts;
use proptest::prelude::*;

use super::*;

const MAX_AGE: Duration = Duration::from_secs(300);

fn request(fields: &[(&str, &str)]) -> Parts {
    let mut request = http::Request::get("http://users/a");
    for (name, value) in fields {
        request = request.header(*name, *value);
    }
    request.body(()).unwrap().into_parts().0
}

fn response(fields: &[(&str, &str)]) -> HeaderMap {
    fields.iter().fold(HeaderMap::new(), |mut headers, (name, value)| {
        let name = HeaderName::from_bytes(name.as_bytes()).unwrap();
        headers.append(name, HeaderValue::from_str(value).unwrap());
        headers
    })
}

fn usable(asked: &[(&str, &str)], said: &[(&str, &str)]) -> Option<u64> {
    let terms = terms(&request(asked), 200, &response(said), Duration::ZERO, MAX_AGE);
    terms.map(|terms| terms.usable.as_secs())
}

#[test]
fn what_may_be_kept_and_for_how_long() {
    let all = Some(300);
    for (asked, said, expected) in [
        (None, None, all),
        (None, Some(("cache-control", "max-age=10")), all),
        (None, Some(("cache-control", "no-store")), None),
        (None, Some(("cache-control", "NO-STORE")), None),
        (None, Some(("cache-control", "private")), None),
        (None, Some(("cache-control", "private=\"x-user\"")), None),
        (None, Some(("cache-control", "no-cache")), None),
        (None, Some(("cache-control", "public, no-cache=\"set-cookie, x\"")), None),
        (None, Some(("cache-control", "x=\"a, no-store\"")), all),
        (None, Some(("cache-control", "x=\"a\\\", no-store\"")), all),
        (None, Some(("set-cookie", "a=1")), None),
        (None, Some(("vary", "*")), None),
        (None, Some(("vary", "accept, *")), None),
        (None, Some(("vary", "a, b, c, d, e, f, g, h, i")), None),
        (None, Some(("vary", "accept")), all),
        (None, Some(("cache-control", "must-revalidate")), None),
        (None, Some(("cache-control", "must-revalidate, max-age=10")), Some(10)),
        (None, Some(("cache-control", "proxy-revalidate, max-age=10")), Some(10)),
        (None, Some(("cache-control", "s-maxage=20, max-age=10")), Some(20)),
        (None, Some(("cache-control", "s-maxage=0, max-age=10")), None),
        (None, Some(("cache-control", "s-maxage=soon")), None),
        (None, Some(("cache-control", "max-age=\"10\", must-revalidate")), Some(10)),
        (None, Some(("cache-control", "max-age=10, max-age=5, must-revalidate")), Some(5)),
        (None, Some(("cache-control", "max-age=99999999999999999999, must-revalidate")), all),
        (None, Some(("cache-control", "max-age=10, stale-if-error=30")), Some(40)),
        (None, Some(("cache-control", "stale-if-error=0")), None),
        (None, Some(("cache-control", "stale-if-error=86400")), all),
        (Some(("cache-control", "no-store")), None, None),
        (Some(("cache-control", "no-cache")), None, all),
        (Some(("range", "bytes=0-1")), None, None),
        (Some(("authorization", "Bearer x")), None, None),
        (Some(("authorization", "Bearer x")), Some(("cache-control", "max-age=10")), None),
        (Some(("authorization", "Bearer x")), Some(("cache-control", "public")), all),
        (Some(("authorization", "Bearer x")), Some(("cache-control", "s-maxage=10")), Some(10)),
        (
            Some(("authorization", "Bearer x")),
            Some(("cache-control", "must-revalidate, max-age=10")),
            Some(10),
        ),
        (Some(("cookie", "session=1")), None, None),
        (Some(("cookie", "session=1")), Some(("cache-control", "public")), all),
    ] {
        let (asked, said): (Vec<_>, Vec<_>) = (asked.into_iter().collect(), said.into_iter().collect());
        assert_eq!(usable(&asked, &said), expected, "{asked:?} {said:?}");
    }
    let status = |status| terms(&request(&[]), status, &HeaderMap::new(), Duration::ZERO, MAX_AGE);
    assert!(status(200).is_some());
    for other in [203, 204, 206, 301, 304, 404, 500] {
        assert_eq!(status(other), None, "{other}");
    }
}

#[test]
fn age_is_what_caches_before_said_and_the_time_of_waiting() {
    let said = [("age", "7"), ("cache-control", "max-age=30, must-revalidate")];
    let found = terms(&request(&[]), 200, &response(&said), Duration::from_secs(2), MAX_AGE).unwrap();
    assert_eq!((found.age.as_secs(), found.usable.as_secs()), (9, 21));
    let said = [
        ("age", "-1"),
        (EXPIRES.as_str(), "Thu, 01 Jan 2099 00:00:00 GMT"),
        ("cache-control", "must-revalidate"),
    ];
    assert_eq!(usable(&[], &said), None, "nothing says that it is fresh");
}

#[test]
fn fields_that_select_are_named_once_in_one_order() {
    let said = [("vary", "X-User, accept"), ("vary", "x-user,,ACCEPT-LANGUAGE")];
    let found = terms(&request(&[]), 200, &response(&said), Duration::ZERO, MAX_AGE).unwrap();
    let names: Vec<&str> = found.vary.iter().map(HeaderName::as_str).collect();
    assert_eq!(names, ["accept", "accept-language", "x-user"]);
}

#[test]
fn requests_that_only_the_service_may_answer_are_not_answered() {
    for (fields, expected) in [
        (vec![], true),
        (vec![("cache-control", "max-age=0")], true),
        (vec![("if-none-match", "\"a\"")], true),
        (vec![("cache-control", "max-age=0, No-Cache")], false),
        (vec![("cache-control", "no-store")], false),
        (vec![("if-match", "\"a\"")], false),
        (vec![("if-unmodified-since", "Thu, 01 Jan 2099 00:00:00 GMT")], false),
    ] {
        assert_eq!(may_be_answered(&request(&fields)), expected, "{fields:?}");
    }
}

/// What the rules of `docs/fallback.md` say, one after the other, about directives as a list.
fn by_the_rules(asked: &[&str], said: &[(&str, Option<u64>)], personal: bool, age: u64) -> Option<u64> {
    let has = |name: &str| said.iter().any(|(said, _)| *said == name);
    let least =
        |name: &str| said.iter().filter(|(said, _)| *said == name).filter_map(|(_, time)| *time).min();
    if asked.contains(&"no-store") || has("no-store") || has("no-cache") || has("private") {
        return None;
    }
    if personal && !(has("public") || has("must-revalidate") || has("s-maxage")) {
        return None;
    }
    let lifetime = least("s-maxage").or(least("max-age")).unwrap_or(0);
    let fresh = lifetime.saturating_sub(age);
    let never_stale = has("must-revalidate") || has("proxy-revalidate") || has("s-maxage");
    let mut bounds = vec![300];
    bounds.extend(never_stale.then_some(fresh));
    bounds.extend(least("stale-if-error").map(|stale| fresh + stale));
    bounds.into_iter().min().filter(|usable| *usable > 0)
}

proptest! {
    #[test]
    fn directives_count_as_the_rules_say(
        asked in prop::collection::vec(prop::sample::select(vec!["no-cache", "no-store", "max-age=0", "x"]), 0..2),
        said in prop::collection::vec(
            (
                prop::sample::select(vec![
                    "no-store", "no-cache", "private", "public", "must-revalidate", "proxy-revalidate",
                    "max-age", "s-maxage", "stale-if-error", "immutable", "max-age", "public",
                ]),
                0_u64..400,
            ),
            0..4,
        ),
        personal in any::<bool>(),
        age in 0_u64..20,
        lines in any::<bool>(),
    ) {
        let timed = |name: &str| ["max-age", "s-maxage", "stale-if-error"].contains(&name);
        let said: Vec<(&str, Option<u64>)> =
            said.into_iter().map(|(name, time)| (name, timed(name).then_some(time))).collect();
        let written: Vec<String> = said
            .iter()
            .map(|(name, time)| time.map_or_else(|| (*name).to_owned(), |time| format!("{name}={time}")))
            .collect();
        let mut fields = vec![("age".to_owned(), age.to_string())];
        match lines {
            true => fields.extend(written.iter().map(|value| ("cache-control".into(), value.clone()))),
            false => fields.push(("cache-control".into(), written.join(" , "))),
        }
        let fields: Vec<(&str, &str)> = fields.iter().map(|(name, value)| (&**name, &**value)).collect();
        let mut sent: Vec<(&str, &str)> = asked.iter().map(|value| ("cache-control", *value)).collect();
        if personal {
            sent.push(("authorization", "Bearer x"));
        }
        prop_assert_eq!(usable(&sent, &fields), by_the_rules(&asked, &said, personal, age));
    }
}
