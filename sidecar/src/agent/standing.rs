//! Watches how the workload fares, and tells the control plane and the metrics.

use std::cell::Cell;
use std::rc::Rc;
use std::time::{Duration, Instant};

use tokio::sync::watch;

use super::cgroup::Cgroup;
use crate::policy::score::{Sample, Score, Standing, State, Tally};
use crate::telemetry::metrics::Registry;

/// Between two samples: as often as the application is probed.
const INTERVAL: Duration = Duration::from_secs(1);

/// What a score is made from, and whom it is told.
pub(crate) struct Observer {
    /// The application's process, 0 if unknown.
    pub(crate) app_pid: u32,
    /// Whether the application is ready.
    pub(crate) ready: watch::Receiver<bool>,
    /// The workload's own checks.
    pub(crate) checks: Rc<Cell<Tally>>,
    pub(crate) metrics: Registry,
    pub(crate) standing: watch::Sender<Standing>,
}

impl Observer {
    /// Runs for ever.
    pub(crate) async fn run(self) {
        let cgroup = Cgroup::new(self.app_pid);
        let mut score = Score::default();
        let mut ticks = tokio::time::interval(INTERVAL);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        self.show(*self.standing.borrow());
        loop {
            ticks.tick().await;
            let usage = cgroup.usage();
            let standing = score.observe(Sample {
                at: Instant::now(),
                ready: *self.ready.borrow(),
                checks: self.checks.get(),
                dependencies: self.metrics.dependencies(),
                memory: usage.memory,
                cpu: usage.cpu,
            });
            let before = *self.standing.borrow();
            if standing != before {
                self.standing.send_replace(standing);
                let cause = standing.cause.map_or("", |cause| cause.as_str());
                let (from, to) = (before.state.as_str(), standing.state.as_str());
                tracing::info!(from, to, score = standing.score, cause, "the workload's health changed");
                self.show(standing);
            }
        }
    }

    fn show(&self, standing: Standing) {
        let help = "The percentage of its share of traffic that the workload should get.";
        self.metrics.gauge("heddle_workload_score", help, &[]).set(standing.score.into());
        let help = "How the workload is: 1 for the state that it is in.";
        for state in State::ALL {
            let labels = [("state", state.as_str())];
            let is = f64::from(u8::from(state == standing.state));
            self.metrics.gauge("heddle_workload_health", help, &labels).set(is);
        }
    }
}
