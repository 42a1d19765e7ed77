use std::collections::BTreeMap;
use std::time::Duration;

use roundhouse_types::Bytes;

use super::keys::{KEYS, find};
use super::*;

mod annotated;
mod auth;
mod cloudwatch;
mod container;
mod engines;
mod listen;
mod traces;

const DEFAULT_FILE: &str = include_str!("../../../config/default.toml");

fn no_env(_: &str) -> Option<String> {
    None
}

fn env(pairs: &[(&str, &str)]) -> impl Fn(&str) -> Option<String> {
    let map: BTreeMap<String, String> =
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    move |name| map.get(name).cloned()
}

fn flags() -> ServeFlags {
    ServeFlags { store: vec!["file:///models/".into()], ..ServeFlags::default() }
}

/// The faults of a file without flags or environment, as `key: message`.
fn faults(text: &str) -> Vec<String> {
    let text = format!("version = 1\n{text}");
    let found = Config::parse(Some(&text), &no_env, &flags()).expect_err("the file has faults");
    found.iter().map(ToString::to_string).collect()
}

fn fault_keys(text: &str) -> Vec<String> {
    faults(text).iter().map(|fault| fault.split(": ").next().unwrap().to_owned()).collect()
}

#[test]
fn what_tenants_are_promised_is_checked() {
    let tenant = |keys: &str| fault_keys(&format!("[[tenant]]\n{keys}\n"));
    let sound = "version = 1\n[[endpoint]]\nname = \"e\"\n[[endpoint.mount]]\nuri = \"file:///m\"\n\
                 [[tenant]]\nname = \"acme\"\nfloor = \"1GiB\"\nceiling = \"2GiB\"\nshare = 2\n";
    let config = Config::parse(Some(sound), &no_env, &ServeFlags::default()).unwrap();
    assert_eq!((config.tenants[0].floor, config.tenants[0].share), (Bytes::gib(1), 2.0));
    assert_eq!(tenant("floor = \"1GiB\""), ["tenant[0].name"]);
    assert_eq!(tenant("name = \"a/b\""), ["tenant[0].name"]);
    assert_eq!(tenant("name = \"a\"\nfloor = \"2GiB\"\nceiling = \"1GiB\""), ["tenant[0].ceiling"]);
    assert_eq!(tenant("name = \"a\"\nshare = 0"), ["tenant[0].share"]);
    let disk = "name = \"a\"\ndisk_floor = \"2GiB\"\ndisk_ceiling = \"1GiB\"";
    assert_eq!(tenant(disk), ["tenant[0].disk_ceiling"]);
    let promised = "[cache]\nsize = \"1GiB\"\n[[tenant]]\nname = \"a\"\ndisk_floor = \"2GiB\"";
    assert_eq!(
        faults(promised),
        ["tenant: the floors on disk sum up to 2.0 GiB, and the disk cache may hold 1.0 GiB"]
    );
    for wrong in ["\"5MB\"", "\"1KiB/s\"", "5000000"] {
        let keys = format!("name = \"a\"\nload_bandwidth = {wrong}");
        assert_eq!(tenant(&keys), ["tenant[0].load_bandwidth"], "{wrong}");
    }
    assert_eq!(tenant("name = \"a\"\nflor = 1"), ["tenant[0].flor"]);
    assert_eq!(tenant("name = \"a\"\n[[tenant]]\nname = \"a\""), ["tenant[1].name"]);
    let promised = "[memory]\nbudget = \"1GiB\"\n[[tenant]]\nname = \"a\"\nfloor = \"2GiB\"";
    assert_eq!(fault_keys(promised), ["tenant"]);
    let endless = "[[tenant]]\nname = \"a\"\nfloor = \"17179869183GiB\"\n\
                   [[tenant]]\nname = \"b\"\nfloor = \"17179869183GiB\"";
    assert_eq!(faults(endless), ["tenant: the floors sum up to more than can be counted"]);
}

#[test]
fn an_endpoint_says_what_it_does_when_the_store_changes() {
    let mount = "[[endpoint.mount]]\nuri = \"s3://b/\"\n";
    let text = |keys: &str| format!("version = 1\n[[endpoint]]\nname = \"a\"\n{keys}\n{mount}");
    let rule = |keys: &str| {
        let parsed = Config::parse(Some(&text(keys)), &no_env, &ServeFlags::default());
        parsed.map(|config| config.endpoints[0].versions)
    };
    assert_eq!(rule("").unwrap(), VersionRule::default());
    let manual = rule("update = \"manual\"\non_delete = \"drain\"").unwrap();
    assert_eq!((manual.update, manual.on_delete), (Update::Manual, OnDelete::Drain));
    for (keys, fault) in [
        ("update = \"sometimes\"", "endpoint[0].update"),
        ("update = true", "endpoint[0].update"),
        ("on_delete = \"forget\"", "endpoint[0].on_delete"),
        ("update = \"never\"\non_delete = \"drain\"", "endpoint[0].on_delete"),
    ] {
        let found = rule(keys).unwrap_err();
        assert_eq!(found.iter().map(|it| it.key.as_str()).collect::<Vec<_>>(), [fault], "{keys}");
    }
}

/// Keys that take any text but none.
const PATHS: [&str; 5] = ["async.dir", "cache.dir", "log.access", "log.audit", "usage.file"];

#[test]
fn every_key_is_read() {
    // A value that no key takes is a fault at each key: so each is looked at.
    for key in KEYS.iter().filter(|key| !PATHS.contains(&key.name)) {
        let (section, leaf) = key.name.split_once('.').unwrap();
        let found = fault_keys(&format!("[{section}]\n{leaf} = \"\\u0001\"\n"));
        assert_eq!(found, [key.name]);
    }
    for name in PATHS {
        let (section, leaf) = name.split_once('.').unwrap();
        assert_eq!(fault_keys(&format!("[{section}]\n{leaf} = \"\"\n")), [name]);
    }
}

#[test]
fn a_misspelt_word_is_no_file_of_a_log() {
    for name in ["log.access", "log.audit"] {
        let (section, leaf) = name.split_once('.').unwrap();
        let line = |text: &str| format!("[{section}]\n{leaf} = \"{text}\"\n");
        for text in ["stdout", "Off", "none", "file:///var/log/a.log"] {
            assert_eq!(fault_keys(&line(text)), [name], "{text}");
        }
        for text in ["stderr", "off", "access.log", "/var/log/access", "logs/access"] {
            let sound = format!("version = 1\n{}", line(text));
            assert!(Config::parse(Some(&sound), &no_env, &flags()).is_ok(), "{text}");
        }
    }
}

#[test]
fn every_flag_has_its_key_and_every_such_key_its_flag() {
    let text = || Some("x".to_owned());
    let all = ServeFlags {
        listen: text(),
        admin_listen: text(),
        health_listen: text(),
        keys: text(),
        memory: text(),
        device: text(),
        cache_dir: text(),
        cache_size: text(),
        drain_timeout: text(),
        context: text(),
        kv_sequences: text(),
        step_tokens: text(),
        handlers: true,
        handlers_isolation: text(),
        handlers_python: text(),
        insecure_no_auth: true,
        container_contract: true,
        container_models_root: text(),
        base_store: text(),
        model_dir: text(),
        log_format: text(),
        log_level: text(),
        access_log: text(),
        ..ServeFlags::default()
    };
    let set: Vec<&str> = all.values().into_keys().collect();
    let mut with_flag: Vec<&str> =
        KEYS.iter().filter(|key| key.flag.is_some()).map(|key| key.name).collect();
    with_flag.sort_unstable();
    assert_eq!(set, with_flag);
}

#[test]
fn all_faults_are_found_at_once_each_with_its_key() {
    let found = fault_keys(
        r#"
        [listen]
        data = "nowhere"
        [memory]
        device = "tpu"
        budget = "lots"
        [cache]
        size = -1
        [store]
        negative_ttl = "3s"
        part_sice = "8MiB"
        [residency]
        concurrent_loads = 0
        [serving]
        hold = "2m"
        response_headers = "yes"
        [log]
        level = "=="
        format = "xml"
        [container]
        models_root = "models"
        [[endpoint]]
        name = "-"
        [[endpoint.mount]]
        uri = "http://x/"
        role_arn = "me"
        "#,
    );
    for key in [
        "listen.data",
        "memory.device",
        "memory.budget",
        "cache.size",
        "store.negative_ttl",
        "store.part_sice",
        "residency.concurrent_loads",
        "serving.hold",
        "serving.response_headers",
        "log.level",
        "log.format",
        "container.models_root",
        "endpoint[0].name",
        "endpoint[0].mount[0].uri",
        "endpoint[0].mount[0].role_arn",
    ] {
        assert!(found.iter().any(|it| it == key), "{key} is not among {found:?}");
    }
    assert_eq!(found.len(), 15, "{found:?}");
}

#[test]
fn unknown_keys_are_faults_that_name_what_was_meant() {
    let cases = [
        ("[cache]\nsise = \"1GiB\"", "cache.sise: is not a key; did you mean cache.size?"),
        (
            "[serving]\nidle_ttl = \"1h\"",
            "serving.idle_ttl: is not a key; did you mean residency.idle_ttl?",
        ),
        ("[listne]\ndata = \"x\"", "listne: is not a key; did you mean listen?"),
        ("[log]\ncolour = true", "log.colour: is not a key"),
        ("listen = 1", "listen: is a section: write [listen] and its keys below"),
        (
            "[[endpoint]]\nname = \"a\"\nmounts = 1\n[[endpoint.mount]]\nuri = \"s3://b/\"",
            "endpoint[0].mounts: is not a key; did you mean mount?",
        ),
        (
            "[[endpoint]]\nname = \"a\"\n[[endpoint.mount]]\nuri = \"s3://b/\"\nregoin = \"x\"",
            "endpoint[0].mount[0].regoin: is not a key; did you mean region?",
        ),
    ];
    for (text, want) in cases {
        assert_eq!(faults(text), [want], "{text}");
    }
}

#[test]
fn a_file_without_a_version_or_with_another_is_refused() {
    for text in ["", "version = 2", "version = \"1\""] {
        let found = Config::parse(Some(text), &no_env, &flags()).unwrap_err();
        assert_eq!(found.len(), 1, "{text}");
        assert_eq!(found[0].key, "version");
    }
}

#[test]
fn a_syntax_error_is_told_by_line_and_without_the_line_itself() {
    let text = "version = 1\n[[endpoint]]\nexternal_id = \"hush\" hush";
    let found = Config::parse(Some(text), &no_env, &flags()).unwrap_err();
    assert_eq!(found[0].key, "config");
    assert!(found[0].message.contains("line 3"), "{}", found[0].message);
    assert!(!found[0].message.contains("hush"), "{}", found[0].message);
}

#[test]
fn a_flag_beats_the_environment_which_beats_the_file_which_beats_the_default() {
    let file = "version = 1\n[cache]\nsize = \"1GiB\"\n";
    let in_env = env(&[("ROUNDHOUSE_CACHE_SIZE", "2GiB")]);
    let with_flag = ServeFlags { cache_size: Some("3GiB".into()), ..flags() };
    let size = |text, env: &dyn Fn(&str) -> Option<String>, flags: &ServeFlags| {
        Config::parse(text, env, flags).unwrap().cache.size
    };
    assert_eq!(size(Some(file), &in_env, &with_flag), Some(Bytes::gib(3)));
    assert_eq!(size(Some(file), &in_env, &flags()), Some(Bytes::gib(2)));
    assert_eq!(size(Some(file), &no_env, &flags()), Some(Bytes::gib(1)));
    assert_eq!(size(None, &no_env, &flags()), None);
}

#[test]
fn a_key_may_be_set_by_a_variable_after_itself_or_after_its_flag_but_not_differently_by_both() {
    for name in ["ROUNDHOUSE_LISTEN", "ROUNDHOUSE_LISTEN_DATA"] {
        let config = Config::parse(None, &env(&[(name, "127.0.0.1:1")]), &flags()).unwrap();
        assert_eq!(config.listen.data.port(), 1, "{name}");
    }
    let both =
        env(&[("ROUNDHOUSE_LISTEN", "127.0.0.1:1"), ("ROUNDHOUSE_LISTEN_DATA", "127.0.0.1:2")]);
    let found = Config::parse(None, &both, &flags()).unwrap_err();
    assert_eq!(found[0].key, "listen.data");
    assert_eq!(
        find("container.models_root").variables(),
        ["ROUNDHOUSE_CONTAINER_MODELS_ROOT"],
        "one name where key and flag agree"
    );
}

#[test]
fn a_fault_from_outside_the_file_says_where_it_was_set() {
    let found = Config::parse(None, &env(&[("ROUNDHOUSE_MEMORY", "x")]), &flags()).unwrap_err();
    assert!(found[0].message.ends_with("(set by ROUNDHOUSE_MEMORY)"), "{}", found[0].message);
    let wrong = ServeFlags { drain_timeout: Some("soon".into()), ..flags() };
    let found = Config::parse(None, &no_env, &wrong).unwrap_err();
    assert!(found[0].message.ends_with("(set by --drain-timeout)"), "{}", found[0].message);
}

#[test]
fn without_a_store_and_without_the_contract_the_missing_endpoint_is_the_fault() {
    let found = Config::parse(None, &no_env, &ServeFlags::default()).unwrap_err();
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].key, "endpoint");
}

#[test]
fn stores_from_flags_become_endpoints_and_replace_those_of_the_file() {
    let file = "version = 1\n[[endpoint]]\nname = \"old\"\n[[endpoint.mount]]\nuri = \"s3://o/\"\n";
    let names = |flags: &ServeFlags, env: &dyn Fn(&str) -> Option<String>| {
        let config = Config::parse(Some(file), env, flags).unwrap();
        let names: Vec<String> = config.endpoints.iter().map(|it| it.name.to_string()).collect();
        names
    };
    let stores = |stores: &[&str]| ServeFlags {
        store: stores.iter().map(|it| (*it).to_owned()).collect(),
        ..ServeFlags::default()
    };
    assert_eq!(names(&stores(&["s3://b/k=v/", "b=file:///x"]), &no_env), ["default", "b"]);
    let in_env = env(&[("ROUNDHOUSE_STORE", "s3://a/ c=s3://c/")]);
    assert_eq!(names(&stores(&[]), &in_env), ["default", "c"]);
    assert_eq!(names(&stores(&[]), &no_env), ["old"]);
}

#[test]
fn wrong_stores_from_flags_are_faults_of_the_flag() {
    for wrong in
        [&["http://x"][..], &["a_b=s3://b/"], &["s3://a/", "s3://b/"], &["s3:///x"], &["a=b"]]
    {
        let flags = ServeFlags {
            store: wrong.iter().map(|it| (*it).to_owned()).collect(),
            ..ServeFlags::default()
        };
        let found = Config::parse(None, &no_env, &flags).unwrap_err();
        assert_eq!(found[0].key, "--store", "{wrong:?}");
    }
}

#[test]
fn mounts_are_checked_key_by_key() {
    let mount = |keys: &str| format!("[[endpoint]]\nname = \"a\"\n[[endpoint.mount]]\n{keys}");
    let cases = [
        ("uri = \"s3://b/\"\nprefix = \"/x\"", "prefix"),
        ("uri = \"s3://b/\"\nendpoint_url = \"ftp://x\"", "endpoint_url"),
        ("uri = \"s3://b/\"\nexpected_bucket_owner = \"12\"", "expected_bucket_owner"),
        ("uri = \"s3://b/\"\nexternal_id = \"x\"", "external_id"),
        ("uri = \"s3://b/\"\npath_style = \"x\"", "path_style"),
        ("uri = \"file:///b/\"\nregion = \"x\"", "region"),
        ("prefix = \"x\"", "uri"),
        ("uri = 7", "uri"),
    ];
    for (keys, want) in cases {
        assert_eq!(fault_keys(&mount(keys)), [format!("endpoint[0].mount[0].{want}")], "{keys}");
    }
    let twice = mount("uri = \"s3://b/\"\n[[endpoint.mount]]\nuri = \"s3://c/\"");
    assert_eq!(fault_keys(&twice), ["endpoint[0].mount[1].prefix"]);
    assert_eq!(fault_keys("[[endpoint]]\nname = \"a\""), ["endpoint[0].mount"]);
}

#[test]
fn secrets_are_not_printed_nor_told_in_faults() {
    let text = "version = 1\n[[endpoint]]\nname = \"a\"\n[[endpoint.mount]]\nuri = \"s3://b/\"\n\
        role_arn = \"arn:aws:iam::1:role/r\"\nexternal_id = \"hush-hush\"\n";
    let config = Config::parse(Some(text), &no_env, &ServeFlags::default()).unwrap();
    let printed = format!("{config:?}");
    assert!(printed.contains("<redacted>") && !printed.contains("hush-hush"), "{printed}");
    let revealed = config.endpoints[0].mounts[0].external_id.as_ref().unwrap().reveal();
    assert_eq!(revealed, "hush-hush");

    let with_password = "[[endpoint]]\nname = \"a\"\n[[endpoint.mount]]\nuri = \"s3://b/\"\n\
        endpoint_url = \"http://me:hush-hush@host\"\n";
    let found = faults(with_password);
    assert_eq!(found.len(), 1);
    assert!(!found[0].contains("hush-hush"), "{found:?}");
}

#[test]
fn the_cache_is_where_the_platform_says() {
    let dir = |pairs: &[(&str, &str)]| {
        Config::parse(None, &env(pairs), &flags()).unwrap().cache.dir.display().to_string()
    };
    assert_eq!(dir(&[("XDG_CACHE_HOME", "/x"), ("HOME", "/h")]), "/x/roundhouse");
    assert_eq!(dir(&[("XDG_CACHE_HOME", "relative"), ("HOME", "/h")]), "/h/.cache/roundhouse");
    assert_eq!(dir(&[]), "/var/cache/roundhouse");
}

#[test]
fn the_logs_filter_may_come_from_rust_log_but_our_own_names_come_first() {
    let level = |pairs: &[(&str, &str)]| {
        let file = "version = 1\n[log]\nlevel = \"error\"\n";
        Config::parse(Some(file), &env(pairs), &flags()).unwrap().log.level
    };
    assert_eq!(level(&[]), "error");
    assert_eq!(level(&[("RUST_LOG", "debug")]), "debug");
    assert_eq!(level(&[("RUST_LOG", "debug"), ("ROUNDHOUSE_LOG_LEVEL", "warn")]), "warn");
    let found = Config::parse(None, &env(&[("RUST_LOG", "=")]), &flags()).unwrap_err();
    assert_eq!(found[0].key, "log.level");
}

#[test]
fn durations_carry_their_unit() {
    let drain = |text: &str| {
        let flags = ServeFlags { drain_timeout: Some(text.into()), ..flags() };
        Config::parse(None, &no_env, &flags).ok().map(|config| config.shutdown.drain_timeout)
    };
    assert_eq!(drain("500ms"), Some(Duration::from_millis(500)));
    assert_eq!(drain("5 m"), Some(Duration::from_secs(300)));
    assert_eq!(drain("1h"), Some(Duration::from_secs(3600)));
    for wrong in ["", "5", "s", "1.5s", "-1s", "2h", "5d", "99999999999999999999s"] {
        assert_eq!(drain(wrong), None, "{wrong}");
    }
}

#[test]
fn a_file_that_cannot_be_read_is_a_fault_that_names_it() {
    let found =
        Config::load(Some(Path::new("/nonexistent/x.toml")), &no_env, &flags()).unwrap_err();
    assert_eq!(found[0].key, "config");
    assert!(found[0].message.contains("/nonexistent/x.toml"));
}

#[test]
fn sagemakers_containers_are_told_of_sessions_by_variables() {
    let sessions = |pairs: &[(&str, &str)]| {
        Config::parse(None, &env(pairs), &flags()).map(|config| config.sessions)
    };
    let contract = ("SAGEMAKER_MULTI_MODEL", "true");
    let (enabled, expiration) =
        ("SAGEMAKER_ENABLE_STATEFUL_SESSIONS", "SAGEMAKER_SESSIONS_EXPIRATION");
    let seconds = |pairs: &[(&str, &str)]| Some(sessions(pairs).unwrap()?.expiration.as_secs());
    assert_eq!(seconds(&[]), Some(1200));
    assert_eq!(seconds(&[contract, (enabled, "false")]), None);
    assert_eq!(seconds(&[contract, (enabled, "True"), (expiration, "60")]), Some(60));
    // Ours go before, and elsewhere nobody means us.
    assert_eq!(
        seconds(&[contract, (enabled, "0"), ("ROUNDHOUSE_SESSIONS_ENABLED", "1")]),
        Some(1200)
    );
    assert_eq!(seconds(&[(enabled, "false"), (expiration, "60")]), Some(1200));
    let wrong = sessions(&[contract, (expiration, "soon")]).unwrap_err();
    assert_eq!(wrong[0].key, "sessions.expiration");
}
