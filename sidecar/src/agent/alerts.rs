//! Watches the workload's requests by the alert rules of its telemetry
//! policies, on the process's own metrics, and says which of them fire.
//!
//! [`crate::policy::alert`] decides; telling people is the control plane's
//! part, which knows all replicas.

use std::collections::HashMap;
use std::time::Instant;

use heddle_api::discovery::v1;
use tokio::sync::watch;
use tokio::time::MissedTickBehavior;

use crate::config::{Against, ConfigHandle, WatchedAlert};
use crate::policy::alert::{Alert, Counts, SHORTEST_SLOT};
use crate::telemetry::metrics::{Durations, Outcome, Registry, Side};

const GAUGE: &str = "heddle_alert_firing";

/// What the rules need.
pub(crate) struct Alerts {
    pub(crate) config: ConfigHandle,
    pub(crate) metrics: Registry,
    /// Those that fire, for the registration.
    pub(crate) firing: watch::Sender<Vec<v1::FiringAlert>>,
}

/// A rule with what it has seen.
struct Watched {
    rule: WatchedAlert,
    alert: Alert,
    /// What was counted when it was last looked at.
    counted: Counts,
}

impl Alerts {
    /// Runs for ever.
    pub(crate) async fn run(mut self) {
        let mut watched = HashMap::new();
        let mut looks = tokio::time::interval(SHORTEST_SLOT);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let workload = self.config.load().workload.clone();
            let rules = workload.as_ref().map_or(&[][..], |workload| &workload.alerts);
            self.look(rules, &mut watched, Instant::now());
            if rules.is_empty() {
                self.config.changed().await;
            } else {
                looks.tick().await;
            }
        }
    }

    /// Brings `watched` up to date with the rules, and judges each.
    fn look(&self, rules: &[WatchedAlert], watched: &mut HashMap<String, Watched>, now: Instant) {
        let before = watched.len();
        watched.retain(|id, watched| {
            let kept = rules.contains(&watched.rule);
            if !kept {
                self.metrics.forget(GAUGE, &[("alert", id)]);
            }
            kept
        });
        let mut changed = watched.len() != before;
        if !rules.is_empty() {
            let totals = Totals { outcomes: self.metrics.outcomes(), durations: self.metrics.durations() };
            for rule in rules {
                changed |= self.judge(rule, totals.of(rule), watched, now);
            }
        }
        if changed {
            let firing = rules.iter().filter_map(|rule| {
                let measured = watched.get(&rule.id)?.alert.firing()?;
                Some(v1::FiringAlert {
                    id: rule.id.clone(),
                    value: measured.value,
                    requests: measured.requests,
                })
            });
            self.firing.send_replace(firing.collect());
        }
    }

    /// Whether a rule began or ceased to fire.
    fn judge(
        &self,
        rule: &WatchedAlert,
        counted: Counts,
        watched: &mut HashMap<String, Watched>,
        now: Instant,
    ) -> bool {
        let watched = watched.entry(rule.id.clone()).or_insert_with(|| {
            self.show(&rule.id, false);
            // What was before the rule is none of its business.
            Watched { rule: rule.clone(), alert: Alert::new(rule.rule.clone(), now), counted }
        });
        // The sum of one service falls when more services went than are kept count of: nothing ended then.
        let ended = Counts {
            requests: counted.requests.saturating_sub(watched.counted.requests),
            against: (counted.against - watched.counted.against).max(0.0),
        };
        watched.counted = counted;
        let changed = watched.alert.observe(ended, now);
        if changed {
            let firing = watched.alert.firing().is_some();
            self.show(&rule.id, firing);
            tracing::info!(alert = rule.id, firing, "an alert changed");
        }
        changed
    }

    fn show(&self, id: &str, firing: bool) {
        let gauge = self.metrics.gauge(GAUGE, "Whether an alert rule fires.", &[("alert", id)]);
        gauge.set(f64::from(u8::from(firing)));
    }
}

/// Everything counted so far.
struct Totals {
    outcomes: Vec<(Side, Vec<(Outcome, u64)>)>,
    durations: Vec<(Side, Durations)>,
}

impl Totals {
    /// What a rule counts.
    // Counts stay far below 2⁵³.
    #[allow(clippy::cast_precision_loss)]
    fn of(&self, rule: &WatchedAlert) -> Counts {
        let meant = |(direction, labels): &Side| {
            *direction == rule.direction
                && rule.service.as_ref().is_none_or(|service| {
                    *service.name() == *labels.service && *service.namespace() == *labels.namespace
                })
        };
        let mut counts = Counts::default();
        if let Against::SlowerThan(limit) = rule.against {
            for (_, durations) in self.durations.iter().filter(|(side, _)| meant(side)) {
                counts.requests += durations.total();
                counts.against += durations.longer_than(limit);
            }
            return counts;
        }
        for (_, outcomes) in self.outcomes.iter().filter(|(side, _)| meant(side)) {
            for (outcome, count) in outcomes {
                counts.requests += count;
                if is_against(rule.against, outcome) {
                    counts.against += *count as f64;
                }
            }
        }
        counts
    }
}

fn is_against(against: Against, outcome: &Outcome) -> bool {
    let grpc = || outcome.grpc_status.is_some_and(blames_server);
    match against {
        Against::None | Against::SlowerThan(_) => false,
        Against::ServerErrors => outcome.code / 100 == 5 || grpc(),
        Against::Status5xx => outcome.code / 100 == 5,
        Against::Status4xx => outcome.code / 100 == 4,
        Against::Grpc => grpc(),
        Against::Reason(reason) => outcome.error == Some(reason),
    }
}

/// gRPC's `UNKNOWN`, `DEADLINE_EXCEEDED`, `RESOURCE_EXHAUSTED`, `ABORTED`,
/// `UNIMPLEMENTED`, `INTERNAL`, `UNAVAILABLE`, `DATA_LOSS`, and what is no status.
fn blames_server(status: u8) -> bool {
    !matches!(status, 0 | 1 | 3 | 5 | 6 | 7 | 9 | 11 | 16)
}

#[cfg(test)]
mod tests {
    use std::rc::Rc;
    use std::time::Duration;

    use super::*;
    use crate::policy::alert::{AlertRule, Condition};
    use crate::telemetry::metrics::{Direction, RequestLabels, RequestMetrics, Tls};

    fn rule(id: &str, against: Against, service: Option<&str>) -> WatchedAlert {
        WatchedAlert {
            id: id.into(),
            rule: AlertRule {
                condition: Condition::ShareFrom(50.0),
                window: Duration::from_secs(10),
                min_requests: 2,
                hold: Duration::ZERO,
            },
            against,
            direction: Direction::Outbound,
            service: service.map(|service| service.parse().unwrap()),
        }
    }

    #[test]
    fn requests_of_the_rules_side_and_service_are_counted_from_then_on() {
        let (_, config, _) = crate::config::channel();
        let (firing, fired) = watch::channel(Vec::new());
        let alerts = Alerts { config, metrics: Registry::new(), firing };
        let shard = alerts.metrics.shard();
        let requests = |service: &str| {
            shard.requests(&RequestLabels {
                direction: Direction::Outbound,
                service: service.into(),
                namespace: "shop".into(),
                route: "".into(),
                peer: "unknown".into(),
                tls: Tls::None,
                added: None,
            })
        };
        let (users, orders) = (requests("users"), requests("orders"));
        let end = |of: &Rc<RequestMetrics>, code| {
            of.begin().finish(Outcome { code, ..Outcome::default() }, Duration::from_millis(1));
        };
        let rules = [
            rule("users", Against::ServerErrors, Some("shop/users")),
            rule("any", Against::ServerErrors, None),
            rule("client", Against::Status4xx, None),
        ];
        let (mut watched, start) = (HashMap::new(), Instant::now());
        end(&users, 500);
        alerts.look(&rules, &mut watched, start);
        for code in [500, 502, 200] {
            end(&orders, code);
        }
        alerts.look(&rules, &mut watched, start + Duration::from_secs(1));
        let ids = || fired.borrow().iter().map(|alert| alert.id.clone()).collect::<Vec<_>>();
        assert_eq!(ids(), ["any"]);
        assert!((fired.borrow()[0].value - 66.66).abs() < 0.1, "{:?}", fired.borrow());
        end(&users, 500);
        end(&users, 503);
        alerts.look(&rules, &mut watched, start + Duration::from_secs(2));
        assert_eq!(ids(), ["users", "any"]);
        assert!(alerts.metrics.encode().contains("heddle_alert_firing{alert=\"users\"} 1"));
        // A rule that went fires no more, and shows no more.
        alerts.look(&rules[1..], &mut watched, start + Duration::from_secs(3));
        assert_eq!(ids(), ["any"]);
        assert!(!alerts.metrics.encode().contains("alert=\"users\""));
    }

    /// The old rule's baseline once stayed, and all server errors since the process began
    /// counted as new client errors.
    #[test]
    fn a_rule_that_changes_under_its_id_begins_anew() {
        let (_, config, _) = crate::config::channel();
        let (firing, fired) = watch::channel(Vec::new());
        let alerts = Alerts { config, metrics: Registry::new(), firing };
        let shard = alerts.metrics.shard();
        let requests = shard.requests(&RequestLabels {
            direction: Direction::Outbound,
            service: "users".into(),
            namespace: "shop".into(),
            route: "".into(),
            peer: "unknown".into(),
            tls: Tls::None,
            added: None,
        });
        let end = |code| requests.begin().finish(Outcome { code, ..Outcome::default() }, Duration::ZERO);
        let (mut watched, start) = (HashMap::new(), Instant::now());
        (0..100).for_each(|_| end(404));
        alerts.look(&[rule("a", Against::ServerErrors, None)], &mut watched, start);
        (0..4).for_each(|_| end(200));
        alerts.look(&[rule("a", Against::Status4xx, None)], &mut watched, start + Duration::from_secs(1));
        (0..4).for_each(|_| end(200));
        alerts.look(&[rule("a", Against::Status4xx, None)], &mut watched, start + Duration::from_secs(2));
        assert!(fired.borrow().is_empty(), "{:?}", fired.borrow());
        (0..8).for_each(|_| end(404));
        alerts.look(&[rule("a", Against::Status4xx, None)], &mut watched, start + Duration::from_secs(3));
        assert_eq!(fired.borrow().len(), 1);
        let elsewhere = rule("a", Against::Status4xx, Some("shop/orders"));
        alerts.look(&[elsewhere], &mut watched, start + Duration::from_secs(4));
        assert!(fired.borrow().is_empty(), "{:?}", fired.borrow());
    }
}
