//! Asks the other replicas how their sidecars stand, again and again, while
//! this one writes statuses.
//!
//! They are asked at the port at which they serve sidecars, with the same TLS:
//! both sides prove to be the control plane.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::{StreamExt, stream};
use heddle_api::discovery::v1;
use heddle_api::discovery::v1::replicas_client::ReplicasClient;
use heddle_api::tls::Credentials;
use hyper_util::rt::TokioIo;
use tokio::sync::watch;
use tonic::transport::{Channel, Endpoint};
use tracing::{debug, warn};

use super::counter::Standing;
use super::enforcement::Count;
use super::replicas::{Answer, Others, Told, places};
use crate::replicas::dial;
use crate::source::{Content, ObjectName};

/// Between two rounds: about as often as sidecars' answers are added up here.
const ASK: Duration = Duration::from_secs(1);

/// On one question, the connection included. Replicas are near each other.
const LIMIT: Duration = Duration::from_secs(2);

/// Questions at once.
const CONCURRENT: usize = 8;

/// Some hundred bytes per policy.
const MAX_ANSWER: usize = 64 * 1024 * 1024;

/// Asks for one replica.
pub(super) struct Peers {
    pub(super) credentials: Arc<Credentials>,
    /// The control plane's own namespace.
    pub(super) namespace: String,
    pub(super) sources: watch::Receiver<Content>,
    /// The name of this replica.
    pub(super) own: String,
    pub(super) told: watch::Sender<Told>,
}

type Client = ReplicasClient<Channel>;

/// A round's question to one replica.
struct Question {
    name: String,
    places: BTreeSet<SocketAddr>,
    last: Option<Answer>,
    client: Option<Client>,
}

impl Peers {
    /// Asks until it is dropped.
    pub(super) async fn run(self) {
        let (mut others, mut clients) = (Others::default(), BTreeMap::<String, Client>::new());
        let mut failing = BTreeSet::new();
        let mut round = tokio::time::interval(ASK);
        round.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            round.tick().await;
            let there = {
                let content = self.sources.borrow();
                if content.pending {
                    continue;
                }
                places(content.objects.endpoint_slices.values().map(|slice| &slice.value), &self.namespace)
            };
            clients.retain(|name, _| there.contains_key(name));
            failing.retain(|name| there.contains_key(name));
            others.expect(there, Instant::now());
            let question = |(name, places, last)| {
                let client = clients.remove(&name);
                self.ask(Question { name, places, last, client })
            };
            let questions: Vec<_> = others.to_ask().into_iter().map(question).collect();
            let mut answers = stream::iter(questions).buffer_unordered(CONCURRENT);
            while let Some((name, answered)) = answers.next().await {
                match answered {
                    Ok((client, answer)) => {
                        failing.remove(&name);
                        others.answered(&name, answer, &self.own, Instant::now());
                        clients.insert(name, client);
                    }
                    Err(error) => {
                        if failing.insert(name.clone()) {
                            warn!(
                                replica = name,
                                error, "a replica does not say how its sidecars stand; asking again"
                            );
                        } else {
                            debug!(replica = name, error, "a replica does not answer");
                        }
                    }
                }
            }
            let told = others.told(Instant::now());
            self.told.send_if_modified(|before| {
                let changed = !before.is(&told);
                *before = told;
                changed
            });
        }
    }

    async fn ask(&self, question: Question) -> (String, Result<(Client, Answer), String>) {
        let Question { name, places, last, client } = question;
        let asked = tokio::time::timeout(LIMIT, async {
            let mut client = match client {
                Some(client) => client,
                None => self.connect(&places).await?,
            };
            let (replica, revision) =
                last.as_ref().map(|last| (last.replica.clone(), last.revision)).unwrap_or_default();
            let answer = client.standing(v1::StandingRequest { replica, revision }).await;
            let answer = answer.map_err(|status| status.to_string())?.into_inner();
            let answer = match last {
                Some(last) if answer.unchanged => last,
                _ => read(answer),
            };
            Ok((client, answer))
        });
        let asked = asked.await.unwrap_or_else(|_| Err(format!("no answer within {LIMIT:?}")));
        (name, asked)
    }

    /// A connection to the first place that lets one be made.
    async fn connect(&self, places: &BTreeSet<SocketAddr>) -> Result<Client, String> {
        let mut failure = "it has no address".to_owned();
        for place in places {
            match self.connect_to(*place).await {
                Ok(channel) => {
                    return Ok(ReplicasClient::new(channel).max_decoding_message_size(MAX_ANSWER));
                }
                Err(error) => failure = format!("{place}: {error}"),
            }
        }
        Err(failure)
    }

    async fn connect_to(&self, place: SocketAddr) -> Result<Channel, String> {
        let stream = dial(&self.credentials, place).await;
        let mut stream = Some(stream.map_err(|error| error.to_string())?);
        // A connection that ends is not made again here, but by the next question.
        let once = tower::service_fn(move |_| {
            let stream = stream.take().map(TokioIo::new);
            async move { stream.ok_or_else(|| io::Error::other("the connection has ended")) }
        });
        let endpoint = Endpoint::from_static("http://control-plane.heddle.internal");
        endpoint.connect_with_connector(once).await.map_err(|error| error.to_string())
    }
}

fn read(answer: v1::StandingResponse) -> Answer {
    let v1::StandingResponse { replica, revision, policies, .. } = answer;
    let policy = |policy: v1::PolicyStanding| {
        // One that this version does not know has no status here.
        let kind = super::kind(&policy.kind)?;
        let name = ObjectName { namespace: policy.namespace, name: policy.name };
        let count = Count {
            sidecars: policy.sidecars as usize,
            acknowledged: policy.acknowledged as usize,
            partly: policy.partly as usize,
            refused: policy.refused as usize,
            ..Count::default()
        };
        Some(((kind, name), (policy.generation, count)))
    };
    let policies: Standing = policies.into_iter().filter_map(policy).collect();
    Answer { replica, revision, policies: Arc::new(policies) }
}
