//! Whatever is shown as a trace's context, what is passed on is read again as the same.
#![no_main]

use heddle_sidecar::telemetry::span::Tracing;
use heddle_sidecar::telemetry::trace::{Incoming, Sampler, is_replaced};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let fields = input.split(|&byte| byte == b'\n').filter_map(|line| {
        let colon = line.iter().position(|&byte| byte == b':')?;
        Some((&line[..colon], &line[colon + 1..]))
    });
    let incoming = Incoming::read(fields);
    let tracer = Tracing::on(Sampler::default(), 1).tracer();
    let span = tracer.outbound(incoming.clone(), 0.5).expect("tracing is on");
    let mut written = Vec::new();
    span.headers(|name, value| {
        assert!(is_replaced(name.as_bytes()), "{name} would be there twice");
        assert!(!value.contains(&b'\r') && !value.contains(&b'\n'), "{name} has a line of its own");
        written.push((name, value.to_vec()));
    });
    let again = Incoming::read(written.iter().map(|(name, value)| (name.as_bytes(), &value[..])));
    let context = again.context.expect("what we write is a context");
    assert_eq!((context.trace_id, context.parent_span), (span.trace_id, span.span_id));
    assert_eq!(context.sampled, Some(span.sampled));
    assert_eq!((again.propagation.b3_single, again.propagation.b3_multi), {
        (incoming.propagation.b3_single, incoming.propagation.b3_multi)
    });
    if let Some(parent) = incoming.context {
        assert_eq!((context.trace_id, context.state), (parent.trace_id, parent.state));
    }
});
