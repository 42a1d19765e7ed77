//! Recorded requests: when, of which model, of whom, how long. Knows the CSV files of Alibaba's GenAI
//! trace of 2026 (`lora_request_trace.csv`) and of Azure's LLM inference trace of 2023, and our own with
//! the columns `time`, `target` and, where there is one, `tenant`.

use std::collections::HashMap;

/// One recorded request.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Recorded {
    /// Seconds since the first.
    pub(crate) at: f64,
    /// What it asked for, as a rank: 0 is what was asked for most.
    pub(crate) model: Option<usize>,
    /// Whose it was, by order of appearance.
    pub(crate) tenant: Option<usize>,
    /// Tokens of its prompt and of its answer.
    pub(crate) prompt: Option<usize>,
    pub(crate) answer: Option<usize>,
}

/// Which column holds what.
struct Columns {
    time: usize,
    model: Option<usize>,
    tenant: Option<usize>,
    prompt: Option<usize>,
    answer: Option<usize>,
}

/// Reads a trace, in the order of time.
///
/// # Errors
/// With the line's number, where it has no time or the header is of no known trace.
pub(crate) fn read(text: &str) -> Result<Vec<Recorded>, String> {
    let mut lines = text.lines().enumerate();
    let header = lines.next().map_or("", |(_, line)| line);
    let columns = columns(header).ok_or_else(|| {
        format!("line 1: expected the columns of a known trace, or time and target: {header}")
    })?;
    let (mut models, mut tenants) = (HashMap::new(), HashMap::new());
    let mut found = Vec::new();
    for (number, line) in lines.filter(|(_, line)| !line.is_empty()) {
        let fields: Vec<&str> = line.split(',').collect();
        let field =
            |column: Option<usize>| fields.get(column?).copied().filter(|it| !it.is_empty());
        let time = field(Some(columns.time)).and_then(seconds);
        let time = time.ok_or_else(|| format!("line {}: no time that can be read", number + 1))?;
        let index = |known: &mut HashMap<String, usize>, name: &str| {
            let next = known.len();
            *known.entry(name.to_owned()).or_insert(next)
        };
        let count = |column| field(column).and_then(|it| it.parse::<f64>().ok());
        found.push(Recorded {
            at: time,
            model: field(columns.model).map(|name| index(&mut models, name)),
            tenant: field(columns.tenant).map(|name| index(&mut tenants, name)),
            prompt: count(columns.prompt).map(|tokens| tokens as usize),
            answer: count(columns.answer).map(|tokens| tokens as usize),
        });
    }
    found.sort_by(|a, b| a.at.total_cmp(&b.at));
    let first = found.first().map_or(0.0, |it| it.at);
    found.iter_mut().for_each(|it| it.at -= first);
    rank(&mut found, models.len());
    Ok(found)
}

fn columns(header: &str) -> Option<Columns> {
    let names: Vec<&str> =
        header.trim_start_matches('\u{feff}').split(',').map(str::trim).collect();
    let at = |name: &str| names.iter().position(|it| *it == name);
    if let (Some(time), Some(model)) = (at("gmt_create"), at("checkpoint_model_version_id")) {
        let (tenant, prompt) = (at("groupId"), at("prompt_length"));
        return Some(Columns { time, model: Some(model), tenant, prompt, answer: None });
    }
    if let (Some(time), Some(prompt)) = (at("TIMESTAMP"), at("ContextTokens")) {
        let (prompt, answer) = (Some(prompt), at("GeneratedTokens"));
        return Some(Columns { time, model: None, tenant: None, prompt, answer });
    }
    let (time, model) = (at("time")?, at("target")?);
    Some(Columns { time, model: Some(model), tenant: at("tenant"), prompt: None, answer: None })
}

/// Numbers models by how often they are asked for.
fn rank(found: &mut [Recorded], models: usize) {
    let mut counts: Vec<(usize, usize)> = (0..models).map(|model| (0, model)).collect();
    found.iter().filter_map(|it| it.model).for_each(|model| counts[model].0 += 1);
    counts.sort_by_key(|(count, model)| (std::cmp::Reverse(*count), *model));
    let mut ranks = vec![0; models];
    for (rank, (_, model)) in counts.iter().enumerate() {
        ranks[*model] = rank;
    }
    found.iter_mut().for_each(|it| it.model = it.model.map(|model| ranks[model]));
}

/// Seconds, or `2024-11-15 16:57:50.25` in UTC as seconds since 1970.
fn seconds(text: &str) -> Option<f64> {
    if let Ok(seconds) = text.parse::<f64>() {
        return seconds.is_finite().then_some(seconds);
    }
    let (date, time) = text.trim_end_matches('Z').split_once([' ', 'T'])?;
    let mut date = date.splitn(3, '-').map(|part| part.parse::<i64>().ok());
    let (year, month, day) = (date.next()??, date.next()??, date.next()??);
    let mut time = time.splitn(3, ':').map(|part| part.parse::<f64>().ok());
    let (hour, minute, second) = (time.next()??, time.next()??, time.next()??);
    Some(days(year, month, day) as f64 * 86_400.0 + hour * 3_600.0 + minute * 60.0 + second)
}

/// Days since 1970 of a day of the Gregorian calendar, whose year is taken to begin in March.
fn days(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let (era, of_era) = (year.div_euclid(400), year.rem_euclid(400));
    let of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn alibabas_rows_have_models_by_rank_and_tenants() {
        let text = "gmt_create,predict_type,groupId,prompt_length,checkpoint_model_version_id\n\
            2024-11-15 18:16:14,T,G1,93.0,M1\n2024-11-15 16:57:50,T,G0,63.0,M0\n\
            2024-11-15 18:17:06,T,G1,,M1\n";
        let found = read(text).unwrap();
        let times: Vec<f64> = found.iter().map(|it| it.at).collect();
        assert_eq!(times, [0.0, 4_704.0, 4_756.0]);
        assert_eq!(
            found.iter().map(|it| it.model).collect::<Vec<_>>(),
            [Some(1), Some(0), Some(0)]
        );
        assert_eq!(found[0].tenant, Some(1));
        assert_eq!((found[0].prompt, found[2].prompt), (Some(63), None));
    }

    #[test]
    fn azures_rows_have_lengths() {
        let text = "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46.6805900,374,44\n\
            2023-11-16 18:15:50.9951690,396,109\n";
        let found = read(text).unwrap();
        assert!((found[1].at - 4.314_579).abs() < 1e-5, "{}", found[1].at);
        assert_eq!((found[0].prompt, found[0].answer, found[0].model), (Some(374), Some(44), None));
    }

    #[test]
    fn our_own_rows_and_what_cannot_be_read() {
        let found = read("time,target,tenant\n10,a/b,x\n12.5,a/c,y\n").unwrap();
        assert_eq!((found[1].at, found[1].tenant), (2.5, Some(1)));
        assert!(read("a,b\n1,2\n").unwrap_err().contains("line 1"));
        assert!(read("time,target\nsoon,a\n").unwrap_err().contains("line 2"));
        assert_eq!(seconds("1970-01-01 00:00:01"), Some(1.0));
        assert_eq!(seconds("2000-03-01 00:00:00"), Some(951_868_800.0));
    }
}
