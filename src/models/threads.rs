//! Where a step runs: on one of the threads that its parts are spread over.

use std::cell::Cell;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use roundhouse_types::Bytes;

use crate::linear;

/// What to call on a step's thread before and after it.
struct Calls {
    before: fn(usize),
    after: fn(),
}

static AROUND: OnceLock<Calls> = OnceLock::new();
/// Whether a step has the threads.
static TAKEN: AtomicBool = AtomicBool::new(false);

thread_local! {
    /// What the next step of this thread is charged with.
    static CHARGED: Cell<usize> = const { Cell::new(0) };
}

/// Has functions called before and after each step on the host's processor, on the thread that runs it:
/// the first with half of the bytes that the model is charged for activations of its largest step. The first
/// to ask is heard. A step may begin within another one on the same thread.
pub fn around_steps(before: fn(usize), after: fn()) {
    let _ = AROUND.set(Calls { before, after });
}

/// Says what the next step of this thread is charged with.
pub(crate) fn charge(workspace: Bytes) {
    CHARGED.set(usize::try_from(workspace.0).unwrap_or(usize::MAX));
}

/// Runs a step's work. From a thread that is none of those that compute, each part of the step would be
/// a job to hand over and a wait for its end, so the step as a whole is that job. One at a time: a thread
/// that waits for a part of its step would begin another lane's and finish that first.
pub(crate) fn step<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    let most = CHARGED.take() / 2;
    let is_elsewhere = rayon::current_thread_index().is_none();
    // One thread waits for no part, and begins no other step meanwhile.
    let alone = rayon::current_num_threads() == 1;
    if !is_elsewhere || !alone && TAKEN.swap(true, Ordering::Acquire) {
        let _around = Around::begin(most);
        return work();
    }
    let _taken = (!alone).then_some(Taken);
    let rounds = linear::rounds();
    let (done, matmuls) = rayon::scope(|_| {
        let _around = Around::begin(most);
        let before = linear::matmul_calls();
        let done = linear::rounding(rounds, work);
        (done, linear::matmul_calls() - before)
    });
    linear::count_matmuls(matmuls);
    done
}

/// Gives the threads back, at a panic too.
struct Taken;

impl Drop for Taken {
    fn drop(&mut self) {
        TAKEN.store(false, Ordering::Release);
    }
}

/// Calls what is to be called after a step, at a panic too.
struct Around;

impl Around {
    fn begin(most: usize) -> Self {
        if let Some(calls) = AROUND.get() {
            (calls.before)(most);
        }
        Self
    }
}

impl Drop for Around {
    fn drop(&mut self) {
        if let Some(calls) = AROUND.get() {
            (calls.after)();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_run_beside_each_other_within_each_other_and_after_a_panic() {
        let index = step(rayon::current_thread_index);
        assert!(index.is_some(), "on a thread of the pool");
        let caught = std::panic::catch_unwind(|| step(|| panic!("on purpose")));
        assert!(caught.is_err());
        assert_eq!(step(|| step(|| 3)), 3);
        // The second finds the threads taken and runs where it is.
        let inner = step(|| std::thread::scope(|it| it.spawn(|| step(|| 4)).join().unwrap()));
        assert_eq!(inner, 4);
        assert!(linear::rounding(true, || step(linear::rounds)) && !step(linear::rounds));
        let before = linear::matmul_calls();
        step(linear::count_matmul);
        assert_eq!(linear::matmul_calls() - before, 1);
    }
}
