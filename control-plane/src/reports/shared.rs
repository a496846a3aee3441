//! The reports as streams, the compiler and whoever tells people share them.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use parking_lot::Mutex;
use tokio::sync::watch;

use super::{Changed, PodKey, Report, Reports, Superseded};
use crate::alerts::Reported;

/// How often what holds no more is looked for.
const EXPIRY: Duration = Duration::from_secs(1);

/// All reports, and who waits for them to change.
pub(crate) struct SharedReports {
    reports: Mutex<Reports>,
    shares: watch::Sender<()>,
    alerts: watch::Sender<()>,
    own: watch::Sender<()>,
}

impl SharedReports {
    pub(crate) fn new() -> Arc<Self> {
        let channel = || watch::Sender::new(());
        Arc::new(Self { reports: Mutex::default(), shares: channel(), alerts: channel(), own: channel() })
    }

    /// Looks at them.
    pub(crate) fn with<T>(&self, look: impl FnOnce(&Reports) -> T) -> T {
        look(&self.reports.lock())
    }

    /// Changes them, and tells who waits for it.
    pub(crate) fn change(&self, change: impl FnOnce(&mut Reports) -> Changed) {
        let changed = change(&mut self.reports.lock());
        self.tell(changed);
    }

    /// A pod's stream begins: its number.
    pub(crate) fn begin(&self, pod: &PodKey, report: Report) -> u64 {
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let since = u64::try_from(since.as_millis()).unwrap_or(u64::MAX);
        let mut reports = self.reports.lock();
        let stream = reports.stream();
        let changed = reports.begin(stream, pod, report, since);
        drop(reports);
        self.tell(changed);
        stream
    }

    /// A pod reports anew.
    ///
    /// # Errors
    /// If another stream of it has begun meanwhile.
    pub(crate) fn update(&self, stream: u64, pod: &PodKey, report: Report) -> Result<(), Superseded> {
        let changed = self.reports.lock().update(stream, pod, report)?;
        self.tell(changed);
        Ok(())
    }

    /// The alerts that fire at pods.
    pub(crate) fn firing(&self) -> Vec<(PodKey, Vec<Reported>)> {
        let reports = self.reports.lock();
        let firing = reports.all().filter(|(_, report)| !report.alerts.is_empty());
        firing.map(|(pod, report)| (pod.clone(), report.alerts.clone())).collect()
    }

    /// Marked at each change of how much traffic pods should get.
    pub(crate) fn shares(&self) -> watch::Receiver<()> {
        self.shares.subscribe()
    }

    /// Marked at each change of what fires.
    pub(crate) fn alerts(&self) -> watch::Receiver<()> {
        self.alerts.subscribe()
    }

    /// Marked at each change of a pod that is heard here.
    pub(crate) fn own(&self) -> watch::Receiver<()> {
        self.own.subscribe()
    }

    /// Drops what holds no more, for ever.
    pub(crate) async fn keep(self: Arc<Self>) {
        loop {
            tokio::time::sleep(EXPIRY).await;
            self.change(|reports| reports.expire(Instant::now()));
        }
    }

    fn tell(&self, Changed { shares, alerts, own }: Changed) {
        for (changed, channel) in [(shares, &self.shares), (alerts, &self.alerts), (own, &self.own)] {
            if changed {
                channel.send_replace(());
            }
        }
    }
}
