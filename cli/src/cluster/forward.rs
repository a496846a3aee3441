//! HTTP to ports of pods by way of the API server, as `kubectl port-forward` has it: the node makes the
//! connection inside the pod, so that listeners on loopback answer, and no network has to lead there.
//!
//! One WebSocket per pod and port (protocol `v4.channel.k8s.io`: channel 0 is the connection, channel 1
//! says what went wrong), kept for the next request.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use bytes::{Buf, Bytes, BytesMut};
use heddle_api::causes;
use http::header::{CONNECTION, HOST, UPGRADE};
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::client::conn::http1::{self, SendRequest};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use kube::client::Body;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::sync::Mutex;

use super::Cluster;
use super::websocket::{self, Frame};

/// A port of a pod.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Pod {
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) port: u16,
}

/// The ways to pods.
pub(crate) struct Forwards {
    cluster: Cluster,
    idle: Mutex<HashMap<Pod, SendRequest<Empty<Bytes>>>>,
}

/// How long an answer may take, the way to the pod included.
const PATIENCE: Duration = Duration::from_secs(10);

/// The longest answer: a large sidecar's `/endpoints` is a few MiB.
const MAX_ANSWER: usize = 64 * 1024 * 1024;

/// What is taken from a pod or for one at once.
const CHUNK: usize = 32 * 1024;

const PROTOCOL: &str = "v4.channel.k8s.io";
const DATA: u8 = 0;
const ERROR: u8 = 1;

impl Forwards {
    pub(crate) fn new(cluster: Cluster) -> Self {
        Self { cluster, idle: Mutex::default() }
    }

    pub(crate) fn cluster(&self) -> &Cluster {
        &self.cluster
    }

    /// The status and the body that a GET gives.
    pub(crate) async fn get(&self, pod: &Pod, path: &str) -> anyhow::Result<(StatusCode, Bytes)> {
        let known = self.idle.lock().await.remove(pod);
        if let Some(mut known) = known
            && known.ready().await.is_ok()
            && let Ok(answer) = self.ask(pod, path, known).await
        {
            return Ok(answer);
        }
        // It was closed meanwhile, perhaps just now.
        let fresh = tokio::time::timeout(PATIENCE, self.connect(pod)).await;
        let fresh = fresh.with_context(|| format!("no way to {} within {PATIENCE:?}", pod.name))??;
        self.ask(pod, path, fresh).await
    }

    async fn ask(
        &self,
        pod: &Pod,
        path: &str,
        mut connection: SendRequest<Empty<Bytes>>,
    ) -> anyhow::Result<(StatusCode, Bytes)> {
        let request = Request::get(path).header(HOST, "localhost").body(Empty::new())?;
        let answer = async {
            let answer = connection.send_request(request).await?;
            let status = answer.status();
            let body = Limited::new(answer.into_body(), MAX_ANSWER).collect().await;
            let body = body.map_err(|error| anyhow::anyhow!("{error}"))?;
            anyhow::Ok((status, body.to_bytes()))
        };
        let answer = tokio::time::timeout(PATIENCE, answer).await;
        let answer = answer.with_context(|| format!("no answer within {PATIENCE:?}"))?;
        let answer = answer.with_context(|| format!("{}/{}:{}{path}", pod.namespace, pod.name, pod.port))?;
        self.idle.lock().await.insert(pod.clone(), connection);
        Ok(answer)
    }

    async fn connect(&self, pod: &Pod) -> anyhow::Result<SendRequest<Empty<Bytes>>> {
        let socket = self.open(pod).await?;
        let (near, far) = tokio::io::duplex(2 * CHUNK);
        tokio::spawn(async move {
            // Whoever waits for an answer sees the end of the connection.
            let _ = carry(socket, far).await;
        });
        let (connection, driver) = http1::handshake(TokioIo::new(near)).await?;
        tokio::spawn(driver);
        Ok(connection)
    }

    /// A WebSocket to a port of a pod.
    async fn open(&self, pod: &Pod) -> anyhow::Result<TokioIo<Upgraded>> {
        let Pod { namespace, name, port } = pod;
        let request =
            Request::get(format!("/api/v1/namespaces/{namespace}/pods/{name}/portforward?ports={port}"))
                .header(CONNECTION, "Upgrade")
                .header(UPGRADE, "websocket")
                .header("sec-websocket-version", "13")
                .header("sec-websocket-key", key())
                .header("sec-websocket-protocol", PROTOCOL)
                .body(Body::empty())?;
        let answer = self.cluster.client.send(request).await;
        let answer = answer.map_err(|error| anyhow::anyhow!(causes::line(&error)))?;
        // What the key is answered with would tell apart servers that do not speak the protocol; an API
        // server that proved to be one does.
        if answer.status() != StatusCode::SWITCHING_PROTOCOLS {
            let status = answer.status();
            let body = Limited::new(answer.into_body(), CHUNK).collect().await;
            let body = body.map(|body| body.to_bytes()).unwrap_or_default();
            let said: serde_json::Value = serde_json::from_slice(&body).unwrap_or_default();
            let said = said["message"].as_str().unwrap_or_default().to_owned();
            bail!("the API server opens no way to {namespace}/{name}: {status} {said}");
        }
        Ok(TokioIo::new(hyper::upgrade::on(answer).await?))
    }
}

/// Carries a connection to a pod until either side ends.
async fn carry(socket: TokioIo<Upgraded>, stream: DuplexStream) -> anyhow::Result<()> {
    let (mut from_server, to_server) = tokio::io::split(socket);
    let (mut from_here, mut to_here) = tokio::io::split(stream);
    let to_server = Arc::new(Mutex::new(to_server));
    let up = async {
        let mut chunk = vec![DATA; 1 + CHUNK];
        loop {
            let read = from_here.read(&mut chunk[1..]).await?;
            if read == 0 {
                let close = websocket::frame(websocket::CLOSE, &[], mask());
                to_server.lock().await.write_all(&close).await?;
                return anyhow::Ok(());
            }
            let frame = websocket::frame(websocket::BINARY, &chunk[..=read], mask());
            let mut to_server = to_server.lock().await;
            to_server.write_all(&frame).await?;
            to_server.flush().await?;
        }
    };
    let down = async {
        let mut buffer = BytesMut::new();
        let mut channels = Channels::default();
        loop {
            while let Some(frame) = websocket::parse(&mut buffer)? {
                match frame {
                    Frame::Data { is_first, payload } => match channels.take(is_first, payload)? {
                        Some(bytes) => to_here.write_all(&bytes).await?,
                        None => continue,
                    },
                    Frame::Ping(payload) => {
                        let pong = websocket::frame(websocket::PONG, &payload, mask());
                        let mut to_server = to_server.lock().await;
                        to_server.write_all(&pong).await?;
                        to_server.flush().await?;
                    }
                    Frame::Pong => {}
                    Frame::Close(_) => return anyhow::Ok(()),
                }
            }
            if from_server.read_buf(&mut buffer).await? == 0 {
                return Ok(());
            }
        }
    };
    tokio::select! {
        result = up => result,
        result = down => result,
    }
}

/// What the messages of a WebSocket mean.
#[derive(Default)]
struct Channels {
    /// That of the message under way.
    current: u8,
    /// Whether the first message of each, which repeats the port, has come.
    begun: [bool; 2],
}

impl Channels {
    /// What a part of a message brings for the connection; an error if the pod's side says one.
    fn take(&mut self, is_first: bool, mut payload: Bytes) -> io::Result<Option<Bytes>> {
        if is_first {
            if payload.is_empty() {
                return Ok(None);
            }
            self.current = payload.get_u8();
            let begun = self.begun.get_mut(usize::from(self.current));
            let begun = begun.ok_or_else(|| io::Error::other("there is no such channel"))?;
            if !std::mem::replace(begun, true) {
                return Ok(None);
            }
        }
        match self.current {
            ERROR if payload.is_empty() => Ok(None),
            ERROR => Err(io::Error::other(String::from_utf8_lossy(&payload).into_owned())),
            _ => Ok(Some(payload)),
        }
    }
}

/// Sixteen bytes by chance, in Base64 (RFC 6455, section 4.1).
fn key() -> String {
    use base64::Engine;
    let bytes: Vec<u8> = [mask(), mask(), mask(), mask()].concat();
    base64::engine::general_purpose::STANDARD.encode(bytes)
}

/// Four bytes by chance. Masks guard proxies that are confused by what a page chooses to send
/// (section 10.3); what is sent here is ours.
fn mask() -> [u8; 4] {
    use std::hash::{BuildHasher, RandomState};
    let [a, b, c, d, ..] = RandomState::new().hash_one(0).to_ne_bytes();
    [a, b, c, d]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_message_of_a_channel_is_its_port_and_the_rest_its_bytes() {
        let mut channels = Channels::default();
        let mut take = |is_first, bytes: &'static [u8]| channels.take(is_first, Bytes::from_static(bytes));
        assert_eq!(take(true, &[0, 0x7a, 0x1c]).unwrap(), None);
        assert_eq!(take(true, &[1, 0x7a, 0x1c]).unwrap(), None);
        assert_eq!(take(true, b"\0HTTP").unwrap().as_deref(), Some(&b"HTTP"[..]));
        assert_eq!(take(false, b"/1.1").unwrap().as_deref(), Some(&b"/1.1"[..]));
        assert!(take(true, b"\x01connection refused").unwrap_err().to_string().contains("refused"));
        assert!(take(true, b"\x07?").is_err());
    }
}
