//! What HTTP/2 asks of the rest of the sidecar: where a request goes, whether
//! it may be tried again, and who counts it.
//!
//! [`Calls`] stands for one downstream connection's side, inbound or outbound;
//! a [`Call`] for one request, from its head to its end. Dropping a call before
//! [`Call::ended`] means that its connection went away.

use std::future::Future;
use std::pin::Pin;
use std::time::{Duration, Instant};

use http::{HeaderMap, StatusCode, request, response};
use tokio::io::{AsyncRead, AsyncWrite};

use crate::fallback::{Keep, Substitute};
use crate::http2::body::Body;
use crate::http2::upstream::{Links, Terms};
use crate::policy::fault::Injected;
use crate::policy::retry::Failure;
use crate::reason::{Codes, Reason};
use crate::route::Reply;
use crate::sanitize::answer::Form;
use crate::wheel::Wheel;
use crate::word::Word;

/// Why the mesh answers a request itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Refusal {
    /// The word for it.
    pub(crate) reason: Reason,
    /// How it is coded.
    pub(crate) codes: Codes,
    /// What exactly, for a person; empty: the reason's general meaning.
    pub(crate) message: String,
    /// The policy that asked for it, `namespace/name`; empty if none did.
    pub(crate) policy: String,
    /// After how many seconds to try again, if that can be said.
    pub(crate) retry_after: Option<u32>,
    /// Further fields of the answer.
    pub(crate) fields: Vec<(&'static str, String)>,
}

/// Why a request becomes no call.
#[derive(Debug)]
pub(crate) enum Detour {
    /// It is refused.
    Refused(Refusal),
    /// Its route answers it.
    Reply(Reply),
}

impl From<Refusal> for Detour {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

impl Refusal {
    pub(crate) fn new(reason: Reason, message: impl Into<String>) -> Self {
        Self {
            reason,
            codes: reason.codes(),
            message: message.into(),
            policy: String::new(),
            retry_after: reason.retry_after(),
            fields: Vec::new(),
        }
    }

    /// The refusal of a request that a policy of the application's own side does not admit.
    pub(crate) fn said(reason: Reason, word: &Word) -> Self {
        Self {
            policy: word.policy.as_ref().into(),
            retry_after: word.retry_after,
            fields: word.fields.clone(),
            ..Self::new(reason, word.message.as_str())
        }
    }
}

impl From<Reason> for Refusal {
    fn from(reason: Reason) -> Self {
        Self::new(reason, "")
    }
}

/// Decides about the requests of one downstream connection.
pub(crate) trait Calls: 'static {
    /// A request on its way.
    type Call<'a>: Call
    where
        Self: 'a;

    /// The worker's timers.
    fn wheel(&self) -> &Wheel;

    /// Whether the client is a sidecar of the mesh, whose `heddle-*` headers are believed.
    fn trusts_client(&self) -> bool;

    /// Whether the sidecar is leaving. Deadlines wake their tasks when it begins to.
    fn is_draining(&self) -> bool;

    /// Decides where a request goes, and changes its head as its route says. The
    /// head is sanitised: `:authority` is set and valid, `Host` is gone, the path is normal.
    ///
    /// # Errors
    /// If it goes nowhere; counted by the implementation.
    fn begin(
        &self,
        head: &mut request::Parts,
        started: Instant,
    ) -> impl Future<Output = Result<Self::Call<'_>, Detour>>;

    /// A request was refused before it became a call: its head is not acceptable.
    fn refused(&self, head: &request::Parts, reason: Reason, started: Instant);
}

/// Makes connections.
pub(crate) type Connector<Io> = Box<dyn FnMut() -> Pin<Box<dyn Future<Output = Result<Io, Refusal>>>>>;

/// One request.
pub(crate) trait Call {
    /// A connection to an endpoint.
    type Io: AsyncRead + AsyncWrite + Unpin + 'static;

    /// Its limits.
    fn limits(&self) -> Limits;

    /// The service it is for, `name.namespace`, for error bodies.
    fn service(&self) -> String;

    /// The trace it belongs to, for error bodies; empty if there is none.
    fn trace_id(&self) -> String;

    /// The fault that it meets, asked once and before an endpoint is chosen.
    fn fault(&mut self) -> Option<Box<Injected>>;

    /// Chooses the endpoint for the next try, another than those before.
    ///
    /// # Errors
    /// If there is none.
    fn pick(&mut self, now: Instant) -> Result<(Links, Terms), Refusal>;

    /// Makes a connection to the endpoint picked last.
    fn connect(&self) -> impl Future<Output = Result<Self::Io, Refusal>> + 'static;

    /// Why a try's time was over before it had a place on a connection.
    fn late(&self) -> Reason;

    /// What makes connections to the endpoint picked last, also when another is picked later.
    fn connector(&self) -> Connector<Self::Io>;

    /// A try has not answered for so long that a second one is due beside it. The endpoint of
    /// that one, if there may be one; it is then the try that the call speaks of.
    fn hedge(&mut self, request: Option<&request::Parts>, stand: Stand) -> Option<(Links, Terms)>;

    /// From now on the call speaks of the other one of two tries.
    fn turn(&mut self);

    /// Whether a response with this head, to the try that the call speaks of, is a failure.
    fn judge(&self, status: StatusCode, headers: &HeaderMap, grpc_status: Option<u8>) -> Option<Failure>;

    /// Of two tries the one that the call speaks of is over; it lost if it did not fail. The
    /// call speaks of the other.
    fn leave(&mut self, failure: Option<Failure>, now: Instant);

    /// A second try came to its end. `won`: with the response that is passed on.
    fn raced(&mut self, won: bool);

    /// Makes a head that of this hop; called once per try.
    fn outgoing(&mut self, head: &mut request::Parts, now: Instant);

    /// A response head, or the only one that a trailers-only gRPC call has,
    /// came from the endpoint picked last; its untrusted `heddle-*` headers are
    /// to be removed. `request`: the head of the request, if it is held still. The
    /// delay after which to try again instead of passing it on.
    fn answered(
        &mut self,
        head: &mut response::Parts,
        grpc_status: Option<u8>,
        request: Option<&request::Parts>,
        stand: Stand,
    ) -> Option<Duration>;

    /// A try failed without a response. The delay after which to try again.
    fn failed(
        &mut self,
        failure: Failure,
        request: Option<&request::Parts>,
        stand: Stand,
    ) -> Option<Duration>;

    /// A try was answered: sends the copies that the route asks for, if all of
    /// the request is known.
    fn mirror(&mut self, head: &request::Parts, body: &Body);

    /// The time of the exchange as a whole was over before a response. `request` as for
    /// [`Self::answered`].
    fn ran_out(&self, request: Option<&request::Parts>);

    /// Whether there are errors that are replaced by something else.
    fn has_fallback(&self) -> bool;

    /// Whether this error, of which the client got nothing yet, is replaced by something else.
    fn falls_back(&self, reason: Reason) -> bool;

    /// What is done in place of an error that is replaced. `head` is the request's, if it
    /// can be sent once more.
    fn instead(
        &mut self,
        reason: Reason,
        head: Option<&request::Parts>,
        form: Form,
    ) -> impl Future<Output = Instead>;

    /// What keeps the response that is passed on for bad times, if anything does. `head` is the
    /// request's, if that is still known.
    fn passes(&mut self, head: Option<&request::Parts>, response: &response::Parts) -> Option<Box<Keep>>;

    /// Changes the head of the response that is passed on, as its route says.
    fn incoming(&mut self, headers: &mut HeaderMap);

    /// The response that was passed on ends with these trailers, which say that it failed; changes
    /// them to what the next hop has to know. `was_retried`: the endpoint's say that retries further on
    /// were of no use. `request` as for [`Self::answered`].
    fn trailed(&self, trailers: &mut HeaderMap, was_retried: bool, request: Option<&request::Parts>);

    /// It is over.
    fn ended(&mut self, end: End, now: Instant);
}

/// How an exchange stands when a try has ended.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Stand {
    /// Whether the request can be sent once more from its beginning.
    pub(crate) replayable: bool,
    /// Whether any byte of a response, a 1xx included, was passed to the client.
    pub(crate) response_started: bool,
    /// When the time of the whole exchange is over.
    pub(crate) deadline: Option<Instant>,
    /// The time at which the try ended.
    pub(crate) now: Instant,
}

/// What is done in place of an error.
pub(crate) enum Instead {
    /// This is answered.
    Answer(Box<Substitute>),
    /// The call goes to another service, under limits of its own.
    Elsewhere,
    /// The error is answered after all.
    Nothing,
}

/// Limits of a request.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Limits {
    /// On the whole exchange.
    pub(crate) request: Option<Duration>,
    /// On one try, until its response head.
    pub(crate) per_try: Option<Duration>,
    /// Whether that goes on to the end of the response.
    pub(crate) per_try_whole: bool,
    /// When a second try begins beside one that has not answered.
    pub(crate) hedge: Option<Duration>,
    /// On the silence of both sides.
    pub(crate) idle: Option<Duration>,
    /// Bytes of the body kept for another try; `None`: there will be no other.
    pub(crate) replay: Option<usize>,
    /// Bytes of a response's body that are held back until they are whole; `None`: none are.
    pub(crate) held: Option<usize>,
    /// Whether the request's trailers end here.
    pub(crate) ends_trailers: bool,
}

/// What became of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct End {
    /// The status that the client got; `None` if it got none.
    pub(crate) status: Option<u16>,
    /// The gRPC status that the client got.
    pub(crate) grpc_status: Option<u8>,
    /// What the mesh had to say; `None`: all is as the application said.
    pub(crate) reason: Option<Reason>,
    /// Whether the client gave up.
    pub(crate) cancelled: bool,
    /// Bytes of the request's body that went upstream.
    pub(crate) sent: u64,
    /// Bytes of the response's body that went to the client.
    pub(crate) received: u64,
}
