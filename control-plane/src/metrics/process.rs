//! The process's own metrics, with the names that Prometheus' client libraries use.
//!
//! Read from `/proc` when they are asked for; where there is none they are left out.

use std::fs;

use super::Text;

/// The kernel reports times to user space in hundredths of a second on every architecture
/// that Rust supports (`USER_HZ`).
const TICKS_PER_SECOND: f64 = 100.0;

/// Adds what is known of this process.
pub(super) fn add(text: &mut Text) {
    let mut add = |name: &str, kind: &str, help: &str, value: Option<f64>| {
        if let Some(value) = value {
            text.family(name, kind, help);
            text.sample(name, "", value);
        }
    };
    let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // The program's name may itself hold blanks and parentheses.
    let fields = stat.rsplit_once(')').map_or("", |(_, fields)| fields);
    // Numbered as in proc(5), whose first field after the name is the third.
    let field = |number: usize| fields.split_ascii_whitespace().nth(number - 3)?.parse::<f64>().ok();
    let cpu = field(14).zip(field(15)).map(|(user, system)| (user + system) / TICKS_PER_SECOND);
    add("process_cpu_seconds_total", "counter", "User and system CPU time spent, in seconds.", cpu);
    let start = field(22).zip(boot_time()).map(|(ticks, boot)| boot + ticks / TICKS_PER_SECOND);
    add("process_start_time_seconds", "gauge", "When the process started, in seconds since 1970.", start);
    add("process_resident_memory_bytes", "gauge", "Resident memory size in bytes.", resident());
    let open = fs::read_dir("/proc/self/fd").ok();
    // One of the entries is the directory that is being read.
    let open = open.and_then(|entries| u32::try_from(entries.count().saturating_sub(1)).ok()).map(f64::from);
    add("process_open_fds", "gauge", "Open file descriptors.", open);
}

fn boot_time() -> Option<f64> {
    let stat = fs::read_to_string("/proc/stat").ok()?;
    stat.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()
}

fn resident() -> Option<f64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let value = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    Some(value.split_ascii_whitespace().next()?.parse::<f64>().ok()? * 1024.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_process_is_there() {
        let mut text = Text(String::new());
        add(&mut text);
        for name in ["process_cpu_seconds_total ", "process_resident_memory_bytes ", "process_open_fds "] {
            assert!(text.0.lines().any(|line| line.starts_with(name)), "{name} is not in\n{}", text.0);
        }
    }
}
