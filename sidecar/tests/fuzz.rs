//! The targets of `fuzz/` on any compiler: what each of them holds is held here for its seeds and for
//! variations of them. An input that fuzzing finds becomes a seed, and so a test.
//!
//! The files are those that cargo-fuzz builds, with a macro in place of that of its engine.
#![allow(unused_attributes, reason = "as programs of their own they have no `main`")]

use std::fs;
use std::path::{Path, PathBuf};

use proptest::prelude::*;
use proptest::sample::{Index, select};
use proptest::test_runner::TestRunner;

extern crate self as libfuzzer_sys;

mod engine {
    /// Makes a function of a target.
    #[macro_export]
    macro_rules! fuzz_target {
        (|$input:ident: &[u8]| $body:block) => {
            pub(crate) fn run($input: &[u8]) {
                $body
            }
        };
    }
}

#[path = "../../fuzz/fuzz_targets/authority.rs"]
mod authority;
#[path = "../../fuzz/fuzz_targets/chunked_body.rs"]
mod chunked_body;
#[path = "../../fuzz/fuzz_targets/detect.rs"]
mod detect;
#[path = "../../fuzz/fuzz_targets/dns.rs"]
mod dns;
#[path = "../../fuzz/fuzz_targets/names.rs"]
mod names;
#[path = "../../fuzz/fuzz_targets/path.rs"]
mod path;
#[path = "../../fuzz/fuzz_targets/request_head.rs"]
mod request_head;
#[path = "../../fuzz/fuzz_targets/response_head.rs"]
mod response_head;
#[path = "../../fuzz/fuzz_targets/routing.rs"]
mod routing;
#[path = "../../fuzz/fuzz_targets/service.rs"]
mod service;
#[path = "../../fuzz/fuzz_targets/split.rs"]
mod split;
#[path = "../../fuzz/fuzz_targets/stale.rs"]
mod stale;
#[path = "../../fuzz/fuzz_targets/token.rs"]
mod token;
#[path = "../../fuzz/fuzz_targets/trace.rs"]
mod trace;

/// A target and its name.
type Target = (&'static str, fn(&[u8]));

/// In the order of their names.
const TARGETS: [Target; 14] = [
    ("authority", authority::run),
    ("chunked_body", chunked_body::run),
    ("detect", detect::run),
    ("dns", dns::run),
    ("names", names::run),
    ("path", path::run),
    ("request_head", request_head::run),
    ("response_head", response_head::run),
    ("routing", routing::run),
    ("service", service::run),
    ("split", split::run),
    ("stale", stale::run),
    ("token", token::run),
    ("trace", trace::run),
];

/// Variations of each target's seeds at least, and as many as `PROPTEST_CASES` says: so many take a second or
/// two for all of them together.
const VARIATIONS: u32 = 2000;

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz").join(name)
}

/// What a folder has in it, in the order of the names.
fn entries(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.expect("it can be read").path()).collect();
    paths.sort();
    paths
}

/// Bytes that mean something to one parser or another, and any others.
fn byte() -> impl Strategy<Value = u8> {
    prop_oneof![any::<u8>(), select(&b"\0\r\n \t:;=,./?#%&\"-[]019aZ"[..])]
}

/// A seed of which some places are replaced.
fn variation(seeds: Vec<Vec<u8>>) -> impl Strategy<Value = Vec<u8>> {
    let edit = (any::<Index>(), 0..4_usize, proptest::collection::vec(byte(), 0..4));
    (select(seeds), proptest::collection::vec(edit, 0..6)).prop_map(|(mut bytes, edits)| {
        for (place, gone, new) in edits {
            let start = place.index(bytes.len() + 1);
            let end = (start + gone).min(bytes.len());
            bytes.splice(start..end, new);
        }
        bytes
    })
}

#[test]
fn what_targets_hold_is_held_for_their_seeds_and_variations_of_them() {
    for (name, target) in TARGETS {
        let seeds: Vec<Vec<u8>> = entries(&folder("seeds").join(name))
            .iter()
            .map(|path| fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display())))
            .collect();
        for seed in &seeds {
            target(seed);
        }
        let usual = ProptestConfig::default();
        let cases = usual.cases.max(VARIATIONS);
        let mut runner = TestRunner::new(ProptestConfig { cases, ..usual });
        let held = runner.run(&variation(seeds), |input| {
            target(&input);
            Ok(())
        });
        held.unwrap_or_else(|failure| panic!("{name}: {failure}"));
    }
}

#[test]
fn each_target_is_here_and_is_built() {
    let manifest = fs::read_to_string(folder("Cargo.toml")).expect("it is there");
    let found: Vec<String> = entries(&folder("fuzz_targets"))
        .iter()
        .filter_map(|path| Some(path.file_stem()?.to_str()?.to_owned()))
        .collect();
    assert_eq!(found, TARGETS.map(|(name, _)| name), "a target is not in this file");
    for name in found {
        assert!(manifest.contains(&format!("name = \"{name}\"\n")), "{name} is not in Cargo.toml");
    }
}
