//! What an operator may have meant by a name that nobody has. Operators may see all targets; the data
//! port, whose callers may not, never says it.

use roundhouse_types::{ErrorKind, Failure, ModelId};

use super::Admin;

/// Names that are offered at most.
const OFFERED: usize = 3;
/// Names that are looked at: the rest is not worth the time of one who mistyped.
const LOOKED_AT: usize = 50_000;

/// Names of the endpoint that are near to a model's, the nearest first; none where the store does not
/// answer.
pub(super) async fn near(admin: &Admin, model: &ModelId) -> Vec<String> {
    let Some(catalog) = admin.catalogs.get().get(&model.endpoint).cloned() else {
        return Vec::new();
    };
    let Ok(listed) = catalog.list(None, LOOKED_AT).await else { return Vec::new() };
    let meant = model.target.to_string();
    let names: Vec<String> = listed.targets.into_iter().map(|it| it.name.to_string()).collect();
    tokio::task::spawn_blocking(move || nearest(&meant, names)).await.unwrap_or_default()
}

/// A failure that says so, where it is that there is no such model.
pub(super) async fn explained(admin: &Admin, model: &ModelId, failure: Failure) -> Failure {
    if failure.kind() != ErrorKind::ModelNotFound {
        return failure;
    }
    match question(&near(admin, model).await) {
        Some(question) => {
            let message = format!("{}; {question}", failure.message());
            Failure::new(failure.kind(), message).with_retry(failure.retry())
        }
        None => failure,
    }
}

/// `did you mean a, b or c?`; `None` where there is nothing to offer.
fn question(names: &[String]) -> Option<String> {
    let (last, others) = names.split_last()?;
    Some(match others.is_empty() {
        true => format!("did you mean {last}?"),
        false => format!("did you mean {} or {last}?", others.join(", ")),
    })
}

fn nearest(meant: &str, names: Vec<String>) -> Vec<String> {
    // A letter in four may be wrong, as long as most are right.
    let most = (meant.chars().count() / 4).clamp(1, 6);
    let near = names.into_iter().filter_map(|name| {
        // Its last part, or with an archive's ending: as good as written.
        let is_part = name.strip_suffix(meant).is_some_and(|rest| rest.ends_with('/'))
            || name.strip_prefix(meant).is_some_and(|rest| rest.starts_with(['.', '/']));
        match is_part {
            true => Some((0, name)),
            false => distance(meant, &name, most).map(|apart| (apart, name)),
        }
    });
    let mut near: Vec<(usize, String)> = near.collect();
    near.sort();
    near.into_iter().take(OFFERED).map(|(_, name)| name).collect()
}

/// Letters between what two names have in common at both ends that are compared at most.
const LETTERS_MOST: usize = 64;

/// How many letters have to be added, left out or changed; `None` where it is more than `most`.
fn distance(one: &str, other: &str, most: usize) -> Option<usize> {
    let (one, other): (Vec<char>, Vec<char>) = (one.chars().collect(), other.chars().collect());
    if one.len().abs_diff(other.len()) > most {
        return None;
    }
    // What both begin and end with costs nothing, and tenants' long names share most of themselves.
    let same = one.iter().zip(&other).take_while(|(a, b)| a == b).count();
    let (one, other) = (&one[same..], &other[same..]);
    let same = one.iter().rev().zip(other.iter().rev()).take_while(|(a, b)| a == b).count();
    let (one, other) = (&one[..one.len() - same], &other[..other.len() - same]);
    if one.len().max(other.len()) > LETTERS_MOST {
        return None;
    }
    let mut above: Vec<usize> = (0..=other.len()).collect();
    for (row, letter) in one.iter().enumerate() {
        let mut diagonal = above[0];
        above[0] = row + 1;
        for (column, theirs) in other.iter().enumerate() {
            let changed = diagonal + usize::from(letter != theirs);
            diagonal = above[column + 1];
            above[column + 1] = changed.min(above[column] + 1).min(diagonal + 1);
        }
        if above.iter().all(|apart| *apart > most) {
            return None;
        }
    }
    Some(above[other.len()]).filter(|apart| *apart <= most)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offered(meant: &str) -> Vec<String> {
        let names =
            ["support/base", "support/birch.tar.gz", "search/encoder", "acme/chat", "z/chat"];
        nearest(meant, names.map(str::to_owned).to_vec())
    }

    #[test]
    fn what_was_meant_is_offered_and_nothing_else() {
        assert_eq!(offered("suport/base"), ["support/base"]);
        assert_eq!(offered("support/birch"), ["support/birch.tar.gz"]);
        assert_eq!(offered("chat"), ["acme/chat", "z/chat"]);
        assert_eq!(offered("serach/encoder"), ["search/encoder"]);
        assert_eq!(offered("weather"), [""; 0]);
        assert_eq!(offered("x"), [""; 0]);
    }

    #[test]
    fn a_question_reads_as_one() {
        let names = |count: usize| ["a", "b", "c"].map(str::to_owned)[..count].to_vec();
        assert_eq!(question(&names(0)), None);
        assert_eq!(question(&names(1)).unwrap(), "did you mean a?");
        assert_eq!(question(&names(3)).unwrap(), "did you mean a, b or c?");
    }
}
