use super::*;

fn parsed(file: &str, pairs: &[(&str, &str)]) -> Result<Option<Traces>, Vec<Fault>> {
    let text = format!("version = 1\n{file}");
    Config::parse(Some(&text), &env(pairs), &flags()).map(|config| config.traces)
}

#[test]
fn traces_are_sent_nowhere_unless_an_address_is_given() {
    assert_eq!(parsed("", &[]).unwrap(), None);
    assert_eq!(
        parsed("[tracing]\nservice = \"x\"\n", &[("OTEL_SERVICE_NAME", "y")]).unwrap(),
        None
    );
    let file = "[tracing]\notlp = \"http://collector:4318\"\n";
    let traces = parsed(file, &[]).unwrap().unwrap();
    assert_eq!(traces.url.as_str(), "http://collector:4318/v1/traces");
    assert_eq!((traces.sampled, traces.service.as_str(), traces.names), (1.0, "roundhouse", true));
    assert_eq!(parsed(file, &[("OTEL_SDK_DISABLED", "true")]).unwrap(), None);
}

#[test]
fn opentelemetrys_variables_stand_between_ours_and_the_file() {
    let file = "[tracing]\notlp = \"http://file\"\nsampled = \"0.5\"\nservice = \"file\"\n";
    let theirs = [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "https://theirs:4318/base/"),
        ("OTEL_SERVICE_NAME", "theirs"),
        ("OTEL_TRACES_SAMPLER", "parentbased_traceidratio"),
        ("OTEL_TRACES_SAMPLER_ARG", "0.25"),
        ("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer%20secret, x-team=a"),
    ];
    let traces = parsed(file, &theirs).unwrap().unwrap();
    assert_eq!(traces.url.as_str(), "https://theirs:4318/base/v1/traces");
    assert_eq!((traces.sampled, traces.service.as_str()), (0.25, "theirs"));
    let (name, secret) = &traces.headers[0];
    assert_eq!((name.as_str(), secret.reveal()), ("authorization", "Bearer secret"));
    assert_eq!(traces.headers[1].0.as_str(), "x-team");
    assert!(!format!("{traces:?}").contains("secret"));

    let mut whole = theirs.to_vec();
    whole.push(("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://whole:1/here"));
    let traces = parsed(file, &whole).unwrap().unwrap();
    assert_eq!(traces.url.as_str(), "http://whole:1/here");

    let mut ours = whole;
    ours.push(("ROUNDHOUSE_TRACING_OTLP", "http://ours:2"));
    ours.push(("ROUNDHOUSE_TRACING_SAMPLED", "0"));
    let traces = parsed(file, &ours).unwrap().unwrap();
    assert_eq!(traces.url.as_str(), "http://ours:2/v1/traces");
    assert_eq!(traces.sampled, 0.0);

    let off = [("OTEL_TRACES_SAMPLER", "always_off"), ("OTEL_TRACES_SAMPLER_ARG", "1")];
    assert_eq!(parsed(file, &off).unwrap().unwrap().sampled, 0.0);
}

#[test]
fn what_is_no_collector_or_part_is_a_fault_that_shows_no_key() {
    for (file, pairs) in [
        ("[tracing]\notlp = \"collector:4318\"\n", &[][..]),
        ("[tracing]\notlp = \"http://me:secret@collector\"\n", &[][..]),
        ("[tracing]\notlp = \"http://c\"\nsampled = \"2\"\n", &[][..]),
        ("[tracing]\notlp = \"http://c\"\nsampled = \"NaN\"\n", &[][..]),
        ("[tracing]\notlp = \"http://c\"\n", &[("OTEL_EXPORTER_OTLP_HEADERS", "secret")][..]),
        ("[tracing]\notlp = \"http://c\"\n", &[("OTEL_EXPORTER_OTLP_HEADERS", "a=%zzsecret")][..]),
        ("", &[("OTEL_EXPORTER_OTLP_ENDPOINT", "no address")][..]),
    ] {
        let faults = parsed(file, pairs).unwrap_err();
        assert_eq!(faults.len(), 1, "{faults:?}");
        assert!(faults[0].key.starts_with("tracing."), "{faults:?}");
        assert!(!faults[0].to_string().contains("secret"), "{faults:?}");
    }
}
