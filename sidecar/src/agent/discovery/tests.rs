//! A sidecar on a stream with control planes of other versions, which are played here.

use futures_util::stream;
use heddle_api::discovery::xds::Resource;
use heddle_api::discovery::xds::aggregated_discovery_service_server::{
    AggregatedDiscoveryService, AggregatedDiscoveryServiceServer,
};
use heddle_api::discovery::{self, MESH, ResourceType, SELF};
use heddle_api::tls::TrustBundle;
use tokio::net::TcpListener;
use tokio::sync::Mutex;
use tonic::transport::{Endpoint, Server};
use tonic::{Request, Response, Streaming};

use super::*;
use crate::config::{self, ConfigHandle, Lookup};
use crate::dns::{self, Addresses, Forwarder};

/// Requests of the sidecar, as they come, and where responses go.
struct Played {
    requests: Streaming<DeltaDiscoveryRequest>,
    responses: mpsc::Sender<Result<DeltaDiscoveryResponse, tonic::Status>>,
    /// What the control plane says it is.
    identifier: Option<&'static str>,
}

/// Hands the first stream out.
struct Stage(Mutex<Option<mpsc::Sender<Played>>>);

#[tonic::async_trait]
impl AggregatedDiscoveryService for Stage {
    type DeltaAggregatedResourcesStream = ReceiverStream<Result<DeltaDiscoveryResponse, tonic::Status>>;

    async fn delta_aggregated_resources(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaAggregatedResourcesStream>, tonic::Status> {
        let (responses, receiver) = mpsc::channel(8);
        let identifier = Some("heddle-control-plane/99.0.0");
        let played = Played { requests: request.into_inner(), responses, identifier };
        let stage = self.0.lock().await.take().ok_or_else(|| tonic::Status::unavailable("played once"))?;
        stage.send(played).await.map_err(|_| tonic::Status::unavailable("nobody plays"))?;
        Ok(Response::new(ReceiverStream::new(receiver)))
    }
}

impl Played {
    /// The next request about a type.
    async fn about<T: ResourceType>(&mut self) -> DeltaDiscoveryRequest {
        loop {
            let next = self.requests.message().await.unwrap().expect("the sidecar stays");
            if next.type_url == T::TYPE_URL {
                return next;
            }
        }
    }

    /// Sends resources of one type, and gives the sidecar's answer.
    async fn push<T: ResourceType>(
        &mut self,
        nonce: &str,
        resources: Vec<Resource>,
    ) -> DeltaDiscoveryRequest {
        let response = DeltaDiscoveryResponse {
            type_url: T::TYPE_URL.into(),
            nonce: nonce.into(),
            resources,
            control_plane: self.identifier.map(|text| discovery::ControlPlane { identifier: text.into() }),
            ..Default::default()
        };
        self.responses.send(Ok(response)).await.unwrap();
        loop {
            let answer = self.about::<T>().await;
            if answer.response_nonce == nonce {
                return answer;
            }
        }
    }
}

/// A resource with text in these fields besides its own.
fn resource<T: ResourceType>(name: &str, message: &T, more: &[u32]) -> Resource {
    let mut value = message.encode_to_vec();
    for number in more {
        prost::encoding::string::encode(*number, &"of a newer version".to_owned(), &mut value);
    }
    let any = prost_types::Any { type_url: T::TYPE_URL.into(), value };
    Resource { name: name.into(), version: format!("{more:?}"), resource: Some(any), ..Default::default() }
}

/// A sidecar on a stream that is played.
async fn sidecar() -> (Played, ConfigHandle) {
    let (stage, mut played) = mpsc::channel(1);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let service = AggregatedDiscoveryServiceServer::new(Stage(Mutex::new(Some(stage))));
    let incoming = stream::unfold(listener, |listener| async {
        Some((listener.accept().await.map(|(socket, _)| socket), listener))
    });
    tokio::spawn(Server::builder().add_service(service).serve_with_incoming(incoming));
    let channel = Endpoint::from_shared(format!("http://{address}")).unwrap().connect().await.unwrap();

    let domain: heddle_api::spiffe::TrustDomain = "mesh.local".parse().unwrap();
    let (publisher, handle, wants) = config::channel();
    let metrics = Registry::new();
    let (_, names) = dns::resolver(Forwarder::new(Vec::new()), metrics.clone());
    let mut discovery = Discovery {
        control_plane: ControlPlane::new("played"),
        credentials: Credentials::new(TrustBundle::new(domain.clone(), Vec::new()).unwrap()),
        node: node("web-1", "web", ""),
        knowledge: Knowledge::new(domain, "shop", Addresses::default(), Instant::now()),
        wants,
        publisher,
        names,
        channel: watch::channel(None).0,
        metrics,
    };
    tokio::spawn(async move { discovery.stream(channel).await });
    (played.recv().await.unwrap(), handle)
}

fn mesh(egress: i32) -> v1::Mesh {
    v1::Mesh { trust_domain: "mesh.local".into(), egress, cluster_domain: "cluster.local".into() }
}

fn shortfalls(answer: &DeltaDiscoveryRequest) -> Vec<v1::Shortfall> {
    let details = answer.error_detail.iter().flat_map(|status| &status.details);
    details.map(|detail| v1::Shortfall::decode(&*detail.value).unwrap()).collect()
}

#[tokio::test]
async fn each_side_says_its_version() {
    let (mut played, _config) = sidecar().await;
    let first = played.requests.message().await.unwrap().unwrap();
    let node = first.node.unwrap();
    assert_eq!((&*node.user_agent_name, &*node.user_agent_version), ("heddle-sidecar", version::OWN));
    // One that does not say its own is none the worse for it.
    played.identifier = None;
    let answer = played.push::<v1::Mesh>("1", vec![resource(MESH, &mesh(0), &[])]).await;
    assert_eq!(answer.error_detail, None);
}

#[tokio::test]
async fn a_newer_control_plane_is_told_what_is_not_known() {
    let (mut played, config) = sidecar().await;
    let answer = played.push::<v1::Mesh>("1", vec![resource(MESH, &mesh(1), &[77])]).await;
    assert_eq!(answer.error_detail.as_ref().unwrap().code, UNIMPLEMENTED);
    let told = shortfalls(&answer);
    assert_eq!((told[0].resource.as_str(), told[0].refused), (MESH, false));
    assert!(told[0].reason.ends_with("does not know: 77"), "{told:?}");
    assert!(!config.load().mesh.as_ref().unwrap().allow_any_egress, "the rest is in force");

    // A value, or a field that the rest cannot do without, puts the whole out of the question.
    for (nonce, wrong, path) in [("2", mesh(7), "egress: "), ("3", mesh(0), "1000: ")] {
        let more: &[u32] = if path == "1000: " { &[1000] } else { &[] };
        let answer = played.push::<v1::Mesh>(nonce, vec![resource(MESH, &wrong, more)]).await;
        assert_eq!(answer.error_detail.as_ref().unwrap().code, INVALID_ARGUMENT);
        let told = shortfalls(&answer);
        assert!(told[0].refused && told[0].reason.starts_with(path), "{told:?}");
        assert!(!config.load().mesh.as_ref().unwrap().allow_any_egress, "the last good one is");
    }
}

#[tokio::test]
async fn one_resource_that_is_not_known_stops_no_other() {
    let (mut played, config) = sidecar().await;
    let workload = v1::Workload {
        namespace: "shop".into(),
        service: "web".into(),
        rate_limits: vec![v1::RateLimit::default()],
        ..Default::default()
    };
    let answer = played.push::<v1::Workload>("1", vec![resource(SELF, &workload, &[])]).await;
    assert!(shortfalls(&answer)[0].reason.starts_with("rate_limits[0]"), "{answer:?}");
    assert!(config.load().workload.is_none(), "nothing is admitted by a policy that is not understood");
    for name in ["users", "orders"] {
        config.want(Want::Service(format!("shop/{name}").parse().unwrap()));
    }
    let mut subscribed = 0;
    while subscribed < 2 {
        subscribed += played.about::<v1::Service>().await.resource_names_subscribe.len();
    }
    let service = |name: &str, more: &[u32]| {
        let message = v1::Service { namespace: "shop".into(), name: name.into(), ..Default::default() };
        resource(&format!("shop/{name}"), &message, more)
    };
    let resources = vec![service("users", &[1999]), service("orders", &[])];
    let answer = played.push::<v1::Service>("2", resources).await;
    let told = shortfalls(&answer);
    assert_eq!((told.len(), told[0].resource.as_str()), (1, "shop/users"));
    let snapshot = config.load();
    let state = |name: &str| matches!(snapshot.services[&name.parse().unwrap()], Lookup::Found(_));
    assert!(state("shop/orders") && !state("shop/users"));
}

/// A kind of resource that nobody asked for is answered, and the stream goes on.
#[tokio::test]
async fn a_kind_that_is_not_known_is_refused_by_name() {
    let (mut played, config) = sidecar().await;
    let response = DeltaDiscoveryResponse {
        type_url: "type.googleapis.com/heddle.v1.Newer".into(),
        nonce: "1".into(),
        ..Default::default()
    };
    played.responses.send(Ok(response)).await.unwrap();
    let refused = loop {
        let request = played.requests.message().await.unwrap().unwrap();
        if request.response_nonce == "1" {
            break request;
        }
    };
    assert!(refused.type_url.ends_with("Newer") && refused.error_detail.is_some());
    played.push::<v1::Mesh>("2", vec![resource(MESH, &mesh(0), &[])]).await;
    assert!(config.load().mesh.is_some());
}
