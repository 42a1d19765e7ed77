//! What the gateway calls: closures over what the server is made of.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::sync::{Arc, mpsc};
use std::time::Duration;

use futures_util::FutureExt;
use roundhouse_gateway::{
    AccessRecord, Capture, EndpointFace, Health, KvTokens, ModelFacts, Naming, PageWanted, Target,
    TargetPage,
};
use roundhouse_store::{Catalog, Freshness, Pick};
use roundhouse_tenancy::{Pattern, Place, place};
use roundhouse_types::{EndpointName, Failure, ModelId};
use serde::Serialize;

use super::build::Catalogs;
use crate::admin::{AuditFn, Vitals};
use crate::config::{AccessLog, Config};
use crate::error::Error;
use crate::loader::{Facts, Handlers, ModelLoader};
use crate::logging;

/// Records that may wait for the disk; more are lost rather than slow a request down.
const RECORDS_WAITING: usize = 8192;

/// Of a log's file that is new: it names callers and models, which are not everybody's to read.
const LOG_MODE: u32 = 0o640;

/// How long a record may wait for others that are written with it.
const RECORDS_EVERY: Duration = Duration::from_millis(5);

/// All endpoints over their catalogues.
pub(super) fn endpoints(
    config: &Config,
    catalogs: &Catalogs,
    handlers: &Handlers,
    loader: &Arc<ModelLoader>,
    captures: &BTreeMap<EndpointName, Capture>,
) -> Vec<EndpointFace> {
    let with_handlers = handlers.endpoints.get();
    let face = |(name, catalog): (&EndpointName, &Arc<Catalog>)| {
        let naming = config.endpoint(name).map(|it| it.naming.clone()).unwrap_or_default();
        let engines = config.endpoint(name).is_some_and(|it| !it.engines.is_empty());
        let handlers = engines || with_handlers.contains(name);
        let capture = captures.get(name).cloned();
        let face = endpoint(name.clone(), catalog, handlers, loader);
        EndpointFace { naming, capture, engines, ..face }
    };
    catalogs.iter().map(face).collect()
}

/// An endpoint over its catalogue.
fn endpoint(
    name: EndpointName,
    catalog: &Arc<Catalog>,
    handlers: bool,
    loader: &Arc<ModelLoader>,
) -> EndpointFace {
    let (listed, found) = (catalog.clone(), catalog.clone());
    let (loader, adapted) = (loader.clone(), name.clone());
    let (loaded, known) = (loader.clone(), name.clone());
    EndpointFace {
        name,
        handlers,
        engines: false,
        naming: Naming::default(),
        capture: None,
        containers: None,
        base: Arc::new(move |target| {
            let model = ModelId { endpoint: adapted.clone(), target: target.clone() };
            loader.adapted(&model).map(|base| base.target)
        }),
        facts: Arc::new(move |target| {
            let model = ModelId { endpoint: known.clone(), target: target.clone() };
            loaded.facts(&model).map(facts)
        }),
        list: Arc::new(move |wanted| {
            let catalog = listed.clone();
            async move {
                let PageWanted { after, limit, only } = wanted;
                let page = match only {
                    None => catalog.list(after.as_deref(), limit).await?,
                    Some(patterns) => {
                        let choose = |name: &str| choice(&patterns, name);
                        catalog.list_where(after.as_deref(), limit, choose).await?
                    }
                };
                let targets = page
                    .targets
                    .into_iter()
                    .map(|target| Target { name: target.name, modified: target.modified })
                    .collect();
                Ok(TargetPage { targets, more: page.next.is_some() })
            }
            .boxed()
        }),
        find: Arc::new(move |name| {
            let catalog = found.clone();
            async move {
                let artefact =
                    catalog.resolve(&name, Freshness::Cached).await.map_err(Failure::from)?;
                Ok(Target {
                    name,
                    modified: artefact.files.iter().filter_map(|file| file.modified).max(),
                })
            }
            .boxed()
        }),
    }
}

/// What is known of a loaded model, as the gateway says it.
pub(super) fn facts(facts: Facts) -> ModelFacts {
    ModelFacts {
        context: facts.context,
        dtype: facts.dtype,
        quantize: facts.quantize,
        kv: facts.kv.map(|kv| KvTokens {
            dtype: kv.dtype,
            block: kv.block_tokens,
            floor: kv.floor.tokens,
            now: kv.now.tokens,
            most: kv.most.tokens,
            used: kv.used.tokens,
        }),
    }
}

/// What a listing does with a name, where only what some patterns cover is wanted.
fn choice(patterns: &[Pattern], name: &str) -> Pick {
    match place(patterns, name) {
        Place::Covered => Pick::Take,
        Place::Before(next) => Pick::SkipTo(next),
        Place::Behind => Pick::Stop,
    }
}

/// What `/ping` says.
pub(super) fn health(vitals: &Vitals) -> Health {
    match vitals.unready() {
        None => Health::Healthy,
        Some(why) => Health::Unhealthy(why),
    }
}

/// Where access records go. A thread of its own writes them, so that a slow disk slows nobody.
pub(super) fn access_log(to: &AccessLog) -> Result<Arc<dyn Fn(AccessRecord) + Send + Sync>, Error> {
    log(to, "access")
}

/// Where lines of the audit log go, in the same way.
pub(super) fn audit_log(to: &AccessLog) -> Result<AuditFn, Error> {
    log(to, "audit")
}

fn log<R: Serialize + Send + 'static>(
    to: &AccessLog,
    name: &'static str,
) -> Result<Arc<dyn Fn(R) + Send + Sync>, Error> {
    let file = match to {
        AccessLog::Off => return Ok(Arc::new(|_| ())),
        AccessLog::Stderr => None,
        AccessLog::File(path) => {
            let mut options = OpenOptions::new();
            let options = options.create(true).append(true).mode(LOG_MODE);
            Some(options.open(path).map_err(|source| {
                Error::io(format!("cannot open the {name} log {}", path.display()), source)
            })?)
        }
    };
    let (records, waiting) = mpsc::sync_channel::<R>(RECORDS_WAITING);
    std::thread::Builder::new()
        .name(format!("{name}-log"))
        .spawn(move || write_records(name, &waiting, file))
        .map_err(|source| Error::io(format!("cannot start the {name} log"), source))?;
    Ok(Arc::new(move |record| {
        if records.try_send(record).is_err() {
            logging::lost(name, 1);
        }
    }))
}

/// Writes what has come since the last time. Between two times it sleeps: a thread that is woken
/// for each record costs more than the record, and the request pays for it.
fn write_records<R: Serialize>(
    name: &'static str,
    records: &mpsc::Receiver<R>,
    mut file: Option<File>,
) {
    let mut lines = Vec::new();
    while let Ok(first) = records.recv() {
        lines.clear();
        let mut count = 0;
        for record in std::iter::once(first).chain(records.try_iter()) {
            // A record that cannot be written as JSON leaves no half of itself.
            if let Ok(line) = serde_json::to_vec(&record) {
                lines.extend_from_slice(&line);
                lines.push(b'\n');
                count += 1;
            }
        }
        let written = match &mut file {
            Some(file) => file.write_all(&lines),
            None => io::stderr().write_all(&lines),
        };
        if let Err(error) = written {
            // Some of them may have been.
            logging::lost(name, count);
            tracing::warn!(%error, log = name, "records could not be written");
        }
        std::thread::sleep(RECORDS_EVERY);
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn logs_are_not_everybodys_to_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("audit.log");
        let _log = audit_log(&AccessLog::File(path.clone())).unwrap();
        let mode = std::fs::metadata(path).unwrap().permissions().mode();
        assert_eq!(mode & 0o137, 0, "{mode:o}");
    }
}
