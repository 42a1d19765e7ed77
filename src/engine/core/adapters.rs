//! The adapters of an engine: taken in and given back between steps.

use std::any::Any;

use super::{Engine, Work};
use crate::error::Error;
use crate::plan::{AdapterId, HeadSpec, RunnerError, RunnerSpec};

impl Engine {
    /// Takes an adapter in. Rows may name it from the next step on. Returns the head that answers
    /// them, where it has one of its own.
    pub(crate) fn attach(
        &mut self,
        id: AdapterId,
        weights: Box<dyn Any + Send>,
    ) -> Result<Option<HeadSpec>, RunnerError> {
        let head = self.runner.attach(id, weights)?;
        self.attached.insert(id, head);
        Ok(head)
    }

    /// Ends what is computed with an adapter and gives its weights back, to be freed elsewhere.
    /// `None` where there is no such adapter.
    pub(crate) fn detach(&mut self, id: AdapterId) -> Option<Box<dyn Any + Send>> {
        self.attached.remove(&id)?;
        // Before the weights leave: no step may name them afterwards.
        let failure = Error::Detached.into();
        match &mut self.work {
            Work::Generate(work) => work.end_adapter(id, &failure, &self.meters),
            Work::Encode(work) => work.end_adapter(id, &failure, &self.meters),
        }
        self.publish();
        self.runner.detach(id)
    }

    /// Whether rows may be computed with this adapter, or with none.
    pub(super) fn knows(&self, adapter: Option<AdapterId>) -> bool {
        adapter.is_none_or(|id| self.attached.contains_key(&id))
    }

    /// The head that answers an adapter's rows, where it has one of its own.
    pub(super) fn head(&self, adapter: AdapterId) -> Option<HeadSpec> {
        self.attached.get(&adapter).copied().flatten()
    }

    /// The model's shapes as what is computed with this adapter has them.
    pub(super) fn spec_with(&self, adapter: Option<AdapterId>) -> RunnerSpec {
        let own = adapter.and_then(|id| self.head(id));
        RunnerSpec { output_width: own.map_or(self.spec.output_width, |it| it.width), ..self.spec }
    }
}
