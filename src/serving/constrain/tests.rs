use std::time::Instant;

use proptest::prelude::*;
use roundhouse_engine::{Constraint, Progress};
use serde_json::{Map, Value, json};

use super::*;
use crate::TextCodec;
use crate::text::tests::{reference, sentencepiece};

mod grammars;
mod tags;

fn compile(codec: &TextCodec, kind: FormKind) -> Result<Compiled, crate::Error> {
    let form = OutputForm { field: "response_format".into(), kind };
    codec.speller().unwrap().compile(Grammar::of(&form, codec)?, None)
}

fn refusal(kind: FormKind) -> String {
    compile(&reference(), kind).unwrap_err().to_string()
}

/// The tokens whose bits are set.
fn set(mask: &[u32]) -> Vec<u32> {
    let bits = |word: u32| (0..u32::BITS).filter(move |bit| word >> bit & 1 == 1);
    (0..)
        .zip(mask)
        .flat_map(|(at, word)| bits(*word).map(move |bit| at * u32::BITS + bit))
        .collect()
}

/// Splitmix64, for choices that depend on the seed alone.
fn random(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let value = (*state ^ (*state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb) >> 16
}

/// What a model says that chooses blindly among what is allowed, and ends where it may, sooner or
/// later. `None` where it goes on for too long.
fn blind(codec: &TextCodec, compiled: &Compiled, seed: u64) -> Option<String> {
    const TOKENS_MAX: usize = 600;
    let mut state = seed;
    let mut follower = compiled.follower();
    let mut ids = Vec::new();
    while ids.len() < TOKENS_MAX {
        let allowed = follower.allowed().unwrap();
        let mut tokens = set(allowed.tokens);
        if allowed.may_end && (tokens.is_empty() || random(&mut state).is_multiple_of(4)) {
            break;
        }
        assert!(!tokens.is_empty(), "nothing may follow {:?}", codec.decode(&ids));
        // Blind choice hardly ever closes what it opened.
        let closing = |id: &u32| {
            let text = codec.token_text(*id);
            text.contains(['"', ']', '}']) && !text.contains([',', ':'])
        };
        if random(&mut state).is_multiple_of(3) && tokens.iter().any(closing) {
            tokens.retain(closing);
        }
        let token = tokens[usize::try_from(random(&mut state)).unwrap() % tokens.len()];
        ids.push(token);
        if follower.accept(token).unwrap() == Progress::Complete {
            break;
        }
    }
    (ids.len() < TOKENS_MAX).then(|| {
        // Behind a word, as an answer stands behind its prompt.
        let before = codec.encode("a", false).unwrap();
        let prefix = codec.decode(&before).unwrap();
        let whole = codec.decode(&[before, ids].concat()).unwrap();
        whole.strip_prefix(&prefix).unwrap().to_owned()
    })
}

/// Whether a value is what a schema of the kinds made below asks for.
fn valid(value: &Value, schema: &Value) -> bool {
    if let Some(options) = schema.get("anyOf").and_then(Value::as_array) {
        return options.iter().any(|option| valid(value, option));
    }
    if let Some(options) = schema.get("enum").and_then(Value::as_array) {
        return options.contains(value);
    }
    let within = |length: usize, least: &str, most: &str| {
        schema[least].as_u64().is_none_or(|least| length as u64 >= least)
            && schema[most].as_u64().is_none_or(|most| length as u64 <= most)
    };
    match schema["type"].as_str() {
        Some("null") => value.is_null(),
        Some("boolean") => value.is_boolean(),
        // `-0` is one, though no machine's.
        Some("integer") => value.as_f64().is_some_and(|number| {
            number.fract() == 0.0
                && schema["minimum"].as_f64().is_none_or(|least| number >= least)
                && schema["maximum"].as_f64().is_none_or(|most| number <= most)
        }),
        Some("number") => value.is_number(),
        Some("string") => value
            .as_str()
            .is_some_and(|text| within(text.chars().count(), "minLength", "maxLength")),
        Some("array") => value.as_array().is_some_and(|items| {
            within(items.len(), "minItems", "maxItems")
                && items.iter().all(|item| valid(item, &schema["items"]))
        }),
        Some("object") => value.as_object().is_some_and(|object| {
            let properties = schema["properties"].as_object().unwrap();
            let required = schema["required"].as_array().unwrap();
            required.iter().all(|name| object.contains_key(name.as_str().unwrap()))
                && object.iter().all(|(name, value)| {
                    properties.get(name).is_some_and(|schema| valid(value, schema))
                })
        }),
        _ => panic!("not made here: {schema}"),
    }
}

fn schema() -> impl Strategy<Value = Value> {
    let text = "[a-zé\"\\\\ 🚂]{0,6}";
    let leaf = prop_oneof![
        Just(json!({"type": "null"})),
        Just(json!({"type": "boolean"})),
        Just(json!({"type": "number"})),
        (-50..50_i64, 0..100_i64).prop_map(
            |(least, more)| json!({"type": "integer", "minimum": least, "maximum": least + more})
        ),
        (0..4_u64, 0..6_u64).prop_map(
            |(least, more)| json!({"type": "string", "minLength": least, "maxLength": least + more})
        ),
        prop::collection::vec(text, 1..4).prop_map(|texts| json!({"enum": texts})),
    ];
    leaf.prop_recursive(3, 12, 4, move |inner| {
        let property = (text, inner.clone(), any::<bool>());
        prop_oneof![
            prop::collection::vec(inner.clone(), 1..3).prop_map(|options| json!({"anyOf": options})),
            (inner.clone(), 0..3_u64, 0..3_u64).prop_map(|(items, least, more)| {
                json!({"type": "array", "items": items, "minItems": least, "maxItems": least + more})
            }),
            prop::collection::vec(property, 0..4).prop_map(|properties| {
                let required: Vec<&String> =
                    properties.iter().filter(|(.., required)| *required).map(|(name, ..)| name).collect();
                let required = json!(required);
                let properties: Map<String, Value> =
                    properties.into_iter().map(|(name, schema, _)| (name, schema)).collect();
                json!({"type": "object", "properties": properties, "required": required, "additionalProperties": false})
            }),
        ]
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn every_answer_under_a_schema_parses_and_is_valid(schema in schema(), seed: u64) {
        for codec in [reference(), sentencepiece()] {
            let compiled = compile(&codec, FormKind::JsonSchema(schema.clone())).unwrap();
            for seed in (0..4).map(|more| seed.wrapping_add(more)) {
                let Some(answer) = blind(&codec, &compiled, seed) else { continue };
                let value: Value = match serde_json::from_str(&answer) {
                    Ok(value) => value,
                    // JSON has no largest number, doubles do.
                    Err(error) if error.to_string().starts_with("number out of range") => continue,
                    Err(error) => return Err(TestCaseError::fail(format!("{answer:?}: {error}"))),
                };
                prop_assert!(valid(&value, &schema), "{} under {}", answer, schema);
            }
        }
    }

    #[test]
    fn a_choice_is_one_of_the_texts(
        texts in prop::collection::vec("[a-cé\"/\\\\\n🚂]{1,6}", 1..6),
        seed: u64,
    ) {
        let codec = reference();
        let compiled = compile(&codec, FormKind::Choice(texts.clone())).unwrap();
        let answer = blind(&codec, &compiled, seed).unwrap();
        prop_assert!(texts.contains(&answer), "{:?} of {:?}", answer, texts);
    }
}

#[test]
fn most_blind_answers_end_so_that_the_property_says_something() {
    let codec = reference();
    let schema = json!({"type": "object", "properties": {"a": {"type": "string"}, "b": {"type": "array", "items": {"type": "integer"}}}, "required": ["a", "b"]});
    let compiled = compile(&codec, FormKind::JsonSchema(schema)).unwrap();
    let ended = (0..20).filter(|seed| blind(&codec, &compiled, *seed).is_some()).count();
    assert!(ended >= 10, "{ended}");
}

#[test]
fn an_expression_matches_the_whole_answer() {
    for codec in [reference(), sentencepiece()] {
        let regex = r"^\d{3}-[x-z]+/(é|🚂)\.?$".to_owned();
        let compiled = compile(&codec, FormKind::Regex(regex)).unwrap();
        for seed in 0..10 {
            let answer = blind(&codec, &compiled, seed).unwrap();
            let (digits, rest) = answer.split_once('-').unwrap();
            assert!(digits.len() == 3 && digits.bytes().all(|b| b.is_ascii_digit()), "{answer}");
            let (letters, end) = rest.split_once('/').unwrap();
            assert!(!letters.is_empty() && letters.bytes().all(|b| matches!(b, b'x'..=b'z')));
            assert!(["é", "é.", "🚂", "🚂."].contains(&end), "{answer}");
        }
    }
}

#[test]
fn a_json_object_begins_and_ends_with_its_braces() {
    let codec = reference();
    let compiled = compile(&codec, FormKind::JsonObject).unwrap();
    let answers: Vec<String> = (0..30).filter_map(|seed| blind(&codec, &compiled, seed)).collect();
    assert!(answers.len() > 5);
    for answer in answers {
        assert!(serde_json::from_str::<Map<String, Value>>(&answer).is_ok(), "{answer}");
        assert!(answer.starts_with('{') && answer.ends_with('}'));
    }
}

#[test]
fn the_answers_of_one_request_do_not_disturb_each_other() {
    let codec = reference();
    let compiled = compile(&codec, FormKind::Choice(vec!["abc".into(), "xyz".into()])).unwrap();
    let token = |text: &str| codec.encode(text, false).unwrap()[0];
    let (mut one, mut other) = (compiled.follower(), compiled.follower());
    one.accept(token("a")).unwrap();
    other.accept(token("x")).unwrap();
    let allows = |follower: &mut dyn Constraint, id: u32| {
        follower.allowed().unwrap().tokens[(id / 32) as usize] >> (id % 32) & 1 == 1
    };
    assert!(allows(&mut one, token("b")) && !allows(&mut one, token("y")));
    assert!(allows(&mut other, token("y")) && !allows(&mut other, token("b")));
}

#[test]
fn what_cannot_be_compiled_is_refused_with_its_field_and_reason() {
    let cases = [
        (FormKind::JsonSchema(json!("text")), "a schema is an object"),
        (FormKind::JsonSchema(json!({"type": "colour"})), "colour"),
        (FormKind::JsonSchema(json!({"type": "string", "not": {"const": "a"}})), "not"),
        (FormKind::JsonSchema(json!({"$ref": "https://example.com/schema"})), "example.com"),
        (FormKind::JsonSchema(json!({"$ref": "#/$defs/none"})), "$defs"),
        (FormKind::JsonSchema(json!({"type": "integer", "minimum": 5, "maximum": 4})), ""),
        (FormKind::JsonSchema(json!(false)), ""),
        (FormKind::JsonSchema(json!({"description": "x".repeat(300_000)})), "longer than"),
        (FormKind::Regex("(a".into()), ""),
        (FormKind::Regex(String::new()), "empty"),
        (FormKind::Regex("a\\".into()), "backslash"),
        (FormKind::Regex("(?=a)b".into()), ""),
        (FormKind::Regex("a".repeat(20_000)), "longer than"),
        (FormKind::JsonSchema(json!({"pattern": "a?".repeat(5_000)})), "longer than"),
        (
            FormKind::JsonSchema(json!({"patternProperties": {("a?".repeat(5_000)): true}})),
            "longer than",
        ),
        (FormKind::Choice(Vec::new()), "one text or more"),
        (FormKind::Choice(vec!["a".into(); 2000]), "2000 choices"),
    ];
    for (kind, reason) in cases {
        let message = refusal(kind.clone());
        assert!(message.starts_with("response_format: "), "{message}");
        assert!(message.contains(reason), "{message}");
        assert!(!message.contains("backtrace") && message.len() < 700, "{kind:?}: {message}");
    }
}

/// Forms that are meant to be costly are refused, or followed within the limits: each of these
/// would take minutes or gigabytes without.
#[test]
fn costly_forms_end_by_the_limits() {
    let codec = reference();
    let mut nested = json!({"type": "string"});
    for _ in 0..60 {
        nested = json!({"type": "array", "items": nested, "minItems": 2});
    }
    let wide: Map<String, Value> = (0..2000)
        .map(|index| {
            (format!("p{index}"), json!({"type": "string", "pattern": "^(a|b)*c.{0,40}$"}))
        })
        .collect();
    let chain: Map<String, Value> = (0..2000)
        .map(|index| {
            (
                format!("d{index}"),
                json!({"$ref": format!("#/$defs/d{}", index + 1), "minLength": 1}),
            )
        })
        .chain([("d2000".to_owned(), json!({"type": "string"}))])
        .collect();
    let (mut all, mut any, mut properties) =
        (json!({"type": "string"}), json!({"type": "string"}), json!({}));
    for _ in 0..110 {
        all = json!({"allOf": [all, {"minLength": 1}]});
        any =
            json!({"anyOf": [any, {"type": "null"}, {"type": "array", "items": {"type": "null"}}]});
        properties = json!({"type": "object", "properties": {"a": properties}, "required": ["a"]});
    }
    let hostile = [
        FormKind::JsonSchema(json!({"$defs": chain, "$ref": "#/$defs/d0"})),
        FormKind::JsonSchema(all),
        FormKind::JsonSchema(any),
        FormKind::JsonSchema(properties),
        FormKind::Regex("ab".repeat(4000)),
        FormKind::Regex("a?".repeat(4000)),
        FormKind::Regex(vec!["a"; 4000].join("|")),
        FormKind::Regex((0..2000).map(|index| format!("x{index}")).collect::<Vec<_>>().join("|")),
        FormKind::Regex(format!("{}a{}", "(b?".repeat(200), ")?".repeat(200))),
        FormKind::Choice((0..1000).map(|index| format!("{}{index}", "long ".repeat(10))).collect()),
        FormKind::Regex("(a|aa|aaa|b?){1,1000}{1,1000}c".into()),
        FormKind::Regex(r"(x+x+)+y".into()),
        FormKind::Regex(r"[ab]*a[ab]{200}".into()),
        FormKind::Regex(r"(.*a.*b.*c.*d.*e.*f.*g.*h.*){50}".into()),
        FormKind::Regex(format!("{}a{}", "(".repeat(2000), ")*".repeat(2000))),
        FormKind::JsonSchema(nested),
        FormKind::JsonSchema(json!({"type": "object", "properties": wide})),
        FormKind::JsonSchema(
            json!({"$defs": {"a": {"anyOf": [{"$ref": "#/$defs/a"}, {"$ref": "#/$defs/a"}]}}, "$ref": "#/$defs/a"}),
        ),
        FormKind::JsonSchema(
            json!({"type": "array", "minItems": 1_000_000_000, "items": {"type": "string"}}),
        ),
        FormKind::JsonSchema(json!({"type": "string", "minLength": 1_000_000_000})),
        FormKind::JsonSchema(json!({"type": "integer", "multipleOf": 999_999_937})),
        FormKind::JsonSchema(
            json!({"allOf": vec![json!({"anyOf": vec![json!({"type": "string", "pattern": "a.*b.*c"}); 30]}); 12]}),
        ),
    ];
    for kind in hostile {
        let Ok(compiled) = compile(&codec, kind) else { continue };
        // Followed where the stack is as large as the lane's.
        speller::on_large_stack(|| follow(&compiled)).unwrap();
    }
}

fn follow(compiled: &Compiled) {
    let mut follower = compiled.follower();
    let mut state = 3;
    for _ in 0..60 {
        let Ok(allowed) = follower.allowed() else { break };
        let tokens = set(allowed.tokens);
        if tokens.is_empty() {
            break;
        }
        let token = tokens[usize::try_from(random(&mut state)).unwrap() % tokens.len()];
        if follower.accept(token).is_ok_and(|progress| progress == Progress::Open) {
            continue;
        }
        break;
    }
}

#[test]
fn every_token_stands_for_the_bytes_that_it_adds_to_a_text() {
    for codec in [reference(), sentencepiece()] {
        let tokens = vocabulary::token_bytes(&codec, 0xff);
        for text in ["a b", "été 🚂", "{\"a\": [1, 2]}\n", "ab  c"] {
            let ids = codec.encode(text, false).unwrap();
            let bytes: Vec<u8> = ids.iter().flat_map(|id| tokens[*id as usize].clone()).collect();
            let spelt = String::from_utf8(bytes).unwrap();
            // Some tokenizers put a space before every text.
            assert_eq!(spelt.strip_prefix(' ').unwrap_or(&spelt), text);
        }
        let special = (0..).zip(&tokens).filter(|(id, _)| codec.is_special(*id));
        assert!(special.clone().count() > 0);
        assert!(special.into_iter().all(|(_, bytes)| bytes[0] == 0xff));
    }
}

/// What forms cost with a real vocabulary: `FORMS_TOKENIZER=FOLDER cargo test -p roundhouse-serving
/// --lib figures -- --ignored --nocapture`. Prints a table.
#[test]
#[ignore = "measures"]
fn figures() {
    let folder = std::env::var("FORMS_TOKENIZER").unwrap();
    let codec = TextCodec::open(std::path::Path::new(&folder)).unwrap();
    let (before, began) = (resident(), Instant::now());
    codec.speller().unwrap();
    let tokens = codec.tokenizer().get_vocab_size(true) as u64;
    let (took, bytes) = (began.elapsed(), (resident() - before) / tokens);
    println!("{tokens} tokens: built in {took:?}, {bytes} bytes each\n");
    println!("| form | compiled | steps | median | 99 % | longest | KiB more | ended by |");
    println!("|---|---|---|---|---|---|---|---|");
    for (name, kind) in costly() {
        let began = Instant::now();
        let compiled = compile(&codec, kind);
        let took = began.elapsed();
        let compiled = match compiled {
            Ok(compiled) => compiled,
            Err(error) => {
                println!("| {name} | {took:?} | | | | | | {error} |");
                continue;
            }
        };
        let before = resident();
        let (mut times, mut ended) = (Vec::new(), String::new());
        for seed in 0..10 {
            let mut follower = compiled.follower();
            let mut state = seed;
            for _ in 0..200 {
                let began = Instant::now();
                let allowed = follower.allowed();
                let mut spent = began.elapsed();
                let tokens = match allowed {
                    Ok(allowed) => set(allowed.tokens),
                    Err(unmet) => {
                        times.push(spent);
                        ended = unmet.0;
                        break;
                    }
                };
                if tokens.is_empty() {
                    break;
                }
                let token = tokens[usize::try_from(random(&mut state)).unwrap() % tokens.len()];
                let began = Instant::now();
                let progress = follower.accept(token);
                spent += began.elapsed();
                times.push(spent);
                if progress != Ok(Progress::Open) {
                    break;
                }
            }
        }
        times.sort_unstable();
        let steps = times.len();
        let [median, most, longest] = [steps / 2, steps * 99 / 100, steps - 1].map(|at| times[at]);
        let more = resident().saturating_sub(before) / 1024;
        println!(
            "| {name} | {took:?} | {steps} | {median:?} | {most:?} | {longest:?} | {more} | {ended} |"
        );
    }
}

/// Forms from the usual to the hostile.
fn costly() -> Vec<(&'static str, FormKind)> {
    let person = json!({"type": "object", "properties": {
        "name": {"type": "string"}, "age": {"type": "integer"}, "email": {"type": "string", "format": "email"},
        "tags": {"type": "array", "items": {"enum": ["a", "b", "c"]}},
        "address": {"type": "object", "properties": {"street": {"type": "string", "maxLength": 80}, "zip": {"type": "string", "pattern": "^[0-9]{5}$"}}, "required": ["street", "zip"]}},
        "required": ["name", "age", "email", "tags", "address"]});
    let wide: Map<String, Value> =
        (0..300).map(|index| (format!("property{index}"), json!({"type": "string"}))).collect();
    let regex = |text: &str| FormKind::Regex(text.to_owned());
    let patterns = vec![json!({"type": "string", "pattern": "a.*b.*c"}); 30];
    vec![
        ("any JSON object", FormKind::JsonObject),
        ("a person", FormKind::JsonSchema(person)),
        (
            "300 optional properties",
            FormKind::JsonSchema(json!({"type": "object", "properties": wide})),
        ),
        (r"\d{4}-\d{2}-\d{2}", regex(r"\d{4}-\d{2}-\d{2}")),
        (".{1,500}END", regex(".{1,500}END")),
        (
            "1000 choices",
            FormKind::Choice((0..1000).map(|index| format!("choice number {index}")).collect()),
        ),
        ("[ab]*a[ab]{200}", regex("[ab]*a[ab]{200}")),
        ("(.*a.*b.*c.*d.*e.*f.*g.*h.*){50}", regex("(.*a.*b.*c.*d.*e.*f.*g.*h.*){50}")),
        ("(x+x+)+y", regex("(x+x+)+y")),
        (r"(\w{1,200} ){1,200}", regex(r"(\w{1,200} ){1,200}")),
        ("(.or.a){1,3000}", regex("(.|a){1,3000}")),
        (
            "12 times 30 patterns",
            FormKind::JsonSchema(json!({"allOf": vec![json!({"anyOf": patterns}); 12]})),
        ),
    ]
}

/// Bytes of the process's pages in memory.
fn resident() -> u64 {
    let pages = std::fs::read_to_string("/proc/self/statm").unwrap();
    pages.split(' ').nth(1).unwrap().parse::<u64>().unwrap() * 4096
}
