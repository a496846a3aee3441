//! Who a pod is, by its projected service account token.
//!
//! The API server judges the token (TokenReview, authentication.k8s.io/v1); it
//! knows whether the pod and the account still exist, which a signature
//! cannot say. Always holds: only a token for our own audience counts, so that
//! one that was shown to somebody else cannot be used here; only one that is
//! bound to a pod, so that it ends with the pod; and nothing is taken from the
//! token that the API server did not confirm.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::time::Duration;

use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec, TokenReviewStatus};
use kube::api::{Api, PostParams};
use parking_lot::Mutex;
use tokio::sync::Semaphore;

/// The audience that injected pods ask for.
pub(crate) const AUDIENCE: &str = "heddle.dev";

/// Reviews at once. A rolled-out cluster asks for thousands of certificates in
/// a minute; the API server answers a review in a few milliseconds.
const CONCURRENT: usize = 32;

/// Of those, questions on behalf of one address. A pod asks one; several behind one address still
/// get on, and one that floods with forged tokens leaves the places to others.
const CONCURRENT_PER_ADDRESS: usize = 8;

/// On waiting for a place and on the review, each: together less than a sidecar waits for its certificate.
const LIMIT: Duration = Duration::from_secs(4);

/// Far more than any API server signs; what is longer is not worth asking about.
const MAX_TOKEN: usize = 16 * 1024;

const POD_NAME: &str = "authentication.kubernetes.io/pod-name";
const POD_UID: &str = "authentication.kubernetes.io/pod-uid";

/// Asks the API server.
pub(crate) struct Reviewer {
    reviews: Api<TokenReview>,
    places: Semaphore,
    asking: Mutex<HashMap<IpAddr, usize>>,
}

/// A question that is being asked on behalf of an address.
struct Asking<'a> {
    asking: &'a Mutex<HashMap<IpAddr, usize>>,
    from: IpAddr,
}

impl<'a> Asking<'a> {
    /// `None` if there are as many as one address may have.
    fn begin(asking: &'a Mutex<HashMap<IpAddr, usize>>, from: IpAddr) -> Option<Self> {
        let from = from.to_canonical();
        let mut all = asking.lock();
        let count = all.entry(from).or_default();
        if *count >= CONCURRENT_PER_ADDRESS {
            return None;
        }
        *count += 1;
        Some(Self { asking, from })
    }
}

impl Drop for Asking<'_> {
    fn drop(&mut self) {
        let mut all = self.asking.lock();
        if let Some(count) = all.get_mut(&self.from) {
            *count -= 1;
            if *count == 0 {
                all.remove(&self.from);
            }
        }
    }
}

/// A pod and its service account.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PodAccount {
    pub(crate) namespace: String,
    pub(crate) account: String,
    /// The pod's name and uid, for the log.
    pub(crate) pod: String,
    pub(crate) uid: String,
}

/// Why a token is not accepted.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NotProved {
    /// The bearer's fault; another try changes nothing.
    #[error("the service account token is refused: {0}")]
    Refused(String),
    /// Nobody could say; worth another try.
    #[error("the service account token cannot be checked now: {0}")]
    Unknown(String),
}

impl Reviewer {
    pub(crate) fn new(client: kube::Client) -> Self {
        Self { reviews: Api::all(client), places: Semaphore::new(CONCURRENT), asking: Mutex::default() }
    }

    /// Whose `token` it is. `from` is the address of who presents it.
    pub(crate) async fn review(&self, token: &str, from: Option<IpAddr>) -> Result<PodAccount, NotProved> {
        if token.is_empty() || token.len() > MAX_TOKEN {
            return Err(NotProved::Refused(format!("its length is not between 1 and {MAX_TOKEN} bytes")));
        }
        let unknown = |reason: String| NotProved::Unknown(reason);
        let _asking = match from.map(|from| Asking::begin(&self.asking, from)) {
            Some(None) => {
                return Err(unknown(format!(
                    "{CONCURRENT_PER_ADDRESS} from the same address are being checked"
                )));
            }
            asking => asking,
        };
        let place = tokio::time::timeout(LIMIT, self.places.acquire()).await;
        let _place = match place {
            Ok(Ok(place)) => place,
            _ => return Err(unknown(format!("{CONCURRENT} others are being checked"))),
        };
        let review = TokenReview {
            spec: TokenReviewSpec {
                token: Some(token.to_owned()),
                audiences: Some(vec![AUDIENCE.to_owned()]),
            },
            ..TokenReview::default()
        };
        let parameters = PostParams::default();
        let asked = tokio::time::timeout(LIMIT, self.reviews.create(&parameters, &review)).await;
        let answer = asked
            .map_err(|_| unknown(format!("the API server did not answer within {LIMIT:?}")))?
            .map_err(|error| unknown(error.to_string()))?;
        judge(&answer.status.unwrap_or_default()).map_err(NotProved::Refused)
    }
}

/// What the API server's answer proves.
fn judge(status: &TokenReviewStatus) -> Result<PodAccount, String> {
    if status.authenticated != Some(true) {
        let reason = status.error.as_deref().filter(|reason| !reason.is_empty());
        return Err(reason.unwrap_or("the API server does not know it").to_owned());
    }
    // A server that knows no audiences returns none, and would accept a token that is meant for itself.
    let audiences = status.audiences.as_deref().unwrap_or_default();
    if !audiences.iter().any(|audience| audience == AUDIENCE) {
        return Err(format!("it is not for audience {AUDIENCE}"));
    }
    let user = status.user.clone().unwrap_or_default();
    let username = user.username.unwrap_or_default();
    let account = username.strip_prefix("system:serviceaccount:").and_then(|rest| rest.split_once(':'));
    let Some((namespace, account)) = account.filter(|(ns, name)| !ns.is_empty() && !name.is_empty()) else {
        return Err(format!("{username:?} is no service account"));
    };
    let extra = user.extra.unwrap_or_default();
    let (Some(pod), Some(uid)) = (single(&extra, POD_NAME), single(&extra, POD_UID)) else {
        return Err("it is not bound to a pod".into());
    };
    Ok(PodAccount { namespace: namespace.into(), account: account.into(), pod: pod.into(), uid: uid.into() })
}

fn single<'a>(extra: &'a BTreeMap<String, Vec<String>>, key: &str) -> Option<&'a str> {
    match extra.get(key)?.as_slice() {
        [value] if !value.is_empty() => Some(value),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::authentication::v1::UserInfo;

    use super::*;

    fn status(username: &str, audiences: &[&str], extra: &[(&str, &[&str])]) -> TokenReviewStatus {
        let extra = extra
            .iter()
            .map(|(key, values)| ((*key).to_owned(), values.iter().map(|v| (*v).to_owned()).collect()))
            .collect();
        TokenReviewStatus {
            authenticated: Some(true),
            audiences: Some(audiences.iter().map(|a| (*a).to_owned()).collect()),
            user: Some(UserInfo {
                username: Some(username.into()),
                extra: Some(extra),
                ..UserInfo::default()
            }),
            error: None,
        }
    }

    const USERS: &str = "system:serviceaccount:shop:users";
    const BOUND: &[(&str, &[&str])] = &[(POD_NAME, &["users-1"]), (POD_UID, &["0a1b"])];

    #[test]
    fn a_bound_token_of_our_audience_is_the_pods() {
        let expected = PodAccount {
            namespace: "shop".into(),
            account: "users".into(),
            pod: "users-1".into(),
            uid: "0a1b".into(),
        };
        assert_eq!(judge(&status(USERS, &[AUDIENCE], BOUND)), Ok(expected));
    }

    #[test]
    fn one_address_does_not_take_all_places() {
        let asking = Mutex::default();
        let flooding: Vec<_> =
            (0..CONCURRENT).filter_map(|_| Asking::begin(&asking, "10.0.0.9".parse().unwrap())).collect();
        assert_eq!(flooding.len(), CONCURRENT_PER_ADDRESS);
        assert!(Asking::begin(&asking, "::ffff:10.0.0.9".parse().unwrap()).is_none());
        assert!(Asking::begin(&asking, "10.0.0.8".parse().unwrap()).is_some());
        drop(flooding);
        assert!(asking.lock().is_empty(), "nothing is kept of addresses that ask nothing");
    }

    #[test]
    fn everything_else_is_refused() {
        let refused = |status: TokenReviewStatus, part: &str| {
            let reason = judge(&status).unwrap_err();
            assert!(reason.contains(part), "{reason}");
        };
        refused(TokenReviewStatus::default(), "does not know it");
        let error = Some("token has expired".to_owned());
        let expired = TokenReviewStatus { authenticated: Some(false), error, ..TokenReviewStatus::default() };
        refused(expired, "token has expired");
        refused(status(USERS, &[], BOUND), "audience");
        refused(status(USERS, &["https://kubernetes.default.svc"], BOUND), "audience");
        refused(status(USERS, &[AUDIENCE], &[]), "not bound");
        refused(status(USERS, &[AUDIENCE], &[(POD_NAME, &["users-1"])]), "not bound");
        refused(status(USERS, &[AUDIENCE], &[(POD_NAME, &["a", "b"]), (POD_UID, &["0a1b"])]), "not bound");
        for name in ["alice", "system:node:n1", "system:serviceaccount:shop", "system:serviceaccount::users"]
        {
            refused(status(name, &[AUDIENCE], BOUND), "no service account");
        }
    }
}
