//! From what was submitted to what is kept: an id, and the names of the objects that come of it.

use uuid::Uuid;

use crate::error::Error;
use crate::place::{Place, is_plain};
use crate::queue::{Endpoint, now};
use crate::request::{Input, Submission};
use crate::spool::Entry;

/// The longest key of S3, in bytes.
const KEY_MOST: usize = 1024;
/// The longest part of a name between slashes: what file systems take.
const SEGMENT_MOST: usize = 255;

/// What is kept of a submission.
///
/// # Errors
/// `Invalid` where the input lies, or an object would lie, outside the endpoint's prefixes.
pub(crate) fn entry(
    endpoint: &Endpoint,
    submission: Submission,
) -> Result<(Entry, bytes::Bytes), Error> {
    let tenant = submission.tenant.as_ref();
    let id = Uuid::new_v4();
    let (input, body) = match submission.input {
        Input::Inline(body) => (None, body),
        Input::At(uri) => {
            if !endpoint.inputs.iter().any(|place| place.key(tenant, &uri).is_some()) {
                let why = format!(
                    "the input location {uri} is not under a prefix that endpoint \
                     {} reads from",
                    endpoint.name
                );
                return Err(Error::Invalid(why));
            }
            (Some(uri), bytes::Bytes::new())
        }
    };
    let folder = match &submission.extension {
        Some(extension) => format!("{}/", extension.trim_matches('/')),
        None => String::new(),
    };
    let (output, failure) = names(&id, submission.filename.as_deref());
    let uri = |place: &Place, name: &str| {
        let uri = place.uri(tenant, &format!("{folder}{name}"));
        let uri = uri.ok_or_else(|| {
            let why = "the endpoint's prefixes are by tenant, and the request is nobody's";
            Error::Invalid(why.into())
        })?;
        let path = format!("{folder}{name}");
        let is_long = path.split('/').any(|segment| segment.len() > SEGMENT_MOST);
        if !is_plain(&path) || is_long || uri.len() > KEY_MOST {
            let why = "the output path extension and the file name make no legal object name";
            return Err(Error::Invalid(why.into()));
        }
        Ok(uri)
    };
    let entry = Entry {
        id,
        endpoint: submission.endpoint,
        tenant: submission.tenant.clone(),
        credential: submission.credential,
        inference_id: submission.inference_id.unwrap_or_else(|| id.to_string()),
        accepted_at: now(),
        ttl_seconds: submission.ttl.as_secs(),
        timeout_seconds: submission.timeout.as_secs(),
        headers: submission.headers,
        content_type: submission.content_type,
        input,
        output: uri(&endpoint.output, &output)?,
        failure: uri(&endpoint.failure, &failure)?,
        region: endpoint.config.output.root.region.clone(),
    };
    Ok((entry, body))
}

/// The names of a request's answer and failure.
fn names(id: &Uuid, filename: Option<&str>) -> (String, String) {
    match filename {
        None => (format!("{id}.out"), format!("{id}-error.out")),
        Some(name) => match name.split_once('.') {
            Some((stem, ending)) => (name.to_owned(), format!("{stem}-error.{ending}")),
            None => (format!("{name}.out"), format!("{name}-error.out")),
        },
    }
}
