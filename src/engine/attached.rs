//! Adapters on an engine, as their callers hold them.

use std::any::Any;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::Sender;

use roundhouse_types::Failure;
use tokio::sync::oneshot;

use crate::fair::EngineId;
use crate::handle::EngineHandle;
use crate::kv;
use crate::lane::Command;
use crate::plan::{AdapterId, HeadSpec};
use crate::scheduler::Adapter;

/// Of the process, whatever the engine: an id that was used once names nothing else.
static NEXT_ADAPTER: AtomicU64 = AtomicU64::new(0);

/// An adapter to be attached.
pub(crate) struct Attaching {
    pub(crate) weights: Box<dyn Any + Send>,
    /// Travels to the lane and back, so that an adapter whose caller left is detached.
    pub(crate) registration: Attachment,
    /// With its head, where it has one of its own.
    pub(crate) answer: oneshot::Sender<Result<(Attachment, Option<HeadSpec>), Failure>>,
}

/// Keeps an adapter on its engine; dropped, it asks for the removal.
pub(crate) struct Attachment {
    engine: EngineId,
    adapter: AdapterId,
    commands: Sender<Command>,
    detached: bool,
}

impl Attachment {
    pub(crate) fn adapter(&self) -> AdapterId {
        self.adapter
    }
}

impl Drop for Attachment {
    fn drop(&mut self) {
        if !self.detached {
            // Not attached, or gone with its engine: then there is nothing to take off.
            let _ = self.commands.send(Command::Detach(self.engine, self.adapter, None));
        }
    }
}

/// An adapter on its engine. Dropping it detaches the adapter without waiting.
pub struct Attached {
    /// Submits work to the engine, computed with the adapter. Queue bound, share of the lane and
    /// load are the engine's: those of its model and of all its adapters together.
    pub handle: EngineHandle,
    attachment: Attachment,
}

impl Attached {
    /// Its name in steps.
    pub fn id(&self) -> AdapterId {
        self.attachment.adapter
    }

    /// Ends what is left of its sequences with an error and frees its weights; resolves when that
    /// is done. If dropped before ready, the removal goes on.
    pub async fn detach(mut self) {
        let (gone, done) = oneshot::channel();
        self.attachment.detached = true;
        let Attachment { engine, adapter, ref commands, .. } = self.attachment;
        if commands.send(Command::Detach(engine, adapter, Some(gone))).is_ok() {
            // Answered by dropping the sender, whichever way the removal goes.
            let _ = done.await;
        }
    }
}

impl EngineHandle {
    /// Puts an adapter beside the engine's model, between two steps. `weights` is what the
    /// runner's loader made for it, on its device already; `version` is the digest of what they
    /// were made of: sequences of equal versions share what was computed of a prefix, and no
    /// others do. If dropped before ready, the adapter is detached again.
    ///
    /// # Errors
    /// `ModelInvalid` when the runner refuses the weights; `ModelFailed` when the engine is gone
    /// or its device has failed.
    pub async fn attach(
        &self,
        weights: Box<dyn Any + Send>,
        version: [u8; 32],
    ) -> Result<Attached, Failure> {
        let (engine, commands) = self.way();
        let id = AdapterId(NEXT_ADAPTER.fetch_add(1, Ordering::Relaxed));
        let commands = commands.clone();
        let registration =
            Attachment { engine, adapter: id, commands: commands.clone(), detached: false };
        let (answer, attached) = oneshot::channel();
        let attaching = Box::new(Attaching { weights, registration, answer });
        commands.send(Command::Attach(engine, attaching)).map_err(|_| self.gone())?;
        let (attachment, head) = attached.await.map_err(|_| self.gone())??;
        let adapter = Adapter { id, root: kv::root(&version) };
        Ok(Attached { handle: self.with_adapter(adapter, head), attachment })
    }
}
