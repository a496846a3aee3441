//! What a policy of the application's own side says about a request, to be told to its client.

use std::sync::Arc;

use crate::reason::Reason;

/// A policy's word about one request, admitted or refused.
#[derive(Debug)]
pub(crate) struct Word {
    /// The policy whose word it is.
    pub(crate) policy: Arc<str>,
    /// Why the request is refused, if it is.
    pub(crate) refused: Option<Reason>,
    /// After how many seconds to try again, if that can be said.
    pub(crate) retry_after: Option<u32>,
    /// What exactly, for a person, if it is refused.
    pub(crate) message: String,
    /// Fields of the response, their values in ASCII.
    pub(crate) fields: Vec<(&'static str, String)>,
}
