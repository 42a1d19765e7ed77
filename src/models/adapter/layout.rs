//! How an adapter lies in memory: one buffer of lines, and an index of it by site.
//!
//! First matrices lie as in files, `[rank, inputs]`. Second ones lie in panels of [`WIDE`]
//! outputs, `[rank, outputs of the panel]` each, so that a step reads both from one end to the
//! other and adds whole registers of outputs. Sites follow one another as they are computed.

use std::sync::Arc;

use half::{bf16, f16};

use crate::format::Stored;
use crate::linear::Weight;

use super::heads::OwnHead;
use super::modules::Site;

/// Outputs of a panel; the last one has fewer.
pub(super) const WIDE: usize = 64;
/// A panel's outputs are a multiple of this many.
pub(super) const NARROW: usize = 16;
/// Where there is nothing.
pub(super) const NONE: u32 = u32::MAX;

/// As much as memory hands out at a time, and as the widest registers hold.
#[repr(C, align(64))]
#[derive(Debug, Clone, Copy)]
pub(super) struct Line([u8; 64]);

#[expect(unsafe_code, reason = "numbers of all formats share one aligned buffer")]
// SAFETY: it is 64 bytes without padding, and any bytes are one.
unsafe impl bytemuck::Zeroable for Line {}
#[expect(unsafe_code, reason = "numbers of all formats share one aligned buffer")]
// SAFETY: as above; its alignment is its size.
unsafe impl bytemuck::Pod for Line {}

/// Lines that hold so many bytes.
pub(super) fn lines(bytes: usize) -> Option<u32> {
    u32::try_from(bytes.div_ceil(64)).ok()
}

/// The number formats that kernels read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Lies {
    F32,
    F16,
    Bf16,
}

impl Lies {
    /// How a tensor of a file lies: as it is there.
    pub(super) fn of(stored: Stored) -> Option<Self> {
        match stored {
            Stored::F32 => Some(Self::F32),
            Stored::F16 => Some(Self::F16),
            Stored::Bf16 => Some(Self::Bf16),
            Stored::Blocks(_) | Stored::Unread(_) => None,
        }
    }

    /// Bytes of a number.
    pub(super) fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
        }
    }
}

/// Something that is done with numbers of one format.
pub(super) trait WithNumbers {
    type Output;
    fn run<W: Weight>(self, numbers: &[W]) -> Self::Output;
}

/// The two matrices of one module and what goes with them.
#[derive(Debug, Clone, Copy)]
pub(super) struct Part {
    /// Its first output among the site's.
    pub(super) first: u32,
    pub(super) outputs: u32,
    /// Zero where there are no matrices.
    pub(super) rank: u32,
    /// What the product is multiplied by.
    pub(super) scale: f32,
    /// The first lines: of the matrices, of what results are multiplied by, and of what is added.
    pub(super) a: u32,
    pub(super) b: u32,
    pub(super) factors: u32,
    pub(super) shift: u32,
    pub(super) lies: [Lies; 2],
}

impl Part {
    pub(super) const NOTHING: Self = Self {
        first: 0,
        outputs: 0,
        rank: 0,
        scale: 1.0,
        a: NONE,
        b: NONE,
        factors: NONE,
        shift: NONE,
        lies: [Lies::F32; 2],
    };
}

/// A module's weight in place of the base's: `[outputs, inputs]`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Saved {
    pub(super) site: Site,
    pub(super) outputs: u32,
    pub(super) line: u32,
    pub(super) lies: Lies,
}

/// What becomes of tokens' vectors.
#[derive(Debug, Clone, Copy)]
pub(super) enum Embeddings {
    /// Others, `[vocab, hidden]`.
    Table { line: u32, lies: Lies },
    /// Something is added: the first matrix lies as `[vocab, rank]`.
    Low(Part),
}

/// Where to find what a site needs.
#[derive(Debug, Clone, Default)]
pub(super) struct Index {
    parts: Vec<Part>,
    /// The first part of each site, and behind the last.
    starts: Vec<u32>,
    pub(super) saved: Vec<Saved>,
    pub(super) embeddings: Option<Embeddings>,
    /// What answers its rows, where it is not its base's head.
    pub(super) head: Option<Arc<OwnHead>>,
    /// Bytes of what is kept beside: its labels.
    pub(super) beside: u64,
}

impl Index {
    /// Parts so far.
    pub(super) fn parts(&self) -> usize {
        self.parts.len()
    }

    /// Adds a part; sites come in order.
    pub(super) fn push(&mut self, site: Site, part: Part) {
        let start = u32::try_from(self.parts.len()).unwrap_or(NONE);
        if self.starts.len() <= site.index() {
            self.starts.resize(site.index() + 1, start);
        }
        self.parts.push(part);
    }

    /// All parts are there, of so many sites at least.
    pub(super) fn close(&mut self, sites: usize) {
        let end = u32::try_from(self.parts.len()).unwrap_or(NONE);
        self.starts.resize(sites.max(self.starts.len()) + 1, end);
        self.parts.shrink_to_fit();
        self.starts.shrink_to_fit();
        self.saved.shrink_to_fit();
    }

    /// The parts of a site.
    pub(super) fn at(&self, site: Site) -> &[Part] {
        match self.starts.get(site.index()..).and_then(|starts| starts.get(..2)) {
            Some(bounds) => &self.parts[bounds[0] as usize..bounds[1] as usize],
            // Behind the last that it has something for.
            None => &[],
        }
    }

    pub(super) fn part(&self, index: usize) -> &Part {
        &self.parts[index]
    }

    /// Its own bytes.
    pub(super) fn bytes(&self) -> u64 {
        let parts = self.parts.len() * size_of::<Part>() + self.saved.len() * size_of::<Saved>();
        let head = self.head.as_ref().map_or(0, |_| size_of::<OwnHead>());
        (size_of::<Self>() + parts + self.starts.len() * 4 + head) as u64 + self.beside
    }
}

/// The numbers of one adapter.
#[derive(Debug, Clone)]
pub(super) struct Numbers(Vec<Line>);

impl Numbers {
    /// Zeros.
    pub(super) fn new(lines: u32) -> Self {
        Self(vec![bytemuck::Zeroable::zeroed(); lines as usize])
    }

    pub(super) fn bytes(&self) -> u64 {
        (self.0.capacity() * size_of::<Line>()) as u64
    }

    /// So many numbers from a line on.
    pub(super) fn at<W: Weight>(&self, line: u32, count: usize) -> &[W] {
        &bytemuck::cast_slice(&self.0[line as usize..])[..count]
    }

    /// The same to be filled.
    pub(super) fn fill<W: Weight>(&mut self, line: u32, count: usize) -> &mut [W] {
        &mut bytemuck::cast_slice_mut(&mut self.0[line as usize..])[..count]
    }

    /// Does something with them in their format.
    pub(super) fn with<F: WithNumbers>(
        &self,
        (line, lies): (u32, Lies),
        count: usize,
        work: F,
    ) -> F::Output {
        match lies {
            Lies::F32 => work.run(self.at::<f32>(line, count)),
            Lies::F16 => work.run(self.at::<f16>(line, count)),
            Lies::Bf16 => work.run(self.at::<bf16>(line, count)),
        }
    }
}

/// Numbers of a part's second matrix.
pub(super) fn panel_values(part: &Part) -> usize {
    (part.outputs as usize).next_multiple_of(NARROW) * part.rank as usize
}

/// Where the number of an output and a rank lies in panels.
pub(super) fn in_panels(outputs: usize, rank: usize, output: usize, k: usize) -> usize {
    let first = output / WIDE * WIDE;
    let width = WIDE.min((outputs - first).next_multiple_of(NARROW));
    first * rank + k * width + (output - first)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn panels_fill_their_room_once() {
        for (outputs, rank) in [(1usize, 3), (16, 1), (63, 2), (64, 4), (65, 4), (200, 5)] {
            let room = outputs.next_multiple_of(NARROW) * rank;
            let mut seen = vec![false; room];
            for output in 0..outputs {
                for k in 0..rank {
                    let at = in_panels(outputs, rank, output, k);
                    assert!(!std::mem::replace(&mut seen[at], true), "{outputs} {rank}");
                }
            }
        }
    }

    #[test]
    fn an_index_finds_the_parts_of_each_site() {
        let mut index = Index::default();
        let part = |first| Part { first, ..Part::NOTHING };
        for (site, first) in [(Site::qkv(0), 0), (Site::qkv(0), 8), (Site::down(1), 3)] {
            index.push(site, part(first));
        }
        index.close(20);
        let firsts = |site| index.at(site).iter().map(|part| part.first).collect::<Vec<_>>();
        assert_eq!(firsts(Site::qkv(0)), [0, 8]);
        assert_eq!(firsts(Site::down(1)), [3]);
        assert!(firsts(Site::down(9)).is_empty(), "behind the last");
        assert!(firsts(Site::up(0)).is_empty() && firsts(Site::pooler(2)).is_empty());
    }
}
