//! Registers of partial sums to results.

use std::arch::x86_64::{
    __m512, _mm512_add_ps, _mm512_castpd_ps, _mm512_castps_pd, _mm512_mask_storeu_ps,
    _mm512_maskz_loadu_ps, _mm512_setzero_ps, _mm512_shuffle_f32x4, _mm512_unpackhi_pd,
    _mm512_unpackhi_ps, _mm512_unpacklo_pd, _mm512_unpacklo_ps,
};

use super::wide::GROUP;

/// Writes the sums of that many rows and outputs to results of `stride` between rows, or adds them to
/// what is there. Sums come by value: referred to, they would not be held in registers.
///
/// # Safety
/// Those results may be written.
#[expect(unsafe_code, reason = "tasks write different outputs of all rows")]
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) unsafe fn put<const R: usize, const G: usize>(
    sums: [[__m512; G]; R],
    [rows, outputs]: [usize; 2],
    is_more: bool,
    to: *mut f32,
    stride: usize,
) {
    let mask = ((1u32 << outputs) - 1) as u16;
    for (n, sums) in sums.iter().enumerate().take(rows) {
        let mut all = [_mm512_setzero_ps(); GROUP];
        all[..G].copy_from_slice(sums);
        // SAFETY: the caller answers for the numbers under the mask.
        unsafe {
            let to = to.add(n * stride);
            let mut sum = added(all);
            if is_more {
                sum = _mm512_add_ps(_mm512_maskz_loadu_ps(mask, to), sum);
            }
            _mm512_mask_storeu_ps(to, mask, sum);
        }
    }
}

/// The sum of each register's numbers, in its place among the first eight.
#[inline]
#[target_feature(enable = "avx512f")]
fn added(sums: [__m512; GROUP]) -> __m512 {
    let twos: [__m512; 4] = std::array::from_fn(|n| {
        let (a, b) = (sums[2 * n], sums[2 * n + 1]);
        _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b))
    });
    // In each quarter the sums of four registers' quarters.
    let fours: [__m512; 2] = std::array::from_fn(|n| {
        let [a, b] = [twos[2 * n], twos[2 * n + 1]].map(|it| _mm512_castps_pd(it));
        let [low, high] = [_mm512_unpacklo_pd(a, b), _mm512_unpackhi_pd(a, b)];
        _mm512_add_ps(_mm512_castpd_ps(low), _mm512_castpd_ps(high))
    });
    let [a, b] = fours;
    let even = _mm512_shuffle_f32x4::<0x88>(a, b);
    let halves = _mm512_add_ps(even, _mm512_shuffle_f32x4::<0xdd>(a, b));
    let even = _mm512_shuffle_f32x4::<0x88>(halves, halves);
    _mm512_add_ps(even, _mm512_shuffle_f32x4::<0xdd>(halves, halves))
}
