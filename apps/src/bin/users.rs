//! The users service: listens on `LISTEN`.

use std::env;

fn variable(name: &str, default: &str) -> String {
    env::var(name).unwrap_or_else(|_| default.to_owned())
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let address = variable("LISTEN", "0.0.0.0:9090").parse()?;
    heddle_apps::users::run(address).await
}
