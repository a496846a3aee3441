//! Alerts: sidecars report which rules fire at them, the [`board`] makes one
//! state per rule and service of that, and each change goes to the rule's
//! [`webhook`] by way of the [`outbox`], which tries again until it arrives.
//!
//! Of the control planes of one cluster, which all hear of every pod, the one tells that holds the
//! lease, and goes on while no other does: an API server that is away silences nobody. What it has told
//! the others keep, and the next one goes on from there. When no other is left it is [`kept`] where it
//! outlives all of them, and a control plane that starts anew goes on from that.

mod board;
mod kept;
mod outbox;
mod told;
mod webhook;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Instant, SystemTime};

use heddle_api::discovery::v1;
use heddle_api::name::ServiceName;
use parking_lot::Mutex;
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tracing::{info, warn};

use self::board::{Board, Key, TooMany};
pub(crate) use self::board::{Reported, Shown};
use self::kept::Kept;
use self::outbox::{Fate, Outbox};
use self::told::Told;
use self::webhook::NotTaken;
pub(crate) use self::webhook::{direction, timestamp};
use crate::compile::AlertRules;
use crate::discovery::Published;
use crate::https::Client;
use crate::metrics::{Metrics, Notified};
use crate::model::Model;
use crate::record::Record;
use crate::registry::WorkloadKey;
use crate::reports::SharedReports;

/// The board as streams and the sender share it.
#[derive(Default)]
pub(crate) struct SharedAlerts {
    board: Mutex<Board>,
    changed: Notify,
    streams: AtomicU64,
    /// The other control planes that say that they tell.
    others: Mutex<BTreeSet<String>>,
    /// What this one tells, for the others.
    telling: watch::Sender<Arc<v1::Telling>>,
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
    pub(crate) fn firing(&self, rules: &AlertRules) -> Vec<Shown> {
        self.board.lock().firing(rules)
    }

    /// What this one tells, for the others.
    pub(crate) fn telling(&self) -> watch::Receiver<Arc<v1::Telling>> {
        self.telling.subscribe()
    }

    /// What another control plane tells.
    pub(crate) fn heard(&self, replica: &str, telling: v1::Telling) {
        if telling.tells {
            self.others.lock().insert(replica.to_owned());
            self.board.lock().heard(telling.alerts.into_iter().filter_map(Told::read).collect());
        } else {
            self.others.lock().remove(replica);
        }
        self.changed.notify_one();
    }

    /// Another control plane is not heard any more.
    pub(crate) fn silent(&self, replica: &str) {
        self.others.lock().remove(replica);
    }
}

/// Tells people.
pub(crate) struct Teller {
    pub(crate) alerts: Arc<SharedAlerts>,
    pub(crate) reports: Arc<SharedReports>,
    /// Whether this replica holds the lease; `None`: there are no others.
    pub(crate) leading: Option<watch::Receiver<bool>>,
    pub(crate) published: watch::Receiver<Option<Arc<Published>>>,
    /// Where what is told outlives this control plane; `None`: nowhere.
    pub(crate) record: Option<Record>,
    pub(crate) metrics: Arc<Metrics>,
}

impl Teller {
    /// Works until it is dropped.
    pub(crate) async fn run(mut self) {
        let client = Arc::new(Client::new("alerts go"));
        let mut outbox = Outbox::default();
        let mut posts: JoinSet<(Key, Result<(), NotTaken>)> = JoinSet::new();
        let mut at_pods = self.reports.alerts();
        let mut tells = false;
        let mut kept = Kept::new(self.record.take());
        loop {
            let published = self.published.borrow_and_update().clone();
            tells = self.is_to_tell(tells);
            // Without rules nothing is looked at, and what would be due stays so.
            let mut look = None;
            match published {
                Some(published) if tells => {
                    self.recall(&mut kept).await;
                    let is_news = self.look(&published.model, &mut outbox);
                    let told = self.share();
                    kept.keep(&told, is_news).await;
                    self.send(&published.model, &mut outbox, &mut posts, &client);
                    look = self.alerts.board.lock().next_look();
                }
                Some(_) => {
                    outbox.clear();
                    posts.abort_all();
                    kept.forget();
                    self.alerts.board.lock().listen();
                    self.share();
                }
                None => {}
            }
            let next = [look, outbox.next(), kept.due()].into_iter().flatten().min();
            let due = async {
                match next {
                    Some(next) => tokio::time::sleep_until(next.into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                changed = self.published.changed() => if changed.is_err() { return },
                () = self.alerts.changed.notified() => {}
                Ok(()) = at_pods.changed() => {}
                () = changed(&mut self.leading) => {}
                Some(posted) = posts.join_next() => if let Ok((key, result)) = posted {
                    self.posted(&mut outbox, &key, result);
                },
                () = due => {}
            }
        }
    }

    /// Whether it is this one that tells.
    fn is_to_tell(&mut self, told: bool) -> bool {
        let leads = self.leading.as_mut().is_none_or(|leading| *leading.borrow_and_update());
        leads || told && self.alerts.others.lock().is_empty()
    }

    /// Learns what was told before, unless another control plane said it or this one has told itself.
    async fn recall(&self, kept: &mut Kept) {
        let is_new = self.alerts.board.lock().is_new();
        if is_new {
            let told = kept.recall().await;
            self.alerts.board.lock().restore(told);
        }
    }

    /// Has the others know what this one tells, and returns it.
    fn share(&self) -> Vec<Told> {
        let told = self.alerts.board.lock().telling();
        let alerts = told.iter().flatten().map(Told::message).collect();
        let telling = v1::Telling { tells: told.is_some(), alerts };
        self.alerts.telling.send_if_modified(|before| {
            let changed = **before != telling;
            if changed {
                *before = Arc::new(telling);
            }
            changed
        });
        told.unwrap_or_default()
    }

    /// Brings the board up to date; returns whether there is something new to tell.
    fn look(&self, model: &Model, outbox: &mut Outbox) -> bool {
        let (now, time, rules) = (Instant::now(), SystemTime::now(), &model.alert_rules);
        // Of pods that the cluster does not know, or not any more, nothing is told.
        let at_pods = self.reports.firing().into_iter();
        let at_pods = at_pods
            .filter_map(|((identity, uid), alerts)| Some((model.pods.service(&identity, &uid)?, alerts)));
        let at_pods: Vec<_> = at_pods.collect();
        let notices = {
            let mut board = self.alerts.board.lock();
            let mut notices = board.tell(rules, now, time);
            notices.extend(board.look(rules, &at_pods, now, time));
            notices
        };
        let mut is_news = false;
        for notice in notices {
            is_news |= notice.rule.target.is_some();
            let (alert, service) = (&notice.key.rule, &notice.key.service);
            info!(alert, %service, status = notice.status.as_str(), value = notice.value, "an alert changed");
            if notice.rule.target.is_some() && !outbox.push(notice, now) {
                self.metrics.notified(Notified::Dropped);
                warn!("too many alerts wait for their webhooks; one was dropped");
            }
        }
        is_news
    }

    /// Sends what is due.
    fn send(
        &self,
        model: &Model,
        outbox: &mut Outbox,
        posts: &mut JoinSet<(Key, Result<(), NotTaken>)>,
        client: &Arc<Client>,
    ) {
        let (now, rules) = (Instant::now(), &model.alert_rules);
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
        if !outbox.has(key) {
            self.alerts.board.lock().arrived(key);
        }
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

/// Waits until it is decided anew who holds the lease.
async fn changed(leading: &mut Option<watch::Receiver<bool>>) {
    let is_over = match leading {
        Some(leading) => leading.changed().await.is_err(),
        None => true,
    };
    if is_over {
        std::future::pending().await
    }
}

/// Anything from 0 to 1, against retries in step.
fn chance() -> f64 {
    use std::hash::{BuildHasher, RandomState};
    let random = RandomState::new().hash_one(0);
    f64::from(u32::try_from(random >> 32).unwrap_or_default()) / f64::from(u32::MAX)
}
