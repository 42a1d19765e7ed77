//! A container that is asked, for the request's trace.

use http::{HeaderMap, StatusCode};
use roundhouse_traces::{Context, SpanId};
use roundhouse_types::TargetName;

use super::Notes;
use crate::state::ContainerCall;

/// A container that is asked; dropped when its answer has come to its end, or is given up.
pub(crate) struct Calling {
    notes: Notes,
    /// The place of the call among the request's.
    at: usize,
}

impl Calling {
    /// Notes that a container is asked, and has it told by which span. `None` where nobody wants to
    /// know.
    pub(crate) fn begin(
        notes: &Notes,
        container: &TargetName,
        headers: &mut HeaderMap,
    ) -> Option<Self> {
        let began = notes.arrived().elapsed();
        let mut record = notes.lock();
        let context = record.trace.as_ref()?.context().clone();
        let calls = &mut record.steps.as_mut()?.calls;
        let span = SpanId::random();
        Context { span, ..context }.write(headers);
        let at = calls.len();
        let container = container.clone();
        calls.push(ContainerCall { span, container, began, ended: None, status: None });
        drop(record);
        Some(Self { notes: notes.clone(), at })
    }

    /// Its answer has begun.
    pub(crate) fn answered(&self, status: StatusCode) {
        self.note(|call| call.status = Some(status.as_u16()));
    }

    fn note(&self, with: impl FnOnce(&mut ContainerCall)) {
        let mut record = self.notes.lock();
        let call = record.steps.as_mut().and_then(|steps| steps.calls.get_mut(self.at));
        if let Some(call) = call {
            with(call);
        }
    }
}

impl Drop for Calling {
    fn drop(&mut self) {
        let elapsed = self.notes.arrived().elapsed();
        self.note(|call| call.ended = Some(elapsed));
    }
}
