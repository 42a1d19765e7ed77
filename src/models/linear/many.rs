//! Projections by weights of any float type: single rows, batches, and prompts where there is
//! nothing faster.
//!
//! Weights are read as they lie: sums of some outputs for some rows are held in registers while their
//! inputs pass by, sixteen or 32 at a time, so that each load serves several products; the
//! weights of the next outputs are brought in meanwhile. With eight rows side by side a weight is
//! widened once for all of them. Rows that would push each other out of the first cache are laid out
//! in lines. Where the CPU has no registers that wide, rows go by eights through the kernel for few.

use half::bf16;

use super::FEW_ROWS;
use super::few::{self, Weight};

#[cfg(target_arch = "x86_64")]
mod added;
#[cfg(target_arch = "x86_64")]
mod floats;
#[cfg(target_arch = "x86_64")]
mod rounded;
#[cfg(target_arch = "x86_64")]
mod wide;

/// Whether this machine has the registers that make it faster than packing weights.
pub(super) fn is_wide() -> bool {
    #[cfg(target_arch = "x86_64")]
    {
        is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("fma")
    }
    #[cfg(not(target_arch = "x86_64"))]
    false
}

/// `x W^T`, `[rows, outputs]`.
pub(super) fn multiply<W: Weight>(
    x: &[f32],
    weight: &[W],
    [rows, inputs, outputs]: [usize; 3],
) -> Vec<f32> {
    assert!(x.len() == rows * inputs && weight.len() == outputs * inputs, "shapes are checked");
    let is_empty = rows * inputs * outputs == 0;
    #[cfg(target_arch = "x86_64")]
    if is_wide() && !is_empty {
        if rows > wide::SIDE && floats::are_apart::<W>(inputs) {
            let x = floats::in_lines::<W>(x, inputs);
            return wide::multiply::<floats::InLines<W>>(x.get(), weight, inputs);
        }
        return wide::multiply::<floats::Lying<W>>(x, weight, inputs);
    }
    let mut y = vec![0.0; rows * outputs];
    if is_empty {
        return y;
    }
    for (x, y) in x.chunks(FEW_ROWS * inputs).zip(y.chunks_mut(FEW_ROWS * outputs)) {
        y.copy_from_slice(&few::multiply(x, weight, x.len() / inputs, inputs));
    }
    y
}

/// `x W^T` of `x` rounded to bf16, where the processor multiplies those faster.
pub(super) fn multiply_rounded(
    x: &[f32],
    weight: &[bf16],
    [rows, inputs, outputs]: [usize; 3],
) -> Option<Vec<f32>> {
    assert!(x.len() == rows * inputs && weight.len() == outputs * inputs, "shapes are checked");
    #[cfg(target_arch = "x86_64")]
    if rounded::is_here() && rows * inputs * outputs > 0 {
        return Some(rounded::project(x, weight, inputs));
    }
    None
}

#[cfg(test)]
mod tests {
    use half::f16;

    use super::*;

    fn number(at: usize) -> f32 {
        ((at * 7919 % 10_007) as f32 - 5003.0) / 4096.0
    }

    fn equal<W: Weight>(narrow: fn(f32) -> W, shape: [usize; 3]) {
        let [rows, inputs, outputs] = shape;
        let x: Vec<f32> = (0..rows * inputs).map(number).collect();
        let weight: Vec<W> = (0..outputs * inputs).map(|at| narrow(number(at + 5))).collect();
        close(&multiply(&x, &weight, shape), &x, &weight, shape);
    }

    fn close<W: Weight>(
        y: &[f32],
        x: &[f32],
        weight: &[W],
        shape @ [rows, inputs, outputs]: [usize; 3],
    ) {
        assert_eq!(y.len(), rows * outputs);
        for (at, got) in y.iter().enumerate() {
            let (row, output) = (at / outputs, at % outputs);
            let terms = x[row * inputs..][..inputs].iter().zip(&weight[output * inputs..]);
            let terms = terms.map(|(x, w)| f64::from(*x) * f64::from(w.widen()));
            let (sum, size) =
                terms.fold((0.0, 0.0), |(sum, size), term| (sum + term, size + term.abs()));
            let apart = (f64::from(*got) - sum).abs();
            assert!(apart <= 1e-6 * size, "{shape:?}, {at}: {got} {sum}");
        }
    }

    #[test]
    fn products_are_those_of_plain_loops_in_every_shape_and_type() {
        for shape in [
            [1, 1, 1],
            [2, 16, 8],
            [3, 15, 7],
            [4, 17, 9],
            [9, 100, 64],
            [31, 576, 33],
            [200, 40, 21],
            [10, 2100, 20],
            [9, 1024, 11],
            [205, 3072, 9],
            [0, 64, 64],
            [3, 0, 5],
            [3, 64, 0],
        ] {
            equal(|number| number, shape);
            equal(f16::from_f32, shape);
            equal(bf16::from_f32, shape);
        }
    }

    #[test]
    fn every_shape_of_registers_computes_whole_and_partial_groups_in_one_and_more_parts() {
        for rows in (1..=9).chain([12, 14, 21, 193]) {
            for inputs in [15, 16, 1024, 1041] {
                for outputs in [1, 5, 23, 25] {
                    equal(bf16::from_f32, [rows, inputs, outputs]);
                }
            }
        }
    }

    #[test]
    fn products_of_rounded_rows_are_those_of_the_numbers_they_are_rounded_to() {
        let inputs = [1, 31, 32, 33, 96, 576, 2048, 2100, 4100];
        let shapes = (1..=9).chain([12, 21, 193]).zip(inputs.into_iter().cycle());
        for (rows, inputs) in shapes {
            for outputs in [1, 5, 8, 23, 200] {
                let x: Vec<f32> = (0..rows * inputs).map(number).collect();
                let weight: Vec<bf16> =
                    (0..outputs * inputs).map(|at| bf16::from_f32(number(at + 5))).collect();
                let shape = [rows, inputs, outputs];
                // Elsewhere `floats` rounds.
                let Some(y) = multiply_rounded(&x, &weight, shape) else { return };
                let rounded: Vec<f32> = x.iter().map(|x| bf16::from_f32(*x).to_f32()).collect();
                close(&y, &rounded, &weight, shape);
            }
        }
    }

    #[test]
    fn what_is_no_number_stays_none_when_it_is_rounded() {
        let x = [f32::NAN, f32::from_bits(0x7fff_ffff), f32::INFINITY, 1.0];
        let Some(y) = multiply_rounded(&x, &[bf16::ONE], [4, 1, 1]) else { return };
        assert!(y[0].is_nan() && y[1].is_nan() && y[2].is_infinite() && y[3] == 1.0, "{y:?}");
    }

    #[cfg(target_arch = "x86_64")]
    #[test]
    fn a_task_of_several_blocks_computes_each_of_them() {
        fn equal<W: Weight>(narrow: fn(f32) -> W) {
            let [rows, inputs, outputs] = [11, 800, 300];
            let x: Vec<f32> = (0..rows * inputs).map(number).collect();
            let weight: Vec<W> = (0..outputs * inputs).map(|at| narrow(number(at + 5))).collect();
            let whole = wide::in_one_task::<floats::Lying<W>>(&x, &weight, inputs);
            for output in 0..outputs {
                let own = &weight[output * inputs..][..inputs];
                let alone = multiply(&x, own, [rows, inputs, 1]);
                for (row, alone) in alone.iter().enumerate() {
                    let apart = (whole[row * outputs + output] - alone).abs();
                    assert!(apart < 1e-2, "row {row}, output {output}: {apart}");
                }
            }
        }
        if is_wide() {
            equal(|number| number);
            equal(f16::from_f32);
            equal(bf16::from_f32);
        }
    }
}
