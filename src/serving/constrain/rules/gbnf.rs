//! llama.cpp's notation for grammars, as Lark's.
//!
//! `name ::= alternatives`, where parts are names, texts between quotes, classes of characters, `.` and
//! groups, each with `*`, `+`, `?` or `{m,n}` behind it; `root` is where a text begins.

use std::collections::BTreeMap;

/// A part of the notation.
#[derive(Debug, Clone, PartialEq)]
enum Part {
    Name(String),
    /// `::=`.
    Means,
    /// As Lark writes it.
    Literal(String),
    /// One of `|`, `(`, `)` and the signs of repetition.
    Sign(char),
    /// `{m,n}`, as it stands.
    Times(String),
}

/// The same grammar in Lark's words.
///
/// # Errors
/// What in it is no GBNF.
pub(super) fn to_lark(text: &str) -> Result<String, String> {
    let parts = parts(text)?;
    let starts: Vec<usize> =
        (0..parts.len()).filter(|at| parts.get(at + 1) == Some(&Part::Means)).collect();
    if starts.first() != Some(&0) {
        return Err("the grammar does not begin with a rule".into());
    }
    let mut names: BTreeMap<&str, String> = BTreeMap::new();
    for start in &starts {
        let Part::Name(name) = &parts[*start] else {
            return Err("a rule of the grammar has no name before '::='".into());
        };
        // Names of our own: theirs may be none of Lark's.
        let ours = if name == "root" { "start".into() } else { format!("rule_{}", names.len()) };
        if names.insert(name, ours).is_some() {
            return Err(format!("the grammar has two rules '{name}'"));
        }
    }
    if !names.contains_key("root") {
        return Err("the grammar has no rule 'root'".into());
    }
    let mut rules = String::with_capacity(2 * text.len());
    let ends = starts.iter().skip(1).copied().chain([parts.len()]);
    for (start, end) in starts.iter().zip(ends) {
        let Part::Name(name) = &parts[*start] else { continue };
        rules.push_str(&names[name.as_str()]);
        rules.push(':');
        body(&parts[start + 2..end], &names, &mut rules)?;
        rules.push('\n');
    }
    Ok(rules)
}

/// What stands behind a rule's `::=`.
fn body(parts: &[Part], names: &BTreeMap<&str, String>, rules: &mut String) -> Result<(), String> {
    // Whether something is there that may be repeated, and that an alternative consists of.
    let mut has = false;
    for part in parts {
        let is_end = matches!(part, Part::Sign('|' | ')'));
        if is_end && !has {
            rules.push_str(" \"\"");
        }
        match part {
            Part::Name(name) => {
                let ours = names.get(name.as_str());
                let ours = ours.ok_or_else(|| format!("the grammar has no rule '{name}'"))?;
                rules.push(' ');
                rules.push_str(ours);
            }
            Part::Literal(literal) => {
                rules.push(' ');
                rules.push_str(literal);
            }
            Part::Sign(sign @ ('|' | '(')) => {
                rules.push(' ');
                rules.push(*sign);
            }
            Part::Sign(')') => rules.push(')'),
            Part::Sign(sign) if has => rules.push(*sign),
            Part::Times(times) if has => rules.push_str(times),
            Part::Sign(_) | Part::Times(_) => {
                return Err("the grammar repeats what is not there".into());
            }
            Part::Means => return Err("the grammar has '::=' without a name".into()),
        }
        has = !matches!(part, Part::Sign('|' | '('));
    }
    if !has {
        rules.push_str(" \"\"");
    }
    Ok(())
}

fn parts(text: &str) -> Result<Vec<Part>, String> {
    let mut parts = Vec::new();
    let mut rest = text;
    while let Some(next) = rest.chars().next() {
        let taken = match next {
            '#' => rest.find('\n').unwrap_or(rest.len()),
            _ if next.is_whitespace() => next.len_utf8(),
            ':' if rest.starts_with("::=") => {
                parts.push(Part::Means);
                3
            }
            '|' | '(' | ')' | '*' | '+' | '?' => {
                parts.push(Part::Sign(next));
                1
            }
            '.' => {
                parts.push(Part::Literal("/(?s:.)/".into()));
                1
            }
            '"' => {
                let (characters, taken) = characters(rest, '"')?;
                let plain: String = characters.into_iter().map(|it| it.0).collect();
                parts.push(Part::Literal(super::super::literal(&plain)));
                taken
            }
            '[' => {
                let (characters, taken) = characters(rest, ']')?;
                parts.push(Part::Literal(class(&characters)?));
                taken
            }
            '{' => {
                let end = rest.find('}').ok_or("the grammar has a '{' that does not end")?;
                parts.push(Part::Times(times(&rest[1..end])?));
                end + 1
            }
            _ => {
                let is_of_name = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
                let length = rest.find(|c| !is_of_name(c)).unwrap_or(rest.len());
                if length == 0 {
                    return Err(format!("'{}' is nothing in a grammar", next.escape_debug()));
                }
                parts.push(Part::Name(rest[..length].to_owned()));
                length
            }
        };
        rest = &rest[taken..];
    }
    Ok(parts)
}

/// `m`, `m,` or `m,n`, as Lark has it.
fn times(text: &str) -> Result<String, String> {
    let wrong = || format!("'{{{text}}}' is no number of times");
    let count = |text: &str| text.trim().parse::<u16>().map_err(|_| wrong());
    Ok(match text.split_once(',') {
        None => format!("{{{}}}", count(text)?),
        Some((least, most)) if most.trim().is_empty() => format!("{{{},}}", count(least)?),
        Some((least, most)) => format!("{{{},{}}}", count(least)?, count(most)?),
    })
}

/// The characters between two marks and whether each was written with a backslash; and the bytes of it
/// all, marks included.
fn characters(text: &str, end: char) -> Result<(Vec<(char, bool)>, usize), String> {
    let mut found = Vec::new();
    let mut rest = text.char_indices().skip(1);
    while let Some((at, character)) = rest.next() {
        if character == end {
            return Ok((found, at + 1));
        }
        if character != '\\' {
            found.push((character, false));
            continue;
        }
        let escaped = rest.next().map(|(_, escaped)| escaped);
        let mut coded = |digits: usize| -> Option<char> {
            let digits: String = rest.by_ref().take(digits).map(|(_, digit)| digit).collect();
            char::from_u32(u32::from_str_radix(&digits, 16).ok()?)
        };
        let character = match escaped {
            Some('n') => Some('\n'),
            Some('r') => Some('\r'),
            Some('t') => Some('\t'),
            Some('x') => coded(2),
            Some('u') => coded(4),
            Some('U') => coded(8),
            Some(plain @ ('"' | '\\' | '[' | ']' | '-' | '^' | '/')) => Some(plain),
            _ => None,
        };
        let character =
            character.ok_or("the grammar has a '\\' before what it does not go with")?;
        found.push((character, true));
    }
    Err(format!("the grammar has no '{end}' to what begins with '{}'", &text[..1]))
}

/// A class of characters as an expression: each by its number, so that none means anything else.
fn class(characters: &[(char, bool)]) -> Result<String, String> {
    let (negated, inner) = match characters {
        [('^', false), inner @ ..] => ("^", inner),
        inner => ("", inner),
    };
    if inner.is_empty() {
        return Err("the grammar has a class of no characters".into());
    }
    let mut class = format!("/[{negated}");
    for (at, (character, escaped)) in inner.iter().enumerate() {
        let is_range = *character == '-' && !escaped && at > 0 && at + 1 < inner.len();
        match is_range {
            true => class.push('-'),
            false => class.push_str(&format!("\\u{{{:X}}}", u32::from(*character))),
        }
    }
    class.push_str("]/");
    Ok(class)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_part_of_the_notation_has_its_counterpart() {
        let text = "# numbers\nroot ::= item (\",\" ws item)* # more\nws ::= | \" \"?\n\
                    item ::= \"-\"? [0-9]{1,3}\n  | [^\\]\\n-] . \"\\x41\\u00e9\\\"\"\n";
        let want = "start: rule_2 ( \",\" rule_1 rule_2)*\nrule_1: \"\" | \" \"?\n\
                    rule_2: \"-\"? /[\\u{30}-\\u{39}]/{1,3} | \
                    /[^\\u{5D}\\u{A}\\u{2D}]/ /(?s:.)/ \"Aé\\\"\"\n";
        assert_eq!(to_lark(text).unwrap(), want);
    }

    #[test]
    fn what_is_no_grammar_is_told_in_its_words() {
        for (text, says) in [
            ("::= \"a\"", "does not begin with a rule"),
            ("root ::= other", "no rule 'other'"),
            ("main ::= \"a\"", "no rule 'root'"),
            ("root ::= \"a\"\nroot ::= \"b\"", "two rules 'root'"),
            ("root ::= \"a", "no '\"' to what begins"),
            ("root ::= [a", "no ']' to what begins"),
            ("root ::= []", "a class of no characters"),
            ("root ::= * \"a\"", "repeats what is not there"),
            ("root ::= \"a\"{x}", "'{x}' is no number of times"),
            ("root ::= \"\\q\"", "a '\\' before"),
            ("root ::= ä", "'ä' is nothing in a grammar"),
            ("root ::= \"a\" ::=", "no name before '::='"),
            ("root ::= ::=", "no name before '::='"),
        ] {
            let error = to_lark(text).unwrap_err();
            assert!(error.contains(says), "{text}: {error}");
        }
    }
}
