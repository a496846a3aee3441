//! Which ports of the host's loopback have a listener, read from
//! `/proc/net/tcp` and `tcp6`, so that the application can reach them: a
//! database on the developer's machine is at `localhost` for it too.
//!
//! Only ports with a listener are offered, because an intercepted connection
//! always succeeds at first; a closed port stays "connection refused".

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, BufRead, BufReader};

/// Ports beyond this number are left out: a host with more listeners is no
/// developer's machine, and the rules' sets stay small.
const LIMIT: usize = 4096;

/// The state `TCP_LISTEN` as `/proc/net/tcp` writes it.
const LISTENING: &str = "0A";

/// Ports that can be reached on loopback, by family.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct HostPorts {
    /// On 127.0.0.0/8.
    pub(crate) v4: BTreeSet<u16>,
    /// On ::1.
    pub(crate) v6: BTreeSet<u16>,
}

impl HostPorts {
    /// The listeners of the namespace that the process's *main* thread lives
    /// in: `/proc/self` is about that thread, whichever asks.
    pub(crate) fn read() -> io::Result<Self> {
        let mut ports = Self::default();
        ports.add(BufReader::new(File::open("/proc/self/net/tcp")?));
        // Without IPv6 there is no such file.
        if let Ok(file) = File::open("/proc/self/net/tcp6") {
            ports.add(BufReader::new(file));
        }
        Ok(ports)
    }

    /// Adds the listeners of one table. The kernel writes listeners first, so
    /// reading ends at the first other socket: a host with many connections
    /// costs no more than one without.
    fn add(&mut self, table: impl BufRead) {
        for line in table.lines().skip(1).map_while(Result::ok) {
            let mut fields = line.split_ascii_whitespace().skip(1);
            let (Some(local), Some(state)) = (fields.next(), fields.nth(1)) else { return };
            if state != LISTENING || self.v4.len() + self.v6.len() >= LIMIT {
                return;
            }
            let Some((address, port)) = local.split_once(':') else { return };
            let Ok(port) = u16::from_str_radix(port, 16) else { return };
            // Addresses are words in the machine's order; loopback and wildcard are told apart by shape.
            match address {
                "00000000000000000000000000000000" => {
                    // Nearly always for both families.
                    self.v4.insert(port);
                    self.v6.insert(port);
                }
                "00000000000000000000000001000000" | "00000000000000000000000000000001" => {
                    self.v6.insert(port);
                }
                "00000000" => {
                    self.v4.insert(port);
                }
                _ if address.len() == 8 && is_loopback_v4(address) => {
                    self.v4.insert(port);
                }
                _ => {}
            }
        }
    }
}

/// Whether the eight digits are an address in 127.0.0.0/8.
fn is_loopback_v4(digits: &str) -> bool {
    u32::from_str_radix(digits, 16).is_ok_and(|word| word.to_ne_bytes()[0] == 127)
}

#[cfg(test)]
mod tests {
    use std::net::{SocketAddr, TcpListener};

    use socket2::{Domain, Socket, Type};

    use super::*;

    const TABLE: &str = "\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:1538 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1 1 0 100 0 0 10 0
   1: 00000000:0016 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 2 1 0 100 0 0 10 0
   2: 0200A8C0:0050 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 3 1 0 100 0 0 10 0
   3: 0100007F:A1B2 0100007F:1538 01 00000000:00000000 00:00000000 00000000     0        0 4 1 0 20 4 30 10 -1
   4: 0100007F:0051 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 5 1 0 100 0 0 10 0
";

    #[test]
    fn listeners_on_loopback_and_everywhere_count_and_others_do_not() {
        let mut ports = HostPorts::default();
        ports.add(TABLE.as_bytes());
        assert_eq!(ports.v4, BTreeSet::from([5432, 22]));
        assert!(ports.v6.is_empty());
    }

    #[test]
    fn nonsense_is_no_port() {
        for table in ["", "\n", "head\n1: x 0A", "head\n1: 0100007F:zz 0:0 0A", "head\n1: 0100007F 0:0 0A"] {
            let mut ports = HostPorts::default();
            ports.add(table.as_bytes());
            assert_eq!(ports, HostPorts::default(), "{table}");
        }
    }

    #[test]
    fn this_machines_listeners_are_found() {
        let bound = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        bound.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
        let one = bound.local_addr().unwrap().as_socket().unwrap().port();
        assert!(!HostPorts::read().unwrap().v4.contains(&one), "it does not listen");
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        assert!(HostPorts::read().unwrap().v4.contains(&listener.local_addr().unwrap().port()));
        if let Ok(listener) = TcpListener::bind("[::1]:0") {
            assert!(HostPorts::read().unwrap().v6.contains(&listener.local_addr().unwrap().port()));
        }
    }
}
