//! The `heddle` command.

mod check;
mod cluster;
mod control_plane;
mod demo;
mod inject;
mod install;
mod metrics;
mod policy;
mod routes;
mod stat;
mod uninstall;
mod upgrade;

use std::net::SocketAddr;
use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};
use heddle_control_plane::settings::Args as ControlPlaneArgs;
use heddle_sidecar::run::EmbeddedControlPlane;
use heddle_sidecar::settings::layers::without_service_links;

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// Heddle: a service mesh that runs unchanged programs, anywhere
#[derive(Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Show the mesh on this machine: control plane, services with sidecars, traffic
    Demo(demo::DemoArgs),
    /// Run any program, unchanged, in the mesh
    Run(Box<heddle_sidecar::run::RunArgs>),
    /// Add sidecars to the pods of manifests
    Inject(inject::InjectArgs),
    /// Take the sidecars from the pods of manifests that were injected
    Uninject(inject::UninjectArgs),
    /// Show services, endpoints, success rate, latency and mTLS share
    Stat(stat::StatArgs),
    /// List routes: what they attach to, where they lead, whether they are accepted
    Routes(routes::RoutesArgs),
    /// Say which policies a request would meet, and whose they are
    Policy(policy::PolicyArgs),
    /// See whether this machine, or a cluster, is right, and what to do if not
    Check(check::CheckArgs),
    /// Print what makes a cluster a mesh, for kubectl apply --server-side -f -
    Install(install::InstallArgs),
    /// Print what brings an installed mesh to this version
    Upgrade(upgrade::UpgradeArgs),
    /// Print what has to go for a cluster to be no mesh any more
    Uninstall(uninstall::UninstallArgs),
    /// Run a control plane
    ControlPlane(Box<ControlPlaneArgs>),
    /// One of the demo's services
    #[command(hide = true)]
    App {
        service: App,
        #[arg(long)]
        listen: SocketAddr,
    },
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum App {
    Users,
    Orders,
    Storefront,
}

fn main() -> ExitCode {
    let matches = without_service_links(Cli::command()).get_matches();
    let cli = Cli::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
    match dispatch(cli.command) {
        Ok(code) => code,
        Err(error) => fail(&error),
    }
}

#[allow(clippy::print_stderr)]
fn fail(error: &anyhow::Error) -> ExitCode {
    eprintln!("heddle: {error:#}");
    ExitCode::FAILURE
}

fn dispatch(command: Command) -> anyhow::Result<ExitCode> {
    match command {
        // Before anything makes a thread: `run` makes namespaces, which only a
        // process with one thread can.
        Command::Run(args) => heddle_sidecar::run::run(*args, Some(embedded_control_plane()?)),
        Command::Demo(args) => runtime()?.block_on(demo::run(args)),
        Command::Inject(args) => inject::inject(&args),
        Command::Uninject(args) => inject::uninject(&args),
        Command::Stat(args) => runtime()?.block_on(stat::run(args)).map(|()| ExitCode::SUCCESS),
        Command::Routes(args) => runtime()?.block_on(routes::run(args)).map(|()| ExitCode::SUCCESS),
        Command::Policy(args) => runtime()?.block_on(policy::run(args)).map(|()| ExitCode::SUCCESS),
        // Before anything makes a thread, too.
        Command::Check(args) if args.is_about_this_machine() => {
            check::machine(&args).map(|()| ExitCode::SUCCESS)
        }
        Command::Check(args) => runtime()?.block_on(check::cluster(&args)).map(|()| ExitCode::SUCCESS),
        Command::Install(args) => install::run(&args).map(|()| ExitCode::SUCCESS),
        Command::Upgrade(args) => runtime()?.block_on(upgrade::run(&args)).map(|()| ExitCode::SUCCESS),
        Command::Uninstall(args) => runtime()?.block_on(uninstall::run(&args)).map(|()| ExitCode::SUCCESS),
        Command::ControlPlane(args) => {
            heddle_control_plane::run_until_terminated(*args).map(|()| ExitCode::SUCCESS)
        }
        Command::App { service, listen } => {
            runtime()?.block_on(app(service, listen)).map(|()| ExitCode::SUCCESS)
        }
    }
}

/// The control plane that `run` starts where none answers: this program again.
fn embedded_control_plane() -> anyhow::Result<EmbeddedControlPlane> {
    Ok(EmbeddedControlPlane { program: std::env::current_exe()?, arguments: vec!["control-plane".into()] })
}

fn runtime() -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()
}

async fn app(service: App, listen: SocketAddr) -> anyhow::Result<()> {
    match service {
        App::Users => heddle_apps::users::run(listen).await,
        App::Orders => heddle_apps::orders::run(listen, "http://users:9090".into()).await,
        App::Storefront => heddle_apps::storefront::run(listen, "http://orders:8080".into()).await,
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    #[test]
    fn every_command_can_be_read() {
        super::Cli::command().debug_assert();
    }
}
