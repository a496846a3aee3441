use proptest::prelude::*;

use super::*;
use crate::route::Http1Head;

const SECOND: Duration = Duration::from_secs(1);

const CLIENT: Client<'static> =
    Client { identity: "spiffe://mesh/ns/a/sa/b", address: None, mark: None, tokens: &[] };

fn limit(quota: Quota, key: &[KeyPart], now: Instant) -> RateLimit {
    RateLimit {
        source: "shop/limits".into(),
        name: "one".into(),
        marks: None,
        matches: Arc::default(),
        key: key.into(),
        quota,
        buckets: Arc::new(Buckets::new(!key.is_empty(), now)),
    }
}

fn quota(requests: u32, per: Duration, burst: u32) -> Quota {
    Quota::new(requests, per, burst).expect("there is such a quota")
}

fn head(text: &str) -> String {
    format!("GET / HTTP/1.1\r\nhost: users\r\n{text}\r\n")
}

fn ask(limits: &[RateLimit], fields: &str, client: Client<'_>, now: Instant) -> (bool, u64, Duration) {
    let head = head(fields);
    let standing = admit(limits, &Http1Head::new(head.as_bytes()), client, now).expect("it is about all");
    (!standing.refused, standing.remaining, standing.reset)
}

/// A bucket as the rules describe it, in nanoseconds of tokens: it gains one with each nanosecond
/// up to what it can hold, and a request costs an interval.
struct Oracle {
    level: u128,
    at: u128,
}

impl Oracle {
    fn fill(&mut self, quota: &Quota, now: u128) {
        self.level = (self.level + (now - self.at)).min(u128::from(quota.capacity));
        self.at = now;
    }

    fn has(&self, quota: &Quota) -> bool {
        self.level >= u128::from(quota.interval)
    }
}

proptest! {
    /// Whatever comes when, a limit admits what a bucket would that is filled and emptied step by
    /// step, and says the same about it.
    #[test]
    fn a_limit_is_a_token_bucket(
        requests in 1_u32..20,
        per in 1_u64..3_000,
        burst in 1_u32..20,
        gaps in prop::collection::vec(prop_oneof![Just(0), 0_u64..50_000_000, 0_u64..4_000_000_000], 1..200),
    ) {
        let quota = quota(requests, Duration::from_millis(per), burst);
        let start = Instant::now();
        let limits = [limit(quota, &[], start)];
        let mut oracle = Oracle { level: u128::from(quota.capacity), at: 0 };
        let mut now = 0;
        for gap in gaps {
            now += gap;
            oracle.fill(&quota, u128::from(now));
            let expected = oracle.has(&quota);
            let (admitted, remaining, reset) = ask(&limits, "", CLIENT, start + Duration::from_nanos(now));
            prop_assert_eq!(admitted, expected);
            if expected {
                oracle.level -= u128::from(quota.interval);
                prop_assert_eq!(reset.as_nanos(), u128::from(quota.capacity) - oracle.level);
            } else {
                prop_assert_eq!(reset.as_nanos(), u128::from(quota.interval) - oracle.level);
            }
            prop_assert_eq!(u128::from(remaining), oracle.level / u128::from(quota.interval));
        }
    }

    /// Of several limits each has to admit, and what one refuses costs the others nothing.
    #[test]
    fn all_limits_have_to_admit_and_a_refusal_is_free(
        quotas in prop::collection::vec((1_u32..10, 100_u64..2_000, 1_u32..10), 1..4),
        gaps in prop::collection::vec(0_u64..300_000_000, 1..150),
    ) {
        let start = Instant::now();
        let quotas: Vec<Quota> =
            quotas.into_iter().map(|(n, per, burst)| quota(n, Duration::from_millis(per), burst)).collect();
        let limits: Vec<RateLimit> = quotas.iter().map(|quota| limit(*quota, &[], start)).collect();
        let mut oracles: Vec<Oracle> =
            quotas.iter().map(|quota| Oracle { level: u128::from(quota.capacity), at: 0 }).collect();
        let mut now = 0;
        for gap in gaps {
            now += gap;
            let mut pairs: Vec<_> = oracles.iter_mut().zip(&quotas).collect();
            pairs.iter_mut().for_each(|(oracle, quota)| oracle.fill(quota, u128::from(now)));
            let expected = pairs.iter().all(|(oracle, quota)| oracle.has(quota));
            let waits = pairs.iter().map(|(oracle, quota)| u128::from(quota.interval).saturating_sub(oracle.level));
            let longest = waits.max();
            if expected {
                pairs.iter_mut().for_each(|(oracle, quota)| oracle.level -= u128::from(quota.interval));
            }
            let (admitted, remaining, reset) = ask(&limits, "", CLIENT, start + Duration::from_nanos(now));
            prop_assert_eq!(admitted, expected);
            if expected {
                let least = oracles.iter().zip(&quotas).map(|(o, quota)| o.level / u128::from(quota.interval)).min();
                prop_assert_eq!(Some(u128::from(remaining)), least);
            } else {
                prop_assert_eq!(Some(reset.as_nanos()), longest);
            }
        }
    }
}

#[test]
fn each_value_of_a_key_has_a_bucket_of_its_own() {
    let now = Instant::now();
    let one = quota(1, SECOND, 1);
    let address = |last| Client { address: Some([10, 0, 0, last].into()), ..CLIENT };
    let marked = |mark| Client { mark: Some(mark), ..CLIENT };
    let header = KeyPart::Header(HeaderName::from_static("x-user"));
    let cases: [(KeyPart, [(&str, Client<'_>); 2]); 4] = [
        (KeyPart::Identity, [("", CLIENT), ("", Client { identity: "unknown", ..CLIENT })]),
        (KeyPart::SourceAddress, [("", address(1)), ("", address(2))]),
        (header, [("x-user: a\r\nx-user: b\r\n", CLIENT), ("x-user: ab\r\n", CLIENT)]),
        (KeyPart::Route, [("", marked(b"a")), ("", CLIENT)]),
    ];
    for (part, callers) in cases {
        let limits = [limit(one, std::slice::from_ref(&part), now)];
        for expected in [true, false] {
            for (fields, client) in callers {
                assert_eq!(ask(&limits, fields, client, now).0, expected, "{part:?} {fields} {client:?}");
            }
        }
    }
}

#[test]
fn a_limit_is_asked_about_its_requests_only() {
    let now = Instant::now();
    let put = RequestMatch { method: Some(b"PUT".as_slice().into()), ..RequestMatch::default() };
    let of_put = RateLimit { matches: [put].into(), ..limit(quota(1, SECOND, 1), &[], now) };
    let of_rule =
        RateLimit { marks: Some([b"a".as_slice().into()].into()), ..limit(quota(1, SECOND, 1), &[], now) };
    let limits = [of_put, of_rule];
    let text = head("");
    let asked = |mark| admit(&limits, &Http1Head::new(text.as_bytes()), Client { mark, ..CLIENT }, now);
    assert!(asked(None).is_none() && asked(Some(b"b")).is_none());
    assert_eq!(asked(Some(b"a")).map(|standing| (standing.place, standing.refused)), Some((1, false)));
    assert_eq!(asked(Some(b"a")).map(|standing| standing.refused), Some(true));
}

#[test]
fn what_was_taken_outlives_a_change_of_the_numbers() {
    let now = Instant::now();
    let before = limit(quota(10, 60 * SECOND, 10), &[], now);
    (0..10).for_each(|_| assert!(ask(std::slice::from_ref(&before), "", CLIENT, now).0));
    let after = [RateLimit { quota: quota(10, SECOND, 10), ..before.clone() }];
    before.buckets.fit(&after[0].quota, now);
    let (admitted, _, reset) = ask(&after, "", CLIENT, now);
    assert!(
        !admitted && reset <= SECOND / 10,
        "an empty bucket fills as fast as the new numbers say: {reset:?}"
    );
    assert!(ask(&after, "", CLIENT, now + SECOND / 10).0);
    assert!(!ask(&after, "", CLIENT, now + SECOND / 10).0, "one of them");
}

#[test]
fn too_many_keys_err_on_the_clients_side_and_are_bounded() {
    let now = Instant::now();
    let limits =
        [limit(quota(2, 3600 * SECOND, 2), &[KeyPart::Header(HeaderName::from_static("x-user"))], now)];
    let user = |number: u32| format!("x-user: {number}\r\n");
    let known = (0..50_000).filter(|number| ask(&limits, &user(*number), CLIENT, now).0).count();
    assert_eq!(known, 50_000, "nobody is refused for others' requests");
    let remembered = (0..50_000).filter(|number| ask(&limits, &user(*number), CLIENT, now).1 == 0).count();
    assert!(remembered > 40_000, "{remembered} of 50,000 fit");
    // As soon as they are full again, others find room.
    let later = now + 3600 * SECOND;
    (50_000..60_000).for_each(|number| assert!(ask(&limits, &user(number), CLIENT, later).0));
    let remembered =
        (50_000..60_000).filter(|number| ask(&limits, &user(*number), CLIENT, later).1 == 0).count();
    assert!(remembered > 9_900, "{remembered} of 10,000");
}

#[test]
fn the_levels_are_those_of_the_buckets_in_use() {
    let now = Instant::now();
    let limit = limit(quota(10, 10 * SECOND, 10), &[KeyPart::Header(HeaderName::from_static("x-user"))], now);
    let levels = |later| {
        let Levels { used, empty, least } = limit.levels(now + later);
        (used, empty, least)
    };
    assert_eq!(levels(Duration::ZERO), (0, 0, 10));
    for (user, count) in [("a", 10), ("b", 3), ("c", 1)] {
        (0..count).for_each(|_| {
            assert!(ask(std::slice::from_ref(&limit), &format!("x-user: {user}\r\n"), CLIENT, now).0);
        });
    }
    assert_eq!(levels(Duration::ZERO), (3, 1, 0));
    assert_eq!(levels(2 * SECOND), (2, 0, 2));
    assert_eq!(levels(10 * SECOND), (0, 0, 10));
}

#[test]
fn workers_share_a_limit() {
    let now = Instant::now();
    let limits = [limit(quota(1000, 3600 * SECOND, 1000), &[KeyPart::Identity], now)];
    let admitted: usize = std::thread::scope(|scope| {
        let worker = || (0..1000).filter(|_| ask(&limits, "", CLIENT, now).0).count();
        let workers: Vec<_> = (0..4).map(|_| scope.spawn(worker)).collect();
        workers.into_iter().map(|worker| worker.join().expect("it does not panic")).sum()
    });
    assert_eq!(admitted, 1000);
}

#[test]
fn there_is_no_quota_of_nothing_or_for_ever() {
    assert!(Quota::new(0, SECOND, 1).is_none() && Quota::new(1, SECOND, 0).is_none());
    assert!(Quota::new(1, Duration::ZERO, 1).is_none());
    assert!(Quota::new(1, Duration::from_secs(u64::from(u32::MAX)), u32::MAX).is_none());
}

/// A token of this issuer with this `sub`, verified.
fn token(issuer: &str, sub: &str) -> Rc<Verified> {
    use crate::policy::jwt::{Key, Material, Provider, Token};
    const SECRET: &[u8] = &[7; 32];
    let claims = serde_json::json!({"iss": issuer, "sub": sub, "exp": 1_000});
    let key = jsonwebtoken::EncodingKey::from_secret(SECRET);
    let text = jsonwebtoken::encode(&jsonwebtoken::Header::default(), &claims, &key).unwrap();
    let provider = Provider {
        name: "a".into(),
        issuer: issuer.into(),
        audiences: Box::default(),
        keys: [Key::new("", ["HS256"], Material::Secret(SECRET)).unwrap()].into(),
        keys_from: Box::default(),
        locations: Box::default(),
        stripped: false,
        headers: Box::default(),
        lookalikes: Box::default(),
        skew: Duration::ZERO,
    };
    Rc::new(Token::parse(text.as_bytes()).unwrap().verify(&provider, std::time::UNIX_EPOCH).unwrap())
}

/// Whoever may choose a name at one issuer used up the bucket of the user of that name at another.
#[test]
fn a_claim_counts_with_the_issuer_that_makes_it() {
    let now = Instant::now();
    let limits = [limit(quota(1, SECOND, 1), &[KeyPart::Claim("sub".into())], now)];
    let admitted = |issuer: &str, sub: &str| {
        let tokens = [token(issuer, sub)];
        ask(&limits, "", Client { tokens: &tokens, ..CLIENT }, now).0
    };
    assert_eq!([admitted("a", "ann"), admitted("a", "ann")], [true, false]);
    assert!(admitted("b", "ann") && admitted("a", "bob"));
    assert!(!admitted("b", "ann"));
}
