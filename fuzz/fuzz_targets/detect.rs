//! What a connection speaks is told by its first bytes however they arrive: what a part of them
//! has settled stays.
#![no_main]

use heddle_sidecar::detect::{Verdict, detect};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let Some((part, input)) = input.split_first() else { return };
    let whole = detect(input);
    let first = detect(&input[..input.len() * usize::from(*part) / 255]);
    assert!(first == Verdict::Undecided || first == whole, "{first:?} became {whole:?}");
});
