//! Whatever is shown as a token, taking it apart and looking at it ends well, and nothing is accepted
//! that no key has signed.
#![no_main]

use std::sync::OnceLock;
use std::time::{Duration, SystemTime};

use heddle_sidecar::policy::jwt::{Flaw, Key, Material, Provider, Token};
use libfuzzer_sys::fuzz_target;

fn provider() -> &'static Provider {
    static PROVIDER: OnceLock<Provider> = OnceLock::new();
    PROVIDER.get_or_init(|| {
        let key = Key::new("", ["HS256"], Material::Secret(&[7; 32])).expect("it is a key");
        Provider {
            name: "a".into(),
            issuer: "a".into(),
            audiences: Box::default(),
            keys: [key].into(),
            keys_from: Box::default(),
            locations: Box::default(),
            stripped: false,
            headers: [("a.b".into(), "x-a".parse().expect("it is a name"))].into(),
            lookalikes: Box::default(),
            skew: Duration::ZERO,
        }
    })
}

fuzz_target!(|text: &[u8]| {
    let Ok(token) = Token::parse(text) else { return };
    match token.verify(provider(), SystemTime::UNIX_EPOCH) {
        Ok(_) => panic!("nobody who does not know the key can sign"),
        Err(flaw) => assert!(matches!(flaw, Flaw::Issuer | Flaw::Key | Flaw::Signature)),
    }
});
