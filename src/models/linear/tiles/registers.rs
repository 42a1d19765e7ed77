//! The tile registers: whether there are any, their configuration, and what is done in them.

use std::arch::asm;
use std::arch::x86_64::__cpuid_count;
use std::marker::PhantomData;
use std::sync::LazyLock;

use super::packed::{Line, SIDE};

/// Four tiles of sums.
pub(super) type Sums = [Line; 4 * SIDE];

/// Whether this machine has tiles of bf16 and lets us use them.
pub(in crate::linear) fn are_here() -> bool {
    static HERE: LazyLock<bool> = LazyLock::new(|| {
        const LEAF: u32 = 7;
        const BF16: u32 = 1 << 22;
        const TILE: u32 = 1 << 24;
        let has = __cpuid_count(LEAF, 0).edx;
        has & BF16 != 0
            && has & TILE != 0
            && is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512bf16")
            && permitted()
    });
    *HERE
}

/// Asks the kernel for the tiles' state in this process, all of its threads.
#[expect(unsafe_code, reason = "arch_prctl(2) has no wrapper")]
fn permitted() -> bool {
    const ARCH_PRCTL: i64 = 158;
    const REQUEST_PERMISSION: i64 = 0x1023;
    const TILE_DATA: i64 = 18;
    let result: i64;
    // SAFETY: the call takes two numbers, changes no memory, and fails where it is not known.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") ARCH_PRCTL => result,
            in("rdi") REQUEST_PERMISSION,
            in("rsi") TILE_DATA,
            lateout("rcx") _,
            lateout("r11") _,
            options(nostack),
        );
    }
    result == 0
}

/// Some steps through the weights of a group.
#[derive(Clone, Copy)]
pub(super) struct Steps {
    /// The first step's, of 32 outputs `stride` bytes apart.
    pub(super) weights: *const u8,
    pub(super) stride: usize,
    pub(super) count: usize,
    /// What will be read next, and how many lines of 64 bytes of it are brought in by each step.
    pub(super) next: *const u8,
    pub(super) ahead: usize,
}

/// This thread's tile registers, from their configuration to their release: eight of 16 rows of
/// 64 bytes. Not to be held where the thread may do something else.
pub(super) struct Tiles(PhantomData<*mut ()>);

#[derive(Debug)]
#[repr(C, align(64))]
struct Palette {
    kind: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

impl Tiles {
    pub(super) fn configured() -> Self {
        let eight = |index: usize| index < 8;
        let palette = Palette {
            kind: 1,
            start_row: 0,
            reserved: [0; 14],
            row_bytes: std::array::from_fn(|tile| if eight(tile) { 64 } else { 0 }),
            rows: std::array::from_fn(|tile| if eight(tile) { 16 } else { 0 }),
        };
        #[expect(unsafe_code, reason = "tiles have instructions only")]
        // SAFETY: `multiply` made sure that there are tiles; the palette is a valid one.
        unsafe {
            asm!("ldtilecfg [{}]", in(reg) &raw const palette, options(nostack, readonly));
        }
        Self(PhantomData)
    }

    /// Multiplies the weights of 32 outputs with the packed activations of a block. `sums` are
    /// four tiles, by the first and last 16 outputs, each by the first and last 16 rows, or, of a
    /// block that is not `wide`, by the largest and the smaller parts. They are begun anew if `fresh`.
    pub(super) fn multiply(
        &self,
        wide: bool,
        fresh: bool,
        steps: Steps,
        packed: *const Line,
        sums: &mut Sums,
    ) {
        let Steps { weights, stride, count, next, ahead } = steps;
        let lower = weights.wrapping_add(SIDE * stride);
        debug_assert!(count > 0, "the loop runs at least once");
        #[expect(unsafe_code, reason = "tiles have instructions only")]
        // SAFETY: the tiles are configured; `count` steps of 64 bytes lie in each of 32 rows of
        // weights and, of 1 or 2 times 48 lines, in the packed activations, as the caller sees to;
        // prefetching cannot fault. All registers that change are named.
        unsafe {
            asm!(
                "test {fresh}, {fresh}",
                "jnz 2f",
                "tileloadd tmm0, [{sums} + {line}*1]",
                "tileloadd tmm1, [{sums} + {line}*1 + 1024]",
                "tileloadd tmm2, [{sums} + {line}*1 + 2048]",
                "tileloadd tmm3, [{sums} + {line}*1 + 3072]",
                "jmp 3f",
                "2:",
                "tilezero tmm0",
                "tilezero tmm1",
                "tilezero tmm2",
                "tilezero tmm3",
                "3:",
                "tileloadd tmm4, [{upper} + {stride}*1]",
                "tileloadd tmm6, [{packed} + {line}*1]",
                "tileloadd tmm7, [{packed} + {line}*1 + 1024]",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "tileloadd tmm5, [{lower} + {stride}*1]",
                "tdpbf16ps tmm1, tmm4, tmm7",
                "tdpbf16ps tmm2, tmm5, tmm6",
                "tdpbf16ps tmm3, tmm5, tmm7",
                "tileloadd tmm6, [{packed} + {line}*1 + 2048]",
                "test {wide}, {wide}",
                "jnz 4f",
                "tdpbf16ps tmm1, tmm4, tmm6",
                "tdpbf16ps tmm3, tmm5, tmm6",
                "add {packed}, 3072",
                "jmp 7f",
                "4:",
                "tileloadd tmm7, [{packed} + {line}*1 + 3072]",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "tdpbf16ps tmm2, tmm5, tmm6",
                "tileloadd tmm6, [{packed} + {line}*1 + 4096]",
                "tdpbf16ps tmm1, tmm4, tmm7",
                "tdpbf16ps tmm3, tmm5, tmm7",
                "tileloadd tmm7, [{packed} + {line}*1 + 5120]",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "tdpbf16ps tmm2, tmm5, tmm6",
                "tdpbf16ps tmm1, tmm4, tmm7",
                "tdpbf16ps tmm3, tmm5, tmm7",
                "add {packed}, 6144",
                "7:",
                "mov {left:e}, {ahead:e}",
                "test {left:e}, {left:e}",
                "jz 6f",
                "5:",
                "prefetcht1 [{next}]",
                "add {next}, 64",
                "dec {left:e}",
                "jnz 5b",
                "6:",
                "add {upper}, 64",
                "add {lower}, 64",
                "dec {count}",
                "jnz 3b",
                "tilestored [{sums} + {line}*1], tmm0",
                "tilestored [{sums} + {line}*1 + 1024], tmm1",
                "tilestored [{sums} + {line}*1 + 2048], tmm2",
                "tilestored [{sums} + {line}*1 + 3072], tmm3",
                fresh = in(reg) usize::from(fresh),
                wide = in(reg) usize::from(wide),
                upper = inout(reg) weights => _,
                lower = inout(reg) lower => _,
                packed = inout(reg) packed => _,
                next = inout(reg) next => _,
                count = inout(reg) count => _,
                left = out(reg) _,
                stride = in(reg) stride,
                line = in(reg) size_of::<Line>(),
                ahead = in(reg) ahead,
                sums = in(reg) sums.as_mut_ptr(),
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                options(nostack),
            );
        }
    }
}

impl Drop for Tiles {
    fn drop(&mut self) {
        #[expect(unsafe_code, reason = "tiles have instructions only")]
        // SAFETY: it returns the registers to their first state.
        unsafe {
            asm!("tilerelease", options(nostack, nomem));
        }
    }
}
