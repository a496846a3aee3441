//! `heddle-control-plane`: runs the control plane, or mints a join token.

use clap::{Parser, Subcommand};
use heddle_control_plane::settings::Args;
use heddle_control_plane::token::TokenArgs;

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
        None => heddle_control_plane::run_until_terminated(cli.args)?,
    }
    Ok(())
}
