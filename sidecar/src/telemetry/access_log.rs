//! The access log: one JSON line per exchange.
//!
//! A worker formats a line straight into its own bounded buffer; the agent's thread swaps
//! the buffers and writes them ([`AccessLog::run`]). Lines beyond the buffer or
//! the rate are dropped and counted, so that a reader that stalls costs log lines and never requests. Text from the
//! network is escaped; bytes that are not UTF-8 become U+FFFD, so that a line is always valid JSON.

mod json;

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;
use tokio::sync::Notify;

use self::json::Line;
use super::mailbox::Mailbox;
use super::metrics::{Outcome, RequestLabels, SharedCounter};

/// Bytes that may wait per worker: about two thousand lines.
const BUFFER: usize = 1 << 20;

/// Lines per second and worker: what a terminal or a log collector keeps up with. Formatting
/// costs about a microsecond per line, so this bounds the log at 2 % of a core.
const LINES_PER_SECOND: u32 = 20_000;

/// The process's access log. Cheap to clone.
#[derive(Clone, Debug)]
pub struct AccessLog(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    mailboxes: Mutex<Vec<Arc<Mailbox<u8>>>>,
    half_full: Arc<Notify>,
    dropped: SharedCounter,
}

/// One exchange.
#[derive(Clone, Debug)]
pub struct Entry<'a> {
    /// When it began.
    pub time: SystemTime,
    /// Until its end.
    pub duration: Duration,
    /// Direction, service, route, peer, TLS.
    pub labels: &'a RequestLabels,
    /// How it ended.
    pub outcome: Outcome,
    /// The HTTP version.
    pub version: http::Version,
    /// The request's method.
    pub method: &'a [u8],
    /// The request's authority.
    pub authority: &'a [u8],
    /// The request's path, without its query, which may hold secrets.
    pub path: &'a [u8],
    /// Who connected.
    pub client: Option<SocketAddr>,
    /// Where it went last.
    pub endpoint: Option<SocketAddr>,
    /// Bytes of the request's body.
    pub bytes_in: u64,
    /// Bytes of the response's body.
    pub bytes_out: u64,
    /// How often it was sent, the first time included; 0 if it was not.
    pub attempts: u32,
    /// The trace it belongs to.
    pub trace_id: Option<u128>,
}

/// One worker's end.
#[derive(Debug)]
pub struct AccessLogWriter {
    mailbox: Arc<Mailbox<u8>>,
    /// The second whose lines are counted, and how many there were.
    rate: Cell<(u64, u32)>,
    clock: RefCell<json::Clock>,
}

impl AccessLog {
    /// A log whose losses are counted in `heddle_access_log_dropped_total`.
    pub fn new(registry: &super::metrics::Registry) -> Self {
        let help = "Access log lines that were dropped because of the rate or a slow reader.";
        let dropped = registry.counter("heddle_access_log_dropped_total", help, &[]);
        Self(Arc::new(Shared { mailboxes: Mutex::default(), half_full: Arc::default(), dropped }))
    }

    /// One worker's end; made in the worker's own thread.
    pub fn writer(&self) -> AccessLogWriter {
        let mailbox = Arc::new(Mailbox::new(BUFFER, self.0.half_full.clone()));
        self.0.mailboxes.lock().push(mailbox.clone());
        AccessLogWriter { mailbox, rate: Cell::default(), clock: RefCell::default() }
    }
}

impl AccessLogWriter {
    /// Writes an entry's line.
    pub fn write(&self, entry: &Entry<'_>) {
        let since = entry.time.duration_since(UNIX_EPOCH).unwrap_or_default();
        let (second, lines) = self.rate.get();
        let lines = if second == since.as_secs() { lines.saturating_add(1) } else { 1 };
        self.rate.set((since.as_secs(), lines));
        if lines > LINES_PER_SECOND {
            return self.mailbox.drop_one();
        }
        // Escapes make six bytes of one at most; the rest of a line is bounded by its labels.
        let text = entry.method.len() + entry.authority.len() + entry.path.len();
        let labels = entry.labels;
        let names = labels.service.len() + labels.namespace.len() + labels.route.len() + labels.peer.len();
        self.mailbox.append(1024 + 6 * (text + names), |out| {
            Line::new(out).entry(entry, self.clock.borrow_mut().format(since));
        });
    }
}
