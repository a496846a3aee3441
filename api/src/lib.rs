//! The vocabulary that Heddle's parts share: identities and how they are
//! verified, the discovery protocol, and the custom resources.
//!
//! Nothing here does I/O or reads a clock: callers hand in bytes and times.

pub mod causes;
pub mod crd;
pub mod discovery;
pub mod join_token;
pub mod jwk;
pub mod name;
pub mod pattern;
pub mod runtime_file;
pub mod spiffe;
pub mod tls;
pub mod version;
pub mod x509;
