use proptest::prelude::*;

use super::*;

fn normal(target: &str) -> Result<String, BadPath> {
    let mut out = b"GET ".to_vec();
    let info = path(target.as_bytes(), &mut out)?;
    assert_eq!(info.start, 4);
    assert!(matches!(out.get(info.end), None | Some(b'?')));
    Ok(String::from_utf8(out[4..].to_vec()).expect("ASCII"))
}

#[test]
fn paths_have_one_form() {
    for (target, expected) in [
        ("/", "/"),
        ("/a/b", "/a/b"),
        ("/a/b/", "/a/b/"),
        ("/a?b=/../c//%2f%zz", "/a?b=/../c//%2f%zz"),
        ("/?", "/?"),
        ("/a/./b", "/a/b"),
        ("/a/.", "/a/"),
        ("/.", "/"),
        ("/..", "/"),
        ("/../../a", "/a"),
        ("/a/../b", "/b"),
        ("/a/b/..", "/a/"),
        ("/a/b/../", "/a/"),
        ("/a/b/%2e%2E/c", "/a/c"),
        ("/a/.%2e/c", "/c"),
        ("/a/%2e/c?x", "/a/c?x"),
        ("/a/%2e%2e?x", "/?x"),
        ("//", "/"),
        ("//a///b//", "/a/b/"),
        ("/a//../b", "/b"),
        ("/a/..//b", "/b"),
        ("/...", "/..."),
        ("/.a/..b/c..", "/.a/..b/c.."),
        ("/%41%7e%2d%5F", "/A~-_"),
        ("/%c3%a9", "/%C3%A9"),
        ("/%252e%252e/a", "/%252e%252e/a"),
        ("/a%20b", "/a%20b"),
        ("/{id}|<x>^`\"[0]", "/%7Bid%7D%7C%3Cx%3E%5E%60%22%5B0%5D"),
        ("/a;b=c,d:@!$&'()*+=", "/a;b=c,d:@!$&'()*+="),
        ("/a.;b/..c;d", "/a.;b/..c;d"),
    ] {
        assert_eq!(normal(target).as_deref(), Ok(expected), "{target}");
    }
}

#[test]
fn what_servers_read_differently_is_refused() {
    for (target, expected) in [
        ("", BadPath::NotAbsolute),
        ("a", BadPath::NotAbsolute),
        ("*", BadPath::NotAbsolute),
        ("?a", BadPath::NotAbsolute),
        ("http://a/b", BadPath::NotAbsolute),
        ("/%", BadPath::BadEscape),
        ("/%4", BadPath::BadEscape),
        ("/%4/", BadPath::BadEscape),
        ("/%4?", BadPath::BadEscape),
        ("/%g0", BadPath::BadEscape),
        ("/a%2fb", BadPath::EncodedSeparator),
        ("/..%2F", BadPath::EncodedSeparator),
        ("/a%5cb", BadPath::EncodedSeparator),
        ("/a%00", BadPath::EncodedSeparator),
        ("/a\\b", BadPath::Backslash),
        ("/a b", BadPath::Control),
        ("/a\u{1}", BadPath::Control),
        ("/a\u{7f}", BadPath::Control),
        ("/a?b c", BadPath::Control),
        ("/a?\r\n", BadPath::Control),
        ("/é", BadPath::NotAscii),
        ("/a#b", BadPath::Fragment),
        ("/a?b#c", BadPath::Fragment),
        ("/a/..;x/b", BadPath::DotParameters),
        ("/a/.;/b", BadPath::DotParameters),
        ("/%2e%2e;", BadPath::DotParameters),
    ] {
        assert_eq!(normal(target), Err(expected), "{target:?}");
    }
}

#[test]
fn an_error_leaves_the_buffer_as_it_was() {
    let mut out = b"before".to_vec();
    assert!(path(b"/a/b/%zz", &mut out).is_err());
    assert_eq!(out, b"before");
}

#[test]
fn dots_above_the_root_do_not_touch_what_is_in_the_buffer() {
    let mut out = b"GET /before".to_vec();
    let info = path(b"/../../a", &mut out).expect("valid");
    assert_eq!(out, b"GET /before/a");
    assert_eq!(info.path(&out), b"/a");
}

/// The same in steps, each as the RFC or the module's text says it.
fn oracle(target: &[u8]) -> Option<Vec<u8>> {
    let (raw, query) = match target.iter().position(|&byte| byte == b'?') {
        Some(at) => target.split_at(at),
        None => (target, &b""[..]),
    };
    if raw.first() != Some(&b'/') || query.iter().any(|&b| b <= b' ' || b == 0x7F || b == b'#') {
        return None;
    }
    let mut decoded = Vec::new();
    let mut rest = raw;
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        if byte == b'%' {
            let digits = std::str::from_utf8(after.get(..2)?).ok()?;
            if !digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
                return None;
            }
            rest = &after[2..];
            match u8::from_str_radix(digits, 16).ok()? {
                0 | b'/' | b'\\' => return None,
                byte if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) => decoded.push(byte),
                byte => decoded.extend_from_slice(format!("%{byte:02X}").as_bytes()),
            }
        } else if b"\"<>[]^`{|}".contains(&byte) {
            decoded.extend_from_slice(format!("%{byte:02X}").as_bytes());
        } else if !byte.is_ascii_graphic() || byte == b'\\' || byte == b'#' {
            return None;
        } else {
            decoded.push(byte);
        }
    }
    let segments: Vec<&[u8]> = decoded[1..].split(|&byte| byte == b'/').collect();
    if segments.iter().any(|segment| segment.starts_with(b".;") || segment.starts_with(b"..;")) {
        return None;
    }
    let mut kept: Vec<&[u8]> = Vec::new();
    for segment in &segments {
        match *segment {
            b"" | b"." => {}
            b".." => drop(kept.pop()),
            segment => kept.push(segment),
        }
    }
    let directory = matches!(*segments.last()?, b"" | b"." | b"..");
    let mut out = Vec::new();
    for segment in &kept {
        out.push(b'/');
        out.extend_from_slice(segment);
    }
    if directory {
        out.push(b'/');
    }
    out.extend_from_slice(query);
    Some(out)
}

/// Targets made of the pieces that matter, so that they meet often.
fn target() -> impl Strategy<Value = Vec<u8>> {
    let piece = prop_oneof![
        12 => prop::sample::select(vec![
            "/", "/", "/", ".", ".", "..", "a", "bc", "%2e", "%2E", "/../", "/./", "//", "%41", "%3b", "%c3", "{",
        ])
        .prop_map(|piece| piece.as_bytes().to_vec()),
        1 => prop::sample::select(vec!["%2f", "%5C", "%00", "\\", "%", "%4", "#", "?", " ", ";"])
            .prop_map(|piece| piece.as_bytes().to_vec()),
        1 => any::<u8>().prop_map(|byte| vec![byte]),
    ];
    prop::collection::vec(piece, 0..16).prop_map(|pieces| {
        let mut target = b"/".to_vec();
        target.extend(pieces.concat());
        target
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4096))]

    /// Equals the oracle, and what comes out is its own normal form.
    #[test]
    fn normalisation_equals_an_oracle_and_is_a_fixed_point(target in target()) {
        let mut out = Vec::new();
        let result = path(&target, &mut out);
        prop_assert_eq!(result.is_ok().then(|| out.clone()), oracle(&target));
        if let Ok(info) = result {
            let mut again = Vec::new();
            prop_assert_eq!(path(&out, &mut again), Ok(info));
            prop_assert_eq!(&again, &out);
            let path = info.path(&out);
            prop_assert!(path.starts_with(b"/"));
            prop_assert!(path.split(|&byte| byte == b'/').all(|segment| segment != b"." && segment != b".."));
            prop_assert!(!path.windows(2).any(|pair| pair == b"//"));
        }
    }
}
