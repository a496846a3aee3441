//! Everything of a sidecar that is not traffic.
pub(crate) mod knowledge;
pub(crate) mod subscriptions;
pub(crate) mod validate;
