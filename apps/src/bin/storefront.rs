//! The storefront service: listens on `LISTEN`.

use std::env;

fn variable(name: &str, default: &str) -> String {
    env::var(name).unwrap_or_else(|_| default.to_owned())
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let address = variable("LISTEN", "0.0.0.0:8080").parse()?;
    heddle_apps::storefront::run(address, variable("ORDERS_URL", "http://orders:8080")).await
}
