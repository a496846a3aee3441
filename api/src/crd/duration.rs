//! Gateway API durations (GEP-2257): `10s`, `1h30m`, `250ms`. A strict subset
//! of Go's: up to four parts of up to five digits with a unit.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// The grammar, as the CRD schemas carry it.
const PATTERN: &str = "^([0-9]{1,5}(h|m|s|ms)){1,4}$";

/// Four parts of at most five digits and two letters.
const MAX_LENGTH: usize = 28;

/// A duration as manifests write it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct GatewayDuration(Duration);

/// A text that is no Gateway API duration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no duration (such as 10s, 250ms or 1h30m)")]
pub struct InvalidDuration(String);

impl GatewayDuration {
    /// The time it stands for.
    pub fn get(self) -> Duration {
        self.0
    }

    /// Whether it is zero, which where it is allowed means "no limit".
    pub fn is_zero(self) -> bool {
        self.0.is_zero()
    }
}

impl From<Duration> for GatewayDuration {
    fn from(time: Duration) -> Self {
        Self(time)
    }
}

impl FromStr for GatewayDuration {
    type Err = InvalidDuration;

    fn from_str(text: &str) -> Result<Self, InvalidDuration> {
        let invalid = || InvalidDuration(text.into());
        let mut rest = text;
        let mut total = Duration::ZERO;
        let mut parts = 0;
        while !rest.is_empty() || parts == 0 {
            let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
            parts += 1;
            if digits == 0 || digits > 5 || parts > 4 {
                return Err(invalid());
            }
            let number: u64 = rest[..digits].parse().map_err(|_| invalid())?;
            rest = &rest[digits..];
            let letters = rest.bytes().take_while(u8::is_ascii_alphabetic).count();
            total += match &rest[..letters] {
                "h" => Duration::from_secs(number * 3600),
                "m" => Duration::from_secs(number * 60),
                "s" => Duration::from_secs(number),
                "ms" => Duration::from_millis(number),
                _ => return Err(invalid()),
            };
            rest = &rest[letters..];
        }
        Ok(Self(total))
    }
}

impl fmt::Display for GatewayDuration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (seconds, millis) = (self.0.as_secs(), self.0.subsec_millis());
        let parts =
            [(seconds / 3600, "h"), (seconds / 60 % 60, "m"), (seconds % 60, "s"), (u64::from(millis), "ms")];
        for (number, unit) in parts.iter().filter(|(number, _)| *number > 0) {
            write!(f, "{number}{unit}")?;
        }
        if self.0.is_zero() { f.write_str("0s") } else { Ok(()) }
    }
}

impl Serialize for GatewayDuration {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for GatewayDuration {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Cow::<str>::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

impl JsonSchema for GatewayDuration {
    fn schema_name() -> Cow<'static, str> {
        "Duration".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "pattern": PATTERN, "maxLength": MAX_LENGTH })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn parts_add_up() {
        for (text, millis) in [
            ("0s", 0),
            ("10s", 10_000),
            ("250ms", 250),
            ("1h30m", 5_400_000),
            ("99999h99999m99999s99999ms", (99_999 * 3600 + 99_999 * 60 + 99_999) * 1000 + 99_999),
        ] {
            let duration: GatewayDuration = text.parse().unwrap();
            assert_eq!(duration.get(), Duration::from_millis(millis), "{text}");
        }
    }

    #[test]
    fn what_the_grammar_excludes_is_refused() {
        for text in [
            "",
            "10",
            "s",
            "1.5s",
            "-1s",
            "100000s",
            "1d",
            "1s ",
            "1us",
            "1h1h1h1h1h",
            "1S",
            "1s1",
            "\u{661}s",
        ] {
            assert!(text.parse::<GatewayDuration>().is_err(), "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn what_is_written_reads_back(h in 0u64..99999, m in 0u64..60, s in 0u64..60, ms in 0u64..1000) {
            let duration = GatewayDuration(Duration::from_millis(((h * 60 + m) * 60 + s) * 1000 + ms));
            prop_assert_eq!(duration.to_string().parse::<GatewayDuration>().unwrap(), duration);
        }
    }
}
