//! One entry as one line of JSON.

use std::net::SocketAddr;
use std::time::Duration;

use super::Entry;
use crate::telemetry::trace::HexId;

/// Writes an object's members.
pub(super) struct Line<'a> {
    out: &'a mut Vec<u8>,
    separator: u8,
}

impl<'a> Line<'a> {
    pub(super) fn new(out: &'a mut Vec<u8>) -> Self {
        Self { out, separator: b'{' }
    }

    pub(super) fn entry(mut self, entry: &Entry<'_>, time: &str) {
        let (labels, outcome) = (entry.labels, entry.outcome);
        self.text("time", time.as_bytes());
        self.text("direction", labels.direction.as_str().as_bytes());
        self.text("protocol", protocol(entry.version).as_bytes());
        self.text("method", entry.method);
        self.text("authority", entry.authority);
        self.text("path", entry.path);
        self.number("status", outcome.code.into());
        if let Some(status) = outcome.grpc_status {
            self.number("grpc_status", status.into());
        }
        if let Some(reason) = outcome.error {
            self.text("error", reason.as_str().as_bytes());
        }
        self.milliseconds("duration_ms", entry.duration);
        self.number("bytes_in", entry.bytes_in);
        self.number("bytes_out", entry.bytes_out);
        self.text("service", labels.service.as_bytes());
        self.text("namespace", labels.namespace.as_bytes());
        if !labels.route.is_empty() {
            self.text("route", labels.route.as_bytes());
        }
        self.text("peer", labels.peer.as_bytes());
        self.text("tls", labels.tls.as_str().as_bytes());
        self.address("client", entry.client);
        self.address("endpoint", entry.endpoint);
        self.number("attempts", entry.attempts.into());
        if let Some(id) = entry.trace_id {
            self.text("trace_id", HexId::<32>::new(id).as_bytes());
        }
        self.out.extend_from_slice(b"}\n");
    }

    fn name(&mut self, name: &str) {
        self.out.push(self.separator);
        self.separator = b',';
        self.out.push(b'"');
        self.out.extend_from_slice(name.as_bytes());
        self.out.extend_from_slice(b"\":");
    }

    fn text(&mut self, name: &str, value: &[u8]) {
        self.name(name);
        self.out.push(b'"');
        escape(value, self.out);
        self.out.push(b'"');
    }

    fn number(&mut self, name: &str, value: u64) {
        self.name(name);
        self.out.extend_from_slice(itoa::Buffer::new().format(value).as_bytes());
    }

    /// Three places: microseconds are what the clock is good for.
    fn milliseconds(&mut self, name: &str, value: Duration) {
        let micros = u64::try_from(value.as_micros()).unwrap_or(u64::MAX);
        self.number(name, micros / 1000);
        self.out.push(b'.');
        self.out.extend_from_slice(&thousandths(micros % 1000));
    }

    fn address(&mut self, name: &str, address: Option<SocketAddr>) {
        if let Some(address) = address {
            self.name(name);
            use std::io::Write as _;
            write!(self.out, "\"{address}\"").expect("writing to memory cannot fail");
        }
    }
}

fn protocol(version: http::Version) -> &'static str {
    match version {
        http::Version::HTTP_10 => "HTTP/1.0",
        http::Version::HTTP_2 => "HTTP/2",
        _ => "HTTP/1.1",
    }
}

/// A number below 1000 as three digits.
fn thousandths(value: u64) -> [u8; 3] {
    [value / 100 % 10, value / 10 % 10, value % 10].map(|digit| b'0' + digit.to_le_bytes()[0])
}

/// A JSON string's content: quotes, backslashes and control characters escaped, and DEL too for
/// terminals' sake; what is not UTF-8 replaced.
pub(super) fn escape(value: &[u8], out: &mut Vec<u8>) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    for chunk in value.utf8_chunks() {
        let valid = chunk.valid().as_bytes();
        let mut plain = 0;
        for (at, byte) in valid.iter().enumerate() {
            if !matches!(byte, b'"' | b'\\' | 0x7f | 0..0x20) {
                continue;
            }
            out.extend_from_slice(&valid[plain..at]);
            plain = at + 1;
            match byte {
                b'"' | b'\\' => out.extend_from_slice(&[b'\\', *byte]),
                b'\n' => out.extend_from_slice(b"\\n"),
                b'\r' => out.extend_from_slice(b"\\r"),
                b'\t' => out.extend_from_slice(b"\\t"),
                _ => {
                    out.extend_from_slice(b"\\u00");
                    out.extend_from_slice(&[DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 15)]]);
                }
            }
        }
        out.extend_from_slice(&valid[plain..]);
        if !chunk.invalid().is_empty() {
            out.extend_from_slice("\u{fffd}".as_bytes());
        }
    }
}

/// Formats times as RFC 3339 in UTC with milliseconds; a second's date is computed once.
#[derive(Default, Debug)]
pub(super) struct Clock {
    second: Option<u64>,
    text: String,
}

impl Clock {
    pub(super) fn format(&mut self, since_1970: Duration) -> &str {
        let second = since_1970.as_secs();
        if self.second != Some(second) {
            let known =
                i64::try_from(second).ok().and_then(|second| jiff::Timestamp::from_second(second).ok());
            let text = known.unwrap_or(jiff::Timestamp::MAX).to_string();
            // `2026-11-03T12:34:56Z`: the milliseconds go before the final letter.
            self.text = text.split(['.', 'Z']).next().unwrap_or_default().to_owned();
            self.second = Some(second);
        }
        const DATE: usize = "2026-11-03T12:34:56".len();
        self.text.truncate(DATE);
        self.text.push('.');
        let digits = thousandths(since_1970.subsec_millis().into());
        self.text.extend(digits.map(char::from));
        self.text.push('Z');
        &self.text
    }
}
