//! The allocator's settings that can only be made while the process runs.

/// Lets jemalloc return memory that became free by threads of its own, so that
/// an idle sidecar gives back what a busy hour took.
///
/// Not set from the start: `run` creates a user namespace, which the kernel
/// allows to single-threaded processes only.
pub(crate) fn return_in_background() {
    if let Err(error) = tikv_jemalloc_ctl::background_thread::write(true) {
        tracing::debug!(%error, "the allocator has no background threads");
    }
}
