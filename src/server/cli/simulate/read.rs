//! Traces: access logs and CSV files.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use roundhouse_residency::simulate::Trace;
use roundhouse_types::{Bytes, EndpointName, ModelId};
use serde::Deserialize;
use serde::de::IgnoredAny;

use super::fields;
use super::lines::{self, Line, Lines};
use crate::error::{Error, count};

/// Stands for the endpoint of traces that name none.
const ENDPOINT: &str = "trace";
/// Stands for the target where the Alibaba trace leaves its base model empty.
const UNNAMED: &str = "unnamed";
/// What is wrong with a line that tells of no request.
const NEITHER: &str = "neither a line of the access log nor a header with the columns time and \
                       target; --help tells the formats";

/// What was read.
pub(crate) struct Read {
    pub(crate) trace: Trace,
    /// Sizes that the traces tell, by model; the largest where one has several.
    pub(super) sizes: HashMap<ModelId, Bytes>,
    /// Lines of access logs that name no target.
    without_target: usize,
    /// Lines of access logs for targets that no model answered for.
    not_served: usize,
    /// Lines of logs that the access log did not write, and where the first of them is.
    foreign: Option<(usize, String)>,
    /// Lines of access logs that cannot be read, and what is wrong with the first of them.
    damaged: Option<(usize, String)>,
}

impl Read {
    /// What was left out.
    pub(super) fn notes(&self) -> Vec<String> {
        let mut notes = Vec::new();
        if self.without_target > 0 {
            let lines = count(self.without_target, "line");
            notes.push(format!("{lines} without a target, or that asked no model, left out"));
        }
        if self.not_served > 0 {
            let lines = count(self.not_served, "line");
            notes.push(format!("{lines} left out whose requests were refused for what they asked"));
        }
        if let Some((number, first)) = &self.foreign {
            let lines = count(*number, "line");
            notes.push(format!("{lines} left out that are not the access log's, from {first} on"));
        }
        if let Some((number, first)) = &self.damaged {
            let lines = count(*number, "line");
            notes.push(format!("{lines} left out that cannot be read, the first at {first}"));
        }
        notes
    }

    fn push(&mut self, at: Duration, model: &ModelId, bytes: Option<Bytes>) {
        self.trace.push(at, model);
        if let Some(bytes) = bytes {
            let known = self.sizes.entry(model.clone()).or_default();
            *known = bytes.max(*known);
        }
    }
}

/// Reads all files into one trace.
pub(crate) fn read(paths: &[PathBuf]) -> Result<Read, Error> {
    let (trace, sizes) = (Trace::new(), HashMap::new());
    let (foreign, damaged) = Default::default();
    let mut read = Read { trace, sizes, without_target: 0, not_served: 0, foreign, damaged };
    for path in paths {
        read_file(path, &mut read)?;
    }
    read.trace.sort();
    if read.trace.requests().is_empty() {
        return Err(Error::Usage("the traces hold no request for a target".into()));
    }
    Ok(read)
}

/// Where the columns are.
struct Columns {
    time: usize,
    target: usize,
    bytes: Option<usize>,
    /// What an empty target stands for, where one may be empty.
    unnamed: Option<&'static str>,
}

/// A file whose first line names columns is CSV; every other one is a log, in which lines of the access
/// log may stand among others.
fn read_file(path: &Path, read: &mut Read) -> Result<(), Error> {
    let cannot = |source| Error::io(format!("cannot read {}", path.display()), source);
    let mut lines = Lines::of(path).map_err(cannot)?;
    let Some(first) = lines.next()? else { return Ok(()) };
    let header = first.text.clone().map_err(str::to_owned).and_then(|text| columns(&text));
    let Ok(columns) = header else { return log(path, first, lines, read) };
    while let Some(Line { number, text }) = lines.next()? {
        let read = text.map_err(str::to_owned).and_then(|text| row(&text, &columns, read));
        read.map_err(|why| lines::fault(path, number, &why))?;
    }
    Ok(())
}

/// Reads a log, in which one line at least has to be the access log's.
fn log(path: &Path, first: Line, mut lines: Lines, read: &mut Read) -> Result<(), Error> {
    let (mut next, mut found, mut refused) = (Some(first), false, None);
    while let Some(Line { number, text }) = next {
        match text.map_err(Left::foreign).and_then(|text| logged(&text, read)) {
            Ok(()) => found = true,
            Err(left) => {
                let fault = lines::fault(path, number, &left.why);
                let place = format!("{}:{number}", path.display());
                match left.is_damaged {
                    true => read.damaged.get_or_insert_with(|| (0, fault.to_string())).0 += 1,
                    false => read.foreign.get_or_insert((0, place)).0 += 1,
                }
                refused.get_or_insert(fault);
            }
        }
        next = lines.next()?;
    }
    refused.filter(|_| !found).map_or(Ok(()), Err)
}

/// What is read of a line of the access log.
#[derive(Deserialize)]
struct Logged {
    time: f64,
    endpoint: Option<EndpointName>,
    target: Option<String>,
    version: Option<String>,
    status: Option<u16>,
    method: Option<String>,
    route: Option<String>,
    container: Option<IgnoredAny>,
    /// Other lines of a server that logs JSON have one; what ships the access log may add one.
    level: Option<IgnoredAny>,
}

/// Why a line of a log tells of no request.
struct Left {
    why: String,
    /// Whether the access log wrote it, as far as can be seen.
    is_damaged: bool,
}

impl Left {
    fn foreign(why: impl Into<String>) -> Self {
        Self { why: why.into(), is_damaged: false }
    }

    fn damaged(why: String) -> Self {
        Self { why, is_damaged: true }
    }
}

fn logged(line: &str, read: &mut Read) -> Result<(), Left> {
    if !line.trim_start().starts_with('{') {
        return Err(Left::foreign(NEITHER));
    }
    let not_ours = |why: &str| format!("not a line of the access log: {why}");
    let logged: Logged = serde_json::from_str(line).map_err(|error| {
        // Other fields than ours are another's; what is no JSON at all may be cut.
        Left { why: not_ours(&error.to_string()), is_damaged: !error.is_data() }
    })?;
    if logged.level.is_some() && logged.status.is_none() {
        return Err(Left::foreign(not_ours("it has a level, and no status")));
    }
    // A look at a model asks nothing of it, what is answered later has a line of its own then, and a
    // container of the operator's is no model.
    let asks_none = logged.method.is_some_and(|it| it != "POST")
        || logged.route.is_some_and(|it| it == "invoke_endpoint_async")
        || logged.container.is_some();
    let Some(target) = logged.target.filter(|_| !asks_none) else {
        read.without_target += 1;
        return Ok(());
    };
    // Requests that came too early or too many, or that nobody waited for any longer, still wanted their
    // model; those that were wrong wanted none that there is.
    let is_wrong = |status: u16| (400..500).contains(&status) && !matches!(status, 429 | 499);
    if logged.version.is_none() && logged.status.is_some_and(is_wrong) {
        read.not_served += 1;
        return Ok(());
    }
    let no_time = || Left::damaged(format!("{} is not a time", logged.time));
    let at = fields::seconds(logged.time).ok_or_else(no_time)?;
    let model = model(logged.endpoint, &target).map_err(Left::damaged)?;
    read.push(at, &model, None);
    Ok(())
}

fn columns(line: &str) -> Result<Columns, String> {
    let header: Vec<String> = fields::split(line.trim_start_matches('\u{feff}'))?
        .into_iter()
        .map(|name| name.trim().to_owned())
        .collect();
    let place = |name: &str| header.iter().position(|it| it == name);
    let alibaba = (place("gmt_create"), place("checkpoint_model_version_id"));
    if let (Some(time), Some(target)) = alibaba {
        return Ok(Columns { time, target, bytes: None, unnamed: Some(UNNAMED) });
    }
    match (place("time"), place("target")) {
        (Some(time), Some(target)) => {
            Ok(Columns { time, target, bytes: place("bytes"), unnamed: None })
        }
        _ => Err(NEITHER.into()),
    }
}

fn row(line: &str, columns: &Columns, read: &mut Read) -> Result<(), String> {
    let fields = fields::split(line)?;
    let field = |at: usize| {
        let missing =
            || format!("{}, and column {} is needed", count(fields.len(), "column"), at + 1);
        fields.get(at).map(|field| field.trim()).ok_or_else(missing)
    };
    let at = fields::time(field(columns.time)?)?;
    let target = match (field(columns.target)?, columns.unnamed) {
        ("", Some(unnamed)) => unnamed,
        (target, _) => target,
    };
    let bytes = match columns.bytes.map(field).transpose()? {
        None | Some("") => None,
        Some(text) => Some(text.parse::<Bytes>().map_err(|error| error.to_string())?),
    };
    read.push(at, &model(None, target)?, bytes);
    Ok(())
}

fn model(endpoint: Option<EndpointName>, target: &str) -> Result<ModelId, String> {
    let target =
        target.parse().map_err(|why| format!("the target '{target}' cannot be used: {why}"))?;
    let endpoint =
        endpoint.unwrap_or_else(|| ENDPOINT.parse().expect("our own name is a legal one"));
    Ok(ModelId { endpoint, target })
}
