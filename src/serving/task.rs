//! What a request means to the model it reached.

use roundhouse_engine::{GenerateSpec, RunnerSpec};
use roundhouse_types::{ModelId, ModelKind};
use serde_json::{Map, Value, json};

use crate::choice::{Calls, Writing};
use crate::constrain::{FormKind, Grammar, OutputForm};
use crate::encoders::EncoderTask;
use crate::params::{Face, Parameters};
use crate::rendering::Render;
use crate::served::{EngineModel, GenerationDefaults, Purpose};
use crate::text::TextCodec;
use crate::tools::{CallFormat, CallReader, Demand, calls as demanded_calls, described};
use crate::{
    ANSWERS_MAX, Config, Error, Generation, Inputs, Opening, Prompt, Request, ToolChoice,
    VectorTask,
};

mod bounds;

use bounds::{echo_bounded, told_bounded};

/// Work for a model of the right kind, with everything that preparing it takes.
#[derive(Debug)]
pub(crate) enum Task {
    Generate(Box<GenerateTask>),
    Encode(EncoderTask),
}

/// A request to generate.
#[derive(Debug)]
pub(crate) struct GenerateTask {
    source: Source,
    face: Face,
    asked: Generation,
    /// Answers per prompt.
    n: usize,
    /// The prompt, or a chat's last message, goes before the completion.
    echo: bool,
    eos_tokens: Vec<u32>,
    defaults: GenerationDefaults,
}

#[derive(Debug)]
enum Source {
    Prompts(Vec<Prompt>),
    Chat(Conversation),
}

/// What a chat's prompt is made of.
#[derive(Debug)]
struct Conversation {
    messages: Vec<Value>,
    tools: Option<Offered>,
    kwargs: Map<String, Value>,
    opening: Opening,
}

impl Conversation {
    /// What the last message says, where the answer is of its role.
    fn said(&self) -> String {
        let last = self.messages.last();
        let role = last.and_then(|last| last["role"].as_str());
        let goes_on = self.opening != Opening::Answer || role == Some("assistant");
        let text = last.filter(|_| goes_on).and_then(|last| last["content"].as_str());
        text.unwrap_or_default().to_owned()
    }
}

/// A prompt as it is read, with what goes before its completion.
type Read = (Vec<u32>, String);

/// The tools of a chat.
#[derive(Debug)]
struct Offered {
    tools: Vec<Value>,
    choice: ToolChoice,
    parallel: bool,
    /// What stands between a tool and the fields of its function.
    function: &'static str,
}

/// Sequences ready for the engine, in the order of their choices.
pub(crate) struct Prepared {
    pub(crate) sequences: Vec<Sequence>,
    pub(crate) writing: Writing,
    pub(crate) seed: u64,
    /// Each prompt's tokens, where they are to be told.
    pub(crate) prompts: Vec<Vec<u32>>,
    /// Bytes that what is told of the prompts' tokens takes.
    pub(crate) told: u64,
    /// What every answer must look like.
    pub(crate) grammar: Option<Grammar>,
    /// Where calls of tools are looked for.
    pub(crate) calls: Option<CallPlan>,
}

/// How calls of tools are found in the answers.
#[derive(Debug, Clone)]
pub(crate) struct CallPlan {
    format: CallFormat,
    names: Vec<String>,
    /// Whether the answer ends with the first.
    single: bool,
    free: bool,
}

impl CallPlan {
    /// For one answer.
    pub(crate) fn calls(&self, text: &TextCodec) -> Calls {
        let special = |marker: &&'static str| {
            let id = text.tokenizer().token_to_id(marker)?;
            text.is_special(id).then_some((id, *marker))
        };
        Calls {
            reader: CallReader::new(self.format, self.names.clone(), self.single),
            markers: self.format.markers().iter().filter_map(special).collect(),
            free: self.free,
        }
    }
}

/// One choice.
#[derive(Debug)]
pub(crate) struct Sequence {
    pub(crate) spec: GenerateSpec,
    /// Text that goes before the completion.
    pub(crate) lead: String,
}

impl Task {
    /// Decides what `request` asks of `model`.
    ///
    /// # Errors
    /// `InvalidInput` where the model is of another kind, or the request has too many parts.
    pub(crate) fn new(
        request: Request,
        id: &ModelId,
        model: &EngineModel,
        config: &Config,
    ) -> Result<Self, Error> {
        if let Request::Inputs(inputs) = &request
            && inputs.only.is_some_and(|kind| kind != model.kind())
        {
            return Err(wrong_kind(id, model.kind()));
        }
        match (request, model.purpose()) {
            (Request::Inputs(inputs), Purpose::Generative { eos_tokens, defaults }) => {
                let beside = inputs.texts.len() + inputs.beside;
                counted("inputs", beside, config.max_sequences)?;
                of_text_alone(&inputs)?;
                Self::generate(
                    config,
                    GenerateTask {
                        source: Source::Prompts(
                            inputs.texts.into_iter().map(Prompt::Text).collect(),
                        ),
                        face: Face::Inputs,
                        asked: inputs.generation,
                        n: 1,
                        echo: inputs.return_full_text,
                        eos_tokens: eos_tokens.clone(),
                        defaults: defaults.clone(),
                    },
                )
            }
            (Request::Chat(chat), Purpose::Generative { eos_tokens, defaults }) => {
                let (choice, parallel) = (chat.tool_choice, chat.parallel_tool_calls);
                let function = chat.generation.names.function;
                let offered = |tools| Offered { tools, choice, parallel, function };
                let conversation = Conversation {
                    messages: chat.messages,
                    tools: chat.tools.map(offered),
                    kwargs: chat.template_kwargs,
                    opening: chat.opening,
                };
                Self::generate(
                    config,
                    GenerateTask {
                        source: Source::Chat(conversation),
                        face: Face::OpenAi,
                        asked: chat.generation,
                        n: chat.n,
                        echo: chat.echo,
                        eos_tokens: eos_tokens.clone(),
                        defaults: defaults.clone(),
                    },
                )
            }
            (Request::Completion(completion), Purpose::Generative { eos_tokens, defaults }) => {
                Self::generate(
                    config,
                    GenerateTask {
                        source: Source::Prompts(completion.prompts),
                        face: Face::OpenAi,
                        asked: completion.generation,
                        n: completion.n,
                        echo: completion.echo,
                        eos_tokens: eos_tokens.clone(),
                        defaults: defaults.clone(),
                    },
                )
            }
            (request, _) => EncoderTask::new(request, id, model, config).map(Self::Encode),
        }
    }

    fn generate(config: &Config, task: GenerateTask) -> Result<Self, Error> {
        if !(1..=ANSWERS_MAX).contains(&task.n) {
            let message = format!("{} is not between 1 and {ANSWERS_MAX}", task.n);
            return Err(Error::field("n", message));
        }
        if let Source::Prompts(prompts) = &task.source {
            counted(task.asked.names.prompt, prompts.len(), config.max_sequences)?;
            let (n, most) = (task.n, config.max_sequences);
            if n * prompts.len() > most {
                let message = format!(
                    "{n} answers to each of {} prompts are more than the {most} of one request",
                    prompts.len()
                );
                return Err(Error::field("n", message));
            }
        }
        Ok(Self::Generate(Box::new(task)))
    }
}

impl GenerateTask {
    /// Whether it is a chat, and needs a turn to have its template rendered.
    pub(crate) fn is_chat(&self) -> bool {
        matches!(self.source, Source::Chat(_))
    }

    /// Renders a chat in its turn, tokenises and checks. Takes time: belongs on a blocking thread.
    pub(crate) fn prepare(
        self,
        text: &TextCodec,
        spec: &RunnerSpec,
        render: Option<Render>,
    ) -> Result<Prepared, Error> {
        let parameters = Parameters::resolve(
            self.face,
            &self.asked,
            &self.defaults,
            &self.eos_tokens,
            spec.output_width,
        )?;
        let names = self.asked.names;
        let form = self.asked.form.as_ref();
        let mut grammar = form.map(|form| Grammar::of(form, text)).transpose()?;
        let mut calls = None;
        if let Source::Chat(Conversation { tools: Some(tools), .. }) = &self.source {
            calls = plan_calls(tools, form, text, &mut grammar)?;
        }
        let limit = parameters.truncated(spec);
        // Each of a completion's answers repeats what is told of its prompt, a chat's do not.
        let told = if matches!(self.source, Source::Chat(_)) { 1 } else { self.n };
        let prompts = match self.source {
            Source::Prompts(prompts) => {
                let add = self.asked.add_special.unwrap_or(true);
                let read =
                    |prompt| read_prompt(text, prompt, (add, self.echo), limit, names.prompt);
                prompts.into_iter().map(read).collect::<Result<Vec<Read>, Error>>()?
            }
            Source::Chat(chat) => {
                let tools = chat.tools.as_ref().map(|offered| offered.tools.as_slice());
                let render = render.ok_or(Error::Interrupted)?;
                let asked = (&chat.kwargs, chat.opening);
                let rendered = text.render_chat(&chat.messages, tools, asked, render)?;
                // The template has written the special tokens; the post-processor would double
                // the first.
                let add = self.asked.add_special.unwrap_or(false);
                let tokens = encoded(text, &rendered, add, limit, names.prompt)?;
                vec![(tokens, if self.echo { chat.said() } else { String::new() })]
            }
        };
        echo_bounded(&prompts, self.n)?;
        let mut sequences = Vec::with_capacity(prompts.len() * self.n);
        for (at, (tokens, lead)) in prompts.iter().enumerate() {
            for answer in 0..self.n {
                let made = parameters.sequence(tokens.clone(), sequences.len(), spec);
                let place = (names.prompt, at, prompts.len());
                let mut spec = made.map_err(|error| in_list(error, place))?;
                if answer > 0 && !self.asked.prompt_logprobs {
                    // The first one's are told for all.
                    spec.prompt_logprobs = None;
                }
                sequences.push(Sequence { spec, lead: lead.clone() });
            }
        }
        let told = told_bounded(&self.asked, &prompts, self.n, told)?;
        let prompts = prompts.into_iter().map(|(tokens, _)| tokens);
        let prompts = prompts.filter(|_| self.asked.prompt_ids).collect();
        let (seed, writing) = (parameters.seed(), parameters.writing);
        Ok(Prepared { sequences, writing, seed, prompts, told, grammar, calls })
    }
}

/// An error of a prompt that is one of several, told with its place among them.
fn in_list(error: Error, (prompt, at, count): (&str, usize, usize)) -> Error {
    match error {
        Error::Field { field, message } if count > 1 => match field.strip_prefix(prompt) {
            Some(inside) => Error::field(format!("{prompt}[{at}]{inside}"), message),
            None => Error::Field { field, message },
        },
        other => other,
    }
}

/// A text's tokens, within a limit where there is one.
fn encoded(
    text: &TextCodec,
    prompt: &str,
    add_special: bool,
    limit: Option<(usize, bool)>,
    field: &str,
) -> Result<Vec<u32>, Error> {
    let Some(limit) = limit else { return text.encode(prompt, add_special) };
    let tokens = text.encode_within(prompt, add_special, limit)?;
    tokens.ok_or_else(|| {
        let message = format!("{} tokens do not hold the special ones around a text", limit.0);
        Error::field(field, message)
    })
}

/// A prompt's tokens, and what of it goes before the answer.
fn read_prompt(
    text: &TextCodec,
    prompt: Prompt,
    (add_special, echo): (bool, bool),
    limit: Option<(usize, bool)>,
    field: &str,
) -> Result<Read, Error> {
    let (tokens, whole) = match prompt {
        Prompt::Text(prompt) => (encoded(text, &prompt, add_special, limit, field)?, Some(prompt)),
        Prompt::Tokens(mut tokens) => {
            if let Some((most, keeps_end)) = limit {
                let over = tokens.len().saturating_sub(most);
                if keeps_end { drop(tokens.drain(..over)) } else { tokens.truncate(most) }
            }
            (tokens, None)
        }
    };
    let lead = match whole.filter(|_| limit.is_none()) {
        _ if !echo => String::new(),
        Some(prompt) => prompt,
        None => text.decode(&tokens)?,
    };
    Ok((tokens, lead))
}

/// Decides how calls of tools are found, and what demands them. Where the model may answer in a form
/// or call a tool, the grammar has both.
fn plan_calls(
    offered: &Offered,
    form: Option<&OutputForm>,
    text: &TextCodec,
    grammar: &mut Option<Grammar>,
) -> Result<Option<CallPlan>, Error> {
    let tools = described(&offered.tools, offered.function)?;
    let known = text.call_format();
    let demanded = offered.choice != ToolChoice::Auto;
    let format = match known {
        Some(format) => format,
        None if demanded => CallFormat::Plain,
        None => return Ok(None),
    };
    let otherwise = match form.map(|form| &form.kind) {
        _ if demanded => None,
        Some(FormKind::JsonObject) => Some(json!({"type": "object"})),
        Some(FormKind::JsonSchema(schema)) => Some(schema.clone()),
        // Calls are in no other form.
        Some(FormKind::Regex(_) | FormKind::Choice(_) | FormKind::Grammar(_)) => return Ok(None),
        // That may describe just these.
        Some(FormKind::StructuralTag(_)) | None => None,
    };
    if demanded || otherwise.is_some() {
        let demand = Demand {
            format,
            choice: &offered.choice,
            tools: &tools,
            parallel: offered.parallel,
            otherwise: otherwise.as_ref(),
        };
        *grammar = Some(demanded_calls(&demand, text)?);
    }
    let names = tools.into_iter().map(|tool| tool.name).collect();
    let free = !matches!(offered.choice, ToolChoice::Named(_));
    let single = !offered.parallel || !free;
    Ok(Some(CallPlan { format, names, single, free }))
}

/// Refuses inputs that only encoders take.
fn of_text_alone(inputs: &Inputs) -> Result<(), Error> {
    if inputs.seconds.iter().any(Option::is_some) {
        return Err(Error::field("inputs", "a generative model takes texts, not pairs of them"));
    }
    if inputs.options.zero_shot.is_some() {
        return Err(Error::field("candidate_labels", "a generative model is no classifier"));
    }
    if inputs.options.prompt.is_some() {
        return Err(Error::field("prompt_name", "only embedding models have prompts"));
    }
    match inputs.options.task {
        VectorTask::Pooled => Ok(()),
        VectorTask::Tokens => Err(Error::field("task", "a generative model extracts no features")),
    }
}

/// Refuses none, and too many.
pub(crate) fn counted(field: &str, count: usize, most: usize) -> Result<(), Error> {
    match count {
        0 => Err(Error::field(field, "it is empty")),
        count if count > most => {
            Err(Error::field(field, format!("{count} entries are more than the {most} at most")))
        }
        _ => Ok(()),
    }
}

/// What is told where a model is asked for what it does not do.
pub(crate) fn wrong_kind(model: &ModelId, kind: ModelKind) -> Error {
    let (is, use_instead) = match kind {
        ModelKind::Generative => {
            ("a generative model, not an embedding model", "send a chat, a prompt or `inputs`")
        }
        ModelKind::Embedding => (
            "an embedding model",
            "send texts to the embeddings route, `inputs`, or a `query` with `documents`",
        ),
        ModelKind::Classification => (
            "a classification model",
            "send `inputs` to be classified (a `query` with `documents` needs a model of one label)",
        ),
        ModelKind::TokenClassification => {
            ("a token classification model", "send texts as `inputs`")
        }
        ModelKind::FillMask => ("a fill-mask model", "send texts with masks as `inputs`"),
        ModelKind::QuestionAnswering => {
            ("a question answering model", "send `inputs` with `question` and `context`")
        }
        ModelKind::Adapter => ("an adapter", "ask what its base answers"),
        ModelKind::Handler => ("a Python handler", "send its own input to /invocations"),
        ModelKind::External => (
            "served by an engine of the operator's",
            "send it to /invocations or to a /v1 route that the engine answers",
        ),
    };
    Error::WrongKind { model: model.clone(), is, use_instead }
}
