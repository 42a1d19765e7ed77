//! `roundhouse demo`: everything with nothing set up. An embedded S3-compatible server holds
//! the demo models, and an endpoint over it has no room for all of them.

mod python;
mod s3;
mod welcome;

use std::path::{Path, PathBuf};

use aws_credential_types::Credentials;
use aws_sdk_s3::Client;
use aws_sdk_s3::config::{BehaviorVersion, Region};
use aws_sdk_s3::primitives::ByteStream;
use include_dir::{Dir, File, include_dir};
use roundhouse_types::{ErrorKind, Failure};
use tempfile::TempDir;
use tracing::{info, warn};

use crate::app;
use crate::cli::{DemoFlags, Last, ServeFlags, environment};
use crate::config::{Config, Fault, Log};
use crate::error::Error;
use s3::{ACCESS_KEY, EmbeddedS3, SECRET_KEY};

/// The models as they lie in the source tree: paths are keys under the bucket's prefix.
static MODELS: Dir<'_> = include_dir!("$CARGO_MANIFEST_DIR/demo/models");

const BUCKET: &str = "models";

/// What is special about the demo: too little room for all of its models, a window no larger than what
/// the language models were trained on, and Python handlers.
const SETTINGS: &str = include_str!("demo/demo.toml");

/// Runs the demo to its end.
///
/// # Errors
/// As [`app::serve`], and when the models cannot be put into the embedded store.
pub(crate) async fn run(flags: DemoFlags, last: &mut Last) -> Result<(), Error> {
    let mut stop = app::Stop::listen()?;
    let home = Home::of(flags.data_dir.as_deref())?;
    let folder = home.path().to_owned();
    // Whatever ends it, its tasks may still write there.
    *last = Some(Box::new(home));
    let Some((running, _store)) = stop.unless(start(flags, &folder)).await? else {
        return Ok(());
    };
    app::announce(&running);
    running.until_stopped(stop).await
}

/// The demo over its models, in an embedded store.
async fn start(flags: DemoFlags, home: &Path) -> Result<(app::Running, EmbeddedS3), Error> {
    let buckets = home.join("s3");
    std::fs::create_dir_all(buckets.join(BUCKET))
        .map_err(|source| Error::io(format!("cannot create {}", buckets.display()), source))?;
    let store = EmbeddedS3::start(&buckets)
        .await
        .map_err(|source| Error::io("cannot start the embedded S3 server", source))?;
    let objects = upload(&store.url()).await?;
    info!(objects, url = %store.url(), "demo models are in the embedded S3 server");

    let cache = home.join("cache");
    let config = settings(&flags, (&store.url(), Some(&cache)), &environment);
    let mut config = config.map_err(Error::Settings)?;
    let python = python::find(&config.handlers).await;
    if let Err(reason) = &python {
        warn!(reason, "the demo runs without its Python handlers");
        config.handlers.enabled = false;
    }
    let credentials =
        app::Credentials { access_key: ACCESS_KEY.into(), secret_key: SECRET_KEY.into() };
    let running = app::start(config, Some(credentials), None).await?;
    welcome::print(&running.data, &running.admin, &python);
    Ok((running, store))
}

/// The demo's log settings, known before its store has an address.
///
/// # Errors
/// The faults of the flags and the environment, in all settings.
pub(crate) fn log(flags: &DemoFlags, env: &dyn Fn(&str) -> Option<String>) -> Result<Log, Error> {
    let config = settings(flags, ("http://127.0.0.1", None), env);
    config.map(|config| config.log).map_err(Error::Settings)
}

/// The demo's folder: the one asked for, kept, or a temporary one that goes with the demo.
enum Home {
    Kept(PathBuf),
    Temporary(TempDir),
}

impl Home {
    fn of(asked: Option<&Path>) -> Result<Self, Error> {
        match asked {
            Some(path) => Ok(Self::Kept(path.to_owned())),
            None => TempDir::with_prefix("roundhouse-demo-")
                .map(Self::Temporary)
                .map_err(|source| Error::io("cannot create a temporary folder", source)),
        }
    }

    fn path(&self) -> &Path {
        match self {
            Self::Kept(path) => path,
            Self::Temporary(folder) => folder.path(),
        }
    }
}

fn settings(
    flags: &DemoFlags,
    (store, cache): (&str, Option<&Path>),
    env: &dyn Fn(&str) -> Option<String>,
) -> Result<Config, Vec<Fault>> {
    let flags = ServeFlags {
        listen: flags.listen.clone(),
        admin_listen: flags.admin_listen.clone(),
        insecure_no_auth: flags.insecure_no_auth,
        cache_dir: cache.map(|cache| cache.display().to_string()),
        ..ServeFlags::default()
    };
    let text = SETTINGS.replace("STORE_URL", store);
    Config::parse(Some(&text), env, &flags)
}

/// Puts every model into the bucket through the S3 API; what is there already, with the same
/// bytes, keeps its ETag and with it its version.
async fn upload(url: &str) -> Result<usize, Error> {
    let config = aws_sdk_s3::Config::builder()
        .behavior_version(BehaviorVersion::latest())
        .endpoint_url(url)
        .region(Region::from_static("us-east-1"))
        .credentials_provider(Credentials::new(ACCESS_KEY, SECRET_KEY, None, None, "demo"))
        .force_path_style(true)
        .build();
    let client = Client::from_conf(config);
    let mut files = Vec::new();
    collect(&MODELS, &mut files);
    for file in &files {
        let key = file.path().to_string_lossy();
        client
            .put_object()
            .bucket(BUCKET)
            .key(key.as_ref())
            .body(ByteStream::from_static(file.contents()))
            .send()
            .await
            .map_err(|error| {
                let cause = Failure::from_error(ErrorKind::StoreUnavailable, &error);
                Failure::new(cause.kind(), format!("the embedded store refused {key}: {cause}"))
            })?;
    }
    Ok(files.len())
}

fn collect(dir: &'static Dir<'static>, into: &mut Vec<&'static File<'static>>) {
    into.extend(dir.files());
    for inner in dir.dirs() {
        collect(inner, into);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_of_addresses_beyond_loopback_can_be_done() {
        let flags = |is_meant: bool| DemoFlags {
            listen: Some("0.0.0.0:8080".into()),
            admin_listen: Some("0.0.0.0:8081".into()),
            insecure_no_auth: is_meant,
            ..DemoFlags::default()
        };
        let Err(Error::Settings(faults)) = log(&flags(false), &|_| None) else {
            panic!("nobody is asked who they are");
        };
        let keys: Vec<&str> = faults.iter().map(|fault| fault.key.as_str()).collect();
        assert_eq!(keys, ["listen.data", "listen.admin"]);
        assert!(faults[0].message.contains("say --insecure-no-auth"), "{}", faults[0]);
        assert!(log(&flags(true), &|_| None).is_ok());
    }
}
