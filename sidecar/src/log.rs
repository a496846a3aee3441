//! The process's own log: to standard error, as text for a person at a
//! terminal and as JSON lines for everyone else, with a filter that can be
//! changed while it runs.

use std::io::{IsTerminal, Write};
use std::net::SocketAddr;
use std::sync::OnceLock;

use tracing_subscriber::filter::ParseError;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, Registry, fmt, reload};

/// Where announcements go instead of standard error.
static ANNOUNCER: OnceLock<Announcer> = OnceLock::new();

type Announcer = Box<dyn Fn(&str) + Send + Sync>;

static FILTER: OnceLock<reload::Handle<EnvFilter, Registry>> = OnceLock::new();

/// A text that is no level and no tracing filter.
#[derive(Debug, thiserror::Error)]
#[error("{filter:?} is no log filter: {error}")]
pub struct InvalidFilter {
    filter: String,
    error: ParseError,
}

/// Starts logging. Where the process logs already, that stays as it is.
///
/// # Errors
/// If `filter` is none.
pub fn init(filter: &str) -> Result<(), InvalidFilter> {
    let (filter, handle) = reload::Layer::new(parse(filter)?);
    let output = fmt::layer().with_writer(std::io::stderr);
    let output = if std::io::stderr().is_terminal() {
        output.with_target(false).boxed()
    } else {
        output.json().flatten_event(true).boxed()
    };
    if tracing_subscriber::registry().with(filter).with(output).try_init().is_ok() {
        let _ = FILTER.set(handle);
    }
    Ok(())
}

/// The filter in force; `None` if another part of the process set up logging.
pub(crate) fn filter() -> Option<String> {
    FILTER.get()?.with_current(ToString::to_string).ok()
}

/// Replaces the filter.
pub(crate) fn set_filter(filter: &str) -> Result<(), InvalidFilter> {
    let filter = parse(filter)?;
    if let Some(handle) = FILTER.get() {
        // It fails only when the subscriber is gone, and with it the log.
        let _ = handle.reload(filter);
    }
    Ok(())
}

/// Tells programs that wait for it, as a line of JSON, what was bound.
pub(crate) fn listening(role: &str, address: SocketAddr) {
    let line = serde_json::json!({"event": "listening", "role": role, "addr": address.to_string()});
    match ANNOUNCER.get() {
        Some(announce) => announce(&line.to_string()),
        None => {
            // Nobody may be left to read it; that is no reason to stop.
            let _ = writeln!(std::io::stderr(), "{line}");
        }
    }
}

/// Tells whoever started an application what it waits for. Where nobody but the log is told, the log says so itself.
pub(crate) fn waiting(why: &str) {
    if let Some(announce) = ANNOUNCER.get() {
        announce(&serde_json::json!({"event": "waiting", "error": why}).to_string());
    }
}

/// Hands announcements to `announce` instead of standard error, which is a
/// file in processes that nobody watches.
pub(crate) fn announce_to(announce: impl Fn(&str) + Send + Sync + 'static) {
    // Set once, before anything listens.
    let _ = ANNOUNCER.set(Box::new(announce));
}

fn parse(filter: &str) -> Result<EnvFilter, InvalidFilter> {
    EnvFilter::builder()
        .parse(filter.trim())
        .map_err(|error| InvalidFilter { filter: filter.to_owned(), error })
}
