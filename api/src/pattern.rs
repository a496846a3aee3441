//! Regular expressions of routes: one dialect, and one measure of what they cost,
//! for whoever judges a route and for whoever matches by it.

use regex::bytes::{Regex, RegexBuilder};

/// A regular expression that must match the whole of a value, byte by byte.
#[derive(Debug, Clone)]
pub struct Pattern {
    regex: Regex,
    size: usize,
}

/// A regular expression that is malformed or too large to compile.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct BadPattern(String);

/// What one compiled expression may take, in bytes: ten of what people write fit, a repetition of
/// repetitions does not. Where a search cannot be kept in tables it goes through all of
/// an expression for each byte, so this bounds time, too.
pub const LARGEST: usize = 128 * 1024;

/// What the expressions of all routes at one port may take together in a sidecar, for the clients of
/// one namespace, in bytes by [`Pattern::size`]. More than any route may ask for alone, less than would be
/// missed. Sidecars refuse a service with more; the control plane leaves out routes that go beyond.
pub const LARGEST_SET: usize = 32 << 20;

/// The sizes that are told apart; each is tried in turn.
const SIZES: [usize; 3] = [8 * 1024, 32 * 1024, LARGEST];

/// The most memory that the search of one expression may keep per thread, in
/// bytes; beyond it the search starts its cache again.
const CACHE: usize = 64 * 1024;

impl Pattern {
    /// Compiles an expression of RE2's syntax, as Gateway API's other
    /// implementations have it: linear in time, without look-around and
    /// back-references, `\d`, `\s` and `\w` for ASCII.
    ///
    /// # Errors
    /// If it is malformed or too large.
    pub fn new(expression: &str) -> Result<Self, BadPattern> {
        let compile = |expression: &str, size: usize| {
            RegexBuilder::new(expression).unicode(false).size_limit(size).dfa_size_limit(CACHE).build()
        };
        let bad = |error: regex::Error| BadPattern(reason(&error.to_string()));
        // Alone first: `a)|(b` is an expression only inside the parentheses.
        compile(expression, LARGEST).map_err(bad)?;
        let whole = format!(r"\A(?:{expression})\z");
        for size in SIZES {
            match compile(&whole, size) {
                Ok(regex) => return Ok(Self { regex, size }),
                Err(regex::Error::CompiledTooBig(_)) if size < LARGEST => {}
                Err(error) => return Err(bad(error)),
            }
        }
        Err(BadPattern("it is too large".into()))
    }

    /// Whether it matches the whole value. A search takes its scratch memory
    /// from a pool that it fills once per thread; nothing is allocated after.
    pub fn matches(&self, value: &[u8]) -> bool {
        self.regex.is_match(value)
    }

    /// An upper bound of what it takes compiled, in bytes, rounded up coarsely.
    pub fn size(&self) -> usize {
        self.size
    }
}

/// A syntax error comes with a picture of the place; its last line says what is wrong.
fn reason(error: &str) -> String {
    error.lines().last().unwrap_or_default().trim_start_matches("error: ").to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_matches_the_whole_value_or_not_at_all() {
        let pattern = Pattern::new("a|bc+").unwrap();
        for (value, expected) in
            [("a", true), ("bccc", true), ("ab", false), ("xa", false), ("a\n", false), ("", false)]
        {
            assert_eq!(pattern.matches(value.as_bytes()), expected, "{value:?}");
        }
        assert!(Pattern::new(".*").unwrap().matches(&[0xFF]));
    }

    #[test]
    fn malformed_and_huge_patterns_are_refused() {
        for bad in ["(", "a)|(b", "(?=a)", r"(a)\1", "((a{1000}){1000}){1000}"] {
            assert!(Pattern::new(bad).is_err(), "{bad}");
        }
        assert_eq!(Pattern::new("/a(").unwrap_err().to_string(), "unclosed group");
    }

    #[test]
    fn what_people_write_is_small() {
        for (expression, size) in [
            ("v[0-9]+", 8 * 1024),
            ("/api/(users|orders)/[0-9a-f-]{36}(/.*)?", 8 * 1024),
            ("[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?", 32 * 1024),
        ] {
            let found = Pattern::new(expression).unwrap().size();
            assert!(found <= size, "{expression}: {found}");
        }
    }
}
