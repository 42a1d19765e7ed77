use super::*;
use crate::cli::ServeFlags;

fn parsed(keys: &str, top: &str) -> Result<Asynchronous, Vec<String>> {
    let text = format!(
        "version = 1\n{top}\n[[endpoint]]\nname = \"a\"\n[endpoint.async]\n{keys}\n\
         [[endpoint.mount]]\nuri = \"s3://b/\"\n"
    );
    Config::parse(Some(&text), &|_| None, &ServeFlags::default())
        .map(|config| config.endpoints[0].asynchronous.clone().unwrap())
        .map_err(|faults| faults.iter().map(ToString::to_string).collect())
}

fn fault_of(keys: &str) -> String {
    let mut faults = parsed(keys, "").unwrap_err();
    assert_eq!(faults.len(), 1, "{faults:?}");
    faults.remove(0)
}

#[test]
fn what_is_not_said_is_the_default() {
    let of = parsed("output = \"s3://b/out/\"\nregion = \"eu-west-1\"", "").unwrap();
    assert_eq!((&of.output, of.inputs.len()), (&of.failure, 0));
    assert_eq!(of.output.region.as_deref(), Some("eu-west-1"));
    assert_eq!(of.max_concurrent, defaults::ASYNC_CONCURRENT);
    assert_eq!(of.queue_bytes, defaults::ASYNC_QUEUE_BYTES);
    let config = of.to_queue().unwrap();
    assert_eq!(config.failure.root.uri.to_string(), "s3://b/out/");
}

#[test]
fn everything_is_read() {
    let of = parsed(
        "inputs = [\"s3://b/in/\", \"file:///srv/in\"]\noutput = \"s3://b/out/\"\n\
         failure = \"s3://b/bad/\"\nendpoint_url = \"http://127.0.0.1:9000\"\n\
         max_concurrent = 7\nqueue_requests = 8\nqueue_bytes = \"1GiB\"\nmax_input = \"9MiB\"\n\
         max_output = \"10MiB\"\nsuccess_url = \"https://hooks.example/ok\"\n\
         error_url = \"http://hooks.internal/no\"\nwebhook_networks = [\"10.0.0.0/8\"]\n\
         give_up_after = \"72h\"\nsuccess_topic = \"arn:aws:sns:eu-west-1:123456789012:ok\"\n\
         include_inference_response_in = [\"SUCCESS_NOTIFICATION_TOPIC\"]",
        "",
    )
    .unwrap();
    assert_eq!(of.inputs[0].endpoint_url.as_deref(), Some("http://127.0.0.1:9000"));
    assert_eq!(of.inputs[1].endpoint_url, None);
    assert_eq!(of.failure.uri.to_string(), "s3://b/bad/");
    assert_eq!((of.max_concurrent, of.queue_requests), (7, 8));
    assert_eq!((of.max_input, of.max_output), (Bytes::mib(9), Bytes::mib(10)));
    assert_eq!(of.error_url.unwrap().host_str(), Some("hooks.internal"));
    assert_eq!(of.give_up_after, Some(Duration::from_secs(3 * 86_400)));
    assert!(of.topics.success.unwrap().arn().ends_with(":ok") && of.topics.error.is_none());
    assert_eq!(of.included, Included { success: true, error: false });
}

#[test]
fn faults_are_told_with_their_keys() {
    let out = "output = \"s3://b/out/\"\n";
    for (keys, fault) in [
        ("", "endpoint[0].async.output: is missing"),
        ("output = 1", "endpoint[0].async.output: expected a string"),
        ("output = \"https://b/out\"", "endpoint[0].async.output: store 'https://b/out'"),
        ("output = \"s3://{tenant}/out\"", "endpoint[0].async.output: has {tenant} in the"),
        (&format!("{out}outputs = 1"), "endpoint[0].async.outputs: is not a key"),
        (&format!("{out}inputs = \"s3://b/in/\""), "endpoint[0].async.inputs: expected a list"),
        (&format!("{out}max_concurrent = 0"), "endpoint[0].async.max_concurrent: 0 is out"),
        (&format!("{out}queue_bytes = \"x\""), "endpoint[0].async.queue_bytes: expected a size"),
        (&format!("{out}shared = 1"), "endpoint[0].async.shared: expected true or false"),
        (&format!("{out}region = \"\""), "endpoint[0].async.region: is empty"),
        (&format!("{out}success_url = \"http://x/\""), "endpoint[0].async.success_url: is for"),
        (&format!("{out}error_url = \"ftp://x/\""), "endpoint[0].async.error_url: 'ftp' is"),
        (&format!("{out}error_topic = \"x\""), "endpoint[0].async.error_topic: 'x' is not arn:"),
        (
            &format!("{out}sns_endpoint_url = \"http://x/\""),
            "endpoint[0].async.sns_endpoint_url: says where topics are",
        ),
        (
            &format!("{out}include_inference_response_in = [\"ALL\"]"),
            "endpoint[0].async.include_inference_response_in: 'ALL' is not SUCCESS_",
        ),
        (
            &format!("{out}include_inference_response_in = [\"ERROR_NOTIFICATION_TOPIC\"]"),
            "endpoint[0].async.include_inference_response_in: has ERROR_NOTIFICATION_TOPIC, and",
        ),
        (&format!("{out}give_up_after = \"1s\""), "endpoint[0].async.give_up_after: is less"),
        (
            &format!("{out}success_url = \"https://u:p@x/\""),
            "endpoint[0].async.success_url: has a user",
        ),
        (
            &format!("{out}webhook_networks = [\"x\"]"),
            "endpoint[0].async.webhook_networks: 'x' is not a network",
        ),
    ] {
        let told = fault_of(keys);
        assert!(told.starts_with(fault), "{keys}: {told}");
        assert!(!told.contains("u:p"), "{told}");
    }
    let told = fault_of("output = \"file:///srv/out\"\nregion = \"eu-west-1\"");
    assert!(told.starts_with("endpoint[0].async.region: is for s3:// stores only"), "{told}");
}

#[test]
fn tenants_have_places_of_their_own() {
    let asks = "[auth]\nkeys = \"keys.json\"";
    let told = parsed("output = \"s3://b/out/\"", asks).unwrap_err();
    assert!(told[0].starts_with("endpoint[0].async.output: has no {tenant}"), "{told:?}");
    assert!(parsed("output = \"s3://b/out/\"\nshared = true", asks).is_ok());
    assert!(parsed("output = \"s3://b/out/{tenant}/\"", asks).is_ok());
    let told = parsed("output = \"s3://b/out/{tenant}/\"", "").unwrap_err();
    assert!(told[0].contains("nobody is asked"), "{told:?}");
}
