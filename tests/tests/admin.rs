//! What a control plane's admin listener tells those who have no business there.

use std::io::Read;
use std::net::TcpStream;
use std::time::Duration;

use heddle_tests::{ControlPlane, get};

/// Connections on which nothing was said once stayed for ever, each with its descriptor and its memory.
#[test]
fn whoever_says_nothing_is_not_kept() {
    let control_plane = ControlPlane::start();
    let silent: Vec<TcpStream> =
        (0..200).map(|_| TcpStream::connect(control_plane.admin()).expect("it listens")).collect();
    assert_eq!(get(control_plane.admin(), "localhost", "/live"), Some((200, "live\n".into())));
    for mut connection in silent {
        // Far longer than silence is borne.
        connection.set_read_timeout(Some(Duration::from_secs(60))).expect("it is open");
        assert_eq!(connection.read(&mut [0; 1]).expect("it is closed by the other side"), 0);
    }
    assert_eq!(get(control_plane.admin(), "localhost", "/live"), Some((200, "live\n".into())));
}

#[test]
fn a_page_that_is_not_there_names_those_that_are() {
    let control_plane = ControlPlane::start();
    let (status, body) = get(control_plane.admin(), "localhost", "/nope").expect("it answers");
    assert_eq!(status, 404);
    assert!(body.starts_with("there are /live /ready /metrics "), "{body}");
}
