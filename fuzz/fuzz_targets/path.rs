//! A path that is accepted is in normal form, and its own normal form.
#![no_main]

use heddle_sidecar::sanitize::path::path;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|target: &[u8]| {
    let mut out = b"before".to_vec();
    let Ok(info) = path(target, &mut out) else {
        assert_eq!(out, b"before");
        return;
    };
    assert_eq!(info.start, 6);
    let (normal, tail) = (info.path(&out), &out[info.end..]);
    assert!(normal.starts_with(b"/"));
    assert!(normal.iter().all(|byte| byte.is_ascii_graphic() && !b"?#\\".contains(byte)));
    assert!(!normal.windows(2).any(|pair| pair == b"//"));
    assert!(normal.split(|&byte| byte == b'/').all(|segment| segment != b"." && segment != b".."));
    assert!(target.ends_with(tail), "the query is untouched");
    let mut again = b"before".to_vec();
    assert_eq!(path(&out[6..], &mut again), Ok(info));
    assert_eq!(again, out);
});
