//! What a port's declaration says about the bytes on it.
//!
//! `appProtocol` decides; without it the part of the port's name before the
//! first dash does, as in Istio. What neither knows is detected.

use heddle_api::discovery::v1::AppProtocol;

/// The protocol that a Service declares for a port.
pub(super) fn declared(app_protocol: Option<&str>, port_name: &str) -> AppProtocol {
    match app_protocol {
        Some(declared) => from_word(declared),
        None => from_word(port_name.split('-').next().unwrap_or_default()),
    }
}

fn from_word(word: &str) -> AppProtocol {
    // Kubernetes' own names (KEP-3726) and those of IANA and of habit.
    match word.to_ascii_lowercase().as_str() {
        "http" | "http1" | "kubernetes.io/ws" | "ws" | "grpcweb" | "grpc-web" => AppProtocol::Http,
        "http2" | "h2c" | "kubernetes.io/h2c" => AppProtocol::Http2,
        "grpc" => AppProtocol::Grpc,
        "https" | "tls" | "kubernetes.io/wss" | "wss" => AppProtocol::Tls,
        // In some of these the server speaks first; none of them is looked into.
        "tcp" | "mongo" | "mysql" | "postgres" | "postgresql" | "redis" | "smtp" => AppProtocol::Tcp,
        _ => AppProtocol::Unspecified,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn app_protocol_comes_before_the_name() {
        for (app_protocol, name, expected) in [
            (None, "", AppProtocol::Unspecified),
            (None, "metrics", AppProtocol::Unspecified),
            (None, "http", AppProtocol::Http),
            (None, "http-web", AppProtocol::Http),
            (None, "grpc-api", AppProtocol::Grpc),
            (None, "httpx", AppProtocol::Unspecified),
            (None, "tcp-x", AppProtocol::Tcp),
            (None, "https", AppProtocol::Tls),
            (Some("kubernetes.io/h2c"), "http", AppProtocol::Http2),
            (Some("kubernetes.io/ws"), "", AppProtocol::Http),
            (Some("HTTP"), "", AppProtocol::Http),
            (Some("example.com/own"), "http", AppProtocol::Unspecified),
        ] {
            assert_eq!(declared(app_protocol, name), expected, "{app_protocol:?} {name:?}");
        }
    }
}
