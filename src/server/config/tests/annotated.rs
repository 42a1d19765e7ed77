//! The annotated file: it says what holds, all of it, and its comments hold too.

use super::*;

#[test]
fn the_annotated_file_says_what_holds_without_it() {
    let written = Config::parse(Some(DEFAULT_FILE), &no_env, &flags()).unwrap();
    let unwritten = Config::parse(None, &no_env, &flags()).unwrap();
    assert_eq!(written, unwritten);
    assert_eq!(Config { endpoints: Vec::new(), ..written }, Config::default());
}

#[test]
fn the_annotated_file_has_every_key_and_a_default_where_there_is_one() {
    let file: toml::Table = DEFAULT_FILE.parse().unwrap();
    let without_default = [
        "listen.health",
        "listen.admin_hosts",
        "auth.keys",
        "auth.anonymous",
        "auth.proxy_networks",
        "auth.oidc_issuer",
        "auth.oidc_audience",
        "auth.oidc_jwks",
        "auth.oidc_tenants",
        "auth.aws_sts",
        "auth.aws_server_id",
        "auth.aws_tenants",
        "tls.certificate",
        "tls.key",
        "tls.client_ca",
        "tls.admin_certificate",
        "tls.admin_key",
        "memory.budget",
        "memory.host",
        "cache.dir",
        "cache.size",
        "cache.max_unpacked",
        "residency.idle_ttl",
        "async.dir",
        "usage.file",
        "tracing.otlp",
        "cloudwatch.log_group",
        "container.base_store",
        "container.model_dir",
        "handlers.max_memory",
        "handlers.index",
        "handlers.warm_imports",
        "handlers.allowed_indexes",
    ];
    for key in KEYS {
        let (section, leaf) = key.name.split_once('.').unwrap();
        let written = file[section].as_table().unwrap().contains_key(leaf);
        assert_eq!(written, !without_default.contains(&key.name), "{}", key.name);
    }
}

#[test]
fn the_annotated_file_still_holds_when_its_comments_are_taken_as_settings() {
    // Uncomments `# key = …`, `# [[…]]` and, in the endpoint's block, `# # …` to `# …`.
    let all: String = DEFAULT_FILE
        .lines()
        .map(|line| {
            let body = line.strip_prefix("# ").unwrap_or(line);
            let lists = [
                "[[endpoint",
                "[endpoint.async",
                "[endpoint.capture",
                "[[tenant",
                "[[alias",
                "[[issuer",
                "[tenant",
            ];
            let setting = lists.iter().any(|list| body.starts_with(list))
                || body.split_once(" = ").is_some_and(|(key, _)| {
                    !key.is_empty() && key.bytes().all(|b| b.is_ascii_lowercase() || b == b'_')
                });
            if setting { format!("{body}\n") } else { format!("{line}\n") }
        })
        .collect();
    let config = Config::parse(Some(&all), &no_env, &ServeFlags::default()).unwrap();
    assert_eq!(config.endpoints.len(), 2);
    assert_eq!(config.endpoints[1].containers.as_ref().unwrap().containers.len(), 1);
    assert_eq!(config.endpoints[0].mounts[0].region.as_deref(), Some("eu-central-1"));
    assert_eq!(config.listen.health, Some("0.0.0.0:8082".parse().unwrap()));
    assert_eq!(config.devices[0].budget, Some(Bytes::gib(24)));
    assert_eq!(config.memory.host, Some(Bytes::ZERO));
    assert_eq!(config.residency.idle_ttl, Some(Duration::from_secs(3600)));
    assert_eq!(config.endpoints[0].preload.len(), 2);
    assert_eq!(config.endpoints[0].naming.components["chat"].as_str(), "team-a/chat");
    assert_eq!(config.endpoints[0].naming.variants[0].weight, 95.0);
    assert_eq!(config.endpoints[0].capture.as_ref().map(|it| it.sampling), Some(100.0));
    assert_eq!(config.tenants[0].ceiling, Some(Bytes::gib(12)));
    assert_eq!(config.tenants[0].load_bandwidth, Some(Bytes(100_000_000)));
    let rules = config.quota_rules();
    assert_eq!(rules.named.values().next().unwrap().concurrent_requests, Some(64));
    assert_eq!(rules.others.requests_per_day, Some(100_000));
}
