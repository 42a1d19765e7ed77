//! What a filter of the log may say.

/// A word that is no level would be taken for the name of a part of the program, of which there
/// is none: then nothing at all is logged.
pub(super) fn check(filter: &str) -> Result<(), String> {
    const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];
    let mut words = filter.split(',').map(str::trim).filter(|word| !word.is_empty()).peekable();
    if words.peek().is_none() {
        return Err(format!("is empty: one of {}", LEVELS.join(", ")));
    }
    let is_level = |word: &str| LEVELS.iter().any(|level| word.eq_ignore_ascii_case(level));
    match words.find(|word| !word.contains(['=', '[']) && !is_level(word)) {
        Some(word) => Err(format!(
            "'{word}' is not a level: one of {}, or a filter like info,roundhouse_store=debug",
            LEVELS.join(", ")
        )),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Config;
    use super::*;
    use crate::cli::ServeFlags;

    #[test]
    fn a_word_that_is_no_level_is_refused_with_the_levels() {
        let fine =
            ["info", "WARN", "off", "info,roundhouse_store=debug", "[span]=trace", "a=debug,"];
        for filter in fine {
            assert_eq!(check(filter), Ok(()), "{filter}");
        }
        let told = |filter: &str| check(filter).unwrap_err();
        let levels = "off, error, warn, info, debug, trace";
        assert!(told("verbose").starts_with(&format!("'verbose' is not a level: one of {levels}")));
        assert!(told("info, hyper").starts_with("'hyper' is not a level"));
        assert_eq!(told(" ,"), format!("is empty: one of {levels}"));
    }

    #[test]
    fn whoever_says_it_is_named() {
        let fault = |text: &str, env: &dyn Fn(&str) -> Option<String>, level: Option<&str>| {
            let flags = ServeFlags {
                store: vec!["file:///m/".into()],
                log_level: level.map(str::to_owned),
                ..ServeFlags::default()
            };
            let text = format!("version = 1\n{text}");
            Config::parse(Some(&text), env, &flags).unwrap_err()[0].to_string()
        };
        let none = |_: &str| None;
        let written = fault("[log]\nlevel = \"loud\"", &none, None);
        assert!(written.starts_with("log.level: 'loud' is not a level"), "{written}");
        let flag = fault("", &none, Some("loud"));
        assert!(flag.ends_with("(set by --log-level)"), "{flag}");
        let variable = |name: &str| (name == "RUST_LOG").then(|| "loud".to_owned());
        let by = fault("", &variable, None);
        assert!(by.ends_with("(set by RUST_LOG)"), "{by}");
    }
}
