//! A request head that is accepted is written so that reading it again gives the same.
#![no_main]

use heddle_sidecar::http1::request::RequestHead;
use heddle_sidecar::http1::{HeadScan, Origin};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let mut out = Vec::new();
    let parsed = RequestHead::parse(input, &mut HeadScan::default(), Origin::Outside, &mut out);
    let Ok(Some(head)) = parsed else {
        assert!(out.is_empty());
        return;
    };
    head.finish(&mut out);
    assert!(head.consumed <= input.len());
    let mut again = Vec::new();
    let second = RequestHead::parse(&out, &mut HeadScan::default(), Origin::Outside, &mut again)
        .expect("what we write is acceptable")
        .expect("and complete");
    second.finish(&mut again);
    assert_eq!(out, again);
    assert_eq!(second.consumed, out.len(), "nothing can be smuggled behind its end");
    assert_eq!(head.method, second.method);
    assert_eq!(head.authority.of(&out), second.authority.of(&again));
    assert_eq!(head.body.is_complete(), second.body.is_complete());
});
