//! `heddle-sidecar wait`: returns when the sidecar of this pod is ready.
//!
//! For the `postStart` hook of a sidecar that is an ordinary container: the kubelet
//! starts the containers of a pod in their order, each when the hook of the one
//! before has returned, so that no application starts before the sidecar that is first.
//! It asks what the kubelet asks a native sidecar, `/ready` of the admin listener.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::bail;
use clap::Args;

use crate::settings::{DEFAULT_ADMIN, parse_duration};

/// Between two looks. An application starts late by half of it on average.
const LOOK: Duration = Duration::from_millis(100);

/// On one look: who is ready answers at once.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);

/// Far more than the answer has.
const MAX_ANSWER: usize = 4096;

/// Settings of `wait`.
#[derive(Debug, Clone, Args)]
pub(crate) struct WaitArgs {
    /// Where the sidecar's admin listener is
    #[arg(long, value_name = "IP:PORT", env = "HEDDLE_ADMIN", default_value_t = DEFAULT_ADMIN)]
    admin: SocketAddr,
    /// How long to wait before giving up
    #[arg(long, value_name = "DURATION", env = "HEDDLE_WAIT_TIMEOUT", default_value = "1m", value_parser = parse_duration)]
    timeout: Duration,
}

/// Returns when the sidecar is ready.
///
/// # Errors
/// If it is not in time: what it said last.
pub(crate) fn run(args: &WaitArgs) -> anyhow::Result<()> {
    let deadline = Instant::now() + args.timeout;
    // Each look has its time, the last one, too: what it heard is the reason.
    let limit = ANSWER_TIMEOUT.min(args.timeout);
    loop {
        let Err(why) = ask(args.admin, Instant::now() + limit) else { return Ok(()) };
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            bail!("the sidecar at {} is not ready after {:?}: {why}", args.admin, args.timeout);
        }
        thread::sleep(LOOK.min(left));
    }
}

/// Whether the sidecar is ready, or else why not.
fn ask(admin: SocketAddr, deadline: Instant) -> Result<(), String> {
    let answer = exchange(admin, deadline).map_err(|error| error.to_string())?;
    let answer = String::from_utf8_lossy(&answer);
    let status = answer.split_ascii_whitespace().nth(1).unwrap_or_default();
    match (status, answer.split_once("\r\n\r\n")) {
        ("200", _) => Ok(()),
        (_, Some((_, said))) if !said.trim().is_empty() => Err(said.trim().to_owned()),
        _ => Err("its answer is none of HTTP".to_owned()),
    }
}

/// Sends the question, and reads the answer to its end.
fn exchange(admin: SocketAddr, deadline: Instant) -> std::io::Result<Vec<u8>> {
    // A limit of zero would be none.
    let left = || deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
    let mut stream = TcpStream::connect_timeout(&admin, left())?;
    stream.set_write_timeout(Some(left()))?;
    stream.write_all(b"GET /ready HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")?;
    let (mut answer, mut part) = (Vec::new(), [0; 512]);
    while answer.len() < MAX_ANSWER && Instant::now() < deadline {
        stream.set_read_timeout(Some(left()))?;
        match stream.read(&mut part)? {
            0 => break,
            read => answer.extend_from_slice(&part[..read]),
        }
    }
    Ok(answer)
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    /// An admin listener that gives each caller the next of these answers.
    fn admin(answers: &'static [&'static str]) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        thread::spawn(move || {
            for answer in answers {
                let (mut stream, _) = listener.accept().unwrap();
                let mut question = [0; 512];
                let read = stream.read(&mut question).unwrap();
                assert!(question[..read].starts_with(b"GET /ready HTTP/1.1\r\n"));
                stream.write_all(answer.as_bytes()).unwrap();
            }
        });
        address
    }

    const STARTING: &str = "HTTP/1.1 503 Service Unavailable\r\ncontent-length: 9\r\n\r\nstarting\n";
    const READY: &str = "HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nready\n";

    #[test]
    fn it_returns_once_the_sidecar_is_ready() {
        let admin = admin(&[STARTING, "", STARTING, READY]);
        run(&WaitArgs { admin, timeout: Duration::from_secs(60) }).unwrap();
    }

    #[test]
    fn it_gives_up_in_time_and_says_why() {
        let starting = admin(&[STARTING; 64]);
        let error = run(&WaitArgs { admin: starting, timeout: ANSWER_TIMEOUT }).unwrap_err();
        assert!(error.to_string().contains("not ready after 2s: starting"), "{error}");

        // Somebody who takes the connection and says nothing.
        let silent = TcpListener::bind("127.0.0.1:0").unwrap();
        let admin = silent.local_addr().unwrap();
        assert!(run(&WaitArgs { admin, timeout: Duration::from_millis(300) }).is_err());
    }
}
