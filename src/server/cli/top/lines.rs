//! Lines that fit a terminal: what does not fit one goes on in the next.

use super::width::columns_of;

/// What stands before a line that goes on.
const FURTHER: &str = "  ";

/// Parts with a gap between them, in as many lines as they take.
pub(super) fn flowed(parts: &[String], columns: usize) -> Vec<String> {
    joined(parts.iter().map(String::as_str), "  ", columns)
}

/// Words, likewise.
pub(super) fn wrapped(text: &str, columns: usize) -> Vec<String> {
    joined(text.split(' '), " ", columns)
}

fn joined<'a>(parts: impl Iterator<Item = &'a str>, gap: &str, columns: usize) -> Vec<String> {
    let (mut lines, mut taken) = (vec![String::new()], 0);
    for part in parts {
        let wide = width(part);
        let line = lines.last_mut().expect("there is one from the beginning");
        if taken == 0 || taken + gap.len() + wide <= columns {
            if taken > 0 {
                line.push_str(gap);
                taken += gap.len();
            }
            line.push_str(part);
            taken += wide;
        } else {
            lines.push(format!("{FURTHER}{part}"));
            taken = FURTHER.len() + wide;
        }
    }
    lines
}

fn width(text: &str) -> usize {
    text.chars().map(columns_of).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_fit_goes_on_in_the_next_line() {
        let parts: Vec<String> = ["models 3", "loading 1", "waiting 12"].map(Into::into).into();
        assert_eq!(flowed(&parts, 80), ["models 3  loading 1  waiting 12"]);
        assert_eq!(flowed(&parts, 20), ["models 3  loading 1", "  waiting 12"]);
        assert_eq!(flowed(&parts, 5), ["models 3", "  loading 1", "  waiting 12"]);
        assert_eq!(wrapped("模型 is not there", 8), ["模型 is", "  not", "  there"]);
        assert_eq!(wrapped("", 8), [""]);
    }
}
