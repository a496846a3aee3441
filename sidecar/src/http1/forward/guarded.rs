//! The policies of the application's own side that may refuse a request.

use super::Request;
use crate::guard::Guards;
use crate::http1::connection::Client;
use crate::reason::Reason;
use crate::route::Http1Head;

impl Request {
    /// Has the policies of the application's port decide about the request, and changes its head as they say.
    ///
    /// # Errors
    /// Why it is refused; the word for it is kept.
    pub(super) fn pass_guards(&mut self, client: &mut Client, guards: &Guards) -> Result<(), Reason> {
        let out = &mut client.to_upstream;
        let admission =
            match guards.verify(&Http1Head::new(&out.bytes[..self.head_end.at()]), self.mark.as_deref()) {
                Ok(admission) => admission,
                Err(word) => {
                    let reason = word.refused.unwrap_or(Reason::Unauthenticated);
                    self.word = Some(word);
                    // Its head still says whatever the client made up.
                    let labeler = client.session.labeler();
                    self.labels = labeler.map(|labeler| Box::new(labeler.read(None::<&Http1Head<'_>>)));
                    return Err(reason);
                }
            };
        if admission.edits() {
            self.rewrite(out, |head| admission.edit(head)).map_err(|_| Reason::HeaderTooLarge)?;
        }
        let head = Http1Head::new(&out.bytes[..self.head_end.at()]);
        self.word = guards.limit(&head, &client.session, self.mark.as_deref(), &admission);
        self.word.as_ref().and_then(|word| word.refused).map_or(Ok(()), Err)
    }
}
