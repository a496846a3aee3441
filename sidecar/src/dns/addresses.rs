//! Synthetic addresses of services: one IPv4 address in 240.240.0.0/16 per
//! name, the same on every machine and after every restart unless two names
//! collide.
//!
//! Always holds: an address, once given, means the same name until the process
//! ends, since applications cache what DNS told them. The table is bounded.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use heddle_api::name::ServiceName;
use parking_lot::Mutex;

/// How many services get an address: far more than one workload calls, and
/// few enough that probing in 65,534 places stays short.
const LIMIT: usize = 16_384;

/// The table, shared by the DNS responder and the agent. Cheap to clone.
#[derive(Clone, Default, Debug)]
pub struct Addresses(Arc<Mutex<Table>>);

#[derive(Default, Debug)]
struct Table {
    by_name: HashMap<ServiceName, u16>,
    by_host: HashMap<u16, ServiceName>,
}

/// The table is full.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("all {LIMIT} synthetic addresses are in use")]
pub struct Exhausted;

impl Addresses {
    /// Whether `address` lies in the range of synthetic addresses.
    pub fn contains(address: IpAddr) -> bool {
        matches!(address, IpAddr::V4(v4) if v4.octets()[..2] == [240, 240])
    }

    /// The address of `name`, given now if it had none. To be called only for
    /// services that discovery has found, so that made-up names cannot fill the table.
    ///
    /// # Errors
    /// If the table is full.
    pub fn assign(&self, name: &ServiceName) -> Result<Ipv4Addr, Exhausted> {
        let mut table = self.0.lock();
        if let Some(host) = table.by_name.get(name) {
            return Ok(address(*host));
        }
        if table.by_name.len() >= LIMIT {
            return Err(Exhausted);
        }
        let mut host = first_place(name);
        while matches!(host, 0 | u16::MAX) || table.by_host.contains_key(&host) {
            host = host.wrapping_add(1);
        }
        table.by_name.insert(name.clone(), host);
        table.by_host.insert(host, name.clone());
        Ok(address(host))
    }

    /// The service that `address` was given to.
    pub fn service(&self, address: IpAddr) -> Option<ServiceName> {
        let IpAddr::V4(v4) = address else { return None };
        let [240, 240, high, low] = v4.octets() else { return None };
        self.0.lock().by_host.get(&u16::from_be_bytes([high, low])).cloned()
    }

    /// Every address that was given, in no order.
    pub fn entries(&self) -> Vec<(IpAddr, ServiceName)> {
        let table = self.0.lock();
        table.by_host.iter().map(|(host, name)| (address(*host).into(), name.clone())).collect()
    }
}

fn address(host: u16) -> Ipv4Addr {
    let [high, low] = host.to_be_bytes();
    Ipv4Addr::new(240, 240, high, low)
}

/// FNV-1a folded to 16 bits: the standard library's hashes promise no
/// stability over versions.
fn first_place(name: &ServiceName) -> u16 {
    let hash = name
        .as_str()
        .bytes()
        .fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
    let [a, b, c, d] = hash.to_be_bytes();
    u16::from_be_bytes([a ^ c, b ^ d])
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    fn name(text: &str) -> ServiceName {
        text.parse().unwrap()
    }

    #[test]
    fn an_address_is_stable_and_leads_back() {
        let (one, other) = (Addresses::default(), Addresses::default());
        other.assign(&name("shop/orders")).unwrap();
        let users = name("shop/users");
        let address = one.assign(&users).unwrap();
        assert_eq!(address, one.assign(&users).unwrap());
        assert_eq!(address, other.assign(&users).unwrap());
        assert_eq!(one.service(address.into()), Some(users));
        assert!(Addresses::contains(address.into()));
        assert_eq!(one.service([240, 240, 0, 0].into()), None);
        assert_eq!(one.service([127, 0, 0, 1].into()), None);
    }

    #[test]
    fn colliding_names_get_different_addresses_and_the_table_is_bounded() {
        let addresses = Addresses::default();
        let given: HashSet<_> =
            (0..LIMIT).map(|i| addresses.assign(&name(&format!("n/s{i}"))).unwrap()).collect();
        assert_eq!(given.len(), LIMIT);
        assert_eq!(addresses.entries().len(), LIMIT);
        assert_eq!(addresses.assign(&name("n/one-more")), Err(Exhausted));
        assert!(addresses.assign(&name("n/s0")).is_ok());
    }
}
