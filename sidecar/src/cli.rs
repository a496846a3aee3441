//! The commands of `heddle-sidecar`.

use std::ffi::OsString;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, ToSocketAddrs, UdpSocket};
use std::str::FromStr;

use anyhow::Context;
use clap::{Args, Parser, Subcommand};
use tokio::signal::unix::{SignalKind, signal};

use crate::check::{self, CheckArgs};
use crate::dns::{self, Addresses};
use crate::init::{self, InitArgs};
use crate::listener::{AppDialer, Inbound, InboundKind, Outbound, OutboundKind, Plumbing};
use crate::pod::{self, Pod, PodArgs};
use crate::proxy::{self, Setup};
use crate::run::{self, RunArgs, Upstream};
use crate::settings::{InvalidSpec, PortSpec, SidecarArgs, WorkloadArgs, layers};
use crate::wait::{self, WaitArgs};

/// Heddle's sidecar: the data plane beside one workload
#[derive(Debug, Parser)]
#[command(name = "heddle-sidecar", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve a workload that others start
    Proxy(Box<ProxyArgs>),
    /// Start a program in the mesh
    Run(Box<RunArgs>),
    /// Make a pod's network bring all connections to its sidecar
    Init(Box<InitArgs>),
    /// Return when the sidecar of this pod is ready
    Wait(WaitArgs),
    /// Say whether this machine can run programs in the mesh, and what to do where it cannot
    Check(CheckArgs),
}

/// Runs the command line `args`, with the program's name first.
///
/// # Errors
/// If the command fails.
pub fn run(args: impl IntoIterator<Item = OsString>) -> anyhow::Result<()> {
    match layers::parse::<Cli>(args).unwrap_or_else(|error| error.exit()).command {
        Command::Proxy(args) => args.run(),
        Command::Run(args) => run::run(*args, None),
        Command::Init(args) => init::run(&args),
        Command::Wait(args) => wait::run(&args),
        Command::Check(args) => check::run(&args),
    }
}

#[derive(Debug, Args)]
struct ProxyArgs {
    #[command(flatten)]
    workload: WorkloadArgs,
    #[command(flatten)]
    sidecar: SidecarArgs,
    /// Where the application's calls are taken; HTTP is routed by authority
    #[arg(long, value_name = "IP:PORT", env = "HEDDLE_OUTBOUND", default_value = "127.0.0.1:7101")]
    outbound: SocketAddr,
    /// Where peers' calls are taken
    #[arg(long, value_name = "IP:PORT", env = "HEDDLE_INBOUND", default_value = "0.0.0.0:7102")]
    inbound: SocketAddr,
    /// Where the application is, as IP:PORT, or as IP for the port that the peer asks for [default: loopback]
    #[arg(long, value_name = "IP[:PORT]", env = "HEDDLE_APP")]
    app: Option<AppAddress>,
    #[command(flatten)]
    pod: PodArgs,
    /// A service that the application calls, NAME[.NAMESPACE]:PORT: gets a loopback address of its own, for any protocol
    #[arg(long, value_name = "NAME:PORT", env = "HEDDLE_UPSTREAM", value_delimiter = ',')]
    upstream: Vec<Upstream>,
}

impl ProxyArgs {
    fn run(mut self) -> anyhow::Result<()> {
        if self.pod.intercept {
            return self.run_in_pod();
        }
        if let Some(AppAddress(app)) = self.app
            && self.workload.port.is_empty()
            && app.port() != 0
        {
            // Who names the application's port need not name it twice.
            self.workload.port.push(PortSpec::from_str(&app.port().to_string())?);
        }
        let workload = self.workload.resolve()?;
        let outbound = bind("outbound", self.outbound)?;
        let inbound = bind("inbound", self.inbound)?;
        let advertise = advertised(self.inbound.ip(), self.sidecar.control_plane());
        let mut outbound = vec![Outbound { listener: outbound, kind: OutboundKind::ByAuthority }];
        for upstream in &self.upstream {
            outbound.push(upstream.listen(workload.service.namespace())?);
        }
        let plumbing = Plumbing {
            outbound,
            inbound: vec![Inbound { listener: inbound, kind: InboundKind::Mesh }],
            app: AppDialer::direct(self.app.map(|AppAddress(app)| app)),
            advertise,
        };
        let setup = Setup {
            workload,
            sidecar: self.sidecar,
            plumbing,
            app_pid: 0,
            addresses: Addresses::default(),
            beside: Vec::new(),
            pod: None,
        };
        proxy::serve(setup, || (), signalled())
    }

    fn run_in_pod(self) -> anyhow::Result<()> {
        let workload = pod::name(self.workload).resolve()?;
        let control_plane = self.sidecar.control_plane();
        let pod = self.pod.resolve(|| advertised(Ipv4Addr::UNSPECIFIED.into(), control_plane));
        let plumbing = pod.plumbing()?;
        let addresses = Addresses::default();
        let responder = dns::responder(
            Pod::resolver()?,
            dns::Answers::OfCluster,
            workload.service.namespace().to_owned(),
            addresses.clone(),
            dns::Forwarder::in_pod(self.sidecar.resolver.clone()),
        );
        let setup = Setup {
            workload,
            sidecar: self.sidecar,
            plumbing,
            app_pid: 0,
            addresses,
            beside: vec![responder],
            pod: Some(pod),
        };
        proxy::serve(setup, || (), signalled())
    }
}

/// An address with or without a port; port 0 stands for none.
#[derive(Debug, Clone, Copy)]
struct AppAddress(SocketAddr);

impl FromStr for AppAddress {
    type Err = InvalidSpec;

    fn from_str(text: &str) -> Result<Self, InvalidSpec> {
        text.parse::<SocketAddr>()
            .or_else(|_| text.parse::<IpAddr>().map(|ip| SocketAddr::new(ip, 0)))
            .map(Self)
            .map_err(|_| InvalidSpec(format!("{text:?} is neither IP:PORT nor IP")))
    }
}

fn bind(role: &str, address: SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address).with_context(|| format!("the {role} listener cannot bind {address}"))
}

/// The address that peers reach: the bound one, or, where all are bound, the
/// one by which this machine reaches the control plane.
pub(crate) fn advertised(bound: IpAddr, control_plane: &str) -> IpAddr {
    if !bound.is_unspecified() {
        return bound;
    }
    let route = || {
        let target = control_plane.to_socket_addrs().ok()?.next()?;
        let any: IpAddr = if target.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { bound };
        // Connecting a datagram socket sends nothing; it asks for the route.
        let socket = UdpSocket::bind((any, 0)).ok()?;
        socket.connect(target).ok()?;
        Some(socket.local_addr().ok()?.ip())
    };
    route().unwrap_or(Ipv4Addr::LOCALHOST.into())
}

/// Resolves at the first SIGTERM or SIGINT; the second ends the process at once.
async fn signalled() {
    let (Ok(mut terminate), Ok(mut interrupt)) =
        (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
    else {
        // Without handlers the signals end the process, as they do by default.
        return std::future::pending().await;
    };
    let mut next = async move || {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    };
    next().await;
    tokio::task::spawn_local(async move {
        next().await;
        tracing::warn!("told to end twice: what is open is cut off");
        std::process::exit(1);
    });
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_flags_do_not_contradict_each_other() {
        Cli::command().debug_assert();
    }

    /// The other variables of a Service are plain addresses and numbers: no setting may have such a name.
    #[test]
    fn no_setting_is_called_like_a_variable_that_a_service_makes() {
        for arg in Cli::command().get_subcommands().flat_map(clap::Command::get_arguments) {
            let name = arg.get_env().unwrap_or_default().to_string_lossy();
            let made =
                name.ends_with("_SERVICE_HOST") || name.contains("_SERVICE_PORT") || name.contains("_PORT_");
            assert!(!made, "{name}");
        }
    }

    #[test]
    fn an_application_is_given_with_or_without_port() {
        let parse = |text: &str| text.parse::<AppAddress>().map(|app| app.0);
        assert_eq!(parse("127.0.0.1:80").unwrap(), "127.0.0.1:80".parse().unwrap());
        assert_eq!(parse("10.0.0.1").unwrap(), "10.0.0.1:0".parse().unwrap());
        assert_eq!(parse("[::1]:80").unwrap(), "[::1]:80".parse().unwrap());
        assert!(parse("users:80").is_err());
    }
}
