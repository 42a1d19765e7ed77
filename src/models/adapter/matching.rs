//! Which modules an adapter is for, by the rules with which PEFT matches names.

use regex::{Regex, RegexBuilder};

/// Bytes that one pattern may take, compiled and while it runs: its author is not trusted.
const REGEX_MAX: usize = 1 << 17;

/// About what a compiled pattern may take: a program forwards, one backwards and a cache of
/// states, which repetitions and large classes make long.
fn bytes(regex: &Regex) -> u64 {
    let text = regex.as_str();
    let grows = ["{", r"\p", r"\P", r"\w", r"\W"].iter().any(|part| text.contains(part));
    match grows || text.len() > 256 {
        true => 3 * REGEX_MAX as u64,
        false => 16 << 10,
    }
}

/// Compiles a pattern.
pub(super) fn regex(text: &str) -> Result<Regex, regex::Error> {
    RegexBuilder::new(text).size_limit(REGEX_MAX).dfa_size_limit(REGEX_MAX).build()
}

/// A key of `rank_pattern` or `alpha_pattern`: the end of a module's name, as a pattern.
#[derive(Debug, Clone)]
pub(super) enum Pattern {
    /// Letters, digits and dots; a dot stands for any one character.
    Plain(String),
    Regex(Regex),
}

impl Pattern {
    pub(super) fn new(text: &str) -> Result<Self, regex::Error> {
        match Self::is_plain(text) {
            true => Ok(Self::Plain(text.to_owned())),
            false => Ok(Self::Regex(regex(&format!(r"^(?:.*\.)?(?:{text})$"))?)),
        }
    }

    /// Whether it is compared letter by letter.
    pub(super) fn is_plain(text: &str) -> bool {
        text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-.".contains(&byte))
    }

    /// About what it takes.
    pub(super) fn bytes(&self) -> u64 {
        match self {
            Self::Plain(_) => 0,
            Self::Regex(regex) => bytes(regex),
        }
    }

    pub(super) fn matches(&self, module: &str) -> bool {
        match self {
            Self::Regex(regex) => regex.is_match(module),
            Self::Plain(text) => {
                let (text, module) = (text.as_bytes(), module.as_bytes());
                let Some(before) = module.len().checked_sub(text.len()) else { return false };
                let same = |(a, b): (&u8, &u8)| a == b || *a == b'.';
                (before == 0 || module[before - 1] == b'.')
                    && text.iter().zip(&module[before..]).all(same)
            }
        }
    }
}

#[derive(Debug, Clone)]
enum Which {
    /// The file does not say.
    Unsaid,
    AllLinear,
    List(Vec<String>),
    Pattern(Regex),
}

#[derive(Debug, Clone)]
enum Excluded {
    List(Vec<String>),
    Pattern(Regex),
}

/// The modules that an adapter has matrices for.
#[derive(Debug, Clone)]
pub(super) struct Targets {
    which: Which,
    excluded: Excluded,
    saved: Vec<Regex>,
    layers: Vec<u64>,
    layer_patterns: Vec<Regex>,
}

impl Targets {
    /// About what its compiled patterns may take.
    pub(super) fn patterns_bytes(&self) -> u64 {
        let which = match &self.which {
            Which::Pattern(regex) => Some(regex),
            Which::Unsaid | Which::AllLinear | Which::List(_) => None,
        };
        let excluded = match &self.excluded {
            Excluded::Pattern(regex) => Some(regex),
            Excluded::List(_) => None,
        };
        let all = self.saved.iter().chain(&self.layer_patterns).chain(which).chain(excluded);
        all.map(bytes).sum()
    }

    fn of(which: Which) -> Self {
        Self {
            which,
            excluded: Excluded::List(Vec::new()),
            saved: Vec::new(),
            layers: Vec::new(),
            layer_patterns: Vec::new(),
        }
    }

    pub(super) fn unsaid() -> Self {
        Self::of(Which::Unsaid)
    }

    pub(super) fn all_linear() -> Self {
        Self::of(Which::AllLinear)
    }

    pub(super) fn list(names: Vec<String>) -> Self {
        Self::of(Which::List(names))
    }

    pub(super) fn pattern(regex: Regex) -> Self {
        Self::of(Which::Pattern(regex))
    }

    pub(super) fn exclude_list(&mut self, names: Vec<String>) {
        self.excluded = Excluded::List(names);
    }

    pub(super) fn exclude_pattern(&mut self, regex: Regex) {
        self.excluded = Excluded::Pattern(regex);
    }

    /// Modules that the adapter brings whole have no matrices.
    pub(super) fn exclude_saved(&mut self, saved: Vec<Regex>) {
        self.saved = saved;
    }

    /// Only layers of these numbers, where there are any; `patterns` find a module's number.
    pub(super) fn only_layers(&mut self, layers: Vec<u64>, patterns: Vec<Regex>) {
        self.layers = layers;
        self.layer_patterns = patterns;
    }

    /// Whether the file says which modules they are, so that one without matrices is missing.
    pub(super) fn are_said(&self) -> bool {
        !matches!(self.which, Which::Unsaid)
    }

    /// Whether a module is one of them. `is_inner`: it is a projection inside the model, not its
    /// head and not an embedding table.
    pub(super) fn has(&self, module: &str, is_inner: bool) -> bool {
        let is_excluded = match &self.excluded {
            Excluded::List(names) => names.iter().any(|name| ends_with(module, name)),
            Excluded::Pattern(regex) => regex.is_match(module),
        };
        if is_excluded || self.saved.iter().any(|regex| regex.is_match(module)) {
            return false;
        }
        match &self.which {
            Which::Unsaid => true,
            Which::AllLinear => is_inner,
            Which::Pattern(regex) => regex.is_match(module),
            Which::List(names) => {
                names.iter().any(|name| name == module)
                    || (names.iter().any(|name| ends_with(module, name)) && self.in_layers(module))
            }
        }
    }

    fn in_layers(&self, module: &str) -> bool {
        if self.layers.is_empty() {
            return true;
        }
        let found = self.layer_patterns.iter().find_map(|regex| regex.captures(module));
        let number = found.and_then(|found| found.name("index")?.as_str().parse().ok());
        number.is_some_and(|number: u64| self.layers.contains(&number))
    }
}

/// Whether a name is a module's, or its end behind a dot.
fn ends_with(module: &str, name: &str) -> bool {
    module.strip_suffix(name).is_some_and(|before| before.is_empty() || before.ends_with('.'))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MODULE: &str = "model.layers.11.self_attn.q_proj";

    #[test]
    fn patterns_match_the_ends_of_names_with_dots_for_any_character() {
        let matches = |text: &str| Pattern::new(text).unwrap().matches(MODULE);
        assert!(matches("q_proj") && matches("self_attn.q_proj") && matches(MODULE));
        assert!(!matches("self_attnxq_proj") && matches("self.attn.q_proj"));
        assert!(!matches("_proj") && !matches("k_proj"));
        assert!(matches(r".*\.11\..*q_proj") && !matches(r".*\.1\..*q_proj"));
        assert!(Pattern::new("(").is_err());
    }

    #[test]
    fn lists_name_ends_and_layers_narrow_them() {
        let mut targets = Targets::list(vec!["q_proj".into()]);
        assert!(targets.has(MODULE, true) && targets.has("q_proj", true));
        assert!(!targets.has("model.layers.0.xq_proj", true));
        let number = Regex::new(r"^.*?\.[^.]*\.(?P<index>\d+)\.").unwrap();
        targets.only_layers(vec![1, 3], vec![number.clone()]);
        assert!(!targets.has(MODULE, true) && targets.has("model.layers.3.q_proj", true));
        // A name that is given whole is meant whatever its layer.
        let mut whole = Targets::list(vec![MODULE.into()]);
        whole.only_layers(vec![1], vec![number]);
        assert!(whole.has(MODULE, true));
    }

    #[test]
    fn what_is_excluded_or_saved_is_no_target() {
        let mut targets = Targets::pattern(Regex::new(r"^(?:.*\.(q|k)_proj)$").unwrap());
        assert!(targets.has(MODULE, true) && !targets.has("model.layers.0.v_proj", true));
        targets.exclude_list(vec!["self_attn.q_proj".into()]);
        assert!(!targets.has(MODULE, true));
        let mut all = Targets::all_linear();
        assert!(all.has(MODULE, true) && !all.has("lm_head", false));
        all.exclude_saved(vec![Regex::new(r"^(?:^|.*\.)(?:self_attn)(?:$|\..*)").unwrap()]);
        assert!(!all.has(MODULE, true));
    }
}
