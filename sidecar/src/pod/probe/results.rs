//! What the kubelet's probes say of the application, as checks of its own say it elsewhere.
//!
//! Liveness and readiness are counted; how startup goes is no measure of what comes after it. The
//! application is ready while each of its readiness probes is, as far as those are made here: one success
//! makes ready, several failures in a row unready. The kubelet's own thresholds decide who gets traffic; from
//! this one a score begins.

use std::cell::Cell;
use std::future::pending;
use std::rc::Rc;

use tokio::sync::watch;

use super::{LIVENESS, READINESS};
use crate::agent::Health;
use crate::policy::score::Tally;

/// The results of all probes of a pod since the start.
#[derive(Debug, Clone, Default)]
pub(crate) struct Results {
    counts: Tally,
    /// Of each readiness probe, by its path.
    readiness: Vec<(String, Health)>,
}

impl Results {
    /// None yet, of the probes with these paths.
    pub(super) fn new<'a>(paths: impl Iterator<Item = &'a str>) -> Self {
        let readiness = paths.filter(|path| kind(path) == READINESS);
        let readiness = readiness.map(|path| (path.to_owned(), Health::default())).collect();
        Self { counts: Tally::default(), readiness }
    }

    /// Notes what came of a probe.
    pub(super) fn note(&mut self, path: &str, good: bool) {
        if [LIVENESS, READINESS].contains(&kind(path)) {
            self.counts.all += 1;
            self.counts.failed += u64::from(!good);
        }
        if let Some((_, health)) = self.readiness.iter_mut().find(|(known, _)| known == path) {
            health.observe(good);
        }
    }

    fn is_ready(&self) -> bool {
        self.readiness.iter().all(|(_, health)| health.is_ready())
    }
}

fn kind(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or_default()
}

/// Keeps `ready` and `counts` as `results` say, for ever.
pub(crate) async fn follow(
    mut results: watch::Receiver<Results>,
    ready: watch::Sender<bool>,
    counts: Rc<Cell<Tally>>,
) {
    loop {
        let is_ready = {
            let results = results.borrow_and_update();
            counts.set(results.counts);
            results.is_ready()
        };
        if ready.send_if_modified(|known| std::mem::replace(known, is_ready) != is_ready) {
            if is_ready {
                tracing::info!("the application is ready");
            } else {
                tracing::warn!("the application is not ready any more: its readiness probe fails");
            }
        }
        if results.changed().await.is_err() {
            return pending().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_application_is_ready_while_each_readiness_probe_is() {
        let paths = ["/probe/a/readiness", "/probe/b/readiness", "/probe/a/liveness", "/probe/a/pre-stop"];
        let mut results = Results::new(paths.into_iter());
        let mut note = |path: &str, good| {
            results.note(path, good);
            results.is_ready()
        };
        assert!(!note("/probe/a/readiness", true));
        assert!(note("/probe/b/readiness", true));
        assert!(note("/probe/b/readiness", false) && note("/probe/b/readiness", false));
        assert!(note("/probe/a/readiness", true));
        assert!(!note("/probe/b/readiness", false), "three in a row");
        assert!(!note("/probe/a/liveness", true));
        assert!(note("/probe/b/readiness", true));
        assert!(Results::new(["/probe/a/liveness"].into_iter()).is_ready(), "nothing says that it is not");
    }

    #[test]
    fn liveness_and_readiness_are_counted_and_startup_is_not() {
        let mut results = Results::default();
        for (kind, good) in [
            ("startup", false),
            ("startup", true),
            ("liveness", true),
            ("readiness", false),
            ("liveness", false),
        ] {
            results.note(&format!("/probe/a/{kind}"), good);
        }
        assert_eq!(results.counts, Tally { all: 3, failed: 2 });
    }

    #[tokio::test]
    async fn what_is_followed_is_told() {
        let (sender, results) = watch::channel(Results::new(["/probe/a/readiness"].into_iter()));
        let (ready, mut is_ready) = watch::channel(false);
        let counts = Rc::new(Cell::default());
        let mut followed = std::pin::pin!(follow(results, ready, counts.clone()));
        assert!(futures_util::poll!(&mut followed).is_pending());
        assert!(!is_ready.has_changed().unwrap());
        sender.send_modify(|results| results.note("/probe/a/readiness", true));
        assert!(futures_util::poll!(&mut followed).is_pending());
        assert!(*is_ready.borrow_and_update());
        assert_eq!(counts.get(), Tally { all: 1, failed: 0 });
    }
}
