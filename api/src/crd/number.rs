//! Numbers that cannot be out of their range.

use std::borrow::Cow;
use std::fmt;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, de};

macro_rules! whole {
    ($(#[$doc:meta])* $name:ident($int:ident), $min:literal..=$max:expr, $schema:tt) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
        pub struct $name($int);

        impl $name {
            /// The number.
            pub fn get(self) -> $int {
                self.0
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                struct Visitor;

                impl Visitor {
                    fn outside<E: de::Error>(number: impl fmt::Display) -> E {
                        E::custom(format_args!("{number} is not between {} and {}", $min, $max))
                    }
                }

                impl de::Visitor<'_> for Visitor {
                    type Value = $name;

                    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                        write!(f, "a whole number between {} and {}", $min, $max)
                    }

                    fn visit_u64<E: de::Error>(self, number: u64) -> Result<$name, E> {
                        match $int::try_from(number) {
                            Ok(small) if ($min..=$max).contains(&small) => Ok($name(small)),
                            _ => Err(Self::outside(number)),
                        }
                    }

                    fn visit_i64<E: de::Error>(self, number: i64) -> Result<$name, E> {
                        u64::try_from(number).map_err(|_| Self::outside(number)).and_then(|n| self.visit_u64(n))
                    }
                }

                deserializer.deserialize_u64(Visitor)
            }
        }

        inline_schema!($name, $schema);
    };
}

macro_rules! real {
    ($(#[$doc:meta])* $name:ident, $min:literal..=$max:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, PartialOrd, Serialize)]
        pub struct $name(f64);

        impl $name {
            /// The number.
            pub fn get(self) -> f64 {
                self.0
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let number = f64::deserialize(deserializer)?;
                if ($min..=$max).contains(&number) {
                    Ok(Self(number))
                } else {
                    Err(de::Error::custom(format_args!("{number} is not between {} and {}", $min, $max)))
                }
            }
        }

        inline_schema!($name, { "type": "number", "minimum": $min, "maximum": $max });
    };
}

macro_rules! inline_schema {
    ($name:ident, $schema:tt) => {
        impl JsonSchema for $name {
            fn schema_name() -> Cow<'static, str> {
                stringify!($name).into()
            }

            fn inline_schema() -> bool {
                true
            }

            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!($schema)
            }
        }
    };
}

whole!(
    /// A share of a hundred.
    Percent(u8), 0..=100, { "type": "integer", "minimum": 0, "maximum": 100 }
);

whole!(
    /// A count of at least one.
    Positive(u32), 1..=u32::MAX, { "type": "integer", "format": "int64", "minimum": 1, "maximum": 4294967295_u32 }
);

whole!(
    /// The number of a port.
    PortNumber(u16), 1..=u16::MAX, { "type": "integer", "minimum": 1, "maximum": 65535 }
);

whole!(
    /// A relative share of traffic (Gateway API); 1 unless it is said.
    Weight(u32), 0..=1_000_000_u32, { "type": "integer", "minimum": 0, "maximum": 1_000_000 }
);

whole!(
    /// The share of traffic of one endpoint, relative to others.
    EndpointWeight(u32), 1..=1_000_000_u32, { "type": "integer", "minimum": 1, "maximum": 1_000_000 }
);

whole!(
    /// The level of an endpoint: lower ones come first.
    Priority(u8), 0..=127, { "type": "integer", "minimum": 0, "maximum": 127 }
);

whole!(
    /// How many values a metric label may have: series multiply by it.
    LabelBound(u16), 1..=200, { "type": "integer", "minimum": 1, "maximum": 200 }
);

impl LabelBound {
    /// The bound of a label that names none: every tenant of a small house.
    pub const DEFAULT: Self = Self(50);
}

impl Default for Weight {
    fn default() -> Self {
        Self(1)
    }
}

real!(
    /// A share of one.
    Ratio, 0.0..=1.0
);

real!(
    /// A factor of growth. Ten times per step is beyond any use.
    Multiplier, 1.0..=10.0
);

/// The schema of an unsigned 32-bit number; OpenAPI knows no unsigned formats.
pub(super) fn unsigned(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "integer", "format": "int64", "minimum": 0, "maximum": 4294967295_u32 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_outside_their_range_are_refused_with_the_range() {
        let error = serde_json::from_str::<Percent>("150").unwrap_err();
        assert!(error.to_string().starts_with("150 is not between 0 and 100"), "{error}");
        assert!(serde_json::from_str::<Percent>("-1").is_err());
        assert!(serde_json::from_str::<Percent>("99.5").is_err());
        assert!(serde_json::from_str::<Positive>("0").is_err());
        assert!(serde_json::from_str::<Ratio>("2").is_err());
        assert_eq!(serde_json::from_str::<Ratio>("1").unwrap().get(), 1.0);
        assert_eq!(serde_json::from_str::<Percent>("100").unwrap().get(), 100);
    }
}
