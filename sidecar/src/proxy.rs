//! A sidecar's life, the same for `proxy` and `run`: start, become ready,
//! serve, drain, end.
//!
//! The calling thread becomes the agent's; workers have threads of their own.
//! Nothing is accepted before identity and configuration are there: until then
//! connections wait in the listeners' backlog.

use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use heddle_api::discovery::v1;
use tokio::sync::{Notify, watch};
use tokio::task::{JoinHandle, JoinSet, LocalSet, spawn_blocking, spawn_local};

use crate::admin::{self, Admin, Phase};
use crate::agent::{
    Alerts, ControlPlane, Discovery, Identity, Knowledge, NoCertificate, Observer, Prober, ProofSource,
    Reconnect, Registration, is_checked, node, watch_health,
};
use crate::config::{self, AppProtocol, ConfigHandle};
use crate::dns::{self, Addresses, Forwarder};
use crate::listener::{InboundKind, OutboundKind, Plumbing};
use crate::pod::Pod;
use crate::pod::presence::others_are_present;
use crate::pod::probe::{self, Prober as AppProber};
use crate::pod::redirection;
use crate::policy::score::Standing;
use crate::settings::{SidecarArgs, Workload};
use crate::telemetry::access_log::AccessLog;
use crate::telemetry::metrics::Registry;
use crate::telemetry::otlp::{self, Exporter};
use crate::telemetry::span::Tracing;
use crate::upstream::Checks;
use crate::worker::{self, Workers};
use crate::{log, memory, sys};

/// How long the control plane may take to give identity and configuration at
/// the start. Whoever started us then learns the reason instead of waiting. A pod
/// waits for as long as its startup probe lets it: starting it anew mends nothing.
const START_TIMEOUT: Duration = Duration::from_secs(30);

/// How long open connections may take to end, outside of pods.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(30);

/// How long they may in a pod: the kubelet's patience is shorter, and known to nobody else.
const DRAIN_TIMEOUT_IN_POD: Duration = Duration::from_secs(24 * 3600);

/// A draining sidecar ends when nothing was open for so long: peers that have
/// not heard yet that it leaves may still come.
const QUIET: Duration = Duration::from_secs(1);

/// How often a draining sidecar looks whether something is open.
const DRAIN_LOOK: Duration = Duration::from_millis(50);

/// How often it is looked whether a pod's application is gone. Reading all sockets costs more.
const PRESENCE_LOOK: Duration = Duration::from_millis(250);

/// After a pod's application is gone, what it wrote last still has to go out. What is open for
/// longer waits for the other side of a connection that has lost ours.
const LAST_WORDS: Duration = Duration::from_secs(10);

/// What a sidecar is started with.
pub struct Setup {
    /// The workload beside it.
    pub workload: Workload,
    /// How it works.
    pub sidecar: SidecarArgs,
    /// Its bound listeners and its way to the application.
    pub plumbing: Plumbing,
    /// The application's process, 0 if unknown.
    pub app_pid: u32,
    /// The synthetic addresses of services, filled by the agent for the services
    /// that it finds and told to the application by the DNS responder.
    pub addresses: Addresses,
    /// What else runs on the agent's thread, such as the DNS responder.
    pub beside: Vec<AgentTask>,
    /// The pod that it is in, if it is in one.
    pub pod: Option<Pod>,
}

/// A task for the agent's thread, given the configuration's reading end.
pub type AgentTask = Box<dyn FnOnce(ConfigHandle) -> Pin<Box<dyn Future<Output = ()>>> + Send>;

/// Runs a sidecar until it has drained. Blocks the calling thread, which
/// becomes the agent's. `ready` is called once, when identity and
/// configuration are there and the listeners are served; `stop` resolves when
/// the sidecar is to drain. Both run on the agent's thread, in its runtime.
///
/// # Errors
/// If it cannot start: no join token, no usable admin address, or no identity in time.
pub fn serve(
    setup: Setup,
    ready: impl FnOnce() + 'static,
    stop: impl Future<Output = ()> + 'static,
) -> anyhow::Result<()> {
    log::init(&setup.sidecar.log_level).context("--log-level")?;
    memory::return_in_background();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    LocalSet::new().block_on(&runtime, life(setup, ready, stop))
}

async fn life(
    setup: Setup,
    ready: impl FnOnce(),
    stop: impl Future<Output = ()> + 'static,
) -> anyhow::Result<()> {
    let admin_listener = admin::bind(setup.sidecar.admin, setup.pod.is_some())?;
    let admin_address = admin_listener.local_addr()?;
    let description = describe(&setup, admin_address)?;
    let control_plane = ControlPlane::new(setup.sidecar.control_plane());
    let metrics = Registry::new();
    let checks = Checks::default();
    let telemetry = Telemetry::start(&description.instance, &setup.workload, setup.pod.as_ref(), &metrics)?;
    let (publisher, config, wants) = config::channel();
    let (phase, phases) = watch::channel(Phase::Starting);
    let (draining, drains) = watch::channel(false);
    let (registered, is_registered) = watch::channel(false);
    let (app_ready, is_app_ready) = watch::channel(false);
    let (standing, standings) = watch::channel(Standing::default());
    let (channel, channels) = watch::channel(None);
    let admin = Arc::new(Admin {
        config: config.clone(),
        credentials: OnceLock::new(),
        metrics: metrics.clone(),
        checks: checks.clone(),
        phase: phases,
        registered: is_registered,
        app_ready: is_app_ready.clone(),
        standing: standings.clone(),
        control_plane: control_plane.address().to_owned(),
        probes: setup
            .pod
            .as_ref()
            .map(|pod| AppProber::new(pod.probes.clone(), pod.probe_key.clone(), pod.addresses[0])),
        drain: Notify::new(),
    });
    announce(&setup.plumbing, admin_address)?;

    let mut tasks = JoinSet::new();
    let serving_admin = admin.clone();
    tasks.spawn_local(async move {
        if let Err(error) = serving_admin.serve(admin_listener).await {
            tracing::error!(%error, "the admin listener failed");
        }
    });
    let leaving = admin.clone();
    let stop = spawn_local(async move {
        tokio::select! {
            () = stop => {}
            () = leaving.drain.notified() => {}
        }
    });
    let mut stop = std::pin::pin!(stop);

    let in_pod = setup.pod.is_some();
    let outlives_app = setup.pod.as_ref().is_none_or(|pod| pod.native);
    let deadline = (!in_pod).then(|| tokio::time::Instant::now() + START_TIMEOUT);
    let proofs = ProofSource::new(&setup.sidecar, &setup.workload)?;
    let identity = tokio::select! {
        identity = identity(&control_plane, &proofs, &metrics, deadline) => identity?,
        _ = &mut stop => return Ok(()),
    };
    let credentials = identity.credentials().clone();
    let _ = admin.credentials.set(credentials.clone());
    let (resolver, names) = dns::resolver(Forwarder::new(setup.sidecar.resolver), metrics.clone());
    let discovery = Discovery {
        control_plane,
        credentials: credentials.clone(),
        node: node(&description.instance, setup.workload.service.name(), &setup.workload.zone),
        knowledge: Knowledge::new(
            identity.trust_domain(),
            setup.workload.service.namespace(),
            setup.addresses,
            Instant::now(),
        ),
        wants,
        publisher,
        names,
        channel,
        metrics: metrics.clone(),
    };
    let (firing, alerts) = watch::channel(Vec::new());
    let watching = Alerts { config: config.clone(), metrics: metrics.clone(), firing };
    let app_is_ready = is_app_ready.clone();
    // A cluster knows its pods without being told.
    let is_known = setup.sidecar.service_account_token.is_some();
    let registration = Registration {
        alerts,
        description: (!is_known).then_some(description),
        channel: channels,
        ready: is_app_ready,
        standing: standings,
        draining: drains,
        registered,
    };
    tasks.spawn_local(identity.keep());
    tasks.spawn_local(discovery.run());
    tasks.spawn_local(resolver.run());
    tasks.spawn_local(registration.run());
    let app = setup.plumbing.app.clone();
    let prober = Prober::new(checks.clone(), credentials.clone(), metrics.clone(), app.clone());
    tasks.spawn_local(prober.run());
    tasks.spawn_local(watching.run());
    for task in setup.beside {
        tasks.spawn_local(task(config.clone()));
    }
    tokio::select! {
        known = first_configuration(config.clone(), deadline) => {
            known.context("the control plane gave no configuration for this workload in time")?;
        }
        _ = &mut stop => return Ok(()),
        ended = tasks.join_next() => bail!("a part of the agent ended: {ended:?}"),
    }

    let observer = Observer {
        app_pid: setup.app_pid,
        ready: app_is_ready,
        checks: Rc::default(),
        metrics: metrics.clone(),
        standing,
    };
    let redirected = setup.plumbing.redirected();
    let workers = worker::Setup {
        workers: usize::from(setup.sidecar.workers),
        config,
        credentials,
        checks,
        registry: metrics,
        tracing: telemetry.tracing.clone(),
        access_log: telemetry.access_log.clone(),
        plumbing: setup.plumbing,
    };
    // Off this runtime: workers make runtimes of their own.
    let workers =
        spawn_blocking(move || worker::start(workers)).await?.context("the workers cannot start")?;
    // In a pod it is the kubelet that checks the application, by way of us.
    let checked_by_kubelet = admin.probes.as_ref().filter(|_| !is_checked(&setup.workload));
    match checked_by_kubelet.map(AppProber::results) {
        Some(results) => tasks.spawn_local(probe::follow(results, app_ready, observer.checks.clone())),
        None => tasks.spawn_local(watch_health(setup.workload, app, app_ready, observer.checks.clone())),
    };
    tasks.spawn_local(observer.run());
    if in_pod {
        tokio::select! {
            () = redirection::wait(&redirected, || { phase.send_replace(Phase::Bypassed); }) => {}
            _ = &mut stop => {
                workers.stop();
                return Ok(());
            }
            ended = tasks.join_next() => bail!("a part of the agent ended: {ended:?}"),
        }
    }
    phase.send_replace(Phase::Serving);
    tracing::info!("the sidecar is ready");
    ready();
    tokio::select! {
        _ = &mut stop => {}
        ended = tasks.join_next() => bail!("a part of the agent ended: {ended:?}"),
    }

    let default = if in_pod { DRAIN_TIMEOUT_IN_POD } else { DRAIN_TIMEOUT };
    let leave = Leave {
        delay: setup.sidecar.drain_delay,
        timeout: setup.sidecar.drain_timeout.unwrap_or(default),
        in_pod,
        outlives_app,
    };
    tracing::info!(timeout = ?leave.timeout, "draining");
    phase.send_replace(Phase::Draining);
    draining.send_replace(true);
    leave.drain(&workers).await;
    workers.stop();
    telemetry.finish().await;
    Ok(())
}

/// What workers record and the agent's thread writes out.
struct Telemetry {
    tracing: Tracing,
    access_log: AccessLog,
    finished: watch::Sender<bool>,
    writers: Vec<JoinHandle<()>>,
}

impl Telemetry {
    fn start(
        instance: &str,
        workload: &Workload,
        pod: Option<&Pod>,
        metrics: &Registry,
    ) -> anyhow::Result<Self> {
        let (finished, finish) = watch::channel(false);
        let end = || {
            let mut finish = finish.clone();
            async move { drop(finish.wait_for(|finished| *finished).await) }
        };
        let access_log = AccessLog::new(metrics);
        let mut writers = vec![spawn_local(access_log.clone().run(std::io::stdout(), end()))];
        let settings = otlp::Settings::read(|variable| std::env::var(variable).ok())?;
        let tracing = match settings {
            None => Tracing::off(),
            Some(settings) => {
                let mut resource = vec![
                    ("service.name", workload.service.name()),
                    ("service.namespace", workload.service.namespace()),
                    ("service.instance.id", instance),
                ];
                if let Some(pod) = pod {
                    // Semantic conventions of OpenTelemetry, "Kubernetes".
                    resource.push(("k8s.namespace.name", workload.service.namespace()));
                    resource.extend([
                        ("k8s.pod.name", pod.name.as_str()),
                        ("k8s.pod.uid", pod.uid.as_str()),
                        ("k8s.node.name", pod.node.as_str()),
                    ]);
                    resource.retain(|(_, value)| !value.is_empty());
                }
                let (tracing, exporter) = Exporter::new(settings, &resource, metrics);
                writers.push(spawn_local(exporter.run(end())));
                tracing
            }
        };
        Ok(Self { tracing, access_log, finished, writers })
    }

    /// Writes out what is left; each writer limits its own time.
    async fn finish(self) {
        self.finished.send_replace(true);
        for writer in self.writers {
            let _ = writer.await;
        }
    }
}

/// The first certificate. What may pass by itself is tried again until the deadline, if there is one.
async fn identity(
    control_plane: &ControlPlane,
    proofs: &ProofSource,
    metrics: &Registry,
    deadline: Option<tokio::time::Instant>,
) -> anyhow::Result<Identity> {
    let mut reconnect = Reconnect::new();
    let mut told = String::new();
    loop {
        let error =
            match Identity::obtain(control_plane.clone(), proofs.clone(), metrics.certificate_expiry()).await
            {
                Ok(identity) => return Ok(identity),
                Err(error) => error,
            };
        let wait = reconnect.next();
        // A join token does not mend itself; a control plane may only be starting.
        let hopeless = matches!(&error, NoCertificate::Proof(missing) if !missing.may_pass());
        if hopeless || deadline.is_some_and(|deadline| tokio::time::Instant::now() + wait > deadline) {
            return Err(error).context("no identity");
        }
        tracing::warn!(%error, "no identity yet");
        let why = error.to_string();
        if why != told {
            log::waiting(&why);
            told = why;
        }
        tokio::time::sleep(wait).await;
    }
}

/// Waits for what the first connection needs, until the deadline, if there is one.
async fn first_configuration(
    mut config: ConfigHandle,
    deadline: Option<tokio::time::Instant>,
) -> Result<(), tokio::time::error::Elapsed> {
    let known = async {
        loop {
            let snapshot = config.load().clone();
            if snapshot.mesh.is_some() && snapshot.workload.is_some() {
                return;
            }
            config.changed().await;
        }
    };
    match deadline {
        Some(deadline) => tokio::time::timeout_at(deadline, known).await,
        None => {
            known.await;
            Ok(())
        }
    }
}

/// How a sidecar leaves.
struct Leave {
    /// For so long it serves whatever happens.
    delay: Duration,
    /// After so long it ends whatever is open.
    timeout: Duration,
    in_pod: bool,
    /// When it is told to leave, the application is gone, as far as we can know. Others that have
    /// sockets in the pod may then be sidecars themselves, which wait for our end in turn.
    outlives_app: bool,
}

impl Leave {
    /// Waits until nothing is open and the application is gone: a sidecar that the
    /// kubelet stops together with the application serves it to its end, one that it stops
    /// afterwards ends at once.
    async fn drain(&self, workers: &Workers) {
        workers.drain();
        let begun = Instant::now();
        let (own_user, _) = sys::effective_ids();
        let mut quiet_since = begun;
        // When the application was first seen to be gone.
        let mut gone_since = self.outlives_app.then_some(begun);
        let mut look_at = begun;
        loop {
            let (now, open) = (Instant::now(), workers.connections());
            let lasts = |since: Instant, least| now.saturating_duration_since(since) >= least;
            if open > 0 {
                quiet_since = now;
            }
            if !self.outlives_app && now >= look_at {
                look_at = now + PRESENCE_LOOK;
                gone_since = (!others_are_present(own_user)).then(|| gone_since.unwrap_or(now));
            }
            let is_quiet = gone_since.is_some() && lasts(quiet_since, QUIET);
            let is_alone = self.in_pod && gone_since.is_some_and(|since| lasts(since, LAST_WORDS));
            if lasts(begun, self.delay) && (is_quiet || is_alone) {
                return;
            }
            if lasts(begun, self.timeout) {
                tracing::warn!(open, "the drain timeout is over; what is open is cut off");
                return;
            }
            tokio::time::sleep(DRAIN_LOOK.min(begun + self.timeout - now)).await;
        }
    }
}

fn announce(plumbing: &Plumbing, admin: std::net::SocketAddr) -> std::io::Result<()> {
    for outbound in &plumbing.outbound {
        let role = match outbound.kind {
            OutboundKind::Fixed(..) => "upstream",
            _ => "outbound",
        };
        log::listening(role, outbound.listener.local_addr()?);
    }
    for inbound in &plumbing.inbound {
        let role = match inbound.kind {
            InboundKind::Mesh | InboundKind::Pod => "inbound",
            InboundKind::Published(_) => "published",
        };
        log::listening(role, inbound.listener.local_addr()?);
    }
    log::listening("admin", admin);
    Ok(())
}

/// What the registry is told about the workload.
fn describe(setup: &Setup, admin: std::net::SocketAddr) -> anyhow::Result<v1::RegisterRequest> {
    let workload = &setup.workload;
    let for_peers = |kind| matches!(kind, InboundKind::Mesh | InboundKind::Pod);
    let mesh = setup.plumbing.inbound.iter().find(|inbound| for_peers(inbound.kind));
    let inbound_port = match mesh {
        Some(inbound) => u32::from(inbound.listener.local_addr()?.port()),
        None => bail!("there is no inbound listener for peers"),
    };
    let ports = workload.ports.iter().map(|port| v1::RegisteredPort {
        name: port.name.clone(),
        port: port.number.into(),
        protocol: match port.protocol {
            AppProtocol::Detect => v1::AppProtocol::Unspecified,
            AppProtocol::Http => v1::AppProtocol::Http,
            AppProtocol::Http2 if port.grpc => v1::AppProtocol::Grpc,
            AppProtocol::Http2 => v1::AppProtocol::Http2,
            AppProtocol::Tcp => v1::AppProtocol::Tcp,
            AppProtocol::Tls => v1::AppProtocol::Tls,
        }
        .into(),
    });
    let app = setup.plumbing.app.explicit();
    Ok(v1::RegisterRequest {
        instance: setup.pod.as_ref().and_then(Pod::node_id).unwrap_or_else(|| instance(workload)),
        service: workload.service.name().to_owned(),
        address: setup.plumbing.advertise.to_string(),
        inbound_port,
        ports: ports.collect(),
        labels: workload.labels.clone().into_iter().collect(),
        zone: workload.zone.clone(),
        ready: false,
        draining: false,
        admin: admin.to_string(),
        pid: setup.app_pid,
        app_address: match app {
            Some((ip, Some(port))) => std::net::SocketAddr::new(ip, port).to_string(),
            Some((ip, None)) => ip.to_string(),
            None => String::new(),
        },
        ..v1::RegisterRequest::default()
    })
}

/// A name for this process among those of its service: 64 random bits do not collide.
fn instance(workload: &Workload) -> String {
    use std::hash::{BuildHasher, RandomState};
    let random = RandomState::new().hash_one(std::process::id());
    format!("{}-{random:016x}", workload.service.name())
}
