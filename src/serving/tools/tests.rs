use proptest::prelude::*;
use roundhouse_engine::{Constraint, Progress};
use serde_json::{Value, json};

use super::reader::Said;
use super::*;
use crate::TextCodec;
use crate::text::tests::reference;

const ALL: [CallFormat; 5] = [
    CallFormat::Hermes,
    CallFormat::Llama,
    CallFormat::MistralList,
    CallFormat::MistralArguments,
    CallFormat::Plain,
];

fn reader(format: CallFormat) -> CallReader {
    reader_of(format, false)
}

fn reader_of(format: CallFormat, single: bool) -> CallReader {
    CallReader::new(format, vec!["look".into(), "add".into()], single)
}

/// All that is made of an answer that comes in these pieces.
fn read<'a>(format: CallFormat, pieces: impl IntoIterator<Item = &'a str>) -> Said {
    read_by(reader(format), pieces)
}

/// The same by this reader; what follows the only call is not waited for.
fn read_by<'a>(mut reader: CallReader, pieces: impl IntoIterator<Item = &'a str>) -> Said {
    let mut all = Said::default();
    let mut add = |said: Said| {
        all.text.push_str(&said.text);
        all.calls.extend(said.calls);
    };
    for piece in pieces {
        add(reader.push(piece));
        if reader.is_done() {
            break;
        }
    }
    add(reader.finish(false));
    all
}

fn calls(said: &Said) -> Vec<(&str, Value)> {
    said.calls
        .iter()
        .map(|call| (call.name.as_str(), serde_json::from_str(&call.arguments).unwrap()))
        .collect()
}

#[test]
fn calls_are_found_in_every_way_of_writing_them() {
    let two = vec![("look", json!({"at": "{]}"})), ("add", json!({"a": 1, "b": [2]}))];
    let cases = [
        (
            CallFormat::Hermes,
            "Let me see.\n<tool_call>\n{\"name\": \"look\", \"arguments\": {\"at\": \"{]}\"}}\n</tool_call>\n<tool_call>{\"name\": \"add\", \"arguments\": \"{\\\"a\\\": 1, \\\"b\\\": [2]}\"}</tool_call>\n",
            "Let me see.",
        ),
        (
            CallFormat::Llama,
            "<|python_tag|>{\"name\": \"look\", \"parameters\": {\"at\": \"{]}\"}}; {\"name\": \"add\", \"parameters\": {\"a\": 1, \"b\": [2]}}",
            "",
        ),
        (
            CallFormat::MistralList,
            "[TOOL_CALLS] [{\"name\": \"look\", \"arguments\": {\"at\": \"{]}\"}}, {\"name\": \"add\", \"arguments\": {\"a\": 1, \"b\": [2]}}]",
            "",
        ),
        (
            CallFormat::MistralArguments,
            "Well.[TOOL_CALLS]look[ARGS]{\"at\": \"{]}\"}[TOOL_CALLS]add[ARGS]{\"a\": 1, \"b\": [2]}",
            "Well.",
        ),
        (
            CallFormat::Plain,
            "\n[{\"name\": \"look\", \"arguments\": {\"at\": \"{]}\"}}, {\"name\": \"add\", \"arguments\": {\"a\": 1, \"b\": [2]}}]",
            "",
        ),
    ];
    for (format, answer, text) in cases {
        let said = read(format, [answer]);
        assert_eq!((calls(&said), said.text.as_str()), (two.clone(), text), "{format:?}");
        let ids: Vec<&str> = said.calls.iter().map(|call| call.id.as_str()).collect();
        assert_ne!(ids[0], ids[1]);
        let letters = |id: &str| id.len() == 9 && id.bytes().all(|b| b.is_ascii_alphanumeric());
        let mistral = matches!(format, CallFormat::MistralList | CallFormat::MistralArguments);
        assert_eq!(letters(ids[0]), mistral, "{format:?}: {}", ids[0]);
        // However it is cut.
        let single: Vec<String> = answer.chars().map(String::from).collect();
        let cut = read(format, single.iter().map(String::as_str));
        assert_eq!((calls(&cut), cut.text.as_str()), (two.clone(), text), "{format:?}");
    }
}

#[test]
fn an_only_call_is_given_out_when_it_is_complete_and_what_follows_is_not_looked_at() {
    let at = r#"{"at": "{]} \"}"}"#;
    let cases = [
        (
            CallFormat::Hermes,
            "See.<tool_call>{\"name\": \"look\", \"arguments\": AT}</tool_call>",
            "See.",
        ),
        (CallFormat::Llama, "<|python_tag|>{\"name\": \"look\", \"parameters\": AT}", ""),
        (CallFormat::Llama, "<|python_tag|>[{\"name\": \"look\", \"parameters\": AT}", ""),
        (
            CallFormat::MistralList,
            "See.[TOOL_CALLS] [{\"name\": \"look\", \"arguments\": AT}",
            "See.",
        ),
        (CallFormat::MistralArguments, "[TOOL_CALLS]look[ARGS]AT", ""),
        (CallFormat::Plain, " {\"name\": \"look\", \"arguments\": AT}", ""),
    ];
    for (format, answer, text) in cases {
        let answer = answer.replace("AT", at);
        for follows in
            ["", ", {\"name\": \"add\"", "; {}", "<tool_call>{\"name\": \"add\"}</tool_call>"]
        {
            let mut reader = reader_of(format, true);
            let mut all = Said::default();
            let (before, last) = answer.split_at(answer.len() - 1);
            for piece in before.split_inclusive(' ') {
                all.text.push_str(&reader.push(piece).text);
                assert!(!reader.is_done(), "{format:?}");
            }
            all.calls = reader.push(&format!("{last}{follows}")).calls;
            assert!(reader.is_done(), "{format:?}: {answer}");
            assert_eq!(reader.finish(false), Said::default(), "{format:?}");
            let want = ("look", json!({"at": "{]} \"}"}));
            assert_eq!((calls(&all), all.text.as_str()), (vec![want], text), "{format:?}");
        }
    }
    for (format, answer) in [
        (
            CallFormat::Llama,
            "{\"name\": \"other\", \"parameters\": {}} {\"name\": \"look\", \"parameters\": {}}",
        ),
        (CallFormat::Plain, "{\"answer\": 42}"),
        (CallFormat::MistralList, "[TOOL_CALLS] {{}}"),
    ] {
        let mut reader = CallReader::new(format, vec!["look".into()], true);
        let mut said: String = answer.split_inclusive(' ').map(|it| reader.push(it).text).collect();
        said.push_str(&reader.finish(false).text);
        assert_eq!((said.as_str(), reader.is_done()), (answer, false), "{format:?}");
    }
}

#[test]
fn what_is_no_call_stays_text() {
    let answers = [
        "No tools <tool_ here.",
        "<tool_call>\n{\"name\": 3}\n</tool_call>",
        "<tool_call>\n{\"name\": \"look\", \"argum",
        "{\"name\": \"look\"}",
        "{\"name\": \"other\", \"parameters\": {}}",
        "{\"answer\": 42}",
        "[1, 2]",
        "[TOOL_CALLS] [{\"nam",
        "  two\n\nlines \n",
        "",
    ];
    for format in ALL {
        for answer in answers {
            // What other families mark is text to all but them.
            let said =
                read(format, answer.char_indices().map(|(at, c)| &answer[at..at + c.len_utf8()]));
            assert_eq!((said.text.as_str(), said.calls.len()), (answer, 0), "{format:?}");
        }
    }
}

#[test]
fn text_goes_out_as_soon_as_it_cannot_begin_a_call() {
    let mut reader = reader(CallFormat::Hermes);
    assert_eq!(reader.push("one <tool").text, "one");
    assert!(reader.holds());
    assert_eq!(reader.push("bar").text, " <toolbar");
    assert!(!reader.holds());
    let mut reader = self::reader(CallFormat::Llama);
    assert_eq!(reader.push(" One").text, " One");
    assert_eq!(reader.push(" {").text, " {");
}

proptest! {
    #[test]
    fn nothing_is_lost_or_doubled_however_an_answer_is_cut(
        parts in prop::collection::vec(prop_oneof![
            Just("<tool_call>"), Just("</tool_call>"), Just("[TOOL_CALLS]"), Just("[ARGS]"),
            Just("{\"name\": \"look\", \"arguments\": {}}"), Just("look"), Just("{}"), Just("\n"),
            Just(" é"), Just("<|python_tag|>"), Just(";"), Just("<"), Just("["),
        ], 0..8),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..8),
        format in prop::sample::select(&ALL[..]),
        single in any::<bool>(),
    ) {
        let answer = parts.concat();
        let places: Vec<usize> = answer.char_indices().map(|(at, _)| at).chain([answer.len()]).collect();
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| places[cut.index(places.len())]).collect();
        cuts.extend([0, answer.len()]);
        cuts.sort_unstable();
        let pieces = cuts.windows(2).map(|pair| &answer[pair[0]..pair[1]]);
        let said = read_by(reader_of(format, single), pieces);
        let whole = read_by(reader_of(format, single), [answer.as_str()]);
        prop_assert_eq!(&said.text, &whole.text);
        prop_assert_eq!(calls(&said), calls(&whole));
        prop_assert!(!single || said.calls.len() < 2);
        if said.calls.is_empty() {
            prop_assert_eq!(said.text, answer);
        }
    }
}

#[test]
fn a_template_shows_how_calls_are_written() {
    for (template, format) in [
        ("{{ '<tool_call>\\n{\"name\": <function-name>' }}", Some(CallFormat::Hermes)),
        ("<tool_call>\\n<function=example>", None),
        ("{{ '[TOOL_CALLS] [' }}", Some(CallFormat::MistralList)),
        ("[TOOL_CALLS]{{ name }}[ARGS]{{ arguments }}", Some(CallFormat::MistralArguments)),
        ("{%- if tools %}<|python_tag|>{%- endif %}", Some(CallFormat::Llama)),
        ("\"parameters\": dictionary of argument name and its value", Some(CallFormat::Llama)),
        ("{{ message.content }}", None),
    ] {
        assert_eq!(CallFormat::of(template), format, "{template}");
    }
}

fn tools() -> Vec<Tool> {
    let place = json!({"type": "object", "properties": {"at": {"$ref": "#/$defs/place"}}, "required": ["at"],
        "additionalProperties": false, "$defs": {"place": {"enum": ["here", "there"]}}});
    let tools = [
        json!({"type": "function", "function": {"name": "look", "parameters": place}}),
        json!({"type": "function", "function": {"name": "stop"}}),
    ];
    described(&tools, ".function").unwrap()
}

/// The token that spells most of `wanted` among those allowed, again and again.
fn spells(codec: &TextCodec, constraint: &mut dyn Constraint, wanted: &str) -> bool {
    let mut rest = wanted;
    while !rest.is_empty() {
        let Ok(allowed) = constraint.allowed() else { return false };
        let ids = codec.encode(rest, false).unwrap();
        let first =
            (1..=rest.len()).rev().filter(|end| rest.is_char_boundary(*end)).find_map(|end| {
                match codec.encode(&rest[..end], false).unwrap().as_slice() {
                    [only] if allowed.tokens[(only / 32) as usize] >> (only % 32) & 1 == 1 => {
                        Some((*only, end))
                    }
                    _ => None,
                }
            });
        let Some((token, end)) = first else { return false };
        assert!(!ids.is_empty());
        rest = &rest[end..];
        if constraint.accept(token).unwrap() == Progress::Complete {
            return rest.is_empty();
        }
    }
    constraint.allowed().is_ok_and(|allowed| allowed.may_end)
}

fn demanded(
    format: CallFormat,
    choice: &ToolChoice,
    parallel: bool,
    otherwise: Option<&Value>,
    wanted: &str,
) -> bool {
    let codec = reference();
    let tools = tools();
    let demand = Demand { format, choice, tools: &tools, parallel, otherwise };
    let compiled =
        codec.speller().unwrap().compile(super::calls(&demand, &codec).unwrap(), None).unwrap();
    spells(&codec, &mut compiled.follower(), wanted)
}

#[test]
fn a_demanded_call_is_one_of_the_tools_with_arguments_of_its_schema() {
    let required = ToolChoice::Required;
    let hermes = |body: &str| format!("<tool_call>\n{body}\n</tool_call>");
    let look = "{\"name\": \"look\", \"arguments\": {\"at\": \"here\"}}";
    let stop = "{\"name\": \"stop\", \"arguments\": {}}";
    let allows = |choice: &ToolChoice, wanted: &str| {
        demanded(CallFormat::Hermes, choice, true, None, wanted)
    };
    assert!(allows(&required, &hermes(look)));
    assert!(allows(&required, &format!("{}\n{}", hermes(look), hermes(stop))));
    assert!(!allows(&required, look));
    assert!(!allows(&required, &hermes(&look.replace("here", "nowhere"))));
    assert!(!allows(&required, &hermes(&look.replace("look", "hide"))));
    assert!(!allows(&required, &hermes("{\"name\": \"stop\", \"arguments\": {\"at\": \"here\"}}")));
    let named = ToolChoice::Named("stop".into());
    assert!(allows(&named, &hermes(stop)) && !allows(&named, &hermes(look)));
    assert!(!allows(&named, &format!("{}\n{}", hermes(stop), hermes(stop))));
}

#[test]
fn every_way_of_writing_calls_can_be_demanded_and_is_read() {
    for (format, wanted) in [
        (
            CallFormat::Hermes,
            "<tool_call>\n{\"name\": \"look\", \"arguments\": {\"at\": \"there\"}}\n</tool_call>",
        ),
        (CallFormat::Llama, "{\"name\": \"look\", \"parameters\": {\"at\": \"there\"}}"),
        (
            CallFormat::MistralList,
            "[TOOL_CALLS] [{\"name\": \"look\", \"arguments\": {\"at\": \"there\"}}]",
        ),
        (CallFormat::MistralArguments, "[TOOL_CALLS]look[ARGS]{\"at\": \"there\"}"),
        (CallFormat::Plain, "{\"name\": \"look\", \"arguments\": {\"at\": \"there\"}}"),
    ] {
        assert!(demanded(format, &ToolChoice::Required, true, None, wanted), "{format:?}");
        assert_eq!(
            calls(&read(format, [wanted])),
            [("look", json!({"at": "there"}))],
            "{format:?}"
        );
    }
}

#[test]
fn one_call_alone_where_several_are_not_wanted() {
    let two = "[TOOL_CALLS][{\"name\": \"stop\", \"arguments\": {}}, {\"name\": \"stop\", \"arguments\": {}}]";
    assert!(demanded(CallFormat::MistralList, &ToolChoice::Required, true, None, two));
    assert!(!demanded(CallFormat::MistralList, &ToolChoice::Required, false, None, two));
}

#[test]
fn a_model_that_may_call_answers_in_its_form_or_calls() {
    let form = json!({"type": "object", "properties": {"x": {"type": "integer"}}, "required": ["x"], "additionalProperties": false});
    let allows =
        |wanted: &str| demanded(CallFormat::Hermes, &ToolChoice::Auto, true, Some(&form), wanted);
    assert!(allows("{\"x\": 17}"));
    assert!(allows("<tool_call>\n{\"name\": \"stop\", \"arguments\": {}}\n</tool_call>"));
    assert!(!allows("I would rather talk"));
}

#[test]
fn tools_that_are_none_are_named_by_their_place() {
    let function = |function: Value| json!({"type": "function", "function": function});
    let cases = [
        (vec![json!({"name": "a"})], "tools[0].function: "),
        (vec![function(json!({}))], "tools[0].function.name: "),
        (
            vec![function(json!({"name": "a"})), function(json!({"name": "a"}))],
            "tools[1].function.name: two",
        ),
        (vec![function(json!({"name": "a", "parameters": []}))], "tools[0].function.parameters: "),
        (
            vec![function(json!({"name": "a", "parameters": {"type": "array"}}))],
            "tools[0].function.parameters.type: ",
        ),
        (vec![function(json!({"name": "a"})); 200], "tools: 200"),
    ];
    for (tools, start) in cases {
        let error = described(&tools, ".function").unwrap_err().to_string();
        assert!(error.starts_with(start), "{error}");
    }
    let twice = [function(json!({"name": "a"})), function(json!({"name": "a"}))];
    let error = described(&twice, "").unwrap_err().to_string();
    assert!(error.starts_with("tools[1].name: "), "{error}");
    let tools = tools();
    let choice = ToolChoice::Named("hide".into());
    let demand = Demand {
        format: CallFormat::Plain,
        choice: &choice,
        tools: &tools,
        parallel: true,
        otherwise: None,
    };
    let error = super::calls(&demand, &reference()).err().unwrap().to_string();
    assert!(error.starts_with("tool_choice: there is no tool called"), "{error}");
}

#[test]
fn a_forced_call_that_is_cut_short_is_given_out_as_far_as_it_came() {
    let cut = |format, text: &str| {
        let mut reader = reader(format);
        let mut said = reader.push(text);
        let rest = reader.finish(true);
        said.text.push_str(&rest.text);
        said.calls.extend(rest.calls);
        let calls = said.calls.into_iter().map(|call| (call.name, call.arguments)).collect();
        (said.text, calls)
    };
    let called = |calls: &[(&str, &str)]| {
        let calls = calls.iter().map(|(name, text)| (name.to_string(), text.to_string()));
        (String::new(), calls.collect::<Vec<_>>())
    };
    let partial = "{\"name\": \"look\", \"arguments\": {\"at\": \"the \\\"na";
    let cases = [
        (CallFormat::Plain, partial.to_owned()),
        (CallFormat::Hermes, format!("<tool_call>\n{partial}")),
        (CallFormat::Llama, partial.replace("arguments", "parameters")),
        (CallFormat::MistralArguments, "[TOOL_CALLS]look[ARGS]{\"at\": \"the \\\"na".to_owned()),
    ];
    for (format, text) in cases {
        assert_eq!(cut(format, &text), called(&[("look", "{\"at\": \"the \\\"na")]), "{text}");
    }
    let second = "{\"name\": \"add\", \"parameters\": {\"a\": 1}}; {\"name\": \"look\"";
    assert_eq!(cut(CallFormat::Llama, second), called(&[("add", "{\"a\":1}"), ("look", "")]));
    let marked = "{\"name\": \"look\", \"arguments\": {\"at\": \"[ARGS] he";
    assert_eq!(cut(CallFormat::Plain, marked), called(&[("look", "{\"at\": \"[ARGS] he")]));
    // Nothing is known of it yet.
    assert_eq!(cut(CallFormat::Plain, "{\"name\": \"lo").0, "{\"name\": \"lo");
}
