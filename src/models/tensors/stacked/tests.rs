//! Experts that lie one behind the other.

use std::path::Path;

use super::*;
use crate::blocks;
use crate::convert::weave;
use crate::format::Format;

fn stacked(dtype: Stored, shape: &[usize]) -> Located {
    let file = "a.gguf".into();
    Located { file, dtype, shape: shape.to_vec(), start: 64, paired: None, scales: None }
}

#[test]
fn experts_of_one_tensor_lie_behind_each_other_and_a_file_has_a_bounded_number_of_them() {
    let stacked = |shape: &[usize]| stacked(Stored::F16, shape);
    let mut left = Left(10);
    let found = unstacked("t", ("a.", ".b"), &stacked(&[3, 4, 8]), &mut left).unwrap();
    let places: Vec<(&str, u64)> =
        found.iter().map(|(name, it)| (name.as_str(), it.start)).collect();
    assert_eq!(places, [("a.0.b", 64), ("a.1.b", 128), ("a.2.b", 192)]);
    assert_eq!((left.0, found[0].1.shape.as_slice()), (7, [4, 8].as_slice()));
    let biases = unstacked("t", ("a.", ".b"), &stacked(&[2, 5]), &mut left).unwrap();
    assert_eq!((biases[1].1.start, biases[1].1.shape.as_slice()), (74, [5].as_slice()));
    for shape in [&[6, 4, 8][..], &[EXPERTS_MAX + 1, 1, 1], &[usize::MAX, 1, 1]] {
        let error = unstacked("t", ("a.", ".b"), &stacked(shape), &mut left).unwrap_err();
        assert!(error.to_string().contains("more than any model has"), "{error}");
    }
    assert!(unstacked("t", ("a.", ".b"), &stacked(&[]), &mut left).is_err());
}

#[test]
fn blocks_and_scales_that_lie_apart_are_each_cut_in_their_own_place() {
    let scales = Some(Scales { file: "b".into(), start: 1000 });
    let blocks = Stored::Blocks(BlockFormat::Mxfp4);
    let both = Located { scales, ..stacked(blocks, &[3, 4, 64]) };
    let found = unstacked("t", ("a.", ".b"), &both, &mut Left::default()).unwrap();
    let places = found.iter().map(|(_, it)| (it.start, it.scales.as_ref().unwrap().start));
    // Eight blocks of sixteen bytes each, and as many scales.
    assert_eq!(places.collect::<Vec<_>>(), [(64, 1000), (192, 1008), (320, 1016)]);
    assert_eq!(found[2].1.bytes(), 8 * 17);
}

#[test]
fn four_bit_floats_are_the_numbers_that_transformers_makes_of_them() {
    #[derive(serde::Deserialize)]
    struct Numbers {
        pairs: Vec<u8>,
        exponents: Vec<u8>,
        bits: Vec<Vec<i32>>,
    }
    let file = "tests/references/mxfp4-gpt-oss/numbers.json";
    let file = std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join(file)).unwrap();
    let want: Numbers = serde_json::from_slice(&file).unwrap();
    let numbers = |exponent: u8| {
        let (mut woven, mut wide) = (Vec::new(), Vec::new());
        weave(&[exponent], &want.pairs, &mut woven)?;
        blocks::widen(Format::Blocks(BlockFormat::Mxfp4), &woven, &mut wide);
        Some(wide)
    };
    let bits = want.bits.concat();
    assert_eq!(bits.len(), 32 * want.exponents.len());
    for (exponent, bits) in want.exponents.iter().zip(bits.chunks(32)) {
        let want = bits.iter().map(|bits| f32::from_bits(bits.cast_unsigned()));
        assert_eq!(numbers(*exponent).unwrap(), want.collect::<Vec<f32>>(), "{exponent}");
    }
    let largest = numbers(*want.exponents.last().unwrap()).unwrap();
    assert!(largest.iter().all(|number| number.is_finite()));
    assert_eq!([253, 255].map(numbers), [None, None]);
}
