//! The registrations as a file, so that a control plane that was killed does
//! not tell the mesh "no endpoints" while sidecars are still reconnecting.
//!
//! The file is a help, not a truth: one that is missing or cannot be read is
//! the same as an empty one, and what it says counts only until the sidecars
//! had time to come back. Drained workloads are not in it.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use heddle_api::discovery::v1;
use serde::{Deserialize, Serialize};

use crate::ca::store;
use crate::model::{Health, RegisteredPort, Registration};

/// How long workloads of an earlier run wait for their sidecars, which
/// reconnect with a backoff of up to some ten seconds. Longer than the grace
/// for a single lost stream: here it is we who were away, and a stale
/// endpoint costs a retry where a missing one costs the request.
pub(crate) const RESTORED_GRACE: Duration = Duration::from_secs(30);

/// The registrations in the file at `path`.
pub(crate) fn load(path: &Path) -> io::Result<Vec<Registration>> {
    let text = match std::fs::read(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let saved: Vec<Saved> = serde_json::from_slice(&text)?;
    // One from an older version that cannot be read is left out; its sidecar is about to return.
    Ok(saved.into_iter().filter_map(Saved::read).collect())
}

/// Writes the registrations to the file at `path`.
pub(crate) fn store(path: &Path, registrations: &[Arc<Registration>]) -> io::Result<()> {
    let saved: Vec<Saved> = registrations.iter().filter(|r| !r.draining).map(|r| Saved::of(r)).collect();
    store::replace(path, &serde_json::to_vec(&saved)?)
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Saved {
    instance: String,
    identity: String,
    service: String,
    address: IpAddr,
    inbound_port: u16,
    ports: Vec<SavedPort>,
    labels: BTreeMap<String, String>,
    zone: String,
    ready: bool,
    admin: Option<SocketAddr>,
    pid: u32,
    app_address: Option<SocketAddr>,
    /// Not written by older versions.
    #[serde(default)]
    health: SavedHealth,
}

/// How the workload fared, so that one that was slow is not given its whole share by our restart.
#[derive(Serialize, Deserialize, Default)]
struct SavedHealth {
    state: i32,
    score: u32,
    cause: String,
}

#[derive(Serialize, Deserialize)]
struct SavedPort {
    name: String,
    port: u16,
    protocol: i32,
}

impl Saved {
    fn of(registration: &Registration) -> Self {
        let port = |p: &RegisteredPort| SavedPort {
            name: p.name.clone(),
            port: p.port,
            protocol: p.protocol.into(),
        };
        Self {
            instance: registration.instance.clone(),
            identity: registration.identity.as_str().into(),
            service: registration.service.as_str().into(),
            address: registration.address,
            inbound_port: registration.inbound_port,
            ports: registration.ports.iter().map(port).collect(),
            labels: registration.labels.clone(),
            zone: registration.zone.clone(),
            ready: registration.ready,
            admin: registration.admin,
            pid: registration.pid,
            app_address: registration.app_address,
            health: SavedHealth {
                state: registration.health.state.into(),
                score: registration.health.score,
                cause: registration.health.cause.clone(),
            },
        }
    }

    fn read(self) -> Option<Registration> {
        let port = |p: SavedPort| {
            let protocol = v1::AppProtocol::try_from(p.protocol).ok()?;
            Some(RegisteredPort { name: p.name, port: p.port, protocol })
        };
        Some(Registration {
            instance: self.instance,
            identity: self.identity.parse().ok()?,
            service: self.service.parse().ok()?,
            address: self.address,
            inbound_port: self.inbound_port,
            ports: self.ports.into_iter().map(port).collect::<Option<_>>()?,
            labels: self.labels,
            zone: self.zone,
            ready: self.ready,
            draining: false,
            health: Health {
                state: v1::WorkloadHealth::try_from(self.health.state).unwrap_or_default(),
                score: self.health.score.min(100),
                cause: self.health.cause,
            },
            admin: self.admin,
            pid: self.pid,
            app_address: self.app_address,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::tests::registration;

    #[test]
    fn what_was_stored_is_loaded_save_what_was_draining() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("registrations.json");
        assert!(load(&path).unwrap().is_empty());
        let mut full = registration("a");
        full.ports = vec![RegisteredPort { name: "web".into(), port: 80, protocol: v1::AppProtocol::Grpc }];
        full.labels.insert("tier".into(), "front".into());
        full.admin = Some("127.0.0.1:7190".parse().unwrap());
        full.health = Health { state: v1::WorkloadHealth::Warning, score: 40, cause: "cpu".into() };
        let leaving = Registration { draining: true, ..registration("b") };
        store(&path, &[Arc::new(full.clone()), Arc::new(leaving)]).unwrap();
        assert_eq!(load(&path).unwrap(), [full]);
        let older = std::fs::read_to_string(&path).unwrap();
        let (older, _) = older.split_once(",\"health\"").unwrap();
        std::fs::write(&path, format!("{older}}}]")).unwrap();
        assert_eq!(load(&path).unwrap()[0].health, Health::default(), "an older version did not say");
        std::fs::write(&path, "half a fi").unwrap();
        assert!(load(&path).is_err());
    }
}
