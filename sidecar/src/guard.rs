//! What stands before the application's ports, for both versions of HTTP alike:
//! first the tokens that requests show, then the limits on their rate, which may
//! ask what a token says.

use std::rc::Rc;
use std::time::SystemTime;

use crate::config::Workload;
use crate::jwt::PortTokens;
use crate::policy::jwt::Admission;
use crate::rate_limit::PortLimits;
use crate::route::Head;
use crate::session::Session;
use crate::telemetry::metrics::Registry;
use crate::word::Word;

/// The policies of one of the application's ports that may refuse requests; never empty.
pub(crate) struct Guards {
    tokens: Option<Rc<PortTokens>>,
    limits: Option<Rc<PortLimits>>,
}

impl Guards {
    /// Those of a newer state of the workload. What did not change goes on with what it has learned.
    /// `None`: there are none.
    pub(crate) fn follow(
        before: Option<&Self>,
        workload: &Workload,
        port: u16,
        (service, namespace): (&str, &str),
        registry: &Registry,
    ) -> Option<Rc<Self>> {
        let tokens = workload.gates.at(port).map(|gate| {
            let same = before.and_then(|before| before.tokens.clone()).filter(|known| known.is_of(gate));
            same.unwrap_or_else(|| Rc::new(PortTokens::new(gate.clone(), service, namespace, registry)))
        });
        let limits = workload.rate_limits(port).map(|limits| {
            let same = before.and_then(|before| before.limits.clone()).filter(|known| known.is_of(limits));
            same.unwrap_or_else(|| Rc::new(PortLimits::new(limits, service, namespace, registry)))
        });
        (tokens.is_some() || limits.is_some()).then(|| Rc::new(Self { tokens, limits }))
    }

    /// Asks for what a request shows.
    ///
    /// # Errors
    /// The word that refuses it.
    pub(crate) fn verify<H: Head>(&self, head: &H, mark: Option<&[u8]>) -> Result<Admission, Box<Word>> {
        match &self.tokens {
            Some(tokens) => tokens.admit(head, mark, SystemTime::now()),
            None => Ok(Admission::default()),
        }
    }

    /// Asks the limits for a request that was admitted; its head is as the application will see it.
    /// `None`: no limit is about it. Boxed because it is rare.
    pub(crate) fn limit<H: Head>(
        &self,
        head: &H,
        session: &Session,
        mark: Option<&[u8]>,
        admission: &Admission,
    ) -> Option<Box<Word>> {
        self.limits.as_ref().and_then(|limits| limits.ask(head, session, mark, &admission.tokens))
    }

    /// Whether headers tell the application who asks: then trailers must not.
    pub(crate) fn tells_claims(&self) -> bool {
        self.tokens.as_ref().is_some_and(|tokens| tokens.tells_claims())
    }

    /// Whether no opaque connection may pass: it shows no token. Where bytes are not what was `declared`, they
    /// may be requests after all, with headers that only we may write.
    pub(crate) fn refuses_bytes(&self, declared: bool) -> bool {
        self.tokens.as_ref().is_some_and(|tokens| !declared || tokens.refuses_bytes())
    }
}
