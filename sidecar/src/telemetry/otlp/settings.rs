//! The standard environment variables (OpenTelemetry specification, "Environment Variable
//! Specification", "OTLP Exporter Configuration").

use std::time::Duration;

use http::{HeaderName, HeaderValue, Uri};
use thiserror::Error;

use crate::telemetry::trace::Sampler;

/// What the variables ask for.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Where to send; for HTTP with its path.
    pub(super) endpoint: Uri,
    pub(super) protocol: Protocol,
    pub(super) headers: Vec<(HeaderName, HeaderValue)>,
    /// Limit on one try.
    pub(super) timeout: Duration,
    /// Attributes of the resource, which go before those that we know.
    pub(super) resource: Vec<(String, String)>,
    pub(super) sampler: Sampler,
    /// The longest that a span waits for its batch.
    pub(super) delay: Duration,
    /// Limit on one batch with its retries.
    pub(super) export_timeout: Duration,
    /// Spans that may wait per worker.
    pub(super) queue: usize,
    /// Spans per batch.
    pub(super) batch: usize,
}

/// How spans travel.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Protocol {
    Grpc,
    HttpProtobuf,
}

/// A variable that cannot be obeyed.
#[derive(Error, Debug, PartialEq, Eq)]
#[error("{variable}={value}: {problem}")]
pub struct InvalidSettings {
    variable: String,
    value: String,
    problem: &'static str,
}

impl Settings {
    /// Reads the variables; `None` if tracing is off.
    ///
    /// # Errors
    ///
    /// If one says what we cannot do, rather than doing something else.
    pub fn read(variable: impl Fn(&str) -> Option<String>) -> Result<Option<Self>, InvalidSettings> {
        // The specification takes an empty value for an unset one.
        let environment = Environment(|name: &str| variable(name).filter(|value| !value.trim().is_empty()));
        if environment.text("OTEL_SDK_DISABLED").is_some_and(|value| value.eq_ignore_ascii_case("true")) {
            return Ok(None);
        }
        match environment.text("OTEL_TRACES_EXPORTER") {
            Some(value) if value == "none" => return Ok(None),
            Some(value) if value != "otlp" => {
                return Err(invalid("OTEL_TRACES_EXPORTER", value, "only otlp and none are supported"));
            }
            _ => {}
        }
        let Some((source, endpoint)) = environment.otlp("ENDPOINT") else { return Ok(None) };
        // Only then do the others matter: a host may set them for all its programs.
        let protocol = environment.protocol()?;
        let endpoint = parse_endpoint(&source, endpoint, protocol)?;
        if let Some((source, value)) = environment.otlp("COMPRESSION")
            && value != "none"
        {
            return Err(invalid(&source, value, "only none is supported"));
        }
        let queue = environment.count("OTEL_BSP_MAX_QUEUE_SIZE", 2048)?;
        let batch = environment.count("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", 512)?;
        Ok(Some(Self {
            endpoint,
            protocol,
            headers: environment.headers()?,
            timeout: environment
                .otlp("TIMEOUT")
                .map_or(Ok(Duration::from_secs(10)), |(source, value)| milliseconds(&source, value))?,
            resource: environment.resource()?,
            sampler: environment.sampler()?,
            delay: environment.milliseconds("OTEL_BSP_SCHEDULE_DELAY", 5_000)?,
            export_timeout: environment.milliseconds("OTEL_BSP_EXPORT_TIMEOUT", 30_000)?,
            queue,
            batch: batch.min(queue),
        }))
    }
}

struct Environment<F>(F);

impl<F: Fn(&str) -> Option<String>> Environment<F> {
    fn text(&self, name: &str) -> Option<String> {
        (self.0)(name).map(|value| value.trim().to_owned())
    }

    /// A variable of the exporter: the one for traces goes before the general one.
    fn otlp(&self, name: &str) -> Option<(String, String)> {
        ["OTEL_EXPORTER_OTLP_TRACES_", "OTEL_EXPORTER_OTLP_"].into_iter().find_map(|prefix| {
            let variable = format!("{prefix}{name}");
            self.text(&variable).map(|value| (variable, value))
        })
    }

    fn protocol(&self) -> Result<Protocol, InvalidSettings> {
        match self.otlp("PROTOCOL") {
            // The specification's default.
            None => Ok(Protocol::HttpProtobuf),
            Some((_, value)) if value == "http/protobuf" => Ok(Protocol::HttpProtobuf),
            Some((_, value)) if value == "grpc" => Ok(Protocol::Grpc),
            Some((source, value)) => {
                Err(invalid(&source, value, "only grpc and http/protobuf are supported"))
            }
        }
    }

    fn headers(&self) -> Result<Vec<(HeaderName, HeaderValue)>, InvalidSettings> {
        let Some((source, value)) = self.otlp("HEADERS") else { return Ok(Vec::new()) };
        // A header may be a credential: it is not repeated in the message.
        let problem = || invalid(&source, "…".into(), "expected name=value pairs, separated by commas");
        let pairs = pairs(&value).ok_or_else(problem)?;
        let header = |(name, value): (String, String)| {
            let mut value = HeaderValue::try_from(value).ok()?;
            value.set_sensitive(true);
            Some((HeaderName::try_from(name).ok()?, value))
        };
        pairs.into_iter().map(|pair| header(pair).ok_or_else(problem)).collect()
    }

    fn resource(&self) -> Result<Vec<(String, String)>, InvalidSettings> {
        let mut resource = Vec::new();
        if let Some(name) = self.text("OTEL_SERVICE_NAME") {
            resource.push(("service.name".to_owned(), name));
        }
        if let Some(value) = self.text("OTEL_RESOURCE_ATTRIBUTES") {
            let problem = "expected name=value pairs, separated by commas";
            let pairs =
                pairs(&value).ok_or_else(|| invalid("OTEL_RESOURCE_ATTRIBUTES", value.clone(), problem))?;
            for (name, value) in pairs {
                if !resource.iter().any(|(known, _)| *known == name) {
                    resource.push((name, value));
                }
            }
        }
        Ok(resource)
    }

    fn sampler(&self) -> Result<Sampler, InvalidSettings> {
        const NAME: &str = "OTEL_TRACES_SAMPLER";
        let Some(name) = self.text(NAME) else { return Ok(Sampler::default()) };
        let (parent_based, root) = match name.strip_prefix("parentbased_") {
            Some(root) => (true, root),
            None => (false, &*name),
        };
        let ratio = match root {
            "always_on" => 1.0,
            "always_off" => 0.0,
            "traceidratio" => self.ratio("OTEL_TRACES_SAMPLER_ARG")?,
            _ => return Err(invalid(NAME, name, "no such sampler")),
        };
        Ok(Sampler { parent_based, ratio: Some(ratio) })
    }

    fn ratio(&self, name: &str) -> Result<f64, InvalidSettings> {
        let Some(value) = self.text(name) else { return Ok(1.0) };
        let ratio = value.parse().ok().filter(|ratio| (0.0..=1.0).contains(ratio));
        ratio.ok_or_else(|| invalid(name, value, "expected a number from 0 to 1"))
    }

    fn milliseconds(&self, name: &str, default: u64) -> Result<Duration, InvalidSettings> {
        self.text(name).map_or(Ok(Duration::from_millis(default)), |value| milliseconds(name, value))
    }

    fn count(&self, name: &str, default: usize) -> Result<usize, InvalidSettings> {
        let Some(value) = self.text(name) else { return Ok(default) };
        // The upper bound keeps a typing error from reserving all memory: 350 MB per worker.
        let count = value.parse().ok().filter(|count| (1..=1_000_000).contains(count));
        count.ok_or_else(|| invalid(name, value, "expected a number from 1 to 1000000"))
    }
}

fn invalid(variable: &str, value: String, problem: &'static str) -> InvalidSettings {
    InvalidSettings { variable: variable.to_owned(), value, problem }
}

fn milliseconds(name: &str, value: String) -> Result<Duration, InvalidSettings> {
    match value.parse() {
        Ok(milliseconds @ 1..) => Ok(Duration::from_millis(milliseconds)),
        _ => Err(invalid(name, value, "expected milliseconds, at least 1")),
    }
}

fn parse_endpoint(source: &str, value: String, protocol: Protocol) -> Result<Uri, InvalidSettings> {
    // gRPC endpoints are written without scheme, too.
    let text = if value.contains("://") { value.clone() } else { format!("http://{value}") };
    let text = match protocol {
        Protocol::HttpProtobuf if !source.contains("TRACES") => {
            format!("{}/v1/traces", text.trim_end_matches('/'))
        }
        _ => text,
    };
    match text.parse::<Uri>() {
        Ok(uri) if uri.scheme_str() == Some("https") => {
            Err(invalid(source, value, "https is not supported; send to a collector nearby over http"))
        }
        Ok(uri) if uri.scheme_str() == Some("http") && uri.host().is_some_and(|host| !host.is_empty()) => {
            Ok(uri)
        }
        _ => Err(invalid(source, value, "expected http://HOST[:PORT][/PATH]")),
    }
}

/// `name=value` pairs in the form of W3C baggage: comma between, percent-encoded.
fn pairs(text: &str) -> Option<Vec<(String, String)>> {
    let pairs = text.split(',').map(str::trim).filter(|pair| !pair.is_empty());
    pairs
        .map(|pair| {
            let (name, value) = pair.split_once('=')?;
            let name = name.trim();
            (!name.is_empty()).then_some(())?;
            Some((percent_decoded(name)?, percent_decoded(value.trim())?))
        })
        .collect()
}

fn percent_decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut parts = text.split('%');
    bytes.extend_from_slice(parts.next()?.as_bytes());
    for part in parts {
        let (digits, rest) = part.split_at_checked(2)?;
        bytes.push(u8::from_str_radix(digits, 16).ok()?);
        bytes.extend_from_slice(rest.as_bytes());
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(variables: &[(&str, &str)]) -> Result<Option<Settings>, String> {
        let find = |name: &str| {
            variables.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned())
        };
        Settings::read(find).map_err(|error| error.to_string())
    }

    const ENDPOINT: (&str, &str) = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector:4318/base/");

    #[test]
    fn tracing_is_off_without_an_endpoint_or_when_disabled() {
        assert!(read(&[]).expect("valid").is_none());
        assert!(read(&[("OTEL_EXPORTER_OTLP_ENDPOINT", " ")]).expect("valid").is_none());
        assert!(read(&[ENDPOINT, ("OTEL_SDK_DISABLED", "True")]).expect("valid").is_none());
        assert!(read(&[ENDPOINT, ("OTEL_TRACES_EXPORTER", "none")]).expect("valid").is_none());
        // Nothing else matters then.
        assert!(read(&[("OTEL_EXPORTER_OTLP_PROTOCOL", "carrier-pigeon")]).expect("valid").is_none());
    }

    #[test]
    fn the_endpoint_gets_its_path_only_if_it_is_the_general_one_over_http() {
        let endpoint =
            |variables: &[(&str, &str)]| read(variables).expect("valid").expect("on").endpoint.to_string();
        assert_eq!(endpoint(&[ENDPOINT]), "http://collector:4318/base/v1/traces");
        let traces = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://other:4318/mine");
        assert_eq!(endpoint(&[ENDPOINT, traces]), "http://other:4318/mine");
        let grpc = ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc");
        assert_eq!(
            endpoint(&[("OTEL_EXPORTER_OTLP_ENDPOINT", "collector:4317"), grpc]),
            "http://collector:4317/"
        );
    }

    #[test]
    fn what_cannot_be_obeyed_is_refused_by_name() {
        let refused = |variable: (&str, &str)| read(&[ENDPOINT, variable]).expect_err("refused");
        let https = read(&[("OTEL_EXPORTER_OTLP_ENDPOINT", "https://collector")]).expect_err("refused");
        assert_eq!(
            https,
            "OTEL_EXPORTER_OTLP_ENDPOINT=https://collector: https is not supported; \
             send to a collector nearby over http"
        );
        for variable in [
            ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "unix:///run/otel"),
            ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/json"),
            ("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip"),
            ("OTEL_TRACES_SAMPLER", "jaeger_remote"),
            ("OTEL_EXPORTER_OTLP_TIMEOUT", "10s"),
            ("OTEL_BSP_MAX_QUEUE_SIZE", "0"),
        ] {
            assert!(refused(variable).starts_with(variable.0), "{variable:?}");
        }
        let secret = refused(("OTEL_EXPORTER_OTLP_HEADERS", "authorization secret"));
        assert!(!secret.contains("secret"), "{secret}");
    }

    #[test]
    fn lists_are_percent_decoded_and_the_service_name_goes_first() {
        let settings = read(&[
            ENDPOINT,
            ("OTEL_EXPORTER_OTLP_HEADERS", "api-key=a%20b, x-tenant = t=1"),
            ("OTEL_RESOURCE_ATTRIBUTES", "service.name=lost,deployment.environment.name=test%2C1"),
            ("OTEL_SERVICE_NAME", "kept"),
            ("OTEL_TRACES_SAMPLER", "parentbased_traceidratio"),
            ("OTEL_TRACES_SAMPLER_ARG", "0.25"),
        ]);
        let settings = settings.expect("valid").expect("on");
        let headers: Vec<_> = settings.headers.iter().map(|(n, v)| (n.as_str(), v.as_bytes())).collect();
        assert_eq!(headers, [("api-key", &b"a b"[..]), ("x-tenant", b"t=1")]);
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        let expected = [pair("service.name", "kept"), pair("deployment.environment.name", "test,1")];
        assert_eq!(settings.resource, expected);
        assert_eq!(settings.sampler, Sampler { parent_based: true, ratio: Some(0.25) });
    }
}
