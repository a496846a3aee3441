//! When an endpoint is left out for a while.

/// The ejection part of a traffic policy.
#[derive(Debug, Clone, Default)]
pub struct EjectionPolicy {}
