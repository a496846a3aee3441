//! `heddle demo`: a mesh on this machine, with traffic to look at.
//!
//! Everything that runs is a process of its own, started as a user would start
//! it; ending the demo ends them all.

mod check;
mod processes;
mod shop;

use std::io::{self, ErrorKind};
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use heddle_sidecar::output;
use tokio::signal::unix::{SignalKind, signal};

use self::shop::Shop;
use crate::control_plane::{Admin, Location};
use crate::stat;

/// Runs the demo.
#[derive(Args, Debug)]
pub(crate) struct DemoArgs {
    /// Run without a screen: exercise the mesh, print what held, exit with 0 or 1
    #[arg(long)]
    check: bool,
    /// The port of the storefront on this machine; 0 for any [default: 8080, or any free port where that is taken]
    #[arg(long, value_name = "PORT", env = "HEDDLE_DEMO_PORT")]
    port: Option<u16>,
}

pub(crate) async fn run(args: DemoArgs) -> anyhow::Result<ExitCode> {
    if args.check {
        return check::run().await;
    }
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut hangup = signal(SignalKind::hangup())?;
    let stopped = async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = hangup.recv() => {}
        }
    };
    tokio::pin!(stopped);
    let shop = tokio::select! {
        shop = Shop::start(args.port) => shop?,
        () = &mut stopped => return Ok(ExitCode::SUCCESS),
    };
    let shown = tokio::select! {
        result = show(&shop) => result,
        () = &mut stopped => Ok(()),
    };
    output::print("\nClosing the shop.\n").ok();
    shop.stop().await;
    match shown {
        // Who looked on has gone.
        Err(error) if is_broken_pipe(&error) => Ok(ExitCode::SUCCESS),
        result => result.map(|()| ExitCode::SUCCESS),
    }
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == ErrorKind::BrokenPipe)
}

fn introduction(shop: &Shop) -> String {
    let inventory: String = shop.inventory().iter().map(|line| format!("  {line}\n")).collect();
    let (url, admin, control_plane) = (shop.url(), shop.admin_of("storefront"), shop.control_plane());
    // As it was called: whoever builds it has it in no place where a shell looks.
    let heddle = std::env::args().next().unwrap_or_else(|| "heddle".into());
    let replica = shop.replica();
    let metrics = format!("curl -s http://{admin}/metrics | grep requests_total");
    format!(
        "The shop is open: storefront → orders → users (two replicas), each behind a sidecar of its own.

{inventory}
Try, in another terminal:

  {:<62} # through three services
  {metrics:<62} # what a sidecar saw
  {:<62} # one replica of users; nobody notices
  {heddle} stat --control-plane {control_plane}
  {heddle} run --control-plane {control_plane} --service me -- curl -s http://orders:8080/orders/1

Ctrl-C ends everything.

",
        format!("curl {url}/account/2"),
        format!("kill -9 {replica}"),
    )
}

/// Requests per second that keep the tables alive.
const CUSTOMERS_PER_SECOND: u32 = 20;

/// Says what there is, sends customers and prints a table now and then, as long as somebody reads it.
async fn show(shop: &Shop) -> anyhow::Result<()> {
    output::write(&introduction(shop))?;
    let admin = Admin::open(Location::at(shop.control_plane_admin())).await?;
    let customers = async {
        let mut pace = tokio::time::interval(Duration::from_secs(1) / CUSTOMERS_PER_SECOND);
        for customer in (1..=5).cycle() {
            pace.tick().await;
            // What goes wrong shows in the table.
            let _ = admin.get(&format!("{}/account/{customer}", shop.url())).await;
        }
    };
    let tables = async {
        let all = stat::Selection::default();
        let mut before = stat::observe(&admin, &all).await?;
        loop {
            tokio::time::sleep(Duration::from_secs(5)).await;
            let now = stat::observe(&admin, &all).await?;
            output::write(&format!("{}\n", stat::render(&stat::rows(&before, &now))))?;
            before = now;
        }
    };
    tokio::select! {
        () = customers => Ok(()),
        result = tables => result,
    }
}
