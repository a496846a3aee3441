//! Keeps the names followed that are endpoints of services: asks the host's
//! resolvers when `names` says so, on the agent's thread, and tells what changed.

use std::collections::HashSet;
use std::net::IpAddr;
use std::time::Instant;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::sync::{mpsc, watch};

use super::answer::{self, Answer, Family};
use super::forward::{Forwarder, Transport, host_has_ipv6};
use super::message::Query;
use super::names::{LIMIT, Names, Wanted};
use crate::policy::rng::Rng;
use crate::telemetry::metrics::Registry;

/// Questions in progress.
const QUESTIONS: usize = 64;

/// A name and all of its addresses.
pub(crate) type Resolution = (Box<str>, Vec<IpAddr>);

/// The other end of a [`Resolver`].
#[derive(Debug)]
pub(crate) struct Resolutions {
    wanted: watch::Sender<Wanted>,
    /// Changes of what is wanted.
    changes: u64,
    found: mpsc::Receiver<Resolution>,
}

impl Resolutions {
    /// Has these names followed and no others. One that is new among them is told even if its
    /// addresses are those that it had when it was followed before.
    pub(crate) fn follow(&mut self, names: HashSet<Box<str>>) {
        let changes = &mut self.changes;
        self.wanted.send_if_modified(|wanted| {
            if names.len() == wanted.len() && names.iter().all(|name| wanted.contains_key(name)) {
                return false;
            }
            *changes += 1;
            let since = |name: &str| wanted.get(name).copied().unwrap_or(*changes);
            *wanted = names.into_iter().map(|name| (name.clone(), since(&name))).collect();
            true
        });
    }

    /// The next name of which there is news: at first when it was asked for,
    /// then when its addresses are others. Never, once the resolver has ended.
    pub(crate) async fn next(&mut self) -> Resolution {
        match self.found.recv().await {
            Some(found) => found,
            None => std::future::pending().await,
        }
    }
}

/// Resolves names until nobody listens.
pub(crate) struct Resolver {
    wanted: watch::Receiver<Wanted>,
    found: mpsc::Sender<Resolution>,
    forwarder: Forwarder,
    ipv6: fn() -> bool,
    metrics: Registry,
    rng: Rng,
}

/// A resolver that asks by `forwarder`, and its other end.
pub(crate) fn resolver(forwarder: Forwarder, metrics: Registry) -> (Resolver, Resolutions) {
    use std::hash::{BuildHasher, RandomState};
    let ((wanting, wanted), (found, finds)) = (watch::channel(Wanted::new()), mpsc::channel(QUESTIONS));
    let rng = Rng::new(RandomState::new().hash_one(0_u8));
    let resolver = Resolver { wanted, found, forwarder, ipv6: host_has_ipv6, metrics, rng };
    (resolver, Resolutions { wanted: wanting, changes: 0, found: finds })
}

impl Resolver {
    /// Runs until its other end is gone.
    pub(crate) async fn run(mut self) {
        let mut names = Names::default();
        let mut failing: HashSet<(Box<str>, Family)> = HashSet::new();
        let mut questions = FuturesUnordered::new();
        loop {
            for (name, family) in names.ask(QUESTIONS - questions.len(), Instant::now()) {
                let (forwarder, ipv6) = (self.forwarder.clone(), self.ipv6);
                questions.push(async move {
                    let answer = ask(&forwarder, &name, family, ipv6).await;
                    (name, family, answer)
                });
            }
            // With all questions in progress, the next waits for one of them.
            let next = names.next().filter(|_| questions.len() < QUESTIONS);
            let due = async {
                match next {
                    Some(next) => tokio::time::sleep_until(next.into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                changed = self.wanted.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    let wanted = self.wanted.borrow_and_update().clone();
                    failing.retain(|(name, _)| wanted.contains_key(name));
                    for refused in names.follow(&wanted, Instant::now()) {
                        tracing::warn!(name = %refused, "{LIMIT} names are resolved already; this one is not");
                        if self.found.send((refused, Vec::new())).await.is_err() {
                            return;
                        }
                    }
                }
                () = due => {}
                Some((name, family, answer)) = questions.next() => {
                    self.note(&mut failing, &name, family, &answer);
                    let news = names.answered(&name, family, answer, &self.rng, Instant::now());
                    if let Some(addresses) = news && self.found.send((name, addresses)).await.is_err() {
                        return;
                    }
                }
            }
        }
    }

    /// Counts an answer, and says so when a name begins or ceases to fail.
    fn note(&self, failing: &mut HashSet<(Box<str>, Family)>, name: &str, family: Family, answer: &Answer) {
        let result = match answer {
            Answer::Addresses(..) => "found",
            Answer::Nothing => "none",
            Answer::Failed => "failed",
        };
        self.metrics.dns_resolutions(result).increment();
        let key = (name.into(), family);
        if *answer == Answer::Failed {
            if failing.insert(key) {
                tracing::warn!(name, ?family, "no resolver answers; the last addresses stay in use");
            }
        } else if failing.remove(&key) {
            tracing::info!(name, ?family, "the resolvers answer again");
        }
    }
}

async fn ask(forwarder: &Forwarder, name: &str, family: Family, ipv6: fn() -> bool) -> Answer {
    // Whoever cannot reach such addresses has no use for them.
    if family == Family::V6 && !ipv6() {
        return Answer::Nothing;
    }
    let question = answer::question(name, family);
    let Ok(query) = Query::read(&question) else { return Answer::Failed };
    let mut reply = forwarder.ask(&query, Transport::Udp).await;
    if reply.as_ref().is_ok_and(|reply| answer::is_truncated(reply)) {
        reply = forwarder.ask(&query, Transport::Tcp).await;
    }
    match reply {
        Ok(reply) => answer::read(&reply, family),
        Err(error) => {
            tracing::debug!(%error, name, "no resolver of the host answered");
            Answer::Failed
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU8, Ordering};

    use tokio::net::UdpSocket;

    use super::*;
    use crate::dns::message::Code;

    #[tokio::test]
    async fn a_name_is_followed_until_nobody_wants_it() {
        let server = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let address = server.local_addr().unwrap();
        let (asked, last) = (Arc::new(AtomicU8::new(0)), Arc::new(AtomicU8::new(1)));
        let (count, told) = (asked.clone(), last.clone());
        tokio::spawn(async move {
            let mut buffer = [0; 512];
            loop {
                let (length, from) = server.recv_from(&mut buffer).await.unwrap();
                let query = Query::read(&buffer[..length]).unwrap();
                count.fetch_add(1, Ordering::SeqCst);
                let address = [[192, 0, 2, told.load(Ordering::SeqCst)].into()];
                server.send_to(&query.answer(Code::NoError, &address, 0), from).await.unwrap();
            }
        });
        let (resolver, mut resolutions) = resolver(Forwarder::to(vec![address]), Registry::new());
        tokio::spawn(Resolver { ipv6: || false, ..resolver }.run());
        resolutions.follow(["a.example".into()].into());
        assert_eq!(resolutions.next().await, ("a.example".into(), vec![[192, 0, 2, 1].into()]));
        last.store(2, Ordering::SeqCst);
        assert_eq!(resolutions.next().await, ("a.example".into(), vec![[192, 0, 2, 2].into()]));
        assert!(asked.load(Ordering::SeqCst) >= 2);
        resolutions.follow(["b.example".into()].into());
        assert_eq!(&*resolutions.next().await.0, "b.example");
        // Though the resolver sees only the last of these changes.
        resolutions.follow(HashSet::new());
        resolutions.follow(["b.example".into()].into());
        assert_eq!(resolutions.next().await, ("b.example".into(), vec![[192, 0, 2, 2].into()]));
    }
}
