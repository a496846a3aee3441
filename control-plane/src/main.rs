//! `heddle-control-plane`: runs the control plane, or mints a join token.

use anyhow::Context;
use clap::{Parser, Subcommand};
use heddle_control_plane::settings::Args;
use heddle_control_plane::token::TokenArgs;
use tokio::signal::unix::{SignalKind, signal};

/// Heddle's control plane
#[derive(Parser)]
#[command(version, args_conflicts_with_subcommands = true)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    args: Args,
}

#[derive(Subcommand)]
enum Command {
    /// Mint a join token for one service
    Token(TokenArgs),
    /// Print the CustomResourceDefinitions of Heddle's kinds
    Crds,
}

fn main() -> anyhow::Result<()> {
    let cli = Cli::parse();
    match cli.command {
        #[allow(clippy::print_stdout)]
        Some(Command::Token(args)) => println!("{}", args.mint()?),
        #[allow(clippy::print_stdout)]
        Some(Command::Crds) => print!("{}", heddle_api::crd::render()),
        None => serve(cli.args)?,
    }
    Ok(())
}

fn serve(args: Args) -> anyhow::Result<()> {
    let settings = args.resolve()?;
    heddle_control_plane::log::init(&settings.log_level, settings.log_format).context("--log-level")?;
    raise_file_limit();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let result = runtime.block_on(async {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let shutdown = async move {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
        };
        anyhow::Ok(heddle_control_plane::run(settings, shutdown).await?)
    });
    // Work on files that has not ended by now is of no use to anyone.
    runtime.shutdown_background();
    result
}

/// Each sidecar is a connection, and many systems allow a process 1024 files unless it asks for more.
fn raise_file_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    // Where that fails, the limit that there is will do for a while.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
}
