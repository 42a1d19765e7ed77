//! Large blocks that a step frees, for what it allocates next.
//!
//! Activations are as large as mappings of their own, and fresh pages for each took a quarter of a
//! prompt's time. The thread that runs a step keeps what it frees, to the step's end, and only as long
//! as that and what it has in use are together no more than half of what the model is charged for
//! its largest step, or than was in use at once before: no step takes more memory than is charged, and
//! nothing stays. Of blocks that other threads allocated it knows what it frees.

use std::alloc::Layout;
use std::cell::Cell;
use std::ptr::NonNull;

/// Blocks from here on are kept. Smaller ones the allocator reuses itself.
const LEAST: usize = 128 << 10;
/// What blocks that large are rounded up to, at most.
const PAGE: usize = 4096;
/// How many are kept at most.
const PLACES: usize = 24;

/// A block that nobody uses.
#[derive(Clone, Copy)]
struct Block {
    start: NonNull<u8>,
    bytes: usize,
}

/// What a thread knows of its step. Bytes are those of blocks of at least [`LEAST`].
#[derive(Clone, Copy)]
struct Step {
    in_use: usize,
    /// What may be in use and kept, or was in use at once if that was more.
    most: usize,
    kept: usize,
    blocks: [Option<Block>; PLACES],
}

impl Step {
    const NONE: Self = Self { in_use: 0, most: 0, kept: 0, blocks: [None; PLACES] };

    fn add(&mut self, bytes: usize) {
        self.in_use += bytes;
        self.most = self.most.max(self.in_use);
    }

    /// The smallest kept block that so many bytes fit and do not waste.
    fn take(&mut self, layout: Layout) -> Option<Block> {
        let fits = |block: &Block| {
            (layout.size()..=layout.size() / 2 * 3).contains(&block.bytes)
                && block.start.addr().get().is_multiple_of(layout.align())
        };
        let places = self.blocks.iter_mut().filter(|place| place.as_ref().is_some_and(fits));
        let block = places.min_by_key(|place| place.map_or(usize::MAX, |block| block.bytes))?;
        let block = block.take()?;
        self.kept -= block.bytes;
        self.add(block.bytes);
        Some(block)
    }

    /// Frees kept blocks until one more, whole pages at most, takes no more than there may be.
    fn make_room(&mut self, bytes: usize) {
        let needed = self.in_use.saturating_add(bytes).saturating_add(PAGE);
        while self.kept > 0 && needed + self.kept > self.most {
            self.give_back(usize::MAX);
        }
    }

    /// Frees the smallest kept block of fewer bytes. Whether there was one.
    fn give_back(&mut self, fewer_than: usize) -> bool {
        let smaller = self
            .blocks
            .iter_mut()
            .filter(|place| place.is_some_and(|block| block.bytes < fewer_than));
        let smallest = smaller.min_by_key(|place| place.map_or(usize::MAX, |block| block.bytes));
        let Some(block) = smallest.and_then(Option::take) else {
            return false;
        };
        self.kept -= block.bytes;
        free(block);
        true
    }

    /// Keeps a block that is not used any more, if there is room, before smaller ones.
    fn keep(&mut self, block: Block) -> bool {
        if block.bytes > self.in_use {
            // Another thread's.
            return false;
        }
        self.in_use -= block.bytes;
        loop {
            let fits = self.in_use + self.kept + block.bytes <= self.most;
            let place = self.blocks.iter_mut().find(|place| fits && place.is_none());
            if let Some(place) = place {
                *place = Some(block);
                self.kept += block.bytes;
                return true;
            }
            if !self.give_back(block.bytes) {
                return false;
            }
        }
    }
}

thread_local! {
    /// Steps within steps: a thread may compute a part of another one while it waits.
    static DEPTH: Cell<u32> = const { Cell::new(0) };
    static STEP: Cell<Step> = const { Cell::new(Step::NONE) };
}

/// Does something with this thread's step, if it is in one.
fn within<T>(work: impl FnOnce(&mut Step) -> T) -> Option<T> {
    if DEPTH.get() == 0 {
        return None;
    }
    let look = |cell: &Cell<Step>| {
        let mut step = cell.get();
        let done = work(&mut step);
        cell.set(step);
        done
    };
    STEP.try_with(look).ok()
}

/// This thread begins a step, which may have so many bytes in use and kept.
pub(super) fn begin(most: usize) {
    if DEPTH.get() == 0 {
        STEP.set(Step { most, ..Step::NONE });
    }
    DEPTH.set(DEPTH.get() + 1);
}

/// This thread's step is over: all that it kept is freed.
pub(super) fn end() {
    DEPTH.set(DEPTH.get().saturating_sub(1));
    if DEPTH.get() == 0 {
        STEP.replace(Step::NONE).blocks.into_iter().flatten().for_each(free);
    }
}

/// A kept block for that, if there is one; else there is room for a new one.
pub(super) fn take(layout: Layout) -> Option<*mut u8> {
    if layout.size() < LEAST {
        return None;
    }
    within(|step| {
        let found = step.take(layout);
        if found.is_none() {
            step.make_room(layout.size());
        }
        found
    })
    .flatten()
    .map(|block| block.start.as_ptr())
}

/// A block is new, of so many bytes asked for.
pub(super) fn is_new(start: *mut u8, asked: usize) {
    if asked >= LEAST && !start.is_null() {
        within(|step| step.add(bytes_of(start)));
    }
}

/// Whether a block that is freed is kept.
pub(super) fn keep(start: *mut u8, asked: usize) -> bool {
    let Some(block) = NonNull::new(start).filter(|_| asked >= LEAST) else {
        return false;
    };
    within(|step| step.keep(Block { start: block, bytes: bytes_of(start) })).unwrap_or(false)
}

/// A block leaves the step's books: it is about to become one of another size.
pub(super) fn forget(start: *mut u8, asked: usize, next: usize) {
    if asked.max(next) < LEAST {
        return;
    }
    within(|step| {
        if asked >= LEAST {
            step.in_use = step.in_use.saturating_sub(bytes_of(start));
        }
        step.make_room(next);
    });
}

#[expect(unsafe_code, reason = "malloc_usable_size(3) has no safe wrapper")]
fn bytes_of(start: *mut u8) -> usize {
    // SAFETY: callers have the block from the system's allocator, and it is not freed yet.
    unsafe { libc::malloc_usable_size(start.cast()) }
}

#[expect(unsafe_code, reason = "free(3) has no safe wrapper")]
fn free(block: Block) {
    // SAFETY: it came from the system's allocator, was handed over by who freed it, and left the
    // books with this call.
    unsafe { libc::free(block.start.as_ptr().cast()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: usize = 1 << 20;

    fn block(bytes: usize) -> Vec<u8> {
        let mut block = Vec::with_capacity(bytes);
        block.push(1);
        block
    }

    #[test]
    fn what_a_step_frees_is_what_it_allocates_next_and_goes_with_it() {
        begin(0);
        let first = block(3 * MIB);
        let start = first.as_ptr();
        drop(first);
        assert_eq!(STEP.get().kept, bytes_of(start.cast_mut()));
        let second = block(5 * MIB / 2);
        assert_eq!(second.as_ptr(), start, "a larger one that is not wasted");
        assert_eq!(STEP.get().kept, 0);
        drop(vec![1_u8; 4 * MIB]);
        let zeroed = vec![0_u8; 4 * MIB];
        assert_eq!(STEP.get().kept, 0, "zeroed ones are such, too");
        assert!(zeroed.iter().all(|byte| *byte == 0));
        let grown = [second, zeroed].concat();
        drop(grown);
        // One within it frees nothing of it.
        begin(0);
        end();
        assert!(STEP.get().kept > 0);
        end();
        assert!(STEP.get().kept == 0 && DEPTH.get() == 0);
        let after = block(3 * MIB);
        drop(after);
        assert_eq!(STEP.get().kept, 0, "nothing is kept between steps");
    }

    #[test]
    fn used_and_kept_are_never_more_than_was_used_at_once() {
        begin(0);
        let mut held: Vec<Vec<u8>> = Vec::with_capacity(64);
        let (mut most, mut turn) = (0, 7_u32);
        for _ in 0..2_000 {
            turn = turn.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let bytes = (64 << 10) + (turn >> 12) as usize % (4 * MIB);
            match turn >> 30 {
                0 | 1 if held.len() < 40 => held.push(block(bytes)),
                2 if !held.is_empty() => held[0].reserve_exact(bytes),
                _ if !held.is_empty() => drop(held.swap_remove(turn as usize % held.len())),
                _ => {}
            }
            let used = held.iter().map(|it| it.as_ptr().cast_mut()).map(bytes_of);
            let used: usize = used.filter(|bytes| *bytes >= LEAST).sum();
            most = most.max(used);
            let step = STEP.get();
            assert_eq!(step.in_use, used);
            assert!(step.in_use + step.kept <= step.most, "{} {}", step.in_use, step.kept);
            assert!(step.most <= most + 5 * MIB, "a block that is moved is there twice");
        }
        drop(held);
        end();
    }
}
