//! Start, end, and those who do not play by the rules.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;

use heddle_api::discovery::v1;
use heddle_api::runtime_file::RuntimeFile;

use crate::harness::{Home, Sidecar, eventually, exists};

#[tokio::test]
async fn garbage_and_silence_disturb_nobody() {
    let home = Home::new();
    let plane = home.start(&[]);
    // Kept open: it never says a word.
    let silent = TcpStream::connect(plane.discovery).unwrap();
    let mut half = TcpStream::connect(plane.discovery).unwrap();
    half.write_all(b"\x16\x03\x01\x02\x00").unwrap();
    for garbage in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0; 4096], &[0xff; 70_000], b"\x16\x03\x03\xff\xff\x01"]
    {
        let mut stream = TcpStream::connect(plane.discovery).unwrap();
        let _ = stream.write_all(garbage);
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let _ = stream.read_to_end(&mut Vec::new());
    }
    let web = Sidecar::join(&home, &plane, "web").await;
    let mut discovery = web.discover("web-1").await;
    discovery.subscribe::<v1::Service>(&["shop/nobody"]).await;
    assert_eq!(discovery.next().await.unwrap().removed_resources, ["shop/nobody"]);
    assert!(plane.metric("heddle_handshakes_failed_total") > 3.5);
    assert!(!plane.log().contains("panicked"));
    drop((silent, half));
}

#[tokio::test]
async fn it_tells_where_it_runs_and_ends_in_time_with_streams_open() {
    let home = Home::new();
    let mut plane = home.start(&[]);
    let file = home.path("heddle").join(RuntimeFile::name(plane.discovery.port()));
    let content: RuntimeFile = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    assert_eq!(content.addr, plane.discovery.to_string());
    assert_eq!(content.admin, plane.admin.to_string());
    assert_eq!(content.pid, plane.pid());
    assert!(exists(&std::path::Path::new(&content.data_dir).join("ca.pem")));

    let web = Sidecar::join(&home, &plane, "web").await;
    let mut registered = web.register(web.registration("web-1")).await;
    registered.answer().await.unwrap();
    let mut discovery = web.discover("web-1").await;
    discovery.subscribe::<v1::Mesh>(&["mesh"]).await;
    discovery.next().await.unwrap();
    plane.terminate();
    assert_eq!(discovery.next().await.unwrap_err().code(), tonic::Code::Unavailable);
    assert_eq!(registered.answer().await.unwrap_err().code(), tonic::Code::Unavailable);
    drop(web);
    assert!(plane.wait().await);
    assert!(!plane.log().contains("were cut"), "{}", plane.log());
    assert!(!exists(&file), "the runtime file is removed");
}

#[tokio::test]
async fn an_embedded_one_ends_when_nobody_needs_it() {
    let home = Home::new();
    let mut plane = home.start(&["--idle-exit", "2s"]);
    let web = Sidecar::join(&home, &plane, "web").await;
    let mut discovery = web.discover("web-1").await;
    discovery.subscribe::<v1::Mesh>(&["mesh"]).await;
    discovery.next().await.unwrap();
    eventually("one connection is left", || (plane.metric("heddle_connections") - 1.0).abs() < 0.1).await;
    drop((discovery, web));
    assert!(plane.wait().await);
}

#[test]
fn a_key_that_others_can_read_is_refused() {
    let home = Home::new();
    home.token(&["--service", "users"]).unwrap();
    let key = home.path("data").join("ca.pem");
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o640)).unwrap();
    let complaint = home.token(&["--service", "users"]).unwrap_err();
    assert!(complaint.contains("chmod 600") && complaint.contains("ca.pem"), "{complaint}");
}
