//! Blocks whose scales lie in a tensor of their own, read as blocks; and what is refused of blocks.

use std::ops::Range;

use super::read_at;
use crate::Error;
use crate::convert::{are_in_range, weave};
use crate::files::ModelFiles;
use crate::format::{BlockFormat, Stored};
use crate::tensors::{Located, Scales};

/// Reads some blocks of a part and their scales, which lie elsewhere, and appends them as blocks.
pub(super) fn woven(
    files: &dyn ModelFiles,
    (part, scales): (&Located, &Scales),
    blocks: Range<usize>,
    raw: &mut Vec<u8>,
) -> Result<(), Error> {
    let pair_bytes = part.dtype.unit().1 - 1;
    let (mut exponents, mut pairs) = (vec![0; blocks.len()], vec![0; blocks.len() * pair_bytes]);
    read_at(files, &scales.file, scales.start + blocks.start as u64, &mut exponents)?;
    read_at(files, &part.file, part.start + (blocks.start * pair_bytes) as u64, &mut pairs)?;
    weave(&exponents, &pairs, raw)
        .ok_or_else(|| beyond(&scales.file, scales.start + blocks.start as u64))
}

/// Refuses MXFP4's scales that are beyond what f32 has, in blocks that lie together from byte `at` on.
pub(super) fn check_scales(part: &Located, at: u64, raw: &[u8]) -> Result<(), Error> {
    let Stored::Blocks(BlockFormat::Mxfp4) = part.dtype else { return Ok(()) };
    let blocks = raw.chunks_exact(part.dtype.unit().1);
    match are_in_range(blocks.map(|block| block[0])) {
        true => Ok(()),
        false => Err(beyond(&part.file, at)),
    }
}

fn beyond(file: &str, at: u64) -> Error {
    let reason = format!("of the MXFP4 scales behind byte {at} one is beyond the range of f32");
    Error::header(file, reason)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use roundhouse_types::DeviceId;

    use super::*;
    use crate::{Cancel, DtypeSetting, LoadSettings, inspect, load, read_local};

    #[test]
    fn scales_beyond_the_range_of_floats_are_refused_in_gguf_files_as_in_safetensors() {
        let case = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/references/gguf-mxfp4");
        let files = read_local(&case).unwrap();
        let whole = std::fs::read(case.join("model.gguf")).unwrap();
        for dtype in [DtypeSetting::Auto, DtypeSetting::F32] {
            let settings = LoadSettings { dtype, ..LoadSettings::default() };
            let plan = inspect(&files, &settings).unwrap();
            let table = plan.tensors(&files).unwrap();
            let is_mxfp4 = |it: &&Located| it.dtype == Stored::Blocks(BlockFormat::Mxfp4);
            let mut parts = table.names().filter_map(|name| table.get(name));
            let part = parts.find(is_mxfp4).expect("the case has such");
            for (exponent, is_refused) in [(252, false), (253, true), (255, true)] {
                let mut bytes = whole.clone();
                // Its third block's, whose numbers are nothing.
                let at = part.start as usize + 2 * 17;
                bytes[at..at + 17].fill(0);
                bytes[at] = exponent;
                let folder = tempfile::tempdir().unwrap();
                std::fs::write(folder.path().join("model.gguf"), bytes).unwrap();
                let loaded = load(folder.path(), &plan, DeviceId::Cpu, &Cancel::new());
                match loaded {
                    Ok(_) => assert!(!is_refused, "{exponent}"),
                    Err(error) => {
                        assert!(is_refused, "{exponent}: {error}");
                        let want = format!("MXFP4 scales behind byte {}", part.start);
                        assert!(error.to_string().contains(&want), "{error}");
                    }
                }
            }
        }
    }
}
