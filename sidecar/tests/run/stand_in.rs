//! A stand-in for the sidecar: knows one service, `shop/users`, and answers
//! each connection with where it wanted to go.

use std::ffi::OsString;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use clap::Parser;
use heddle_sidecar::check::CheckArgs;
use heddle_sidecar::config::{self, Lookup, Service, Snapshot, Want};
use heddle_sidecar::dns::Addresses;
use heddle_sidecar::listener::{AppDialer, InboundKind, OutboundKind};
use heddle_sidecar::proxy::Setup;
use heddle_sidecar::run::{Local, RunArgs, run_with};
use socket2::SockRef;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::spawn_local;

#[derive(Parser)]
struct Cli {
    #[command(flatten)]
    run: RunArgs,
}

pub(crate) fn launch() -> ! {
    // The first argument, `launcher`, stands for the program's name.
    let arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
    run_with(Cli::parse_from(arguments).run, None, serve)
}

#[derive(Parser)]
struct CheckCli {
    #[command(flatten)]
    check: CheckArgs,
}

pub(crate) fn check() {
    let arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
    let found = heddle_sidecar::check::run(&CheckCli::parse_from(arguments).check);
    std::process::exit(i32::from(found.is_err()));
}

fn serve(setup: Setup, ready: Box<dyn FnOnce()>, stop: Local) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build_local(tokio::runtime::LocalOptions::default())?;
    runtime.block_on(async {
        let (publisher, handle, mut wants) = config::channel();
        for task in setup.beside {
            spawn_local(task(handle.clone()));
        }
        spawn_local(async move {
            while let Some(want) = wants.recv().await {
                let Want::Service(name) = want else { continue };
                let mut services = publisher.current().services.clone();
                let found = name.as_str() == "shop/users";
                let lookup = if found { Lookup::Found(service(name.clone())) } else { Lookup::Absent };
                services.insert(name, lookup);
                publisher.publish(Snapshot { services, ..Snapshot::default() });
            }
        });
        for outbound in setup.plumbing.outbound {
            let listener = TcpListener::from_std(outbound.listener)?;
            spawn_local(serve_outbound(listener, outbound.kind, setup.addresses.clone()));
        }
        for inbound in setup.plumbing.inbound {
            let listener = TcpListener::from_std(inbound.listener)?;
            match inbound.kind {
                InboundKind::Published(port) => {
                    spawn_local(serve_published(listener, port, setup.plumbing.app.clone()));
                }
                InboundKind::Mesh | InboundKind::Pod => drop(listener),
            }
        }
        let directory = std::env::var("XDG_RUNTIME_DIR")?;
        let file = format!("{directory}/stand-in-of-{}", setup.app_pid);
        std::fs::write(&file, std::process::id().to_string())?;
        heddle_sidecar::run::announce("test", SocketAddr::from((Ipv4Addr::LOCALHOST, 1)));
        ready();
        stop.await;
        Ok(())
    })
}

async fn serve_outbound(listener: TcpListener, kind: OutboundKind, addresses: Addresses) {
    while let Ok((mut stream, _)) = listener.accept().await {
        let (kind, addresses) = (kind.clone(), addresses.clone());
        spawn_local(async move {
            let wanted = match kind {
                OutboundKind::Transparent => stream.local_addr().unwrap(),
                OutboundKind::Redirected => original_destination(&stream),
                OutboundKind::HostLoopback => {
                    let wanted = stream.local_addr().unwrap();
                    if let Ok(mut host) = TcpStream::connect(wanted).await {
                        let _ = tokio::io::copy_bidirectional(&mut stream, &mut host).await;
                    }
                    return;
                }
                OutboundKind::Fixed(name, port) => {
                    let _ = stream.write_all(format!("service {name}:{port}\n").as_bytes()).await;
                    return;
                }
                OutboundKind::ByAuthority => return,
            };
            let text = match addresses.service(wanted.ip()) {
                Some(name) => format!("service {name}:{}\n", wanted.port()),
                None => format!("address {wanted}\n"),
            };
            let _ = stream.write_all(text.as_bytes()).await;
        });
    }
}

async fn serve_published(listener: TcpListener, port: u16, app: AppDialer) {
    while let Ok((mut stream, _)) = listener.accept().await {
        let app = app.clone();
        spawn_local(async move {
            if let Ok(mut inside) = app.connect(port).await {
                let _ = tokio::io::copy_bidirectional(&mut stream, &mut inside).await;
            }
        });
    }
}

fn original_destination(stream: &TcpStream) -> SocketAddr {
    let socket = SockRef::from(stream);
    let original = if stream.local_addr().unwrap().is_ipv4() {
        socket.original_dst_v4()
    } else {
        socket.original_dst_v6()
    };
    original.unwrap().as_socket().unwrap()
}

fn service(name: heddle_api::name::ServiceName) -> Arc<Service> {
    Arc::new(Service {
        name,
        ports: vec![],
        endpoints: vec![],
        policy: Arc::default(),
        routes: Vec::new(),
        faults: Arc::default(),
        usage: Arc::default(),
        stale: Arc::default(),
    })
}
