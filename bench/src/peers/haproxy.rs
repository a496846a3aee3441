//! HAProxy (Debian's `haproxy`), one thread.

use std::path::Path;

use super::{Carried, Context, Pair};
use crate::certificates::NAME;
use crate::process::{Process, free_port};

pub(super) async fn start(carried: Carried, context: &Context<'_>) -> anyhow::Result<Pair> {
    let (entry, middle) = (free_port()?, free_port()?);
    let origin = if carried == Carried::Tcp { context.origin.echo } else { context.origin.http };
    let folder = context.folder.display();
    let mode = if carried == Carried::Tcp { "tcp" } else { "http" };
    let (bind, alpn, server) = match carried {
        Carried::Http1 => ("", " alpn http/1.1", ""),
        Carried::Http2 => (" proto h2", " alpn h2", " proto h2"),
        Carried::Tcp => ("", "", ""),
    };
    let tls = format!("ssl ca-file {folder}/ca.pem verify required ssl-min-ver TLSv1.3");
    let near = configuration(
        mode,
        &format!("bind 127.0.0.1:{entry}{bind}"),
        &format!(
            "server s 127.0.0.1:{middle} {tls} crt {folder}/both.pem verifyhost {NAME} sni str({NAME}){alpn}"
        ),
    );
    let far = configuration(
        mode,
        &format!(
            "bind 127.0.0.1:{middle} ssl crt {folder}/both.pem ca-file {folder}/ca.pem verify required ssl-min-ver TLSv1.3{alpn}"
        ),
        &format!("server s {origin}{server}"),
    );
    let proxies = [run(context, "near", &near)?, run(context, "far", &far)?];
    Ok(Pair {
        entry: ([127, 0, 0, 1], entry).into(),
        authority: "origin".into(),
        proxies,
        others: Vec::new(),
        manifests: None,
    })
}

fn configuration(mode: &str, bind: &str, server: &str) -> String {
    let reuse = if mode == "http" { "http-reuse always\n  " } else { "" };
    format!(
        "global\n  nbthread 1\n  maxconn 9000\n\
         defaults\n  mode {mode}\n  timeout connect 5s\n  timeout client 1h\n  timeout server 1h\n\
         frontend f\n  {bind}\n  default_backend b\n\
         backend b\n  {reuse}{server}\n"
    )
}

fn run(context: &Context<'_>, name: &str, configuration: &str) -> anyhow::Result<Process> {
    let path = context.folder.join(format!("haproxy-{name}.cfg"));
    std::fs::write(&path, configuration)?;
    let program = ["/usr/sbin/haproxy", "/usr/bin/haproxy"].map(Path::new).into_iter().find(|p| p.exists());
    let program = program.ok_or_else(|| anyhow::anyhow!("no haproxy: apt-get install haproxy"))?;
    Process::start(program, &["-db", "-f", &path.display().to_string()])
}
