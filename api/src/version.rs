//! Versions, and how far apart they may be: a mesh's parts work together within
//! one minor version.

use std::cmp::Ordering;
use std::fmt;
use std::str::FromStr;

/// The version of this program, as text.
pub const OWN: &str = env!("CARGO_PKG_VERSION");

/// The three numbers of a version; what follows them is left aside.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    major: u64,
    minor: u64,
    patch: u64,
}

/// A text that is no version.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no version such as 1.2.3")]
pub struct NoVersion(String);

/// How one version stands to another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Skew {
    /// They work together.
    Within,
    /// It is more than one minor version older.
    TooOld,
    /// It is more than one minor version newer.
    TooNew,
}

impl Version {
    /// That of this program.
    ///
    /// # Panics
    /// Never: all parts are built with one version.
    pub fn own() -> Self {
        OWN.parse().expect("this package has a version")
    }

    /// Major and minor.
    pub const fn of(major: u64, minor: u64) -> Self {
        Self { major, minor, patch: 0 }
    }

    /// Major and minor, by which parts work together.
    pub const fn minor(self) -> (u64, u64) {
        (self.major, self.minor)
    }

    /// How it stands to `reference`.
    pub fn skew(self, reference: Self) -> Skew {
        match self.major.cmp(&reference.major) {
            Ordering::Less => Skew::TooOld,
            Ordering::Greater => Skew::TooNew,
            Ordering::Equal if self.minor + 1 < reference.minor => Skew::TooOld,
            Ordering::Equal if self.minor > reference.minor + 1 => Skew::TooNew,
            Ordering::Equal => Skew::Within,
        }
    }
}

impl FromStr for Version {
    type Err = NoVersion;

    fn from_str(text: &str) -> Result<Self, NoVersion> {
        let no_version = || NoVersion(text.into());
        let numbers = text.trim_start_matches('v').split(['-', '+']).next().unwrap_or_default();
        let mut numbers = numbers.split('.').map(|number| number.parse::<u32>().map(u64::from));
        let mut next = || numbers.next().and_then(Result::ok).ok_or_else(no_version);
        let version = Self { major: next()?, minor: next()?, patch: next()? };
        if numbers.next().is_some() { Err(no_version()) } else { Ok(version) }
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.patch)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn version(text: &str) -> Version {
        text.parse().unwrap()
    }

    #[test]
    fn versions_read_as_kubernetes_and_we_write_them() {
        assert_eq!(version("v1.32.4-gke.100").to_string(), "1.32.4");
        assert_eq!(version("1.2.3+k3s1"), version("1.2.3"));
        assert!(version("1.10.0") > version("1.9.9"));
        for text in ["", "1", "1.2", "1.2.3.4", "v0.x.0", "latest", "99999999999.0.0"] {
            assert!(text.parse::<Version>().is_err(), "{text}");
        }
    }

    #[test]
    fn one_minor_version_either_way_works_together() {
        let reference = version("1.5.2");
        for (text, skew) in [
            ("1.5.0", Skew::Within),
            ("1.4.9", Skew::Within),
            ("1.6.0", Skew::Within),
            ("1.3.9", Skew::TooOld),
            ("1.7.0", Skew::TooNew),
            ("0.9.0", Skew::TooOld),
            ("2.0.0", Skew::TooNew),
        ] {
            assert_eq!(version(text).skew(reference), skew, "{text}");
        }
    }
}
