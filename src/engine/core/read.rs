//! Texts beside sequences, which an adapter's own head answers: read as prompts are, in chunks and
//! with what the pool has of their prefixes, and then over.

use std::sync::Arc;

use roundhouse_types::Failure;
use tokio::sync::oneshot;

use super::client::{Asked, Client};
use super::generate::GenerateWork;
use crate::account::{Account, Claim};
use crate::error::Error;
use crate::metrics::{Ended, Meters};
use crate::queue::Place;
use crate::scheduler::{Adapter, SequenceId, Turn};

/// A text as it comes from a handle, checked.
pub(crate) struct ReadJob {
    pub(crate) id: SequenceId,
    pub(crate) tokens: Vec<u32>,
    /// Whose head answers it.
    pub(crate) adapter: Adapter,
    pub(crate) claim: Arc<Claim>,
    pub(crate) answer: oneshot::Sender<Result<Vec<f32>, Failure>>,
    /// Its call's place in the waiting queue, given back when all of its texts have been admitted.
    pub(crate) place: Option<Arc<Place>>,
}

impl ReadJob {
    /// Ends it before it began.
    pub(super) fn refuse(self, failure: Failure) {
        // The client may be gone, which is as good.
        let _ = self.answer.send(Err(failure));
    }
}

impl GenerateWork {
    /// Queues a text.
    pub(super) fn read(&mut self, job: ReadJob, account: Arc<Account>, meters: &Meters) {
        let ReadJob { id, tokens, adapter, claim, answer, place } = job;
        let client = Client::new(Some(adapter), place, Asked::Answer(answer));
        self.clients.insert(id, client);
        self.scheduler.submit_with(id, tokens, Some(adapter), Turn::of(account, &claim));
        self.scheduler.ends_with_prompt(id);
        meters.submitted.increment(1);
    }

    /// Takes in what a head makes of a text, which is then over.
    pub(super) fn answered(&mut self, id: SequenceId, vector: &[f32], meters: &Meters) {
        if !vector.iter().all(|number| number.is_finite()) {
            return self.fail(id, Error::NotFinite { position: 0 }.into(), meters);
        }
        if let Some(Client { asked: Asked::Answer(answer), .. }) =
            self.remove(id, Ended::Encoded, meters)
        {
            // The client may have left meanwhile.
            let _ = answer.send(Ok(vector.to_vec()));
        }
    }
}
