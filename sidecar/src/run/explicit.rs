//! An application without a network namespace: each service that it calls,
//! named by `--upstream`, gets a loopback address that leads there through the
//! sidecar, and the application learns the addresses from its environment.
//!
//! An address depends on the service's name only, so that configuration files
//! may hold it. HTTP by authority works through one more listener, told as
//! `HEDDLE_OUTBOUND`.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use heddle_api::name::ServiceName;

use super::{Plan, bind};
use crate::listener::{Outbound, OutboundKind};

/// The variable with the listener that routes HTTP by authority.
const OUTBOUND: &str = "HEDDLE_OUTBOUND";

/// The listeners for the application's calls, and the variables that tell of them.
pub(super) fn outbound(plan: &Plan) -> anyhow::Result<(Vec<Outbound>, BTreeMap<String, String>)> {
    let by_authority = bind((Ipv4Addr::LOCALHOST, 0).into())?;
    let mut environment = BTreeMap::from([(OUTBOUND.into(), by_authority.local_addr()?.to_string())]);
    let mut outbound = vec![Outbound { listener: by_authority, kind: OutboundKind::ByAuthority }];
    let own = plan.workload.service.namespace();
    for upstream in &plan.upstreams {
        let fixed = upstream.listen(own)?;
        environment.insert(variable(&upstream.service(own)?, own), fixed.listener.local_addr()?.to_string());
        outbound.push(fixed);
    }
    Ok((outbound, environment))
}

/// A listener at the service's own loopback address; where that is taken (by
/// another application that calls the same service) or does not exist (outside
/// Linux), at any port.
pub(super) fn stable(service: &ServiceName, port: u16) -> anyhow::Result<std::net::TcpListener> {
    let address = loopback(service);
    bind(SocketAddr::new(address, port))
        .or_else(|_| bind(SocketAddr::new(address, 0)))
        .or_else(|_| bind((Ipv4Addr::LOCALHOST, 0).into()))
}

/// A loopback address for the service, between 127.64.0.1 and 127.127.255.254:
/// away from those that people use.
fn loopback(service: &ServiceName) -> IpAddr {
    // FNV-1a: stable over versions, which std's hashes do not promise.
    let hash = service
        .as_str()
        .bytes()
        .fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
    let [_, b, c, d] = hash.to_be_bytes();
    Ipv4Addr::new(127, 64 | b & 63, c, d.clamp(1, 254)).into()
}

/// `HEDDLE_SERVICE_USERS_ADDR`, or `HEDDLE_SERVICE_USERS_SHOP_ADDR` for a
/// service of another namespace.
fn variable(service: &ServiceName, own_namespace: &str) -> String {
    let word = |text: &str| text.to_ascii_uppercase().replace('-', "_");
    if service.namespace() == own_namespace {
        format!("HEDDLE_SERVICE_{}_ADDR", word(service.name()))
    } else {
        format!("HEDDLE_SERVICE_{}_{}_ADDR", word(service.name()), word(service.namespace()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_services_address_and_variable_depend_on_its_name_only() {
        let users: ServiceName = "shop/user-store".parse().unwrap();
        assert_eq!(loopback(&users), loopback(&users.clone()));
        assert!(loopback(&users).is_loopback());
        assert_eq!(variable(&users, "shop"), "HEDDLE_SERVICE_USER_STORE_ADDR");
        assert_eq!(variable(&users, "default"), "HEDDLE_SERVICE_USER_STORE_SHOP_ADDR");
    }

    #[test]
    fn a_taken_address_gives_way_to_another_port() {
        let users: ServiceName = "explicit-test/users".parse().unwrap();
        let first = stable(&users, 0).unwrap().local_addr().unwrap();
        let taken = bind(first).unwrap();
        let second = stable(&users, first.port()).unwrap().local_addr().unwrap();
        assert_ne!(second, taken.local_addr().unwrap());
        assert!(second.ip().is_loopback());
    }
}
