//! Texts that an adapter's own head answers, on an engine that generates: each is a sequence that
//! ends with its prompt.

use std::sync::Arc;

use futures_util::{StreamExt, TryStreamExt, stream};
use roundhouse_types::Failure;
use tokio::sync::oneshot;

use super::EngineHandle;
use crate::core::ReadJob;
use crate::lane::Command;
use crate::queue::Place;
use crate::request::EncodeSpec;
use crate::scheduler::Adapter;

/// Texts of one call that the lane has at a time, at most: enough for a step, and few beside the
/// sequences that others wait for.
const TOGETHER: usize = 16;

impl EngineHandle {
    /// Reads texts, checked; answers each, in order. The call has its place in the queue until the
    /// last of them is handed over and has begun to run.
    pub(super) async fn read_each(
        &self,
        inputs: Vec<EncodeSpec>,
        adapter: Adapter,
        place: Place,
    ) -> Result<Vec<Vec<f32>>, Failure> {
        let place = Arc::new(place);
        let padding = self.with.head.and_then(|head| head.padding);
        let read = |EncodeSpec { mut tokens, .. }: EncodeSpec| {
            tokens.truncate(filled(&tokens, padding));
            self.read(tokens, adapter, Arc::clone(&place))
        };
        let each: Vec<_> = inputs.into_iter().map(read).collect();
        // Only those that have not begun to run hold it now.
        drop(place);
        stream::iter(each).buffered(TOGETHER).try_collect().await
    }

    async fn read(
        &self,
        tokens: Vec<u32>,
        adapter: Adapter,
        place: Arc<Place>,
    ) -> Result<Vec<f32>, Failure> {
        let (sender, answer) = oneshot::channel();
        let mut ticket = self.submit(|id| {
            let (claim, place) = (self.with.claim.clone(), Some(place));
            let job = ReadJob { id, tokens, adapter, claim, answer: sender, place };
            Command::Read(self.inner.engine, job)
        })?;
        let answer = answer.await;
        ticket.used = true;
        answer.unwrap_or_else(|_| Err(self.gone()))
    }
}

/// The tokens up to the last that is no padding; of nothing else, the first.
fn filled(tokens: &[u32], padding: Option<u32>) -> usize {
    tokens.iter().rposition(|token| Some(*token) != padding).unwrap_or(0) + 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn padding_behind_a_text_is_not_read() {
        assert_eq!(filled(&[0, 1, 0, 0], Some(0)), 2);
        assert_eq!(filled(&[0, 1, 0, 0], None), 4);
        assert_eq!(filled(&[0, 0], Some(0)), 1);
    }
}
