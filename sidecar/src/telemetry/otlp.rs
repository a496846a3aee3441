//! Export of spans by OTLP, over gRPC or as HTTP/protobuf, in the agent's thread.
//!
//! Off unless the standard `OTEL_*` variables name an endpoint. Batches are
//! tried again only where the protocol says that this helps; what cannot be
//! delivered within the export's time limit is dropped and counted. Memory is bounded by the workers'
//! buffers, which fill up (and drop) while an export is under way.

mod connection;
mod message;
mod settings;

use std::pin::{Pin, pin};
use std::time::Duration;

use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::resource::v1::Resource;
use tokio::time::{Instant, sleep, timeout, timeout_at};

pub use self::settings::{InvalidSettings, Settings};

use self::connection::{Collector, SendError};
use super::metrics::{Registry, SharedCounter};
use super::span::{Span, Tracing};
use super::trace::Random;

/// The first wait before a batch is sent again; it doubles, as OTLP's specification asks for
/// an exponential backoff and names no numbers.
const BACKOFF: Duration = Duration::from_secs(1);

/// The longest wait between two tries: several fit in the default limit of 30 s.
const MAX_BACKOFF: Duration = Duration::from_secs(5);

/// What leaving may cost: less than the least time that a pod is given to end (30 s by default,
/// most of which belongs to open requests).
const FLUSH: Duration = Duration::from_secs(3);

/// Sends spans until it is told to stop.
#[derive(Debug)]
pub struct Exporter {
    tracing: Tracing,
    settings: Settings,
    resource: Resource,
    exported: SharedCounter,
    dropped: SharedCounter,
    failed: SharedCounter,
}

impl Exporter {
    /// The tracing that these settings ask for, and the exporter that must run for it.
    /// `resource` describes the workload where the settings do not: names and
    /// values such as `service.name`.
    pub fn new(settings: Settings, resource: &[(&str, &str)], registry: &Registry) -> (Tracing, Self) {
        let tracing = Tracing::on(settings.sampler, settings.queue);
        let counter = |result| {
            let help = "Ended spans, by what became of them.";
            registry.counter("heddle_trace_spans_total", help, &[("result", result)])
        };
        let exporter = Self {
            tracing: tracing.clone(),
            resource: message::resource(&settings.resource, resource),
            settings,
            exported: counter("exported"),
            dropped: counter("dropped"),
            failed: counter("failed"),
        };
        (tracing, exporter)
    }

    /// Runs until `shutdown` is ready, then sends what is left.
    pub async fn run(self, shutdown: impl Future<Output = ()>) {
        let collector = Collector::new(&self.settings);
        let mut shutdown = pin!(shutdown);
        let mut pending = Vec::new();
        let end = loop {
            tokio::select! {
                () = sleep(self.settings.delay) => {}
                () = self.tracing.half_full() => {}
                () = &mut shutdown => break Instant::now() + FLUSH,
            }
            self.drain(&mut pending);
            if let Some(end) = self.export_all(&collector, &mut pending, shutdown.as_mut()).await {
                break end;
            }
        };
        // What is left goes without backoff, one try per batch.
        self.drain(&mut pending);
        let flush = async {
            while !pending.is_empty() {
                let batch = self.next_batch(&mut pending);
                let result = self.send(&collector, &batch).await;
                self.count(&result, batch_size(&batch));
            }
        };
        if timeout_at(end, flush).await.is_err() {
            tracing::warn!("spans were left when the time to export them was over");
        }
    }

    /// Takes what the workers have.
    fn drain(&self, pending: &mut Vec<Span>) {
        let dropped = self.tracing.drain(pending);
        self.dropped.add(dropped);
    }

    fn next_batch(&self, pending: &mut Vec<Span>) -> ExportTraceServiceRequest {
        let size = pending.len().min(self.settings.batch);
        message::request(&self.resource, pending.drain(..size))
    }

    /// Sends everything; interrupted by the shutdown, it gives the moment when all must end.
    async fn export_all(
        &self,
        collector: &Collector,
        pending: &mut Vec<Span>,
        mut shutdown: Pin<&mut impl Future<Output = ()>>,
    ) -> Option<Instant> {
        while !pending.is_empty() {
            let batch = self.next_batch(pending);
            let mut export = pin!(self.export(collector, &batch));
            tokio::select! {
                () = &mut export => {}
                () = &mut shutdown => {
                    let end = Instant::now() + FLUSH;
                    if timeout_at(end, export).await.is_err() {
                        self.failed.add(batch_size(&batch));
                    }
                    return Some(end);
                }
            }
        }
        None
    }

    /// Sends one batch, again and again where that may help.
    async fn export(&self, collector: &Collector, batch: &ExportTraceServiceRequest) {
        let deadline = Instant::now() + self.settings.export_timeout;
        let mut backoff = BACKOFF;
        loop {
            let result = self.send(collector, batch).await;
            let wait = match &result {
                Err(SendError::Retryable { after, .. }) => after.unwrap_or_else(|| jittered(backoff)),
                Ok(_) | Err(SendError::Final(_)) => return self.count(&result, batch_size(batch)),
            };
            if Instant::now() + wait >= deadline {
                return self.count(&result, batch_size(batch));
            }
            sleep(wait).await;
            backoff = (backoff * 2).min(MAX_BACKOFF);
        }
    }

    async fn send(&self, collector: &Collector, batch: &ExportTraceServiceRequest) -> Result<u64, SendError> {
        let limit = self.settings.timeout;
        timeout(limit, collector.send(batch)).await.unwrap_or_else(|_| {
            Err(SendError::Retryable { reason: format!("no answer within {limit:?}"), after: None })
        })
    }

    fn count(&self, result: &Result<u64, SendError>, spans: u64) {
        match result {
            Ok(rejected) => {
                self.exported.add(spans.saturating_sub(*rejected));
                self.failed.add(*rejected.min(&spans));
            }
            Err(error) => {
                self.failed.add(spans);
                let endpoint = &self.settings.endpoint;
                tracing::warn!(%endpoint, spans, "spans could not be exported: {error}");
            }
        }
    }
}

/// Between half of the wait and all of it, so that many sidecars do not come back at once.
fn jittered(wait: Duration) -> Duration {
    let share = u32::try_from(Random::from_system().span_id() >> 33).expect("31 bits");
    wait / 2 + (wait / 2).mul_f64(f64::from(share) / f64::from(u32::MAX >> 1))
}

fn batch_size(batch: &ExportTraceServiceRequest) -> u64 {
    let spans = batch.resource_spans.iter().flat_map(|resource| &resource.scope_spans);
    spans.map(|scope| scope.spans.len() as u64).sum()
}

#[cfg(test)]
mod tests;
