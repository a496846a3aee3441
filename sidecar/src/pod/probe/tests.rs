use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::*;

const LIVENESS: &str = "/probe/a/liveness";
const POD: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

/// An application that answers each request for a path with a response, and keeps the heads.
async fn app(answer: impl Fn(&str) -> String + Send + 'static) -> (u16, tokio::sync::mpsc::Receiver<String>) {
    let listener = TcpListener::bind((POD, 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let (heads, seen) = tokio::sync::mpsc::channel(32);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                let Ok(byte) = stream.read_u8().await else { break };
                head.push(byte);
            }
            let head = String::from_utf8(head).unwrap();
            let path = head.split(' ').nth(1).unwrap_or_default().to_owned();
            let _ = stream.write_all(answer(&path).as_bytes()).await;
            let _ = heads.send(head).await;
        }
    });
    (port, seen)
}

fn status(status: u16) -> String {
    format!("HTTP/1.1 {status} Told\r\ncontent-length: 0\r\n\r\n")
}

fn moved(to: &str) -> String {
    format!("HTTP/1.1 302 Found\r\nlocation: {to}\r\ncontent-length: 0\r\n\r\n")
}

fn prober(path: &str, probe: &str) -> Prober {
    Prober::new(format!("{{\"{path}\": {probe}}}").parse().unwrap(), ProbeKey::default(), POD)
}

/// Makes a probe.
async fn probe(probe: &str) -> Result<String, String> {
    match prober(LIVENESS, probe).probe(LIVENESS).await {
        Outcome::Good(said) => Ok(said),
        Outcome::Bad(reason) => Err(reason),
        Outcome::Unanswered(reason) => panic!("it is no hook: {reason}"),
    }
}

#[tokio::test]
async fn http_is_good_from_200_to_399() {
    let (port, _seen) = app(|path| status(path[1..].parse().unwrap())).await;
    for (code, good) in [(200, true), (204, true), (304, true), (399, true), (400, false), (503, false)] {
        let said = probe(&format!("{{\"httpGet\": {{\"port\": {port}, \"path\": \"/{code}\"}}}}")).await;
        assert_eq!(said.is_ok(), good, "{code}: {said:?}");
        assert!(said.unwrap_or_else(|error| error).contains(&code.to_string()));
    }
}

#[tokio::test]
async fn requests_are_those_of_the_kubelet_and_the_probes_own_headers_win() {
    let (port, mut seen) = app(|_| status(200)).await;
    probe(&format!("{{\"httpGet\": {{\"port\": {port}}}}}")).await.unwrap();
    let head = seen.recv().await.unwrap().to_lowercase();
    for line in
        ["get / http/1.1\r\n", &format!("host: 127.0.0.1:{port}\r\n"), "connection: close", "accept: */*"]
    {
        assert!(head.contains(line), "{line} is not in {head}");
    }
    let headers = r#"[{"name": "Host", "value": "users.example"}, {"name": "X-A", "value": "1"}, {"name": "User-Agent", "value": "me"}]"#;
    probe(&format!("{{\"httpGet\": {{\"port\": {port}, \"path\": \"x?y=1\", \"httpHeaders\": {headers}}}}}"))
        .await
        .unwrap();
    let head = seen.recv().await.unwrap().to_lowercase();
    for line in ["get /x?y=1 http/1.1\r\n", "host: users.example\r\n", "x-a: 1\r\n", "user-agent: me\r\n"] {
        assert!(head.contains(line), "{line} is not in {head}");
    }
}

#[tokio::test]
async fn redirects_are_followed_on_the_same_host_only() {
    let (port, mut seen) = app(move |path| match path {
        "/a/begin" => moved("next"),
        "/a/next" => moved("/end"),
        "/end" => status(500),
        "/elsewhere" => moved("http://other.example/x"),
        _ => moved("/again"),
    })
    .await;
    let get = |path: &str| format!("{{\"httpGet\": {{\"port\": {port}, \"path\": \"{path}\"}}}}");
    assert!(probe(&get("/a/begin")).await.unwrap_err().contains("500"));
    for path in ["/a/begin", "/a/next", "/end"] {
        assert!(seen.recv().await.unwrap().starts_with(&format!("GET {path} ")), "{path}");
    }
    assert!(probe(&get("/elsewhere")).await.unwrap().contains("302"));
    assert!(probe(&get("/again")).await.unwrap_err().contains("10 redirects"));
}

#[tokio::test]
async fn a_port_that_listens_is_enough_for_tcp_and_nothing_else_is() {
    let listener = TcpListener::bind((POD, 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let tcp = format!("{{\"tcpSocket\": {{\"port\": {port}}}}}");
    probe(&tcp).await.unwrap();
    probe(&format!("{{\"tcpSocket\": {{\"port\": {port}, \"host\": \"127.0.0.1\"}}}}")).await.unwrap();
    drop(listener);
    assert!(probe(&tcp).await.unwrap_err().contains(&format!("127.0.0.1:{port}")));
}

#[tokio::test]
async fn an_application_that_does_not_answer_fails_in_time() {
    let listener = TcpListener::bind((POD, 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    for kind in ["httpGet", "grpc"] {
        let said = probe(&format!("{{\"{kind}\": {{\"port\": {port}}}}}")).await;
        assert!(said.unwrap_err().contains("no answer within 1s"), "{kind}");
    }
}

#[tokio::test]
async fn a_hook_takes_any_answer_and_waits_for_it() {
    let (port, _seen) = app(|_| status(500)).await;
    const HOOK: &str = "/probe/a/pre-stop";
    let hook = |port: u16| prober(HOOK, &format!("{{\"httpGet\": {{\"port\": {port}}}}}"));
    assert!(hook(port).has_hooks());
    let done = hook(port).probe(HOOK).await;
    assert_eq!(done, Outcome::Good("answered with 500".into()));
    let closed = TcpListener::bind((POD, 0)).await.unwrap().local_addr().unwrap().port();
    assert!(matches!(hook(closed).probe(HOOK).await, Outcome::Unanswered(_)));
}

/// Callers who could make the application answer as often as they liked kept the kubelet from being answered.
#[tokio::test]
async fn whoever_asks_while_a_probe_is_made_gets_its_outcome() {
    let (port, mut seen) = app(|_| status(200)).await;
    let one = prober(LIVENESS, &format!("{{\"httpGet\": {{\"port\": {port}}}}}"));
    let outcomes = futures_util::future::join_all((0..100).map(|_| one.probe(LIVENESS))).await;
    assert!(outcomes.iter().all(|outcome| *outcome == Outcome::Good("answered with 200".into())));
    seen.recv().await.unwrap();
    assert!(seen.try_recv().is_err(), "it was asked once");
    one.probe(LIVENESS).await;
    seen.recv().await.expect("the next is a new one");
}

#[tokio::test]
async fn a_probe_goes_on_for_others_when_whoever_began_it_has_left() {
    let (port, _seen) = app(|_| status(200)).await;
    let one = prober(LIVENESS, &format!("{{\"httpGet\": {{\"port\": {port}}}}}"));
    let mut first = Box::pin(one.probe(LIVENESS));
    assert!(futures_util::poll!(&mut first).is_pending());
    let mut second = Box::pin(one.probe(LIVENESS));
    assert!(futures_util::poll!(&mut second).is_pending());
    drop(first);
    assert_eq!(second.await, Outcome::Good("answered with 200".into()));
}

#[test]
fn the_kubelet_is_known_by_its_key() {
    let headers = |value: Option<&str>| {
        let value = value.map(|value| (::http::HeaderName::from_static(KEY_HEADER), value.parse().unwrap()));
        value.into_iter().collect::<HeaderMap>()
    };
    let admits =
        |key: &str, shown| Prober::new(Probes::default(), key.parse().unwrap(), POD).admits(&headers(shown));
    assert!(admits("k1", Some("k1")) && admits("", None) && admits("", Some("k1")));
    for wrong in [None, Some(""), Some("k"), Some("k12"), Some("K1")] {
        assert!(!admits("k1", wrong), "{wrong:?}");
    }
}

/// The kubelet reads bodies; an application that was cut off before said so in its log at every probe.
#[tokio::test]
async fn bodies_are_read_to_their_end_and_no_further_than_the_kubelet_reads() {
    let listener = TcpListener::bind((POD, 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let begun = |length: usize| format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n");
    let get = format!("{{\"httpGet\": {{\"port\": {port}}}}}");
    let accept = async || {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut head = [0; 16];
        stream.read_exact(&mut head).await.unwrap();
        stream
    };
    let slow = async {
        let mut stream = accept().await;
        stream.write_all(begun(2).as_bytes()).await.unwrap();
        // The rest of the request's head, and then nothing: the client waits for the body.
        let mut more = [0; 512];
        while let Ok(read) = tokio::time::timeout(Duration::from_millis(100), stream.read(&mut more)).await {
            assert_ne!(read.unwrap(), 0, "it does not wait for the body");
        }
        stream.write_all(b"ok").await.unwrap();
        let mut rest = Vec::new();
        stream.read_to_end(&mut rest).await
    };
    let (said, end) = tokio::join!(probe(&get), slow);
    assert_eq!(said.unwrap(), "answered with 200");
    assert!(end.is_ok(), "it is closed in order: {end:?}");
    let broken = async { accept().await.write_all(begun(2).as_bytes()).await };
    let (said, _) = tokio::join!(probe(&get), broken);
    assert!(said.is_err(), "{said:?}");
    let endless = async {
        let mut stream = accept().await;
        stream.write_all(begun(usize::MAX >> 16).as_bytes()).await.unwrap();
        while stream.write_all(&[b'x'; 4096]).await.is_ok() {}
    };
    let (said, ()) = tokio::join!(probe(&get), endless);
    assert!(said.is_ok(), "{said:?}");
}

#[test]
fn what_is_no_probe_is_refused_with_its_path() {
    assert!("".parse::<Probes>().is_ok());
    for (bad, reason) in [
        ("[]", "no probes"),
        (r#"{"/probe/a/x": {}}"#, "/probe/a/x: it needs exactly one"),
        (r#"{"/live": {"tcpSocket": {"port": 1}}}"#, "does not begin with /probe/"),
        (r#"{"/probe/a/x": {"tcpSocket": {"port": "web"}}}"#, "no probes"),
        (r#"{"/probe/a/x": {"tcpSocket": {"port": 1}, "grpc": {"port": 1}}}"#, "exactly one"),
        (r#"{"/probe/a/x": {"httpGet": {"port": 1, "path": "/a b"}}}"#, "is no path"),
        (r#"{"/probe/a/x": {"httpGet": {"port": 1, "scheme": "FTP"}}}"#, "no probes"),
        (
            r#"{"/probe/a/x": {"httpGet": {"port": 1, "httpHeaders": [{"name": "a b", "value": ""}]}}}"#,
            "no name",
        ),
    ] {
        let error = bad.parse::<Probes>().unwrap_err().to_string();
        assert!(error.contains(reason), "{bad}: {error}");
    }
}
