//! A response head that is accepted is written so that reading it again gives the same.
#![no_main]

use heddle_sidecar::http1::response::{Exchange, ResponseHead, Role};
use heddle_sidecar::http1::{HeadScan, Method, Origin, Version};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let Some((flags, input)) = input.split_first() else { return };
    let exchange = Exchange {
        method: [Method::Get, Method::Head, Method::Connect, Method::Post][usize::from(flags & 3)],
        client: if flags & 4 == 0 { Version::Http11 } else { Version::Http10 },
        upgrade: flags & 8 != 0,
        origin: if flags & 16 == 0 { Origin::Outside } else { Origin::Mesh },
    };
    let mut out = Vec::new();
    let parsed = ResponseHead::parse(input, &mut HeadScan::default(), &exchange, &mut out);
    let Ok(Some(head)) = parsed else {
        assert!(out.is_empty());
        return;
    };
    head.finish(true, &mut out);
    if out.is_empty() {
        assert!(head.role == Role::Interim && exchange.client == Version::Http10);
        return;
    }
    let mut again = Vec::new();
    let second = ResponseHead::parse(&out, &mut HeadScan::default(), &exchange, &mut again)
        .expect("what we write is acceptable")
        .expect("and complete");
    assert_eq!(second.consumed, out.len(), "nothing can be smuggled behind its end");
    assert_eq!((head.status, head.role), (second.status, second.role));
    assert_eq!(head.body.is_complete(), second.body.is_complete());
});
