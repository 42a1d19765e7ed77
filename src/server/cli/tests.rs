use clap::{CommandFactory, Parser};

use super::*;

fn parse(line: &str) -> Result<Command, clap::Error> {
    Cli::try_parse_from(std::iter::once("roundhouse").chain(line.split_whitespace()))
        .map(|cli| cli.command)
}

#[test]
fn the_interface_is_consistent() {
    Cli::command().debug_assert();
}

#[test]
fn every_command_has_words_for_people() {
    for command in Cli::command().get_subcommands() {
        assert!(command.get_about().is_some(), "{}", command.get_name());
        for argument in command.get_arguments() {
            let help = argument.get_help().map(ToString::to_string).unwrap_or_default();
            assert!(!help.is_empty(), "{} {}", command.get_name(), argument.get_id());
        }
    }
}

#[test]
fn serve_takes_every_flag_of_the_interface() {
    let line = "serve --config f.toml --store s3://a/ --store b=file:///b --listen 127.0.0.1:0 \
        --admin-listen 127.0.0.1:0 --health-listen 0.0.0.0:1 --memory 4GiB --device cpu \
        --cache-dir /c --cache-size 50GiB --drain-timeout 25s --insecure-no-auth \
        --container-contract --container-models-root /m --log-format json";
    let Command::Serve(flags) = parse(line).unwrap() else { panic!("serve is serve") };
    assert_eq!(flags.store, ["s3://a/", "b=file:///b"]);
    assert_eq!(flags.values().len(), 12);
}

#[cfg(feature = "demo")]
#[test]
fn demo_takes_its_ports_and_its_folder() {
    let line = "demo --listen 127.0.0.1:0 --admin-listen 127.0.0.1:0 --data-dir /d";
    let Command::Demo(flags) = parse(line).unwrap() else { panic!("demo is demo") };
    assert_eq!(flags.data_dir, Some("/d".into()));
}

#[test]
fn an_invocation_has_one_body_at_most() {
    for good in [
        "invoke m",
        "invoke m --prompt hi --max-tokens 3",
        "invoke m --text hi --stream",
        "invoke e:m --body {} --content-type text/plain",
        "invoke m --endpoint e --file f.json",
    ] {
        assert!(parse(good).is_ok(), "{good}");
    }
    for bad in [
        "invoke",
        "invoke m --prompt a --body b",
        "invoke m --file a --body b",
        "invoke m --max-tokens 3",
        "invoke m --prompt a --content-type text/plain",
    ] {
        assert!(parse(bad).is_err(), "{bad}");
    }
}

#[test]
fn commands_about_a_model_need_one_and_take_their_switches() {
    for good in [
        "load m --force",
        "load e:m --url http://h:1 --json",
        "unload m --purge",
        "keep m",
        "release m",
        "refresh m",
        "explain m --endpoint e",
        "models --endpoint e --limit 5",
        "check-config f",
        "survey s3://b/ --json",
        "doctor --store file:///m --json",
    ] {
        assert!(parse(good).is_ok(), "{good}");
    }
    let bad = ["load", "keep m --purge", "models --limit 0", "check-config", "plan m", ""];
    for bad in bad {
        assert!(parse(bad).is_err(), "{bad}");
    }
}

#[test]
fn who_asked_for_json_is_told_failures_in_json_where_nothing_else_was_printed() {
    use roundhouse_types::Failure;
    let away = Error::Refused { status: 503, kind: None, message: "later".into() };
    let unknown = Error::Failed(Failure::new(ErrorKind::ModelNotFound, "no such target"));
    let rest = Error::Rest(Failure::new(ErrorKind::ModelNotFound, "1 of 2"));
    let tells = |line: &str, error: &Error| parse(line).unwrap().fails_in_json()(error);
    for line in ["models", "load m", "explain m", "top --once", "invoke m", "plan m", "versions m"]
    {
        assert!(tells(&format!("{line} --json"), &away), "{line}");
        assert!(!tells(line, &away), "{line}");
    }
    assert!(!tells("explain m --json", &unknown), "it was explained");
    assert!(!tells("plan a b --json", &rest), "the others are printed");
    assert!(!tells("models --json", &rest), "other endpoints are printed");
    assert!(!tells("top --json", &away), "pages may stand there");
    assert!(!tells("invoke m --json --stream", &away), "pieces may stand there");
}
