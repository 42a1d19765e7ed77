use super::*;

fn parsed(file: &str, pairs: &[(&str, &str)]) -> Result<Option<CloudWatch>, Vec<Fault>> {
    let text = format!("version = 1\n{file}");
    Config::parse(Some(&text), &env(pairs), &flags()).map(|config| config.cloudwatch)
}

#[test]
fn nothing_is_told_unless_it_is_said_where() {
    assert_eq!(parsed("", &[]).unwrap(), None);
    assert_eq!(parsed("[cloudwatch]\nto = \"off\"\n", &[]).unwrap(), None);
    assert_eq!(parsed("", &[("AWS_EMF_NAMESPACE", "mine")]).unwrap(), None);
    let told = parsed("", &[("ROUNDHOUSE_CLOUDWATCH_TO", "stdout")]).unwrap().unwrap();
    assert_eq!((told.to, told.namespace.as_str()), (EmbeddedTo::Stdout, "Roundhouse"));
    assert_eq!((told.period, told.log_group), (Duration::from_secs(60), None));
}

#[test]
fn the_libraries_variables_stand_between_ours_and_the_file() {
    let file =
        "[cloudwatch]\nto = \"/var/log/emf.jsonl\"\nnamespace = \"file\"\nperiod = \"10s\"\n";
    let told = parsed(file, &[]).unwrap().unwrap();
    assert_eq!(told.to, EmbeddedTo::File("/var/log/emf.jsonl".into()));
    let theirs = [
        ("AWS_EMF_AGENT_ENDPOINT", "tcp://127.0.0.1:25888"),
        ("AWS_EMF_NAMESPACE", "theirs"),
        ("AWS_EMF_LOG_GROUP_NAME", "/aws/mine"),
    ];
    let told = parsed(file, &theirs).unwrap().unwrap();
    assert_eq!(told.to, EmbeddedTo::Tcp("127.0.0.1:25888".into()));
    assert_eq!((told.namespace.as_str(), told.period), ("theirs", Duration::from_secs(10)));
    assert_eq!(told.log_group.as_deref(), Some("/aws/mine"));
    let mut ours = theirs.to_vec();
    ours.push(("ROUNDHOUSE_CLOUDWATCH_TO", "udp://localhost:25888"));
    let told = parsed(file, &ours).unwrap().unwrap();
    assert_eq!(told.to, EmbeddedTo::Udp("localhost:25888".into()));
}

#[test]
fn what_cloudwatch_would_refuse_is_a_fault() {
    for (key, text) in [
        ("to", ""),
        ("to", "/var/log/\\u0001"),
        ("to", "tcp://127.0.0.1"),
        ("to", "udp://:25888"),
        ("to", "http://127.0.0.1:25888"),
        ("to", "none"),
        ("namespace", "AWS/SageMaker"),
        ("namespace", "a\\tb"),
        ("log_group", "a group"),
        ("period", "0.5s"),
    ] {
        let faults = parsed(&format!("[cloudwatch]\n{key} = \"{text}\"\n"), &[]).unwrap_err();
        assert_eq!(faults.len(), 1, "{key} {text}: {faults:?}");
        assert_eq!(faults[0].key, format!("cloudwatch.{key}"));
    }
}
