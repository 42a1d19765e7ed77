//! What all models share, brought up before the first of them: threads and their scratch.

use candle_core::{Device, Result, Tensor};
use roundhouse_engine::{ModelRunner, RunnerError, RunnerSpec, StepOutput, StepPlan};
use roundhouse_types::Bytes;

/// Rows and columns of the matrices: enough that every thread of the pool takes part.
const WIDTH: usize = 512;

/// A runner that knows nothing and computes one matmul per step.
///
/// Placed on a lane and removed again, it makes the lane's thread and the pool's threads
/// allocate what they keep: stacks, and each its packing buffer of the size of a core's L2
/// cache. Otherwise the first model would seem to take what is the process's own.
pub fn primer() -> Box<dyn ModelRunner> {
    Box::new(Primer)
}

struct Primer;

impl Primer {
    fn multiply() -> Result<()> {
        let matrix = Tensor::full(0.5f32, (WIDTH, WIDTH), &Device::Cpu)?;
        matrix.matmul(&matrix)?;
        Ok(())
    }
}

impl ModelRunner for Primer {
    fn spec(&self) -> RunnerSpec {
        RunnerSpec { output_width: 1, context: 1, step_tokens: 1, kv: None }
    }

    fn forward(&mut self, plan: &StepPlan) -> std::result::Result<StepOutput, RunnerError> {
        rayon::broadcast(|_| Self::multiply())
            .into_iter()
            .chain([Self::multiply()])
            .collect::<Result<()>>()
            .map_err(|error| RunnerError::Device(error.to_string()))?;
        let outputs = plan.rows.iter().filter(|row| row.output);
        Ok(StepOutput { rows: outputs.map(|_| vec![0.0]).collect() })
    }

    fn prepares_shapes(&self) -> bool {
        // Threads and their scratch are the process's, and warm since its start.
        false
    }

    fn touched(&self) -> Bytes {
        Bytes::ZERO
    }

    fn give_back(&mut self, _: usize) -> Option<Box<dyn std::any::Any + Send>> {
        None
    }
}

#[cfg(test)]
mod tests {
    use roundhouse_engine::Row;

    use super::*;

    #[test]
    fn it_answers_the_shapes_that_a_lane_warms_up() {
        let mut runner = primer();
        let row = Row { tokens: vec![0], output: true, ..Row::default() };
        let answer = runner.forward(&StepPlan { rows: vec![row] }).unwrap();
        assert_eq!(answer.rows, [[0.0]]);
        assert_eq!(runner.touched(), Bytes::ZERO);
    }
}
