//! The access log: one JSON line per exchange.
//!
//! A worker formats a line straight into its own bounded buffer; the agent's thread swaps
//! the buffers and writes them ([`AccessLog::run`]). Lines beyond the buffer or
//! the rate are dropped and counted, so that a reader that stalls costs log lines and never requests. Text from the
//! network is escaped; bytes that are not UTF-8 become U+FFFD, so that a line is always valid JSON.

mod json;

use std::cell::{Cell, RefCell};
use std::io::{self, Write};
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::{sleep, timeout};

use self::json::Line;
use super::mailbox::Mailbox;
use super::metrics::{Outcome, RequestLabels, SharedCounter};

/// Bytes that may wait per worker: about two thousand lines.
const BUFFER: usize = 1 << 20;

/// Lines per second and worker: what a terminal or a log collector keeps up with. Formatting
/// costs between one and two microseconds per line, so this bounds the log at 4 % of a core.
const LINES_PER_SECOND: u32 = 20_000;

/// How long a line may wait when there are few: short enough for a person who watches.
const FLUSH_INTERVAL: Duration = Duration::from_millis(200);

/// What leaving waits for a slow reader.
const LAST_FLUSH: Duration = Duration::from_secs(1);

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

    /// Writes lines to `sink` until `shutdown` is ready, then what is left.
    ///
    /// The writing is done by a thread of its own: a sink may block for as long as
    /// its reader likes, and then lines are dropped where they are made.
    pub async fn run(self, sink: impl Write + Send + 'static, shutdown: impl Future<Output = ()>) {
        let Ok(mut sink) = Sink::start(sink) else {
            tracing::error!("the access log is off: no thread could be started for it");
            return;
        };
        let mut shutdown = pin!(shutdown);
        loop {
            tokio::select! {
                () = sleep(FLUSH_INTERVAL) => {}
                () = self.0.half_full.notified() => {}
                () = &mut shutdown => break,
            }
            tokio::select! {
                () = self.flush(&mut sink) => {}
                () = &mut shutdown => break,
            }
        }
        if timeout(LAST_FLUSH, self.flush(&mut sink)).await.is_err() {
            tracing::warn!("the access log's reader is too slow: its last lines are lost");
        }
    }

    async fn flush(&self, sink: &mut Sink) {
        let mailboxes = self.0.mailboxes.lock().clone();
        for mailbox in &mailboxes {
            self.0.dropped.add(mailbox.take_dropped());
            let mut buffer = sink.buffer().await;
            mailbox.swap(&mut buffer);
            sink.write(buffer);
        }
        // All is written when the thread gave the buffer back.
        let buffer = sink.buffer().await;
        sink.spare = Some(buffer);
    }

    /// One worker's end; made in the worker's own thread.
    pub fn writer(&self) -> AccessLogWriter {
        let mailbox = Arc::new(Mailbox::new(BUFFER, self.0.half_full.clone()));
        self.0.mailboxes.lock().push(mailbox.clone());
        AccessLogWriter { mailbox, rate: Cell::default(), clock: RefCell::default() }
    }
}

/// The thread that writes. One buffer goes there and back.
#[derive(Debug)]
struct Sink {
    work: mpsc::SyncSender<Vec<u8>>,
    done: tokio::sync::mpsc::Receiver<Vec<u8>>,
    spare: Option<Vec<u8>>,
}

impl Sink {
    fn start(mut sink: impl Write + Send + 'static) -> io::Result<Self> {
        let (work, buffers) = mpsc::sync_channel::<Vec<u8>>(1);
        let (give_back, done) = tokio::sync::mpsc::channel(1);
        let write = move || {
            let mut failing = false;
            for mut buffer in buffers {
                let result = if buffer.is_empty() { Ok(()) } else { sink.write_all(&buffer) };
                if let Err(error) = result.and_then(|()| sink.flush())
                    && !std::mem::replace(&mut failing, true)
                {
                    tracing::warn!("the access log cannot be written, lines are lost: {error}");
                }
                // A burst's memory is not kept for quiet times.
                buffer.shrink_to(buffer.len().saturating_mul(2));
                buffer.clear();
                if give_back.blocking_send(buffer).is_err() {
                    return;
                }
            }
        };
        thread::Builder::new().name("access-log".to_owned()).spawn(write)?;
        Ok(Self { work, done, spare: Some(Vec::new()) })
    }

    /// The empty buffer, once the thread is done with it.
    async fn buffer(&mut self) -> Vec<u8> {
        match self.spare.take() {
            Some(buffer) => buffer,
            None => self.done.recv().await.unwrap_or_default(),
        }
    }

    fn write(&self, buffer: Vec<u8>) {
        // There is one buffer, so that there is room for it; the thread lives as long as we do.
        let _ = self.work.try_send(buffer);
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;
    use crate::reason::Reason;
    use crate::telemetry::metrics::{Direction, Registry, Tls};

    fn labels() -> RequestLabels {
        RequestLabels {
            direction: Direction::Inbound,
            service: "users".into(),
            namespace: "shop".into(),
            route: "".into(),
            peer: "spiffe://mesh/ns/shop/sa/web".into(),
            tls: Tls::Mutual,
            added: None,
        }
    }

    fn entry<'a>(labels: &'a RequestLabels, path: &'a [u8]) -> Entry<'a> {
        Entry {
            time: UNIX_EPOCH + Duration::from_millis(1_790_000_000_042),
            duration: Duration::from_micros(1_005),
            labels,
            outcome: Outcome { code: 503, grpc_status: None, error: Some(Reason::ConnectFailure) },
            version: http::Version::HTTP_11,
            method: b"GET",
            authority: b"users",
            path,
            client: None,
            endpoint: Some(SocketAddr::from(([10, 0, 0, 1], 8080))),
            bytes_in: 0,
            bytes_out: 17,
            attempts: 2,
            trace_id: Some(0xabc),
        }
    }

    fn lines(writer: &AccessLogWriter) -> Vec<Value> {
        let mut bytes = Vec::new();
        writer.mailbox.swap(&mut bytes);
        let lines = bytes.split_inclusive(|byte| *byte == b'\n');
        lines.map(|line| serde_json::from_slice(line).expect("a line is JSON")).collect()
    }

    #[test]
    fn a_line_says_everything_about_its_exchange() {
        let writer = AccessLog::new(&Registry::new()).writer();
        writer.write(&entry(&labels(), b"/a\"b\\\x01\xff\x7f"));
        let expected = json!({
            "time": "2026-09-21T14:13:20.042Z", "direction": "inbound", "protocol": "HTTP/1.1", "method": "GET",
            "authority": "users", "path": "/a\"b\\\u{1}\u{fffd}\u{7f}", "status": 503, "error": "connect_failure",
            "duration_ms": 1.005, "bytes_in": 0, "bytes_out": 17, "service": "users", "namespace": "shop",
            "peer": "spiffe://mesh/ns/shop/sa/web", "tls": "mutual", "endpoint": "10.0.0.1:8080", "attempts": 2,
            "trace_id": "00000000000000000000000000000abc",
        });
        assert_eq!(lines(&writer), [expected]);
    }

    #[test]
    fn lines_beyond_the_rate_are_dropped_and_counted() {
        let writer = AccessLog::new(&Registry::new()).writer();
        writer.rate.set((1_790_000_000, LINES_PER_SECOND - 1));
        let labels = labels();
        for _ in 0..3 {
            writer.write(&entry(&labels, b"/"));
        }
        assert_eq!((lines(&writer).len(), writer.mailbox.take_dropped()), (1, 2));
        let next_second =
            Entry { time: UNIX_EPOCH + Duration::from_secs(1_790_000_001), ..entry(&labels, b"/") };
        writer.write(&next_second);
        assert_eq!(lines(&writer)[0]["time"], "2026-09-21T14:13:21.000Z");
    }

    #[tokio::test]
    async fn what_workers_wrote_reaches_the_sink_before_the_log_ends() {
        let (mut reader, writer) = io::pipe().expect("a pipe");
        let log = AccessLog::new(&Registry::new());
        let (first, second) = (log.writer(), log.writer());
        first.write(&entry(&labels(), b"/first"));
        second.write(&entry(&labels(), b"/second"));
        log.run(writer, async {}).await;
        let mut text = String::new();
        io::Read::read_to_string(&mut reader, &mut text).expect("the thread ends and closes the pipe");
        assert!(text.lines().count() == 2 && text.contains("/first") && text.contains("/second"), "{text}");
    }

    #[tokio::test]
    async fn a_reader_that_stalls_costs_lines_and_nobody_waits() {
        let (_reader, writer) = io::pipe().expect("a pipe");
        let registry = Registry::new();
        let log = AccessLog::new(&registry);
        let worker = log.writer();
        let (labels, path) = (labels(), vec![b'x'; 100_000]);
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let running = tokio::spawn(log.run(writer, async { stopped.await.unwrap_or(()) }));
        // More than the pipe and both buffers hold.
        for _ in 0..100 {
            worker.write(&entry(&labels, &path));
            tokio::task::yield_now().await;
        }
        drop(stop);
        running.await.expect("the log ends although its sink does not");
        assert!(worker.mailbox.take_dropped() > 0 || !registry.encode().contains("log_dropped_total 0"));
    }

    proptest! {
        #[test]
        fn any_bytes_make_a_string_that_reads_back(value in prop::collection::vec(any::<u8>(), 0..64)) {
            let mut out = b"\"".to_vec();
            json::escape(&value, &mut out);
            out.push(b'"');
            let read: String = serde_json::from_slice(&out).expect("JSON");
            prop_assert_eq!(read, String::from_utf8_lossy(&value));
            prop_assert!(!out.iter().any(|byte| *byte < b' ' || *byte == 0x7f));
        }
    }
}
