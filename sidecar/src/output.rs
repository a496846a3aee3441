//! What commands print for a person or the next command of a pipe.
//!
//! `println!` panics where nothing can be written. A reader that has seen enough, as `head` has, is no
//! failure; a disk that is full is one, and is told of.

use std::io::{self, ErrorKind, Write};

use anyhow::Context;

/// Writes `text` to standard output, as far as somebody reads it.
///
/// # Errors
/// If it cannot be written for another reason than that nobody reads any more.
pub fn print(text: &str) -> anyhow::Result<()> {
    match write(text) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        result => result.context("cannot write to standard output"),
    }
}

/// Writes `text` to standard output.
///
/// # Errors
/// If it cannot be written, also because nobody reads any more.
pub fn write(text: &str) -> io::Result<()> {
    let mut output = io::stdout().lock();
    output.write_all(text.as_bytes())?;
    output.flush()
}

/// Writes a line to standard error. That nobody reads it changes nothing.
pub fn complain(line: &str) {
    let _ = writeln!(io::stderr(), "{line}");
}
