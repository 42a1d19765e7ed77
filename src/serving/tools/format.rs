//! The ways in which families of models write calls of tools.

/// How a model writes a call; found from its chat template, which shows it the way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CallFormat {
    /// `<tool_call>{"name": …, "arguments": {…}}</tool_call>`, any number of them among text: Hermes,
    /// Qwen 2.5 and 3.
    Hermes,
    /// `{"name": …, "parameters": {…}}`, the whole answer, perhaps behind `<|python_tag|>`: Llama 3.
    Llama,
    /// `[TOOL_CALLS]` and a list of `{"name": …, "arguments": {…}}`: Mistral until 2024.
    MistralList,
    /// `[TOOL_CALLS]name[ARGS]{…}` for each call: Mistral since.
    MistralArguments,
    /// `{"name": …, "arguments": {…}}`, the whole answer: what is demanded of models whose own way
    /// is not known.
    Plain,
}

impl CallFormat {
    /// The way that a template shows; `None` where it shows none that is known.
    pub(crate) fn of(template: &str) -> Option<Self> {
        let shows = |text: &str| template.contains(text);
        if shows("[TOOL_CALLS]") {
            return Some(if shows("[ARGS]") { Self::MistralArguments } else { Self::MistralList });
        }
        // Others write XML between the same tags.
        if shows("<tool_call>") && !shows("<function=") && !shows("<arg_key>") {
            return Some(Self::Hermes);
        }
        if shows("<|python_tag|>") || shows("\"parameters\": dictionary of argument") {
            return Some(Self::Llama);
        }
        None
    }

    /// What its calls are marked with. Where these are special tokens, they are part of the text all
    /// the same for who looks for calls.
    pub(crate) fn markers(self) -> &'static [&'static str] {
        match self {
            Self::Hermes => &["<tool_call>", "</tool_call>"],
            Self::Llama => &["<|python_tag|>"],
            Self::MistralList => &["[TOOL_CALLS]"],
            Self::MistralArguments => &["[TOOL_CALLS]", "[ARGS]"],
            Self::Plain => &[],
        }
    }

    /// The name that it has for a call's arguments.
    pub(super) fn arguments(self) -> &'static str {
        match self {
            Self::Llama => "parameters",
            _ => "arguments",
        }
    }
}
