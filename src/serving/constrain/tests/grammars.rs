//! Grammars that clients write.

use super::*;

const GBNF: &str = "# lists of lists\nroot ::= \"[\" (item (\", \" item)*)? \"]\"\n\
                    item ::= root | number | word\nnumber ::= \"-\"? [0-9]{1,3}\n\
                    word ::= \"\\x22\" [^\\x22\\\\\\n\\r]* \"\\\"\"\n";
const LARK: &str = "start: \"[\" (item (\", \" item)*)? \"]\"\nitem: start | NUMBER | WORD\n\
                    NUMBER: /-?[0-9]{1,3}/\nWORD: /\"[^\"\\\\\\n\\r]*\"/\n";

/// What is left behind one list of the grammar; `None` where there is none.
fn list(text: &str) -> Option<&str> {
    let mut rest = text.strip_prefix('[')?;
    if let Some(rest) = rest.strip_prefix(']') {
        return Some(rest);
    }
    loop {
        rest = item(rest)?;
        match rest.strip_prefix(", ") {
            Some(more) => rest = more,
            None => return rest.strip_prefix(']'),
        }
    }
}

fn item(text: &str) -> Option<&str> {
    if text.starts_with('[') {
        return list(text);
    }
    if let Some(word) = text.strip_prefix('"') {
        let (inner, rest) = word.split_once('"')?;
        return (!inner.contains(['\\', '\n', '\r'])).then_some(rest);
    }
    let digits = text.strip_prefix('-').unwrap_or(text);
    let end = digits.find(|c: char| !c.is_ascii_digit()).unwrap_or(digits.len());
    (1..=3).contains(&end).then(|| &digits[end..])
}

#[test]
fn a_blind_model_writes_only_texts_of_a_grammar_in_either_notation() {
    let codec = reference();
    for grammar in [GBNF, LARK] {
        let compiled = compile(&codec, FormKind::Grammar(grammar.into())).unwrap();
        let texts: Vec<String> =
            (0..40).filter_map(|seed| blind(&codec, &compiled, seed)).collect();
        assert!(texts.len() >= 20, "{} of 40 end", texts.len());
        assert!(texts.iter().any(|text| text.len() > 10));
        for text in texts {
            assert_eq!(list(&text), Some(""), "{text}");
        }
    }
}

#[test]
fn a_grammar_that_cannot_be_followed_is_refused_with_the_field_and_the_place() {
    for (text, says) in [
        ("root ::= other", "no rule 'other'"),
        ("start: other", "other"),
        ("start: \"a\" %json {}", "%json in a grammar is not supported"),
        ("", "response_format"),
    ] {
        let refused = refusal(FormKind::Grammar(text.into()));
        assert!(refused.contains("response_format") && refused.contains(says), "{refused}");
    }
}
