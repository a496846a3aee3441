use proptest::prelude::*;

use super::*;

/// An API server with one lease: a write is accepted if it names the version that is there.
#[derive(Debug, Default)]
struct Server {
    lease: Option<Seen>,
    writes: u64,
}

impl Server {
    fn write(&mut self, holder: &str, claim: Claim, version: Option<&str>) -> Option<Seen> {
        let accepted = match (&self.lease, claim) {
            (None, Claim::Create) => true,
            (Some(lease), Claim::Renew | Claim::TakeOver) => Some(lease.version.as_str()) == version,
            _ => false,
        };
        accepted.then(|| {
            self.writes += 1;
            let lease = Seen { version: self.writes.to_string(), holder: holder.into(), duration: DURATION };
            self.lease = Some(lease.clone());
            lease
        })
    }
}

fn seconds(n: u64) -> Duration {
    Duration::from_secs(n)
}

/// One undisturbed round.
fn round(election: &mut Election, server: &mut Server, now: Instant) {
    let read = server.lease.clone();
    election.observe(read.as_ref(), now);
    if let Some(claim) = election.claim(now) {
        let holder = election.holder().to_owned();
        match server.write(&holder, claim, read.as_ref().map(|lease| lease.version.as_str())) {
            Some(lease) => election.won(&lease, now, now),
            None => election.outrun(),
        }
    }
}

#[test]
fn the_first_candidate_takes_the_lease_and_keeps_it() {
    let (mut server, start) = (Server::default(), Instant::now());
    let (mut a, mut b) = (Election::new("a".into()), Election::new("b".into()));
    assert_eq!(a.claim(start), None, "nothing is claimed before anything was read");
    round(&mut a, &mut server, start);
    for second in (0..600).step_by(5) {
        let now = start + seconds(second);
        round(&mut a, &mut server, now);
        round(&mut b, &mut server, now);
        assert!(a.leads(now) && !b.leads(now), "at {second} s");
        assert_eq!(a.pause(now), RENEW);
        assert_eq!(b.pause(now), RETRY);
    }
}

#[test]
fn a_holder_that_is_silent_stops_before_another_begins() {
    let (mut server, start) = (Server::default(), Instant::now());
    let (mut a, mut b) = (Election::new("a".into()), Election::new("b".into()));
    round(&mut a, &mut server, start);
    let mut taken = None;
    for second in 0..30 {
        let now = start + seconds(second);
        round(&mut b, &mut server, now);
        assert!(!(a.leads(now) && b.leads(now)), "both lead at {second} s");
        if b.leads(now) && taken.is_none() {
            taken = Some(second);
        }
    }
    assert!(!a.leads(start + HOLD));
    assert_eq!(taken, Some(DURATION.as_secs()));
}

#[test]
fn a_lease_that_was_given_back_is_taken_at_once() {
    let (mut server, now) = (Server::default(), Instant::now());
    let (mut a, mut b) = (Election::new("a".into()), Election::new("b".into()));
    round(&mut a, &mut server, now);
    server.lease.as_mut().unwrap().holder.clear();
    round(&mut b, &mut server, now);
    assert!(b.leads(now));
}

#[test]
fn a_renewal_that_fails_is_tried_again_within_the_hold() {
    let (mut server, start) = (Server::default(), Instant::now());
    let mut a = Election::new("a".into());
    round(&mut a, &mut server, start);
    let mut now = start + RENEW;
    let mut tries = 0;
    while a.leads(now) {
        tries += 1;
        let pause = a.pause(now);
        assert!(!pause.is_zero() && pause <= RETRY);
        now += pause;
    }
    assert!(tries >= 3, "{tries}");
    assert!(now <= start + HOLD);
}

#[test]
fn a_lease_that_claims_to_last_for_ever_does_not() {
    let start = Instant::now();
    let mut a = Election::new("a".into());
    let lease = Seen { version: "1".into(), holder: "gone".into(), duration: seconds(1_000_000) };
    a.observe(Some(&lease), start);
    assert_eq!(a.claim(start + DURATION), None);
    assert_eq!(a.claim(start + MAX_DURATION), Some(Claim::TakeOver));
}

/// What may happen to a candidate in one round.
#[derive(Debug, Clone, Copy)]
enum Fate {
    Works,
    /// The read fails.
    Blind,
    /// The write is accepted, but the answer is lost.
    AnswerLost,
    /// The answer comes late, by so many seconds.
    Late(u64),
    /// It is killed and comes back under another name.
    Dies,
}

fn fate() -> impl Strategy<Value = Fate> {
    prop_oneof![
        5 => Just(Fate::Works),
        1 => Just(Fate::Blind),
        1 => Just(Fate::AnswerLost),
        1 => (1..4u64).prop_map(Fate::Late),
        1 => Just(Fate::Dies),
    ]
}

proptest! {
    /// Whatever fails and in whatever order candidates act, at most one leads at any time.
    #[test]
    fn at_most_one_leads(steps in prop::collection::vec((0..3usize, fate(), 0..4u64), 1..200)) {
        let (mut server, mut now) = (Server::default(), Instant::now());
        let mut lives = 3;
        let mut candidates: Vec<Election> = (0..3).map(|n| Election::new(n.to_string())).collect();
        for (index, fate, pause) in steps {
            let read = server.lease.clone();
            let candidate = &mut candidates[index];
            if matches!(fate, Fate::Dies) {
                lives += 1;
                *candidate = Election::new(lives.to_string());
            } else if !matches!(fate, Fate::Blind) {
                candidate.observe(read.as_ref(), now);
                let sent = now;
                if let Some(claim) = candidate.claim(now) {
                    let holder = candidate.holder().to_owned();
                    let version = read.as_ref().map(|lease| lease.version.as_str());
                    let written = server.write(&holder, claim, version);
                    if let Fate::Late(delay) = fate {
                        now += seconds(delay);
                    }
                    match written {
                        _ if matches!(fate, Fate::AnswerLost) => {}
                        Some(lease) => candidate.won(&lease, sent, now),
                        None => candidate.outrun(),
                    }
                }
            }
            prop_assert!(candidates.iter().filter(|c| c.leads(now)).count() <= 1);
            now += seconds(pause);
            prop_assert!(candidates.iter().filter(|c| c.leads(now)).count() <= 1);
        }
    }
}
