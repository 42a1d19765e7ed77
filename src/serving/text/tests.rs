use std::path::Path;
use std::sync::LazyLock;

use proptest::prelude::*;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use tempfile::TempDir;

use super::template::ChatTemplates;
use super::*;
use crate::InProcess;

const REFERENCES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/references/bpe");

#[derive(Deserialize)]
struct Expected {
    encode: Vec<Encoded>,
    decode: Vec<Decoded>,
    templates: Vec<Template>,
}

#[derive(Deserialize)]
struct Encoded {
    text: String,
    ids: Vec<u32>,
    ids_with_special: Vec<u32>,
}

#[derive(Deserialize)]
struct Decoded {
    ids: Vec<u32>,
    prefixes_skip_special: Vec<String>,
}

#[derive(Deserialize)]
struct Template {
    name: String,
    template: String,
    bos_token: String,
    eos_token: String,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    messages_name: String,
    messages: Vec<Value>,
    add_generation_prompt: bool,
    tools: Option<Vec<Value>>,
    rendered: Option<String>,
    error: Option<String>,
}

fn expected() -> Expected {
    let text = std::fs::read_to_string(Path::new(REFERENCES).join("expected.json")).unwrap();
    serde_json::from_str(&text).unwrap()
}

pub(crate) fn reference() -> TextCodec {
    static CODEC: LazyLock<TextCodec> =
        LazyLock::new(|| TextCodec::open(Path::new(REFERENCES)).unwrap());
    CODEC.clone()
}

/// A folder with these files, opened.
fn artefact(files: &[(&str, Value)]) -> (TempDir, Result<TextCodec, Error>) {
    let dir = tempfile::tempdir().unwrap();
    for (name, value) in files {
        let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        std::fs::write(dir.path().join(name), text).unwrap();
    }
    let codec = TextCodec::open(dir.path());
    (dir, codec)
}

/// A SentencePiece-like vocabulary: words, all bytes, and the decoder that Llama 2 ships.
pub(crate) fn sentencepiece() -> TextCodec {
    let mut vocab = Map::new();
    for piece in ["<unk>", "</s>", "▁a", "▁b", "▁", "c", "�"] {
        vocab.insert(piece.to_owned(), json!(vocab.len()));
    }
    for byte in 0..=255u8 {
        vocab.insert(format!("<0x{byte:02X}>"), json!(vocab.len()));
    }
    let mut tokenizer = json!({
        "version": "1.0",
        "added_tokens": [{"id": 1, "content": "</s>", "single_word": false, "lstrip": false,
            "rstrip": false, "normalized": false, "special": true}],
        "normalizer": {"type": "Sequence", "normalizers": [
            {"type": "Prepend", "prepend": "▁"},
            {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]},
        "decoder": {"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
            {"type": "ByteFallback"}, {"type": "Fuse"},
            {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
        "model": {"type": "BPE", "unk_token": "<unk>", "byte_fallback": true,
            "vocab": vocab, "merges": [["▁", "a"], ["▁", "b"]]},
    });
    // Merges need their parts in the vocabulary.
    for letter in ["a", "b"] {
        let next = tokenizer["model"]["vocab"].as_object().unwrap().len();
        tokenizer["model"]["vocab"][letter] = json!(next);
    }
    artefact(&[("tokenizer.json", tokenizer)]).1.unwrap()
}

pub(crate) fn byte(value: u8) -> u32 {
    7 + u32::from(value)
}

/// A BERT-like tokenizer with `truncation` and `padding` as `stored`.
fn wordpiece(stored: Value) -> Value {
    let words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "we", "play", "##ing", "##s", ".", "'", "a"];
    let vocab: Map<String, Value> =
        words.iter().enumerate().map(|(id, word)| ((*word).to_owned(), json!(id))).collect();
    let special = |id: usize, content: &str| {
        json!({"id": id, "content": content, "single_word": false, "lstrip": false,
            "rstrip": false, "normalized": false, "special": true})
    };
    json!({
        "version": "1.0",
        "truncation": stored["truncation"], "padding": stored["padding"],
        "added_tokens": [special(0, "[PAD]"), special(1, "[UNK]"), special(2, "[CLS]"), special(3, "[SEP]")],
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": {"type": "BertProcessing", "sep": ["[SEP]", 3], "cls": ["[CLS]", 2]},
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": true},
        "model": {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100, "vocab": vocab},
    })
}

/// Pieces with the rest after every prefix must be the whole decode of that prefix.
fn pieces(codec: &TextCodec, ids: &[u32]) -> Vec<String> {
    let mut detokeniser = Detokeniser::after(codec.clone(), &[]).unwrap();
    let mut given = String::new();
    let mut texts = Vec::new();
    for (index, &id) in ids.iter().enumerate() {
        given.push_str(&detokeniser.push(id).unwrap());
        let mut again = Detokeniser::after(codec.clone(), &[]).unwrap();
        let mut prefix = String::new();
        for &id in &ids[..=index] {
            prefix.push_str(&again.push(id).unwrap());
        }
        assert_eq!(prefix, given);
        texts.push(prefix + &again.finish().unwrap());
    }
    texts
}

#[test]
fn texts_encode_as_in_the_references() {
    let codec = reference();
    for case in expected().encode {
        assert_eq!(codec.encode(&case.text, false).unwrap(), case.ids, "{:?}", case.text);
        assert_eq!(codec.encode(&case.text, true).unwrap(), case.ids_with_special);
    }
}

#[test]
fn pieces_of_every_prefix_are_its_whole_decode() {
    let codec = reference();
    for case in expected().decode {
        assert_eq!(pieces(&codec, &case.ids), case.prefixes_skip_special);
    }
}

#[test]
fn templates_render_as_in_the_references() {
    for template in expected().templates {
        let templates = ChatTemplates::new(
            [("default".to_owned(), template.template)].into(),
            [
                ("bos_token".to_owned(), template.bos_token),
                ("eos_token".to_owned(), template.eos_token),
            ]
            .into(),
        );
        for case in template.cases {
            let name = format!("{} {}", template.name, case.messages_name);
            let kwargs: Map<String, Value> =
                [("add_generation_prompt".to_owned(), json!(case.add_generation_prompt))]
                    .into_iter()
                    .collect();
            let tools = case.tools.as_deref();
            let asked = (&kwargs, Opening::Answer);
            let rendered = templates.render(&case.messages, tools, asked, here());
            match (rendered, case.rendered, case.error) {
                (Ok(text), Some(expected), None) => assert_eq!(text, expected, "{name}"),
                (Err(error), None, Some(message)) => {
                    assert!(error.to_string().contains(&message), "{name}: {error}");
                }
                (got, expected, error) => panic!("{name}: {got:?} {expected:?} {error:?}"),
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn random_byte_level_tokens_are_never_split_or_lost(
        ids in prop::collection::vec(0u32..540, 0..40),
    ) {
        let codec = reference();
        let texts = pieces(&codec, &ids);
        for (index, text) in texts.iter().enumerate() {
            prop_assert_eq!(text, &codec.decode(&ids[..=index]).unwrap());
        }
    }

    #[test]
    fn sentencepiece_texts_with_byte_tokens_come_out_whole(
        text in "[ab c�🚂é東]{0,12}",
    ) {
        let codec = sentencepiece();
        let ids = codec.encode(&text, false).unwrap();
        let texts = pieces(&codec, &ids);
        for (index, text) in texts.iter().enumerate() {
            // A run of bytes that breaks off is one replacement for each in `tokenizers`, ours
            // keeps the characters before.
            let whole = codec.decode(&ids[..=index]).unwrap();
            if !whole.contains('\u{FFFD}') {
                prop_assert_eq!(text, &whole);
            }
        }
        if let Some(last) = texts.last() {
            prop_assert_eq!(last, &text);
        }
    }

    #[test]
    fn wordpiece_texts_come_out_as_decoded(ids in prop::collection::vec(0u32..12, 0..12)) {
        let codec = artefact(&[("tokenizer.json", wordpiece(json!({})))]).1.unwrap();
        for (index, text) in pieces(&codec, &ids).iter().enumerate() {
            prop_assert_eq!(text, &codec.decode(&ids[..=index]).unwrap());
        }
    }
}

#[test]
fn a_character_of_several_tokens_comes_in_one_piece() {
    let codec = sentencepiece();
    let mut detokeniser = Detokeniser::after(codec, &[]).unwrap();
    let tokens = ["🚂", "é"].concat().into_bytes();
    let pieces: Vec<String> =
        tokens.iter().map(|&value| detokeniser.push(byte(value)).unwrap()).collect();
    assert_eq!(pieces, ["", "", "", "🚂", "", "é"]);
}

#[test]
fn invalid_bytes_do_not_hold_the_text_for_ever() {
    let codec = sentencepiece();
    let mut detokeniser = Detokeniser::after(codec, &[]).unwrap();
    let mut given = 0;
    for pushed in 1..200 {
        given += detokeniser.push(byte(0xFF)).unwrap().chars().count();
        assert!(pushed - given < CHARACTER_HELD_MAX, "{pushed} {given}");
    }
    assert_eq!(detokeniser.push(2).unwrap().chars().last(), Some('a'));
    assert!(!detokeniser.holds());
}

/// More than the bytes of an unfinished character.
const CHARACTER_HELD_MAX: usize = 4;

#[test]
fn valid_characters_before_an_invalid_byte_are_not_taken_back() {
    let codec = sentencepiece();
    let mut detokeniser = Detokeniser::after(codec, &[]).unwrap();
    let ids = [byte(0xC3), byte(0xA9), byte(0xC3), 2];
    let given: String = ids.iter().map(|&id| detokeniser.push(id).unwrap()).collect();
    assert_eq!(given, "é\u{FFFD} a");
}

#[test]
fn a_completion_keeps_the_space_behind_its_prompt() {
    let codec = sentencepiece();
    let prompt = codec.encode("a", false).unwrap();
    let mut completion = Detokeniser::after(codec.clone(), &prompt).unwrap();
    assert_eq!(completion.push(3).unwrap(), " b");
    let mut alone = Detokeniser::after(codec.clone(), &[]).unwrap();
    assert_eq!(alone.push(3).unwrap(), "b");
    assert_eq!(codec.token_text(3), " b");
    assert_eq!(codec.token_text(1), "</s>");
    assert_eq!(codec.token_text(9999), "");
}

#[test]
fn a_missing_tokenizer_is_told_with_what_was_found() {
    let (_dir, codec) = artefact(&[("config.json", json!({})), ("tokenizer.model", json!(""))]);
    let error = codec.unwrap_err();
    assert_eq!(error.kind(), roundhouse_types::ErrorKind::ModelInvalid);
    assert_eq!(
        error.to_string(),
        "tokenizer.json not found; files seen: config.json, tokenizer.model"
    );
}

#[test]
fn broken_files_are_told_by_name() {
    for file in ["tokenizer_config.json", "special_tokens_map.json", "sentence_bert_config.json"] {
        let (_dir, codec) =
            artefact(&[("tokenizer.json", wordpiece(json!({}))), (file, json!("{"))]);
        assert!(codec.unwrap_err().to_string().starts_with(file));
    }
    let (_dir, codec) = artefact(&[("tokenizer.json", json!("{\"model\": 1}"))]);
    assert_eq!(codec.unwrap_err().to_string(), "tokenizer.json is not valid");
}

#[test]
fn stored_truncation_and_padding_are_off_and_encoders_keep_their_closing_token() {
    let stored = json!({
        "truncation": {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0},
        "padding": {"strategy": {"Fixed": 16}, "direction": "Right", "pad_to_multiple_of": null,
            "pad_id": 0, "pad_type_id": 0, "pad_token": "[PAD]"},
    });
    let files = [
        ("tokenizer.json", wordpiece(stored)),
        ("sentence_bert_config.json", json!({"max_seq_length": 5, "do_lower_case": false})),
        ("tokenizer_config.json", json!({"model_max_length": 1e30})),
    ];
    let codec = artefact(&files).1.unwrap();
    assert_eq!(codec.encode("we we we we we", true).unwrap(), [2, 4, 4, 4, 4, 4, 3]);
    let encoder = codec.clone().truncated_to(512).unwrap();
    assert_eq!(encoder.encode("we play we we we", true).unwrap(), [2, 4, 5, 4, 3]);
    assert_eq!(encoder.encode("we", true).unwrap(), [2, 4, 3]);
    let short = codec.clone().truncated_to(3).unwrap();
    assert_eq!(short.encode("we play", true).unwrap(), [2, 4, 3]);
    let error = codec.truncated_to(2).unwrap_err();
    assert!(matches!(error, Error::Truncation { limit: 2, special: 2 }));
}

#[test]
fn a_template_file_beats_the_configuration_and_tools_have_their_own() {
    let named = json!({"eos_token": {"content": "[SEP]"}, "chat_template": [
        {"name": "default", "template": "config"},
        {"name": "tool_use", "template": "{{ tools | length }} tools, {{ eos_token }}"}]});
    let tokenizer = wordpiece(json!({}));
    let files = [
        ("tokenizer.json", tokenizer),
        ("tokenizer_config.json", named),
        ("chat_template.jinja", json!("file\n")),
    ];
    let codec = artefact(&files).1.unwrap();
    let messages = [json!({"role": "user", "content": "x"})];
    assert_eq!(codec.eos_token(), Some(3));
    let (none, asked) = (Map::new(), Opening::Answer);
    let rendered = codec.render_chat(&messages, None, (&none, asked), here());
    assert_eq!(rendered.unwrap(), "file");
    let tools = [json!({})];
    let with_tools = codec.render_chat(&messages, Some(&tools), (&none, asked), here());
    assert_eq!(with_tools.unwrap(), "1 tools, [SEP]");
    let without = artefact(&files[..1]).1.unwrap();
    assert!(!without.has_chat_template());
    let error = without.render_chat(&messages, None, (&none, asked), here()).unwrap_err();
    assert!(matches!(error, Error::NoTemplate));
}

/// Templates render in the process of the tests.
fn here() -> Render {
    InProcess::default().render()
}

fn render(template: &str, messages: &[Value]) -> Result<String, Error> {
    opened(template, messages, Opening::Answer)
}

fn opened(template: &str, messages: &[Value], opening: Opening) -> Result<String, Error> {
    let templates =
        ChatTemplates::new([("default".to_owned(), template.to_owned())].into(), [].into());
    templates.render(messages, None, (&Map::new(), opening), here())
}

#[test]
fn a_prompt_ends_open_for_an_answer_closed_or_inside_the_last_message() {
    let of = |content: &str| {
        format!(
            "{{% for m in messages %}}<{{{{ m.role }}}}>{{{{ {content} }}}}</>{{% endfor %}}\
             {{% if add_generation_prompt %}}<assistant>{{% endif %}}"
        )
    };
    let messages = |last: Value| {
        [json!({"role": "user", "content": "hi"}), json!({"role": "assistant", "content": last})]
    };
    let said = messages(json!("so the "));
    for (content, opening, prompt) in [
        ("m.content", Opening::Answer, "<user>hi</><assistant>so the </><assistant>"),
        ("m.content", Opening::Closed, "<user>hi</><assistant>so the </>"),
        ("m.content", Opening::Message, "<user>hi</><assistant>so the "),
        // A template that cuts white space off cuts this off, too.
        ("m.content | trim", Opening::Message, "<user>hi</><assistant>so the"),
    ] {
        assert_eq!(opened(&of(content), &said, opening).unwrap(), prompt, "{content}");
    }
    let parts = messages(json!([{"type": "text", "text": "so "}]));
    let looped = "{% for m in messages %}{% for part in m.content %}[{{ part.text }}]{% endfor %}{% endfor %}";
    assert_eq!(opened(looped, &parts, Opening::Message).unwrap(), "[hi][so ");
    for (template, messages) in [("nothing of it", said), (looped, messages(json!([])))] {
        let refused = opened(template, &messages, Opening::Message).unwrap_err().to_string();
        assert!(refused.starts_with("continue_final_message: "), "{refused}");
    }
}

#[test]
fn a_hostile_template_is_stopped_and_a_broken_one_told_with_its_line() {
    let messages = [json!({"role": "user", "content": "x"})];
    let endless = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}";
    let error = render(endless, &messages).unwrap_err().to_string();
    assert!(error.contains("steps"), "{error}");

    let long = "{% for a in range(1000) %}{{ 'x' * 100000 }}{% endfor %}";
    assert!(matches!(render(long, &messages), Err(Error::TemplateOutput(_))));

    for cut in ["{%}", "{%", "{%%}", "{%-%}{%}%}"] {
        assert!(render(cut, &messages).is_err(), "{cut}");
    }

    for (template, start) in [
        ("a\n{% for %}", "chat template, line 2: "),
        ("a\n\n{{ raise_exception('no system role') }}", "chat template, line 3: no system role"),
        ("{{ messages[0].nothing.deeper }}", "chat template, line 1: "),
    ] {
        let error = render(template, &messages).unwrap_err();
        assert_eq!(error.kind(), roundhouse_types::ErrorKind::InvalidInput);
        assert!(error.to_string().starts_with(start), "{error}");
    }
}

#[test]
fn templates_see_what_transformers_gives_them() {
    let messages = [json!({"role": "user", "content": "<é & 'q'>", "z": 1, "a": [1.5, true]})];
    for (template, text) in [
        (
            "{{ messages[0] | tojson }}",
            r#"{"role": "user", "content": "<é & 'q'>", "z": 1, "a": [1.5, true]}"#,
        ),
        ("{{ messages[0].a | tojson(indent=2) }}", "[\n  1.5,\n  true\n]"),
        (
            "{{ {'b': 'é🚂', 'a': 1} | tojson(sort_keys=true, ensure_ascii=true, separators=(',', ':')) }}",
            r#"{"a":1,"b":"\u00e9\ud83d\ude82"}"#,
        ),
        ("{{ messages[0].a }} {{ none }} {{ nothing }}", "[1.5, True] None "),
        (
            "{% if tools is none and documents is none %}{{ add_generation_prompt }}{% endif %}",
            "True",
        ),
    ] {
        assert_eq!(render(template, &messages).unwrap(), text, "{template}");
    }
    let tagged = "{% for m in messages %}\n  {%- generation %}{{ m.role }}{%- endgeneration -%}\n{% endfor %}";
    assert_eq!(render(tagged, &messages).unwrap(), "user");
    let year = render("{{ strftime_now('%Y') }}", &messages).unwrap();
    assert!(year.parse::<u32>().unwrap() >= 2026);
}

#[test]
fn an_adapter_holds_no_texts_that_are_its_bases() {
    // Not the one that other tests hold as well.
    let base = Arc::new(TextCodec::open(Path::new(REFERENCES)).unwrap());
    let vocabulary = base.tokenizer.get_vocab_size(true) + 1;
    let own = |files: &[(&str, Vec<u8>)]| {
        let folder = TempDir::new().unwrap();
        for (name, bytes) in files {
            std::fs::write(folder.path().join(name), bytes).unwrap();
        }
        base.of_adapter(folder.path(), vocabulary, None).unwrap()
    };
    let tokenizer = std::fs::read(Path::new(REFERENCES).join("tokenizer.json")).unwrap();
    for files in [&[][..], &[("tokenizer.json", tokenizer.clone())]] {
        let text = own(files);
        assert!(!text.is_own() && Arc::ptr_eq(&text.on(&base), &base));
    }
    let template = ("chat_template.jinja", b"mine: {{ messages[0].content }}".to_vec());
    let text = own(&[template, ("tokenizer.json", tokenizer.clone())]);
    assert!(text.is_own());
    assert_eq!(Arc::strong_count(&base.tokenizer), 1, "its base's tokenizer would stay for it");
    let codec = text.on(&base);
    assert!(Arc::ptr_eq(&codec.tokenizer, &base.tokenizer), "the tokenizer is held twice");
    let said = json!({"role": "user", "content": "hi"});
    let asked = (&Map::new(), Opening::Answer);
    assert_eq!(codec.render_chat(&[said], None, asked, here()).unwrap(), "mine: hi");
    // Another file with the same tokens is a tokenizer of its own.
    let mut spaced = tokenizer;
    spaced.push(b' ');
    let codec = own(&[("tokenizer.json", spaced.clone())]).on(&base);
    assert!(!Arc::ptr_eq(&codec.tokenizer, &base.tokenizer));
    assert_eq!(codec.encode("some text", true).unwrap(), base.encode("some text", true).unwrap());
    let folder = TempDir::new().unwrap();
    std::fs::write(folder.path().join("tokenizer.json"), spaced).unwrap();
    let refused = base.of_adapter(folder.path(), 8, None).unwrap_err();
    assert!(matches!(refused, Error::Tokens { vocabulary: 8, .. }), "{refused}");
}
