//! From changes to what is published: waits for anything to change, compiles,
//! publishes, and remembers who is registered.
//!
//! Changes that come together are compiled together. Compiling and writing
//! files happen beside the runtime, so that streams and their keepalives never
//! wait for them.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use heddle_api::tls::Credentials;
use parking_lot::Mutex;
use tokio::sync::watch;
use tracing::{error, info, warn};

use crate::ca::bundle::{self, Roots};
use crate::ca::{SharedAuthority, not_after};
use crate::compile::{Inputs, MeshDefaults, compile};
use crate::discovery::Published;
use crate::keys::FoundKeys;
use crate::metrics::Metrics;
use crate::model::{Model, Registration, Resource, Scores};
use crate::registry::saved;
use crate::reports::SharedReports;
use crate::reports::gate::Gate;
use crate::server::registry::SharedRegistry;
use crate::source::Content;

/// Everything that the model is made from, and where it goes.
pub(crate) struct Pipeline {
    pub(crate) sources: watch::Receiver<Content>,
    /// What was read of the keys that policies name.
    pub(crate) found_keys: watch::Receiver<Arc<FoundKeys>>,
    pub(crate) registry: Arc<SharedRegistry>,
    pub(crate) reports: Arc<SharedReports>,
    pub(crate) roots: Roots,
    pub(crate) credentials: Arc<Credentials>,
    pub(crate) defaults: MeshDefaults,
    /// Where registrations are remembered; `None` to forget them.
    pub(crate) saved: Option<PathBuf>,
    pub(crate) published: watch::Sender<Option<Arc<Published>>>,
    pub(crate) metrics: Arc<Metrics>,
}

/// How long a change waits for others: a rolling restart or a saved folder is
/// many of them, and nobody notices a fiftieth of a second.
const GATHER: Duration = Duration::from_millis(20);

/// The longest that a change waits because compiling took as long.
const LONGEST_REST: Duration = Duration::from_secs(1);

impl Pipeline {
    /// Works until it is dropped.
    pub(crate) async fn run(mut self) {
        let mut look = tokio::time::interval(bundle::LOOK_INTERVAL);
        look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut remembered: Option<Vec<Arc<Registration>>> = None;
        let mut gate = Gate::default();
        let mut shares = self.reports.shares();
        // What an earlier run knew of pods is in force from the first model on.
        gate.changed();
        self.reports.with(|reports| gate.take(reports, Instant::now()));
        self.look_at_roots();
        loop {
            let registrations = self.registry.with(|registry| {
                registry.expire(Instant::now());
                registry.registrations()
            });
            // Before anybody is told of them: what a sidecar knows must not be unknown after a restart.
            if remembered.as_ref() != Some(&registrations) {
                self.remember(registrations.clone()).await;
                remembered = Some(registrations.clone());
            }
            let begun = Instant::now();
            self.publish(&registrations, gate.in_force()).await;
            // Where changes never end, half of the time is left for others.
            let rested = Instant::now() + begun.elapsed().min(LONGEST_REST);
            self.change(&mut look, &mut gate, &mut shares).await;
            tokio::time::sleep_until(rested.max(Instant::now() + GATHER).into()).await;
        }
    }

    /// Waits until there is something to compile.
    async fn change(
        &mut self,
        look: &mut tokio::time::Interval,
        gate: &mut Gate,
        shares: &mut watch::Receiver<()>,
    ) {
        let mut watching = true;
        loop {
            let expiry = self.registry.with(|registry| registry.next_expiry());
            let (here, elsewhere) = self.reports.with(|reports| reports.counts());
            let due = gate.due(here + elsewhere, Instant::now());
            tokio::select! {
                changed = self.sources.changed(), if watching => match changed {
                    Ok(()) => return,
                    // There is nothing to watch; an ended channel would be ready for ever.
                    Err(_) => watching = false,
                },
                Ok(()) = self.found_keys.changed() => return,
                () = self.registry.changed.notified() => return,
                () = at(expiry) => return,
                Ok(()) = shares.changed() => gate.changed(),
                () = at(due) => {
                    if self.reports.with(|reports| gate.take(reports, Instant::now())) {
                        return;
                    }
                }
                _ = look.tick() => if self.look_at_roots() { return },
            }
        }
    }

    async fn publish(&mut self, registrations: &[Arc<Registration>], scores: Arc<Scores>) {
        let content = self.sources.borrow_and_update().clone();
        let found_keys = self.found_keys.borrow_and_update().clone();
        if content.pending {
            // Half of a mesh would be another mesh: streams wait, and sidecars keep what they have.
            return;
        }
        let before = self.published.borrow().clone();
        let previous = before.as_ref().map(|b| b.model.clone()).unwrap_or_default();
        let (defaults, registrations) = (self.defaults.clone(), registrations.to_vec());
        let start = Instant::now();
        let compiled = tokio::task::spawn_blocking(move || {
            let inputs = Inputs {
                objects: &content.objects,
                registrations: &registrations,
                scores: &scores,
                found_keys: &found_keys,
                mesh: &defaults,
            };
            let model = compile(&inputs, &previous);
            for refused in model.refused_since(&previous) {
                for refusal in &refused.refusals {
                    let at = refusal.location.as_ref().map(tracing::field::display);
                    let (kind, object, in_force) = (refused.kind, &refused.object, refused.in_force);
                    error!(
                        at,
                        field = refusal.path,
                        ?in_force,
                        "{kind} {object} is refused: {}",
                        refusal.message
                    );
                }
            }
            let workloads = own_resources(&model, &registrations, before.as_deref());
            (Arc::new(model), workloads)
        });
        let (model, workloads) = match compiled.await {
            Ok(compiled) => compiled,
            Err(failure) => {
                error!(%failure, "the compilation failed; what is published stays in force");
                return;
            }
        };
        self.metrics.compiled(start.elapsed());
        let trust = self.credentials.trust();
        let trust =
            (trust.domain().as_str().to_owned(), Arc::new(Resource::encode(&bundle::message(&trust))));
        self.published.send_replace(Some(Arc::new(Published {
            model,
            trust,
            workloads,
            pods: Mutex::default(),
        })));
    }

    async fn remember(&self, registrations: Vec<Arc<Registration>>) {
        let Some(path) = self.saved.clone() else { return };
        let stored = tokio::task::spawn_blocking(move || saved::store(&path, &registrations)).await;
        if let Ok(Err(error)) = stored {
            warn!(%error, "cannot remember who is registered; a restart will have to wait for the sidecars");
        }
    }

    /// Takes over `roots.pem`; returns whether the bundle changed.
    fn look_at_roots(&mut self) -> bool {
        match self.roots.look() {
            Ok(false) => false,
            Ok(true) => {
                let bundle = self.roots.bundle();
                info!(roots = bundle.roots().len(), "the trust bundle changed");
                self.credentials.set_trust(bundle);
                true
            }
            Err(error) => {
                error!(%error, "cannot read the trusted roots");
                self.metrics.bundle_error();
                false
            }
        }
    }
}

/// Waits for a moment; `None`: for ever.
async fn at(moment: Option<Instant>) {
    match moment {
        Some(moment) => tokio::time::sleep_until(moment.into()).await,
        None => std::future::pending().await,
    }
}

/// Each workload's own resource; the same allocation as before where nothing changed.
fn own_resources(
    model: &Model,
    registrations: &[Arc<Registration>],
    before: Option<&Published>,
) -> HashMap<crate::registry::WorkloadKey, Arc<Resource>> {
    let own = |registration: &Arc<Registration>| {
        let key = (registration.identity.clone(), registration.instance.clone());
        let resource = Resource::encode(&model.workload_for(registration));
        let known = before.and_then(|before| before.workloads.get(&key));
        let resource = match known {
            Some(known) if known.version == resource.version => known.clone(),
            _ => Arc::new(resource),
        };
        (key, resource)
    };
    registrations.iter().map(own).collect()
}

/// Keeps the control plane's own certificate fresh: a new one, with a new key,
/// at half of the lifetime, which leaves the other half for trying again.
pub(crate) async fn renew(authority: SharedAuthority, credentials: Arc<Credentials>, lifetime: Duration) {
    let mut replacements = authority.replacements();
    loop {
        tokio::select! {
            () = tokio::time::sleep(lifetime / 2) => {}
            // The handle above keeps the channel open.
            _ = replacements.changed() => {}
        }
        while let Err(error) = renew_once(&authority, &credentials) {
            error!(%error, "cannot renew the control plane's own certificate; the present one stays in use");
            tokio::time::sleep(lifetime / 20).await;
        }
    }
}

/// Puts a new certificate of the control plane's own in use.
pub(crate) fn renew_once(
    authority: &SharedAuthority,
    credentials: &Credentials,
) -> Result<(), crate::ca::SignError> {
    credentials.set_certificate(authority.current().own_certificate(SystemTime::now())?);
    Ok(())
}

/// When the certificate in use ends, in seconds since 1970.
pub(crate) fn certificate_expiry(credentials: &Credentials) -> u64 {
    let certificate = credentials.certificate();
    certificate.as_ref().and_then(|c| c.cert.first()).and_then(not_after).map_or(0, unix_seconds)
}

/// A moment in seconds since 1970.
pub(crate) fn unix_seconds(moment: SystemTime) -> u64 {
    moment.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
