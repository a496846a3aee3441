//! Follows one collection of an API server, for ever.
//!
//! First everything is listed (as a stream where the API server can, KEP-3157,
//! else page by page), then changes arrive as they happen. A watch that ends
//! goes on where it stopped; where the API server has forgotten that place
//! (410 Gone) everything is listed again. Failures are reported and tried again,
//! with growing pauses and jitter, or as soon as another watch of the same API
//! server works again; where one finds its connection dead, the others look after
//! theirs ([`others`]). What is heard goes to a [`Listener`]; whether a
//! collection that is not served is waited for is up to whoever runs the watch.

use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use kube::api::{Api, WatchEvent, WatchParams};
use kube::core::Request;
use kube::{Client, Resource};
use serde::de::DeserializeOwned;
use tokio::sync::OnceCell;
use tokio::time::{sleep, timeout};
use tracing::debug;

use crate::source::ObjectName;

pub(crate) use self::follow::{Followed, Following, follow};
pub(crate) use self::pauses::{Pauses, jittered};

use self::end::End;
use self::others::{Others, STEADY};
use self::pauses::LONGEST_PAUSE;

mod end;
mod follow;
mod list;
mod others;
mod pauses;

/// What the watches of one API server share.
pub(crate) struct ApiServer {
    pub(crate) client: Client,
    /// Whether lists can be streamed, once the API server was asked.
    streams_lists: OnceCell<bool>,
    others: Others,
}

/// Objects of one kind, or some of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Collection {
    /// Where it is.
    pub(crate) path: String,
    /// Selects by label.
    pub(crate) labels: Option<String>,
    /// Selects by field.
    pub(crate) fields: Option<String>,
}

/// What a watch has to know of an object.
pub(crate) trait Versioned {
    /// Its namespace, empty for kinds of the whole cluster, and its name.
    fn name(&self) -> ObjectName;
    /// The version of the collection that it came with.
    fn version(&self) -> &str;
}

/// Who hears of a collection.
pub(crate) trait Listener: Send {
    /// An object as the API server sends it.
    type Sent: Versioned + DeserializeOwned + Clone + Send;
    /// What is kept of it.
    type Kept: Send;

    /// Reduces an object to what is kept: of a list that is under way nothing else is held.
    fn keep(&self, sent: Self::Sent) -> Self::Kept;

    /// Takes in what was heard. `false` if nobody listens any more.
    fn hear(&mut self, heard: Heard<Self::Kept>) -> impl Future<Output = bool> + Send;

    /// Ends when nobody listens any more.
    fn closed(&self) -> impl Future<Output = ()> + Send;
}

/// What a watch has found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Heard<T> {
    /// These and no others are there.
    Listed(Vec<T>),
    Applied(T),
    Deleted(ObjectName),
    /// From now on changes arrive as they happen.
    Live,
    /// Perhaps they do not any more: it goes on where it stopped, and is live or lost then.
    Doubted,
    /// Until further notice they do not. Said again when it fails again.
    Lost(Failure),
}

/// Why a watch does not work.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Failure {
    /// No API server answers.
    Unreachable(String),
    /// It answers, but not with objects.
    Refused(String),
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreachable(reason) | Self::Refused(reason) => f.write_str(reason),
        }
    }
}

/// Why [`Watch::run`] returned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ended {
    /// Nobody listens any more.
    Unheard,
    /// There is no such collection.
    NotServed,
}

/// The watch of one collection.
pub(crate) struct Watch<L> {
    server: Arc<ApiServer>,
    pub(crate) collection: Collection,
    pub(crate) listener: L,
    /// Where to go on; `None`: with a list.
    resume: Option<String>,
    said: Said,
    pauses: Pauses,
    /// Whether this collection's lists can be streamed, as far as is known.
    streamed: bool,
}

/// What the listener was told last about how it stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Said {
    Nothing,
    Live,
    Doubted,
    Lost,
}

/// A server that does not begin to answer by then is no better than one that is away.
pub(crate) const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

/// How long a watch lasts at most, in seconds; API servers end them after some five minutes anyway.
pub(crate) const WATCH_SECONDS: u32 = 280;

/// API servers send a bookmark every minute; a watch without is one whose server is gone.
pub(crate) const SILENCE: Duration = Duration::from_secs(90);

/// One that ends sooner would end at once again.
const SHORT: Duration = Duration::from_secs(1);

/// The first minor version of Kubernetes 1 in which API servers stream lists without being told to
/// (KEP-3157, beta and on; off in 1.33, which then refuses and is asked for pages).
const STREAMED_LISTS_SINCE: u32 = 32;

/// The annotation of the bookmark behind the last object of a streamed list.
const LIST_END: &str = "k8s.io/initial-events-end";

impl ApiServer {
    pub(crate) fn new(client: Client) -> Arc<Self> {
        Arc::new(Self { client, streams_lists: OnceCell::new(), others: Others::new(STEADY) })
    }

    async fn streams_lists(&self) -> Result<bool, kube::Error> {
        let asked = self.streams_lists.get_or_try_init(|| async {
            let version = self.client.apiserver_version().await?;
            let minor: String = version.minor.chars().take_while(char::is_ascii_digit).collect();
            Ok::<_, kube::Error>(minor.parse().is_ok_and(|minor: u32| minor >= STREAMED_LISTS_SINCE))
        });
        asked.await.copied()
    }
}

impl Collection {
    /// All objects of `api`.
    pub(crate) fn of<K>(api: &Api<K>) -> Self
    where
        K: Resource,
    {
        Self { path: api.resource_url().to_owned(), labels: None, fields: None }
    }

    /// Of each namespace the one with that name.
    pub(crate) fn named(self, name: &str) -> Self {
        Self { fields: Some(format!("metadata.name={name}")), ..self }
    }
}

impl<K: Resource> Versioned for K {
    fn name(&self) -> ObjectName {
        let meta = self.meta();
        ObjectName {
            namespace: meta.namespace.clone().unwrap_or_default(),
            name: meta.name.clone().unwrap_or_default(),
        }
    }

    fn version(&self) -> &str {
        self.meta().resource_version.as_deref().unwrap_or_default()
    }
}

impl<L: Listener> Watch<L> {
    pub(crate) fn new(server: Arc<ApiServer>, collection: Collection, listener: L) -> Self {
        let (said, pauses) = (Said::Nothing, Pauses::default());
        Self { server, collection, listener, resume: None, said, pauses, streamed: true }
    }

    /// Watches until nobody listens, or until there is no such collection. Run again it begins with
    /// a list.
    pub(crate) async fn run(&mut self) -> Ended {
        loop {
            let begun = Instant::now();
            match self.follow().await {
                End::Over => return Ended::Unheard,
                End::Closed if begun.elapsed() < SHORT => sleep(self.pauses.next()).await,
                End::Closed => self.pauses.reset(),
                End::Gone => {
                    debug!(
                        collection = self.collection.path,
                        "the place to go on is gone; everything is listed again"
                    );
                    self.resume = None;
                    if begun.elapsed() < SHORT {
                        sleep(self.pauses.next()).await;
                    }
                }
                End::NoStreamedLists => self.streamed = false,
                End::NotServed => {
                    self.resume = None;
                    self.said = Said::Nothing;
                    return Ended::NotServed;
                }
                End::Silent => {
                    self.server.others.breaks();
                    if !self.doubt().await {
                        return Ended::Unheard;
                    }
                }
                End::Doubted => {
                    if !self.doubt().await {
                        return Ended::Unheard;
                    }
                }
                End::Cut(reason) => {
                    // Who was in doubt has it from another.
                    if self.said == Said::Live {
                        self.server.others.breaks();
                    }
                    if !self.lose(Failure::Unreachable(reason), begun).await {
                        return Ended::Unheard;
                    }
                }
                End::Failed(failure) => {
                    if !self.lose(failure, begun).await {
                        return Ended::Unheard;
                    }
                }
            }
        }
    }

    /// Says that it may be dead. `false` if nobody listens.
    async fn doubt(&mut self) -> bool {
        debug!(collection = self.collection.path, "the watch may be dead; it goes on where it stopped");
        self.said = Said::Doubted;
        self.listener.hear(Heard::Doubted).await
    }

    /// Says that it does not work, and waits until it is worth another try. `false` if nobody listens.
    async fn lose(&mut self, failure: Failure, begun: Instant) -> bool {
        if begun.elapsed() > LONGEST_PAUSE {
            self.pauses.reset();
        }
        let recovered = self.server.others.recovered();
        self.said = Said::Lost;
        if !self.listener.hear(Heard::Lost(failure)).await {
            return false;
        }
        tokio::select! {
            () = sleep(self.pauses.next()) => true,
            () = recovered => true,
            () = self.listener.closed() => false,
        }
    }

    /// The next pause after a failure.
    pub(crate) fn pause(&mut self) -> Duration {
        self.pauses.next()
    }

    /// One list, if needed, and one watch.
    async fn follow(&mut self) -> End {
        match self.try_follow().await {
            Ok(end) | Err(end) => end,
        }
    }

    async fn try_follow(&mut self) -> Result<End, End> {
        let streams = timeout(ANSWER_TIMEOUT, self.server.streams_lists()).await;
        let streamed = streams.map_err(|_| End::slow())?.map_err(End::of)? && self.streamed;
        // Of a list that is streamed: an object may change before its end.
        let mut listed: Option<BTreeMap<ObjectName, L::Kept>> = None;
        match (&self.resume, streamed) {
            (Some(_), _) => {}
            (None, true) => listed = Some(BTreeMap::new()),
            (None, false) => {
                let (kept, version) = self.list().await?;
                self.resume = Some(version);
                self.hear(Heard::Listed(kept)).await?;
            }
        }
        let parameters = WatchParams {
            label_selector: self.collection.labels.clone(),
            field_selector: self.collection.fields.clone(),
            timeout: Some(WATCH_SECONDS),
            bookmarks: true,
            send_initial_events: listed.is_some(),
        };
        // From before it is asked: what befalls another meanwhile may befall this one.
        let mut doubt = self.server.others.doubt();
        let request = Request::new(self.collection.path.as_str())
            .watch(&parameters, self.resume.as_deref().unwrap_or_default())
            .map_err(End::impossible)?;
        let events = timeout(ANSWER_TIMEOUT, self.server.client.request_events::<L::Sent>(request)).await;
        let events = events.map_err(|_| End::slow())?;
        let mut events = Box::pin(events.map_err(|error| End::of_watch(error, listed.is_some()))?);
        if listed.is_none() {
            self.live().await?;
        }
        loop {
            let event = tokio::select! {
                event = timeout(SILENCE, events.next()) => event,
                // A list that is under way is not taken for up to date by anybody.
                () = doubt.arises(), if listed.is_none() => return Ok(End::Doubted),
            };
            let event = match event {
                Ok(Some(Ok(event))) => event,
                Ok(Some(Err(kube::Error::SerdeError(error)))) => return Err(self.ask_why(&error).await),
                Ok(Some(Err(error))) => return Err(End::of_watch(error, listed.is_some())),
                Ok(None) if listed.is_none() => return Ok(End::Closed),
                Err(_) if listed.is_none() => return Ok(End::Silent),
                Ok(None) | Err(_) => return Err(End::cut()),
            };
            match event {
                WatchEvent::Added(sent) | WatchEvent::Modified(sent) => {
                    let (name, version) = (sent.name(), sent.version().to_owned());
                    let kept = self.listener.keep(sent);
                    match &mut listed {
                        Some(listed) => {
                            listed.insert(name, kept);
                        }
                        None => {
                            self.hear(Heard::Applied(kept)).await?;
                            self.resume = Some(version);
                        }
                    }
                }
                WatchEvent::Deleted(sent) => match &mut listed {
                    Some(listed) => {
                        listed.remove(&sent.name());
                    }
                    None => {
                        self.hear(Heard::Deleted(sent.name())).await?;
                        self.resume = Some(sent.version().to_owned());
                    }
                },
                WatchEvent::Bookmark(bookmark) => {
                    let ends = bookmark.metadata.annotations.get(LIST_END).is_some_and(|ends| ends == "true");
                    if let Some(all) = listed.take_if(|_| ends) {
                        self.hear(Heard::Listed(all.into_values().collect())).await?;
                        self.live().await?;
                    }
                    if listed.is_none() {
                        self.resume = Some(bookmark.metadata.resource_version);
                    }
                }
                WatchEvent::Error(status) => return Err(End::of_status(&status)),
            }
        }
    }

    async fn live(&mut self) -> Result<(), End> {
        if self.said == Said::Lost {
            self.server.others.recovers();
        }
        if self.said != Said::Live {
            self.said = Said::Live;
            self.hear(Heard::Live).await?;
        }
        Ok(())
    }

    async fn hear(&mut self, heard: Heard<L::Kept>) -> Result<(), End> {
        if self.listener.hear(heard).await { Ok(()) } else { Err(End::Over) }
    }
}

#[cfg(test)]
mod tests;
