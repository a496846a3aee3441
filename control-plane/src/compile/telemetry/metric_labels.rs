//! The labels of request metrics, as sidecars read them.

use heddle_api::crd::{HeaderLabel, LabelBound, MetricLabel, MetricLabels, RequestDirection, StandardLabel};
use heddle_api::discovery::v1;

/// The value of a label without its header: the word that `peer` has for the same.
const ABSENT: &str = "unknown";

/// `None` where the standard labels are left as they are.
pub(super) fn wire(labels: &MetricLabels) -> Option<v1::MetricLabels> {
    if *labels == MetricLabels::default() {
        return None;
    }
    let removed = |label: &StandardLabel| match label {
        StandardLabel::Peer => v1::StandardLabel::Peer,
        StandardLabel::Route => v1::StandardLabel::Route,
    };
    Some(v1::MetricLabels {
        add: labels.add.iter().map(label).collect(),
        remove: labels.remove.iter().map(|label| removed(label).into()).collect(),
    })
}

fn label(label: &MetricLabel) -> v1::MetricLabel {
    use v1::metric_label::Source;
    let source = match (&label.header, &label.value) {
        (Some(from), _) => Source::Header(header(from)),
        (None, Some(value)) => Source::Value(value.clone()),
        // Validation lets no label through that says none of the three.
        (None, None) => Source::Route(true),
    };
    let direction = match label.direction {
        None => v1::LabelDirection::Both,
        Some(RequestDirection::Inbound) => v1::LabelDirection::Inbound,
        Some(RequestDirection::Outbound) => v1::LabelDirection::Outbound,
    };
    v1::MetricLabel { name: label.name.clone(), source: Some(source), direction: direction.into() }
}

fn header(from: &HeaderLabel) -> v1::HeaderLabel {
    let bound = from.max_values.unwrap_or(LabelBound::DEFAULT);
    v1::HeaderLabel {
        name: from.name.to_string(),
        absent: from.absent.clone().unwrap_or_else(|| ABSENT.to_owned()),
        max_values: if from.values.is_empty() { bound.get().into() } else { 0 },
        values: from.values.clone(),
    }
}
