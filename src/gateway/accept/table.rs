//! Tables of comma-separated values (RFC 4180).

use bytes::Bytes;
use serde_json::{Map, Value};

use crate::error::Error;

/// Columns of a table that is read at most.
const COLUMNS_MAX: usize = 8;
/// Where a table has the objects of several lists: which list a row is of.
const INPUT: &str = "input";

/// Reads a table as rows of cells, each as long as the first. At most `most` rows after it.
///
/// # Errors
/// `InvalidInput`, with the line that is wrong.
pub(crate) fn read(text: &str, most: usize) -> Result<Vec<Vec<String>>, Error> {
    // As spreadsheets write it.
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let wrong = |line: usize, what: &str| Error::input(format!("line {line} of the CSV: {what}"));
    let mut rows: Vec<Vec<String>> = Vec::new();
    let mut cells = text.char_indices().peekable();
    let mut line = 1;
    while cells.peek().is_some() {
        let (began, mut row, mut is_quoted) = (line, Vec::new(), false);
        loop {
            let mut cell = String::new();
            if cells.next_if(|(_, c)| *c == '"').is_some() {
                is_quoted = true;
                loop {
                    match cells.next() {
                        None => return Err(wrong(began, "a quote is not closed")),
                        Some((_, '"')) if cells.next_if(|(_, c)| *c == '"').is_some() => {
                            cell.push('"');
                        }
                        Some((_, '"')) => break,
                        Some((_, c)) => {
                            line += usize::from(c == '\n');
                            cell.push(c);
                        }
                    }
                }
            } else {
                while let Some((_, c)) = cells.next_if(|(_, c)| !matches!(c, ',' | '\n' | '\r')) {
                    cell.push(c);
                }
            }
            row.push(cell);
            match cells.next() {
                Some((_, ',')) if row.len() < COLUMNS_MAX => {}
                Some((_, ',')) => return Err(wrong(began, "there are too many columns")),
                Some((_, '\r')) => {
                    let _ = cells.next_if(|(_, c)| *c == '\n');
                    break;
                }
                None | Some((_, '\n')) => break,
                Some(_) => return Err(wrong(line, "something stands behind a closing quote")),
            }
        }
        line += 1;
        // An empty line is none, as for the readers that people know; an empty text is quoted.
        if row.len() == 1 && row[0].is_empty() && !is_quoted {
            continue;
        }
        let columns = rows.first().map_or(row.len(), Vec::len);
        if row.len() != columns {
            return Err(wrong(began, &format!("there are {} cells, not {columns}", row.len())));
        }
        if rows.len() > most {
            return Err(Error::input(format!("the CSV has more than {most} rows")));
        }
        rows.push(row);
    }
    Ok(rows)
}

/// Writes what has the shape of a table: numbers in rows without a header, or objects with one.
/// Lists of objects are told apart by a first column.
pub(crate) fn write(value: &Value) -> Option<Bytes> {
    let mut text = String::new();
    match value {
        Value::Object(map) => objects(&[map], &mut text),
        Value::Array(items) => {
            let maps: Option<Vec<&Map<String, Value>>> =
                items.iter().map(Value::as_object).collect();
            match maps {
                Some(maps) => objects(&maps, &mut text),
                None => lists(items, &mut text)?,
            }
        }
        _ => return None,
    }
    Some(text.into())
}

/// Vectors, one in a row.
pub(crate) fn write_vectors(vectors: &[Vec<f32>]) -> Bytes {
    use std::fmt::Write as _;
    let mut text = String::new();
    for vector in vectors {
        for (at, number) in vector.iter().enumerate() {
            let comma = if at == 0 { "" } else { "," };
            // Writing to memory does not fail.
            let _ = write!(text, "{comma}{number}");
        }
        text.push('\n');
    }
    text.into()
}

/// Rows of numbers, or lists of objects.
fn lists(items: &[Value], text: &mut String) -> Option<()> {
    if items.iter().all(Value::is_number) {
        row(items.iter(), text);
        return Some(());
    }
    let lists: Vec<&Vec<Value>> = items.iter().map(Value::as_array).collect::<Option<_>>()?;
    if lists.iter().all(|list| list.iter().all(Value::is_number)) {
        lists.iter().for_each(|list| row(list.iter(), text));
        return Some(());
    }
    let mut maps = Vec::new();
    for (at, list) in lists.iter().enumerate() {
        for item in *list {
            let mut map = Map::new();
            map.insert(INPUT.into(), at.into());
            map.extend(item.as_object()?.clone());
            maps.push(map);
        }
    }
    objects(&maps.iter().collect::<Vec<_>>(), text);
    Some(())
}

/// A header of all names and a row for each object.
fn objects(maps: &[&Map<String, Value>], text: &mut String) {
    let mut names: Vec<&String> = Vec::new();
    for name in maps.iter().flat_map(|map| map.keys()) {
        if !names.contains(&name) {
            names.push(name);
        }
    }
    let header: Vec<Value> = names.iter().map(|name| name.as_str().into()).collect();
    row(header.iter(), text);
    for map in maps {
        row(names.iter().map(|name| map.get(*name).unwrap_or(&Value::Null)), text);
    }
}

fn row<'a>(cells: impl Iterator<Item = &'a Value>, text: &mut String) {
    for (at, value) in cells.enumerate() {
        if at > 0 {
            text.push(',');
        }
        let cell = match value {
            Value::Null => String::new(),
            Value::String(cell) => cell.clone(),
            // What is no single value is JSON in its cell.
            other => other.to_string(),
        };
        if cell.contains([',', '"', '\n', '\r']) {
            text.push('"');
            text.push_str(&cell.replace('"', "\"\""));
            text.push('"');
        } else {
            text.push_str(&cell);
        }
    }
    text.push('\n');
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn cells_in_quotes_hold_commas_quotes_and_lines() {
        let rows = read("question,context\r\n\"a \"\"b\"\", c\",\"d\ne\"\nf,\n\n", 9).unwrap();
        assert_eq!(rows, [["question", "context"], ["a \"b\", c", "d\ne"], ["f", ""]]);
        assert_eq!(read("\u{feff}inputs\na", 9).unwrap(), [["inputs"], ["a"]]);
        assert_eq!(read("inputs\n\"\"\n", 9).unwrap(), [["inputs"], [""]]);
        assert_eq!(read("inputs\n\na\r\n\r\n", 9).unwrap(), [["inputs"], ["a"]]);
    }

    #[test]
    fn a_broken_table_is_refused_with_its_line() {
        let refusal = |text: &str| read(text, 2).unwrap_err().to_string();
        assert_eq!(refusal("a,b\nc\n"), "line 2 of the CSV: there are 1 cells, not 2");
        assert_eq!(refusal("a\n\"b"), "line 2 of the CSV: a quote is not closed");
        assert_eq!(
            refusal("a\n\"b\"c"),
            "line 2 of the CSV: something stands behind a closing quote"
        );
        assert_eq!(refusal("a\nb\nc\nd"), "the CSV has more than 2 rows");
        assert!(refusal(&",".repeat(9)).contains("too many columns"));
    }

    #[test]
    fn answers_in_the_shape_of_a_table_are_written() {
        let text =
            |value: Value| write(&value).map(|bytes| String::from_utf8(bytes.to_vec()).unwrap());
        assert_eq!(text(json!([{"label": "a", "score": 0.5}])).unwrap(), "label,score\na,0.5\n");
        assert_eq!(text(json!({"answer": "x, \"y\""})).unwrap(), "answer\n\"x, \"\"y\"\"\"\n");
        assert_eq!(text(json!([[1, 2], [3, 4]])).unwrap(), "1,2\n3,4\n");
        assert_eq!(text(json!([1, 2])).unwrap(), "1,2\n");
        assert_eq!(
            text(json!([[{"word": "a"}], [], [{"word": "b", "end": 1}]])).unwrap(),
            "input,word,end\n0,a,\n2,b,1\n"
        );
        assert_eq!(text(json!([[[1]]])), None);
        assert_eq!(text(json!("text")), None);
        assert_eq!(write_vectors(&[vec![0.5, -1.0], vec![1e-7, 2.0]]), "0.5,-1\n0.0000001,2\n");
    }
}
