//! Requests that external engines and containers answer.

use std::time::Duration;

use futures_util::Future;
use roundhouse_containers::driven;
use roundhouse_types::{ModelId, ModelKind};

use super::{NoWork, Work};
use crate::Request;
use crate::at_work::{AtWork, timed};
use crate::completions::Hold;
use crate::metrics::Record;
use crate::task::wrong_kind;

/// By which servers agree on what belongs to one trace (W3C trace context).
const TRACE_HEADERS: [&str; 2] = ["traceparent", "tracestate"];

/// Sends a request on to an external engine or container.
pub(super) async fn relay<F>(
    id: &ModelId,
    to: impl FnOnce(driven::Call) -> F,
    request: Request,
    hold: &Hold,
    record: &mut Record,
) -> Result<(Work, Duration), NoWork>
where
    F: Future<Output = Result<driven::Answer, driven::CallError>>,
{
    let Request::Raw(raw) = request else {
        return Err(NoWork::Failed(wrong_kind(id, ModelKind::External).into()));
    };
    let queue = record.submitted(hold.lease.load_wait(), 0, 0);
    let body = &raw.body;
    let call = driven::Call {
        route: raw.route,
        content_type: body.content_type.clone(),
        accept: body.accept.clone(),
        headers: body.meta.headers.clone().into_iter().collect(),
        request_id: body.meta.request_id.clone(),
        prefixes_of: None,
        trace: TRACE_HEADERS
            .into_iter()
            .filter_map(|name| Some((name, body.meta.headers.get(name)?.clone())))
            .collect(),
        body: body.body.clone(),
    };
    let mut at_work = AtWork::begin(record.spent());
    match to(call).await {
        Ok(mut answer) => {
            answer.body = timed(answer.body, at_work);
            Ok((Work::Relayed(answer, raw.route), queue))
        }
        Err(driven::CallError::NotBegun(failure)) => {
            at_work.nothing_was_done();
            Err(NoWork::NotBegun(raw, failure))
        }
        Err(driven::CallError::Failed(failure)) => Err(NoWork::Failed(failure)),
    }
}
