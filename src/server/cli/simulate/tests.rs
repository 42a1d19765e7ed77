use std::fs;
use std::path::{Path, PathBuf};

use clap::Parser;

use super::*;

/// Arguments as they are written on the command line.
#[derive(Parser)]
struct Line {
    #[command(flatten)]
    args: SimulateArgs,
}

fn args(line: &[&str]) -> SimulateArgs {
    Line::try_parse_from([&["simulate"], line].concat()).unwrap().args
}

fn file(folder: &Path, name: &str, text: &str) -> PathBuf {
    let path = folder.join(name);
    fs::write(&path, text).unwrap();
    path
}

fn refused(folder: &Path, name: &str, text: &str) -> String {
    let path = file(folder, name, text);
    let Err(error) = read::read(&[path]) else { panic!("{name} was read") };
    error.to_string()
}

#[test]
fn an_access_log_gives_its_targets_and_tells_what_it_leaves_out() {
    let folder = tempfile::tempdir().unwrap();
    let log = r#"{"time":10.5,"endpoint":"demo","target":"b","version":"1a","status":200,"tier":"disk"}
{"time":10.0,"endpoint":"demo","target":"a","version":null,"status":429}

{"time":11.0,"endpoint":null,"target":null,"status":404}
{"time":11.0,"endpoint":"demo","target":"no-such","version":null,"status":400}
{"time":11.5,"endpoint":"demo","target":"c","version":null,"status":499,"method":"POST","container":null}
{"time":12.0,"endpoint":"demo","target":"d","status":200,"method":"GET"}
{"time":12.0,"endpoint":"demo","target":"d","status":202,"method":"POST","route":"invoke_endpoint_async"}
{"time":12.0,"endpoint":"pipe","target":"one","status":200,"method":"POST","container":"two"}
"#;
    let read = read::read(&[file(folder.path(), "access.log", log)]).unwrap();
    let asked: Vec<_> = read
        .trace
        .requests()
        .iter()
        .map(|it| (it.at.as_secs_f64(), read.trace.models()[it.model as usize].id.to_string()))
        .collect();
    let want = [(10.0, "demo:a"), (10.5, "demo:b"), (11.5, "demo:c")];
    assert_eq!(asked, want.map(|(at, model)| (at, model.to_owned())));
    let notes = read.notes();
    assert_eq!(notes.len(), 2);
    assert!(notes[0].starts_with("4 lines without a target"), "{notes:?}");
}

#[test]
fn other_lines_of_a_log_are_left_out_and_counted() {
    let folder = tempfile::tempdir().unwrap();
    let asked = |time: u32| format!("{{\"time\":{time},\"target\":\"a\",\"status\":200}}\n");
    let told =
        "{\"timestamp\":\"2026-11-21T07:00:00Z\",\"level\":\"INFO\",\"target\":\"roundhouse\"}\n";
    let timed =
        "{\"time\":2,\"level\":\"INFO\",\"message\":\"loaded\",\"target\":\"roundhouse\"}\n";
    let mut mixed = format!("2026-11-21T07:00:00Z  INFO listening\n{}{told}{timed}", asked(1));
    mixed += &format!("{}\nTraceback (most recent call last):\n{}", "x".repeat(2 << 20), asked(3));
    let path = file(folder.path(), "server.log", &mixed);
    let read = read::read(std::slice::from_ref(&path)).unwrap();
    let at: Vec<_> = read.trace.requests().iter().map(|it| it.at.as_secs()).collect();
    assert_eq!(at, [1, 3]);
    let note =
        format!("5 lines left out that are not the access log's, from {}:1 on", path.display());
    assert_eq!(read.notes(), [note]);
}

#[test]
fn what_ships_an_access_log_may_add_to_its_lines_and_a_damaged_one_names_its_place() {
    let folder = tempfile::tempdir().unwrap();
    let shipped = |time: &str| {
        format!("{{\"level\":\"info\",\"time\":{time},\"target\":\"a\",\"status\":200}}\n")
    };
    let cut = "{\"time\":2,\"target\":\"a\",\"sta\n";
    let log = [&shipped("1"), cut, &shipped("3"), &shipped("1e19")].concat();
    let path = file(folder.path(), "shipped.log", &log);
    let read = read::read(std::slice::from_ref(&path)).unwrap();
    let at: Vec<_> = read.trace.requests().iter().map(|it| it.at.as_secs()).collect();
    assert_eq!(at, [1, 3]);
    let place = path.display();
    let note = format!("2 lines left out that cannot be read, the first at {place}:2: not a line");
    let [told] = &read.notes()[..] else { panic!("{:?}", read.notes()) };
    assert!(told.starts_with(&note), "{told}");
}

#[test]
fn csv_files_tell_targets_and_sizes_and_several_traces_become_one() {
    let folder = tempfile::tempdir().unwrap();
    let ours = "target,time,bytes,more\na,2,1kB,x\n\"b\",1,,y\na,3,2kB,z\n";
    let ours = file(folder.path(), "ours.csv", ours);
    let alibaba = "gmt_create,predict_type,checkpoint_model_version_id\n\
                   1970-01-01 00:00:02,T,M0001\n1970-01-01 00:00:00,T,\n";
    let alibaba = file(folder.path(), "alibaba.csv", alibaba);
    let mut read = read::read(&[ours, alibaba]).unwrap();
    let names = |read: &read::Read| -> Vec<String> {
        let models = read.trace.models();
        let of = |it: &roundhouse_residency::simulate::Request| models[it.model as usize].clone();
        read.trace.requests().iter().map(|it| of(it).id.target.to_string()).collect()
    };
    assert_eq!(names(&read), ["unnamed", "b", "a", "M0001", "a"]);
    let given = file(folder.path(), "sizes", "# two\nb = 5kB\ntrace:M0001=7kB\n");
    let given = [given.to_str().unwrap().to_owned(), "1kB".to_owned()];
    sizes::apply(&mut read, &given, &mut Vec::new()).unwrap();
    let sizes: Vec<_> =
        read.trace.models().iter().map(|m| (m.id.target.as_str(), m.bytes.0)).collect();
    assert_eq!(sizes, [("a", 2000), ("b", 5000), ("M0001", 7000), ("unnamed", 1000)]);
}

#[test]
fn what_cannot_be_read_is_named_with_its_file_and_line() {
    let folder = tempfile::tempdir().unwrap();
    let cases = [
        ("a.csv", "time,target\n1,a\nsoon,b\n", "a.csv:3: 'soon' is not a time"),
        ("b.csv", "time,target\n1\n", "b.csv:2: 1 column, and column 2 is needed"),
        ("c.csv", "TIMESTAMP,Tokens\n1,2\n", "c.csv:1: neither"),
        ("d.csv", "time,target\n1,../x\n", "d.csv:2: the target '../x' cannot be used"),
        ("e.log", "{\"time\":}\nno more\n", "e.log:1: not a line"),
        ("e2.log", "INFO listening\n\nWARN of nothing\n", "e2.log:1: neither"),
        ("f.csv", "time,target\n", "no request"),
        ("a1.csv", "time,target\n1e19,a\n", "a1.csv:2: '1e19' is not a time"),
        ("e1.log", "{\"time\":1e19,\"target\":\"a\"}\n", "e1.log:1: 10000000000000000000 is not"),
        ("g.csv", "time,target,bytes\n1,a,big\n", "g.csv:2: 'big' is not a size"),
    ];
    for (name, text, want) in cases {
        let told = refused(folder.path(), name, text);
        assert!(told.contains(want), "{told}");
    }
    let endless = format!("time,target\n1,{}", "a".repeat(2 << 20));
    let told = refused(folder.path(), "h.csv", &endless);
    assert!(told.ends_with("h.csv:2: the line is longer than 1 MiB"), "{told}");
    let path = folder.path().join("i.csv");
    fs::write(&path, b"time,target\n1,\xff\n").unwrap();
    let Err(error) = read::read(&[path]) else { panic!("it was read") };
    assert!(error.to_string().ends_with("i.csv:2: the line is not UTF-8"), "{error}");
    let missing = read::read(&[folder.path().join("missing")]);
    assert!(missing.is_err_and(|error| error.to_string().contains("missing")));
}

fn trace(folder: &Path, asked: &str) -> read::Read {
    let rows = asked.chars().enumerate().map(|(second, name)| format!("{second},{name}\n"));
    let text: String = std::iter::once("time,target\n".to_owned()).chain(rows).collect();
    read::read(&[file(folder, "trace.csv", &text)]).unwrap()
}

#[test]
fn sizes_that_nobody_told_are_assumed_aloud_and_missing_ones_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let mut notes = Vec::new();
    let mut read = trace(folder.path(), "ab");
    sizes::apply(&mut read, &[], &mut notes).unwrap();
    assert_eq!(read.trace.equal_size(), Some(Bytes::gib(1)));
    assert!(notes[0].contains("--sizes"), "{notes:?}");
    let only_a = file(folder.path(), "sizes", "a=1GB\n").to_str().unwrap().to_owned();
    let error = sizes::apply(&mut read, &[only_a], &mut Vec::new()).unwrap_err().to_string();
    assert!(error.contains("1 model") && error.contains("of b first"), "{error}");
    let wrong = file(folder.path(), "wrong", "\na:1GB\n").to_str().unwrap().to_owned();
    let error = sizes::apply(&mut read, &[wrong], &mut Vec::new()).unwrap_err().to_string();
    assert!(error.contains("wrong:2:"), "{error}");
    let error = sizes::apply(&mut read, &["0B".to_owned()], &mut Vec::new()).unwrap_err();
    assert!(error.to_string().contains("zero"), "{error}");
}

#[test]
fn every_combination_has_a_row_and_every_budget_its_references() {
    let folder = tempfile::tempdir().unwrap();
    let read = trace(folder.path(), "abacabadabacaba");
    let path = folder.path().join("trace.csv");
    let path = path.to_str().unwrap();
    let asked = args(&[
        "--trace",
        path,
        "--slots",
        "1",
        "--slots",
        "2",
        "--policy",
        "lru",
        "--policy",
        "greedy-dual",
        "--collation",
        "on",
        "--collation",
        "off",
        "--pending",
        "2",
    ]);
    assert_eq!(asked.configs().unwrap().len(), 4);
    let mut trace = read.trace;
    trace.size(|_| Bytes(1000));
    assert_eq!(asked.budgets(&trace).unwrap(), [Bytes(1000), Bytes(2000)]);
    let mut rows = rows::references(&trace, Bytes(2000), asked.pending);
    rows::hold_against_optimum(&mut rows);
    let loads: Vec<_> = rows.iter().map(|row| (row.rule.as_str(), row.loads)).collect();
    assert_eq!(loads[0], ("(lru)", 8));
    assert_eq!(loads[3], ("(optimum: belady)", 8));
    assert_eq!(rows[0].of_optimum, Some(1.0));
    assert!(simulate(&asked).is_ok());
}

#[test]
fn mixed_sizes_want_budgets_in_bytes_and_show_bounds_of_the_optimum() {
    let folder = tempfile::tempdir().unwrap();
    let mut trace = trace(folder.path(), "abcabcabc").trace;
    trace.size(|model| Bytes(if model.target.as_str() == "a" { 30 } else { 20 }));
    let asked = args(&["--trace", "unused", "--slots", "2"]);
    let error = asked.budgets(&trace).unwrap_err().to_string();
    assert!(error.contains("--budget"), "{error}");
    let rows = rows::references(&trace, Bytes(50), None);
    let of = |source| rows.iter().find(|row| row.source == source).unwrap();
    let (lower, upper) = (of(rows::Source::Optimum), of(rows::Source::Bound));
    assert!(lower.rule.contains("dual") && upper.rule.contains("greedy"));
    assert!(3 <= lower.loads && lower.loads <= upper.loads && upper.loads <= rows[0].loads);
}

#[test]
fn numbers_that_make_no_sense_are_refused_by_the_name_of_their_flag() {
    for (flag, value) in [
        ("--compress", "0"),
        ("--compress", "nan"),
        ("--compress", "1e-300"),
        ("--compress", "1e300"),
        ("--store-bandwidth", "0B"),
        ("--load-bandwidth", "999"),
        ("--service-time", "8761h"),
        ("--hold", "5124095576030431h"),
        ("--budget", "0B"),
        ("--budget", "18446744073709551615"),
        ("--slots", "0"),
        ("--target-hit-ratio", "90"),
    ] {
        let error = args(&["--trace", "t", flag, value]).check().unwrap_err().to_string();
        assert!(error.contains(flag), "{error}");
    }
    assert!(Line::try_parse_from(["simulate", "--trace", "t", "--pending", "0"]).is_err());
    assert!(Line::try_parse_from(["simulate"]).is_err(), "a trace is needed");
}

#[test]
fn the_picture_has_a_line_and_a_name_for_each_rule() {
    let folder = tempfile::tempdir().unwrap();
    let mut trace = trace(folder.path(), "abacabadabacaba").trace;
    trace.size(|_| Bytes(1000));
    let budgets = [Bytes(1000), Bytes(2000), Bytes(3000)];
    let rows = budgets.iter().flat_map(|budget| rows::references(&trace, *budget, None)).collect();
    let requests = trace.requests().len();
    let slot = trace.equal_size();
    let report = Report { notes: Vec::new(), requests, slot, rows, targets: Vec::new() };
    let drawn = picture::draw(&report, 4);
    assert_eq!(drawn.matches("<polyline").count(), 4, "lru, gdsf, collation, optimum");
    assert_eq!(drawn.matches("<circle").count(), 12);
    for rule in ["(lru)", "(gdsf)", "(collation 16/32)", "(optimum: belady)"] {
        assert!(drawn.contains(rule), "{rule}");
    }
    assert!(drawn.contains("budget, in models of 1000 B"), "{drawn}");
}

#[test]
fn what_cannot_be_counted_is_refused_and_what_can_is_replayed() {
    let folder = tempfile::tempdir().unwrap();
    let path = file(folder.path(), "trace.csv", "time,target\n0,a\n1e12,b\n1e12,a\n");
    let path = path.to_str().unwrap();
    let told = |given: &[&str]| {
        let given = args(&[&["--trace", path][..], given].concat());
        simulate(&given).map_err(|error| error.to_string())
    };
    for sizes in ["18446744073709551615", "4611686018427387904"] {
        let error = told(&["--sizes", sizes, "--budget", "1GB"]).unwrap_err();
        assert!(error.starts_with("--sizes: all requests together want more"), "{error}");
    }
    let error = told(&["--sizes", "1GB", "--slots", "18446744073709551615"]).unwrap_err();
    assert!(error.starts_with("--slots 18446744073709551615 are"), "{error}");
    // The ends of every range, all at once.
    let ends = ["--compress", "0.001", "--hold", "8760h", "--service-time", "8760h"];
    let large = ["--sizes", "1073741824GB", "--budget", "4611686018427387904"];
    let slow = ["--store-bandwidth", "1kB", "--load-bandwidth", "1kB", "--target-hit-ratio", "1"];
    told(&[&ends[..], &large, &slow].concat()).unwrap();
    let fast = ["--store-bandwidth", "18446744073709551615", "--warm-disk"];
    told(&[&large[..], &fast].concat()).unwrap();
}
