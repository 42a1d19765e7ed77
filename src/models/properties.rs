//! `serving.properties`: what an artefact asks for in the words of LMI containers.
//!
//! Facts of the format: `key=value` or `key: value` lines, `#` and `!` begin comments, a backslash
//! at a line's end goes on; the engine's own options are `option.…`. Of the environment the same
//! is said as `OPTION_…` and, for the others, `SERVING_…`.

use std::time::Duration;

use roundhouse_types::ModelKind;

use crate::files::Files;
use crate::inspect::{DtypeSetting, LoadSettings, Quantize};
use crate::kv::KvDtype;

/// The file.
pub const PROPERTIES: &str = "serving.properties";
/// Larger files are not read.
pub const PROPERTIES_MAX: u64 = 64 * 1024;
/// Of the keys that nothing honours, so many are named, each by so many of its letters.
const NAMES_MAX: usize = 12;
const NAME_MAX: usize = 64;

/// What is asked of a model's load and answers. What is absent is the operator's to decide, whose
/// limits hold whatever is asked.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Asked {
    /// The longest sequence served, in tokens.
    pub context: Option<usize>,
    /// How weights lie in memory.
    pub dtype: Option<DtypeSetting>,
    /// What they are quantised to; inner `None` is nothing.
    pub quantize: Option<Option<Quantize>>,
    /// In which type keys and values are kept; inner `None` is what the weights suggest.
    pub kv_dtype: Option<Option<KvDtype>>,
    /// Sequences that run at a time.
    pub running: Option<usize>,
    /// Requests that may wait.
    pub waiting: Option<usize>,
    /// The largest rank of adapters.
    pub lora_rank: Option<usize>,
    /// How long it may be unused before it leaves.
    pub idle_ttl: Option<Duration>,
    /// Whether answers to `inputs` are as text-generation-inference has them.
    pub tgi: Option<bool>,
    /// Whether streams are server-sent events unless a request says otherwise.
    pub events: Option<bool>,
    /// What the model is for.
    pub(crate) task: Option<Task>,
}

/// What `option.task` says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Task {
    Generate,
    Embed,
    Classify,
}

impl Asked {
    /// What one key asks for; `false` where nothing here honours it, or not with this value.
    ///
    /// Keys that choose among servers of the same thing ask for nothing: `engine`,
    /// `option.rolling_batch`, one device, an entry point that is a server's own.
    pub fn take(&mut self, key: &str, value: &str) -> bool {
        let count = || value.parse::<usize>().ok().filter(|count| *count > 0);
        let switch = || match value.to_ascii_lowercase().as_str() {
            "true" => Some(true),
            "false" => Some(false),
            _ => None,
        };
        match key {
            "option.max_model_len" => put(&mut self.context, count()),
            "option.max_rolling_batch_size" => put(&mut self.running, count()),
            "job_queue_size" => put(&mut self.waiting, count()),
            "option.max_lora_rank" => put(&mut self.lora_rank, count()),
            "option.tgi_compat" => put(&mut self.tgi, switch()),
            "option.quantize" => put(&mut self.quantize, Quantize::named(value).ok()),
            "option.kv_cache_dtype" => put(&mut self.kv_dtype, KvDtype::named(value).ok()),
            "option.output_formatter" => match value {
                "sse" => put(&mut self.events, Some(true)),
                "json" | "jsonlines" => put(&mut self.events, Some(false)),
                _ => false,
            },
            "option.dtype" => put(&mut self.dtype, DtypeSetting::named(value).ok()),
            "option.task" => put(&mut self.task, task(value)),
            // Of weights that lie beside it.
            "option.model_id" => matches!(value, "." | "./" | "/opt/ml/model" | "/opt/ml/model/"),
            "option.enable_lora" => value == "true",
            "option.trust_remote_code" => value.eq_ignore_ascii_case("false"),
            "option.tensor_parallel_degree" => matches!(value, "1" | "max"),
            "option.rolling_batch" => value != "disable",
            "option.enable_streaming" | "option.async_mode" | "engine" => true,
            "option.entryPoint" => value.starts_with("djl_python."),
            _ => false,
        }
    }

    /// These, and where they say nothing the others.
    #[must_use]
    pub fn or(self, other: Self) -> Self {
        Self {
            context: self.context.or(other.context),
            dtype: self.dtype.or(other.dtype),
            quantize: self.quantize.or(other.quantize),
            kv_dtype: self.kv_dtype.or(other.kv_dtype),
            running: self.running.or(other.running),
            waiting: self.waiting.or(other.waiting),
            lora_rank: self.lora_rank.or(other.lora_rank),
            idle_ttl: self.idle_ttl.or(other.idle_ttl),
            tgi: self.tgi.or(other.tgi),
            events: self.events.or(other.events),
            task: self.task.or(other.task),
        }
    }

    /// The operator's settings with what is asked for within them.
    pub(crate) fn within(&self, settings: &LoadSettings) -> LoadSettings {
        LoadSettings {
            context: self.context.map_or(settings.context, |asked| asked.min(settings.context)),
            step_rows: self.running.map_or(settings.step_rows, |rows| rows.min(settings.step_rows)),
            dtype: self.dtype.unwrap_or(settings.dtype),
            quantize: self.quantize.unwrap_or(settings.quantize),
            kv_dtype: self.kv_dtype.unwrap_or(settings.kv_dtype),
            ..*settings
        }
    }
}

/// What an artefact asks for, and the keys that nothing honours, as they are named in a warning.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Properties {
    pub(crate) asked: Asked,
    pub(crate) unheeded: Vec<String>,
}

impl Properties {
    /// Reads the file, where there is one. What cannot be understood is named and not an error.
    pub(crate) fn read(files: &Files) -> Self {
        let Some(content) = files.contents.get(PROPERTIES) else { return Self::default() };
        let mut found = Self::default();
        let mut unheeded = 0;
        for (key, value) in pairs(&String::from_utf8_lossy(content)) {
            if found.asked.take(&key, &value) {
                continue;
            }
            unheeded += 1;
            if unheeded <= NAMES_MAX {
                found.unheeded.push(shown(&key));
            }
        }
        if unheeded > NAMES_MAX {
            found.unheeded.push(format!("and {} more", unheeded - NAMES_MAX));
        }
        found
    }

    /// The keys that the model as it turned out does not honour.
    pub(crate) fn unheeded_by(mut self, kind: ModelKind) -> Vec<String> {
        let is_for = |task| match task {
            Task::Generate => kind == ModelKind::Generative,
            Task::Embed => kind == ModelKind::Embedding,
            Task::Classify => kind == ModelKind::Classification,
        };
        if self.asked.task.is_some_and(|task| !is_for(task)) {
            self.unheeded.push("option.task".into());
        }
        self.unheeded
    }
}

/// Keys and values of a file of properties, in order.
pub fn pairs(text: &str) -> Vec<(String, String)> {
    let mut pairs = Vec::new();
    let mut whole = String::new();
    for line in text.lines() {
        let line = line.trim();
        if whole.is_empty() && (line.is_empty() || line.starts_with(['#', '!'])) {
            continue;
        }
        if let Some(begun) = line.strip_suffix('\\') {
            whole.push_str(begun);
            continue;
        }
        whole.push_str(line);
        pairs.push(pair(&whole));
        whole.clear();
    }
    if !whole.is_empty() {
        pairs.push(pair(&whole));
    }
    pairs
}

fn pair(line: &str) -> (String, String) {
    let (key, value) = line.split_once(['=', ':']).unwrap_or((line, ""));
    (key.trim().to_owned(), value.trim().to_owned())
}

/// A name as a log may have it: whoever wrote it is not trusted.
fn shown(key: &str) -> String {
    let plain = |letter: char| if letter.is_ascii_graphic() { letter } else { '?' };
    key.chars().take(NAME_MAX).map(plain).collect()
}

fn put<T>(place: &mut Option<T>, value: Option<T>) -> bool {
    let is_read = value.is_some();
    if is_read {
        *place = value;
    }
    is_read
}

fn task(value: &str) -> Option<Task> {
    match value {
        "text-generation" | "text2text-generation" => Some(Task::Generate),
        "text-embedding" | "text_embedding" | "feature-extraction" => Some(Task::Embed),
        "text-classification" => Some(Task::Classify),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Properties {
        let contents = [(PROPERTIES.to_owned(), text.into())].into();
        Properties::read(&Files { contents, ..Files::default() })
    }

    #[test]
    fn keys_are_honoured_within_the_operators_limits() {
        let text = "# for LMI\nengine = MPI\noption.max_model_len=512\noption.dtype: fp32\n\
                    option.quantize=q8_0\noption.max_rolling_batch_size=4\njob_queue_size=9\n\
                    option.output_formatter=sse\noption.tgi_compat=True\noption.kv_cache_dtype=bfloat16\noption.rolling_batch=vllm\n";
        let found = read(text);
        assert_eq!(found.unheeded, Vec::<String>::new());
        let operator = LoadSettings { context: 2048, step_rows: 2, ..LoadSettings::default() };
        let settings = found.asked.within(&operator);
        assert_eq!((settings.context, settings.step_rows), (512, 2));
        assert_eq!((settings.dtype, settings.quantize), (DtypeSetting::F32, Some(Quantize::Q8_0)));
        assert_eq!(settings.kv_dtype, Some(KvDtype::Bf16));
        assert_eq!((found.asked.waiting, found.asked.tgi), (Some(9), Some(true)));
        assert_eq!(found.asked.events, Some(true));
        let large = read("option.max_model_len=1000000").asked.within(&operator);
        assert_eq!(large.context, 2048);
    }

    #[test]
    fn what_nothing_honours_is_named_and_bounded() {
        let found = read(
            "option.speculative_config={}\noption.max_model_len=many\noption.quantize=awq\n\
                  option.kv_cache_dtype=fp8\nbatch_size=8\nmax_batch_delay=5",
        );
        let names = [
            "option.speculative_config",
            "option.max_model_len",
            "option.quantize",
            "option.kv_cache_dtype",
            "batch_size",
            "max_batch_delay",
        ];
        assert_eq!(found.unheeded, names);
        let many: String = (0..100).map(|at| format!("key{at}\u{7}=1\n")).collect();
        let found = read(&many);
        assert_eq!(found.unheeded.len(), NAMES_MAX + 1);
        assert_eq!(found.unheeded[0], "key0?");
        assert_eq!(found.unheeded[NAMES_MAX], "and 88 more");
    }

    #[test]
    fn a_task_that_the_model_is_not_of_is_named() {
        let asked = read("option.task=text-embedding\noption.dtype=bf16");
        assert_eq!(asked.asked.dtype, Some(DtypeSetting::Bf16));
        assert_eq!(asked.clone().unheeded_by(ModelKind::Embedding), Vec::<String>::new());
        assert_eq!(asked.unheeded_by(ModelKind::Generative), ["option.task"]);
    }

    #[test]
    fn the_file_goes_before_the_environment() {
        let mut environment = Asked::default();
        assert!(environment.take("option.max_model_len", "100"));
        assert!(environment.take("job_queue_size", "7"));
        let asked = read("option.max_model_len=200").asked.or(environment);
        assert_eq!((asked.context, asked.waiting), (Some(200), Some(7)));
    }

    #[test]
    fn lines_are_read_as_java_writes_them() {
        let found = pairs("! note\na = b=c\nd:e\nf\\\n=g\n\nh\n");
        let want = [("a", "b=c"), ("d", "e"), ("f", "g"), ("h", "")];
        let want: Vec<(String, String)> =
            want.iter().map(|(key, value)| ((*key).into(), (*value).into())).collect();
        assert_eq!(found, want);
    }
}
