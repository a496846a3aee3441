//! A small shop of plain services: storefront → orders → users.
//!
//! They speak HTTP and gRPC to plain names and know nothing of a mesh: no
//! retries, no TLS, no tracing, no discovery. That is the point of them.

pub mod orders;
pub mod storefront;
pub mod users;

use std::net::SocketAddr;

use axum::Router;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

/// Serves a router until SIGTERM; requests in flight are finished.
async fn serve(address: SocketAddr, router: Router) -> anyhow::Result<()> {
    let listener = TcpListener::bind(address).await?;
    axum::serve(listener, router).with_graceful_shutdown(terminated()).await?;
    Ok(())
}

/// Resolves when the process is asked to end.
async fn terminated() {
    match signal(SignalKind::terminate()) {
        Ok(mut signal) => {
            signal.recv().await;
        }
        // Without a handler the signal ends the process, which is what it asks for.
        Err(_) => std::future::pending().await,
    }
}
