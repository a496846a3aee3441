//! Rules in the custom resources' schemas: what no single field's schema can
//! say, in the Common Expression Language, for the API server to refuse.
//!
//! They stand as attributes on the types, in the files that hold the Rust
//! validation of the same. A rule never refuses what that accepts, since files
//! in a folder are read by it alone. What a rule cannot say (two fields of the
//! object's metadata, certificates, addresses) the validating webhook does.
//! Every text and list that a rule reads is bounded in its schema: the API
//! server refuses definitions whose rules could be costly.

use serde::Serialize;

/// One entry of `x-kubernetes-validations`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Rule {
    rule: String,
    message: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    field_path: Option<String>,
}

/// The words of the language that are names of our fields, which are written
/// differently there.
const WORDS: [&str; 4] = ["for", "in", "namespace", "true"];

impl Rule {
    /// `expression` has to hold for the value, `self`; `message` says what is wrong if it does not.
    pub(super) fn new(expression: impl Into<String>, message: impl Into<String>) -> Self {
        Self { rule: expression.into(), message: message.into(), field_path: None }
    }

    /// The field of the value that is at fault.
    pub(super) fn at(self, field: &str) -> Self {
        Self { field_path: Some(format!(".{field}")), ..self }
    }

    /// Exactly one of the fields is given.
    pub(super) fn exactly_one(fields: &[&str]) -> Self {
        let given: Vec<String> = fields.iter().map(|field| format!("has({})", path(field))).collect();
        let (last, others) = fields.split_last().expect("rules name fields");
        Self::new(
            format!("[{}].filter(given, given).size() == 1", given.join(", ")),
            format!("exactly one of {} and {last} is needed", others.join(", ")),
        )
    }

    /// Two names of one field are not both given.
    pub(super) fn at_most_one(one: &str, other: &str) -> Self {
        let rule = format!("!has({}) || !has({})", path(one), path(other));
        Self::new(rule, format!("only one of {one} and {other} may be given"))
    }

    /// No item of a list is there twice. Not by `x-kubernetes-list-type: set`: server-side apply
    /// refuses sets of objects.
    pub(super) fn distinct() -> Self {
        Self::new("self.all(item, self.exists_one(other, other == item))", "an item is named twice")
    }

    /// A duration is longer than none.
    pub(super) fn positive(field: &str) -> Self {
        let value = path(field);
        let rule = format!("!has({value}) || duration({value}) > duration('0s')");
        Self::new(rule, "has to be longer than 0s").at(field)
    }

    /// A duration is from `least` to `most`.
    pub(super) fn between(field: &str, least: &str, most: &str) -> Self {
        let value = path(field);
        let rule = format!(
            "!has({value}) || (duration({value}) >= duration('{least}') && duration({value}) <= duration('{most}'))"
        );
        Self::new(rule, format!("has to be between {least} and {most}")).at(field)
    }

    /// A duration is not longer than another.
    pub(super) fn not_longer(field: &str, than: &str) -> Self {
        let (value, other) = (path(field), path(than));
        let rule = format!("!has({value}) || !has({other}) || duration({value}) <= duration({other})");
        Self::new(rule, format!("is longer than {than}")).at(field)
    }

    /// The rules of a duration that grows from `base` to `max`.
    pub(super) fn growing() -> [Self; 3] {
        let order = "!has(self.base) || !has(self.max) || duration(self.base) <= duration(self.max)";
        [Self::positive("base"), Self::positive("max"), Self::new(order, "is shorter than base").at("max")]
    }
}

/// The field of `self`, as expressions write it.
fn path(field: &str) -> String {
    if WORDS.contains(&field) { format!("self.__{field}__") } else { format!("self.{field}") }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn rules_are_written_as_the_api_server_reads_them() {
        let rule = Rule::exactly_one(&["in", "notIn"]);
        assert_eq!(
            serde_json::to_value(rule).unwrap(),
            json!({
                "rule": "[has(self.__in__), has(self.notIn)].filter(given, given).size() == 1",
                "message": "exactly one of in and notIn is needed",
            })
        );
        let rule = serde_json::to_value(Rule::positive("window")).unwrap();
        assert_eq!(rule["fieldPath"], ".window");
    }
}
