//! Traces: access logs and CSV files.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use roundhouse_residency::simulate::Trace;
use roundhouse_types::{Bytes, EndpointName, ModelId};
use serde::Deserialize;

use super::fields;
use super::lines::{self, Lines};
use crate::error::{Error, count};

/// Stands for the endpoint of traces that name none.
const ENDPOINT: &str = "trace";
/// Stands for the target where the Alibaba trace leaves its base model empty.
const UNNAMED: &str = "unnamed";

/// What was read.
pub(crate) struct Read {
    pub(crate) trace: Trace,
    /// Sizes that the traces tell, by model; the largest where one has several.
    pub(super) sizes: HashMap<ModelId, Bytes>,
    /// Lines of access logs that name no target.
    without_target: usize,
    /// Lines of access logs for targets that no model answered for.
    not_served: usize,
}

impl Read {
    /// What was left out.
    pub(super) fn notes(&self) -> Vec<String> {
        let mut notes = Vec::new();
        if self.without_target > 0 {
            notes.push(format!("{} without a target left out", count(self.without_target, "line")));
        }
        if self.not_served > 0 {
            let lines = count(self.not_served, "line");
            notes.push(format!("{lines} left out whose requests were refused for what they asked"));
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
    let mut read = Read { trace, sizes, without_target: 0, not_served: 0 };
    for path in paths {
        read_file(path, &mut read)?;
    }
    read.trace.sort();
    if read.trace.requests().is_empty() {
        return Err(Error::Usage("the traces hold no request for a target".into()));
    }
    Ok(read)
}

/// How the lines of a file are read.
enum Format {
    AccessLog,
    Csv(Columns),
}

/// Where the columns are.
struct Columns {
    time: usize,
    target: usize,
    bytes: Option<usize>,
    /// What an empty target stands for, where one may be empty.
    unnamed: Option<&'static str>,
}

fn read_file(path: &Path, read: &mut Read) -> Result<(), Error> {
    let cannot = |source| Error::io(format!("cannot read {}", path.display()), source);
    let mut lines = Lines::of(path).map_err(cannot)?;
    let mut format = None;
    while let Some((number, line)) = lines.next()? {
        let fault = |why: String| lines::fault(path, number, &why);
        if line.trim().is_empty() {
            continue;
        }
        match &format {
            Some(Format::AccessLog) => logged(&line, read).map_err(fault)?,
            Some(Format::Csv(columns)) => row(&line, columns, read).map_err(fault)?,
            None if line.trim_start().starts_with('{') => {
                logged(&line, read).map_err(fault)?;
                format = Some(Format::AccessLog);
            }
            None => format = Some(Format::Csv(columns(&line).map_err(fault)?)),
        }
    }
    Ok(())
}

/// What is read of a line of the access log.
#[derive(Deserialize)]
struct Logged {
    time: f64,
    endpoint: Option<EndpointName>,
    target: Option<String>,
    version: Option<String>,
    status: Option<u16>,
}

fn logged(line: &str, read: &mut Read) -> Result<(), String> {
    let not_ours = |error| format!("not a line of the access log: {error}");
    let logged: Logged = serde_json::from_str(line).map_err(not_ours)?;
    let Some(target) = logged.target else {
        read.without_target += 1;
        return Ok(());
    };
    // Requests that came too early or too many still wanted their model; those that were wrong
    // wanted none that there is.
    let is_wrong = |status: u16| (400..500).contains(&status) && status != 429;
    if logged.version.is_none() && logged.status.is_some_and(is_wrong) {
        read.not_served += 1;
        return Ok(());
    }
    let at =
        fields::seconds(logged.time).ok_or_else(|| format!("{} is not a time", logged.time))?;
    let model = model(logged.endpoint, &target)?;
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
        _ => {
            Err("neither a line of the access log nor a header with the columns time and target; \
                  --help tells the formats"
                .into())
        }
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
