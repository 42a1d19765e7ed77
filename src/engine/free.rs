//! Memory that is given back where nobody waits for it.

use tracing::warn;

/// Drops what holds memory, on a thread of its own: giving back gigabytes takes longer than a step,
/// and others' steps wait for the lane. `then` is dropped after it.
pub(crate) fn free(held: impl Send + 'static, then: impl Send + 'static) {
    let work = move || {
        drop(held);
        drop(then);
    };
    // Where the system gives no thread, the work is dropped here: the same, but on the lane.
    if let Err(error) = std::thread::Builder::new().name("free".to_owned()).spawn(work) {
        warn!(%error, "memory is freed on its lane");
    }
}
