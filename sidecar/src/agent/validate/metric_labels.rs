//! What is done to the labels of request metrics.

use std::sync::Arc;

use heddle_api::crd::RESERVED_LABELS;
use heddle_api::discovery::v1;
use http::HeaderName;

use super::{Invalid, unknown};
use crate::config::MetricLabels;
use crate::telemetry::metrics::{
    AddedLabel, Admits, Labeling, MAX_LABELS, MAX_VALUE, MAX_VALUES, Source, Vocabulary,
};

/// Of the requests of each direction. What `before` has of the same kind is kept, with the values
/// that its labels took in.
pub(super) fn metric_labels(
    wire: Option<&v1::MetricLabels>,
    before: Option<&MetricLabels>,
) -> Result<MetricLabels, Invalid> {
    let Some(wire) = wire else { return Ok(MetricLabels::default()) };
    if wire.add.len() > MAX_LABELS {
        return Err(Invalid::new("add", format!("they are more than {MAX_LABELS}")));
    }
    let known: Vec<&AddedLabel> = before.map_or_else(Vec::new, |before| before.labels().collect());
    let (mut inbound, mut outbound): (Vec<AddedLabel>, Vec<AddedLabel>) = Default::default();
    for (index, wire_label) in wire.add.iter().enumerate() {
        let within = |e: Invalid| e.within(&format!("add[{index}]"));
        if wire.add[..index].iter().any(|other| other.name == wire_label.name) {
            return Err(within(Invalid::new("name", format!("{:?} is not unique", wire_label.name))));
        }
        let label = label(wire_label, &known).map_err(within)?;
        let direction = v1::LabelDirection::try_from(wire_label.direction)
            .map_err(|_| within(unknown("direction", wire_label.direction)))?;
        if direction != v1::LabelDirection::Outbound {
            inbound.push(label.clone());
        }
        if direction != v1::LabelDirection::Inbound {
            outbound.push(label);
        }
    }
    let (mut removes_peer, mut removes_route) = (false, false);
    for (index, removed) in wire.remove.iter().enumerate() {
        match v1::StandardLabel::try_from(*removed) {
            Ok(v1::StandardLabel::Peer) => removes_peer = true,
            Ok(v1::StandardLabel::Route) => removes_route = true,
            Ok(v1::StandardLabel::Unspecified) | Err(_) => {
                return Err(unknown(&format!("remove[{index}]"), *removed));
            }
        }
    }
    let made = |added: Vec<AddedLabel>, before: Option<&Arc<Labeling>>| {
        let made = Labeling { added: added.into(), removes_peer, removes_route };
        let changes = !made.added.is_empty() || removes_peer || removes_route;
        // The same one, so that workers keep what they know of it.
        let same = before.filter(|before| ***before == made).cloned();
        changes.then(|| same.unwrap_or_else(|| Arc::new(made)))
    };
    Ok(MetricLabels {
        inbound: made(inbound, before.and_then(|before| before.inbound.as_ref())),
        outbound: made(outbound, before.and_then(|before| before.outbound.as_ref())),
    })
}

fn label(wire: &v1::MetricLabel, known: &[&AddedLabel]) -> Result<AddedLabel, Invalid> {
    use v1::metric_label::Source as Wire;
    let inner = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    let valid = wire.name.bytes().all(inner)
        && wire.name.bytes().next().is_some_and(|first| !first.is_ascii_digit())
        && !wire.name.starts_with("__")
        && !RESERVED_LABELS.contains(&wire.name.as_str());
    if !valid {
        return Err(Invalid::new("name", format!("{:?} is no name that an added label can have", wire.name)));
    }
    let source = match &wire.source {
        Some(Wire::Header(from)) => header(&wire.name, from, known).map_err(|e| e.within("header"))?,
        Some(Wire::Route(true)) => Source::Route,
        Some(Wire::Route(false)) => return Err(Invalid::new("route", "what is not the source is left out")),
        Some(Wire::Value(text)) => Source::Value(value("value", text)?),
        None => return Err(Invalid::new("source", "it is of no kind that this sidecar knows")),
    };
    Ok(AddedLabel { name: wire.name.as_str().into(), source })
}

fn header(label: &str, wire: &v1::HeaderLabel, known: &[&AddedLabel]) -> Result<Source, Invalid> {
    let name = HeaderName::try_from(wire.name.as_str()).map_err(|e| Invalid::new("name", e.to_string()))?;
    let bound = usize::try_from(wire.max_values).unwrap_or(usize::MAX);
    let admits = match (bound, wire.values.is_empty()) {
        (0, false) if wire.values.len() <= MAX_VALUES => {
            let values = wire.values.iter().enumerate();
            Admits::Listed(
                values.map(|(at, text)| value(&format!("values[{at}]"), text)).collect::<Result<_, _>>()?,
            )
        }
        (1..=MAX_VALUES, true) => Admits::First(bound),
        _ => {
            let reason = format!("{} with {} values is no bound", wire.max_values, wire.values.len());
            return Err(Invalid::new("max_values", reason));
        }
    };
    let same = known.iter().find_map(|known| match &known.source {
        Source::Header { name: field, vocabulary, .. }
            if *known.name == *label && *field == name && *vocabulary.admits() == admits =>
        {
            Some(vocabulary.clone())
        }
        _ => None,
    });
    Ok(Source::Header {
        name,
        absent: value("absent", &wire.absent)?,
        vocabulary: same.unwrap_or_else(|| Arc::new(Vocabulary::new(admits))),
    })
}

/// The value of a label.
fn value(path: &str, text: &str) -> Result<Arc<str>, Invalid> {
    if text.is_empty() || text.len() > MAX_VALUE || text.chars().any(char::is_control) {
        return Err(Invalid::new(path, format!("{text:?} is no label's value")));
    }
    Ok(text.into())
}

#[cfg(test)]
mod tests {
    use v1::metric_label::Source as Wire;

    use super::*;

    fn header(change: impl FnOnce(&mut v1::HeaderLabel)) -> v1::MetricLabel {
        let mut from = v1::HeaderLabel {
            name: "x-tenant".into(),
            absent: "unknown".into(),
            max_values: 10,
            values: Vec::new(),
        };
        change(&mut from);
        v1::MetricLabel { name: "tenant".into(), source: Some(Wire::Header(from)), direction: 0 }
    }

    fn fixed(name: &str, value: &str, direction: v1::LabelDirection) -> v1::MetricLabel {
        let source = Some(Wire::Value(value.into()));
        v1::MetricLabel { name: name.into(), source, direction: direction.into() }
    }

    fn wire(add: Vec<v1::MetricLabel>) -> v1::MetricLabels {
        v1::MetricLabels { add, remove: vec![v1::StandardLabel::Peer.into()] }
    }

    #[test]
    fn labels_are_of_their_direction() {
        let only = |direction| fixed("a", "b", direction);
        let names = |labels: &Option<Arc<Labeling>>| {
            let labels = labels.as_ref().expect("a label is removed");
            assert!(labels.removes_peer && !labels.removes_route);
            labels.added.len()
        };
        for (direction, inbound, outbound) in [
            (v1::LabelDirection::Both, 1, 1),
            (v1::LabelDirection::Inbound, 1, 0),
            (v1::LabelDirection::Outbound, 0, 1),
        ] {
            let valid = metric_labels(Some(&wire(vec![only(direction)])), None).unwrap();
            assert_eq!((names(&valid.inbound), names(&valid.outbound)), (inbound, outbound));
        }
        let none = metric_labels(None, None).unwrap();
        assert!(none.inbound.is_none() && none.outbound.is_none());
        let empty = metric_labels(Some(&v1::MetricLabels::default()), None).unwrap();
        assert!(empty.inbound.is_none() && empty.outbound.is_none());
    }

    #[test]
    fn what_did_not_change_is_kept_with_its_values() {
        let before = metric_labels(Some(&wire(vec![header(|_| {})])), None).unwrap();
        let same = metric_labels(Some(&wire(vec![header(|_| {})])), Some(&before)).unwrap();
        assert!(Arc::ptr_eq(before.inbound.as_ref().unwrap(), same.inbound.as_ref().unwrap()));
        let more = wire(vec![header(|_| {}), fixed("a", "b", v1::LabelDirection::Both)]);
        let more = metric_labels(Some(&more), Some(&before)).unwrap();
        let vocabulary = |labels: &MetricLabels| match &labels.labels().next().unwrap().source {
            Source::Header { vocabulary, .. } => vocabulary.clone(),
            other => panic!("{other:?}"),
        };
        assert!(Arc::ptr_eq(&vocabulary(&before), &vocabulary(&more)));
        let other = wire(vec![header(|from| from.max_values = 11)]);
        let other = metric_labels(Some(&other), Some(&before)).unwrap();
        assert!(!Arc::ptr_eq(&vocabulary(&before), &vocabulary(&other)));
    }

    #[test]
    fn every_refusal_names_the_field() {
        let both = v1::LabelDirection::Both;
        for (wrong, path) in [
            (fixed("service", "b", both), "name"),
            (fixed("__a", "b", both), "name"),
            (fixed("a b", "b", both), "name"),
            (fixed("", "b", both), "name"),
            (fixed("a", "", both), "value"),
            (fixed("a", "b\n", both), "value"),
            (v1::MetricLabel { direction: 7, ..fixed("a", "b", both) }, "direction"),
            (v1::MetricLabel { source: None, ..fixed("a", "b", both) }, "source"),
            (v1::MetricLabel { source: Some(Wire::Route(false)), ..fixed("a", "b", both) }, "route"),
            (header(|from| from.name = "a b".into()), "header.name"),
            (header(|from| from.absent.clear()), "header.absent"),
            (header(|from| from.max_values = 0), "header.max_values"),
            (header(|from| from.max_values = 201), "header.max_values"),
            (header(|from| from.values = vec!["a".into()]), "header.max_values"),
            (header(|from| (from.max_values, from.values) = (0, vec![String::new()])), "header.values[0]"),
        ] {
            let error = metric_labels(Some(&wire(vec![wrong])), None).unwrap_err().to_string();
            assert!(error.starts_with(&format!("add[0].{path}: ")), "{error} should name {path}");
        }
        let twice = metric_labels(Some(&wire(vec![fixed("a", "b", both), fixed("a", "c", both)])), None);
        assert!(twice.unwrap_err().to_string().starts_with("add[1].name: "));
        let many = (0..9).map(|n| fixed(&format!("a{n}"), "b", both)).collect();
        assert!(metric_labels(Some(&wire(many)), None).unwrap_err().to_string().starts_with("add: "));
        let removed = v1::MetricLabels { add: Vec::new(), remove: vec![9] };
        assert!(metric_labels(Some(&removed), None).unwrap_err().to_string().starts_with("remove[0]: "));
    }
}
