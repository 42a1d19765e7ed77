use std::path::Path;
use std::sync::Mutex;

use futures_util::StreamExt;
use roundhouse_engine::testing::{EchoLog, EchoRunner, echo_logits, echo_tokens};
use roundhouse_engine::{EngineHandle, KvSpec, Lane, LaneConfig, RunnerSpec};
use roundhouse_residency::{
    Base, Fetched, HostCopy, LoadSource, Loaded, Loader, Reporter, Resolution,
};
use roundhouse_tenancy::Caller;
use roundhouse_types::{
    ArtefactId, Bytes, DeviceId, ErrorKind, Footprint, Grade, ModelKind, Spent, Tier, Version,
};
use serde_json::{Map, Value, json};

use super::*;
use crate::{
    Chat, Completion, EmbeddingPrompts, Embeddings, Finish, Generation, GenerationDefaults, Inputs,
    Labels, Opening, Prompt, Ranking, ScoreFunction, TaskOptions, TextCodec, ToolCall, ToolChoice,
    Truncation, ZeroShot,
};

mod answers;
mod counted;
mod ends;
mod forms;
mod prompts;
mod turns;

const REFERENCES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/references/bpe");
/// The reference tokenizer's vocabulary.
const VOCAB: usize = 532;
const GENERATIVE: RunnerSpec = RunnerSpec {
    output_width: VOCAB,
    context: 512,
    step_tokens: 64,
    kv: Some(KvSpec::whole(16, 128)),
};
const MINUTE: Duration = Duration::from_secs(60);

fn encoder(width: usize) -> RunnerSpec {
    RunnerSpec { output_width: width, context: 32, step_tokens: 64, kv: None }
}

fn codec() -> TextCodec {
    TextCodec::open(Path::new(REFERENCES)).unwrap()
}

/// Loads the one model it was made with.
struct OneModel {
    lane: Lane,
    parts: Mutex<Option<(EchoRunner, TextCodec, Purpose)>>,
    kind: ModelKind,
    /// Never answers, where set.
    stuck: bool,
}

const FOOTPRINT: Footprint =
    Footprint { weights: Bytes(1), kv: Bytes::ZERO, workspace: Bytes::ZERO, host: Bytes::ZERO };

impl Loader for OneModel {
    type Model = ServedModel;

    async fn resolve(&self, _model: &ModelId, _refresh: bool) -> Result<Resolution, Failure> {
        Ok(Resolution {
            version: Version::from_digest("abc123"),
            fetch_bytes: Bytes::ZERO,
            footprint: Some((FOOTPRINT, Grade::Exact)),
            shared: Vec::new(),
            kind: Some(self.kind),
            off_cards: false,
            base: None,
            streams: false,
            quarantined: false,
            standing: roundhouse_residency::Standing::default(),
        })
    }

    async fn fetch(&self, _artefact: &ArtefactId, _: &str) -> Result<Fetched, Failure> {
        Ok(Fetched {
            footprint: FOOTPRINT,
            shared: Vec::new(),
            kind: self.kind,
            off_cards: false,
            base: None,
            once: Duration::ZERO,
        })
    }

    fn fetched_bytes(&self, _artefact: &ArtefactId) -> Bytes {
        Bytes::ZERO
    }

    async fn load(
        &self,
        artefact: &ArtefactId,
        _device: DeviceId,
        _source: LoadSource,
        _base: Option<Base<Self::Model>>,
        _reporter: Reporter,
    ) -> Result<Loaded<ServedModel>, Failure> {
        if self.stuck {
            std::future::pending::<()>().await;
        }
        let (runner, text, purpose) = self.parts.lock().unwrap().take().unwrap();
        let name = artefact.to_string();
        let placed = self.lane.place(&name, Box::new(runner), Default::default()).await?;
        let model = ServedModel::Engine(EngineModel::new(text, placed, purpose));
        Ok(Loaded {
            model,
            footprint: FOOTPRINT,
            shared: Vec::new(),
            once: Duration::ZERO,
            idle_ttl: None,
        })
    }

    async fn unload(
        &self,
        _artefact: &ArtefactId,
        _device: DeviceId,
        model: Arc<ServedModel>,
        _demote: bool,
    ) -> Option<HostCopy> {
        model.remove().await;
        None
    }

    async fn discard(&self, _artefact: &ArtefactId) {}
}

/// A dispatcher over one model, and what tests look at.
struct Server {
    dispatcher: Arc<Dispatcher>,
    residency: Residency<ServedModel>,
    log: Arc<EchoLog>,
}

impl Server {
    fn start(runner: EchoRunner, purpose: Purpose) -> Self {
        Self::with(runner, purpose, Config::default(), false)
    }

    fn with(runner: EchoRunner, purpose: Purpose, config: Config, stuck: bool) -> Self {
        let claims: ClaimFn = Arc::new(|_, _| Claim::default());
        let renderer = Arc::new(crate::InProcess::default());
        Self::on(runner, purpose, (config, claims, renderer), stuck)
    }

    fn on(
        runner: EchoRunner,
        purpose: Purpose,
        (config, claims, renderer): (Config, ClaimFn, Arc<dyn Renderer>),
        stuck: bool,
    ) -> Self {
        let log = runner.log();
        let kind = match &purpose {
            Purpose::Generative { .. } => ModelKind::Generative,
            Purpose::Embedding { .. } => ModelKind::Embedding,
            Purpose::Classification(_) => ModelKind::Classification,
            Purpose::TokenClassification(_) => ModelKind::TokenClassification,
            Purpose::FillMask => ModelKind::FillMask,
            Purpose::QuestionAnswering => ModelKind::QuestionAnswering,
        };
        let text = match kind {
            ModelKind::Generative => codec(),
            _ => codec().truncated_to(32).unwrap(),
        };
        let lane = Lane::start(DeviceId::Cpu, LaneConfig::default()).unwrap();
        let parts = Mutex::new(Some((runner, text, purpose)));
        let loader = Arc::new(OneModel { lane, parts, kind, stuck });
        let devices = vec![(DeviceId::Cpu, Bytes::mib(1))];
        let residency = Residency::start(roundhouse_residency::Config::default(), devices, loader);
        let dispatcher = Arc::new(Dispatcher::new(residency.clone(), config, claims, renderer));
        Self { dispatcher, residency, log }
    }

    fn generative(runner: EchoRunner) -> Self {
        Self::start(runner, generative())
    }

    async fn ask(&self, request: Request) -> Result<Answer, Failure> {
        self.dispatcher.invoke(invocation(request)).await
    }

    async fn generate(&self, request: Request) -> GenerationReply {
        match self.ask(request).await.unwrap().reply {
            Reply::Generation(reply) => reply,
            _ => panic!("not a generation"),
        }
    }

    async fn engine(&self) -> EngineHandle {
        let until = std::time::Instant::now() + MINUTE;
        match &*self.residency.acquire(&model(), until).await.unwrap() {
            ServedModel::Engine(model) => model.engine().clone(),
            ServedModel::Handler(_) | ServedModel::External(_) | ServedModel::Contained(_) => {
                panic!("not an engine")
            }
        }
    }

    /// Returns when no lease is left and the runner is gone, which a lease that leaked or a
    /// sequence that goes on would prevent.
    async fn let_go(&self) {
        self.residency.unload(&model()).await.unwrap();
        assert_eq!(Arc::strong_count(&self.log), 1, "the runner is still there");
    }
}

fn generative() -> Purpose {
    Purpose::Generative { eos_tokens: vec![3], defaults: GenerationDefaults::default() }
}

fn model() -> ModelId {
    ModelId { endpoint: "e".parse().unwrap(), target: "t/model".parse().unwrap() }
}

fn invocation(request: Request) -> Invocation {
    let now = Instant::now().into_std();
    Invocation {
        caller: Caller::anonymous(),
        spent: Spent::default(),
        model: model(),
        base: None,
        only_loaded: false,
        request,
        deadline: now + MINUTE,
        hold_until: now + MINUTE / 2,
    }
}

fn greedy(max_tokens: usize) -> Generation {
    Generation {
        max_tokens: Some(max_tokens),
        temperature: Some(0.0),
        ignore_eos: true,
        ..Generation::default()
    }
}

fn completion(prompts: &[&str], n: usize, generation: Generation) -> Request {
    let prompts = prompts.iter().map(|prompt| Prompt::Text((*prompt).to_owned())).collect();
    Request::Completion(Completion { prompts, generation, n, echo: false })
}

fn inputs(texts: &[&str]) -> Inputs {
    Inputs {
        texts: texts.iter().map(|text| (*text).to_owned()).collect(),
        single: texts.len() == 1,
        generation: Generation { ignore_eos: true, ..Generation::default() },
        ..Inputs::default()
    }
}

fn chat(content: &str) -> Request {
    Request::Chat(Chat {
        tool_choice: ToolChoice::Auto,
        parallel_tool_calls: true,
        messages: vec![json!({"role": "user", "content": content})],
        tools: None,
        template_kwargs: Map::new(),
        generation: greedy(4),
        opening: Opening::Answer,
        echo: false,
        n: 1,
    })
}

fn embeddings(texts: &[&str]) -> Request {
    let inputs = texts.iter().map(|text| Prompt::Text((*text).to_owned())).collect();
    Request::Embeddings(Embeddings { inputs, dimensions: None, prompt: None })
}

/// One choice's text, tokens and end.
#[derive(Debug, Default, Clone, PartialEq)]
struct Completed {
    text: String,
    tokens: Vec<u32>,
    finish: Option<Finish>,
}

async fn collect(mut reply: GenerationReply) -> Result<Vec<Completed>, Failure> {
    let mut choices = vec![Completed::default(); reply.prompt_tokens.len()];
    while let Some(piece) = reply.pieces.next().await {
        let piece = piece?;
        let choice = &mut choices[piece.choice];
        assert_eq!(choice.finish, None, "a piece after the last");
        choice.text.push_str(&piece.text);
        choice.tokens.extend(piece.tokens.iter().map(|token| token.id));
        choice.finish = piece.finished.map(|finished| finished.reason);
    }
    Ok(choices)
}

/// A prompt whose greedy answer has, at about the tenth place, a token that is new in it.
fn held_answer() -> (&'static str, u32) {
    let prompt = "hold me";
    let tokens = codec().encode(prompt, true).unwrap();
    let answer = echo_tokens(&tokens, 16, VOCAB);
    let held = (8..16).find(|&at| answer[at] > 16 && !answer[..at].contains(&answer[at])).unwrap();
    (prompt, answer[held])
}
