//! Numbers with their nouns, as they are told to people.

use std::fmt::Display;

/// `1 fault`, `2 faults`. Of nouns that take an `s`.
pub fn count<N: Display + PartialEq + From<u8>>(number: N, noun: &str) -> String {
    let ending = if number == N::from(1) { "" } else { "s" };
    format!("{number} {noun}{ending}")
}

/// `1 request waits`, `2 requests wait`: the same with what it or they do.
pub fn count_that<N: Display + PartialEq + From<u8>>(
    number: N,
    noun: &str,
    [one_does, they_do]: [&str; 2],
) -> String {
    let does = if number == N::from(1) { one_does } else { they_do };
    format!("{} {does}", count(number, noun))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_is_no_plural() {
        assert_eq!(
            [0, 1, 2].map(|number| count(number, "adapter")),
            ["0 adapters", "1 adapter", "2 adapters"]
        );
        let wait = |number: usize| count_that(number, "request", ["waits", "wait"]);
        assert_eq!(
            [wait(0), wait(1), wait(2)],
            ["0 requests wait", "1 request waits", "2 requests wait"]
        );
    }
}
