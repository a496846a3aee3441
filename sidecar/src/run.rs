//! `heddle run -- CMD`: starts a program in the mesh, unchanged.
//!
//! The launched process becomes the program (exec), so its exit status,
//! signals, terminal and pipes are exactly its own. The sidecar is a separate
//! process, no child of it, that stays in the host's network and ends after it.
//! `launch` has the choreography of the two, `explicit` the way without a
//! namespace, `control_plane` starts a control plane where there is none.
//!
//! Everything here begins in a process with one thread: namespaces of users
//! and safe forks need that. Exit statuses are those of `env` and `nohup`: 125
//! when this program fails, 126 when the command cannot be run, 127 when it is not found.

// Flags are documented as a terminal shows them.
#![allow(rustdoc::invalid_html_tags)]

mod control_plane;
mod explicit;
pub(crate) mod launch;
mod link;

use std::ffi::OsString;
use std::future::Future;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::path::PathBuf;
use std::pin::Pin;
use std::str::FromStr;

use anyhow::Context;
use clap::Args;
use heddle_api::causes;
use heddle_api::name::ServiceName;

use crate::cli::advertised;
use crate::listener::{Inbound, InboundKind, Outbound, OutboundKind};
use crate::namespace::network::Interception;
use crate::output;
use crate::proxy::{self, Setup};
use crate::settings::{InvalidSpec, SidecarArgs, Workload, WorkloadArgs};

/// The exit status when the launcher itself fails.
const FAILED: i32 = 125;

/// Settings of `run`.
#[derive(Debug, Clone, Args)]
pub struct RunArgs {
    #[command(flatten)]
    workload: WorkloadArgs,
    #[command(flatten)]
    sidecar: SidecarArgs,
    /// Make the application's PORT reachable on this host's loopback, through its sidecar
    #[arg(long, value_name = "HOSTPORT:PORT", env = "HEDDLE_PUBLISH", value_delimiter = ',')]
    publish: Vec<Published>,
    /// Do without a network namespace: services get loopback addresses, told to the application by HEDDLE_SERVICE_<NAME>_ADDR
    #[arg(long, env = "HEDDLE_EXPLICIT")]
    explicit: bool,
    /// With --explicit: a service that the application calls, NAME[.NAMESPACE]:PORT
    #[arg(
        long,
        value_name = "NAME:PORT",
        env = "HEDDLE_UPSTREAM",
        value_delimiter = ',',
        requires = "explicit"
    )]
    upstream: Vec<Upstream>,
    /// Intercept in this way instead of the best that the kernel offers
    #[arg(long, value_enum, hide = true, env = "HEDDLE_INTERCEPTION")]
    interception: Option<Interception>,
    /// Where the sidecar logs [default: a file in the runtime directory, removed when all went well]
    #[arg(long, value_name = "FILE", env = "HEDDLE_LOG")]
    log: Option<PathBuf>,
    /// The program and its arguments
    #[arg(trailing_var_arg = true, required = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

/// How a control plane is started where none answers.
#[derive(Debug, Clone)]
pub struct EmbeddedControlPlane {
    /// The program.
    pub program: PathBuf,
    /// What comes before the control plane's own flags.
    pub arguments: Vec<OsString>,
}

/// A future of the agent's thread.
pub type Local = Pin<Box<dyn Future<Output = ()>>>;

/// What runs the sidecar: [`proxy::serve`], or a stand-in under test.
pub type Serve = fn(Setup, Box<dyn FnOnce()>, Local) -> anyhow::Result<()>;

/// Announces a listener as the sidecar does, for stand-ins.
#[doc(hidden)]
pub fn announce(role: &str, address: SocketAddr) {
    crate::log::listening(role, address);
}

/// Becomes the program that `args` name, in the mesh. Must be called before
/// the process has a second thread.
///
/// Without `embedded`, a control plane is looked for beside this program and in `PATH`.
pub fn run(args: RunArgs, embedded: Option<EmbeddedControlPlane>) -> ! {
    run_with(args, embedded, proxy::serve)
}

/// [`run`] with a sidecar of the caller's choice.
pub fn run_with(args: RunArgs, embedded: Option<EmbeddedControlPlane>, serve: Serve) -> ! {
    let error = match begin(args, embedded.as_ref(), serve) {
        Ok(never) => match never {},
        Err(error) => error,
    };
    complain(&causes::line(error.as_ref()));
    std::process::exit(FAILED)
}

enum Never {}

fn begin(args: RunArgs, embedded: Option<&EmbeddedControlPlane>, serve: Serve) -> anyhow::Result<Never> {
    let workload = args.workload.resolve()?;
    if args.sidecar.control_plane.is_none() {
        control_plane::ensure(embedded)?;
    }
    let plan = Plan {
        workload,
        sidecar: args.sidecar,
        publish: args.publish,
        upstreams: args.upstream,
        explicit: args.explicit,
        interception: args.interception,
        log: args.log,
        command: args.command,
    };
    launch::launch(plan, serve)
}

/// What is to be launched.
#[derive(Debug)]
struct Plan {
    workload: Workload,
    sidecar: SidecarArgs,
    publish: Vec<Published>,
    upstreams: Vec<Upstream>,
    explicit: bool,
    interception: Option<Interception>,
    log: Option<PathBuf>,
    command: Vec<OsString>,
}

impl Plan {
    /// The listeners for calls to the application, and the address under which
    /// peers reach the first.
    fn inbound(&self) -> anyhow::Result<(Vec<Inbound>, IpAddr)> {
        let advertise = advertised(Ipv4Addr::UNSPECIFIED.into(), self.sidecar.control_plane());
        let mesh = bind((advertise, 0).into()).context("the inbound listener")?;
        let mut inbound = vec![Inbound { listener: mesh, kind: InboundKind::Mesh }];
        for Published { host, port } in &self.publish {
            let listener = bind((Ipv4Addr::LOCALHOST, *host).into())
                .with_context(|| format!("--publish {host}:{port}"))?;
            inbound.push(Inbound { listener, kind: InboundKind::Published(*port) });
        }
        Ok((inbound, advertise))
    }
}

/// A published port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Published {
    host: u16,
    port: u16,
}

impl FromStr for Published {
    type Err = InvalidSpec;

    fn from_str(text: &str) -> Result<Self, InvalidSpec> {
        let (host, port) = text.split_once(':').unwrap_or((text, text));
        match (host.parse(), port.parse()) {
            (Ok(host), Ok(port)) if port != 0 => Ok(Self { host, port }),
            _ => Err(InvalidSpec(format!("{text:?} is neither HOSTPORT:PORT nor PORT"))),
        }
    }
}

/// A service that an application without a namespace calls.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Upstream {
    host: String,
    port: u16,
}

impl Upstream {
    /// A listener at the service's loopback address, for a caller in `namespace`.
    pub(crate) fn listen(&self, namespace: &str) -> anyhow::Result<Outbound> {
        let service = self.service(namespace)?;
        let listener = explicit::stable(&service, self.port)?;
        Ok(Outbound { listener, kind: OutboundKind::Fixed(service, self.port) })
    }

    fn service(&self, namespace: &str) -> anyhow::Result<ServiceName> {
        let domain = heddle_api::name::DEFAULT_CLUSTER_DOMAIN;
        ServiceName::from_host(&self.host, namespace, domain)
            .with_context(|| format!("--upstream: {:?} is no service's name", self.host))
    }
}

impl FromStr for Upstream {
    type Err = InvalidSpec;

    fn from_str(text: &str) -> Result<Self, InvalidSpec> {
        match text.rsplit_once(':').map(|(host, port)| (host, port.parse())) {
            Some((host, Ok(port))) if !host.is_empty() && port != 0 => {
                Ok(Self { host: host.to_owned(), port })
            }
            _ => Err(InvalidSpec(format!("{text:?} is not NAME:PORT"))),
        }
    }
}

fn bind(address: SocketAddr) -> anyhow::Result<TcpListener> {
    let listener = TcpListener::bind(address).with_context(|| format!("cannot listen on {address}"))?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// Tells the person who typed the command.
fn complain(message: &str) {
    output::complain(&format!("heddle: {message}"));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn published_ports_and_upstreams_are_read() {
        assert_eq!("8080:80".parse::<Published>().unwrap(), Published { host: 8080, port: 80 });
        assert_eq!("80".parse::<Published>().unwrap(), Published { host: 80, port: 80 });
        assert_eq!("0:80".parse::<Published>().unwrap(), Published { host: 0, port: 80 });
        for bad in ["", ":", "80:", "80:0", "a:80", "1:2:3"] {
            assert!(bad.parse::<Published>().is_err(), "{bad}");
        }
        let upstream: Upstream = "users.shop:80".parse().unwrap();
        assert_eq!(upstream.service("default").unwrap().as_str(), "shop/users");
        for bad in ["users", ":80", "users:0", "users:x"] {
            assert!(bad.parse::<Upstream>().is_err(), "{bad}");
        }
    }
}
