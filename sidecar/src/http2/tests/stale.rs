//! A pooled connection that its server has closed between two requests.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc;

use bytes::Bytes;
use http::Request;

use super::harness::{Mesh, SERVICE, collect, policy, send_all};

/// What a server has seen: the number of a connection, and the bodies of the requests that it answered on it.
type Seen = (usize, Vec<usize>);

/// One frame (RFC 9113, section 4.1): its type, flags and stream, and how long it is.
fn frame(stream: &mut TcpStream) -> Option<(u8, u8, [u8; 4], usize)> {
    let mut head = [0; 9];
    stream.read_exact(&mut head).ok()?;
    let length = usize::from(head[0]) << 16 | usize::from(head[1]) << 8 | usize::from(head[2]);
    stream.read_exact(&mut vec![0; length]).ok()?;
    Some((head[3], head[4], [head[5], head[6], head[7], head[8]], length))
}

/// Serves one connection: answers so many requests, and closes it when the next one comes, without a
/// word, as if it had done so before: nobody else could tell.
fn serve(mut stream: TcpStream, requests: usize) -> Option<Vec<usize>> {
    const PREFACE: usize = 24;
    stream.read_exact(&mut [0; PREFACE]).ok()?;
    // Settings without any.
    stream.write_all(&[0, 0, 0, 4, 0, 0, 0, 0, 0]).ok()?;
    let (mut bodies, mut body) = (Vec::new(), 0);
    loop {
        let Some((kind, flags, id, length)) = frame(&mut stream) else { return Some(bodies) };
        match kind {
            0 => body += length,
            1 if bodies.len() == requests => return Some(bodies),
            1 => body = 0,
            4 if flags & 1 == 0 => stream.write_all(&[0, 0, 0, 4, 1, 0, 0, 0, 0]).ok()?,
            _ => {}
        }
        // Headers or data with which a request ends.
        if kind <= 1 && flags & 1 == 1 {
            bodies.push(body);
            // `:status: 200` (RFC 7541, appendix A) and nothing more.
            let [a, b, c, d] = id;
            stream.write_all(&[0, 0, 1, 1, 5, a, b, c, d, 0x88]).ok()?;
        }
    }
}

/// A server of which the first connection answers one request, and others all.
fn server() -> (SocketAddr, mpsc::Receiver<Seen>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let (seen, told) = mpsc::channel();
    std::thread::spawn(move || {
        for (nth, stream) in listener.incoming().enumerate() {
            let seen = seen.clone();
            let requests = if nth == 0 { 1 } else { usize::MAX };
            std::thread::spawn(move || {
                let bodies = serve(stream.unwrap(), requests).unwrap_or_default();
                let _ = seen.send((nth, bodies));
            });
        }
    });
    (address, told)
}

/// A request goes out on a connection that is no more. It is sent again to the same endpoint, the only one, although
/// the policy wants no retries: the endpoint has not failed. A method that may not be repeated is not, for the
/// connection may have ended the other way round.
#[tokio::test]
async fn a_request_is_sent_again_on_another_connection_to_the_same_endpoint() {
    for body in [0, 5000] {
        let (address, seen) = server();
        let mut policy = policy();
        policy.retry.attempts = 0;
        policy.breaker.consecutive_failures = 1;
        let mesh = Mesh::plain(&[address], policy);
        let (head, _, _) = mesh.get("/").await;
        assert_eq!(head.status(), 200);
        let request = Request::put(SERVICE).body(()).unwrap();
        let (response, mut up) = mesh.connect().await.send_request(request, body == 0).unwrap();
        if body > 0 {
            send_all(&mut up, Bytes::from(vec![b'x'; body])).await;
            up.send_data(Bytes::new(), true).unwrap();
        }
        let (head, _, _) = collect(response.await.unwrap()).await;
        assert_eq!(head.status(), 200, "{head:?}");
        assert_eq!(seen.recv().unwrap(), (0, vec![0]), "the first connection answered one");
        assert_eq!(seen.try_recv().ok(), None, "the second is still open");
        let metrics = mesh.client.registry.encode();
        let open = metrics.lines().find(|line| line.starts_with("heddle_circuit_state{"));
        assert!(open.is_none_or(|line| line.ends_with(" 0")), "{open:?}");
        drop(mesh);
        assert_eq!(seen.recv().unwrap(), (1, vec![body]), "the second had all of it");
    }
    let (address, _seen) = server();
    let mesh = Mesh::plain(&[address], policy());
    assert_eq!(mesh.get("/").await.0.status(), 200);
    let request = Request::post(SERVICE).body(()).unwrap();
    let (response, _) = mesh.connect().await.send_request(request, true).unwrap();
    assert_eq!(response.await.unwrap().headers()["heddle-error"], "reset");
}
