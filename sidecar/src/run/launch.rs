//! The two processes of a launch. *We* are the one that the user started: it
//! waits for the sidecar, enters the namespace that the sidecar made, and
//! becomes the application. The *sidecar* is a detached process in the host's
//! network.
//!
//! An ordinary user's launch first enters a user namespace (which gives no
//! rights outside, and keeps the user's name), because only there may it make
//! a network namespace; the sidecar must be inside, too, to own that network.
//! The application starts only when the sidecar serves. If the sidecar dies
//! later, the application's calls fail; they never go around it.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{self, Command};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use heddle_api::causes;
use heddle_api::name::DEFAULT_CLUSTER_DOMAIN;

use super::link::{Link, Message};
use super::{Local, Never, Plan, Serve, complain, explicit};
use crate::dns::{self, Addresses};
use crate::listener::{AppDialer, Plumbing};
use crate::log;
use crate::namespace::network::ADDRESS_V4;
use crate::namespace::sockets::Sockets;
use crate::namespace::{mounts, resident};
use crate::proxy::Setup;
use crate::runtime_dir;
use crate::sys::{self, Capability, Namespace, Side};

/// How often it is looked whether the application's descendants are gone.
const DESCENDANTS_INTERVAL: Duration = Duration::from_millis(250);

/// What the application's terminal and supervisors send to whole groups: the
/// sidecar ends after the application, not with it.
const IGNORED: [i32; 7] =
    [libc::SIGHUP, libc::SIGINT, libc::SIGQUIT, libc::SIGTERM, libc::SIGTSTP, libc::SIGTTIN, libc::SIGTTOU];

/// Launches both. Returns only on failure.
pub(super) fn launch(plan: Plan, serve: Serve) -> anyhow::Result<Never> {
    let (path, temporary) = match &plan.log {
        Some(path) => (path.clone(), false),
        None => {
            let name = plan.workload.service.as_str().replace('/', "-");
            let file = format!("sidecar-{name}-{}.log", process::id());
            (runtime_dir::make()?.join(file), true)
        }
    };
    let file = OpenOptions::new().append(true).create(true).mode(0o600).open(&path);
    let file = file.with_context(|| format!("the sidecar's log {}", path.display()))?;
    let log = Log { file, path, temporary };

    if !plan.explicit {
        enter_user_namespace_if_needed().context(
            "no network namespace can be made here (`heddle check` says why and what helps; \
             --explicit does without)",
        )?;
    }
    let (link, other) = Link::pair()?;
    let pid = process::id();
    let application = Application { pid, end: sys::pidfd(pid)? };
    if sys::fork_detached().context("starting the sidecar")? == Side::Child {
        drop(link);
        be_the_sidecar(plan, serve, other, application, log)
    }
    drop((other, application));
    become_the_application(&plan, &link, &log)
}

/// Becomes able to make namespaces, where this user is not yet.
pub(crate) fn enter_user_namespace_if_needed() -> anyhow::Result<()> {
    if sys::has_capability(Capability::SysAdmin) && sys::has_capability(Capability::NetAdmin) {
        return Ok(());
    }
    let (user, group) = sys::effective_ids();
    sys::unshare(Namespace::User).context("making a user namespace")?;
    let write =
        |file: &str, text: String| std::fs::write(file, text).with_context(|| format!("writing {file}"));
    // Without this an unprivileged process may not map its group (user_namespaces(7)).
    write("/proc/self/setgroups", "deny".into())?;
    write("/proc/self/uid_map", format!("{user} {user} 1"))?;
    write("/proc/self/gid_map", format!("{group} {group} 1"))
}

// ---- the process that becomes the application

fn become_the_application(plan: &Plan, link: &Link, log: &Log) -> anyhow::Result<Never> {
    let (environment, namespace) = loop {
        match link.hear().context("hearing from the sidecar")? {
            Some((Message::Announce(line), _)) => {
                use io::Write;
                let _ = writeln!(io::stderr(), "{line}");
            }
            Some((Message::Failed(reason), _)) => bail!(reason),
            Some((Message::Ready { environment }, namespace)) => break (environment, namespace),
            None => bail!("the sidecar ended before it was ready; its log: {}", log.path.display()),
        }
    };
    if let Some(namespace) = namespace {
        sys::enter(namespace.as_fd(), Namespace::Net).context("entering the network namespace")?;
        mounts::set_up(plan.workload.service.namespace(), DEFAULT_CLUSTER_DOMAIN)
            .context("setting up name resolution in a mount namespace")?;
    }
    let (program, arguments) = plan.command.split_first().expect("clap requires a command");
    // std restores SIGPIPE, which Rust's runtime ignores, and leaves all else as it is.
    let error = Command::new(program).args(arguments).envs(environment).exec();
    complain(&format!("{}: {error}", program.to_string_lossy()));
    process::exit(if error.kind() == io::ErrorKind::NotFound { 127 } else { 126 })
}

// ---- the sidecar's process

fn be_the_sidecar(plan: Plan, serve: Serve, link: Link, application: Application, log: Log) -> ! {
    let link = Arc::new(link);
    let result = detach(&log).and_then(|()| run_sidecar(plan, serve, &link, application));
    match result {
        Ok(()) => log.remove_if_temporary(),
        Err(error) => {
            let error = causes::line(error.as_ref());
            tracing::error!(error, "the sidecar ends");
            link.tell(&Message::Failed(error), None);
            process::exit(1)
        }
    }
    process::exit(0)
}

/// Lets go of everything that belongs to the application: its terminal, its
/// pipes (a reader waits until all writers are gone), its signals.
fn detach(log: &Log) -> anyhow::Result<()> {
    let _ = sys::new_session();
    sys::ignore_signals(&IGNORED);
    sys::replace_descriptor(File::open("/dev/null")?.as_fd(), 0)?;
    sys::replace_descriptor(log.file.as_fd(), 1)?;
    sys::replace_descriptor(log.file.as_fd(), 2)?;
    // Keys live in this process; the application has the same user.
    sys::forbid_inspection()?;
    Ok(())
}

fn run_sidecar(plan: Plan, serve: Serve, link: &Arc<Link>, application: Application) -> anyhow::Result<()> {
    log::init(&plan.sidecar.log_level)?;
    let announcer = link.clone();
    log::announce_to(move |line| announcer.tell(&Message::Announce(line.to_owned()), None));

    let (inbound, advertise) = plan.inbound()?;
    let addresses = Addresses::default();
    let mut beside = Vec::new();
    let mut environment = std::collections::BTreeMap::new();
    let (outbound, app, namespace, sockets);
    if plan.explicit {
        (outbound, environment) = explicit::outbound(&plan)?;
        (app, namespace, sockets) = (AppDialer::direct(None), None, None);
        for (name, address) in &environment {
            let line = serde_json::json!({"event": "upstream", "variable": name, "addr": address});
            link.tell(&Message::Announce(line.to_string()), None);
        }
    } else {
        let resident = resident::move_in(plan.interception)?;
        tracing::info!(interception = ?resident.inside.interception, "the network namespace is ready");
        let queries =
            dns::Sockets { datagrams: resident.inside.dns_datagrams, streams: resident.inside.dns_streams };
        let own = plan.workload.service.namespace().to_owned();
        let forwarder = dns::Forwarder::new(plan.sidecar.resolver.clone());
        beside.push(dns::responder(queries, dns::Answers::OfMesh, own, addresses.clone(), forwarder));
        outbound = resident.inside.outbound;
        app = AppDialer::namespaced(Arc::new(resident.sockets.clone()), ADDRESS_V4);
        (namespace, sockets) = (Some(resident.namespace), Some(resident.sockets));
    }
    // Only the namespace's thread, which began before, still needs some.
    sys::keep_capabilities(&[])?;

    let setup = Setup {
        workload: plan.workload,
        sidecar: plan.sidecar,
        plumbing: Plumbing { outbound, inbound, app, advertise },
        app_pid: application.pid,
        addresses,
        beside,
        pod: None,
    };
    let ready_link = link.clone();
    let ready = Box::new(move || {
        // Relative paths of settings were the user's; now nothing is pinned.
        let _ = std::env::set_current_dir("/");
        let fd = namespace.as_ref().map(AsFd::as_fd);
        ready_link.tell(&Message::Ready { environment }, fd);
    });
    serve(setup, ready, gone(application, sockets))
}

/// Resolves when the application is gone and nobody it left behind lives in
/// its namespace: a program that puts itself into the background keeps its network.
fn gone(application: Application, sockets: Option<Sockets>) -> Local {
    Box::pin(async move {
        match sys::watch(application.end) {
            Ok(application) => drop(application.readable().await),
            Err(error) => {
                // Then it cannot be known; the sidecar stays rather than leave the application alone.
                tracing::error!(%error, "the application's end cannot be seen");
                return std::future::pending().await;
            }
        }
        if let Some(sockets) = sockets {
            while sockets.occupied().await {
                tokio::time::sleep(DESCENDANTS_INTERVAL).await;
            }
        }
        tracing::info!("the application is gone");
    })
}

/// The process that is to become the application.
#[derive(Debug)]
struct Application {
    pid: u32,
    /// Readable when it has ended.
    end: OwnedFd,
}

/// Where the sidecar logs.
#[derive(Debug)]
struct Log {
    file: File,
    path: PathBuf,
    /// Whether it is of interest only when something went wrong.
    temporary: bool,
}

impl Log {
    fn remove_if_temporary(&self) {
        if self.temporary {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}
