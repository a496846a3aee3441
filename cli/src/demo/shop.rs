//! The shop: a control plane and three services, one of them twice.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, bail};
use tempfile::TempDir;

use super::processes::Process;
use crate::control_plane::{Admin, Location, Workload};

pub(super) struct Shop {
    control_plane: Process,
    workloads: Vec<Process>,
    storefront: SocketAddr,
    /// As the control plane knew them at the start.
    registered: Vec<Workload>,
    folder: TempDir,
}

/// Time for every workload to have joined and passed its health check.
const OPENING_TIMEOUT: Duration = Duration::from_secs(60);

/// How often the opening is looked at.
const OPENING_POLL: Duration = Duration::from_millis(100);

/// How long the control plane stays where the demo was killed, and with it all sidecars. Longer than the
/// first sidecar takes to come.
const ORPHANED: &str = "30s";

/// The storefront's port unless another is asked for.
const STOREFRONT: u16 = 8080;

const MANIFESTS: &str = include_str!("shop.yaml");

impl Shop {
    /// Opens it, with the storefront on `port` of this machine; `None`: where it usually is, if that is free.
    pub(super) async fn start(port: Option<u16>) -> anyhow::Result<Self> {
        let usual = || free_port(STOREFRONT).or_else(|_| free_port(0));
        let port = port.map_or_else(usual, free_port)?;
        let folder = TempDir::with_prefix("heddle-demo-")?;
        let manifests = folder.path().join("manifests");
        std::fs::create_dir(&manifests)?;
        std::fs::write(manifests.join("shop.yaml"), MANIFESTS)?;
        // A port that is known beforehand: a control plane that is started again finds its place.
        let listen = format!("127.0.0.1:{}", free_port(0)?);
        let control_plane = start_control_plane(&folder, &listen).await?;
        let storefront = SocketAddr::from(([127, 0, 0, 1], port));
        let mut shop =
            Self { control_plane, workloads: Vec::new(), storefront, registered: Vec::new(), folder };
        for (service, port) in
            [("users", "grpc:9090:grpc"), ("users", "grpc:9090:grpc"), ("orders", "http:8080:http")]
        {
            let workload = shop.workload(service, port, &[]).await?;
            shop.workloads.push(workload);
        }
        let publish = ["--publish".to_owned(), format!("{}:8080", storefront.port())];
        let front = shop.workload("storefront", "http:8080:http", &publish).await?;
        shop.workloads.push(front);
        shop.registered = shop.opened().await?;
        Ok(shop)
    }

    async fn workload(&self, service: &str, port: &str, more: &[String]) -> anyhow::Result<Process> {
        let listen = format!("0.0.0.0:{}", port.split(':').nth(1).context("NAME:PORT")?);
        let program = std::env::current_exe()?.display().to_string();
        let control_plane = self.control_plane().to_string();
        let mut arguments: Vec<String> =
            ["run", "--control-plane", &control_plane, "--service", service, "--port", port]
                .map(Into::into)
                .into();
        arguments.extend_from_slice(more);
        arguments
            .extend(["--", &program, "app", service, "--listen", &listen, "--while-stdin"].map(Into::into));
        Process::start(service, &arguments, "admin").await
    }

    /// Waits until everybody has joined and the shop answers.
    async fn opened(&self) -> anyhow::Result<Vec<Workload>> {
        let admin = Admin::open(Location::at(self.control_plane_admin())).await?;
        let wait = async {
            loop {
                if let Ok(known) = admin.workloads().await
                    && known.workloads.len() == self.workloads.len()
                    && known.workloads.iter().all(|w| w.more.get("ready").is_some_and(|ready| ready == true))
                    && admin.get(&self.url()).await.is_ok_and(|(status, _)| status == 200)
                {
                    return known.workloads;
                }
                tokio::time::sleep(OPENING_POLL).await;
            }
        };
        match tokio::time::timeout(OPENING_TIMEOUT, wait).await {
            Ok(workloads) => Ok(workloads),
            Err(_) => bail!(
                "the shop did not open within {OPENING_TIMEOUT:?}; it answered: {:?}. `heddle check` may say why",
                admin.get(&self.url()).await
            ),
        }
    }

    /// Lines that say what runs where.
    pub(super) fn inventory(&self) -> Vec<String> {
        let mut lines = vec![format!(
            "{:<14} pid {:<8} discovery {}  admin {}",
            "control plane",
            self.control_plane.pid().unwrap_or_default(),
            self.control_plane(),
            self.control_plane_admin()
        )];
        for workload in &self.registered {
            lines.push(format!(
                "{:<14} pid {:<8} sidecar admin {}  {}",
                workload.service, workload.pid, workload.admin, workload.identity
            ));
        }
        lines.push(format!("{:<14} {}", "entry", self.url()));
        lines
    }

    /// The storefront as the host reaches it.
    pub(super) fn url(&self) -> String {
        format!("http://{}", self.storefront)
    }

    pub(super) fn control_plane(&self) -> SocketAddr {
        self.control_plane.address("discovery").expect("waited for at the start")
    }

    pub(super) fn control_plane_admin(&self) -> SocketAddr {
        self.control_plane.address("admin").expect("waited for at the start")
    }

    /// The admin listener of a service's sidecar.
    pub(super) fn admin_of(&self, service: &str) -> String {
        let found = self.registered.iter().find(|workload| workload.service == service);
        found.map(|workload| workload.admin.clone()).unwrap_or_default()
    }

    /// The process of one replica of users.
    pub(super) fn replica(&self) -> u32 {
        self.workloads[0].pid().unwrap_or_default()
    }

    /// Kills one replica of users as `kill -9` does.
    pub(super) async fn kill_replica(&mut self) -> anyhow::Result<()> {
        Ok(self.workloads[0].kill().await?)
    }

    /// Kills the control plane as `kill -9` does.
    pub(super) async fn kill_control_plane(&mut self) -> anyhow::Result<()> {
        Ok(self.control_plane.kill().await?)
    }

    /// Starts the control plane again, at the same address.
    pub(super) async fn restart_control_plane(&mut self) -> anyhow::Result<()> {
        let listen = self.control_plane().to_string();
        self.control_plane = start_control_plane(&self.folder, &listen).await?;
        Ok(())
    }

    /// Ends everything, the control plane last.
    pub(super) async fn stop(self) {
        for workload in self.workloads.into_iter().rev() {
            workload.stop().await;
        }
        self.control_plane.stop().await;
    }
}

async fn start_control_plane(folder: &TempDir, listen: &str) -> anyhow::Result<Process> {
    let source = format!("dir:{}", folder.path().join("manifests").display());
    let data = folder.path().join("data").display().to_string();
    let arguments = [
        "control-plane",
        "--listen",
        listen,
        "--admin",
        "127.0.0.1:0",
        "--source",
        &source,
        "--data-dir",
        &data,
        "--idle-exit",
        ORPHANED,
    ];
    Process::start("control plane", &arguments.map(String::from), "admin").await
}

/// The wanted port, if it is free; for 0 any that is.
fn free_port(wanted: u16) -> anyhow::Result<u16> {
    let listener = std::net::TcpListener::bind(("127.0.0.1", wanted))
        .with_context(|| format!("cannot listen on 127.0.0.1:{wanted}"))?;
    Ok(listener.local_addr()?.port())
}
