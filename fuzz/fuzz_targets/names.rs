//! Names, identities, durations and keys that are accepted mean the same when they are written and read again.
#![no_main]

use heddle_api::crd::GatewayDuration;
use heddle_api::join_token::JoinToken;
use heddle_api::jwk::{KeySet, MAX_KEYS};
use heddle_api::name::{DEFAULT_CLUSTER_DOMAIN, ServiceName};
use heddle_api::pattern::Pattern;
use heddle_api::spiffe::{SpiffeId, TrustDomain};
use heddle_api::version::Version;
use heddle_sidecar::settings::{HealthSpec, Label, PortSpec};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    if let Ok(set) = KeySet::parse(input) {
        assert!((1..=MAX_KEYS).contains(&set.keys.len()));
        assert!(set.keys.iter().all(|key| !key.algorithms.is_empty()));
    }
    let Ok(text) = std::str::from_utf8(input) else { return };
    if let Ok(id) = text.parse::<SpiffeId>() {
        let domain: TrustDomain = id.trust_domain().parse().expect("its trust domain is one");
        assert_eq!(SpiffeId::new(&domain, id.namespace(), id.account()), Ok(id));
    }
    if let Some(name) = ServiceName::from_host(text, "shop", DEFAULT_CLUSTER_DOMAIN) {
        let host = format!("{}.{}.svc.{DEFAULT_CLUSTER_DOMAIN}.", name.name(), name.namespace());
        assert_eq!(ServiceName::from_host(&host, "", DEFAULT_CLUSTER_DOMAIN), Some(name));
    }
    if let Ok(duration) = text.parse::<GatewayDuration>() {
        assert!(duration.get().as_secs() < 99_999 * 3600 * 5);
    }
    if let Ok(pattern) = Pattern::new(text) {
        let _ = pattern.matches(input);
    }
    // Whatever the text, these end without a panic.
    let _ = (JoinToken::read(text), text.parse::<Version>());
    let _ = (text.parse::<PortSpec>(), text.parse::<HealthSpec>(), text.parse::<Label>());
});
