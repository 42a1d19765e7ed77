//! What a handler's artefact asks for in `serving.properties`.

use std::path::Path;
use std::time::Duration;

use roundhouse_models::{PROPERTIES, PROPERTIES_MAX, property_pairs};
use roundhouse_workers::{Config, Settings};

/// Of the keys that nothing honours, so many are named, each by so many of its letters.
const NAMES_MAX: usize = 12;
const NAME_MAX: usize = 64;

/// A handler's settings with what its file of properties asks for, within the operator's limits, and
/// the keys that nothing honours. What `roundhouse.toml` says goes before. Blocking.
pub(super) fn with_properties(
    dir: &Path,
    settings: &Settings,
    config: &Config,
) -> (Settings, Vec<String>) {
    let (mut settings, mut unheeded) = (settings.clone(), Vec::new());
    let file = dir.join(PROPERTIES);
    let is_read =
        std::fs::metadata(&file).is_ok_and(|it| it.is_file() && it.len() <= PROPERTIES_MAX);
    let Some(text) = is_read.then(|| std::fs::read(&file).ok()).flatten() else {
        return (settings, unheeded);
    };
    let own_workers = settings.workers != config.workers;
    for (key, value) in property_pairs(&String::from_utf8_lossy(&text)) {
        let number = value.parse::<u64>().ok().filter(|number| *number > 0);
        let is_heeded = match (key.as_str(), number) {
            ("option.predict_timeout", Some(seconds)) => {
                settings.time_limit = settings.time_limit.min(Duration::from_secs(seconds));
                true
            }
            ("minWorkers" | "maxWorkers", Some(count)) => {
                if !own_workers {
                    let count = usize::try_from(count).unwrap_or(usize::MAX);
                    settings.workers = count.min(config.max_workers);
                }
                true
            }
            ("option.entryPoint", _) => ["inference.py", "code/inference.py"].contains(&&*value),
            ("engine", _) => true,
            _ => false,
        };
        if !is_heeded && unheeded.len() < NAMES_MAX {
            let plain = |letter: char| if letter.is_ascii_graphic() { letter } else { '?' };
            unheeded.push(key.chars().take(NAME_MAX).map(plain).collect());
        }
    }
    (settings, unheeded)
}

#[cfg(test)]
mod tests {
    use roundhouse_types::Bytes;

    use super::*;
    use crate::app::settings;
    use crate::config::Config as Server;

    #[test]
    fn a_handlers_properties_count_within_the_operators_limits() {
        let dir = tempfile::tempdir().unwrap();
        let config = settings::handlers(&Server::default(), Bytes::gib(1));
        let operators = Settings::read(None, &config).unwrap();
        assert_eq!(with_properties(dir.path(), &operators, &config), (operators.clone(), vec![]));
        let text = "engine=Python\noption.predict_timeout=7\nmaxWorkers=1000\n\
                    option.entryPoint=model.py\nbatch_size=4\n";
        std::fs::write(dir.path().join(PROPERTIES), text).unwrap();
        let (asked, unheeded) = with_properties(dir.path(), &operators, &config);
        assert_eq!((asked.time_limit, asked.workers), (Duration::from_secs(7), config.max_workers));
        assert_eq!(unheeded, ["option.entryPoint", "batch_size"]);
        let own = Settings { workers: 2, ..operators };
        assert_eq!(with_properties(dir.path(), &own, &config).0.workers, 2);
    }
}
