//! Structural tags.

use super::*;

/// Whether an answer may be `text`: `None` where a token of it may not come, else whether it may end
/// behind it.
fn takes(codec: &TextCodec, compiled: &Compiled, text: &str) -> Option<bool> {
    let mut follower = compiled.follower();
    for id in codec.encode(text, false).unwrap() {
        let allowed = follower.allowed().unwrap();
        if allowed.tokens[(id / 32) as usize] >> (id % 32) & 1 == 0 {
            return None;
        }
        if follower.accept(id).unwrap() == Progress::Complete {
            return Some(true);
        }
    }
    Some(follower.allowed().unwrap().may_end)
}

fn structural(codec: &TextCodec, tag: Value) -> Compiled {
    compile(codec, FormKind::StructuralTag(tag)).unwrap()
}

fn number(begin: &str, end: &str) -> Value {
    let content = json!({"type": "json_schema", "json_schema": {"type": "integer"}});
    json!({"type": "tag", "begin": begin, "content": content, "end": end})
}

#[test]
fn text_is_free_until_a_trigger_and_then_one_of_its_tags() {
    let codec = reference();
    let schema = json!({"type": "object", "properties": {"a": {"type": "integer"}},
        "required": ["a"], "additionalProperties": false});
    let older = json!({"type": "structural_tag", "triggers": ["<f=", "[["], "structures": [
        {"begin": "<f=one>", "schema": schema, "end": "</f>"},
        {"begin": "<f=two>", "schema": schema.to_string(), "end": "</f>"},
        {"begin": "[[", "schema": {"type": "integer"}, "end": "]]"},
    ]});
    let tag = |begin: &str, end: &str, schema: &Value| json!({"begin": begin, "content": {"type": "json_schema", "json_schema": schema}, "end": end});
    let today = json!({"format": {"type": "triggered_tags", "triggers": ["<f=", "[["], "tags": [
        tag("<f=one>", "</f>", &schema), tag("<f=two>", "</f>", &schema),
        tag("[[", "]]", &json!({"type": "integer"})),
    ]}});
    for tag in [older, today] {
        let compiled = structural(&codec, tag);
        for (text, ends) in [
            ("", Some(true)),
            ("what is < f?\n", Some(true)),
            ("so <f", Some(true)),
            ("so <f=", Some(false)),
            ("so <f=one>{\"a\":1}</f>", Some(true)),
            ("<f=two>{\"a\":1}</f> and [[12]][[3]] done", Some(true)),
            ("so <f=three>", None),
            ("so <f=one>{\"b\"", None),
            ("so [[x", None),
        ] {
            assert_eq!(takes(&codec, &compiled, text), ends, "{text}");
        }
    }
}

#[test]
fn tags_may_be_demanded_and_the_first_may_be_the_last() {
    let codec = reference();
    let tags = json!([number("<a>", "</a>"), number("<b>", "</b>")]);
    let of = |least: bool, last: bool| {
        structural(
            &codec,
            json!({"format": {"type": "triggered_tags", "triggers": ["<"],
            "tags": tags, "at_least_one": least, "stop_after_first": last}}),
        )
    };
    for (least, last, text, ends) in [
        (true, false, "", Some(false)),
        (true, false, "so", None),
        (true, false, "<a>1</a> so <b>2</b>", Some(true)),
        (true, true, "<b>1</b>", Some(true)),
        (false, true, "so <b>1</b>", Some(true)),
        (false, true, "so", Some(true)),
    ] {
        assert_eq!(takes(&codec, &of(least, last), text), ends, "{least} {last} {text}");
    }
    let separated = |least: bool| {
        structural(
            &codec,
            json!({"format": {"type": "tags_with_separator", "separator": ", ",
            "tags": tags, "at_least_one": least}}),
        )
    };
    for (least, text, ends) in [
        (false, "", Some(true)),
        (true, "", Some(false)),
        (true, "<a>1</a>, <b>2</b>", Some(true)),
        (true, "<a>1</a>,", Some(false)),
        (true, "<a>1</a><", None),
    ] {
        assert_eq!(takes(&codec, &separated(least), text), ends, "{least} {text}");
    }
}

#[test]
fn what_is_thought_ends_with_its_tag_and_what_follows_has_its_own_form() {
    let codec = reference();
    let compiled = structural(
        &codec,
        json!({"type": "structural_tag", "format": {
        "type": "sequence", "elements": [
            {"type": "tag", "begin": "<think>", "content": {"type": "any_text", "excludes": ["<b>"]},
                "end": "</think>"},
            {"type": "or", "elements": [
                {"type": "regex", "pattern": "[a-z]+"},
                {"type": "grammar", "grammar": "root ::= \"X\" [0-9]+"},
            ]},
            {"type": "const_string", "value": "end"},
            {"type": "triggered_tags", "triggers": ["<a>"], "tags": [number("<a>", "</a>")]},
        ]}}),
    );
    for (text, ends) in [
        ("<think>\nx < y</think>abcend", Some(true)),
        ("<think></think>X12end", Some(true)),
        ("<think></think>endend so <a>1</a>", Some(true)),
        ("so", None),
        ("<think>so <b>", None),
        ("<think></think>A", None),
        ("<think></think>X12", Some(false)),
    ] {
        assert_eq!(takes(&codec, &compiled, text), ends, "{text}");
    }
}

#[test]
fn names_of_special_tokens_stand_for_the_tokens() {
    let codec = reference();
    let (name, _) = codec.special_tokens().remove(0);
    let compiled = structural(
        &codec,
        json!({"triggers": [name], "structures": [
            {"begin": format!("{name}x"), "schema": {"type": "integer"}, "end": name},
        ]}),
    );
    assert_eq!(takes(&codec, &compiled, &format!("so {name}x12{name} so")), Some(true));
    assert_eq!(takes(&codec, &compiled, &format!("so {name}12")), None);
    let thought =
        json!({"type": "tag", "begin": "<", "content": {"type": "any_text"}, "end": name});
    let compiled = structural(&codec, json!({"format": thought}));
    assert_eq!(takes(&codec, &compiled, &format!("<so{name}")), Some(true));
    assert_eq!(takes(&codec, &compiled, "<so"), Some(false));
}

#[test]
fn what_a_structural_tag_has_wrong_is_named_by_its_place() {
    let any = json!({"type": "any_text"});
    let mut deep = any.clone();
    for _ in 0..100 {
        deep = json!({"type": "or", "elements": [deep]});
    }
    let triggered = |trigger: &str, begin: &str| json!({"type": "triggered_tags", "triggers": [trigger], "tags": [number(begin, "e")]});
    for (tag, place) in [
        (json!({}), "response_format: a structural tag has"),
        (json!({"format": 1}), "response_format.format: "),
        (json!({"format": {"type": "qwen_xml_parameter"}}), "response_format.format.type: 'qwen"),
        (json!({"format": {"type": "regex", "pattern": "("}}), ""),
        (json!({"format": {"type": "regex"}}), "response_format.format.pattern: "),
        (json!({"format": {"type": "or", "elements": []}}), "response_format.format.elements: "),
        (
            json!({"format": {"type": "sequence", "elements": [any, {"type": "regex", "pattern": "a"}]}}),
            "response_format.format.elements[0]: what takes any text",
        ),
        (json!({"format": triggered("<a", "<b")}), "response_format.format.tags[0].begin: "),
        (json!({"format": triggered("", "<b")}), "response_format.format.triggers: "),
        (
            json!({"triggers": ["<"], "structures": [{"begin": "a"}]}),
            "response_format.structures[0].",
        ),
        (json!({"triggers": [], "structures": [{}]}), "response_format.triggers: "),
        (
            json!({"format": {"type": "json_schema", "json_schema": 5}}),
            "response_format.format.json_schema: ",
        ),
        (
            json!({"format": {"type": "grammar", "grammar": "start: %json {}"}}),
            "response_format.format",
        ),
        (json!({"format": deep}), "response_format.format.elements[0]"),
        (
            json!({"format": {"type": "any_text", "excludes": [""]}}),
            "response_format.format.excludes: no text",
        ),
        (
            json!({"format": {"type": "const_string", "value": "x".repeat(9000)}}),
            "response_format.for",
        ),
    ] {
        let refused = refusal(FormKind::StructuralTag(tag.clone()));
        assert!(refused.starts_with(place), "{tag}: {refused}");
    }
}

#[test]
fn what_multiplies_is_refused_before_it_is_written_out() {
    let long = |letter: &str| json!({"type": "const_string", "value": letter.repeat(8000)});
    let schema =
        json!({"type": "json_schema", "json_schema": {"enum": vec!["x".repeat(7000); 20]}});
    let ends: Vec<String> = (0..30).map(|at| format!("e{at}")).collect();
    let tag =
        |content: &Value| json!({"type": "tag", "begin": "b", "content": content, "end": ends});
    let any = json!({"type": "any_text"});
    let mut nested = json!({"type": "or", "elements": vec![any; 900]});
    for _ in 0..15 {
        nested = json!({"type": "sequence", "elements": [nested, long("x")]});
    }
    for format in [tag(&tag(&schema)), nested] {
        let refused = refusal(FormKind::StructuralTag(json!({"format": format})));
        assert!(refused.contains("too long a grammar"), "{refused}");
    }
}
