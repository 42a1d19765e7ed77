//! What it costs to render a chat in a process of its own: the median of many renderings, there and in
//! this process, and what such a process has in memory.
//!
//! `cargo bench -p roundhouse --bench templates`

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a measurement that says what it saw")]

use std::path::PathBuf;
use std::time::{Duration, Instant};

use roundhouse::templates::{Processes, Settings};
use roundhouse_serving::{InProcess, Renderer, Rendering, TemplateSources};
use roundhouse_types::{Bytes, ModelId};
use serde_json::{Map, Value, json};

/// ChatML, as many families have it.
const TEMPLATE: &str = "{%- for message in messages -%}\
    {{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}\
    {%- endfor -%}\
    {%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}";
const TIMES: usize = 2000;

fn model() -> ModelId {
    ModelId { endpoint: "default".parse().unwrap(), target: "chat".parse().unwrap() }
}

fn chat(messages: usize, bytes: usize) -> Map<String, Value> {
    let role = |number: usize| if number.is_multiple_of(2) { "user" } else { "assistant" };
    let text = "Some words of a chat, as they are. ".repeat(bytes.div_ceil(35));
    let messages = (0..messages).map(|it| json!({"role": role(it), "content": text[..bytes]}));
    let messages: Vec<Value> = messages.collect();
    let Value::Object(context) = json!({
        "bos_token": "<s>", "eos_token": "</s>", "add_generation_prompt": true, "documents": null,
        "messages": messages, "tools": null,
    }) else {
        panic!("it is an object")
    };
    context
}

fn median(
    renderer: &dyn Renderer,
    sources: &TemplateSources,
    context: &Map<String, Value>,
) -> Duration {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let mut times: Vec<Duration> = (0..TIMES)
        .map(|_| {
            let context = context.clone();
            let began = Instant::now();
            let render = runtime.block_on(renderer.turn(&model(), None));
            let text = render(Rendering { sources, name: "default", context }).unwrap();
            assert!(text.ends_with("assistant\n"));
            began.elapsed()
        })
        .collect();
    times.sort();
    times[TIMES / 2]
}

fn main() {
    let exe = PathBuf::from(env!("CARGO_BIN_EXE_roundhouse"));
    let apart = Processes::new(Settings { exe, ..Settings::new(Bytes::mib(256)) });
    let here = InProcess::default();
    let sources = TemplateSources::new([("default".to_owned(), TEMPLATE.to_owned())].into());
    let began = Instant::now();
    first(&apart, &sources);
    println!("the first, with its process's start: {:?}", began.elapsed());
    for (name, messages, bytes) in [("20 messages of 100 B", 20, 100), ("100 of 1 KiB", 100, 1024)]
    {
        let context = chat(messages, bytes);
        let (here, apart) = (median(&here, &sources, &context), median(&apart, &sources, &context));
        let added = apart.saturating_sub(here);
        println!("{name}: {here:?} here, {apart:?} apart, {added:?} added (medians of {TIMES})");
    }
    for child in std::fs::read_dir("/proc").unwrap().flatten() {
        let line = std::fs::read_to_string(child.path().join("cmdline")).unwrap_or_default();
        if !line.contains(roundhouse::templates::SUBCOMMAND) {
            continue;
        }
        let memory = std::fs::read_to_string(child.path().join("smaps_rollup")).unwrap_or_default();
        let of =
            |key: &str| memory.lines().find(|line| line.starts_with(key)).unwrap_or("").to_owned();
        println!("a process: {}; {}", of("Pss:"), of("Pss_Anon:"));
    }
}

fn first(renderer: &dyn Renderer, sources: &TemplateSources) {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let render = runtime.block_on(renderer.turn(&model(), None));
    render(Rendering { sources, name: "default", context: chat(1, 10) }).unwrap();
}
