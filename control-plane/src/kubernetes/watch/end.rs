//! Why a watch ended, from what the API server or the way to it said.

use heddle_api::causes;
use kube::core::Status;

use super::{ANSWER_TIMEOUT, Failure};

/// Why a watch ended.
pub(super) enum End {
    /// The API server ended it, as it does every few minutes.
    Closed,
    /// What follows the place where it stopped is not known any more.
    Gone,
    /// There is no such collection.
    NotServed,
    /// This API server cannot stream lists.
    NoStreamedLists,
    /// Not even bookmarks came.
    Silent,
    /// Another watch turned out to be dead, and this one may be, too.
    Doubted,
    /// No API server answered, or the connection to it was lost.
    Cut(String),
    /// One answered, but not with what was asked for.
    Failed(Failure),
    /// Nobody listens any more.
    Over,
}

impl End {
    pub(super) fn of(error: kube::Error) -> Self {
        match error {
            kube::Error::Api(status) => Self::of_status(&status),
            cut @ (kube::Error::HyperError(_) | kube::Error::Service(_) | kube::Error::ReadEvents(_)) => {
                Self::Cut(causes::line(&cut))
            }
            other => Self::Failed(Failure::Unreachable(causes::line(&other))),
        }
    }

    /// `streamed`: a list was asked for as a stream.
    pub(super) fn of_watch(error: kube::Error, streamed: bool) -> Self {
        match error {
            // Invalid, by API servers of which that feature was switched off.
            kube::Error::Api(status) if streamed && matches!(status.code, 400 | 422) => Self::NoStreamedLists,
            other => Self::of(other),
        }
    }

    pub(super) fn of_status(status: &Status) -> Self {
        match status.code {
            404 => Self::NotServed,
            410 => Self::Gone,
            429 | 500..=599 => {
                Self::Failed(Failure::Unreachable(format!("{} {}", status.code, status.message)))
            }
            code => Self::Failed(Failure::Refused(format!("{code} {}", status.message))),
        }
    }

    pub(super) fn slow() -> Self {
        Self::Cut(format!("no answer within {ANSWER_TIMEOUT:?}"))
    }

    pub(super) fn cut() -> Self {
        Self::Cut("a list ended before its end".into())
    }

    pub(super) fn impossible(error: kube::core::request::Error) -> Self {
        Self::Failed(Failure::Refused(error.to_string()))
    }
}
