//! A chunked body that is accepted is written so that reading it again gives the same.
#![no_main]

use heddle_sidecar::http1::body::{Body, Coding};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let mut body = Body::chunked(Coding::Chunked);
    let mut out = Vec::new();
    let Ok(taken) = body.relay(input, &mut out) else { return };
    assert!(taken <= input.len());
    if !body.is_complete() {
        assert!(body.end_of_input(&mut out).is_err());
        return;
    }
    let mut second = Body::chunked(Coding::Chunked);
    let mut again = Vec::new();
    assert_eq!(second.relay(&out, &mut again), Ok(out.len()));
    assert!(second.is_complete());
    assert_eq!(out, again);
    let mut plain = Body::chunked(Coding::Plain);
    let mut content = Vec::new();
    assert_eq!(plain.relay(input, &mut content), Ok(taken));
    assert_eq!(content.len() as u64, body.received());
});
