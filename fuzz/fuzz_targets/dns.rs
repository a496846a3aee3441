//! Whatever arrives as a query or as an answer of DNS is read to its end, and what we write is
//! a query or an answer.
#![no_main]

use heddle_sidecar::dns::answer::{Answer, Family, question, read};
use heddle_sidecar::dns::message::{Code, Query};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    for family in Family::ALL {
        if let Answer::Addresses(addresses, _) = read(input, family) {
            assert!(addresses.is_sorted() && (1..=64).contains(&addresses.len()));
            assert!(addresses.iter().all(|address| address.is_ipv6() == (family == Family::V6)));
        }
    }
    let Ok(query) = Query::read(input) else { return };
    assert!(query.name.len() < 255 && !query.name.bytes().any(|byte| byte.is_ascii_uppercase()));
    let reply = query.reply(Code::NxDomain);
    assert!(reply.len() <= input.len() && query.is_answered_by(&reply, [reply[0], reply[1]]));
    assert_eq!(read(&reply, Family::V4), Answer::Nothing);
    // A name of hosts is the same when we ask for it.
    if !query.name.is_empty() && !query.name.contains('\\') {
        let ours = question(&query.name, Family::V4);
        assert_eq!(Query::read(&ours).expect("it is a query").name, query.name);
    }
});
