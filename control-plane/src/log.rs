//! Log lines, and the line that tells where a listener was bound; both on
//! stderr, since stdout belongs to commands that print a result.

use std::io::{self, Write};
use std::net::SocketAddr;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::ParseError;

use crate::settings::LogFormat;

/// The target of the Kubernetes client's own lines.
const KUBERNETES_CLIENT: &str = "kube_client";

/// Sends log lines to stderr from now on. A second call changes nothing.
///
/// # Errors
/// If `filter` is no tracing filter.
pub fn init(filter: &str, format: LogFormat) -> Result<(), ParseError> {
    // The client of Kubernetes writes an error for each try; the source writes one line for each change.
    let quiet =
        if filter.contains(KUBERNETES_CLIENT) { None } else { Some(format!("{KUBERNETES_CLIENT}=off")) };
    let mut filter = EnvFilter::builder().parse(filter)?;
    if let Some(quiet) = quiet {
        filter = filter.add_directive(quiet.parse()?);
    }
    let lines = tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr);
    // It fails only where a subscriber is set already, by whoever embeds us.
    let _ = match format {
        LogFormat::Plain => lines.with_ansi(false).try_init(),
        LogFormat::Json => lines.json().flatten_event(true).try_init(),
    };
    Ok(())
}

/// Prints where the listener `role` was bound.
pub(crate) fn listening(role: &str, address: SocketAddr) {
    let line = serde_json::json!({"event": "listening", "role": role, "addr": address});
    // A closed stderr is no reason to stop.
    let _ = writeln!(io::stderr().lock(), "{line}");
}
