//! Grammars that clients write themselves: in Lark's words, or in those of llama.cpp (GBNF), which
//! become Lark's.
//!
//! A grammar is its sender's. What it may refer to is what stands in it: no schema inside that nobody
//! counted, no tokens that are no text, no other grammar. Its nesting is bounded, as the library
//! recurses that deep.

use crate::Error;

mod gbnf;

/// A grammar's longest text, in bytes.
const GRAMMAR_BYTES_MAX: usize = 32 * 1024;
/// The longest regular expression in one, in bytes.
const REGEX_BYTES_MAX: usize = 8 * 1024;
/// How deep parentheses may be nested.
const DEPTH_MAX: usize = 256;

/// A grammar in Lark's words.
///
/// # Errors
/// `InvalidInput` that names `field`, for what is too long or too deep, refers to what is not in it, or
/// is no GBNF where it begins as such.
pub(super) fn lark(field: &str, text: &str) -> Result<String, Error> {
    let refused = |reason: String| Error::field(field, reason);
    if text.len() > GRAMMAR_BYTES_MAX {
        let length = text.len();
        return Err(refused(format!(
            "a grammar of {length} bytes is longer than the {GRAMMAR_BYTES_MAX} at most"
        )));
    }
    let rules = match is_gbnf(text) {
        true => gbnf::to_lark(text).map_err(refused)?,
        false => text.to_owned(),
    };
    closed(&rules).map_err(refused)?;
    Ok(rules)
}

/// Whether a grammar's first words are a rule as llama.cpp writes it. Lark's texts may hold `::=`.
fn is_gbnf(text: &str) -> bool {
    let mut rest = text.trim_start();
    while rest.starts_with('#') || rest.starts_with("//") {
        rest = rest[line(rest)..].trim_start();
    }
    let name = |letter: char| letter.is_ascii_alphanumeric() || letter == '-' || letter == '_';
    rest.trim_start_matches(name).trim_start().starts_with("::=")
}

/// Refuses what refers to something outside of the text, and what is nested too deep.
fn closed(rules: &str) -> Result<(), String> {
    let mut rest = rules;
    let mut depth = 0_usize;
    while let Some(next) = rest.chars().next() {
        let length = match next {
            '"' => literal(rest, '"').ok_or("the grammar has a text that does not end")?,
            '/' if rest.starts_with("//") => line(rest),
            '/' => {
                let length =
                    literal(rest, '/').ok_or("the grammar has an expression that does not end")?;
                if length > REGEX_BYTES_MAX {
                    return Err(format!(
                        "a regular expression of {length} bytes is longer than the {REGEX_BYTES_MAX} at most"
                    ));
                }
                length
            }
            '#' => line(rest),
            '%' if !rest.starts_with("%ignore") => {
                let word: String =
                    rest.chars().take(16).take_while(|c| !c.is_whitespace()).collect();
                return Err(format!("{word} in a grammar is not supported; %ignore is"));
            }
            '<' | '@' => return Err(format!("'{next}' in a grammar is not supported")),
            '(' | '[' | '{' => {
                depth += 1;
                if depth > DEPTH_MAX {
                    return Err(format!("a grammar is nested deeper than {DEPTH_MAX}"));
                }
                1
            }
            ')' | ']' | '}' => {
                depth = depth.saturating_sub(1);
                1
            }
            other => other.len_utf8(),
        };
        rest = &rest[length..];
    }
    Ok(())
}

/// The bytes of what stands between two marks, both included; a backslash hides the next character.
fn literal(text: &str, mark: char) -> Option<usize> {
    let mut characters = text.char_indices().skip(1);
    while let Some((at, character)) = characters.next() {
        match character {
            '\\' => drop(characters.next()),
            '\n' => return None,
            _ if character == mark => return Some(at + 1),
            _ => {}
        }
    }
    None
}

/// The bytes up to the line's end.
fn line(text: &str) -> usize {
    text.find('\n').unwrap_or(text.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_in_a_grammar_itself_is_taken_as_it_stands() {
        let text = "start: \"a%b <x>\" WORD+ // %json\nWORD: /[a-z@<%\\/]+/\n%ignore /[ ]+/ # @x\n";
        assert_eq!(lark("guided_grammar", text).unwrap(), text);
    }

    #[test]
    fn larks_texts_may_hold_what_llama_cpp_writes_behind_a_name() {
        let lark_text = "// a ::= b\nstart: \"x ::= \" /[0-9]+/\n";
        assert_eq!(lark("guided_grammar", lark_text).unwrap(), lark_text);
        assert!(is_gbnf("# numbers\n\nroot\n ::= [0-9]+") && is_gbnf("::= \"a\""));
    }

    #[test]
    fn what_a_grammar_fetches_from_elsewhere_is_refused_by_name() {
        let deep = format!("start: {}\"a\"{}", "(".repeat(300), ")".repeat(300));
        let long = format!("start: /{}/", "a".repeat(9000));
        for (text, says) in [
            ("start: %json {\"anyOf\": []}", "%json in a grammar is not supported"),
            ("%import common.INT\nstart: INT", "%import in a grammar is not supported"),
            ("%llguidance {}\nstart: \"a\"", "%llguidance in a grammar"),
            ("start: <|im_end|>", "'<' in a grammar"),
            ("start: @other", "'@' in a grammar"),
            ("start: \"a", "a text that does not end"),
            ("start: /a", "an expression that does not end"),
            (&deep, "nested deeper than 256"),
            (&long, "longer than the 8192"),
            (&" ".repeat(70_000), "longer than the 32768"),
        ] {
            let error = lark("guided_grammar", text).unwrap_err().to_string();
            assert!(error.contains(says) && error.contains("guided_grammar"), "{error}");
        }
    }
}
