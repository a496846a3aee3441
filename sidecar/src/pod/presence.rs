//! Whether the application is still there, as far as a sidecar beside it can
//! see: containers of a pod share the network, not the processes.
//!
//! A process that listens, or holds a connection that neither side has closed,
//! is alive; the kernel closes both with the process. The sockets are those of
//! `/proc/net/tcp` (proc_net_tcp.rst) that do not belong to the sidecar's user. An
//! application without any socket cannot be seen.

use std::fs;

/// States of sockets that only a living process has: ESTABLISHED, SYN_SENT,
/// SYN_RECV, CLOSE_WAIT, LISTEN (`net/tcp_states.h`).
const ALIVE: [&str; 5] = ["01", "02", "03", "08", "0A"];

/// Whether users other than `own` have sockets in this network namespace.
pub(crate) fn others_are_present(own: u32) -> bool {
    ["/proc/self/net/tcp", "/proc/self/net/tcp6"]
        .iter()
        .any(|table| fs::read_to_string(table).is_ok_and(|table| has_others(&table, own)))
}

fn has_others(table: &str, own: u32) -> bool {
    table.lines().skip(1).any(|line| {
        let mut fields = line.split_ascii_whitespace();
        let (state, user) = (fields.nth(3), fields.nth(3));
        state.is_some_and(|state| ALIVE.contains(&state))
            && user.and_then(|user| user.parse::<u32>().ok()).is_some_and(|user| user != own)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_living_sockets_of_others_count() {
        let head = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n";
        let line = |state: &str, user: u32| {
            format!(
                "   0: 0100007F:1BBE 00000000:0000 {state} 00000000:00000000 00:00000000 00000000  {user}        0 1234 1 0000000000000000 100 0 0 10 0\n"
            )
        };
        let has = |lines: &[String]| has_others(&format!("{head}{}", lines.concat()), 7100);
        assert!(!has(&[]));
        assert!(!has(&[line("0A", 7100), line("01", 7100)]));
        assert!(has(&[line("0A", 7100), line("0A", 1000)]));
        assert!(has(&[line("01", 0)]) && has(&[line("08", 1)]));
        // FIN_WAIT1 and TIME_WAIT are the kernel's, whoever had them.
        assert!(!has(&[line("04", 0), line("06", 0)]));
        assert!(!has_others("nonsense\nmore nonsense", 7100));
    }

    #[test]
    fn a_listener_of_this_process_is_seen_by_other_users() {
        let _listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let (own, _) = crate::sys::effective_ids();
        assert!(others_are_present(own.wrapping_add(1)));
    }
}
