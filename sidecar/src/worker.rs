//! A worker: one thread with a single-threaded runtime that serves connections
//! from accept to close. Workers share nothing that is written per request.
//!
//! A worker follows the configuration by itself: destinations are brought up
//! to date when a snapshot arrives, not when a request does, so that a request
//! costs no look at it.

mod accept;
mod chain;
mod resolve;

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::fmt;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use heddle_api::spiffe::SpiffeId;
use heddle_api::tls::Credentials;
use tokio::runtime::{Builder, LocalOptions};
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::spawn_local;

use self::accept::Accepted;
pub(crate) use self::chain::SharedChains;
use crate::config::{ConfigHandle, Lookup, TrafficPolicy};
use crate::listener::{AppDialer, InboundKind, Plumbing};
use crate::mirror::Copies;
use crate::policy::rng::Rng;
use crate::sys;
use crate::telemetry::access_log::{AccessLog, AccessLogWriter};
use crate::telemetry::metrics::{Direction, HandshakeSide, Labeler, Registry, Shard};
use crate::telemetry::span::{Tracer, Tracing};
use crate::upstream::{Checks, ClientConfigs, Destination, DestinationKey, MeshProtocol};
use crate::wheel::Wheel;

/// What the workers of a sidecar are made from.
pub struct Setup {
    /// How many.
    pub workers: usize,
    /// What is known about the mesh.
    pub config: ConfigHandle,
    /// Our certificate and whom we trust.
    pub credentials: Arc<Credentials>,
    /// The health checks of endpoints.
    pub checks: Checks,
    /// Where metrics are kept.
    pub registry: Registry,
    /// Where spans go.
    pub tracing: Tracing,
    /// Where the access log goes.
    pub access_log: AccessLog,
    /// The listeners and the way to the application.
    pub plumbing: Plumbing,
}

/// The running workers.
pub struct Workers {
    threads: Vec<thread::JoinHandle<()>>,
    drain: watch::Sender<bool>,
    connections: Vec<Arc<AtomicUsize>>,
}

/// Starts the workers; they serve as soon as this returns.
///
/// # Errors
/// If a thread, a runtime or a listener cannot be made.
pub fn start(setup: Setup) -> io::Result<Workers> {
    let (drain, draining) = watch::channel(false);
    let mut threads = Vec::new();
    let mut connections = Vec::new();
    let mut peers = Vec::new();
    let mut receivers = Vec::new();
    for _ in 0..setup.workers.max(1) {
        let (sender, receiver) = mpsc::channel(HANDED_OVER);
        let load = Arc::new(AtomicUsize::new(0));
        connections.push(load.clone());
        peers.push(accept::Peer { sender, load });
        receivers.push(receiver);
    }
    let listeners = accept::Listeners::new(setup.plumbing.outbound, setup.plumbing.inbound)?;
    let mut listeners = Some(listeners);
    let chains = SharedChains::default();
    for (index, handed) in receivers.into_iter().enumerate() {
        let listeners = listeners.take();
        let peers = peers.clone();
        let parts = Parts {
            config: setup.config.clone(),
            credentials: setup.credentials.clone(),
            checks: setup.checks.clone(),
            registry: setup.registry.clone(),
            tracing: setup.tracing.clone(),
            access_log: setup.access_log.clone(),
            app: setup.plumbing.app.clone(),
            chains: chains.clone(),
            load: peers[index].load.clone(),
            draining: draining.clone(),
        };
        let runtime = Builder::new_current_thread().enable_all().build_local(LocalOptions::default());
        // We are in a runtime's thread, which must not wait for another's end.
        runtime?.shutdown_background();
        let thread = thread::Builder::new().name(format!("worker-{index}")).spawn(move || {
            // A request is not to wait until the agent, or the application, has used up its slice.
            if let Err(error) = sys::shorten_slice() {
                tracing::debug!(%error, "a worker keeps the scheduler's usual slice");
            }
            // Made here because it must live and die on its own thread; that it can be made was tried above.
            let runtime = Builder::new_current_thread().enable_all().build_local(LocalOptions::default());
            match runtime {
                Ok(runtime) => runtime.block_on(run(parts, listeners, peers, handed)),
                Err(error) => tracing::error!(%error, "a worker has no runtime"),
            }
        })?;
        threads.push(thread);
    }
    Ok(Workers { threads, drain, connections })
}

/// Accepted sockets that may wait for a busy worker before the acceptor waits for it.
const HANDED_OVER: usize = 1024;

impl Workers {
    /// Connections that are open now.
    pub fn connections(&self) -> usize {
        self.connections.iter().map(|count| count.load(Ordering::Relaxed)).sum()
    }

    /// Starts leaving: what is open finishes, with `connection: close` and
    /// GOAWAY; new connections are still served.
    pub fn drain(&self) {
        self.drain.send_replace(true);
    }

    /// Ends the threads, whatever is open.
    pub fn stop(self) {
        drop(self.drain);
        for thread in self.threads {
            // A worker that panicked has said so already.
            let _ = thread.join();
        }
    }
}

/// What one worker is made from.
struct Parts {
    config: ConfigHandle,
    credentials: Arc<Credentials>,
    checks: Checks,
    registry: Registry,
    tracing: Tracing,
    access_log: AccessLog,
    app: AppDialer,
    chains: SharedChains,
    load: Arc<AtomicUsize>,
    draining: watch::Receiver<bool>,
}

/// One worker's state, shared by the tasks of its thread.
pub struct Worker {
    /// What is known about the mesh.
    pub config: ConfigHandle,
    /// Our certificate and whom we trust.
    pub credentials: Arc<Credentials>,
    /// The health checks of endpoints.
    pub checks: Checks,
    /// The way to the application.
    pub app: AppDialer,
    /// Time limits.
    pub wheel: Wheel,
    /// Chance, not fit for secrets.
    pub rng: Rng,
    /// This worker's share of the metrics.
    pub metrics: Shard,
    /// This worker's tracing.
    pub tracer: Tracer,
    pub(crate) access_log: AccessLogWriter,
    access_logged: Cell<bool>,
    sampling: Cell<f64>,
    /// What is done to the labels of requests' metrics, inbound and outbound.
    labelers: RefCell<[Option<Rc<Labeler>>; 2]>,
    /// How peers are greeted.
    pub(crate) server_config: Arc<rustls::ServerConfig>,
    registry: Registry,
    draining: Cell<bool>,
    destinations: RefCell<HashMap<DestinationKey, Rc<Destination>>>,
    client_configs: RefCell<HashMap<SpiffeId, ClientConfigs>>,
    /// Wakes those who wait for discovery's answer.
    answered: Notify,
    load: Arc<AtomicUsize>,
    /// What is known about retries before and behind the application.
    pub(crate) chains: SharedChains,
    /// Copies of requests to mirrors under way.
    pub(crate) copies: Copies,
    warnings: RefCell<Warnings>,
    default_policy: Arc<TrafficPolicy>,
    inbound_policy: Arc<TrafficPolicy>,
}

impl Worker {
    /// Whether the sidecar is leaving: responses close their connections.
    #[inline]
    pub fn is_draining(&self) -> bool {
        self.draining.get()
    }

    /// Whether exchanges are written to the access log.
    #[inline]
    pub fn is_access_logged(&self) -> bool {
        self.access_logged.get()
    }

    /// The share of new traces that are sampled.
    #[inline]
    pub fn sampling(&self) -> f64 {
        self.sampling.get()
    }

    /// What is done to the labels of the metrics of requests of this direction, if anything is.
    #[inline]
    pub fn labeler(&self, direction: Direction) -> Option<Rc<Labeler>> {
        self.labelers.borrow()[direction as usize].clone()
    }

    /// Whole seconds since the start.
    #[inline]
    pub fn uptime(&self, now: Instant) -> u64 {
        crate::config::uptime(now)
    }

    /// The configuration for a connection to a server that must be `identity`.
    pub fn client_config(&self, identity: &SpiffeId, protocol: MeshProtocol) -> Arc<rustls::ClientConfig> {
        let mut configs = self.client_configs.borrow_mut();
        if let Some(config) = configs.get(identity) {
            return config[protocol as usize].clone();
        }
        if configs.len() >= CLIENT_CONFIGS {
            configs.clear();
        }
        let made = MeshProtocol::ALL
            .map(|protocol| Arc::new(self.credentials.client_config(identity.clone(), &[protocol.alpn()])));
        configs.entry(identity.clone()).or_insert(made)[protocol as usize].clone()
    }

    /// Serves a connection, or the rest of one, in a task of its own. What greets a connection
    /// hands it on like this, so that an idle one is not as large as the largest of all stages.
    pub(crate) fn serve(&self, connection: impl Future<Output = ()> + 'static) {
        let load = Load::new(&self.load);
        // An async block would hold the future twice: as captured, and as awaited.
        spawn_local(connection.map(move |()| drop(load)));
    }

    /// Counts a handshake, refused for `refusal`.
    pub fn handshake_done(&self, side: HandshakeSide, refusal: Option<&'static str>) {
        self.registry.tls_handshakes(side, refusal).increment();
    }

    /// Writes a warning that a peer can cause, at a bounded rate.
    pub fn warn(&self, message: fmt::Arguments<'_>) {
        if let Some(suppressed) = self.warnings.borrow_mut().admit(Instant::now()) {
            tracing::warn!(suppressed, "{message}");
        }
    }

    /// Brings everything in line with the current snapshot.
    fn follow(&self) {
        let snapshot = self.config.load();
        if let Some(workload) = &snapshot.workload {
            self.access_logged.set(workload.access_log);
            self.sampling.set(workload.sampling);
            let mut labelers = self.labelers.borrow_mut();
            for (labeler, direction) in labelers.iter_mut().zip(Direction::ALL) {
                let told = workload.metric_labels.of(direction);
                if labeler.as_ref().map(|labeler| Arc::as_ptr(labeler.labeling())) != told.map(Arc::as_ptr) {
                    let new = told.map(|told| Rc::new(Labeler::new(told.clone(), &self.registry)));
                    if let Some(before) = std::mem::replace(labeler, new) {
                        before.retire();
                    }
                }
            }
        }
        let home = snapshot.home();
        self.destinations.borrow_mut().retain(|key, destination| {
            let kept = match key {
                DestinationKey::Service(name, _) => match snapshot.services.get(name) {
                    Some(Lookup::Found(service)) => {
                        destination.follow(service, home, &self.checks, &self.metrics)
                    }
                    // Not asked for any more, or asked for again: the last good state serves
                    // until there is an answer.
                    Some(Lookup::Pending) => true,
                    Some(Lookup::Absent) | None => false,
                },
                DestinationKey::Workload(address) => match snapshot.addresses.get(&address.ip()) {
                    Some(Lookup::Found(_)) => snapshot.workloads.get(&address.ip()).is_some_and(|workload| {
                        destination.follow(workload, home, &self.checks, &self.metrics)
                    }),
                    Some(Lookup::Pending) => true,
                    Some(Lookup::Absent) | None => false,
                },
                DestinationKey::App(port) => snapshot.workload.as_ref().is_some_and(|workload| {
                    destination.follow_guards(workload, &self.registry);
                    let declared = workload.ports.iter().find(|p| p.number == *port);
                    declared.map_or(self.app.is_in_pod(), |p| p.protocol == destination.protocol)
                }),
                DestinationKey::Direct(_) => true,
            };
            if !kept {
                destination.retire();
            }
            kept
        });
        self.answered.notify_waiters();
    }

    /// Takes over what health checks have found.
    fn follow_checks(&self, now: Instant) {
        for destination in self.destinations.borrow().values() {
            destination.follow_checks(now);
        }
    }

    fn sweep(&self, now: Instant) {
        for destination in self.destinations.borrow().values() {
            destination.sweep(now);
        }
    }
}

/// Identities whose TLS configurations are kept: far more than a workload has peers.
const CLIENT_CONFIGS: usize = 1024;

/// Warnings that peers can cause, per second and worker.
const WARNINGS_PER_SECOND: u32 = 10;

#[derive(Default)]
struct Warnings {
    second: Option<Instant>,
    count: u32,
    suppressed: u32,
}

impl Warnings {
    /// How many were suppressed before this one; `None` if this one is, too.
    fn admit(&mut self, now: Instant) -> Option<u32> {
        if self.second.is_none_or(|start| now.saturating_duration_since(start) >= Duration::from_secs(1)) {
            self.second = Some(now);
            self.count = 0;
        }
        if self.count >= WARNINGS_PER_SECOND {
            self.suppressed += 1;
            return None;
        }
        self.count += 1;
        Some(std::mem::take(&mut self.suppressed))
    }
}

/// How often idle connections and stale metrics are looked after.
const SWEEP_INTERVAL: Duration = Duration::from_secs(5);

/// Metrics are swept once a minute, as they ask for.
const SWEEPS_PER_METRICS_SWEEP: u32 = 12;

async fn run(
    parts: Parts,
    listeners: Option<accept::Listeners>,
    peers: Vec<accept::Peer>,
    mut handed: mpsc::Receiver<Accepted>,
) {
    let protocols = MeshProtocol::ALL.map(MeshProtocol::alpn);
    let worker = Rc::new(Worker {
        server_config: Arc::new(parts.credentials.server_config(&protocols, false)),
        config: parts.config,
        credentials: parts.credentials,
        checks: parts.checks,
        app: parts.app,
        wheel: Wheel::new(Instant::now()),
        rng: Rng::new(seed()),
        metrics: parts.registry.shard(),
        tracer: parts.tracing.tracer(),
        access_log: parts.access_log.writer(),
        access_logged: Cell::new(false),
        sampling: Cell::new(1.0),
        labelers: RefCell::default(),
        registry: parts.registry,
        draining: Cell::new(false),
        destinations: RefCell::default(),
        client_configs: RefCell::default(),
        answered: Notify::new(),
        load: parts.load,
        chains: parts.chains,
        copies: Copies::default(),
        warnings: RefCell::default(),
        default_policy: Arc::new(TrafficPolicy::default()),
        inbound_policy: Arc::new(TrafficPolicy::inbound()),
    });
    let wheel = worker.wheel.clone();
    spawn_local(async move { wheel.drive().await });
    let follower = worker.clone();
    spawn_local(async move {
        let mut config = follower.config.clone();
        loop {
            follower.follow();
            config.changed().await;
        }
    });
    let checked = worker.clone();
    let mut verdicts = worker.checks.verdicts();
    spawn_local(async move {
        while verdicts.changed().await.is_ok() {
            checked.follow_checks(Instant::now());
        }
    });
    let sweeper = worker.clone();
    spawn_local(async move {
        for round in 1_u32.. {
            tokio::time::sleep(SWEEP_INTERVAL).await;
            let now = Instant::now();
            sweeper.sweep(now);
            if round.is_multiple_of(SWEEPS_PER_METRICS_SWEEP) {
                sweeper.labelers.borrow().iter().flatten().for_each(|labeler| labeler.sweep(now));
                sweeper.metrics.sweep();
            }
        }
    });
    if let Some(listeners) = listeners {
        let acceptor = worker.clone();
        spawn_local(async move { listeners.serve(&acceptor, &peers).await });
    }
    let receiver = worker.clone();
    spawn_local(async move {
        while let Some(accepted) = handed.recv().await {
            accepted.serve(&receiver);
        }
    });
    let mut draining = parts.draining;
    while draining.changed().await.is_ok() {
        worker.draining.set(*draining.borrow());
        // Idle connections wait for nothing else that could tell them.
        worker.wheel.wake_all();
    }
}

/// A seed from the operating system's randomness, by way of the hasher's keys.
fn seed() -> u64 {
    use std::hash::{BuildHasher, RandomState};
    RandomState::new().hash_one(thread::current().id())
}

impl Accepted {
    /// Serves the connection in a task of its own.
    fn serve(self, worker: &Rc<Worker>) {
        let on = worker.clone();
        worker.serve(async move {
            match self {
                Self::Outbound(tcp, kind) => crate::outbound::serve(tcp, &kind, &on).await,
                Self::Inbound(tcp, InboundKind::Mesh) => crate::inbound::serve_peer(tcp, None, &on).await,
                Self::Inbound(tcp, InboundKind::Pod) => crate::inbound::serve_redirected(tcp, &on).await,
                Self::Inbound(tcp, InboundKind::Published(port)) => {
                    crate::inbound::serve_published(tcp, port, &on).await;
                }
            }
        });
    }
}

/// Counts a connection until dropped, even by a panic.
struct Load(Arc<AtomicUsize>);

impl Load {
    fn new(count: &Arc<AtomicUsize>) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count.clone())
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl fmt::Debug for Worker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Worker")
    }
}
