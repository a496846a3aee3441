//! Fields that a message has and this version does not know.
//!
//! Protobuf leaves such fields aside without a word, which would make of a
//! policy that is newer than its reader one that is accepted and not enforced.
//! So the reader looks for them: what it finds it tells whoever sent the
//! message, and where the field's number says that nothing may be made of the
//! message without it ([`VITAL`]), it refuses the whole.

use std::collections::BTreeSet;
use std::fmt;
use std::ops::RangeInclusive;

use prost::encoding::{self, DecodeContext, WireType};

use super::ResourceType;

/// The numbers of fields without which the rest of a message means something
/// else: a condition that narrows what a rule is about, a check that requests
/// have to pass. Whoever does not know one refuses the message.
pub const VITAL: RangeInclusive<u32> = 1000..=1999;

/// So many different fields are told one by one.
const TOLD: usize = 8;

/// A message as this version knows it.
#[derive(Debug)]
struct Message {
    name: &'static str,
    /// By number.
    fields: &'static [Field],
}

#[derive(Debug)]
struct Field {
    number: u32,
    /// With `[]` where there may be several.
    name: &'static str,
    /// Its place in [`MESSAGES`].
    message: Option<usize>,
}

const MESSAGES: &[Message] = include!(concat!(env!("OUT_DIR"), "/fields.rs"));

/// The fields that were found, by their paths: `policy.120`, `endpoints[].42`.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Unknown {
    fields: BTreeSet<String>,
    more: bool,
    vital: Option<String>,
}

impl Unknown {
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.fields.is_empty()
    }

    /// One without which nothing may be made of the message.
    pub fn vital(&self) -> Option<&str> {
        self.vital.as_deref()
    }

    fn note(&mut self, path: &[&'static str], number: u32) {
        let is_vital = VITAL.contains(&number) && self.vital.is_none();
        if self.fields.len() >= TOLD && !is_vital {
            self.more = true;
            return;
        }
        let mut text = path.join(".");
        if !text.is_empty() {
            text.push('.');
        }
        text.push_str(&number.to_string());
        if is_vital {
            self.vital = Some(text.clone());
        }
        self.fields.insert(text);
    }
}

impl fmt::Display for Unknown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, field) in self.fields.iter().enumerate() {
            let separator = if index == 0 { "" } else { ", " };
            write!(f, "{separator}{field}")?;
        }
        if self.more { f.write_str(", and more") } else { Ok(()) }
    }
}

/// What this version does not know of the message that `bytes` were decoded to.
pub fn unknown_fields<M: ResourceType>(message: &M, bytes: &[u8]) -> Unknown {
    let mut unknown = Unknown::default();
    // What was left aside is missing in the message. Which it was is looked for only then.
    if message.encoded_len() != bytes.len() {
        let name = M::TYPE_URL.rsplit('/').next().unwrap_or_default();
        if let Some(message) = MESSAGES.iter().find(|message| message.name == name) {
            // It was decoded, so it can be walked through to its end.
            let _ = walk(bytes, message, &mut Vec::new(), &mut unknown);
        }
    }
    unknown
}

/// Notes what is unknown in the fields of a message. What was decoded nests no deeper than `prost`
/// lets it.
fn walk(
    mut bytes: &[u8],
    message: &Message,
    path: &mut Vec<&'static str>,
    unknown: &mut Unknown,
) -> Result<(), prost::DecodeError> {
    while !bytes.is_empty() {
        let (number, wire) = encoding::decode_key(&mut bytes)?;
        let known = message.fields.binary_search_by_key(&number, |field| field.number).ok();
        let field = known.and_then(|place| message.fields.get(place));
        if field.is_none() {
            unknown.note(path, number);
        }
        let before = bytes;
        encoding::skip_field(wire, number, &mut bytes, DecodeContext::default())?;
        let inner = field.and_then(|field| Some((field.name, MESSAGES.get(field.message?)?)));
        if let (Some((name, inner)), WireType::LengthDelimited) = (inner, wire) {
            let mut content = &before[..before.len() - bytes.len()];
            encoding::decode_varint(&mut content)?;
            path.push(name);
            walk(content, inner, path, unknown)?;
            path.pop();
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use prost::Message as _;

    use super::*;
    use crate::discovery::v1;

    /// Appends a field of text.
    fn with(mut bytes: Vec<u8>, number: u32, value: &[u8]) -> Vec<u8> {
        encoding::encode_key(number, WireType::LengthDelimited, &mut bytes);
        encoding::encode_varint(value.len() as u64, &mut bytes);
        bytes.extend_from_slice(value);
        bytes
    }

    fn found<M: ResourceType>(bytes: &[u8]) -> Unknown {
        unknown_fields(&M::decode(bytes).unwrap(), bytes)
    }

    fn service() -> v1::Service {
        let endpoint = |id: &str| v1::Endpoint { id: id.into(), ..v1::Endpoint::default() };
        let timeouts = v1::Timeouts { connect: Some(prost_types::Duration::default()), ..Default::default() };
        v1::Service {
            name: "users".into(),
            endpoints: vec![endpoint("a"), endpoint("b")],
            policy: Some(v1::TrafficPolicy { timeouts: Some(timeouts), ..Default::default() }),
            ..v1::Service::default()
        }
    }

    #[test]
    fn what_is_known_is_not_told() {
        assert!(found::<v1::Service>(&service().encode_to_vec()).is_empty());
        assert!(found::<v1::Workload>(&[]).is_empty());
    }

    #[test]
    fn unknown_fields_are_told_by_their_paths_once() {
        let bytes = service().encode_to_vec();
        let top = found::<v1::Service>(&with(bytes.clone(), 942, b"new"));
        assert_eq!((top.to_string().as_str(), top.vital()), ("942", None));
        // A second message of a field that is no list is merged into the first.
        let policy = with(with(Vec::new(), 1, b"shop/users"), 120, b"new");
        let within = found::<v1::Service>(&with(bytes.clone(), 6, &policy));
        assert_eq!(within.to_string(), "policy.120");
        let endpoint = with(with(Vec::new(), 1, b"c"), 42, b"new");
        let several = found::<v1::Service>(&with(with(bytes.clone(), 4, &endpoint), 4, &endpoint));
        assert_eq!(several.to_string(), "endpoints[].42");
        let many = (900..920).fold(bytes, |bytes, number| with(bytes, number, b""));
        assert!(found::<v1::Service>(&many).to_string().ends_with("907, and more"));
    }

    #[test]
    fn a_vital_one_is_told_among_many_others() {
        let many = (900..950).fold(Vec::new(), |bytes, number| with(bytes, number, b""));
        let endpoint = with(Vec::new(), 1001, b"new");
        assert_eq!(found::<v1::Service>(&with(many, 4, &endpoint)).vital(), Some("endpoints[].1001"));
        assert_eq!(found::<v1::Service>(&with(Vec::new(), 2000, b"")).vital(), None);
    }

    #[test]
    fn messages_may_nest_in_themselves() {
        let mut filter = with(Vec::new(), 1000, b"");
        for _ in 0..20 {
            // HttpFilter.mirror.backend.filters
            filter = with(Vec::new(), 5, &with(Vec::new(), 1, &with(Vec::new(), 5, &filter)));
        }
        let backend = with(Vec::new(), 5, &filter);
        let routes = with(Vec::new(), 3, &with(Vec::new(), 1, &with(Vec::new(), 5, &backend)));
        let service = with(Vec::new(), 7, &routes);
        assert!(found::<v1::Service>(&service).vital().is_some_and(|path| path.ends_with("filters[].1000")));
    }

    proptest! {
        /// Anything that decodes can be walked through.
        #[test]
        fn nothing_panics(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            if let Ok(service) = v1::Service::decode(&*bytes) {
                let _ = unknown_fields(&service, &bytes).to_string();
            }
        }
    }
}
