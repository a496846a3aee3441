//! Which replica writes: the holder of a Lease (coordination.k8s.io/v1).
//!
//! Every replica serves sidecars; only the holder writes to the cluster, so
//! that replicas never undo each other's work. [`Election`] decides, this
//! carries it out. An API server that is away takes the lease from its holder
//! after [`election::HOLD`], and gives it to nobody.

use std::time::{Duration, Instant};

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use kube::api::{Api, ObjectMeta, PostParams};
use tokio::sync::watch;
use tracing::{debug, info, warn};

use self::election::{Claim, Election, Seen};

mod election;

/// The Lease's name.
pub(crate) const NAME: &str = "heddle-control-plane";

/// Limit on one request. A holder tries at least once more before its hold ends.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(3);

/// On giving the lease back at the end: whoever waits for it waits no longer than it lasts anyway.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(2);

/// A replica's part in the election.
pub(crate) struct Candidate {
    leases: Api<Lease>,
    election: Election,
    /// The Lease as it was read or written last.
    known: Option<Lease>,
    leading: watch::Sender<bool>,
}

/// A request that did not lead to anything.
#[derive(Debug, thiserror::Error)]
enum Failed {
    #[error("no answer within {REQUEST_TIMEOUT:?}")]
    Silence,
    #[error(transparent)]
    Api(#[from] kube::Error),
}

impl Candidate {
    /// A candidate for the Lease of that namespace, under a name of its own. The receiver says
    /// whether it holds the Lease.
    pub(crate) fn new(client: kube::Client, namespace: &str, pod: &str) -> (Self, watch::Receiver<bool>) {
        use std::hash::{BuildHasher, RandomState};
        // A container that starts anew in the same pod is another holder: what it held it does not hold.
        let holder = format!("{pod}_{:016x}", RandomState::new().hash_one(pod));
        let (leading, receiver) = watch::channel(false);
        let leases = Api::namespaced(client, namespace);
        (Self { leases, election: Election::new(holder), known: None, leading }, receiver)
    }

    /// Takes part until `shutdown` is set, and gives the Lease back then.
    pub(crate) async fn run(mut self, mut shutdown: watch::Receiver<bool>) {
        let mut failing = false;
        loop {
            let pause = tokio::select! {
                pause = self.round(&mut failing) => pause,
                _ = shutdown.wait_for(|over| *over) => break,
            };
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                _ = shutdown.wait_for(|over| *over) => break,
            }
        }
        // Stops writing before another may begin.
        let held = self.leading.send_replace(false);
        if held && tokio::time::timeout(RELEASE_TIMEOUT, self.release()).await.is_err() {
            warn!("the lease could not be given back in time; it ends by itself");
        }
    }

    /// One look or one claim; returns how long to wait for the next.
    async fn round(&mut self, failing: &mut bool) -> Duration {
        let limit =
            self.election.hold_left(Instant::now()).map_or(REQUEST_TIMEOUT, |left| left.min(REQUEST_TIMEOUT));
        let tried = tokio::time::timeout(limit, self.look_or_claim()).await;
        match tried.unwrap_or(Err(Failed::Silence)) {
            Ok(()) => *failing = false,
            Err(error) => {
                // What is known may be out of date.
                self.known = None;
                if !std::mem::replace(failing, true) {
                    warn!(%error, lease = NAME, "the lease cannot be read or written; trying again");
                }
            }
        }
        let now = Instant::now();
        let leading = self.election.leads(now);
        self.leading.send_if_modified(|before| {
            let changed = *before != leading;
            if changed && leading {
                info!(lease = NAME, "this replica writes to the cluster");
            } else if changed {
                warn!(lease = NAME, "this replica does not write to the cluster any more");
            }
            *before = leading;
            changed
        });
        self.election.pause(now)
    }

    async fn look_or_claim(&mut self) -> Result<(), Failed> {
        if self.known.is_none() || !self.election.leads(Instant::now()) {
            self.known = self.leases.get_opt(NAME).await?;
            self.election.observe(self.known.as_ref().map(seen).as_ref(), Instant::now());
        }
        let sent = Instant::now();
        let Some(claim) = self.election.claim(sent) else { return Ok(()) };
        let lease = self.claimed(claim);
        let written = match claim {
            Claim::Create => self.leases.create(&PostParams::default(), &lease).await,
            Claim::Renew | Claim::TakeOver => self.leases.replace(NAME, &PostParams::default(), &lease).await,
        };
        match written {
            Ok(lease) => {
                self.election.won(&seen(&lease), sent, Instant::now());
                self.known = Some(lease);
                Ok(())
            }
            // Somebody was faster; what they wrote is looked at in the next round.
            Err(kube::Error::Api(status)) if status.code == 409 => {
                debug!(lease = NAME, "another replica was faster");
                self.known = None;
                self.election.outrun();
                Ok(())
            }
            Err(error) => Err(error.into()),
        }
    }

    /// The Lease as it has to be after `claim`.
    fn claimed(&self, claim: Claim) -> Lease {
        let known = self.known.clone().unwrap_or_default();
        let before = known.spec.unwrap_or_default();
        let now = MicroTime(Timestamp::now());
        let renewed = claim == Claim::Renew;
        let spec = LeaseSpec {
            holder_identity: Some(self.election.holder().to_owned()),
            lease_duration_seconds: i32::try_from(election::DURATION.as_secs()).ok(),
            acquire_time: if renewed { before.acquire_time } else { Some(now.clone()) },
            renew_time: Some(now),
            lease_transitions: match claim {
                Claim::Create => Some(0),
                Claim::Renew => before.lease_transitions,
                Claim::TakeOver => Some(before.lease_transitions.unwrap_or(0).saturating_add(1)),
            },
            ..before
        };
        let metadata = ObjectMeta { name: Some(NAME.into()), ..known.metadata };
        Lease { metadata, spec: Some(spec) }
    }

    /// Lets another take the Lease at once.
    async fn release(&self) {
        let Some(known) = self.known.clone() else { return };
        let spec = LeaseSpec {
            holder_identity: Some(String::new()),
            lease_duration_seconds: Some(1),
            renew_time: Some(MicroTime(Timestamp::now())),
            ..known.spec.unwrap_or_default()
        };
        let lease = Lease { metadata: known.metadata, spec: Some(spec) };
        if let Err(error) = self.leases.replace(NAME, &PostParams::default(), &lease).await {
            debug!(%error, lease = NAME, "the lease was not given back; it ends by itself");
        }
    }
}

/// What the election needs to know of a Lease.
fn seen(lease: &Lease) -> Seen {
    let spec = lease.spec.as_ref();
    let holder = spec.and_then(|spec| spec.holder_identity.clone()).unwrap_or_default();
    let seconds =
        spec.and_then(|spec| spec.lease_duration_seconds).and_then(|seconds| u64::try_from(seconds).ok());
    Seen {
        version: lease.metadata.resource_version.clone().unwrap_or_default(),
        holder,
        duration: seconds.map_or(election::DURATION, Duration::from_secs),
    }
}
