//! Heddle: a control plane and two sidecars as `heddle-sidecar proxy`, one worker each.

use std::path::PathBuf;

use anyhow::{Context as _, ensure};
use tokio::process::Command;

use super::{Carried, Context, Pair, routes};
use crate::process::Process;

/// The service's port; any number serves, the name decides.
const PORT: u16 = 80;

pub(super) async fn start(carried: Carried, routed: bool, context: &Context<'_>) -> anyhow::Result<Pair> {
    let control_plane_program = program(context, "heddle-control-plane")?;
    let sidecar = program(context, "heddle-sidecar")?;
    let data = context.folder.join("control-plane").display().to_string();
    let manifests = context.folder.join("manifests");
    std::fs::create_dir_all(&manifests)?;
    let source = format!("dir:{}", manifests.display());
    if routed {
        routes::write(&manifests, 0)?;
    } else {
        routes::remove(&manifests)?;
    }
    let arguments =
        ["--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--data-dir", &data, "--source", &source];
    let mut control_plane = Process::start(&control_plane_program, &arguments)?;
    let discovery = control_plane.listening("discovery").await?.to_string();
    let admin = control_plane.listening("admin").await?;

    let (origin, protocol) = match carried {
        Carried::Http1 => (context.origin.http, "http"),
        Carried::Http2 => (context.origin.http, "http2"),
        Carried::Tcp => (context.origin.echo, "tcp"),
    };
    let common = ["proxy", "--control-plane", &discovery, "--admin", "127.0.0.1:0", "--log-level", "error"];
    let token = token(context, &control_plane_program, &data, "origin").await?;
    let (origin, port) = (origin.to_string(), format!("main:{PORT}:{protocol}"));
    let far = ["--service", "origin", "--port", &port, "--app", &origin, "--inbound", "127.0.0.1:0"];
    let far = [&common[..], &far, &["--outbound", "127.0.0.1:0", "--join-token", &token]].concat();
    let mut far = Process::start(&sidecar, &far)?;
    far.listening("inbound").await?;
    registered(admin).await?;

    let token = self::token(context, &control_plane_program, &data, "client").await?;
    let upstream = format!("origin:{PORT}");
    let near = match carried {
        Carried::Tcp => ["--upstream", &upstream],
        Carried::Http1 | Carried::Http2 => ["--outbound", "127.0.0.1:0"],
    };
    let near =
        [&common[..], &["--service", "client", "--inbound", "127.0.0.1:0"], &near, &["--join-token", &token]];
    let mut near = Process::start(&sidecar, &near.concat())?;
    let entry = near.listening(if carried == Carried::Tcp { "upstream" } else { "outbound" }).await?;
    Ok(Pair {
        entry,
        authority: format!("origin:{PORT}"),
        proxies: [near, far],
        others: vec![control_plane],
        manifests: routed.then_some(manifests),
    })
}

fn program(context: &Context<'_>, name: &str) -> anyhow::Result<PathBuf> {
    let own = std::env::current_exe()?;
    let folder = context.cli.binaries.as_deref().or(own.parent()).context("a program has a folder")?;
    let path = folder.join(name);
    ensure!(
        path.exists(),
        "{} is not there: cargo build --release -p heddle-sidecar -p heddle-control-plane",
        path.display()
    );
    Ok(path)
}

async fn token(
    context: &Context<'_>,
    program: &PathBuf,
    data: &str,
    service: &str,
) -> anyhow::Result<String> {
    let output = Command::new(program)
        .args(["token", "--service", service, "--namespace", "default", "--data-dir", data])
        .output()
        .await?;
    ensure!(output.status.success(), "no token: {}", String::from_utf8_lossy(&output.stderr));
    let path = context.folder.join(format!("token-{service}"));
    std::fs::write(&path, output.stdout)?;
    Ok(path.display().to_string())
}

/// Waits until the origin's sidecar has registered and its health check passed.
async fn registered(admin: std::net::SocketAddr) -> anyhow::Result<()> {
    for _ in 0..500 {
        let output = Command::new("curl").args(["-s", &format!("http://{admin}/workloads")]).output().await?;
        let answer: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
        if answer["workloads"][0]["ready"] == true {
            return Ok(());
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    anyhow::bail!("the origin's sidecar does not become ready")
}
