use super::*;
use crate::testing;

fn layout(names: &[&str]) -> Option<(Option<&'static str>, Option<&'static str>)> {
    let sizes = names.iter().map(|name| ((*name).to_owned(), 1)).collect();
    Layout::of(&sizes).map(|layout| (layout.code, layout.requirements))
}

#[test]
fn a_script_or_a_plain_model_makes_a_handler() {
    let script = ["code/inference.py", "code/requirements.txt", "config.json"];
    assert_eq!(layout(&script), Some((Some("code"), Some("code/requirements.txt"))));
    assert_eq!(layout(&["code/predict.py", "model.joblib"]), Some((Some("code"), None)));
    assert_eq!(layout(&["code/a.py", "code/b.py", "model.joblib"]), Some((None, None)));
    assert_eq!(layout(&["inference.py", "w.bin"]), Some((Some(""), None)));
    assert_eq!(
        layout(&["model.joblib", "requirements.txt"]),
        Some((None, Some("requirements.txt")))
    );
    assert_eq!(layout(&["xgboost-model"]), Some((None, None)));
    assert_eq!(layout(&["model.pth"]), Some((None, None)));
    assert_eq!(layout(&["a.pt", "b.pth"]), None);
    assert_eq!(layout(&["config.json", "model.pt"]), None);
    assert_eq!(layout(&["model.safetensors"]), None);
}

#[test]
fn an_artefacts_wishes_stay_within_the_operators_limits() {
    let config = testing::config();
    let text = "[handler]\nmemory = \"512MiB\"\nworkers = 3\ntimeout = \"9000s\"\n\
                framework = \"sklearn\"\nenv = { MODE = \"fast\" }\n";
    let settings = Settings::read(Some(text), &config).unwrap();
    assert_eq!(settings.memory, Some(Bytes::mib(512)));
    assert_eq!(settings.workers, 3);
    assert_eq!(settings.time_limit, config.time_limit);
    assert_eq!(settings.framework, Framework::Sklearn);
    assert_eq!(settings.variables["MODE"], "fast");
    let without = Settings::read(None, &config).unwrap();
    assert_eq!((without.memory, without.workers), (None, config.workers));
}

#[test]
fn faulty_settings_say_where() {
    let cases = [
        ("[handler]\nmemory = \"much\"", "line 2"),
        ("[handler]\nmemry = 1", "line 2"),
        ("[handler]\nmemory = \"900GiB\"", "handlers.max_memory"),
        ("[handler]\nmemory = 512", "512 B is less than"),
        ("[handler]\nworkers = 0", "handler.workers: 0"),
        ("[handler]\nworkers = 1000", "handler.workers: 1000"),
        ("[handlers]\nworkers = 1", "line 1"),
        ("memory = \"512MiB\"", "line 1"),
        ("[handler]\ntimeout = \"soon\"", "handler.timeout"),
        ("[handler]\nenv = { LD_PRELOAD = \"x\" }", "handler.env.LD_PRELOAD"),
        ("[handler]\nenv = { \"A=B\" = \"x\" }", "handler.env.A=B"),
    ];
    for (text, expected) in cases {
        let error = Settings::read(Some(text), &testing::config()).unwrap_err().to_string();
        assert!(error.contains(expected), "{text}: {error}");
    }
}
