//! Whether the pod's rules bring its connections to the sidecar, found out by making one.
//!
//! A pod whose rules are a CNI plugin's may have none: the plugin was not there
//! yet, or has failed. Its application would then call others in plaintext, and be
//! called by anybody. So the rules have one more, for the sidecar's user alone: what it calls at
//! [`PORT`] of loopback goes where the application's calls go. The sidecar calls there and tells the caller, with
//! what the kernel says of the connection, that it has come ([`answer`]); until it has, in each family,
//! the sidecar is not ready ([`wait`]).
//!
//! It is seen that the table of rules is there, which is made as a whole or not at all; not what stands in it
//! beside that rule.

use std::io::{self, Write};
use std::net::{IpAddr, SocketAddr, TcpStream as StdTcpStream};
use std::time::{Duration, Instant};

use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;

/// What the sidecar calls on loopback to see its call come back. Nobody listens there for it, and what others
/// call there is left alone.
pub(crate) const PORT: u16 = 7199;

/// Between two tries. A plugin that is late is not waited for any longer than needed.
const AGAIN: Duration = Duration::from_millis(500);

/// On one try, which does not leave the pod.
const TIMEOUT: Duration = Duration::from_secs(2);

/// How often the log says that nothing is better.
const REMINDER: Duration = Duration::from_secs(60);

/// More than an answer has.
const LONGEST_ANSWER: u64 = 256;

/// Whether a connection that the rules have brought was made by [`wait`].
pub(crate) fn is_own(destination: SocketAddr) -> bool {
    destination.port() == PORT && destination.ip().is_loopback()
}

/// Tells the caller that its connection to `destination` has come here.
///
/// # Errors
/// Those of the connection.
pub(crate) fn answer(mut caller: &StdTcpStream, destination: SocketAddr) -> io::Result<()> {
    let said = words(caller.peer_addr()?, destination);
    // A new socket has room for it.
    caller.write_all(said.as_bytes())
}

/// Names the connection, so that nobody else who answers is taken for the sidecar.
fn words(caller: SocketAddr, destination: SocketAddr) -> String {
    format!("heddle: from {caller} to {destination}\n")
}

/// Returns when the rules bring connections of the families of `addresses`, all of them loopback.
/// `missing` is called once if they do not at first.
pub(crate) async fn wait(addresses: &[IpAddr], missing: impl FnOnce()) {
    let mut missing = Some(missing);
    let mut said: Option<Instant> = None;
    let mut left = addresses;
    while let Some((address, rest)) = left.split_first() {
        let to = SocketAddr::new(*address, PORT);
        let result = tokio::time::timeout(TIMEOUT, call(to)).await;
        let error = match result {
            Ok(Ok(())) => {
                left = rest;
                continue;
            }
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("no answer within {TIMEOUT:?}"),
        };
        if let Some(missing) = missing.take() {
            missing();
        }
        if said.is_none_or(|said| said.elapsed() >= REMINDER) {
            said = Some(Instant::now());
            tracing::error!(
                %to,
                error,
                "the pod's connections are not brought to the sidecar, which is not ready before they are: the pod's \
                 network rules are missing. The container heddle-init makes them, or with the annotation \
                 heddle.dev/interception: cni a CNI plugin of the node; if that came too late, delete the pod, so \
                 that it is made anew"
            );
        }
        tokio::time::sleep(AGAIN).await;
    }
    if said.is_some() {
        tracing::info!("the pod's connections are brought to the sidecar");
    }
}

/// Calls there, and sees whether it was the sidecar that was reached.
async fn call(to: SocketAddr) -> io::Result<()> {
    let stream = TcpStream::connect(to).await?;
    let expected = words(stream.local_addr()?, to);
    let mut answer = Vec::with_capacity(expected.len());
    stream.take(LONGEST_ANSWER).read_to_end(&mut answer).await?;
    if answer == expected.as_bytes() { Ok(()) } else { Err(io::Error::other("somebody else answers there")) }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::net::{Ipv4Addr, TcpListener};

    use super::*;

    #[test]
    fn only_calls_to_loopback_at_its_port_are_its_own() {
        for (address, own) in [
            ("127.0.0.1:7199", true),
            ("[::1]:7199", true),
            ("127.0.0.1:7101", false),
            ("10.0.0.1:7199", false),
            ("[fd00::1]:7199", false),
        ] {
            assert_eq!(is_own(address.parse().unwrap()), own, "{address}");
        }
    }

    #[tokio::test]
    async fn a_call_is_believed_if_the_answer_names_it() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let to = listener.local_addr().unwrap();
        let answers: [fn(&StdTcpStream, SocketAddr) -> io::Result<()>; 4] = [
            answer,
            |caller, _| answer(caller, ([127, 0, 0, 1], PORT).into()),
            |mut caller, _| caller.write_all(b"220 somebody else\r\n"),
            |_, _| Ok(()),
        ];
        let server = std::thread::spawn(move || {
            for answer in answers {
                let (stream, _) = listener.accept().unwrap();
                answer(&stream, to).unwrap();
            }
        });
        call(to).await.unwrap();
        for _ in 1..answers.len() {
            assert!(call(to).await.unwrap_err().to_string().contains("somebody else"));
        }
        server.join().unwrap();
        assert_eq!(call(to).await.unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
    }

    #[tokio::test]
    async fn where_there_is_no_family_nothing_is_waited_for() {
        let missing = Cell::new(false);
        wait(&[], || missing.set(true)).await;
        assert!(!missing.get());
    }
}
