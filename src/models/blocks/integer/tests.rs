//! Kernels against sums in f64, against each other, and against what rounding may do.

use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{Device, Tensor};

use super::*;

/// What the tensor library calls each, where it has it.
const FORMATS: [(BlockFormat, Option<GgmlDType>); 9] = [
    (BlockFormat::Q4_0, Some(GgmlDType::Q4_0)),
    (BlockFormat::Q4_1, Some(GgmlDType::Q4_1)),
    (BlockFormat::Q5_0, Some(GgmlDType::Q5_0)),
    (BlockFormat::Q5_1, Some(GgmlDType::Q5_1)),
    (BlockFormat::Q8_0, Some(GgmlDType::Q8_0)),
    (BlockFormat::Q4K, Some(GgmlDType::Q4K)),
    (BlockFormat::Q5K, Some(GgmlDType::Q5K)),
    (BlockFormat::Q6K, Some(GgmlDType::Q6K)),
    (BlockFormat::Mxfp4, None),
];

/// Numbers between minus two and two that look random and are the same everywhere.
fn numbers(count: usize, seed: u32) -> Vec<f32> {
    let mut state = seed.wrapping_mul(2_654_435_761).wrapping_add(1);
    let next = |_| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 24) as f32 * 4.0 - 2.0
    };
    (0..count).map(next).collect()
}

/// Weights of one format: their bytes, and as f32.
fn weights(
    (format, dtype): (BlockFormat, Option<GgmlDType>),
    outputs: usize,
    columns: usize,
) -> (Vec<u8>, Vec<f32>) {
    let Some(dtype) = dtype else { return packed(format, outputs * columns) };
    let floats = numbers(outputs * columns, 5);
    let floats = Tensor::from_vec(floats, (outputs, columns), &Device::Cpu).unwrap();
    let quantized = QTensor::quantize(&floats, dtype).unwrap();
    let wide = quantized.dequantize(&Device::Cpu).unwrap().flatten_all().unwrap();
    (quantized.data().unwrap().into_owned(), wide.to_vec1().unwrap())
}

/// Blocks of any bytes behind scales of a quarter to one.
fn packed(format: BlockFormat, count: usize) -> (Vec<u8>, Vec<f32>) {
    let bytes = numbers(count / format.values() * format.bytes(), 5);
    let byte = |number: f32| ((number + 2.0) * 64.0) as u8;
    let mut bytes: Vec<u8> = bytes.into_iter().map(byte).collect();
    for block in bytes.chunks_exact_mut(format.bytes()) {
        block[0] = 125 + block[0] % 3;
    }
    let mut wide = Vec::new();
    crate::blocks::widen(crate::format::Format::Blocks(format), &bytes, &mut wide);
    (bytes, wide)
}

fn product(
    format: BlockFormat,
    bytes: &[u8],
    outputs: usize,
    x: &[f32],
    columns: usize,
) -> Vec<f32> {
    let pieces = Pieces::of(x, columns);
    let stride = columns / format.values() * format.bytes();
    let part =
        Part { format: crate::format::Format::Blocks(format), rows: outputs, stride, data: bytes };
    // Something before and after.
    let width = outputs + 5;
    let mut y = vec![0.0; x.len() / columns * width];
    multiply(format, &part, &pieces, &mut y, (2, width));
    y.chunks_exact(width).flat_map(|row| row[2..2 + outputs].to_vec()).collect()
}

/// Inputs as they should be rounded.
fn rounded(x: &[f32]) -> Vec<f64> {
    let block = |x: &[f32]| -> Vec<f64> {
        let largest = x.iter().fold(0.0f32, |largest, x| largest.max(x.abs()));
        let steps = 127.0 / largest;
        x.iter()
            .map(|x| f64::from((x * steps).round_ties_even()) * f64::from(largest / 127.0))
            .collect()
    };
    x.chunks(TOGETHER).flat_map(block).collect()
}

#[test]
fn products_are_sums_of_rounded_inputs_times_weights_in_every_format_and_shape() {
    for (format, dtype) in FORMATS {
        let columns = [format.values(), 3 * format.values(), 1536];
        for (rows, outputs, columns) in
            [(1, 1, columns[0]), (3, 17, columns[1]), (300, 40, columns[0]), (2, 130, columns[2])]
        {
            let (bytes, wide) = weights((format, dtype), outputs, columns);
            let x = numbers(rows * columns, 77);
            let got = product(format, &bytes, outputs, &x, columns);
            let near = rounded(&x);
            for (at, got) in got.iter().enumerate() {
                let weights = &wide[at % outputs * columns..][..columns];
                let start = at / outputs * columns;
                let sum = |x: &dyn Fn(usize) -> f64| -> f64 {
                    weights.iter().enumerate().map(|(k, w)| f64::from(*w) * x(start + k)).sum()
                };
                let (want, exact) = (sum(&|at| near[at]), sum(&|at| f64::from(x[at])));
                let got = f64::from(*got);
                assert!(
                    (got - want).abs() < 1e-3,
                    "{format:?} {rows} {outputs} {columns}: {got} {want}"
                );
                // Half a step of at most 2/127 for each input, times its weight.
                let bound: f64 = weights.iter().map(|w| f64::from(w.abs()) / 127.0).sum();
                assert!((got - exact).abs() <= bound + 1e-3, "{format:?}: {got} {exact} {bound}");
            }
        }
    }
}

#[test]
fn a_row_gives_the_same_bits_in_any_company() {
    for (format, dtype) in FORMATS {
        let (columns, outputs) = (2 * format.values(), 50);
        let (bytes, _) = weights((format, dtype), outputs, columns);
        let x = numbers(300 * columns, 9);
        let all = product(format, &bytes, outputs, &x, columns);
        for (first, rows) in [(0, 1), (7, 2), (250, 9), (299, 1)] {
            let x = &x[first * columns..(first + rows) * columns];
            let some = product(format, &bytes, outputs, x, columns);
            assert_eq!(some, all[first * outputs..(first + rows) * outputs], "{format:?}");
        }
    }
}

#[test]
fn plain_loops_give_the_same_bits_as_the_widest_kernel() {
    for (format, dtype) in FORMATS {
        let (columns, outputs, rows) = (2 * format.values(), 11, 5);
        let (bytes, _) = weights((format, dtype), outputs, columns);
        let pieces = Pieces::of(&numbers(rows * columns, 9), columns);
        let stride = bytes.len() / outputs;
        let mut sums = [vec![Lanes([0.0; OUTPUTS]); rows], vec![Lanes([0.0; OUTPUTS]); rows]];
        sixteen(format, &bytes, stride, &pieces.pieces, &mut sums[0]);
        let (weights, pieces) = (&bytes[..], &pieces.pieces[..]);
        simd::dispatch(plain::Sixteen { format, weights, stride, pieces, sums: &mut sums[1] });
        for (widest, plain) in sums[0].iter().zip(&sums[1]) {
            for (a, b) in widest.0[..outputs].iter().zip(&plain.0) {
                // The same to the bit where an addition is fused; else nearly.
                assert!((a - b).abs() <= 1e-4 * a.abs().max(1.0), "{format:?}: {a} {b}");
                #[cfg(target_arch = "x86_64")]
                if is_x86_feature_detected!("fma") {
                    assert_eq!(a.to_bits(), b.to_bits(), "{format:?}: {a} {b}");
                }
            }
        }
    }
}

#[test]
fn scales_of_four_bit_floats_are_powers_of_two_from_the_smallest_on() {
    for exponent in [0u8, 1, 2, 3, 126, 127, 200] {
        // A one, and all others nothing.
        let mut block = [0u8; 17];
        (block[0], block[1]) = (exponent, 2);
        let mut x = [0.0; 32];
        x[0] = 1.0;
        let got = f64::from(product(BlockFormat::Mxfp4, &block, 1, &x, 32)[0]);
        let want = 2f64.powi(i32::from(exponent) - 127);
        assert!((got / want - 1.0).abs() < 1e-2, "{exponent}: {got} {want}");
    }
}

#[test]
fn nothing_next_to_nothing_and_what_is_not_finite() {
    let (columns, outputs) = (64, 3);
    let (bytes, _) = weights((BlockFormat::Q8_0, Some(GgmlDType::Q8_0)), outputs, columns);
    let product = |x: &[f32]| product(BlockFormat::Q8_0, &bytes, outputs, x, columns);
    assert!(product(&[0.0; 64]).iter().all(|y| *y == 0.0));
    assert!(product(&[1e-40; 64]).iter().all(|y| y.abs() < 1e-35));
    assert!(product(&[3e35; 64]).iter().all(|y| y.is_finite()));
    for odd in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let mut x = [1.0; 128];
        x[40] = odd;
        let y = product(&x);
        assert!(y[..outputs].iter().all(|y| !y.is_finite()), "{odd}: {y:?}");
        assert!(y[outputs..].iter().all(|y| y.is_finite()), "{odd} is its own row's");
    }
}
