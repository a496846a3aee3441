//! Tokens as requests to the application meet them: what the answer says, and
//! what is counted. What is accepted is decided in [`crate::policy::jwt`].

use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::SystemTime;

use crate::policy::jwt::{Admission, Cache, Denied, Flaw, Gate};
use crate::reason::Reason;
use crate::route::Head;
use crate::telemetry::metrics::{Registry, SharedCounter};
use crate::word::Word;

/// The policies of one of the application's ports, in use by one worker.
pub(crate) struct PortTokens {
    gate: Arc<Gate>,
    cache: RefCell<Cache>,
    service: Box<str>,
    namespace: Box<str>,
    registry: Registry,
    /// Counts tokens whose signature was verified, which those that are known are not again.
    verified: SharedCounter,
    /// Counts what was refused, by policy and cause. Made when there is one: as many as there are
    /// policies and flaws.
    refused: RefCell<HashMap<(Box<str>, Flaw), SharedCounter>>,
}

impl PortTokens {
    /// The policies of a port of this service's workload.
    pub(crate) fn new(gate: Arc<Gate>, service: &str, namespace: &str, registry: &Registry) -> Self {
        let help = "Tokens whose signature was verified; those that are remembered do not count again.";
        let labels = [("service", service), ("namespace", namespace)];
        Self {
            gate,
            cache: RefCell::default(),
            service: service.into(),
            namespace: namespace.into(),
            verified: registry.counter("heddle_jwt_verified_total", help, &labels),
            registry: registry.clone(),
            refused: RefCell::default(),
        }
    }

    /// Whether this is the gate.
    pub(crate) fn is_of(&self, gate: &Arc<Gate>) -> bool {
        Arc::ptr_eq(&self.gate, gate)
    }

    /// Decides about a request that carries this mark.
    ///
    /// # Errors
    /// The word that refuses it. Boxed because it is rare.
    pub(crate) fn admit<H: Head>(
        &self,
        head: &H,
        mark: Option<&[u8]>,
        now: SystemTime,
    ) -> Result<Admission, Box<Word>> {
        let decided = self.gate.admit(head, mark, &mut self.cache.borrow_mut(), now);
        match decided {
            Ok(admission) => {
                for _ in 0..admission.verified {
                    self.verified.increment();
                }
                Ok(admission)
            }
            Err(denied) => {
                self.count(&denied);
                Err(Box::new(word(&denied)))
            }
        }
    }

    /// Whether headers tell claims to the application.
    pub(crate) fn tells_claims(&self) -> bool {
        self.gate.tells_claims()
    }

    /// Whether a token is needed, whatever is said.
    pub(crate) fn refuses_bytes(&self) -> bool {
        self.gate.refuses_bytes().is_some()
    }

    fn count(&self, denied: &Denied<'_>) {
        let (policy, flaw) = (&denied.policy.source, denied.flaw);
        let mut refused = self.refused.borrow_mut();
        let counter = refused.entry((policy.clone(), flaw)).or_insert_with(|| {
            let help = "Requests refused for what they showed as a token, or for showing none.";
            let labels = [
                ("service", &*self.service),
                ("namespace", &*self.namespace),
                ("policy", &**policy),
                ("cause", flaw.as_str()),
            ];
            self.registry.counter("heddle_jwt_refused_total", help, &labels)
        });
        counter.increment();
    }
}

/// The refusal (RFC 6750, section 3): who shows no token is told nothing more (section 3.1).
fn word(denied: &Denied<'_>) -> Word {
    let challenge = match denied.flaw {
        Flaw::Missing | Flaw::Refused => "Bearer".to_owned(),
        flaw => format!("Bearer error=\"invalid_token\", error_description=\"{flaw}\""),
    };
    Word {
        policy: (&*denied.policy.source).into(),
        refused: Some(Reason::Unauthenticated),
        retry_after: None,
        message: denied.flaw.to_string(),
        fields: vec![("www-authenticate", challenge)],
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::jwt::Policy;

    #[test]
    fn a_refusal_says_what_is_wrong_with_a_token_and_nothing_where_there_is_none() {
        let policy = Policy { source: "shop/tokens".into(), required: true, providers: Box::default() };
        let told = |flaw| word(&Denied { policy: &policy, flaw }).fields[0].1.clone();
        assert_eq!(told(Flaw::Missing), "Bearer");
        let expected = "Bearer error=\"invalid_token\", error_description=\"the token has expired or does not say when it does\"";
        assert_eq!(told(Flaw::Expired), expected);
    }
}
