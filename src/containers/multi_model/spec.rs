//! What an operator says of a container of many models.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use roundhouse_types::{ErrorKind, Failure};

use crate::BaseUrl;
use crate::driven::{Fill, UnknownPlaceholder};

/// A container of many models. All of it is the operator's; nothing in a model's files becomes any of
/// it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContainerSpec {
    /// Where it is.
    pub origin: ContainerOrigin,
    /// The path that answers with success while it is well.
    pub health: String,
    /// Where it sees our folders; absent: where we do.
    pub paths: Option<PathMap>,
    /// How long a model may take to load, and to leave.
    pub load_timeout: Duration,
}

/// Where a container of many models is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ContainerOrigin {
    /// It runs, at this address.
    Url(BaseUrl),
    /// We start it, when the first of its models is loaded, and again when it has ended.
    Command(StartedContainer),
}

/// What starts a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StartedContainer {
    /// The program and its arguments, with `{port}` and `{device}`; never read by a shell.
    pub command: Vec<String>,
    /// Variables beside those that it is given of ours, with the same placeholders.
    pub environment: BTreeMap<String, String>,
    /// Whether what listens at its port must be one of the command's own processes.
    pub own_processes: bool,
    /// How long it may take until it is well.
    pub start_timeout: Duration,
    /// How long it has to end when it is asked to, before it is killed.
    pub stop_timeout: Duration,
}

/// Where a container sees a folder of ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PathMap {
    /// Where we see it.
    pub from: PathBuf,
    /// Where the container does.
    pub to: PathBuf,
}

impl ContainerSpec {
    /// A folder of ours as the container sees it.
    ///
    /// # Errors
    /// `ModelInvalid` where it is not below what the container sees, or not UTF-8.
    pub(super) fn seen(&self, folder: &Path) -> Result<String, Failure> {
        let refuse = |what: String| Failure::new(ErrorKind::ModelInvalid, what);
        let seen = match &self.paths {
            None => folder.to_owned(),
            Some(PathMap { from, to }) => {
                // Our folder is canonical, and the settings need not be.
                let canonical = from.canonicalize();
                let from = canonical.as_ref().unwrap_or(from);
                let rest = folder.strip_prefix(from).map_err(|_| {
                    let (folder, from) = (folder.display(), from.display());
                    refuse(format!("{folder} is not below {from}, which its container sees"))
                })?;
                to.join(rest)
            }
        };
        let text = seen.into_os_string().into_string();
        text.map_err(|_| refuse("the name of its folder is not UTF-8".into()))
    }
}

impl StartedContainer {
    /// A text with `{device}` filled in; `{port}` stays.
    ///
    /// # Errors
    /// For a word in braces that is no placeholder here: there is no model when it is started.
    pub fn fill(text: &str, device: usize) -> Result<String, UnknownPlaceholder> {
        if let Some(word) =
            ["model", "target"].iter().find(|it| text.contains(&format!("{{{it}}}")))
        {
            return Err(UnknownPlaceholder((*word).to_owned()));
        }
        Fill { model: String::new(), target: String::new(), device }.fill(text)
    }
}
