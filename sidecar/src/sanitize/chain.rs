//! What sidecars tell each other about retries: headers of the mesh that no
//! application gets to see.

/// On a request: it is the retry of this number.
pub const ATTEMPT_HEADER: &str = "heddle-attempt";

/// On a response: whether another try makes sense. In the trailers of one of HTTP/2 whose gRPC status
/// stands there; over HTTP/1, which carries no gRPC, the head alone tells of a failure.
pub const RETRY_HEADER: &str = "heddle-retry";

/// The value of [`RETRY_HEADER`]: retries further on were of no use.
pub const NO_RETRY: &[u8] = b"no";
