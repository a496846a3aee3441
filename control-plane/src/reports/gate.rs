//! When scores get into force. Pure: the clock comes in.
//!
//! Another score at one pod is another version of each of its services, which goes to everyone
//! that calls them: what it costs grows with the number of pods, twice over, and what it brings
//! shrinks with it. So changes wait for each other, and what comes of them is pushed together, the
//! less often the more pods there are. A score that comes and goes meanwhile is never pushed.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Reports;
use crate::model::Scores;

/// Between two changes, in a small cluster: no slower than a sidecar judges.
const SHORTEST: Duration = Duration::from_secs(1);

/// In a large one: as long as a pod without a control plane is believed.
const LONGEST: Duration = Duration::from_secs(30);

/// By each pod that reports. A service with a thousand endpoints that are called by a thousand is some
/// 100 MiB of pushes, in ten seconds then.
const PER_POD: Duration = Duration::from_millis(10);

/// The scores in force.
#[derive(Debug, Default)]
pub(crate) struct Gate {
    in_force: Arc<Scores>,
    /// When they were taken over, if they ever were.
    taken: Option<Instant>,
    /// Whether something may have changed since.
    is_stale: bool,
}

impl Gate {
    /// Something may have changed.
    pub(crate) fn changed(&mut self) {
        self.is_stale = true;
    }

    /// When [`Self::take`] takes something over, with that many pods; `None`: not before something
    /// changes.
    pub(crate) fn due(&self, pods: usize, now: Instant) -> Option<Instant> {
        let pods = u32::try_from(pods).unwrap_or(u32::MAX);
        let interval = PER_POD.saturating_mul(pods).clamp(SHORTEST, LONGEST);
        self.is_stale.then(|| self.taken.map_or(now, |taken| taken + interval))
    }

    /// Takes over what the pods say, if that is due; returns whether anything is other than before.
    pub(crate) fn take(&mut self, reports: &Reports, now: Instant) -> bool {
        let (here, elsewhere) = reports.counts();
        if self.due(here + elsewhere, now).is_none_or(|due| due > now) {
            return false;
        }
        let scores = reports.scores();
        self.is_stale = false;
        if scores == *self.in_force {
            return false;
        }
        (self.in_force, self.taken) = (Arc::new(scores), Some(now));
        true
    }

    /// Those in force.
    pub(crate) fn in_force(&self) -> Arc<Scores> {
        self.in_force.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{pod, report};
    use super::*;

    #[test]
    fn scores_that_come_and_go_are_taken_over_together_and_no_more_often_than_the_pods_allow() {
        let (mut gate, mut reports, start) = (Gate::default(), Reports::default(), Instant::now());
        let stream = reports.stream();
        for number in 0..500 {
            reports.begin(stream, &pod(&number.to_string()), report(100), 0);
        }
        let (mut pushes, mut now) = (0, start);
        while now < start + Duration::from_secs(60) {
            now += Duration::from_millis(100);
            let score = if now.duration_since(start).as_millis() % 200 == 0 { 40 } else { 100 };
            for number in 0..500 {
                reports.update(stream, &pod(&number.to_string()), report(score)).unwrap();
            }
            gate.changed();
            pushes += usize::from(gate.take(&reports, now));
        }
        assert!((1..=13).contains(&pushes), "{pushes} in a minute, where one in five seconds is allowed");
    }

    #[test]
    fn a_change_after_a_while_is_taken_over_at_once() {
        let (mut gate, mut reports, now) = (Gate::default(), Reports::default(), Instant::now());
        let stream = reports.stream();
        reports.begin(stream, &pod("1"), report(40), 0);
        assert!(!gate.take(&reports, now), "nothing said that it changed");
        gate.changed();
        assert!(gate.take(&reports, now));
        assert_eq!(gate.in_force().of(&pod("1").0, "1"), 40);
        assert_eq!(gate.due(1, now), None);
        reports.update(stream, &pod("1"), report(100)).unwrap();
        gate.changed();
        assert!(!gate.take(&reports, now + SHORTEST / 2));
        assert_eq!(gate.due(1, now), Some(now + SHORTEST));
        assert!(gate.take(&reports, now + SHORTEST));
        assert_eq!(gate.in_force().of(&pod("1").0, "1"), 0);
        // Back to what it was before anybody was told.
        gate.changed();
        assert!(!gate.take(&reports, now + 3 * SHORTEST));
    }

    #[test]
    fn large_clusters_wait_longer_but_not_for_ever() {
        let mut gate = Gate { taken: Some(Instant::now()), ..Gate::default() };
        gate.changed();
        let waits = |pods| gate.due(pods, Instant::now()).unwrap() - gate.taken.unwrap();
        assert_eq!(waits(10), SHORTEST);
        assert_eq!(waits(1000), Duration::from_secs(10));
        assert_eq!(waits(1_000_000), LONGEST);
    }
}
