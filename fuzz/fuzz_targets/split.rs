//! However the bytes of a request arrive, the same is forwarded.
#![no_main]

use heddle_sidecar::http1::request::RequestHead;
use heddle_sidecar::http1::{HeadScan, Origin};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let Some((step, input)) = input.split_first() else { return };
    let whole = forward(input, input.len().max(1));
    assert_eq!(whole, forward(input, usize::from(*step).max(1)));
});

/// What is forwarded of a request that arrives in pieces of `step` bytes, and
/// how much it took; `None` if it is refused or incomplete.
fn forward(input: &[u8], step: usize) -> Option<(Vec<u8>, usize)> {
    let (mut scan, mut out) = (HeadScan::default(), Vec::new());
    let mut head: Option<RequestHead> = None;
    let mut taken = 0;
    let mut end = 0;
    while end < input.len() {
        end = (end + step).min(input.len());
        if head.is_none() {
            let Some(parsed) =
                RequestHead::parse(&input[..end], &mut scan, Origin::Outside, &mut out).ok()?
            else {
                continue;
            };
            parsed.finish(&mut out);
            taken = parsed.consumed;
            head = Some(parsed);
        }
        let body = &mut head.as_mut()?.body;
        taken += body.relay(&input[taken..end], &mut out).ok()?;
        if body.is_complete() {
            return Some((out, taken));
        }
    }
    None
}
