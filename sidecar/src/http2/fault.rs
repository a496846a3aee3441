//! What an error of h2 means, and which code carries it on.

use h2::Reason as Code;

use crate::reason::Reason;

/// Why there was no response, or why it broke off.
pub(crate) fn reason(error: &h2::Error) -> Reason {
    if error.is_remote() && (error.is_go_away() || error.reason() == Some(Code::REFUSED_STREAM)) {
        // h2 ends by a GOAWAY only those streams that it says were not
        // processed (RFC 9113, section 6.8).
        Reason::RefusedStream
    } else if error.is_library() && error.is_reset() {
        Reason::BadResponse
    } else if let Some(io) = error.get_io() {
        crate::upstream::broken(io)
    } else {
        Reason::Reset
    }
}

/// The code for a client whose response broke off upstream. Codes about the
/// upstream connection, or that invite the client to repeat what was half
/// answered, are not its business.
pub(crate) fn code(error: &h2::Error) -> Code {
    match error.reason() {
        Some(Code::REFUSED_STREAM) => Code::CANCEL,
        Some(code) if error.is_reset() && error.is_remote() => code,
        _ => Code::INTERNAL_ERROR,
    }
}
