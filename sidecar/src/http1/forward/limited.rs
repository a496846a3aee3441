//! The rate limits of the application's own side.

use super::Request;
use crate::http1::connection::Client;
use crate::rate_limit::PortLimits;
use crate::route::Http1Head;

impl Request {
    /// Whether the limits of the application's port admit the request.
    pub(super) fn is_admitted(&mut self, client: &Client, limits: &PortLimits) -> bool {
        let head = Http1Head::new(&client.to_upstream.bytes[..self.head_end.at()]);
        self.word = limits.ask(&head, &client.session, self.mark.as_deref());
        self.word.as_ref().is_none_or(|word| word.retry_after.is_none())
    }
}
