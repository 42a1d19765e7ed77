//! Instants as people and files write them: UTC in RFC 3339.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

const DAY: u64 = 86_400;
/// Days from 1 March of the year 0 to 1970.
const SHIFT: u64 = 719_468;
/// Days in 400 years.
const ERA: u64 = 146_097;

/// UTC with milliseconds. Times before 1970 are shown as its first instant.
pub(crate) fn rfc3339(time: SystemTime) -> String {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    let (day, seconds) = (date(since.as_secs() / DAY), since.as_secs() % DAY);
    let (hours, minutes) = (seconds / 3600, seconds / 60 % 60);
    format!("{day}T{hours:02}:{minutes:02}:{:02}.{:03}Z", seconds % 60, since.subsec_millis())
}

/// The same without a fraction of the second.
pub fn rfc3339_seconds(time: SystemTime) -> String {
    let mut text = rfc3339(time);
    text.truncate("1970-01-01T00:00:00".len());
    text + "Z"
}

/// The number of the day, since 1970, on which it is in UTC.
pub(crate) fn day(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs() / DAY
}

/// The date of a day, by its number since 1970.
pub(crate) fn date(day: u64) -> String {
    // Over 400-year eras that begin on 1 March, so that leap days fall at the end of a year.
    let shifted = day + SHIFT;
    let (era, of_era) = (shifted / ERA, shifted % ERA);
    let year_of_era = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let from_march = (5 * of_year + 2) / 153;
    let day = of_year - (153 * from_march + 2) / 5 + 1;
    let month = if from_march < 10 { from_march + 3 } else { from_march - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02}")
}

/// Reads `2026-11-21` (its first instant), `2026-11-21T13:00:00Z` or the same with a fraction of
/// the second.
///
/// # Errors
/// What was expected.
pub fn parse_instant(text: &str) -> Result<SystemTime, String> {
    let fault =
        || format!("'{text}' is not a time: write 2026-11-21 or 2026-11-21T13:00:00Z, in UTC");
    let (date, time) = match text.split_once('T') {
        Some((date, time)) => (date, time.strip_suffix('Z').ok_or_else(fault)?),
        None => (text, "00:00:00"),
    };
    let (clock, fraction) = time.split_once('.').unwrap_or((time, "0"));
    let [year, month, day] = numbers(date, '-', [4, 2, 2]).ok_or_else(fault)?;
    let [hours, minutes, seconds] = numbers(clock, ':', [2, 2, 2]).ok_or_else(fault)?;
    let is_date = year >= 1970 && (1..=12).contains(&month) && (1..=31).contains(&day);
    if !is_date || hours > 23 || minutes > 59 || seconds > 59 {
        return Err(fault());
    }
    let days = days(year, month, day);
    // The 31st of February is no day.
    if self::date(days) != date {
        return Err(fault());
    }
    let millis: String = fraction.chars().chain("000".chars()).take(3).collect();
    let is_number = fraction.bytes().all(|byte| byte.is_ascii_digit());
    let millis = millis.parse::<u64>().ok().filter(|_| is_number).ok_or_else(fault)?;
    let seconds = days * DAY + hours * 3600 + minutes * 60 + seconds;
    Ok(UNIX_EPOCH + Duration::from_millis(seconds * 1000 + millis))
}

fn numbers(text: &str, between: char, digits: [usize; 3]) -> Option<[u64; 3]> {
    let mut found = [0; 3];
    let mut parts = text.split(between);
    for (slot, digits) in found.iter_mut().zip(digits) {
        let part = parts.next()?;
        let is_number = part.len() == digits && part.bytes().all(|byte| byte.is_ascii_digit());
        *slot = part.parse().ok().filter(|_| is_number)?;
    }
    parts.next().is_none().then_some(found)
}

fn days(year: u64, month: u64, day: u64) -> u64 {
    let year = if month <= 2 { year - 1 } else { year };
    let from_march = if month > 2 { month - 3 } else { month + 9 };
    let year_of_era = year % 400;
    let of_year = (153 * from_march + 2) / 5 + day - 1;
    let of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + of_year;
    year / 400 * ERA + of_era - SHIFT
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_back() {
        for seconds in [0, 951_782_399, 951_782_400, 951_868_800, 1_795_266_000, 4_107_542_400] {
            let time = UNIX_EPOCH + Duration::from_millis(seconds * 1000 + 7);
            assert_eq!(parse_instant(&rfc3339(time)), Ok(time), "{}", rfc3339(time));
        }
        assert_eq!(
            rfc3339(UNIX_EPOCH + Duration::from_secs(951_782_400)),
            "2000-02-29T00:00:00.000Z"
        );
        let day = UNIX_EPOCH + Duration::from_secs(951_782_400);
        assert_eq!(parse_instant("2000-02-29"), Ok(day));
        assert_eq!(parse_instant("2000-02-29T00:00:00Z"), Ok(day));
    }

    #[test]
    fn what_is_no_time_is_refused() {
        let bad = [
            "",
            "2026-11-2",
            "2026-02-31",
            "2026-13-01",
            "2026-11-21T13:00:00",
            "1969-12-31",
            "2026-11-21T24:00:00Z",
            "2026-11-21T13:00:00.xZ",
            "2026-11-21-1",
            "+026-11-21",
        ];
        for text in bad {
            assert!(parse_instant(text).is_err(), "{text}");
        }
    }
}
