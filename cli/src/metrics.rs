//! Reads what sidecars tell in Prometheus' text format, as far as our own
//! tables need it: counters, gauges and histogram buckets with their labels.

use std::collections::BTreeMap;

/// One line of a scrape.
#[derive(Debug, PartialEq, Clone)]
pub(crate) struct Sample {
    pub(crate) name: String,
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) value: f64,
}

impl Sample {
    /// A label's value, empty if it is not there.
    pub(crate) fn label(&self, name: &str) -> &str {
        self.labels.get(name).map_or("", String::as_str)
    }
}

/// All samples of a scrape; lines that are none are passed over.
pub(crate) fn parse(text: &str) -> Vec<Sample> {
    text.lines().filter(|line| !line.starts_with('#')).filter_map(sample).collect()
}

fn sample(line: &str) -> Option<Sample> {
    let (series, value) = match line.rfind('}') {
        Some(end) => (&line[..=end], line[end + 1..].trim()),
        None => line.split_once(' ')?,
    };
    let value = value.split(' ').next()?.parse().ok()?;
    let (name, labels) = match series.split_once('{') {
        Some((name, rest)) => (name, labels(rest)?),
        None => (series, BTreeMap::new()),
    };
    Some(Sample { name: name.to_owned(), labels, value })
}

/// `name="value",…}` with backslash escapes.
fn labels(mut rest: &str) -> Option<BTreeMap<String, String>> {
    let mut labels = BTreeMap::new();
    while rest != "}" {
        let (name, following) = rest.split_once("=\"")?;
        let mut value = String::new();
        let mut characters = following.char_indices();
        let end = loop {
            match characters.next()? {
                (at, '"') => break at,
                (_, '\\') => match characters.next()?.1 {
                    'n' => value.push('\n'),
                    other => value.push(other),
                },
                (_, other) => value.push(other),
            }
        };
        labels.insert(name.to_owned(), value);
        rest = following[end + 1..].trim_start_matches(',');
    }
    Some(labels)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_are_read_with_their_labels() {
        let samples = parse(
            "# HELP a b\na_total{x=\"1\",y=\"q\\\"}\\n\"} 3\nplain 2.5\nnonsense\nh_bucket{le=\"+Inf\"} 7 1700000000\n",
        );
        assert_eq!(samples.len(), 3);
        assert_eq!((samples[0].label("x"), samples[0].label("y"), samples[0].value), ("1", "q\"}\n", 3.0));
        assert_eq!((samples[1].name.as_str(), samples[1].value), ("plain", 2.5));
        assert_eq!((samples[2].label("le"), samples[2].value), ("+Inf", 7.0));
    }
}
