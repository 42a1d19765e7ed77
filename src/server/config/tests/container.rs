//! What a platform's environment says.

use super::*;

fn on_platform(pairs: &[(&str, &str)]) -> Result<Config, Vec<Fault>> {
    let multi = [("SAGEMAKER_MULTI_MODEL", "true")];
    let all: Vec<(&str, &str)> = multi.iter().chain(pairs).copied().collect();
    Config::parse(None, &env(&all), &ServeFlags::default())
}

#[test]
fn variables_of_the_platform_are_heeded_as_settings() {
    let config = on_platform(&[
        ("SAGEMAKER_BIND_TO_PORT", "9000"),
        ("SAGEMAKER_SAFE_PORT_RANGE", "9000-9005"),
        ("SAGEMAKER_MAX_PAYLOAD_IN_MB", "20"),
        ("SAGEMAKER_MODEL_SERVER_TIMEOUT", "40"),
        ("SAGEMAKER_MODEL_SERVER_WORKERS", "12"),
        ("SAGEMAKER_STARTUP_TIMEOUT", "600"),
        ("SAGEMAKER_CONTAINER_LOG_LEVEL", "30"),
        ("SAGEMAKER_PROGRAM", "serve_it.py"),
        ("SAGEMAKER_DEFAULT_INVOCATIONS_ACCEPT", "text/csv"),
    ])
    .unwrap();
    assert_eq!(config.listen.data, "0.0.0.0:9000".parse().unwrap());
    assert_eq!(config.listen.admin, "127.0.0.1:9001".parse().unwrap());
    assert_eq!(config.serving.max_body, Bytes::mib(20));
    let seconds = Duration::from_secs;
    assert_eq!((config.serving.request_timeout, config.serving.hold), (seconds(40), seconds(40)));
    assert_eq!(
        (config.handlers.time_limit, config.residency.load_timeout),
        (seconds(40), seconds(600))
    );
    assert_eq!((config.handlers.workers, config.handlers.max_workers), (12, 12));
    assert_eq!(config.log.level, "warn");
    assert_eq!(config.container.program.as_deref(), Some("serve_it.py"));
    assert_eq!(config.container.default_accept.as_deref(), Some("text/csv"));
}

#[test]
fn our_own_variables_go_before_the_platforms_and_bytes_before_megabytes() {
    let sizes = [("SAGEMAKER_MAX_PAYLOAD_IN_MB", "20"), ("SAGEMAKER_MAX_REQUEST_SIZE", "5000")];
    assert_eq!(on_platform(&sizes).unwrap().serving.max_body, Bytes(5000));
    let own = [("ROUNDHOUSE_SERVING_MAX_BODY", "2MiB"), sizes[0]];
    assert_eq!(on_platform(&own).unwrap().serving.max_body, Bytes::mib(2));
    let times =
        [("SAGEMAKER_RESPONSE_TIMEOUT", "9"), ("SAGEMAKER_MODEL_SERVER_TIMEOUT_SECONDS", "8")];
    assert_eq!(on_platform(&times).unwrap().serving.request_timeout, Duration::from_secs(8));
    // Elsewhere they are somebody else's.
    let elsewhere = env(&sizes);
    let config = Config::parse(None, &elsewhere, &flags()).unwrap();
    assert_eq!(config.serving.max_body, Bytes(6_291_456));
}

#[test]
fn what_is_wrong_in_them_is_told_with_its_name() {
    for (name, value) in [
        ("SAGEMAKER_SAFE_PORT_RANGE", "9000"),
        ("SAGEMAKER_SAFE_PORT_RANGE", "8080-8080"),
        ("SAGEMAKER_MAX_REQUEST_SIZE", "20MB"),
        ("SAGEMAKER_MAX_REQUEST_SIZE", "1"),
        ("SAGEMAKER_MODEL_SERVER_TIMEOUT", "0"),
        ("SAGEMAKER_MODEL_SERVER_WORKERS", "many"),
        ("SAGEMAKER_CONTAINER_LOG_LEVEL", "loud"),
        ("SAGEMAKER_PROGRAM", "../x.py"),
        ("SAGEMAKER_DEFAULT_INVOCATIONS_ACCEPT", "csv"),
        ("SAGEMAKER_BASE_DIR", "ml"),
    ] {
        let faults = on_platform(&[(name, value)]).unwrap_err();
        assert_eq!(faults.len(), 1, "{name}={value}: {faults:?}");
        assert!(faults[0].message.contains(name), "{}", faults[0]);
    }
}

#[test]
fn what_nothing_honours_is_kept_to_be_named_once() {
    let config = on_platform(&[
        ("SAGEMAKER_SECURE_MODE", "true"),
        ("OPTION_QUANTIZE", "awq"),
        ("OPTION_MAX_MODEL_LEN", "512"),
        ("OPTION_ROLLING_BATCH", "vllm"),
        ("SAGEMAKER_SUBMIT_DIRECTORY", "s3://bucket/code.tar.gz"),
    ])
    .unwrap();
    let names = ["SAGEMAKER_SECURE_MODE", "OPTION_QUANTIZE", "SAGEMAKER_SUBMIT_DIRECTORY"];
    assert_eq!(config.container.unheeded, names);
    assert_eq!(config.container.preset.context, Some(512));
    assert!(on_platform(&[]).unwrap().container.unheeded.is_empty());
}

#[test]
fn one_model_is_served_from_its_folder() {
    let base = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(base.path().join("model/code")).unwrap();
    let place = base.path().to_str().unwrap();
    let none = ServeFlags::default();
    let found = Config::load(None, &env(&[("SAGEMAKER_BASE_DIR", place)]), &none).unwrap();
    assert_eq!(found.container.model_dir, Some(base.path().join("model")));
    assert!(found.container.platform && !found.container.contract);
    assert_eq!(found.listen.data, "0.0.0.0:8080".parse().unwrap());
    assert!(found.handlers.enabled, "the folder holds code");

    // Named by hand, elsewhere: no port is opened by it.
    let model = base.path().join("model").display().to_string();
    let flags = ServeFlags { model_dir: Some(model.clone()), ..ServeFlags::default() };
    let named = Config::parse(None, &no_env, &flags).unwrap();
    assert!(!named.container.platform && named.listen.data.ip().is_loopback());
    assert_eq!(named.container.model_dir, Some(model.into()));
    let by_variable = env(&[("ROUNDHOUSE_MODEL_DIR", "/m")]);
    let named = Config::parse(None, &by_variable, &none).unwrap();
    assert_eq!(named.container.model_dir, Some("/m".into()));

    let both = ServeFlags { store: vec!["s3://b/".into()], ..flags };
    let faults = Config::parse(None, &no_env, &both).unwrap_err();
    assert_eq!(faults[0].key, "container.model_dir");
    let pairs = [("SAGEMAKER_BASE_DIR", place), ("SAGEMAKER_MULTI_MODEL", "true")];
    let contract = Config::load(None, &env(&pairs), &none).unwrap();
    assert_eq!(contract.container.model_dir, None);
    assert_eq!(contract.container.models_root, base.path().join("models"));
}
