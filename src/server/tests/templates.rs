//! Chat templates in processes of their own: the real binary, and templates that mean harm.

#![allow(clippy::unwrap_used, reason = "a test that cannot set its stage has failed")]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use roundhouse::templates::{Processes, SUBCOMMAND, Settings};
use roundhouse_serving::{
    Error, InProcess, Opening, Renderer, Rendering, TemplateSources, TextCodec,
};
use roundhouse_types::{Bytes, ErrorKind, ModelId, RetryHint, TenantName};
use serde_json::{Map, Value, json};

/// A text that is doubled sixty times.
const DOUBLES: &str = "{% set ns = namespace(x='sixteen letters.') %}{% for i in range(60) %}\
                       {% set ns.x = ns.x ~ ns.x %}{% endfor %}{{ ns.x | length }}";
/// A list in a list in a list…
const NESTS: &str = "{% set ns = namespace(x=[]) %}{% for i in range(90000) %}\
                     {% set ns.x = [ns.x] %}{% endfor %}{{ ns.x }}";
/// Few steps, each of which takes long.
const TOILS: &str =
    "{% set x = 'é' * 10000000 %}{% for i in range(90000) %}{% set y = x | upper %}{% endfor %}";
const GREETS: &str = "hello {{ name }}";

fn settings() -> Settings {
    let exe = PathBuf::from(env!("CARGO_BIN_EXE_roundhouse"));
    Settings { exe, memory: Bytes::mib(128), most: 2 }
}

fn sources(template: &str) -> TemplateSources {
    TemplateSources::new([("default".to_owned(), template.to_owned())].into())
}

fn model() -> ModelId {
    ModelId { endpoint: "default".parse().unwrap(), target: "chat".parse().unwrap() }
}

fn tenant(name: &str) -> Option<TenantName> {
    Some(name.parse().unwrap())
}

/// Renders for a tenant, in its turn.
async fn render(
    renderer: &impl Renderer,
    who: &str,
    template: &str,
    context: Value,
) -> Result<String, Error> {
    let Value::Object(context) = context else { panic!("a context is an object") };
    let (turn, sources) = (renderer.turn(&model(), tenant(who)).await, sources(template));
    let rendered = tokio::task::spawn_blocking(move || {
        turn(Rendering { sources: &sources, name: "default", context })
    });
    rendered.await.unwrap()
}

async fn greeted(processes: &Processes, who: &str) -> String {
    render(processes, who, GREETS, json!({"name": who})).await.unwrap()
}

/// The processes that this test has started, but not other tests beside it: those of `processes`, when
/// nothing else has been started since.
fn children() -> Vec<u32> {
    let own = std::process::id().to_string();
    let is_child = |process: &u32| {
        let read = |file: &str| fs::read_to_string(format!("/proc/{process}/{file}"));
        let stat = read("stat").unwrap_or_default();
        let parent = stat.rsplit_once(") ").and_then(|(_, rest)| rest.split(' ').nth(1));
        let is_ours = parent.is_some_and(|it| it == own);
        is_ours && read("cmdline").is_ok_and(|line| line.contains(SUBCOMMAND))
    };
    let all = fs::read_dir("/proc").unwrap().flatten();
    all.filter_map(|it| it.file_name().to_str()?.parse().ok()).filter(is_child).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_reference_templates_render_in_a_process_as_transformers_renders_them() {
    let references = Path::new(env!("CARGO_MANIFEST_DIR")).join("../serving/tests/references/bpe");
    let expected = fs::read_to_string(references.join("expected.json")).unwrap();
    let expected: Value = serde_json::from_str(&expected).unwrap();
    let processes = Processes::new(settings());
    let mut compared = 0;
    for template in expected["templates"].as_array().unwrap() {
        let folder = tempfile::tempdir().unwrap();
        let tokenizer = folder.path().join("tokenizer.json");
        fs::copy(references.join("tokenizer.json"), tokenizer).unwrap();
        let config = json!({
            "chat_template": template["template"], "bos_token": template["bos_token"],
            "eos_token": template["eos_token"],
        });
        fs::write(folder.path().join("tokenizer_config.json"), config.to_string()).unwrap();
        let codec = Arc::new(TextCodec::open(folder.path()).unwrap());
        for case in template["cases"].as_array().unwrap() {
            let (codec, case) = (codec.clone(), case.clone());
            let turn = processes.turn(&model(), None).await;
            let rendered = tokio::task::spawn_blocking(move || {
                let messages = case["messages"].as_array().unwrap();
                let tools = case["tools"].as_array().map(Vec::as_slice);
                let opens = case["add_generation_prompt"].clone();
                let kwargs = Map::from_iter([("add_generation_prompt".to_owned(), opens)]);
                let asked = (&kwargs, Opening::Answer);
                let there = codec.render_chat(messages, tools, asked, turn);
                let here = codec.render_chat(messages, tools, asked, InProcess::default().render());
                let told = |rendered: Result<String, Error>| rendered.map_err(|it| it.to_string());
                let (there, here) = (told(there), told(here));
                assert_eq!(there, here);
                match case["rendered"].as_str() {
                    Some(text) => assert_eq!(there.as_deref(), Ok(text)),
                    None => assert!(there.unwrap_err().contains(case["error"].as_str().unwrap())),
                }
            });
            rendered.await.unwrap();
            compared += 1;
        }
    }
    assert!(compared > 20, "{compared}");
}

#[tokio::test(flavor = "multi_thread")]
async fn values_and_errors_come_from_a_process_as_they_are_here() {
    let (processes, here) = (Processes::new(settings()), InProcess::default());
    let mut deep = json!("end");
    for _ in 0..200 {
        deep = json!({"in": deep});
    }
    let context = json!({
        "numbers": [0.1, 1e300, 5e-324, -0.0, 1.0, 18446744073709551615_u64, i64::MIN, 3],
        "texts": {"é🚂": "\u{0}\"'", "a": null, "0": [true, {}]}, "deep": deep,
    });
    for template in [
        "{{ numbers }} {{ texts }} {{ numbers | tojson }} {{ texts | tojson }} {{ deep | tojson }}",
        "{% for key, value in texts | items %}{{ key }}={{ value }};{% endfor %}",
        "one\n{% for %}",
        "one\n{{ raise_exception('no\nsystem') }}",
        "{{ numbers.nothing.deeper }}",
        "{% for a in range(99999) %}{{ 'x' * 1000 }}{% endfor %}",
        "{% include 'another' %}",
        "",
    ] {
        let told = |rendered: Result<String, Error>| {
            rendered.map_err(|error| (error.kind(), error.to_string()))
        };
        let there = told(render(&processes, "a", template, context.clone()).await);
        assert_eq!(there, told(render(&here, "a", template, context.clone()).await), "{template}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_template_that_takes_all_memory_fails_its_own_request_and_is_not_tried_at_once_again() {
    let processes = Processes::new(settings());
    for (template, who) in [(DOUBLES, "doubles"), (NESTS, "nests")] {
        for _ in 0..2 {
            let error = render(&processes, who, template, json!({})).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
            assert!(error.to_string().contains("ran out of its memory of 128.0 MiB"), "{error}");
            assert_eq!(greeted(&processes, who).await, format!("hello {who}"));
        }
        // On a busy machine the first pauses may be over by then, and each is longer.
        let mut deaths = 2;
        let error = loop {
            match render(&processes, who, template, json!({})).await.unwrap_err() {
                Error::TemplateEnded { .. } if deaths < 7 => deaths += 1,
                error => break error,
            }
        };
        let Error::TemplatePaused { times, .. } = error else { panic!("{error}") };
        assert_eq!((times, error.kind()), (deaths, ErrorKind::Overloaded), "it passes: {error}");
        assert!(matches!(error.retry(), RetryHint::After(_)), "{error}");
        // What another makes of it is another's.
        let error = render(&processes, "other", template, json!({})).await.unwrap_err();
        assert!(matches!(error, Error::TemplateEnded { .. }), "{error}");
    }
}

/// A list of many small values, as a client may send it: the order, and its bytes as JSON.
fn much(values: usize) -> (Value, usize) {
    let context = json!({"name": "a", "tools": vec![json!({"a": 1}); values]});
    let bytes = context.to_string().len();
    (context, bytes)
}

#[tokio::test(flavor = "multi_thread")]
async fn large_requests_that_take_all_memory_fail_alone_and_pause_nothing_for_others() {
    let processes = Processes::new(Settings { memory: Bytes::mib(16), ..settings() });
    let (large, _) = much(100_000);
    for _ in 0..4 {
        let error = render(&processes, "a", GREETS, large.clone()).await.unwrap_err();
        assert!(matches!(error, Error::TemplateEnded { .. }), "{error}");
    }
    assert_eq!(greeted(&processes, "a").await, "hello a");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_of_small_values_takes_no_more_memory_than_is_told() {
    let (large, bytes) = much(100_000);
    let mut takes = Vec::new();
    for template in ["{{ tools | length }}", "{{ tools | tojson | length }}"] {
        let mut each = 10;
        loop {
            let memory = Bytes((bytes * each) as u64);
            let processes = Processes::new(Settings { memory, ..settings() });
            match render(&processes, "a", template, large.clone()).await {
                Ok(length) => break assert!(length == "100000" || length == "1000000", "{length}"),
                Err(Error::TemplateEnded { .. }) if each < 200 => each += 10,
                Err(error) => panic!("{error}"),
            }
        }
        takes.push(each);
    }
    println!("memory for each byte of a body, read alone and with tojson: {takes:?}");
    // Less than `config/default.toml` says.
    assert!(takes.iter().all(|each| (30..=80).contains(each)), "{takes:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_template_that_takes_long_again_and_again_is_not_tried_at_once_again() {
    let processes = Processes::new(settings());
    // As long as it takes on this machine: more than a second, and less than its processor time.
    let toils = |rounds: usize| {
        format!(
            "{{% set x = 'é' * 1000000 %}}{{% for i in range({rounds}) %}}\
             {{% set y = x | upper %}}{{% endfor %}}done"
        )
    };
    let began = Instant::now();
    let mut rounds = 1;
    let once = loop {
        let began = Instant::now();
        render(&processes, "trial", &toils(rounds), json!({})).await.unwrap();
        if began.elapsed() > Duration::from_millis(200) {
            break began.elapsed() / u32::try_from(rounds).unwrap();
        }
        rounds *= 2;
    };
    let rounds = (Duration::from_millis(1500).as_nanos() / once.as_nanos()) as usize;
    let (template, mut tries) = (toils(rounds), 0);
    let error = loop {
        match render(&processes, "a", &template, json!({})).await {
            Err(error @ Error::TemplatePaused { times: 2.., .. }) => break error,
            Err(error) => panic!("{error}"),
            Ok(text) => assert_eq!(text, "done"),
        }
        tries += 1;
        assert!(tries < 8, "it is never paused, after {:?}", began.elapsed());
    };
    assert_eq!(error.kind(), ErrorKind::Overloaded, "{error}");
    assert_eq!(greeted(&processes, "a").await, "hello a");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_template_that_takes_long_is_ended_and_holds_up_no_other_tenant() {
    let processes = Processes::new(settings());
    let of_flood = |processes: Processes| async move {
        render(&processes, "flood", TOILS, json!({})).await.unwrap_err().to_string()
    };
    let toils = [(); 2].map(|()| tokio::spawn(of_flood(processes.clone())));
    // It has a turn, and another of its renderings waits.
    tokio::time::sleep(Duration::from_millis(300)).await;
    for _ in 0..5 {
        let greeted = tokio::time::timeout(Duration::from_secs(60), greeted(&processes, "calm"));
        assert_eq!(greeted.await.expect("it waits for another tenant's"), "hello calm");
    }
    assert!(toils.iter().all(|it| !it.is_finished()), "nothing was under way meanwhile");
    for toil in toils {
        let told = toil.await.unwrap();
        // By the clock where the machine gives it little of a processor.
        let ways = ["took more than 2 s of a processor", "took longer than 20 s"];
        assert!(ways.iter().any(|way| told.contains(way)), "{told}");
    }
}

#[tokio::test]
async fn a_process_that_was_killed_is_replaced_and_none_outlives_who_started_it() {
    // In a process of its own: other tests' children are beside it.
    if std::env::var_os("ALONE").is_none() {
        let name = "a_process_that_was_killed_is_replaced_and_none_outlives_who_started_it";
        let own = std::env::current_exe().unwrap();
        let alone = Command::new(own).args(["--exact", name]).env("ALONE", "1").status().unwrap();
        assert!(alone.success());
        return;
    }
    let processes = Processes::new(settings());
    let mut seen = BTreeMap::new();
    for round in 0..5 {
        assert_eq!(greeted(&processes, "a").await, "hello a");
        let [child] = children()[..] else { panic!("{:?}", children()) };
        assert!(seen.insert(child, round).is_none(), "{child} was killed");
        let killed = Command::new("kill").args(["-9", &child.to_string()]).status().unwrap();
        assert!(killed.success());
    }
    assert_eq!(greeted(&processes, "a").await, "hello a");
    let [before] = children()[..] else { panic!("{:?}", children()) };
    for _ in 0..4096 {
        assert_eq!(greeted(&processes, "a").await, "hello a");
    }
    let [after] = children()[..] else { panic!("{:?}", children()) };
    assert_ne!(before, after, "it has rendered enough");
    drop(processes);
    let until = Instant::now() + Duration::from_secs(20);
    while !children().is_empty() {
        assert!(Instant::now() < until, "{:?} are left", children());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn where_no_process_can_be_started_nothing_is_rendered() {
    let exe = PathBuf::from("/nowhere/roundhouse");
    let processes = Processes::new(Settings { exe, ..settings() });
    let error = render(&processes, "a", GREETS, json!({"name": "a"})).await.unwrap_err();
    assert!(matches!(error, Error::NoRenderer(_)), "{error}");
    assert_eq!(error.kind(), ErrorKind::Internal);
    // Another program says nothing that is understood.
    let exe = PathBuf::from("/bin/false");
    let processes = Processes::new(Settings { exe, ..settings() });
    let error = render(&processes, "a", GREETS, json!({"name": "a"})).await.unwrap_err();
    assert!(matches!(error, Error::NoRenderer(_)), "{error}");
}
