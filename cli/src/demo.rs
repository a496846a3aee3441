//! `heddle demo`: a mesh on this machine, with traffic to look at.
//!
//! Everything that runs is a process of its own, started as a user would start
//! it; ending the demo ends them all.

mod check;
mod processes;
mod shop;

use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
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
    /// The port of the storefront on this machine; 0 for any
    #[arg(long, value_name = "PORT", env = "HEDDLE_DEMO_PORT", default_value_t = 8080)]
    port: u16,
}

pub(crate) async fn run(args: DemoArgs) -> anyhow::Result<ExitCode> {
    if args.check {
        return check::run().await;
    }
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let stopped = async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
    };
    tokio::pin!(stopped);
    let shop = tokio::select! {
        shop = Shop::start(args.port) => shop?,
        () = &mut stopped => return Ok(ExitCode::SUCCESS),
    };
    introduce(&shop);
    tokio::select! {
        result = show(&shop) => result?,
        () = &mut stopped => {}
    }
    farewell();
    shop.stop().await;
    Ok(ExitCode::SUCCESS)
}

#[allow(clippy::print_stdout)]
fn introduce(shop: &Shop) {
    println!(
        "The shop is open: storefront → orders → users (two replicas), each behind a sidecar of its own.\n"
    );
    for line in shop.inventory() {
        println!("  {line}");
    }
    let (url, admin, control_plane) = (shop.url(), shop.admin_of("storefront"), shop.control_plane());
    // As it was called: whoever builds it has it in no place where a shell looks.
    let heddle = std::env::args().next().unwrap_or_else(|| "heddle".into());
    println!("\nTry, in another terminal:\n");
    println!("  curl {url}/account/2                    # through three services");
    println!("  curl http://{admin}/metrics | grep requests_total   # what a sidecar saw");
    println!(
        "  kill -9 {}                               # one replica of users; nobody notices",
        shop.replica()
    );
    println!("  {heddle} stat --control-plane {control_plane}");
    println!(
        "  {heddle} run --control-plane {control_plane} --service me -- curl -s http://orders:8080/orders/1"
    );
    println!("\nCtrl-C ends everything.\n");
}

#[allow(clippy::print_stdout)]
fn farewell() {
    println!("\nClosing the shop.");
}

/// Requests per second that keep the tables alive.
const CUSTOMERS_PER_SECOND: u32 = 20;

/// Sends customers and prints a table now and then, for ever.
async fn show(shop: &Shop) -> anyhow::Result<()> {
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
            print_table(&stat::render(&stat::rows(&before, &now)));
            before = now;
        }
    };
    tokio::select! {
        () = customers => Ok(()),
        result = tables => result,
    }
}

#[allow(clippy::print_stdout)]
fn print_table(table: &str) {
    println!("{table}");
}
