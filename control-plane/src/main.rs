//! `heddle-control-plane`: runs the control plane, or mints a join token.

use std::io::{self, ErrorKind, Write};
use std::process::ExitCode;

use anyhow::Context;
use clap::{Parser, Subcommand};
use heddle_api::causes;
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

fn main() -> ExitCode {
    match run(Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // One line with all causes, which may have no reader.
            let _ = writeln!(io::stderr(), "heddle-control-plane: {}", causes::line(error.as_ref()));
            ExitCode::FAILURE
        }
    }
}

fn run(cli: Cli) -> anyhow::Result<()> {
    match cli.command {
        Some(Command::Token(args)) => print(&format!("{}\n", args.mint()?)),
        Some(Command::Crds) => print(&heddle_api::crd::render()),
        None => heddle_control_plane::run_until_terminated(cli.args),
    }
}

/// Writes to standard output, as far as somebody reads it.
fn print(text: &str) -> anyhow::Result<()> {
    let mut output = io::stdout().lock();
    match output.write_all(text.as_bytes()).and_then(|()| output.flush()) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        result => result.context("cannot write to standard output"),
    }
}
