//! Tensors that hold all experts of a layer, taken apart in the table: nothing behind it knows of them.

use super::{Located, Scales, TensorTable};
use crate::Error;
use crate::config::decoder::{DecoderConfig, Experts, Lie};
use crate::config::experts::EXPERTS_MAX;
use crate::format::{BlockFormat, Stored};

/// Experts' tensors of one artefact at most, all layers: three times what the largest models have. Each
/// takes some hundred bytes, and a header says how many there are in a few.
const UNSTACKED_MAX: usize = 1 << 18;

/// How many more experts' tensors an artefact may have.
#[derive(Debug)]
pub(crate) struct Left(pub(crate) usize);

impl Default for Left {
    fn default() -> Self {
        Self(UNSTACKED_MAX)
    }
}

impl Left {
    /// Counts a tensor of so many experts.
    fn take(&mut self, name: &str, file: &str, experts: usize) -> Result<(), Error> {
        match self.0.checked_sub(experts) {
            Some(fewer) if experts <= EXPERTS_MAX => {
                self.0 = fewer;
                Ok(())
            }
            _ => {
                let reason =
                    format!("tensor '{name}' is of {experts} experts, more than any model has");
                Err(Error::config(file, reason))
            }
        }
    }
}

/// The tensors of experts that lie one behind the other in one: `[experts, …]`. Each gets the
/// name around its number.
pub(crate) fn unstacked(
    name: &str,
    (before, behind): (&str, &str),
    stacked: &Located,
    left: &mut Left,
) -> Result<Vec<(String, Located)>, Error> {
    let [experts, own @ ..] = stacked.shape.as_slice() else {
        return Err(Error::config(&stacked.file, format!("tensor '{name}' is of no experts")));
    };
    left.take(name, &stacked.file, *experts)?;
    let one = Located { shape: own.to_vec(), ..stacked.clone() };
    let values: u64 = own.iter().map(|size| *size as u64).product();
    // Of blocks with their scales elsewhere, a byte less each lies here.
    let blocks = one.scales.is_some().then(|| values / one.dtype.unit().0 as u64);
    let bytes = one.bytes() - blocks.unwrap_or(0);
    let of = |expert: usize| {
        let at = |start: u64, bytes: u64| start + bytes * expert as u64;
        let scales = one.scales.clone().zip(blocks);
        let scales = scales.map(|(it, blocks)| Scales { start: at(it.start, blocks), ..it });
        let located = Located { start: at(one.start, bytes), scales, ..one.clone() };
        (format!("{before}{expert}{behind}"), located)
    };
    Ok((0..*experts).map(of).collect())
}

/// One kind of projection of all of a layer's experts.
struct Kind<'a> {
    /// Its weight and its bias in the files, behind the layer's name.
    names: [&'a str; 2],
    /// What each expert's is called behind the expert's number.
    own: &'a str,
    outputs: usize,
    inputs: usize,
    /// Of outputs in turns their number.
    turns: Option<usize>,
}

impl TensorTable {
    /// Takes tensors that hold all experts of a layer apart, where the family has such.
    ///
    /// # Errors
    /// When one is missing or of another shape or type than the configuration says.
    pub(crate) fn unstack(&mut self, config: &DecoderConfig, prefix: &str) -> Result<(), Error> {
        let Some(experts) = &config.experts else { return Ok(()) };
        let Some(stacked) = &experts.names.stacked else { return Ok(()) };
        let mut left = Left::default();
        let both = 2 * experts.intermediate;
        let up = Kind {
            names: stacked.up,
            own: experts.names.up[0],
            outputs: both,
            inputs: config.hidden,
            turns: (experts.lie != Lie::Rows).then_some(both),
        };
        let down = Kind {
            names: stacked.down,
            own: experts.names.down,
            outputs: config.hidden,
            inputs: experts.intermediate,
            turns: None,
        };
        for layer in (0..config.layers).filter(|layer| config.experts(*layer).is_some()) {
            let layer = format!("{prefix}{}.{layer}", config.names.layers);
            for kind in [&up, &down] {
                self.unstack_kind(&layer, experts, kind, &mut left)?;
            }
        }
        Ok(())
    }

    fn unstack_kind(
        &mut self,
        layer: &str,
        experts: &Experts,
        kind: &Kind<'_>,
        left: &mut Left,
    ) -> Result<(), Error> {
        let [weight, bias] = kind.names.map(|name| format!("{layer}.{name}"));
        let Kind { outputs, inputs, turns, .. } = *kind;
        let count = experts.count;
        let (weight, found) = match experts.lie {
            Lie::Rows => self.taken(weight, &[count, outputs, inputs])?,
            Lie::ColumnsInTurns => self.taken(weight, &[count, inputs, outputs])?,
            Lie::BlocksInTurns => self.taken_blocks(weight, [count, outputs, inputs])?,
        };
        let mut stacks = vec![(weight, found, "weight")];
        if experts.biased {
            let (name, found) = self.taken(bias, &[count, outputs])?;
            stacks.push((name, found, "bias"));
        }
        for (name, found, suffix) in stacks {
            let found = Located { paired: turns, ..found };
            let before = format!("{layer}.{}.", experts.names.experts);
            let behind = format!(".{}.{suffix}", kind.own);
            self.tensors.extend(unstacked(&name, (&before, &behind), &found, left)?);
        }
        Ok(())
    }

    /// Takes a tensor of that name and shape out of the table.
    fn taken(&mut self, name: String, shape: &[usize]) -> Result<(String, Located), Error> {
        let found = self.find(&name, shape)?.clone();
        self.tensors.remove(&name);
        Ok((name, found))
    }

    /// Takes the two tensors of a weight in MXFP4 out of the table, as one.
    fn taken_blocks(
        &mut self,
        name: String,
        [count, outputs, inputs]: [usize; 3],
    ) -> Result<(String, Located), Error> {
        const BLOCK: Stored = Stored::Blocks(BlockFormat::Mxfp4);
        let blocks = inputs / BLOCK.unit().0;
        let mut bytes = |suffix: &str, shape: &[usize]| {
            let name = format!("{name}_{suffix}");
            let found = self.find_bytes(&name, shape)?.clone();
            self.tensors.remove(&name);
            Ok::<_, Error>(found)
        };
        let found = bytes("blocks", &[count, outputs, blocks, 16])?;
        let Located { file, start, .. } = bytes("scales", &[count, outputs, blocks])?;
        let scales = Some(Scales { file, start });
        let shape = vec![count, outputs, inputs];
        Ok((name, Located { dtype: BLOCK, shape, scales, ..found }))
    }
}

#[cfg(test)]
mod tests;
