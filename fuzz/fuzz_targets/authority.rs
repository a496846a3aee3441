//! An authority that is accepted means the same to the `http` crate, and
//! header rules take any bytes.
#![no_main]

use heddle_sidecar::sanitize::answer::Form;
use heddle_sidecar::sanitize::authority::authority;
use heddle_sidecar::sanitize::headers::{
    Known, is_forbidden_trailer, is_valid_name, is_valid_value, may_be_nominated,
};
use http::uri;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    if let Ok(parsed) = authority(input) {
        let theirs = uri::Authority::try_from(input).expect("valid for others");
        assert_eq!(theirs.host().trim_matches(['[', ']']), parsed.host);
        assert_eq!(theirs.port_u16(), parsed.port);
    }
    assert_eq!(is_valid_value(input), http::HeaderValue::from_bytes(input).is_ok());
    if Known::of(input).is_some() {
        assert!(is_forbidden_trailer(input));
        assert_eq!(Known::of(input), Known::of(&input.to_ascii_uppercase()));
    }
    // Whatever the bytes, these end without a panic.
    let _ = (is_valid_name(input), may_be_nominated(input), Form::of(Some(input), Some(input)));
});
