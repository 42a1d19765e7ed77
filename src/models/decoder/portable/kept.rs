//! Keys and values as tensors, a chunk of blocks in each.

use candle_core::{DType, Device, Result, Tensor, bail};
use half::f16;
use roundhouse_engine::{BlockId, KvSpec};

use super::places::Places;
use crate::attention::{Heads, Span};
use crate::kv::{BLOCK_TOKENS, KvDtype};

/// The pool of one runner. Owned by it; blocks are the scheduler's to assign.
///
/// A chunk is allocated, whole, when one of its blocks is first written, and freed when it is given
/// back.
#[derive(Debug)]
pub(super) struct Kept {
    heads: Heads,
    layers: usize,
    dtype: KvDtype,
    device: Device,
    /// Chunks that are never given back.
    floor: usize,
    /// Blocks of a chunk.
    chunk: usize,
    /// Each `[layers, 2 kv_heads, slots of a chunk, head_dim]`, keys before values.
    chunks: Vec<Option<Tensor>>,
}

impl Kept {
    pub(super) fn new(
        (heads, layers): (Heads, usize),
        kv: &KvSpec,
        dtype: KvDtype,
        device: &Device,
    ) -> Self {
        let (floor, chunk) = (kv.floor, kv.chunk);
        let chunks = vec![None; kv.chunks()];
        Self { heads, layers, dtype, device: device.clone(), floor, chunk, chunks }
    }

    /// Bytes of the chunks that it always has.
    pub(super) fn floor_bytes(&self) -> u64 {
        self.chunk_bytes() * self.floor as u64
    }

    /// Bytes of the chunks that it has.
    pub(super) fn allocated(&self) -> u64 {
        self.chunk_bytes() * self.chunks.iter().flatten().count() as u64
    }

    fn chunk_bytes(&self) -> u64 {
        let slots = self.chunk * BLOCK_TOKENS;
        (self.layers * 2 * self.heads.kv_width() * slots * self.dtype.bytes()) as u64
    }

    /// The memory of a chunk that nobody reads any more; `None` where it took none.
    pub(super) fn give_back(&mut self, chunk: usize) -> Option<Tensor> {
        self.chunks[chunk].take()
    }

    /// The chunk of a block, and which of its blocks it is.
    pub(super) fn place(&self, block: BlockId) -> (usize, usize) {
        (block.0 as usize / self.chunk, block.0 as usize % self.chunk)
    }

    /// Makes room for what a step writes.
    ///
    /// Blocks that begin in this step are zeroed: what an earlier owner left behind a sequence's end is
    /// read, though nothing comes of it, and of what is no number something would.
    pub(super) fn begin(&mut self, spans: &[Span<'_>]) -> Result<()> {
        for span in spans {
            let end = span.position + span.tokens;
            let first = span.position.div_ceil(BLOCK_TOKENS);
            for block in &span.blocks[first..end.div_ceil(BLOCK_TOKENS)] {
                let (chunk, within) = self.place(*block);
                match &self.chunks[chunk] {
                    Some(memory) => self.clear(memory, within)?,
                    None => self.chunks[chunk] = Some(self.zeros(self.chunk)?),
                }
            }
        }
        Ok(())
    }

    fn zeros(&self, blocks: usize) -> Result<Tensor> {
        let slots = blocks * BLOCK_TOKENS;
        let shape = (self.layers, 2 * self.heads.kv_heads, slots, self.heads.head_dim);
        Tensor::zeros(shape, tensor_dtype(self.dtype), &self.device)
    }

    fn clear(&self, chunk: &Tensor, within: usize) -> Result<()> {
        chunk.slice_set(&self.zeros(1)?, 2, within * BLOCK_TOKENS)
    }

    /// A layer's part of a chunk that was written: `[2 kv_heads, slots, head_dim]`.
    fn layer(&self, chunk: usize, layer: usize) -> Result<Tensor> {
        match &self.chunks[chunk] {
            Some(memory) => memory.get(layer),
            None => bail!("chunk {chunk} is used before it is written"),
        }
    }

    /// Writes a layer's keys and values of all tokens, `[tokens, 2 kv_heads, head_dim]` f32.
    pub(super) fn write(&self, layer: usize, places: &Places, rows: &Tensor) -> Result<()> {
        let rows = match self.dtype {
            KvDtype::F32 => rows.clone(),
            KvDtype::Bf16 => rows.to_dtype(DType::BF16)?,
            // What is beyond its range is kept as its largest number.
            KvDtype::F16 => {
                let most = f16::MAX.to_f32();
                rows.clamp(-most, most)?.to_dtype(DType::F16)?
            }
        };
        for write in &places.writes {
            let rows = match &write.rows {
                Some(some) => rows.index_select(some, 0)?,
                None => rows.clone(),
            };
            // [2 kv_heads, tokens, head_dim]
            let rows = rows.transpose(0, 1)?.contiguous()?;
            self.layer(write.chunk, layer)?.scatter_set(&write.slots, &rows, 1)?;
        }
        Ok(())
    }

    /// A layer's keys and values of some blocks, `[2 kv_heads, blocks, BLOCK_TOKENS * head_dim]` as
    /// they are kept; from each chunk those with such indices in it.
    pub(super) fn read(&self, layer: usize, parts: &[(usize, Tensor)]) -> Result<Tensor> {
        let shape = (2 * self.heads.kv_heads, self.chunk, BLOCK_TOKENS * self.heads.head_dim);
        let read = parts.iter().map(|(chunk, blocks)| {
            self.layer(*chunk, layer)?.reshape(shape)?.index_select(blocks, 1)
        });
        let read = read.collect::<Result<Vec<_>>>()?;
        match &read[..] {
            [all] => Ok(all.clone()),
            several => Tensor::cat(several, 1),
        }
    }
}

fn tensor_dtype(dtype: KvDtype) -> DType {
    match dtype {
        KvDtype::F32 => DType::F32,
        KvDtype::F16 => DType::F16,
        KvDtype::Bf16 => DType::BF16,
    }
}
