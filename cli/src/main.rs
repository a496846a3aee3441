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

use std::io;
use std::net::SocketAddr;
use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};
use heddle_api::causes;
use heddle_control_plane::settings::Args as ControlPlaneArgs;
use heddle_sidecar::output;
use heddle_sidecar::run::EmbeddedControlPlane;
use heddle_sidecar::settings::layers;

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
        /// End when standard input does, whose other end is held by whoever started it
        #[arg(long)]
        while_stdin: bool,
    },
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum App {
    Users,
    Orders,
    Storefront,
}

fn main() -> ExitCode {
    match dispatch(typed().command) {
        Ok(code) => code,
        Err(error) => fail(&error),
    }
}

/// What was typed.
fn typed() -> Cli {
    let matches = layers::without_service_links(Cli::command()).get_matches();
    // A sidecar's settings may come from a file as well. A control plane reads its own.
    if matches.subcommand_name() == Some("run") {
        return layers::parse(std::env::args_os()).unwrap_or_else(|error| error.exit());
    }
    Cli::from_arg_matches(&matches).unwrap_or_else(|error| error.exit())
}

fn fail(error: &anyhow::Error) -> ExitCode {
    output::complain(&format!("heddle: {}", causes::line(error.as_ref())));
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
        Command::App { service, listen, while_stdin } => {
            let serve = app(service, listen, while_stdin);
            runtime()?.block_on(serve).map(|()| ExitCode::SUCCESS)
        }
    }
}

/// The control plane that `run` starts where none answers: this program again.
fn embedded_control_plane() -> anyhow::Result<EmbeddedControlPlane> {
    Ok(EmbeddedControlPlane { program: std::env::current_exe()?, arguments: vec!["control-plane".into()] })
}

fn runtime() -> io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()
}

async fn app(service: App, listen: SocketAddr, while_stdin: bool) -> anyhow::Result<()> {
    let serve = async {
        match service {
            App::Users => heddle_apps::users::run(listen).await,
            App::Orders => heddle_apps::orders::run(listen, "http://users:9090".into()).await,
            App::Storefront => heddle_apps::storefront::run(listen, "http://orders:8080".into()).await,
        }
    };
    if !while_stdin {
        return serve.await;
    }
    let (closed, close) = tokio::sync::oneshot::channel();
    std::thread::spawn(move || {
        let _ = io::copy(&mut io::stdin().lock(), &mut io::sink());
        let _ = closed.send(());
    });
    tokio::select! {
        result = serve => result,
        _ = close => Ok(()),
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
