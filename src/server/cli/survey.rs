//! `roundhouse survey`: what a store holds, and what of it will run.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use clap::Args;
use futures_util::StreamExt;
use roundhouse_models::{AdapterPlan, LoadSettings};
use roundhouse_store::{
    Catalog, CatalogConfig, Freshness, MountConfig, StoreUri, Target, TargetForm, TargetPage,
};
use roundhouse_types::{
    Bytes, EndpointName, ErrorKind, Failure, Footprint, ModelId, ModelKind, TargetName,
};
use roundhouse_workers::Settings;
use serde::Serialize;
use tokio::sync::OnceCell;

use super::adapts::Adapts;
use super::output::{self, Table};
use super::{ServeFlags, environment};
use crate::app::settings;
use crate::config::Config;
use crate::error::{Error, count};
use crate::loader::{self, HandlerPlan, Plan, plan_stored};

/// Targets looked into at a time: enough to hide round trips, few enough for any store.
const AT_A_TIME: usize = 8;
/// Targets of one page of the listing.
const PAGE: usize = 1000;

/// Arguments of `survey`.
#[derive(Debug, Clone, Args)]
pub struct SurveyArgs {
    /// The store: s3://bucket/prefix/ or file:///folder/.
    pub uri: String,
    /// Begin behind this target.
    #[arg(long, value_name = "TARGET")]
    pub after: Option<String>,
    /// Look into so many at most.
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..))]
    pub limit: u32,
    /// Print JSON, for programs.
    #[arg(long)]
    pub json: bool,
}

/// What is known of one target without fetching it.
#[derive(Debug, Serialize)]
struct Finding {
    target: TargetName,
    form: &'static str,
    bytes: Bytes,
    #[serde(flatten)]
    verdict: Verdict,
}

/// Whether a target will run.
#[derive(Debug, Serialize)]
#[serde(tag = "verdict", rename_all = "snake_case")]
enum Verdict {
    /// It will, and takes this.
    Runs {
        kind: ModelKind,
        architecture: String,
        context: usize,
        footprint: Footprint,
        /// What may be wrong with it.
        #[serde(skip_serializing_if = "Option::is_none")]
        warning: Option<String>,
    },
    /// It will beside its base, and takes this; `base_is` says how far that was looked into.
    RunsBesideBase { kind: ModelKind, adapter: Adapts, base_is: BaseIs, footprint: Footprint },
    /// It will where handlers are served; what it takes is known when it has run.
    RunsAsHandler { kind: ModelKind, script: bool, requirements: bool },
    /// Only its content tells, and an archive's content is seen when it is fetched.
    UnknownUntilFetched,
    /// It will not, as it is.
    DoesNotRun { reason: String },
    /// The store did not let us look.
    NotSeen { reason: String },
}

/// What is known of an adapter's base.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum BaseIs {
    /// It is in this store, and the adapter fits it.
    Here,
    /// This store has no target of its name.
    NotHere,
    /// It is in this store, and was not seen or cannot be before it is fetched.
    NotSeen,
}

/// Lists targets and looks into each.
pub(super) async fn run(args: &SurveyArgs) -> Result<(), Error> {
    let uri: StoreUri = args
        .uri
        .parse()
        .map_err(|error: roundhouse_store::Error| Error::Usage(error.to_string()))?;
    must_be_here(&uri)?;
    let settings = load_settings()?;
    let catalog = connect(uri).await.map_err(Failure::from)?;
    let page = targets(&catalog, args).await.map_err(Failure::from)?;
    let TargetPage { targets, next, truncated } = page;
    let bases = Bases::default();
    let looks = futures_util::stream::iter(targets)
        .map(|target| look((&catalog, &bases), target, settings))
        .buffered(AT_A_TIME);
    let findings: Vec<Finding> = looks.collect().await;
    if args.json {
        return output::print_json(&serde_json::json!({
            "uri": args.uri, "targets": findings, "next": next, "truncated": truncated,
        }));
    }
    output::print(&table(&findings))?;
    output::print(&summary(&findings, truncated))?;
    if findings.is_empty() && args.after.is_none() && !truncated {
        let what = "a target is an archive, or a folder with config.json: check bucket and prefix";
        output::print(&format!("{what}\n"))?;
    }
    match next {
        Some(next) => output::print(&format!("... and more: --after '{next}', or raise --limit\n")),
        None => Ok(()),
    }
}

/// A store of this machine is a folder; what is asked of one that is not there blames the network.
fn must_be_here(uri: &StoreUri) -> Result<(), Error> {
    let StoreUri::File { root } = uri else { return Ok(()) };
    match std::fs::metadata(root) {
        Ok(found) if found.is_dir() => Ok(()),
        Ok(_) => Err(Error::io(
            format!("{uri} is not a folder"),
            std::io::ErrorKind::NotADirectory.into(),
        )),
        Err(source) => Err(Error::io(format!("the folder of {uri} is not there"), source)),
    }
}

/// What the settings of the environment say about loads: they decide the footprint.
fn load_settings() -> Result<LoadSettings, Error> {
    let flags = ServeFlags { store: vec!["file:///".into()], ..ServeFlags::default() };
    let config = Config::parse(None, &environment, &flags).map_err(Error::Settings)?;
    Ok(settings::load(&config))
}

pub(super) async fn connect(uri: StoreUri) -> Result<Catalog, roundhouse_store::Error> {
    let endpoint: EndpointName = "local".parse().expect("a plain word is a name");
    let config = CatalogConfig {
        // Everything is told as it is now; nothing is served that might be half uploaded.
        settle: Duration::ZERO,
        update_settle: Duration::ZERO,
        settle_wait: Duration::ZERO,
        ..CatalogConfig::default()
    };
    Catalog::connect(endpoint, vec![MountConfig::new(uri)], config).await
}

async fn targets(
    catalog: &Catalog,
    args: &SurveyArgs,
) -> Result<TargetPage, roundhouse_store::Error> {
    let limit = args.limit as usize;
    let mut found = TargetPage { targets: Vec::new(), next: args.after.clone(), truncated: false };
    loop {
        let wanted = PAGE.min(limit - found.targets.len());
        let page = catalog.list(found.next.as_deref(), wanted).await?;
        found.targets.extend(page.targets);
        (found.next, found.truncated) = (page.next, page.truncated);
        if found.next.is_none() || found.targets.len() >= limit {
            return Ok(found);
        }
    }
}

async fn look(within: (&Catalog, &Bases), target: Target, settings: LoadSettings) -> Finding {
    let form = match target.form {
        TargetForm::Archive => "archive",
        TargetForm::Folder => "folder",
        TargetForm::File => "file",
    };
    let verdict = match target.form {
        TargetForm::Archive => Verdict::UnknownUntilFetched,
        TargetForm::Folder | TargetForm::File => match judge(within, &target, settings).await {
            Ok(verdict) => verdict,
            Err(failure) => refusal(&failure),
        },
    };
    Finding { target: target.name, form, bytes: target.bytes, verdict }
}

/// What is found of a target's files.
async fn plan(
    catalog: &Catalog,
    target: &TargetName,
    settings: LoadSettings,
) -> Result<Plan, Failure> {
    let artefact = catalog.resolve(target, Freshness::Cached).await?;
    if artefact.archive.is_some() {
        let message = format!("the files of {target} are seen when it is fetched");
        return Err(Failure::new(ErrorKind::NotReady, message));
    }
    let defaults = settings::handlers(&Config::default(), Bytes::ZERO);
    let handler = |layout, _: Option<&str>| {
        // What it declares is not shown, so a fault in it is not either.
        let settings = Settings::read(None, &defaults)?;
        Ok(Plan::Handler(Arc::new(HandlerPlan { layout, settings })))
    };
    plan_stored(catalog, &artefact, settings, &handler).await
}

async fn judge(
    (catalog, bases): (&Catalog, &Bases),
    target: &Target,
    settings: LoadSettings,
) -> Result<Verdict, Failure> {
    Ok(match plan(catalog, &target.name, settings).await? {
        Plan::Handler(plan) => Verdict::RunsAsHandler {
            kind: ModelKind::Handler,
            script: plan.layout.code.is_some(),
            requirements: plan.layout.requirements.is_some(),
        },
        // No files are planned as one: it is the settings that name engines.
        Plan::External(_) | Plan::Contained(_) => {
            return Err(Failure::new(ErrorKind::Internal, "files are taken for an engine"));
        }
        Plan::Adapter(adapter) => {
            let (base_is, footprint) =
                bases.hold((catalog, settings), &target.name, &adapter).await?;
            let (kind, adapter) = (ModelKind::Adapter, Adapts::of(&adapter));
            Verdict::RunsBesideBase { kind, adapter, base_is, footprint }
        }
        Plan::Model(plan) => Verdict::Runs {
            kind: plan.kind,
            architecture: plan.architecture.clone(),
            context: plan.context,
            footprint: plan.footprint,
            warning: plan.unread.clone(),
        },
    })
}

/// What is known of each target that an adapter names, once somebody has looked.
type Looks = BTreeMap<TargetName, Arc<OnceCell<Result<Plan, Failure>>>>;

/// The bases of a survey's adapters, each looked into once.
#[derive(Default)]
struct Bases(Mutex<Looks>);

impl Bases {
    /// Holds an adapter against its base as a load does, but for what the settings of an endpoint say
    /// of its name; says what it takes.
    async fn hold(
        &self,
        (catalog, settings): (&Catalog, LoadSettings),
        target: &TargetName,
        adapter: &AdapterPlan,
    ) -> Result<(BaseIs, Footprint), Failure> {
        let unheld = |base_is| Ok((base_is, adapter.footprint()));
        let model = ModelId { endpoint: catalog.endpoint().clone(), target: target.clone() };
        let Some(name) = adapter.base_name().filter(|name| !name.is_empty()) else {
            let message = "an adapter that does not say of what: adapter_config.json has no \
                           base_model_name_or_path";
            return Err(Failure::new(ErrorKind::ModelInvalid, message));
        };
        let Ok(base) = loader::Bases::default().target(&model, name) else {
            return unheld(BaseIs::NotHere);
        };
        if base == *target {
            return unheld(BaseIs::NotHere);
        }
        let looked = Arc::clone(self.lock().entry(base.clone()).or_default());
        let found = looked.get_or_init(|| async { plan(catalog, &base, settings).await }).await;
        match found {
            Ok(Plan::Adapter(_)) => {
                let message = format!("its base {base} is itself an adapter");
                Err(Failure::new(ErrorKind::ModelInvalid, message))
            }
            Ok(plan) => Ok((BaseIs::Here, loader::beside(adapter, plan, base.as_str())?)),
            Err(failure) => match failure.kind() {
                ErrorKind::ModelNotFound => unheld(BaseIs::NotHere),
                kind @ (ErrorKind::ModelInvalid | ErrorKind::TooLarge) => {
                    Err(Failure::new(kind, format!("its base does not run: {failure}")))
                }
                _ => unheld(BaseIs::NotSeen),
            },
        }
    }

    fn lock(&self) -> MutexGuard<'_, Looks> {
        // Entries are inserted at once.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn refusal(failure: &Failure) -> Verdict {
    let reason = failure.message().to_owned();
    match failure.kind() {
        ErrorKind::ModelInvalid | ErrorKind::TooLarge => Verdict::DoesNotRun { reason },
        _ => Verdict::NotSeen { reason },
    }
}

fn table(findings: &[Finding]) -> String {
    let mut table = Table::new(&["TARGET", "FORM", ">SIZE", "KIND", ">NEEDS", "NOTE"]);
    for finding in findings {
        let (kind, needs, note) = match &finding.verdict {
            Verdict::Runs { kind, architecture, context, footprint, warning } => {
                let warning = warning.iter().map(|it| format!("; warning: {it}"));
                let note =
                    format!("{architecture}, {context} tokens{}", warning.collect::<String>());
                (kind.as_str(), footprint.total().to_string(), note)
            }
            Verdict::RunsBesideBase { kind, adapter, base_is, footprint } => {
                let known = match base_is {
                    BaseIs::Here => "",
                    BaseIs::NotHere => {
                        "; no target here has its base's name: upload it, or name it in \
                         [endpoint.bases]"
                    }
                    BaseIs::NotSeen => {
                        "; whether it fits its base is unknown until that is fetched"
                    }
                };
                (kind.as_str(), footprint.total().to_string(), format!("of {adapter}{known}"))
            }
            Verdict::RunsAsHandler { kind, script, requirements } => {
                let what = if *script { "a Python script" } else { "a plain Python model" };
                let with = if *requirements { " with requirements" } else { "" };
                (kind.as_str(), "?".into(), format!("{what}{with}; runs with --handlers"))
            }
            Verdict::UnknownUntilFetched => ("?", "?".into(), "unknown until fetched".into()),
            Verdict::DoesNotRun { reason } => ("-", "-".into(), format!("will not run: {reason}")),
            Verdict::NotSeen { reason } => ("?", "?".into(), format!("not seen: {reason}")),
        };
        table.row(vec![
            finding.target.to_string(),
            finding.form.into(),
            finding.bytes.to_string(),
            kind.into(),
            needs,
            note,
        ]);
    }
    table.render()
}

/// How far the base was looked into, of an adapter that runs.
fn base_of(verdict: &Verdict) -> Option<BaseIs> {
    match verdict {
        Verdict::RunsBesideBase { base_is, .. } => Some(*base_is),
        _ => None,
    }
}

fn summary(findings: &[Finding], truncated: bool) -> String {
    let number = |wanted: fn(&Verdict) -> bool| {
        findings.iter().filter(|finding| wanted(&finding.verdict)).count()
    };
    let parts = [
        (number(|it| matches!(it, Verdict::Runs { .. })), "will run"),
        (number(|it| base_of(it) == Some(BaseIs::Here)), "will run beside their base"),
        (number(|it| base_of(it) == Some(BaseIs::NotSeen)), "will run if they fit their base"),
        (number(|it| base_of(it) == Some(BaseIs::NotHere)), "without a base here"),
        (number(|it| matches!(it, Verdict::RunsAsHandler { .. })), "will run with --handlers"),
        (number(|it| matches!(it, Verdict::UnknownUntilFetched)), "unknown until fetched"),
        (number(|it| matches!(it, Verdict::DoesNotRun { .. })), "will not run"),
        (number(|it| matches!(it, Verdict::NotSeen { .. })), "not seen"),
    ];
    let mut text = count(findings.len(), "target");
    for (number, what) in parts.into_iter().filter(|(number, _)| *number > 0) {
        text.push_str(&format!(", {number} {what}"));
    }
    text.push('\n');
    if truncated {
        text.push_str(
            "the store holds more objects than one survey looks at: name a longer prefix\n",
        );
    }
    text
}
