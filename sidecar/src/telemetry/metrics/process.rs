//! The process's own metrics, with the names that Prometheus' client libraries use.
//!
//! Read from `/proc` at scrape time; where there is none they are left out.

use std::fs;

use super::encode::{Encoder, Kind};

/// The kernel reports times to user space in hundredths of a second on every architecture
/// that Rust supports (`USER_HZ`).
const TICKS_PER_SECOND: f64 = 100.0;

pub(super) fn encode(encoder: &mut Encoder) {
    let mut gauge = |name: &str, kind: Kind, help: &str, value: Option<f64>| {
        if let Some(value) = value {
            encoder.family(name, kind, help);
            encoder.float(name, &[], value);
        }
    };
    let stat = fs::read_to_string("/proc/self/stat").ok();
    let stat = stat.as_deref().map(fields).unwrap_or_default();
    // Numbered as in proc(5), whose first field after the name is the third.
    let field = |number: usize| stat.get(number - 3).and_then(|text| text.parse::<f64>().ok());

    let cpu = field(14).zip(field(15)).map(|(user, system)| (user + system) / TICKS_PER_SECOND);
    gauge("process_cpu_seconds_total", Kind::Counter, "User and system CPU time spent, in seconds.", cpu);
    let start = field(22).zip(boot_time()).map(|(ticks, boot)| boot + ticks / TICKS_PER_SECOND);
    gauge(
        "process_start_time_seconds",
        Kind::Gauge,
        "When the process started, in seconds since 1970.",
        start,
    );
    gauge("process_virtual_memory_bytes", Kind::Gauge, "Virtual memory size in bytes.", field(23));
    let resident = status_kib("VmRSS:").map(|kib| kib * 1024.0);
    gauge("process_resident_memory_bytes", Kind::Gauge, "Resident memory size in bytes.", resident);
    let open = fs::read_dir("/proc/self/fd").ok();
    // One of the entries is the directory that is being read.
    let open = open.and_then(|entries| u32::try_from(entries.count().saturating_sub(1)).ok()).map(f64::from);
    gauge("process_open_fds", Kind::Gauge, "Open file descriptors.", open);
    gauge("process_max_fds", Kind::Gauge, "Limit of open file descriptors.", fd_limit());
    gauge("process_threads", Kind::Gauge, "Threads.", field(20));
}

/// The fields after the program's name, which may itself hold blanks and parentheses.
fn fields(stat: &str) -> Vec<&str> {
    stat.rsplit_once(')').map(|(_, rest)| rest.split_ascii_whitespace().collect()).unwrap_or_default()
}

fn boot_time() -> Option<f64> {
    let stat = fs::read_to_string("/proc/stat").ok()?;
    stat.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()
}

fn status_kib(key: &str) -> Option<f64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let value = status.lines().find_map(|line| line.strip_prefix(key))?;
    value.split_ascii_whitespace().next()?.parse().ok()
}

fn fd_limit() -> Option<f64> {
    let limits = fs::read_to_string("/proc/self/limits").ok()?;
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    line.split_ascii_whitespace().next()?.parse().ok()
}
