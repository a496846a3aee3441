//! Conditions on requests, as sidecars read them.

use heddle_api::crd::{GrpcMatch, HeaderCondition, HeaderMatch, HttpMatch, PathMatch, QueryMatch, TextMatch};
use heddle_api::discovery::v1;

pub(super) fn http(condition: &HttpMatch, when: &[HeaderCondition]) -> v1::HttpMatch {
    use v1::path_match::Path;
    let path = condition.path.as_ref().map(|path| match path {
        PathMatch::Exact(path) => Path::Exact(path.clone()),
        PathMatch::Prefix(path) => Path::Prefix(path.clone()),
        PathMatch::Regex(expression) => Path::Regex(expression.clone()),
    });
    v1::HttpMatch {
        path: path.map(|path| v1::PathMatch { path: Some(path) }),
        headers: headers(&condition.headers, when),
        query: query(&condition.query_params),
        method: condition.method.clone().unwrap_or_default(),
    }
}

pub(super) fn grpc(condition: &GrpcMatch, when: &[HeaderCondition]) -> v1::GrpcMatch {
    let text = |text: &TextMatch| {
        let text = match text {
            TextMatch::Exact(text) => v1::text_match::Text::Exact(text.clone()),
            TextMatch::Regex(expression) => v1::text_match::Text::Regex(expression.clone()),
        };
        v1::TextMatch { text: Some(text) }
    };
    let method = condition.method.as_ref();
    v1::GrpcMatch {
        service: method.and_then(|method| method.service.as_ref()).map(text),
        method: method.and_then(|method| method.method.as_ref()).map(text),
        headers: headers(&condition.headers, when),
    }
}

/// The route's own conditions, of which the first counts for each name, and those of its policy.
fn headers(own: &[HeaderMatch], when: &[HeaderCondition]) -> Vec<v1::HeaderMatch> {
    use v1::header_match::Value;
    let first = |index: usize| !own[..index].iter().any(|earlier| earlier.name == own[index].name);
    let own = own.iter().enumerate().filter(|(index, _)| first(*index)).map(|(_, header)| {
        let value = match &header.value {
            TextMatch::Exact(value) => Value::Exact(value.clone()),
            TextMatch::Regex(expression) => Value::Regex(expression.clone()),
        };
        v1::HeaderMatch { name: header.name.to_string(), value: Some(value) }
    });
    let when = when.iter().map(|condition| {
        let set = |values: &[String]| v1::StringSet { values: values.to_vec() };
        let value = match (&condition.one_of, &condition.not_in) {
            (Some(values), _) => Value::In(set(values)),
            (None, values) => Value::NotIn(set(values.as_deref().unwrap_or_default())),
        };
        v1::HeaderMatch { name: condition.header.to_string(), value: Some(value) }
    });
    own.chain(when).collect()
}

/// Of several conditions on one parameter the first counts.
fn query(conditions: &[QueryMatch]) -> Vec<v1::QueryMatch> {
    use v1::query_match::Value;
    let first =
        |index: usize| !conditions[..index].iter().any(|earlier| earlier.name == conditions[index].name);
    let conditions = conditions.iter().enumerate().filter(|(index, _)| first(*index));
    let conditions = conditions.map(|(_, condition)| {
        let value = match &condition.value {
            TextMatch::Exact(value) => Value::Exact(value.clone()),
            TextMatch::Regex(expression) => Value::Regex(expression.clone()),
        };
        v1::QueryMatch { name: condition.name.clone(), value: Some(value) }
    });
    conditions.collect()
}
