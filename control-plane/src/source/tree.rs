//! YAML and JSON documents as trees that know where each value is written.
//!
//! Types are read from a tree, not from the text, so that a document's kind
//! can be looked at first, a field that does not fit is reported by path,
//! line and column, and a path found wrong later still leads to its line. As in
//! Kubernetes a field that is `null` is an absent field.

use std::collections::BTreeMap;
use std::fmt;

use serde::de::value::StrDeserializer;
use serde::de::{self, DeserializeSeed, Deserializer, IntoDeserializer, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, forward_to_deserialize_any};

/// Line and column, both from 1.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Position {
    pub(super) line: u32,
    pub(super) column: u32,
}

impl From<serde_saphyr::Location> for Position {
    fn from(location: serde_saphyr::Location) -> Self {
        let small = |number: u64| u32::try_from(number).unwrap_or(u32::MAX);
        Self { line: small(location.line()), column: small(location.column()) }
    }
}

/// A value and where it is written.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) position: Position,
    pub(super) value: Value,
}

/// What a node is.
#[derive(Debug)]
pub(super) enum Value {
    Null,
    Bool(bool),
    Unsigned(u64),
    Signed(i64),
    Float(f64),
    Text(String),
    List(Vec<Node>),
    Map(Vec<(Key, Node)>),
}

/// A key of a map and where it is written.
#[derive(Debug)]
pub(super) struct Key {
    pub(super) position: Position,
    pub(super) text: String,
}

/// More comment lines in a row than any licence header has.
const MAX_COMMENT_LINES: usize = 10_000;

/// The most values of a file. What an alias stands for counts wherever it is used, so that a small file
/// makes no large tree.
const MAX_VALUES: usize = 250_000;

/// Every document of `text` that is not empty.
pub(super) fn parse(text: &str) -> Result<Vec<Node>, Misfit> {
    let options = serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_buffered_comment_events: MAX_COMMENT_LINES,
            max_documents: MAX_VALUES,
            max_nodes: MAX_VALUES,
        },
        with_snippet: false,
    };
    serde_saphyr::from_multiple_with_options(text, options).map_err(|error| Misfit {
        path: Vec::new(),
        position: error.location().map(Position::from),
        message: in_words(&error.to_string()),
    })
}

/// The parser's messages without the position, which we report beside them, and without advice for programmers.
fn in_words(message: &str) -> String {
    let first = message.lines().next().unwrap_or_default();
    let first = first.split(" at line ").next().unwrap_or(first).trim_start_matches("error: ");
    if first.starts_with("budget breached: Nodes") {
        return format!("holds more than {MAX_VALUES} values, those of an alias counted wherever it is used");
    }
    first.split(", set DuplicateKeyPolicy").next().unwrap_or(first).to_owned()
}

impl Node {
    /// The value of a field of a map.
    pub(super) fn field(&self, name: &str) -> Option<&Self> {
        match &self.value {
            Value::Map(entries) => entries.iter().find(|(key, _)| key.text == name).map(|(_, node)| node),
            _ => None,
        }
    }

    /// The text, if it is one.
    pub(super) fn text(&self) -> Option<&str> {
        match &self.value {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }

    /// The elements, if it is a list.
    pub(super) fn list(&self) -> Option<&[Self]> {
        match &self.value {
            Value::List(items) => Some(items),
            _ => None,
        }
    }

    /// Reads a type from it.
    pub(super) fn read<'a, T: Deserialize<'a>>(&'a self) -> Result<T, Misfit> {
        T::deserialize(self)
    }

    /// Where each field below is written, by path; empty for what is not written in a file.
    pub(super) fn positions(&self) -> BTreeMap<String, Position> {
        let mut positions = BTreeMap::new();
        if self.position == Position::default() {
            return positions;
        }
        self.collect_positions(String::new(), self.position, &mut positions);
        positions
    }

    fn collect_positions(
        &self,
        path: String,
        position: Position,
        positions: &mut BTreeMap<String, Position>,
    ) {
        match &self.value {
            Value::Map(entries) => {
                for (key, node) in entries {
                    let inner =
                        if path.is_empty() { key.text.clone() } else { format!("{path}.{}", key.text) };
                    node.collect_positions(inner, key.position, positions);
                }
            }
            Value::List(items) => {
                for (index, node) in items.iter().enumerate() {
                    node.collect_positions(format!("{path}[{index}]"), node.position, positions);
                }
            }
            _ => {}
        }
        positions.insert(path, position);
    }
}

/// What an API server says is written nowhere.
impl From<serde_json::Value> for Node {
    fn from(json: serde_json::Value) -> Self {
        let value = match json {
            serde_json::Value::Null => Value::Null,
            serde_json::Value::Bool(value) => Value::Bool(value),
            serde_json::Value::Number(number) => match (number.as_u64(), number.as_i64()) {
                (Some(value), _) => Value::Unsigned(value),
                (None, Some(value)) => Value::Signed(value),
                (None, None) => Value::Float(number.as_f64().unwrap_or(f64::NAN)),
            },
            serde_json::Value::String(text) => Value::Text(text),
            serde_json::Value::Array(items) => Value::List(items.into_iter().map(Self::from).collect()),
            serde_json::Value::Object(entries) => {
                let entry = |(text, value)| (Key { position: Position::default(), text }, Self::from(value));
                Value::Map(entries.into_iter().map(entry).collect())
            }
        };
        Self { position: Position::default(), value }
    }
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let spanned = serde_saphyr::Spanned::<Value>::deserialize(deserializer)?;
        Ok(Self { position: spanned.referenced.into(), value: spanned.value })
    }
}

impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ValueVisitor;

        impl<'de> Visitor<'de> for ValueVisitor {
            type Value = Value;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a YAML value")
            }

            fn visit_unit<E>(self) -> Result<Value, E> {
                Ok(Value::Null)
            }

            fn visit_none<E>(self) -> Result<Value, E> {
                Ok(Value::Null)
            }

            fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
                Value::deserialize(deserializer)
            }

            fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
                Ok(Value::Bool(value))
            }

            fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
                Ok(Value::Unsigned(value))
            }

            fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
                Ok(u64::try_from(value).map_or(Value::Signed(value), Value::Unsigned))
            }

            fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
                Ok(Value::Float(value))
            }

            fn visit_str<E>(self, value: &str) -> Result<Value, E> {
                Ok(Value::Text(value.to_owned()))
            }

            fn visit_string<E>(self, value: String) -> Result<Value, E> {
                Ok(Value::Text(value))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
                let mut list = Vec::new();
                while let Some(item) = items.next_element()? {
                    list.push(item);
                }
                Ok(Value::List(list))
            }

            fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
                let mut map = Vec::new();
                while let Some(key) = entries.next_key::<serde_saphyr::Spanned<String>>()? {
                    let key = Key { position: key.referenced.into(), text: key.value };
                    map.push((key, entries.next_value()?));
                }
                Ok(Value::Map(map))
            }
        }

        deserializer.deserialize_any(ValueVisitor)
    }
}

/// A value that does not fit its type.
#[derive(Debug)]
pub(super) struct Misfit {
    /// Innermost segment first.
    path: Vec<String>,
    pub(super) position: Option<Position>,
    pub(super) message: String,
}

impl Misfit {
    /// The path from the document's root, such as `spec.ports[0].port`.
    pub(super) fn field(&self) -> String {
        let mut field = String::new();
        for segment in self.path.iter().rev() {
            if !field.is_empty() && !segment.starts_with('[') {
                field.push('.');
            }
            field.push_str(segment);
        }
        field
    }

    fn at(mut self, position: Position) -> Self {
        self.position.get_or_insert(position);
        self
    }

    fn within(mut self, segment: String) -> Self {
        self.path.push(segment);
        self
    }
}

impl fmt::Display for Misfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Misfit {}

/// What types of numbers are called in messages, and what they hold.
const NUMBERS: [(&str, &str); 5] = [
    ("expected u16", "expected a whole number from 0 to 65535"),
    ("expected u32", "expected a whole number from 0 to 4294967295"),
    ("expected u64", "expected a whole number, 0 or more"),
    ("expected i32", "expected a whole number"),
    ("expected f64", "expected a number"),
];

impl de::Error for Misfit {
    fn custom<T: fmt::Display>(message: T) -> Self {
        let mut message = message.to_string();
        for (number, words) in NUMBERS {
            if let Some(start) = message.strip_suffix(number) {
                message = format!("{start}{words}");
                break;
            }
        }
        Self { path: Vec::new(), position: None, message }
    }
}

impl<'de> Deserializer<'de> for &'de Node {
    type Error = Misfit;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Misfit> {
        let result = match &self.value {
            Value::Null => visitor.visit_unit(),
            Value::Bool(value) => visitor.visit_bool(*value),
            Value::Unsigned(value) => visitor.visit_u64(*value),
            Value::Signed(value) => visitor.visit_i64(*value),
            Value::Float(value) => visitor.visit_f64(*value),
            Value::Text(value) => visitor.visit_borrowed_str(value),
            Value::List(items) => visitor.visit_seq(Items { items: items.iter().enumerate() }),
            Value::Map(entries) => visitor.visit_map(Entries { entries: entries.iter(), value: None }),
        };
        result.map_err(|misfit| misfit.at(self.position))
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Misfit> {
        match self.value {
            Value::Null => visitor.visit_none(),
            _ => visitor.visit_some(self),
        }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, Misfit> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Misfit> {
        let result = match self.text() {
            Some(text) => {
                let variant: StrDeserializer<'_, Misfit> = text.into_deserializer();
                visitor.visit_enum(variant)
            }
            None => Err(de::Error::custom(format_args!("has to be one of {}", variants.join(", ")))),
        };
        result.map_err(|misfit| misfit.at(self.position))
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 u8 u16 u32 u64 f32 f64 char str string bytes byte_buf unit unit_struct
        seq tuple tuple_struct map struct identifier ignored_any
    }
}

struct Items<'de> {
    items: std::iter::Enumerate<std::slice::Iter<'de, Node>>,
}

impl<'de> SeqAccess<'de> for Items<'de> {
    type Error = Misfit;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, Misfit> {
        let Some((index, node)) = self.items.next() else { return Ok(None) };
        seed.deserialize(node)
            .map(Some)
            .map_err(|misfit| misfit.at(node.position).within(format!("[{index}]")))
    }
}

struct Entries<'de> {
    entries: std::slice::Iter<'de, (Key, Node)>,
    value: Option<&'de (Key, Node)>,
}

impl<'de> MapAccess<'de> for Entries<'de> {
    type Error = Misfit;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Misfit> {
        self.value = self.entries.find(|(_, node)| !matches!(node.value, Value::Null));
        let Some((key, _)) = self.value else { return Ok(None) };
        let name: StrDeserializer<'_, Misfit> = key.text.as_str().into_deserializer();
        seed.deserialize(name).map(Some).map_err(|misfit| misfit.at(key.position).within(key.text.clone()))
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Misfit> {
        let (key, node) = self.value.take().expect("serde asks for a value after its key");
        // Types that judge what they have read do so after the node was left.
        seed.deserialize(node).map_err(|misfit| misfit.at(node.position).within(key.text.clone()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    #[allow(dead_code)]
    struct Example {
        name: String,
        #[serde(default)]
        ports: Vec<u16>,
        inner: Option<Box<Example>>,
    }

    fn misfit(text: &str) -> (String, u32, u32, String) {
        let misfit = match parse(text) {
            Ok(nodes) => nodes[0].read::<Example>().unwrap_err(),
            Err(misfit) => misfit,
        };
        let position = misfit.position.unwrap();
        (misfit.field(), position.line, position.column, misfit.message)
    }

    #[test]
    fn a_misfit_names_path_line_and_column() {
        let (field, line, column, message) = misfit("name: a\ninner:\n  name: b\n  ports:\n  - 1\n  - x\n");
        assert_eq!((field.as_str(), line, column), ("inner.ports[1]", 6, 5));
        assert!(message.ends_with("expected a whole number from 0 to 65535"), "{message}");
        let (field, line, column, message) = misfit("name: a\ninner:\n  name: b\n  prots: []\n");
        assert_eq!((field.as_str(), line, column), ("inner.prots", 4, 3));
        assert!(message.contains("unknown field"), "{message}");
        let (field, line, _, message) = misfit("name: a\ninner:\n  ports: []\n");
        assert_eq!((field.as_str(), line), ("inner", 3));
        assert!(message.contains("missing field `name`"), "{message}");
    }

    #[test]
    fn broken_text_names_its_line() {
        let (field, line, _, message) = misfit("name: a\nports: [1, 2\ninner: {\n");
        assert_eq!(field, "");
        assert!(line >= 2, "{line}: {message}");
        assert!(!message.contains(" at line "), "{message}");
        let (_, line, _, message) = misfit("name: a\nname: b\n");
        assert_eq!(line, 2, "{message}");
    }

    #[test]
    fn documents_are_told_apart_and_keep_their_lines() {
        let nodes = parse("---\nname: a\n---\n# nothing\n---\nname: b\nports:\n- 1\n").unwrap();
        let names: Vec<_> = nodes.iter().filter_map(|node| node.field("name")?.text()).collect();
        assert_eq!(names, ["a", "b"]);
        let last = nodes.last().unwrap().positions();
        assert_eq!((last["name"].line, last["ports"].line, last["ports[0]"].line), (6, 7, 8));
    }

    #[test]
    fn json_is_read_alike() {
        let nodes = parse("{\"name\": \"a\",\n \"ports\": [1]}").unwrap();
        assert_eq!(nodes[0].read::<Example>().unwrap().ports, [1]);
    }

    #[test]
    fn null_is_absent() {
        let nodes = parse("name: a\nports:\ninner: ~\n").unwrap();
        assert!(nodes[0].read::<Example>().unwrap().ports.is_empty());
    }
}
