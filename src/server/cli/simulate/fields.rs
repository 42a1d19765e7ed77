//! Columns of CSV files, and times.

use std::time::Duration;

/// The latest time of a trace, in seconds: 30,000 years.
const LATEST: f64 = 1e12;

/// The fields of a line; quoted ones may hold commas and doubled quotes.
///
/// # Errors
/// A quote that does not end on the line.
pub(super) fn split(line: &str) -> Result<Vec<String>, String> {
    let mut fields = vec![String::new()];
    let mut quoted = false;
    let mut characters = line.chars().peekable();
    while let Some(character) = characters.next() {
        let field = fields.last_mut().expect("there is always a last field");
        match character {
            '"' if quoted && characters.peek() == Some(&'"') => {
                characters.next();
                field.push('"');
            }
            '"' => quoted = !quoted,
            ',' if !quoted => fields.push(String::new()),
            other => field.push(other),
        }
    }
    if quoted { Err("a quoted field does not end".into()) } else { Ok(fields) }
}

/// Seconds as a number, or a date and a time of day, of which only differences count.
pub(super) fn time(text: &str) -> Result<Duration, String> {
    let text = text.trim();
    let seconds = text.parse().ok().or_else(|| civil(text));
    seconds.and_then(self::seconds).ok_or_else(|| {
        format!(
            "'{text}' is not a time: write seconds, up to {LATEST:e}, or like 2026-11-21 07:00:00"
        )
    })
}

/// A time of a trace; none where it is negative, no number, or too late to reckon with.
pub(super) fn seconds(seconds: f64) -> Option<Duration> {
    Duration::try_from_secs_f64(seconds).ok().filter(|_| seconds <= LATEST)
}

/// `2026-11-21 07:00:00`, with a `T` between and a fraction and a `Z` behind where one likes, in
/// seconds since 1970.
fn civil(text: &str) -> Option<f64> {
    let (date, clock) = text.trim_end_matches('Z').split_once([' ', 'T'])?;
    let numbers = |text: &str, by: char| -> Option<Vec<f64>> {
        let number = |part: &str| part.parse::<f64>().ok().filter(|number| *number >= 0.0);
        text.split(by).map(number).collect()
    };
    let (date, clock) = (numbers(date, '-')?, numbers(clock, ':')?);
    let ([year, month, day], [hours, minutes, seconds]) = (&date[..], &clock[..]) else {
        return None;
    };
    let in_range = (1.0..=12.0).contains(month)
        && (1.0..=31.0).contains(day)
        && *hours < 24.0
        && *minutes < 60.0
        && *seconds < 61.0;
    // Years that begin in March have their leap day at the end.
    let (year, month) = if *month > 2.0 { (*year, month - 3.0) } else { (year - 1.0, month + 9.0) };
    let leap_days = (year / 4.0).floor() - (year / 100.0).floor() + (year / 400.0).floor();
    let day_of_year = ((153.0 * month + 2.0) / 5.0).floor() + day - 1.0;
    let days = 365.0 * year + leap_days + day_of_year - 719_468.0;
    in_range.then_some(days * 86_400.0 + hours * 3600.0 + minutes * 60.0 + seconds)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quoted_fields_hold_commas_and_quotes() {
        assert_eq!(split("a,\"b,\"\"c\"\"\",,d").unwrap(), ["a", "b,\"c\"", "", "d"]);
        assert!(split("a,\"b").is_err());
    }

    #[test]
    fn times_are_seconds_or_dates() {
        let cases = [
            ("12.5", 12.5),
            ("1970-01-01 00:00:00", 0.0),
            ("2000-02-29T12:00:00Z", 951_825_600.0),
            ("2024-12-31 23:59:59.250", 1_735_689_599.25),
        ];
        for (text, want) in cases {
            assert_eq!(time(text), Ok(Duration::from_secs_f64(want)), "{text}");
        }
        assert_eq!(time("1e12"), Ok(Duration::from_secs(1_000_000_000_000)));
        for text in ["1e19", "1.1e12", "inf", "nan", "40000-01-01 00:00:00"] {
            assert!(time(text).is_err(), "{text}");
        }
        for text in ["", "-1", "yesterday", "2024-13-01 00:00:00", "2024-01-01 24:00:00"] {
            assert!(time(text).is_err(), "{text}");
        }
    }
}
