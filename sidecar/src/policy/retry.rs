//! When a failed try may be repeated.

/// The retry part of a traffic policy.
#[derive(Debug, Clone, Default)]
pub struct RetryPolicy {}
