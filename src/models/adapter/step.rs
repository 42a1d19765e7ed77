//! A step's rows by adapter, and what each projection adds to them.
//!
//! The base computes all rows in one go; then each adapter that is in the step is read once for
//! all of its rows, wherever they lie. What is attached and in no row costs nothing.

use std::any::Any;
use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Arc, Weak};

use candle_core::{DType, Result, Tensor};
use rayon::prelude::*;
use roundhouse_engine::{AdapterId, HeadSpec, RunnerError, StepPlan};

use super::heads::OwnHead;
use super::kernel::{Expand, ROWS, Shrink, Widen};
use super::layout::{Embeddings, Index, Numbers, Part, Saved, WithNumbers, panel_values};
use super::layout::{NONE, WIDE};
use super::modules::{Modules, Site};
use crate::activation::with_floats;
use crate::in_place::change;
use crate::linear::{self, Weight};
use crate::packed::Packed;
use crate::simd;

mod routed;

/// Most rows that one task takes through an adapter: the matrices stay in the second cache.
const BLOCK: usize = 32;
/// Rows that are computed together at least, where there are as many.
const TOGETHER: usize = 2;
/// Products below which spreading over threads costs more than it gains.
const SERIAL: usize = 128 << 10;
/// Outputs of one task, where there are more: a head's.
const TALL: usize = 8192;
/// Products that lie on the stack.
const FEW: usize = 256;

/// An adapter's weights, ready for the runner of the base that they were loaded for.
#[derive(Debug)]
pub(super) struct Adapter {
    /// Whose runner may take it in: of a copy nobody's.
    pub(super) base: Weak<Modules>,
    pub(super) index: Index,
    pub(super) numbers: Numbers,
}

/// The adapters attached to a runner.
#[derive(Debug)]
pub(crate) struct Adapters {
    base: Arc<Modules>,
    attached: HashMap<AdapterId, Arc<Adapter>>,
}

/// What a step's rows are computed with beside the base.
#[derive(Debug)]
pub(crate) struct Mix {
    /// By the packed tokens.
    pub(crate) tokens: Groups,
    /// By the vectors that rows want of the model's own head.
    pub(crate) outputs: Groups,
    /// The rows of adapters with heads of their own.
    pub(crate) heads: Vec<Headed>,
}

/// Rows of an adapter that are answered by its own head.
#[derive(Debug)]
pub(crate) struct Headed {
    pub(crate) head: Arc<OwnHead>,
    /// Their places among those with an output, in order.
    pub(crate) rows: Vec<usize>,
    /// By their vectors alone.
    pub(crate) groups: Groups,
}

/// Rows by adapter. Those of the base alone are in none.
#[derive(Debug, Default)]
pub(crate) struct Groups {
    adapters: Vec<Group>,
    rows: Vec<u32>,
    blocks: Vec<Block>,
}

/// All rows of one adapter.
#[derive(Debug)]
struct Group {
    adapter: Arc<Adapter>,
    rows: Range<usize>,
}

/// Some of them: one task's.
#[derive(Debug)]
struct Block {
    adapter: usize,
    rows: Range<usize>,
}

/// What an adapter has of a step.
#[derive(Default)]
struct Share {
    tokens: Vec<u32>,
    /// Vectors of the model's own head.
    outputs: Vec<u32>,
    /// Rows that its own head answers, by their places among those with an output.
    apart: Vec<usize>,
    /// The vectors that they want.
    vectors: u32,
}

impl Adapters {
    /// None so far.
    pub(crate) fn new(base: Arc<Modules>) -> Self {
        Self { base, attached: HashMap::new() }
    }

    /// Takes one in that was loaded for this base. Returns its own head, where it has one.
    pub(crate) fn attach(
        &mut self,
        id: AdapterId,
        weights: Box<dyn Any + Send>,
    ) -> std::result::Result<Option<HeadSpec>, RunnerError> {
        let refuse = |reason: &str| Err(RunnerError::Input(reason.to_owned()));
        let Ok(adapter) = weights.downcast::<Arc<Adapter>>() else {
            return refuse("these are no weights of an adapter");
        };
        if !Weak::ptr_eq(&adapter.base, &Arc::downgrade(&self.base)) {
            return refuse("the adapter was loaded for another model");
        }
        let head = adapter.index.head.as_ref();
        let head = head.map(|it| HeadSpec { width: it.config.width, padding: it.padding });
        self.attached.insert(id, *adapter);
        Ok(head)
    }

    /// The head that answers rows of this adapter, where it has one of its own.
    pub(crate) fn head(&self, id: Option<AdapterId>) -> Option<&OwnHead> {
        self.attached.get(&id?)?.index.head.as_deref()
    }

    /// Gives one back.
    pub(crate) fn detach(&mut self, id: AdapterId) -> Option<Box<dyn Any + Send>> {
        self.attached.remove(&id).map(|adapter| Box::new(adapter) as Box<dyn Any + Send>)
    }

    /// Sorts a step's rows.
    pub(crate) fn mix(
        &self,
        plan: &StepPlan,
        packed: &Packed<'_>,
    ) -> std::result::Result<Mix, RunnerError> {
        let mut groups: Vec<(Arc<Adapter>, Share)> = Vec::new();
        let mut known: HashMap<AdapterId, usize> = HashMap::new();
        let (mut output, mut answered) = (0u32, 0);
        for (row, span) in plan.rows.iter().zip(&packed.spans) {
            let (first, place) = (output, answered);
            answered += usize::from(row.output);
            // Vectors of heads of their own are counted apart.
            let is_apart = self.head(row.adapter).is_some();
            output += if is_apart { 0 } else { row.vectors() as u32 };
            let Some(id) = row.adapter else { continue };
            let Some(adapter) = self.attached.get(&id) else {
                return Err(RunnerError::Input(format!("adapter {} is not attached", id.0)));
            };
            let group = *known.entry(id).or_insert_with(|| {
                groups.push((Arc::clone(adapter), Default::default()));
                groups.len() - 1
            });
            let share = &mut groups[group].1;
            share.tokens.extend((span.first..span.first + span.tokens).map(|row| row as u32));
            share.outputs.extend(first..output);
            if is_apart && row.output {
                share.apart.push(place);
                share.vectors += row.vectors() as u32;
            }
        }
        let threads = rayon::current_num_threads();
        let (mut tokens, mut outputs) = (Groups::default(), Groups::default());
        let mut heads = Vec::new();
        for (adapter, share) in groups {
            tokens.add(&adapter, &share.tokens);
            outputs.add(&adapter, &share.outputs);
            let Some(head) = adapter.index.head.clone().filter(|_| !share.apart.is_empty()) else {
                continue;
            };
            let mut groups = Groups::default();
            groups.add(&adapter, &(0..share.vectors).collect::<Vec<u32>>());
            groups.divide(threads);
            heads.push(Headed { head, rows: share.apart, groups });
        }
        tokens.divide(threads);
        outputs.divide(threads);
        Ok(Mix { tokens, outputs, heads })
    }
}

impl Groups {
    fn add(&mut self, adapter: &Arc<Adapter>, rows: &[u32]) {
        let start = self.rows.len();
        self.rows.extend_from_slice(rows);
        self.adapters.push(Group { adapter: Arc::clone(adapter), rows: start..self.rows.len() });
    }

    /// Makes tasks of the rows: none with more than its share of them, so that the rows of one
    /// adapter keep all threads at work too.
    fn divide(&mut self, threads: usize) {
        let share = self.rows.len().div_ceil(threads).next_multiple_of(TOGETHER).min(BLOCK);
        for (adapter, group) in self.adapters.iter().enumerate() {
            let ends = group.rows.end;
            let blocks = group.rows.clone().step_by(share.max(1));
            self.blocks
                .extend(blocks.map(|from| Block { adapter, rows: from..(from + share).min(ends) }));
        }
    }

    /// Adds to a projection's results `y`, without the base's bias yet, what adapters make of
    /// its inputs `x`.
    pub(crate) fn project(&self, site: Site, x: &Tensor, y: &Tensor) -> Result<()> {
        if self.rows.is_empty() {
            return Ok(());
        }
        let inputs = x.dim(1)?;
        with_floats(x, |x| change(y, |y, width| self.run(site, x, inputs, &Rows::new(y, width))))?
    }

    /// What adapters alone make of `x` where the base has no projection: `[rows, width]`.
    pub(crate) fn alone(&self, site: Site, x: &Tensor, width: usize) -> Result<Tensor> {
        let y = Tensor::zeros((x.dim(0)?, width), DType::F32, x.device())?;
        self.project(site, x, &y)?;
        Ok(y)
    }

    /// Adds to a norm's results what adapters' biases differ by.
    pub(crate) fn shift(&self, site: Site, y: &Tensor) -> Result<()> {
        let has = |group: &Group| !group.adapter.index.at(site).is_empty();
        match self.adapters.iter().any(has) {
            true => change(y, |y, width| self.run(site, &[], 0, &Rows::new(y, width))),
            false => Ok(()),
        }
    }

    /// Changes tokens' vectors.
    pub(crate) fn embed(&self, tokens: &[u32], vectors: &Tensor) -> Result<()> {
        if !self.adapters.iter().any(|group| group.adapter.index.embeddings.is_some()) {
            return Ok(());
        }
        change(vectors, |vectors, width| {
            for Group { adapter, rows } in &self.adapters {
                let Some(embeddings) = adapter.index.embeddings else { continue };
                for row in &self.rows[rows.clone()] {
                    let token = tokens[*row as usize] as usize;
                    let vector = &mut vectors[*row as usize * width..][..width];
                    embed(adapter, embeddings, token, vector);
                }
            }
        })
    }

    fn run(&self, site: Site, x: &[f32], inputs: usize, y: &Rows) {
        for Group { adapter, rows } in &self.adapters {
            for saved in adapter.index.saved.iter().filter(|saved| saved.site == site) {
                for rows in self.rows[rows.clone()].chunks(BLOCK) {
                    replace(adapter, saved, (x, inputs), rows, y);
                }
            }
        }
        let weigh = |group: &Group| {
            let parts = group.adapter.index.at(site);
            let values = |part: &Part| part.rank as usize * (inputs + part.outputs as usize);
            parts.iter().map(values).sum::<usize>() * group.rows.len()
        };
        let work = |block: &Block| {
            let adapter = &*self.adapters[block.adapter].adapter;
            let rows = &self.rows[block.rows.clone()];
            for part in adapter.index.at(site) {
                add(adapter, part, (x, inputs), rows, y);
            }
        };
        if self.adapters.iter().map(weigh).sum::<usize>() < SERIAL {
            self.blocks.iter().for_each(work);
        } else {
            self.blocks.par_iter().for_each(work);
        }
    }
}

/// Rows of a buffer that tasks change side by side: no two the same numbers.
struct Rows {
    start: *mut f32,
    width: usize,
    count: usize,
}

#[expect(unsafe_code, reason = "tasks change different rows, or parts of rows, of one buffer")]
// SAFETY: it only hands out numbers through `part`, whose callers see to it that no two tasks
// ask for the same.
unsafe impl Sync for Rows {}

impl Rows {
    fn new(numbers: &mut [f32], width: usize) -> Self {
        Self { start: numbers.as_mut_ptr(), width, count: numbers.len() / width.max(1) }
    }

    /// Some numbers of a row.
    ///
    /// # Safety
    /// The buffer must live, and nobody else may have any of them.
    #[expect(unsafe_code, reason = "tasks change different rows, or parts of rows, of one buffer")]
    #[expect(clippy::mut_from_ref, reason = "each call is for other numbers")]
    unsafe fn part(&self, row: usize, first: usize, length: usize) -> &mut [f32] {
        assert!(row < self.count && first + length <= self.width, "outside the buffer");
        // SAFETY: it lies inside the buffer, and the caller answers for the rest.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(row * self.width + first), length) }
    }
}

/// One part for some rows of one adapter.
fn add(adapter: &Adapter, part: &Part, x: (&[f32], usize), rows: &[u32], y: &Rows) {
    let (rank, outputs) = (part.rank as usize, part.outputs as usize);
    let mut few = [0.0; FEW];
    let mut many = Vec::new();
    let z = match rows.len() * rank {
        count @ 0..=FEW => &mut few[..count],
        count => {
            many.resize(count, 0.0);
            many.as_mut_slice()
        }
    };
    if rank > 0 {
        let (x, inputs) = x;
        let shrink = Shrinking { inputs, scale: part.scale, x, rows, z };
        adapter.numbers.with((part.a, part.lies[0]), rank * inputs, shrink);
        let expand = |first: usize| {
            let count = TALL.min(outputs - first);
            let work = Expanding { adapter, part, outputs: first..first + count, z, rows, y };
            adapter.numbers.with((part.b, part.lies[1]), panel_values(part), work);
        };
        if outputs <= TALL {
            expand(0);
        } else {
            (0..outputs.div_ceil(TALL)).into_par_iter().for_each(|index| expand(index * TALL));
        }
    }
    if part.shift != NONE {
        let shift: &[f32] = adapter.numbers.at(part.shift, outputs);
        for row in rows {
            #[expect(unsafe_code, reason = "see `Rows`")]
            // SAFETY: a row is in one block of one group, and a block is one task's.
            let y = unsafe { y.part(*row as usize, part.first as usize, outputs) };
            y.iter_mut().zip(shift).for_each(|(y, shift)| *y += shift);
        }
    }
}

struct Shrinking<'a> {
    inputs: usize,
    scale: f32,
    x: &'a [f32],
    rows: &'a [u32],
    z: &'a mut [f32],
}

impl WithNumbers for Shrinking<'_> {
    type Output = ();

    fn run<W: Weight>(self, a: &[W]) {
        let Self { inputs, scale, x, rows, z } = self;
        simd::dispatch_lanes(Shrink { a, inputs, scale, x, rows, z });
    }
}

struct Expanding<'a> {
    adapter: &'a Adapter,
    part: &'a Part,
    /// Whole panels of the part's.
    outputs: Range<usize>,
    z: &'a [f32],
    rows: &'a [u32],
    y: &'a Rows,
}

impl WithNumbers for Expanding<'_> {
    type Output = ();

    fn run<W: Weight>(self, b: &[W]) {
        let Self { adapter, part, outputs, z, rows, y } = self;
        debug_assert_eq!(outputs.start % WIDE, 0, "panels are taken whole");
        let rank = part.rank as usize;
        let factors: &[f32] = match part.factors {
            NONE => &[],
            line => &adapter.numbers.at(line, part.outputs as usize)[outputs.clone()],
        };
        let (first, count) = (part.first as usize + outputs.start, outputs.len());
        for (rows, z) in rows.chunks(ROWS).zip(z.chunks(ROWS * rank)) {
            let mut y: [&mut [f32]; ROWS] = std::array::from_fn(|index| match rows.get(index) {
                #[expect(unsafe_code, reason = "see `Rows`")]
                // SAFETY: a row is in one block of one group, a block is one task's, parts are of
                // different outputs, and tasks of one part are of different panels.
                Some(row) => unsafe { y.part(*row as usize, first, count) },
                None => &mut [],
            });
            let b = &b[outputs.start * rank..];
            let y = &mut y[..rows.len()];
            simd::dispatch_lanes(Expand { b, outputs: count, rank, z, factors, y });
        }
    }
}

/// A module's own weight in place of the base's.
fn replace(adapter: &Adapter, saved: &Saved, x: (&[f32], usize), rows: &[u32], y: &Rows) {
    let (x, inputs) = x;
    let outputs = saved.outputs as usize;
    let own: Vec<f32> =
        rows.iter().flat_map(|row| &x[*row as usize * inputs..][..inputs]).copied().collect();
    let work = Replacing { x: &own, rows: rows.len(), inputs };
    let results = adapter.numbers.with((saved.line, saved.lies), outputs * inputs, work);
    for (row, results) in rows.iter().zip(results.chunks_exact(outputs)) {
        #[expect(unsafe_code, reason = "see `Rows`")]
        // SAFETY: there is one task only.
        let y = unsafe { y.part(*row as usize, 0, outputs) };
        y.copy_from_slice(results);
    }
}

struct Replacing<'a> {
    x: &'a [f32],
    rows: usize,
    inputs: usize,
}

impl WithNumbers for Replacing<'_> {
    type Output = Vec<f32>;

    fn run<W: Weight>(self, weight: &[W]) -> Vec<f32> {
        linear::multiply(self.x, weight, self.rows, self.inputs)
    }
}

/// Changes one token's vector.
fn embed(adapter: &Adapter, embeddings: Embeddings, token: usize, vector: &mut [f32]) {
    match embeddings {
        Embeddings::Table { line, lies } => {
            let width = vector.len();
            let work = Row { token, width, to: vector };
            adapter.numbers.with((line, lies), (token + 1) * width, work);
        }
        Embeddings::Low(part) => {
            let rank = part.rank as usize;
            let mut z = vec![0.0; rank];
            let work = Row { token, width: rank, to: &mut z };
            adapter.numbers.with((part.a, part.lies[0]), (token + 1) * rank, work);
            z.iter_mut().for_each(|z| *z *= part.scale);
            let rows = Rows::new(vector, part.outputs as usize);
            let outputs = 0..part.outputs as usize;
            let work = Expanding { adapter, part: &part, outputs, z: &z, rows: &[0], y: &rows };
            adapter.numbers.with((part.b, part.lies[1]), panel_values(&part), work);
        }
    }
}

/// A row of a table.
struct Row<'a> {
    token: usize,
    width: usize,
    to: &'a mut [f32],
}

impl WithNumbers for Row<'_> {
    type Output = ();

    fn run<W: Weight>(self, table: &[W]) {
        let from = &table[self.token * self.width..][..self.width];
        simd::dispatch(Widen { from, to: self.to });
    }
}
