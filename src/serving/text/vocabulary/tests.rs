//! Against llama.cpp, committed under `tests/references/gguf`; pieces were held against Hugging
//! Face's tokenizer of the same vocabulary as well.

use serde::Deserialize;
use serde_json::{Map, json};

use super::*;
use crate::Opening;

#[derive(Deserialize)]
struct References {
    pairs: Written,
    pieces: Written,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Written {
    model: String,
    tokens: Vec<String>,
    scores: Vec<f32>,
    kinds: Vec<u8>,
    merges: Vec<String>,
    special: BTreeMap<String, u32>,
}

#[derive(Deserialize)]
struct Case {
    vocabulary: String,
    pre: Option<String>,
    add_bos: Option<bool>,
    add_space_prefix: Option<bool>,
    texts: Vec<Text>,
}

#[derive(Deserialize)]
struct Text {
    text: String,
    ids: Vec<u32>,
    ids_with_special: Vec<u32>,
}

fn references() -> References {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/references/gguf/vocabularies.json");
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn vocabulary(written: &Written) -> Vocabulary {
    Vocabulary {
        model: written.model.clone(),
        tokens: written.tokens.clone(),
        scores: written.scores.clone(),
        kinds: written.kinds.clone(),
        merges: written.merges.clone(),
        special: written.special.clone(),
        ..Vocabulary::default()
    }
}

fn codec(references: &References, case: &Case) -> TextCodec {
    let written = if case.vocabulary == "pieces" { &references.pieces } else { &references.pairs };
    TextCodec::from_vocabulary(Vocabulary {
        pre: case.pre.clone(),
        add_bos: case.add_bos,
        add_space_prefix: case.add_space_prefix,
        ..vocabulary(written)
    })
    .unwrap()
}

#[test]
fn texts_have_llama_cpps_tokens() {
    let references = references();
    for case in &references.cases {
        let codec = codec(&references, case);
        for text in &case.texts {
            let shown = format!("{} {:?} {:?}", case.vocabulary, case.pre, text.text);
            assert_eq!(codec.encode(&text.text, false).unwrap(), text.ids, "{shown}");
            let with_special = codec.encode(&text.text, true).unwrap();
            assert_eq!(with_special, text.ids_with_special, "{shown}, with special tokens");
        }
    }
}

#[test]
fn tokens_read_as_the_text_they_were_made_of() {
    let references = references();
    for case in &references.cases {
        let codec = codec(&references, case);
        for text in case.texts.iter().filter(|text| !text.text.contains('<')) {
            let ids = codec.encode(&text.text, true).unwrap();
            // A second space in front is a piece's own; the first is the one that was put there.
            assert_eq!(
                codec.decode(&ids).unwrap(),
                text.text,
                "{} {:?}",
                case.vocabulary,
                case.pre
            );
        }
    }
}

#[test]
fn special_tokens_are_silent_and_known_to_templates() {
    let references = references();
    let mut vocabulary = vocabulary(&references.pairs);
    vocabulary.pre = Some("llama-bpe".into());
    let template = "{{ bos_token }}{{ messages[0].content }}{{ eos_token }}";
    vocabulary.templates = [("default".to_owned(), template.to_owned())].into();
    let eos = vocabulary.special["eos"];
    let user = vocabulary.tokens.iter().position(|token| token == "<|user|>").unwrap() as u32;
    let codec = TextCodec::from_vocabulary(vocabulary).unwrap();
    assert_eq!(codec.eos_token(), Some(eos));
    assert!(codec.is_special(eos) && !codec.is_special(user));
    assert_eq!(codec.decode(&[eos, user]).unwrap(), "<|user|>");
    let messages = [json!({"role": "user", "content": "hello"})];
    let render = crate::InProcess::default().render();
    let asked = (&Map::new(), Opening::Answer);
    let chat = codec.render_chat(&messages, None, asked, render).unwrap();
    assert_eq!(chat, "<|begin_of_text|>hello<|end_of_text|>");
}

/// Against Hugging Face's tokenizers with the expressions of the models' own files.
#[test]
fn texts_are_cut_as_the_models_of_each_name_cut_them() {
    const SMAUG: &str = "smaug-bpe";
    const R1: &str = "deepseek-r1-qwen";
    let mut pairs = vocabulary(&references().pairs);
    // Pairs that are merged unless there is a cut between.
    for (first, second) in [("g", "D"), ("\u{10a}", "/")] {
        pairs.merges.push(format!("{first} {second}"));
        pairs.tokens.push(format!("{first}{second}"));
        pairs.kinds.push(1);
    }
    let codec = |pre: &str| {
        let pre = Some(pre.to_owned());
        TextCodec::from_vocabulary(Vocabulary { pre, ..pairs.clone() }).unwrap()
    };
    let cases: [(&str, &str, &[u32]); 14] = [
        (SMAUG, "parcels 234567", &[79, 334, 459, 220, 455, 456]),
        (SMAUG, "dogDog", &[67, 78, 465, 78, 70]),
        (SMAUG, "a;\n/b", &[64, 26, 198, 14, 65]),
        (SMAUG, "re\u{301} It'S", &[259, 136, 223, 299, 83, 6, 50]),
        ("dbrx", "parcels 234567", &[79, 334, 459, 220, 455, 456]),
        ("dbrx", "dogDog", &[67, 78, 465, 78, 70]),
        (R1, "parcels 234567", &[79, 334, 459, 220, 17, 18, 19, 20, 21, 22]),
        (R1, "dogDog", &[67, 78, 465, 78, 70]),
        (R1, "re\u{301} It'S", &[81, 294, 299, 83, 6, 50]),
        ("tekken", "parcels 234567", &[460, 220, 17, 18, 19, 20, 21, 22]),
        ("tekken", "dogDog", &[67, 78, 70, 35, 78, 70]),
        ("tekken", "a;\n/b", &[64, 26, 466, 65]),
        ("tekken", "r\u{c9}", &[81, 127, 231]),
        ("tekken", "re\u{301} It'S", &[259, 136, 223, 299, 83, 6, 50]),
    ];
    for (pre, text, ids) in cases {
        let codec = codec(pre);
        assert_eq!(codec.encode(text, false).unwrap(), ids, "{pre}: {text}");
        let begins = usize::from(pre == "tekken");
        assert_eq!(codec.encode(text, true).unwrap().len(), begins + ids.len(), "{pre}: {text}");
    }
    // The first of its alternatives gives back all of such a run, letter by letter.
    let run = codec("tekken").encode(&"\u{c9}".repeat(20_000), false).unwrap();
    assert_eq!(run.len(), 40_000);
}

#[test]
fn what_is_not_known_is_refused_by_name() {
    for (model, pre, expected) in [
        ("gpt2", Some("chatglm-bpe"), "'chatglm-bpe'"),
        ("bert", None, "'bert'"),
        ("t5", Some("default"), "'t5'"),
    ] {
        let error = Vocabulary::check(model, pre).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
    assert!(Vocabulary::check("llama", Some("anything")).is_ok());
}

#[test]
fn vocabularies_that_contradict_themselves_are_errors() {
    let references = references();
    let mut no_space = vocabulary(&references.pairs);
    no_space.merges[0] = "ab".into();
    let mut no_token = vocabulary(&references.pairs);
    no_token.merges[0] = "zz qq".into();
    let mut empty = vocabulary(&references.pieces);
    empty.tokens.clear();
    for broken in [no_space, no_token, empty] {
        assert!(matches!(TextCodec::from_vocabulary(broken), Err(Error::Vocabulary(_))));
    }
}

#[test]
fn pieces_that_would_be_put_together_in_endless_ways_are_refused() {
    let pieces = |lengths: &mut dyn Iterator<Item = usize>| Vocabulary {
        model: "llama".into(),
        tokens: lengths.map(|length| "a".repeat(length)).collect(),
        ..Vocabulary::default()
    };
    // As many as real vocabularies have of spaces are none too many.
    assert!(TextCodec::from_vocabulary(pieces(&mut (1..=100))).is_ok());
    for (broken, told) in [
        (pieces(&mut (1..=500)), "in more ways"),
        (pieces(&mut [1, 2, 1 << 20].into_iter()), "piece 2 has 1048576 bytes"),
    ] {
        let error = TextCodec::from_vocabulary(broken).unwrap_err().to_string();
        assert!(error.contains(told), "{error}");
    }
}

#[test]
fn more_control_tokens_than_can_be_looked_for_are_refused() {
    let tokens: Vec<String> = (0..120_000).map(|number| format!("<{number:08}>")).collect();
    let kinds = vec![CONTROL; tokens.len()];
    let broken = Vocabulary { model: "llama".into(), tokens, kinds, ..Vocabulary::default() };
    let error = TextCodec::from_vocabulary(broken).unwrap_err().to_string();
    assert!(error.contains("1200000 bytes"), "{error}");
}
