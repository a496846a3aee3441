use std::time::{Duration, Instant};

use heddle_api::discovery::v1::WorkloadHealth;

use super::*;

pub(super) fn pod(uid: &str) -> PodKey {
    ("spiffe://mesh.local/ns/shop/sa/users".parse().unwrap(), uid.to_owned())
}

pub(super) fn report(score: u32) -> Report {
    let health = Health { state: WorkloadHealth::Healthy, score, cause: String::new() };
    Report { health, alerts: Vec::new() }
}

fn share(reports: &Reports, uid: &str) -> Option<u32> {
    reports.of(&pod(uid)).map(|report| report.health.share())
}

const SHARES: Changed = Changed { shares: true, alerts: false, own: false };

#[test]
fn a_lost_stream_leaves_its_report_for_the_grace_period() {
    let (mut reports, now) = (Reports::default(), Instant::now());
    let stream = reports.stream();
    assert_eq!(reports.begin(stream, &pod("1"), report(40), 1), Changed { own: true, ..SHARES });
    reports.lost(stream, &pod("1"), now);
    assert_eq!(reports.expire(now + GRACE / 2), Changed::default());
    assert_eq!(share(&reports, "1"), Some(40));
    assert_eq!(reports.expire(now + GRACE), Changed::ALL);
    assert_eq!(share(&reports, "1"), None);
}

#[test]
fn an_old_stream_that_ends_late_changes_nothing() {
    let (mut reports, now) = (Reports::default(), Instant::now());
    let (old, new) = (reports.stream(), reports.stream());
    reports.begin(old, &pod("1"), report(40), 1);
    reports.begin(new, &pod("1"), report(70), 2);
    assert_eq!(reports.update(old, &pod("1"), report(10)), Err(Superseded));
    assert_eq!(reports.lost(old, &pod("1"), now), Changed::default());
    assert_eq!(reports.expire(now + 2 * GRACE), Changed::default());
    assert_eq!(share(&reports, "1"), Some(70));
}

#[test]
fn of_several_control_planes_the_one_with_the_live_stream_is_right() {
    let (mut reports, now) = (Reports::default(), Instant::now());
    let (here, there) = (reports.stream(), reports.stream());
    reports.begin(here, &pod("1"), report(40), 1);
    assert_eq!(reports.learn("b", there, &pod("1"), report(70), 2, false), SHARES);
    assert_eq!(share(&reports, "1"), Some(70), "the later one, while both live");
    // It comes back here, and the other has not noticed yet.
    let again = reports.stream();
    reports.begin(again, &pod("1"), report(10), 3);
    assert_eq!(share(&reports, "1"), Some(10));
    reports.lost(again, &pod("1"), now);
    assert_eq!(share(&reports, "1"), Some(70), "a live one before a lost one");
    assert_eq!(reports.learn("b", there, &pod("1"), report(70), 2, true), SHARES);
    assert_eq!(share(&reports, "1"), Some(10), "of lost ones the later");
    reports.unlearn("b", &pod("1"));
    reports.expire(now + GRACE);
    assert_eq!(share(&reports, "1"), None);
}

#[test]
fn what_a_control_plane_that_is_gone_has_heard_holds_until_its_pods_had_time_to_come_back() {
    let (mut reports, now) = (Reports::default(), Instant::now());
    let first = reports.stream();
    for uid in ["1", "2"] {
        reports.learn("b", first, &pod(uid), report(40), 1, false);
    }
    reports.forget("b", now);
    assert_eq!(share(&reports, "1"), Some(40));
    // It is back, and of the two only one.
    let second = reports.stream();
    reports.learn("b", second, &pod("1"), report(40), 1, false);
    assert_eq!(share(&reports, "2"), Some(40), "it has not told all yet");
    assert_eq!(reports.complete("b", second), Changed { alerts: true, ..SHARES });
    assert_eq!((share(&reports, "1"), share(&reports, "2")), (Some(40), None));
    reports.forget("b", now);
    assert_eq!(reports.expire(now + GRACE), Changed::ALL);
    assert_eq!(reports.counts(), (0, 0));
}

#[test]
fn news_are_what_changed_and_of_ones_own_pods_alone() {
    let (mut reports, now, mut sent) = (Reports::default(), Instant::now(), Sent::default());
    let stream = reports.stream();
    reports.begin(stream, &pod("1"), report(40), 1);
    reports.learn("b", stream, &pod("2"), report(40), 1, false);
    let news = |reports: &Reports, sent: &mut Sent| {
        let (changed, gone) = reports.news(sent);
        let changed: Vec<(String, bool)> =
            changed.into_iter().map(|((_, uid), entry)| (uid, entry.lost)).collect();
        (changed, gone.into_iter().map(|(_, uid)| uid).collect::<Vec<_>>())
    };
    assert_eq!(news(&reports, &mut sent), (vec![("1".into(), false)], vec![]));
    assert_eq!(news(&reports, &mut sent), (vec![], vec![]));
    assert_eq!(reports.update(stream, &pod("1"), report(40)), Ok(Changed::default()));
    assert_eq!(news(&reports, &mut sent), (vec![], vec![]));
    reports.lost(stream, &pod("1"), now);
    assert_eq!(news(&reports, &mut sent), (vec![("1".into(), true)], vec![]));
    reports.expire(now + GRACE + Duration::from_secs(1));
    assert_eq!(news(&reports, &mut sent), (vec![], vec!["1".into()]));
}

#[test]
fn pods_that_were_not_well_before_a_restart_stay_so_until_they_say_otherwise_or_are_not_back() {
    let (mut reports, now) = (Reports::default(), Instant::now());
    let health = |score| report(score).health;
    let restored = vec![(pod("1"), health(10)), (pod("2"), health(40)), (pod("3"), health(10))];
    assert!(reports.restore(restored, now + GRACE).shares);
    let here = reports.stream();
    assert_eq!(reports.begin(here, &pod("1"), report(100), 1), Changed { own: true, ..SHARES });
    let there = reports.stream();
    assert_eq!(reports.learn("b", there, &pod("2"), report(70), 1, true), SHARES, "lost, but later");
    let shares = |reports: &Reports| ["1", "2", "3"].map(|uid| share(reports, uid));
    assert_eq!(shares(&reports), [Some(100), Some(70), Some(10)]);
    reports.expire(now + GRACE);
    assert_eq!(shares(&reports), [Some(100), Some(70), None]);
}
