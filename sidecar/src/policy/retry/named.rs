//! What a retry policy names: kinds of failure, statuses and methods.

use std::borrow::Cow;

use heddle_api::crd::RetryReason;

/// The reason that a gRPC status is, if a policy can name it.
pub(super) const fn of_grpc(status: u8) -> Option<RetryReason> {
    match status {
        1 => Some(RetryReason::GrpcCancelled),
        4 => Some(RetryReason::GrpcDeadlineExceeded),
        8 => Some(RetryReason::GrpcResourceExhausted),
        14 => Some(RetryReason::GrpcUnavailable),
        _ => None,
    }
}

/// A set of reasons.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RetryReasons(pub(super) u16);

impl RetryReasons {
    /// What provably reached no application: the default.
    pub const NOT_PROCESSED: Self =
        Self(1 << RetryReason::ConnectFailure as u8 | 1 << RetryReason::RefusedStream as u8);

    /// Whether `reason` is in the set.
    pub const fn contains(self, reason: RetryReason) -> bool {
        self.0 & (1 << reason as u8) != 0
    }
}

impl FromIterator<RetryReason> for RetryReasons {
    fn from_iter<I: IntoIterator<Item = RetryReason>>(reasons: I) -> Self {
        Self(reasons.into_iter().fold(0, |set, reason| set | 1 << reason as u8))
    }
}

/// A set of HTTP statuses, 100 to 599.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct StatusSet([u64; 8]);

impl StatusSet {
    /// Adds one status; what is no status has no effect.
    pub fn insert(&mut self, status: u16) {
        if let Some((word, bit)) = Self::place(status) {
            self.0[word] |= bit;
        }
    }

    /// Adds a class: 5 for "5xx".
    pub fn insert_class(&mut self, class: u8) {
        let first = u16::from(class) * 100;
        (first..first + 100).for_each(|status| self.insert(status));
    }

    /// Whether `status` is in the set.
    pub fn contains(&self, status: u16) -> bool {
        Self::place(status).is_some_and(|(word, bit)| self.0[word] & bit != 0)
    }

    fn place(status: u16) -> Option<(usize, u64)> {
        let at = usize::from(status.checked_sub(100)?);
        (at < 500).then(|| (at / 64, 1 << (at % 64)))
    }
}

/// The methods that may be repeated when a request may have been processed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Methods(Box<[Box<[u8]>]>);

impl Default for Methods {
    /// The idempotent ones (RFC 9110, section 9.2.2) that applications use.
    fn default() -> Self {
        ["GET", "HEAD", "OPTIONS", "PUT", "DELETE"].into_iter().collect()
    }
}

impl Methods {
    /// Whether `method` is one of them; methods are case-sensitive.
    pub fn permit(&self, method: &[u8]) -> bool {
        self.0.iter().any(|permitted| **permitted == *method)
    }

    /// All of them.
    pub fn names(&self) -> impl Iterator<Item = Cow<'_, str>> {
        self.0.iter().map(|method| String::from_utf8_lossy(method))
    }
}

impl<'a> FromIterator<&'a str> for Methods {
    fn from_iter<I: IntoIterator<Item = &'a str>>(methods: I) -> Self {
        Self(methods.into_iter().map(|method| method.as_bytes().into()).collect())
    }
}
