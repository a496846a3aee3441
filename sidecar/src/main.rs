//! `heddle-sidecar`: see `heddle_sidecar::cli`.

use std::process::ExitCode;

use heddle_api::causes;
use heddle_sidecar::output;

/// glibc's allocator keeps what it once had; jemalloc was ahead of it and of
/// mimalloc in memory and time.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// Read by jemalloc before `main`. No huge pages: they multiply the memory of
/// an idle process. Free memory goes back after five seconds, not ten.
//
// SAFETY: the symbol is the one that jemalloc declares for this purpose
// (`const char *_rjem_malloc_conf`); a reference to a byte has that
// representation, and the text ends with NUL and lives for ever.
#[allow(unsafe_code)]
#[unsafe(export_name = "_rjem_malloc_conf")]
pub static MALLOC_CONF: Option<&u8> = Some(&b"thp:never,dirty_decay_ms:5000,muzzy_decay_ms:0\0"[0]);

fn main() -> ExitCode {
    match heddle_sidecar::cli::run(std::env::args_os()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // One line with all causes; a person has no use for a backtrace.
            output::complain(&format!("heddle-sidecar: {}", causes::line(error.as_ref())));
            ExitCode::FAILURE
        }
    }
}
