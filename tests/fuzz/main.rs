//! Hostile bytes for everything that reads what strangers write.
//!
//! Reading order: this file (what is fuzzed), `driver` (how long, with what, what counts as a
//! finding), `mutate` (the next input out of earlier ones), `memory` (what an input makes us take),
//! `wire` and `files` (the targets).
//!
//! Each target has a second in the ordinary tests. More: `FUZZ_SECONDS=120 cargo test --test fuzz
//! json_bodies -- --nocapture`. Seeds are in `corpus/`, one folder for each target; an input that
//! was a finding and is mended stays there. Inputs are drawn from a seed that is printed
//! (`FUZZ_SEED`).

#![allow(clippy::unwrap_used, reason = "a test that cannot set its stage has failed")]
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "how far it came is what it is for")]

mod driver;
mod files;
mod memory;
mod mutate;
mod wire;

use driver::drive;

#[test]
fn target_names() {
    drive("target_names", &mut wire::names());
}

#[test]
fn headers() {
    drive("headers", &mut wire::whole_requests());
}

#[test]
fn credentials() {
    drive("credentials", &mut wire::credentials());
}

#[test]
fn json_bodies() {
    drive("json_bodies", &mut wire::json_bodies());
}

#[test]
fn event_streams() {
    drive("event_streams", &mut wire::event_streams());
}

#[test]
fn archives() {
    drive("archives", &mut files::archives());
}

#[test]
fn safetensors() {
    drive("safetensors", &mut files::safetensors());
}

#[test]
fn gguf() {
    drive("gguf", &mut files::gguf());
}

#[test]
fn tokenizers() {
    drive("tokenizers", &mut files::tokenizers());
}

#[test]
fn chat_templates() {
    drive("chat_templates", &mut files::chat_templates());
}

#[test]
fn properties() {
    drive("properties", &mut files::properties());
}

#[test]
fn access_logs() {
    drive("access_logs", &mut files::access_logs());
}

#[test]
fn settings() {
    drive("settings", &mut files::settings());
}
