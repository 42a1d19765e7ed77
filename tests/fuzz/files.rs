//! What lies in stores and folders: archives, weights, tokenizers, templates, settings, logs.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use flate2::Compression;
use flate2::write::GzEncoder;
use roundhouse::cli::{ServeFlags, others};
use roundhouse::config::Config;
use roundhouse_models::{
    Asked, Files, LoadSettings, gguf_bytes, gguf_text, header_bytes, inspect, property_pairs,
    wanted, wanted_gguf,
};
use roundhouse_serving::{InProcess, Opening, TextCodec};
use roundhouse_store::skim;
use serde_json::{Map, json};
use tempfile::TempDir;

use crate::driver::Target;

/// Bytes of each file in an archive that are kept.
const HEAD: u64 = 64 << 10;
/// A tokenizer with a letter for each of some words.
const SMALL_TOKENIZER: &[u8] = include_bytes!("corpus/tokenizers/words.json");
const LLAMA: &[u8] = include_bytes!("llama.json");

/// A folder in memory, where the machine has one.
fn folder() -> TempDir {
    let memory = Path::new("/dev/shm");
    match memory.is_dir() {
        true => tempfile::tempdir_in(memory).unwrap(),
        false => tempfile::tempdir().unwrap(),
    }
}

fn told<E: std::error::Error>(error: &E) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{cause} {text}");
        source = cause.source();
    }
    text
}

/// The first byte says how the rest is packed: as it is under one of three names, or as the tar in
/// a gzip of ours.
pub(crate) fn archives() -> Target {
    let folder = folder();
    Box::new(move |input| {
        let (kind, rest) = input.split_first().unwrap_or((&0, &[]));
        let (name, packed) = match kind % 4 {
            0 => ("a.tar", rest.to_vec()),
            1 => ("a.tar.gz", rest.to_vec()),
            2 => ("a.tar.zst", rest.to_vec()),
            _ => {
                let mut gzip = GzEncoder::new(Vec::new(), Compression::fast());
                gzip.write_all(rest).unwrap();
                ("a.tar.gz", gzip.finish().unwrap())
            }
        };
        let path = folder.path().join(name);
        fs::write(&path, packed).unwrap();
        match skim(&path, &|_, size, _| size.min(HEAD)) {
            Err(error) => told(&error),
            Ok(found) => {
                for path in found.sizes.keys() {
                    let odd = |segment: &str| matches!(segment, "" | "." | "..");
                    assert!(!path.split('/').any(odd), "{path:?}");
                }
                "f".repeat(found.sizes.len().min(8))
            }
        }
    })
}

fn seen(files: &Files) -> String {
    match inspect(files, &LoadSettings::default()) {
        Ok(plan) => format!("{} {:?}", plan.architecture, plan.kind),
        Err(error) => told(&error),
    }
}

/// `config.json` in the first line, the JSON of a header below.
pub(crate) fn safetensors() -> Target {
    Box::new(|input| {
        let end = input.iter().position(|byte| *byte == b'\n').unwrap_or(input.len());
        let json = input.get(end + 1..).unwrap_or_default();
        let mut header = (json.len() as u64).to_le_bytes().to_vec();
        header.extend_from_slice(json);
        let name = "model.safetensors".to_owned();
        let mut files = Files::default();
        files.sizes.insert("config.json".to_owned(), end as u64);
        // Whatever the header claims may be there.
        files.sizes.insert(name.clone(), header.len() as u64 + (1 << 40));
        files.contents.insert("config.json".to_owned(), input[..end].to_vec());
        let asked = header_bytes(&name, &header);
        files.headers.insert(name.clone(), header.clone());
        let first = seen(&files);
        // As the file's length should be, where that can be told.
        files.sizes.insert(name, header.len() as u64);
        format!("{} {first} {}", wanted(&files.sizes).len().min(3) > 1, asked.is_ok())
            + &seen(&files)
    })
}

/// The beginning of a GGUF file.
pub(crate) fn gguf() -> Target {
    let folder = folder();
    Box::new(move |input| {
        let name = "m.gguf";
        let mut answers = String::new();
        for size in [input.len() as u64, input.len() as u64 + (1 << 40)] {
            match gguf_bytes(name, size, input) {
                Err(error) => answers += &told(&error),
                // Of a file that is too short, more than there is.
                Ok(bytes) => answers += if bytes <= size { "in " } else { "beyond " },
            }
            let mut files = Files::default();
            files.sizes.insert(name.to_owned(), size);
            files.headers.insert(name.to_owned(), input.to_vec());
            answers += &wanted_gguf(&files).map_or_else(|error| told(&error), |_| String::new());
            answers += &seen(&files);
        }
        fs::write(folder.path().join(name), input).unwrap();
        match gguf_text(folder.path(), name) {
            Ok(text) => answers + &"t".repeat(text.templates.len().min(3)),
            Err(error) => told(&error) + &answers,
        }
    })
}

/// A `tokenizer.json`, used on some texts.
pub(crate) fn tokenizers() -> Target {
    let folder = folder();
    Box::new(move |input| {
        fs::write(folder.path().join("tokenizer.json"), input).unwrap();
        let codec = match TextCodec::open(folder.path()) {
            Ok(codec) => codec,
            Err(error) => return told(&error),
        };
        let mut answers = String::from("read ");
        for text in
            ["", "hello world", "é\u{200d}\u{1f600}\0 <s></s>", "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"]
        {
            match codec.encode(text, true) {
                Ok(ids) => {
                    answers += match codec.decode(&ids) {
                        Ok(_) => "d",
                        Err(_) => "e",
                    }
                }
                Err(error) => answers += &told(&error),
            }
        }
        answers
    })
}

/// A chat template.
pub(crate) fn chat_templates() -> Target {
    let folder = folder();
    fs::write(folder.path().join("tokenizer.json"), SMALL_TOKENIZER).unwrap();
    let messages = [
        json!({"role": "system", "content": "be <brief>"}),
        json!({"role": "user", "content": "hello é"}),
        json!({"role": "assistant", "content": "hi", "tool_calls": [
            {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{\"a\":1}"}}]}),
    ];
    let tools = [json!({"type": "function", "function": {"name": "f", "parameters": {}}})];
    Box::new(move |input| {
        fs::write(folder.path().join("chat_template.jinja"), input).unwrap();
        let codec = match TextCodec::open(folder.path()) {
            Ok(codec) => codec,
            Err(error) => return told(&error),
        };
        let (kwargs, render) = (Map::new(), InProcess::default().render());
        match codec.render_chat(&messages, Some(&tools), (&kwargs, Opening::Answer), render) {
            Ok(text) => text.chars().take(64).collect(),
            Err(error) => told(&error),
        }
    })
}

/// A `serving.properties` beside a small model's configuration.
pub(crate) fn properties() -> Target {
    Box::new(|input| {
        let text = String::from_utf8_lossy(input);
        let mut asked = Asked::default();
        let taken =
            property_pairs(&text).iter().filter(|(key, value)| asked.take(key, value)).count();
        let mut files = Files::default();
        for (name, bytes) in [("serving.properties", input), ("config.json", LLAMA)] {
            files.sizes.insert(name.to_owned(), bytes.len() as u64);
            files.contents.insert(name.to_owned(), bytes.to_vec());
        }
        format!("{} {asked:?} {}", "t".repeat(taken.min(9)), seen(&files))
    })
}

fn written(folder: &TempDir, name: &str, input: &[u8]) -> PathBuf {
    let path = folder.path().join(name);
    fs::write(&path, input).unwrap();
    path
}

/// A trace for `simulate`: an access log or one of the CSV forms.
pub(crate) fn access_logs() -> Target {
    let folder = folder();
    Box::new(move |input| {
        let path = written(&folder, "access.log", input);
        match others::trace(&path) {
            Ok(requests) => "r".repeat(requests.min(9)),
            Err(error) => error.to_string().rsplit(':').next().unwrap_or_default().to_owned(),
        }
    })
}

/// The settings' file.
pub(crate) fn settings() -> Target {
    let folder = folder();
    Box::new(move |input| {
        let path = written(&folder, "roundhouse.toml", input);
        let none = |_: &str| None::<String>;
        match Config::load(Some(&path), &none, &ServeFlags::default()) {
            Ok(config) => format!("ok {}", "e".repeat(config.endpoints.len().min(5))),
            Err(faults) => {
                let faults: Vec<String> = faults.iter().map(ToString::to_string).collect();
                faults.join(" ")
            }
        }
    })
}
