//! Kernels against candle's own numbers, and buffers that are not what they say.

use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{Device, Tensor};

use super::*;
use crate::format::BlockFormat;

/// Those that the tensor library has, too.
const FORMATS: [(BlockFormat, GgmlDType); 8] = [
    (BlockFormat::Q4_0, GgmlDType::Q4_0),
    (BlockFormat::Q4_1, GgmlDType::Q4_1),
    (BlockFormat::Q5_0, GgmlDType::Q5_0),
    (BlockFormat::Q5_1, GgmlDType::Q5_1),
    (BlockFormat::Q8_0, GgmlDType::Q8_0),
    (BlockFormat::Q4K, GgmlDType::Q4K),
    (BlockFormat::Q5K, GgmlDType::Q5K),
    (BlockFormat::Q6K, GgmlDType::Q6K),
];

fn numbers(count: usize, from: usize) -> Vec<f32> {
    let number = |i: usize| (((i * 7919 + i / 13) % 1009) as f32 - 504.0) / 512.0;
    (from..from + count).map(number).collect()
}

fn matrix(rows: usize, columns: usize) -> Tensor {
    Tensor::from_vec(numbers(rows * columns, 11), (rows, columns), &Device::Cpu).unwrap()
}

/// A parameter of parts of those rows, all of `columns`, and the same in f32.
fn parameter(columns: usize, parts: &[(Format, usize)]) -> (Tensor, Tensor) {
    let (formats, rows): (Vec<_>, Vec<_>) = parts.iter().copied().unzip();
    let mut bytes = table(columns, &rows, &Layout(formats)).to_vec();
    let mut wide = Vec::new();
    for (format, rows) in parts {
        let floats = matrix(*rows, columns);
        match format {
            Format::F32 => {
                let floats = floats.flatten_all().unwrap().to_vec1::<f32>().unwrap();
                bytes.extend(floats.iter().flat_map(|number| number.to_le_bytes()));
                wide.push(matrix(*rows, columns));
            }
            Format::F16 => {
                let halves = floats.to_dtype(candle_core::DType::F16).unwrap();
                let numbers = halves.flatten_all().unwrap().to_vec1::<half::f16>().unwrap();
                bytes.extend(numbers.iter().flat_map(|number| number.to_le_bytes()));
                wide.push(halves.to_dtype(candle_core::DType::F32).unwrap());
            }
            Format::Bf16 => {
                let halves = floats.to_dtype(candle_core::DType::BF16).unwrap();
                let numbers = halves.flatten_all().unwrap().to_vec1::<half::bf16>().unwrap();
                bytes.extend(numbers.iter().flat_map(|number| number.to_le_bytes()));
                wide.push(halves.to_dtype(candle_core::DType::F32).unwrap());
            }
            Format::Blocks(format) => {
                let (_, dtype) = FORMATS.iter().find(|(ours, _)| ours == format).unwrap();
                let quantized = QTensor::quantize(&floats, *dtype).unwrap();
                bytes.extend_from_slice(&quantized.data().unwrap());
                wide.push(quantized.dequantize(&Device::Cpu).unwrap());
            }
        }
    }
    let size = bytes.len();
    let bytes = Tensor::from_vec(bytes, size, &Device::Cpu).unwrap();
    (bytes, Tensor::cat(&wide, 0).unwrap())
}

#[test]
fn every_format_widens_to_exactly_candles_numbers() {
    for (format, _) in FORMATS {
        assert_eq!(format.bytes() * 512 % format.values(), 0);
        let (bytes, wide) = parameter(512, &[(Format::Blocks(format), 5)]);
        let got = rows(&bytes, &[4, 0, 2]).unwrap().to_vec2::<f32>().unwrap();
        let want = wide.to_vec2::<f32>().unwrap();
        assert_eq!(got, [want[4].clone(), want[0].clone(), want[2].clone()], "{format:?}");
    }
}

#[test]
fn rows_are_found_in_parts_of_different_formats_and_beyond_them_there_are_none() {
    let q6 = Format::Blocks(BlockFormat::Q6K);
    let (bytes, wide) = parameter(256, &[(q6, 3), (Format::F16, 1), (Format::F32, 2)]);
    let got = rows(&bytes, &[5, 3, 2]).unwrap().to_vec2::<f32>().unwrap();
    let want = wide.to_vec2::<f32>().unwrap();
    assert_eq!(got, [want[5].clone(), want[3].clone(), want[2].clone()]);
    assert!(rows(&bytes, &[6]).is_err());
}

#[test]
fn few_and_many_rows_project_as_the_widened_weights_do() {
    let mixed = [
        (Format::Blocks(BlockFormat::Q4K), 130),
        (Format::F16, 3),
        (Format::F32, 2),
        (Format::Blocks(BlockFormat::Q6K), 40),
    ];
    let mut cases: Vec<(usize, Vec<(Format, usize)>)> = vec![(512, mixed.to_vec())];
    cases.extend(FORMATS.map(|(format, _)| (256, vec![(Format::Blocks(format), 33)])));
    // Rows that fill neither a chunk nor the lanes.
    cases.push((352, vec![(Format::Blocks(BlockFormat::Q8_0), 70)]));
    for (columns, parts) in cases {
        let (bytes, wide) = parameter(columns, &parts);
        for count in [1, 2, 8, 9, 40] {
            let x = Tensor::from_vec(numbers(count * columns, 3), (count, columns), &Device::Cpu);
            let x = x.unwrap();
            let got = project(&x, &bytes).unwrap();
            let want = x.matmul(&wide.t().unwrap()).unwrap();
            let (got, want) = (got.to_vec2::<f32>().unwrap(), want.to_vec2::<f32>().unwrap());
            for (got, want) in got.concat().iter().zip(want.concat()) {
                // Inputs below one are rounded to steps of 1/127, so each of a few hundred
                // weights below one may be off by 1/254 of itself; mostly they cancel out.
                assert!((got - want).abs() < 0.25, "{parts:?} {count}: {got} {want}");
            }
        }
    }
}

#[test]
fn a_buffer_that_is_not_what_its_table_says_is_an_error() {
    let (bytes, _) = parameter(256, &[(Format::Blocks(BlockFormat::Q8_0), 4)]);
    let whole = bytes.to_vec1::<u8>().unwrap();
    let tensor = |bytes: &[u8]| Tensor::from_slice(bytes, bytes.len(), &Device::Cpu).unwrap();
    let mut wrong_format = whole.clone();
    wrong_format[12] = 99;
    let mut many_parts = whole.clone();
    many_parts[4] = 200;
    let bad = [&whole[..10], &whole[..whole.len() - 1], &wrong_format, &many_parts];
    for bytes in bad {
        assert!(rows(&tensor(bytes), &[0]).is_err());
    }
    let x = Tensor::zeros((1, 32), candle_core::DType::F32, &Device::Cpu).unwrap();
    assert!(project(&x, &bytes).is_err(), "inputs of another width");
}

/// Prints microseconds per call, ours and candle's in turn, the best of nine. Means something in
/// a release build only: kernels are vectorised by the compiler.
#[test]
#[ignore = "prints figures"]
#[allow(clippy::print_stdout, reason = "the figures are what it is for")]
fn beside_candles_kernels() {
    let (outputs, inputs) = (4096, 4096);
    let floats = matrix(outputs, inputs);
    for (format, dtype) in FORMATS {
        let quantized = QTensor::quantize(&floats, dtype).unwrap();
        let mut bytes = table(inputs, &[outputs], &Layout(vec![Format::Blocks(format)])).to_vec();
        bytes.extend_from_slice(&quantized.data().unwrap());
        let size = bytes.len();
        let bytes = Tensor::from_vec(bytes, size, &Device::Cpu).unwrap();
        let theirs = candle_core::quantized::QMatMul::from_qtensor(quantized).unwrap();
        for count in [1, 8, 32, 512] {
            let x = Tensor::from_vec(numbers(count * inputs, 3), (count, inputs), &Device::Cpu);
            let x = x.unwrap();
            let mut best = [f64::MAX; 2];
            for _ in 0..9 {
                let began = std::time::Instant::now();
                project(&x, &bytes).unwrap();
                best[0] = best[0].min(began.elapsed().as_secs_f64() * 1e6);
                let began = std::time::Instant::now();
                candle_core::Module::forward(&theirs, &x).unwrap();
                best[1] = best[1].min(began.elapsed().as_secs_f64() * 1e6);
            }
            println!(
                "{}, {count} rows: ours {:.0}, candle's {:.0}",
                format.name(),
                best[0],
                best[1]
            );
        }
    }
}
