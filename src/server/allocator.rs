//! The system's allocator, made to give memory back and to count what a thread takes.
//!
//! What residency counts as free must be free. glibc keeps freed memory for later in as many
//! arenas as there are threads; other allocators do the like. Measured on the demo under 64
//! clients and some hundred loads, with mimalloc 2: 0.6 to 1.2 GB stayed where 50 MiB were in
//! use. With what is below: 0.11 GB at most.
//!
//! What a tokenizer takes is known to nobody but the allocator: `counted` says what a piece
//! of work on one thread allocated and did not free.

#![cfg_attr(not(all(target_os = "linux", target_env = "gnu")), allow(dead_code))]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::LazyLock;
use std::sync::mpsc::{Sender, channel};

use roundhouse_types::Bytes;

#[cfg(all(target_os = "linux", target_env = "gnu"))]
mod steps;

/// Where blocks are not looked at.
#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
mod steps {
    use std::alloc::Layout;

    pub(super) fn take(_: Layout) -> Option<*mut u8> {
        None
    }

    pub(super) fn is_new(_: *mut u8, _: usize) {}

    pub(super) fn keep(_: *mut u8, _: usize) -> bool {
        false
    }

    pub(super) fn forget(_: *mut u8, _: usize, _: usize) {}
}

/// Allocations from here on are mappings of their own, gone when they are freed: weights, KV's
/// chunks. Smaller ones are reused; those of steps are, too: see [`steps`].
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const OWN_MAPPING: libc::c_int = 1024 * 1024;

/// What the end of an arena may have free before it is handed back without being asked: what small
/// steps and the choice of tokens take, which would else be fresh pages in each.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const FREE_END: libc::c_int = 4 * 1024 * 1024;

/// Arenas: a few against contention; each keeps its own holes.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const ARENAS: libc::c_int = 4;

/// What glibc writes in front of each block, and what a block's size is a multiple of.
const HEADER: usize = 8;
const GRAIN: usize = 16;
/// The smallest block.
const SMALLEST: usize = 32;

/// Sets the allocator up. Call first thing, before there are threads.
pub fn tune() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    #[expect(unsafe_code, reason = "mallopt(3) has no safe wrapper")]
    // SAFETY: plain settings; mallopt takes no pointer, and refuses what it does not know.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, OWN_MAPPING);
        libc::mallopt(libc::M_ARENA_MAX, ARENAS);
        libc::mallopt(libc::M_TRIM_THRESHOLD, FREE_END);
    }
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    roundhouse_models::around_steps(steps::begin, steps::end);
}

/// The thread that hands pages back: who does it holds the locks that all threads allocate under,
/// so it must not be one that gives way. Who asks while it works is answered by its next turn,
/// together with all others. Started by the first to ask, and as urgent.
static TRIMMER: LazyLock<Option<Sender<Sender<()>>>> = LazyLock::new(|| {
    let (asks, asked) = channel::<Sender<()>>();
    let serve = move || {
        while let Ok(first) = asked.recv() {
            let all: Vec<Sender<()>> = std::iter::once(first).chain(asked.try_iter()).collect();
            trim();
            drop(all);
        }
    };
    let started = std::thread::Builder::new().name("trimmer".to_owned()).spawn(serve);
    started.is_ok().then_some(asks)
});

/// Hands every free page back to the system. Takes milliseconds; belongs on a blocking thread.
pub(crate) fn give_back() {
    let (done, wait) = channel();
    match &*TRIMMER {
        Some(trimmer) if trimmer.send(done).is_ok() => {
            // Nothing is sent: the answer is that the sender is gone.
            let _ = wait.recv();
        }
        _ => trim(),
    }
}

/// The same, by the thread that asks: for a process that has but one.
pub(crate) fn trim() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    #[expect(unsafe_code, reason = "malloc_trim(3) has no safe wrapper")]
    // SAFETY: it locks the arenas itself and touches free memory only.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Does some work on this thread and says what it allocated and did not free, in the
/// allocator's own blocks. What other threads do for it is not seen.
pub(crate) fn counted<T>(work: impl FnOnce() -> T) -> (T, Bytes) {
    let before = HELD.get();
    let done = work();
    let held = HELD.get().wrapping_sub(before);
    (done, Bytes(u64::try_from(held).unwrap_or(0)))
}

thread_local! {
    /// Bytes that this thread allocated, less those that it freed: negative where it frees
    /// what others allocated.
    static HELD: Cell<i64> = const { Cell::new(0) };
}

#[global_allocator]
static COUNTING: Counting = Counting;

/// The system's allocator, with a tally per thread, and what [`steps`] keep. The tally costs a
/// nanosecond.
struct Counting;

fn tally(layout: Layout, sign: i64) {
    let block = (layout.size().saturating_add(HEADER + GRAIN - 1) & !(GRAIN - 1)).max(SMALLEST);
    let block = i64::try_from(block).unwrap_or(i64::MAX);
    // A thread that ends frees its last blocks when its tally is gone; nobody asks for it then.
    let _ = HELD.try_with(|held| held.set(held.get().wrapping_add(sign.wrapping_mul(block))));
}

#[expect(unsafe_code, reason = "an allocator cannot be written otherwise")]
// SAFETY: every call is handed to `System` as it came, and its answer handed back as it came, but for
// blocks of `System` that a step freed and nobody else has: those are handed out for layouts they
// suffice for. Neither tally nor steps allocate anything, have a destructor, or unwind.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        tally(layout, 1);
        if let Some(block) = steps::take(layout) {
            return block;
        }
        // SAFETY: the caller keeps `GlobalAlloc::alloc`'s contract, which is `System`'s.
        let block = unsafe { System.alloc(layout) };
        steps::is_new(block, layout.size());
        block
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        tally(layout, 1);
        if let Some(block) = steps::take(layout) {
            // SAFETY: the block is nobody else's and at least as large as the layout.
            unsafe { block.write_bytes(0, layout.size()) };
            return block;
        }
        // SAFETY: as in `alloc`. Zeroed memory of its own mapping is not touched by this.
        let block = unsafe { System.alloc_zeroed(layout) };
        steps::is_new(block, layout.size());
        block
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        tally(layout, -1);
        if steps::keep(block, layout.size()) {
            return;
        }
        // SAFETY: `block` came from `System`, for all of ours do, and it frees by the block alone.
        unsafe { System.dealloc(block, layout) }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        tally(layout, -1);
        // SAFETY: the caller promises that `size`, rounded up to the alignment, does not
        // overflow, which is all that the check would find.
        tally(unsafe { Layout::from_size_align_unchecked(size, layout.align()) }, 1);
        steps::forget(block, layout.size(), size);
        // SAFETY: as in `dealloc`, and the caller keeps `realloc`'s contract.
        let moved = unsafe { System.realloc(block, layout, size) };
        steps::is_new(moved, size);
        moved
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_allocated_and_kept_is_counted_and_what_is_freed_is_not() {
        let (kept, bytes) = counted(|| {
            drop(vec![0_u8; 5000]);
            let mut words: Vec<String> = (0..100).map(|n| format!("word {n}")).collect();
            words.push("more".repeat(300));
            words
        });
        assert_eq!(kept.len(), 101);
        // A hundred smallest blocks, a long word, and the list that holds them.
        let least = 100 * 32 + 1200 + 101 * size_of::<String>() as u64;
        assert!((least..least * 2).contains(&bytes.0), "{bytes:?} against {least}");
        let (_, freed) = counted(|| drop(kept));
        assert_eq!(freed, Bytes::ZERO);
    }
}
