//! What settings say, in lines for people.

use roundhouse_containers::multi_model;
use roundhouse_tenancy::{AuthConfig, Limits};
use roundhouse_types::{Bytes, EndpointName, TargetName, TenantName};

use crate::app::budgets::Budgets;
use crate::app::settings::own_prefixes;
use crate::config::{
    AccessLog, Config, ContainerOrigin, Endpoint, EngineKind, EngineRule, ModelMemory, Tenant,
    TlsFiles, show_duration,
};
use crate::error::count;
use crate::limits;

/// All of it, beginning with `ok`. `seen`: what this machine has.
pub(super) fn summary(config: &Config, seen: &limits::Memory) -> String {
    let mounts: usize = config.endpoints.iter().map(|endpoint| endpoint.mounts.len()).sum();
    let mut lines = vec![
        "ok".to_owned(),
        format!("  {} with {}", count(config.endpoints.len(), "endpoint"), count(mounts, "mount")),
    ];
    let tells = config.asks_callers() && own_prefixes(config);
    lines.extend(config.endpoints.iter().flat_map(|it| endpoint(it, tells)));
    if config.aliases.count() > 0 {
        let number = config.aliases.count();
        lines.push(format!("  {number} alias{}", if number == 1 { "" } else { "es" }));
    }
    lines.extend(dead_aliases(config));
    lines.extend(config.idle_grants().map(|why| format!("  odd: {why}")));
    lines.push(format!(
        "  data {}{}, admin {}{}",
        config.listen.data,
        encrypted(config.tls.data.as_ref()),
        config.listen.admin,
        encrypted(config.tls.admin.as_ref()),
    ));
    lines.push(format!("  callers {}", callers(&config.auth)));
    lines.extend(memory(config, seen));
    lines.extend(config.tenants.iter().map(tenant));
    lines.extend(files(config));
    lines.extend(beside(config));
    lines.extend(container(config));
    lines.push(String::new());
    lines.join("\n")
}

/// What an endpoint serves, and from where. `tells`: whether engines may be told whose prompts they read.
fn endpoint(endpoint: &Endpoint, tells: bool) -> Vec<String> {
    let mut lines = Vec::new();
    for mount in &endpoint.mounts {
        let prefix = mount.prefix.as_ref().map(|prefix| format!("/{prefix}")).unwrap_or_default();
        lines.push(format!("    {}{prefix}  {}", endpoint.name, mount.uri));
    }
    for container in endpoint.containers.iter().flat_map(|behind| &behind.containers) {
        let origin = match &container.origin {
            ContainerOrigin::Url(url) => url.to_string(),
            ContainerOrigin::Command(command) => command.program.display().to_string(),
        };
        lines.push(format!("    {}:{}  {origin}", endpoint.name, container.hostname));
    }
    for rule in &endpoint.engines {
        lines.push(format!("    {} {}", endpoint.name, engine(rule, tells)));
    }
    if let Some(capture) = &endpoint.capture {
        lines.push(format!("    {} captures to {}", endpoint.name, capture.destination));
    }
    lines
}

/// Budgets as they were written, or as they would be here.
fn memory(config: &Config, seen: &limits::Memory) -> Vec<String> {
    // Without what the machine has, automatic ones are told as such.
    let budgets = Budgets::of(&config.devices, config.memory.host, seen.automatic_budget()).ok();
    let here = |written: Option<Bytes>, found: Option<Bytes>| match (written, found) {
        (None, Some(found)) => format!("automatic, here about {found}"),
        (written, _) => automatic(written),
    };
    let mut lines = Vec::new();
    for (index, device) in config.devices.iter().enumerate() {
        let copies =
            device.copy_bandwidth.map(|rate| format!(", copies at {}/s", Bytes(rate.get())));
        let found = budgets.as_ref().and_then(|it| Some(it.devices.get(index)?.1));
        let (budget, copies) = (here(device.budget, found), copies.unwrap_or_default());
        lines.push(format!("  memory on {}: {budget}{copies}", device.id));
    }
    if config.devices.iter().any(|device| !device.id.is_host()) {
        let found = budgets.as_ref().map(|budgets| budgets.host);
        lines.push(format!("  memory for copies: {}", here(config.memory.host, found)));
    }
    lines
}

fn automatic(size: Option<Bytes>) -> String {
    size.map_or_else(|| "automatic".to_owned(), |size| size.to_string())
}

/// What a tenant is promised, may take and may ask.
fn tenant(tenant: &Tenant) -> String {
    let ceiling = tenant.ceiling.map_or_else(|| "none".to_owned(), |ceiling| ceiling.to_string());
    let (name, floor, share) = (&tenant.name, tenant.floor, tenant.share);
    let loads = tenant.load_bandwidth.map(|rate| format!(", loads at {rate}/s"));
    let loads = loads.unwrap_or_default();
    let disk = match (tenant.disk_floor, tenant.disk_ceiling) {
        (Bytes::ZERO, None) => String::new(),
        (floor, None) => format!(", floor on disk {floor}"),
        (floor, Some(ceiling)) => format!(", on disk floor {floor}, ceiling {ceiling}"),
    };
    let invoke: Vec<String> = tenant.grants.invoke.iter().map(ToString::to_string).collect();
    format!(
        "  tenant {name}: floor {floor}, ceiling {ceiling}, share {share}{disk}{loads}, may invoke {}",
        if invoke.is_empty() { "nothing".to_owned() } else { invoke.join(" ") },
    )
}

/// Where files are kept and written.
fn files(config: &Config) -> Vec<String> {
    let access = match &config.log.access {
        AccessLog::Stderr => "standard error".into(),
        AccessLog::Off => "off".into(),
        AccessLog::File(path) => path.display().to_string(),
    };
    let mut lines = vec![
        format!("  cache {}, {}", config.cache.dir.display(), automatic(config.cache.size)),
        format!("  access log {access}"),
    ];
    if let Some(usage) = &config.usage {
        lines.push(format!("  usage {}", usage.path.display()));
    }
    lines
}

/// What concerns a container of SageMaker's.
fn container(config: &Config) -> Vec<String> {
    let mut lines = Vec::new();
    if config.container.contract {
        lines.push(format!("  container contract over {}", config.container.models_root.display()));
    }
    if let Some(folder) = &config.container.model_dir {
        lines.push(format!("  one model: {}", folder.display()));
    }
    if !config.container.unheeded.is_empty() {
        lines.push(format!("  of no effect here: {}", config.container.unheeded.join(", ")));
    }
    lines
}

/// Aliases that stand for nothing which whoever may say them may ask.
fn dead_aliases(config: &Config) -> Vec<String> {
    if !config.auth.asks() || config.tenants.is_empty() {
        return Vec::new();
    }
    let dead = config.aliases.all().filter(|(tenant, _, _, alias)| {
        let mut saying = config
            .tenants
            .iter()
            .filter(|it| tenant.is_none_or(|tenant| it.name == tenant.as_str()))
            .flat_map(|it| &it.grants.invoke);
        !saying.any(|pattern| alias.targets().any(|target| pattern.matches(target)))
    });
    let line =
        |(tenant, endpoint, name, _): (Option<&TenantName>, &EndpointName, &TargetName, _)| {
            let whose = tenant
                .map_or_else(|| "no tenant may".to_owned(), |it| format!("tenant {it} may not"));
            format!(
                "  odd: alias {endpoint}:{name} stands for nothing: {whose} invoke what it names"
            )
        };
    dead.map(line).collect()
}

/// What else is set, beside what every server has.
fn beside(config: &Config) -> Vec<String> {
    let mut lines = Vec::new();
    for tenant in &config.tenants {
        let limits: Vec<String> =
            config.quota_rules().named.get(tenant.name.as_str()).map(told).unwrap_or_default();
        if !limits.is_empty() {
            lines.push(format!("  limits of {}: {}", tenant.name, limits.join(", ")));
        }
    }
    let others = told(&config.quota_rules().others);
    if !others.is_empty() {
        lines.push(format!("  limits of other tenants: {}", others.join(", ")));
    }
    for endpoint in config.endpoints.iter().filter(|it| it.asynchronous.is_some()) {
        lines.push(format!("  {} takes requests whose callers do not wait", endpoint.name));
    }
    if let Some(dir) = &config.async_dir {
        lines.push(format!("  their queue is in {}", dir.display()));
    }
    match &config.sessions {
        Some(sessions) => lines.push(format!("  sessions, {} at most", sessions.most)),
        None => lines.push("  no sessions".to_owned()),
    }
    if let Some(traces) = &config.traces {
        lines.push(format!("  traces to {}", traces.url));
    }
    lines
}

/// A tenant's limits, those that it has.
fn told(limits: &Limits) -> Vec<String> {
    let count = |name: &str, number: Option<u64>| number.map(|it| format!("{name} {it}"));
    let said = [
        limits.requests.as_ref().map(|rate| format!("requests per second {}", rate.per_second)),
        count("tokens in per minute", limits.tokens_in_per_minute),
        count("tokens out per minute", limits.tokens_out_per_minute),
        count("requests under way", limits.concurrent_requests.map(u64::from)),
        count("requests per day", limits.requests_per_day),
        count("tokens per day", limits.tokens_per_day),
        limits.compute_per_day.map(|time| format!("compute per day {}s", time.as_secs())),
    ];
    said.into_iter().flatten().collect()
}

/// What an engine is, what its targets are charged with, and whether it keeps tenants' prompts apart.
fn engine(rule: &EngineRule, tells: bool) -> String {
    let program = |command: &[String]| command.first().cloned().unwrap_or_default();
    let targets = &rule.target;
    let idle = rule.idle_ttl.map(|ttl| format!(", unused for {} at most", show_duration(ttl)));
    let idle = idle.unwrap_or_default();
    match &rule.kind {
        EngineKind::Started(spec) => {
            let program = program(&spec.command);
            let salt = match (tells, spec.cache_salt) {
                (false, _) => "",
                (true, true) => ", each tenant's prompts with a cache_salt",
                (true, false) => ", prompts without a cache_salt",
            };
            format!("starts {program} for {targets}, {} each{idle}{salt}", spec.memory)
        }
        EngineKind::Contained(rule) => {
            let origin = match &rule.spec.origin {
                multi_model::ContainerOrigin::Url(url) => url.to_string(),
                multi_model::ContainerOrigin::Command(it) => program(&it.command),
            };
            let memory = match rule.memory {
                ModelMemory::Each(memory) => format!("{memory} each"),
                ModelMemory::OfFiles { thousandths } => {
                    format!("{} times their files", thousandths as f64 / 1000.0)
                }
            };
            format!("loads {targets} into {origin}, {memory}{idle}")
        }
    }
}

fn encrypted(files: Option<&TlsFiles>) -> &'static str {
    match files {
        Some(_) => " (TLS)",
        None => "",
    }
}

/// How callers are told apart.
fn callers(auth: &AuthConfig) -> String {
    let ways = [
        ("keys", auth.keys.is_some()),
        ("tokens", !auth.oidc.is_empty()),
        ("AWS's own credentials", auth.iam.is_some()),
        ("a proxy's header", auth.proxy.is_some()),
        ("certificates", auth.certificates),
    ];
    let ways: Vec<&str> = ways.iter().filter(|(_, on)| *on).map(|(name, _)| *name).collect();
    match (ways.is_empty(), auth.anonymous) {
        (true, _) => "are not asked who they are".to_owned(),
        (false, false) => format!("by {}", ways.join(", ")),
        (false, true) => format!("by {}, or nobody's tenant", ways.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::ServeFlags;

    #[test]
    fn an_engines_line_says_whether_it_is_told_whose_prompts_it_reads() {
        let told = |settings: &str, program: &str| {
            let text = format!(
                "version = 1\n{settings}\n[[endpoint]]\nname = \"e\"\n[[endpoint.engine]]\n\
                 target = \"gpt/*\"\nmemory = \"1MiB\"\ncommand = [\"{program}\", \"{{port}}\"]\n\
                 [[endpoint.mount]]\nuri = \"file:///tmp/\"\n"
            );
            let config = Config::parse(Some(&text), &|_| None, &ServeFlags::default()).unwrap();
            let lines = summary(&config, &limits::Memory::default());
            lines.lines().find(|line| line.contains("starts")).unwrap().to_owned()
        };
        let asks = "[auth]\nproxy_networks = \"127.0.0.1/32\"\n[[tenant]]\nname = \"acme\"\n\
                    invoke = [\"gpt/**\"]";
        assert!(told(asks, "vllm").ends_with(", each tenant's prompts with a cache_salt"));
        assert!(told(asks, "sh").ends_with(", prompts without a cache_salt"));
        assert!(told("", "vllm").ends_with("MiB each"), "nobody is asked");
        let shared = format!("{asks}\n[serving]\nshare_prefixes = \"endpoint\"");
        assert!(told(&shared, "vllm").ends_with("MiB each"));
    }
}
