//! Errors with what caused them, as one line for a person.

use std::error::Error;

/// What `error` says, and after it what caused it, each once: many errors repeat in their own text
/// what their cause says.
pub fn line(error: &dyn Error) -> String {
    let mut line = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let text = cause.to_string();
        if !line.contains(&text) {
            line.push_str(": ");
            line.push_str(&text);
        }
        source = cause.source();
    }
    line
}

/// What the first cause of all says.
pub fn root(error: &dyn Error) -> String {
    let mut innermost = error;
    while let Some(cause) = innermost.source() {
        innermost = cause;
    }
    innermost.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("{said}")]
    struct Fault {
        said: &'static str,
        source: Option<Box<Self>>,
    }

    fn fault(said: &'static str, source: Option<Fault>) -> Fault {
        Fault { said, source: source.map(Box::new) }
    }

    #[test]
    fn each_cause_is_said_once() {
        let refused = || fault("connection refused", None);
        assert_eq!(line(&fault("no answer", Some(refused()))), "no answer: connection refused");
        let repeats = fault("no answer: connection refused", Some(refused()));
        assert_eq!(line(&repeats), "no answer: connection refused");
        let outer = fault("not ready", Some(repeats));
        assert_eq!(line(&outer), "not ready: no answer: connection refused");
        assert_eq!(root(&outer), "connection refused");
        assert_eq!(root(&refused()), "connection refused");
    }
}
