//! Whatever the control plane says of a service is put into force or refused, and then decides about requests.
#![no_main]

use heddle_api::discovery::{unknown_fields, v1};
use heddle_api::name::ServiceName;
use heddle_sidecar::explain::{Question, Service};
use libfuzzer_sys::fuzz_target;
use prost::Message;

/// A field that nobody has: number 900, a varint, with the value 1.
const UNKNOWN: [u8; 3] = [0xa0, 0x38, 1];

fuzz_target!(|input: &[u8]| {
    let Ok(message) = v1::Service::decode(input) else { return };
    let known = message.encode_to_vec();
    assert!(unknown_fields(&message, &known).is_empty(), "what we write we know");
    let newer = [&known[..], &UNKNOWN].concat();
    assert_eq!(unknown_fields(&message, &newer).to_string(), "900");
    let Ok(name) = ServiceName::new(&message.namespace, &message.name) else { return };
    let Ok(service) = Service::decode(&name, "shop", input) else { return };
    for port in service.ports().take(4) {
        let question = Question {
            port,
            namespace: "shop".into(),
            method: "GET".into(),
            path: "/a/b?c=d".into(),
            host: "users".into(),
            headers: vec![("x-user".into(), "1".into())],
        };
        let decided = service.decide(&question);
        assert!(decided.is_ok(), "a sound question is answered: {decided:?}");
    }
});
