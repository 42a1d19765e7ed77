//! What readers are shown of the table: whole, or part by part so that requests are served between.

use std::time::SystemTime;

use roundhouse_types::{ArtefactId, ModelId};
use tokio::sync::oneshot;

use super::{Owner, now};
use crate::holdings::Holdings;
use crate::loader::Loader;
use crate::snapshot::{AfterResident, Clocks, CopiesPart, Part, ResidentsPart, Snapshot};

/// What a reader wants to see.
pub(crate) enum Look {
    /// All of it at one instant, however long that takes.
    Whole { reply: oneshot::Sender<Snapshot> },
    /// The same where there are as few residents and copies as one part visits; else nothing.
    Few { reply: oneshot::Sender<Option<Snapshot>> },
    /// Of residents and copies those of one model.
    Of { model: ModelId, reply: oneshot::Sender<Snapshot> },
    /// What lies in memory.
    Holdings { reply: oneshot::Sender<Holdings> },
    /// All but residents and copies.
    Outline { reply: oneshot::Sender<Snapshot> },
    /// The next few residents.
    Residents { after: Option<AfterResident>, reply: oneshot::Sender<ResidentsPart> },
    /// The next few copies.
    Copies { after: Option<ArtefactId>, reply: oneshot::Sender<CopiesPart> },
}

impl<L: Loader> Owner<L> {
    pub(super) fn look(&mut self, look: Look) {
        if !matches!(look, Look::Holdings { .. } | Look::Residents { .. } | Look::Copies { .. }) {
            self.report_progress();
        }
        // An instant that is told twice is told the same.
        self.clocks = self.clocks.or(Clocks { instant: now(), wall: SystemTime::now() });
        let (table, clocks) = (&self.table, &self.clocks);
        match look {
            // Who asked may have left.
            Look::Whole { reply } => _ = reply.send(table.snapshot(clocks)),
            Look::Few { reply } => {
                let snapshot = table.is_small().then(|| table.snapshot(clocks));
                let _ = reply.send(snapshot);
            }
            Look::Of { model, reply } => _ = reply.send(table.snapshot_of(&model, clocks)),
            Look::Holdings { reply } => _ = reply.send(table.holdings()),
            Look::Outline { reply } => _ = reply.send(table.outline(clocks)),
            Look::Residents { after, reply } => {
                let after = after.as_ref().map(|AfterResident(key)| key);
                let (rows, rest) = table.residents_behind(after, clocks);
                let _ = reply.send(Part { rows, rest: rest.map(AfterResident) });
            }
            Look::Copies { after, reply } => {
                let (rows, rest) = table.copies_behind(after.as_ref(), clocks);
                let _ = reply.send(Part { rows, rest });
            }
        }
    }
}
