//! Alerts: sidecars report which rules fire at them, the [`board`] makes one
//! state per rule and service of that, and each change goes to the rule's
//! [`webhook`] by way of the [`outbox`], which tries again until it arrives.
//!
//! Nothing is kept over a restart: what fires then is reported, and told, again.

mod board;
mod outbox;
mod webhook;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Instant, SystemTime};

use heddle_api::name::ServiceName;
use parking_lot::Mutex;
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tracing::{info, warn};

use self::board::{Board, Key, TooMany};
pub(crate) use self::board::{Reported, Shown};
use self::outbox::{Fate, Outbox};
use self::webhook::NotTaken;
pub(crate) use self::webhook::{direction, timestamp};
use crate::compile::AlertRules;
use crate::discovery::Published;
use crate::https::Client;
use crate::metrics::{Metrics, Notified};
use crate::registry::WorkloadKey;

/// The board as streams and the sender share it.
#[derive(Default)]
pub(crate) struct SharedAlerts {
    board: Mutex<Board>,
    changed: Notify,
    streams: AtomicU64,
}

impl SharedAlerts {
    /// A number for a stream by which one workload reports.
    pub(crate) fn stream(&self) -> u64 {
        self.streams.fetch_add(1, Relaxed)
    }

    /// Takes what one workload reports; what it does not, is resolved there.
    pub(crate) fn report(
        &self,
        stream: u64,
        workload: &WorkloadKey,
        service: &ServiceName,
        alerts: Vec<Reported>,
    ) {
        let taken = self.board.lock().report(stream, workload, service, alerts);
        match taken {
            Ok(true) => self.changed.notify_one(),
            Ok(false) => {}
            Err(TooMany) => warn!(
                identity = %workload.0, instance = workload.1,
                "alerts fire at too many instances of one identity; this one's are left out"
            ),
        }
    }

    /// Its stream ended; what it reported last holds for a while.
    pub(crate) fn lost(&self, stream: u64, workload: &WorkloadKey) {
        if self.board.lock().lost(stream, workload, Instant::now()) {
            self.changed.notify_one();
        }
    }

    /// What fires.
    pub(crate) fn firing(&self) -> Vec<Shown> {
        self.board.lock().firing()
    }
}

/// Tells people.
pub(crate) struct Teller {
    pub(crate) alerts: Arc<SharedAlerts>,
    pub(crate) published: watch::Receiver<Option<Arc<Published>>>,
    pub(crate) metrics: Arc<Metrics>,
}

impl Teller {
    /// Works until it is dropped.
    pub(crate) async fn run(mut self) {
        let client = Arc::new(Client::new("alerts go"));
        let mut outbox = Outbox::default();
        let mut posts: JoinSet<(Key, Result<(), NotTaken>)> = JoinSet::new();
        loop {
            let published = self.published.borrow_and_update().clone();
            // Without rules nothing is looked at, and what would be due stays so.
            let look = published.and_then(|published| {
                self.tell(&published.model.alert_rules, &mut outbox, &mut posts, &client);
                self.alerts.board.lock().next_look()
            });
            let next = [look, outbox.next()].into_iter().flatten().min();
            let due = async {
                match next {
                    Some(next) => tokio::time::sleep_until(next.into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                changed = self.published.changed() => if changed.is_err() { return },
                () = self.alerts.changed.notified() => {}
                Some(posted) = posts.join_next() => if let Ok((key, result)) = posted {
                    self.posted(&mut outbox, &key, result);
                },
                () = due => {}
            }
        }
    }

    /// Brings the board up to date and sends what is due.
    fn tell(
        &self,
        rules: &AlertRules,
        outbox: &mut Outbox,
        posts: &mut JoinSet<(Key, Result<(), NotTaken>)>,
        client: &Arc<Client>,
    ) {
        let now = Instant::now();
        let notices = self.alerts.board.lock().look(rules, now, SystemTime::now());
        for notice in notices {
            let (alert, service) = (&notice.key.rule, &notice.key.service);
            info!(alert, %service, status = notice.status.as_str(), value = notice.value, "an alert changed");
            if notice.rule.target.is_some() && !outbox.push(notice, now) {
                self.metrics.notified(Notified::Dropped);
                warn!("too many alerts wait for their webhooks; one was dropped");
            }
        }
        outbox.keys(now, |key| {
            let target = rules.get(&key.rule).and_then(|rule| rule.target.as_ref());
            target.is_none_or(|target| target.key.is_some())
        });
        for notice in outbox.due(now) {
            let current = rules.get(&notice.key.rule).cloned();
            let is_gone = current.is_none();
            let rule = current.unwrap_or_else(|| notice.rule.clone());
            let client = client.clone();
            posts.spawn(async move {
                let result = match &rule.target {
                    Some(target) => webhook::post(&client, target, &notice).await,
                    None => Err(NotTaken::Never("the rule has no webhook any more".into())),
                };
                let result = match result {
                    // Nobody waits for the key of a rule that is gone.
                    Err(NotTaken::Unsigned(reason)) if is_gone => Err(NotTaken::Never(reason)),
                    result => result,
                };
                (notice.key, result)
            });
        }
    }

    fn posted(&self, outbox: &mut Outbox, key: &Key, result: Result<(), NotTaken>) {
        let (fate, reason) = match result {
            Ok(()) => (Fate::Taken, None),
            Err(NotTaken::Yet(reason)) => (Fate::Refused, Some(reason)),
            Err(NotTaken::Never(reason)) => (Fate::Final, Some(reason)),
            Err(NotTaken::Unsigned(reason)) => (Fate::Unsigned, Some(reason)),
        };
        let given_up = outbox.done(key, fate, Instant::now(), chance());
        let (alert, service) = (&key.rule, &key.service);
        match reason {
            None => self.metrics.notified(Notified::Delivered),
            Some(reason) if given_up => {
                self.metrics.notified(Notified::Dropped);
                warn!(alert, %service, reason, "a webhook does not take an alert; it is given up");
            }
            Some(reason) => {
                self.metrics.notified(Notified::Retried);
                warn!(alert, %service, reason, "a webhook did not take an alert; it is tried again");
            }
        }
    }
}

/// Anything from 0 to 1, against retries in step.
fn chance() -> f64 {
    use std::hash::{BuildHasher, RandomState};
    let random = RandomState::new().hash_one(0);
    f64::from(u32::try_from(random >> 32).unwrap_or_default()) / f64::from(u32::MAX)
}
