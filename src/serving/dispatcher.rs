//! One invocation from admission to the stream that answers it.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::thread::available_parallelism;
use std::time::Duration;

use futures_util::Stream;
use roundhouse_containers::driven;
use roundhouse_engine::{Claim, Constraint, EngineHandle};
use roundhouse_residency::{Lease, Residency};
use roundhouse_tenancy::Caller;
use roundhouse_types::{ErrorKind, Failure, ModelId, ModelKind, TenantName};
use roundhouse_workers::CallError;
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout_at};

use crate::admission::{Admission, Bounds};
use crate::choice::{Choice, Writer, WriterParts};
use crate::completions::{Completions, Hold};
use crate::constrain::{Compiled, Grammar};
use crate::encoders::Limits;
use crate::handled;
use crate::metrics::{Record, compiled_form};
use crate::rendering::{Render, Renderer};
use crate::room::{Room, Taken};
use crate::served::{EngineModel, Purpose, ServedModel};
use crate::task::{Prepared, Task, wrong_kind};
use crate::tokens;
use crate::{
    ANSWERS_MAX, Answer, Error, GenerationReply, Invocation, Piece, PieceStream, RawRequest,
    ReadBody, Reply, Request, Route, Served, Tokens, TokensReply,
};

mod relay;
#[cfg(test)]
mod tests;

use relay::relay;

/// Bounds of a dispatcher. All are per process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Config {
    /// Requests in flight in all, those that wait for a load included. One more is refused as
    /// overload.
    pub max_in_flight: usize,
    /// Requests in flight for one model.
    pub max_in_flight_per_model: usize,
    /// Texts in one request to an encoder.
    pub max_inputs: usize,
    /// Completions of one request: prompts times answers.
    pub max_sequences: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            // Bodies of up to 6 MB each wait in memory.
            max_in_flight: 1024,
            // A popular model leaves room for others.
            max_in_flight_per_model: 256,
            // What OpenAI takes.
            max_inputs: 2048,
            // As many as run at once in an engine; more belong into requests of their own.
            max_sequences: ANSWERS_MAX,
        }
    }
}

/// How often a request is given to another group of a handler's workers when the one it waited
/// for went away before it had begun.
const HANDLER_TRIES: usize = 3;

/// Requests prepared at once per core: short prompts get past a long one.
const PREPARED_PER_CORE: usize = 2;

/// Answers invocations: admits, leases, prepares, submits, and hands back a stream that owns
/// what the request holds.
pub struct Dispatcher {
    residency: Residency<ServedModel>,
    admission: Arc<Admission>,
    /// Rendering and tokenising cannot be cut short: it goes on when its request is gone. Its
    /// permits keep such work from piling up behind clients that come and leave.
    preparing: Arc<Semaphore>,
    /// Compiling forms takes longer, and is what a client can make costly: other requests'
    /// preparations do not wait behind it.
    compiling: Arc<Semaphore>,
    /// What answers take that tell of texts' tokens.
    tokens: Arc<Room>,
    /// Where chat templates are rendered. A turn is waited for before a place among those that are
    /// prepared: whose templates take long holds up nobody else's tokens.
    renderer: Arc<dyn Renderer>,
    claims: ClaimFn,
    config: Config,
}

/// Says on whose behalf a model works for a caller, by which share and priority. Asked once for
/// each request; must not block.
pub type ClaimFn = Arc<dyn Fn(&Caller, &ModelId) -> Claim + Send + Sync>;

/// What has been done for an answer.
struct Begun {
    work: Work,
    served: Served,
    hold: Hold,
}

/// A model, and its engine's handle on behalf of who asks.
#[derive(Clone, Copy)]
struct Asked<'a> {
    id: &'a ModelId,
    tenant: Option<&'a TenantName>,
    /// Whose turns its templates take: whom the model works for.
    payer: Option<&'a TenantName>,
    model: &'a EngineModel,
    engine: &'a EngineHandle,
}

enum Work {
    Generating {
        choices: Vec<Choice>,
        prompt_tokens: Vec<usize>,
        /// Each prompt's tokens, where they are to be told.
        prompts: Vec<Vec<u32>>,
        seed: u64,
        taken: Taken,
    },
    Handled(roundhouse_workers::Reply),
    Relayed(driven::Answer, Route),
    Done(Reply),
}

/// Why a request has not been begun.
enum NoWork {
    Failed(Failure),
    /// The handler's workers went away before; others may do it.
    NotBegun(RawRequest, Failure),
}

impl From<Failure> for NoWork {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

impl Dispatcher {
    /// Leases from `residency` within the bounds of `config`; models work for those that `claims`
    /// names, and their chat templates are rendered by `renderer`.
    pub fn new(
        residency: Residency<ServedModel>,
        config: Config,
        claims: ClaimFn,
        renderer: Arc<dyn Renderer>,
    ) -> Self {
        let bounds =
            Bounds { in_all: config.max_in_flight, per_model: config.max_in_flight_per_model };
        let cores = available_parallelism().map_or(1, NonZeroUsize::get);
        let preparing = Arc::new(Semaphore::new(PREPARED_PER_CORE * cores));
        let compiling = Arc::new(Semaphore::new(cores.div_ceil(2)));
        let (admission, tokens) = (Admission::new(bounds), Arc::default());
        Self { residency, admission, preparing, compiling, tokens, renderer, claims, config }
    }

    /// Answers one invocation. Returns when an encoder's answer is complete, or when a
    /// generation has been submitted. Dropped before that, or when the reply's stream is dropped,
    /// it lets go of sequences, lease and place; a load under way goes on.
    ///
    /// # Errors
    /// `Overloaded` at once where too many requests are in flight, residency's failures
    /// (`NotReady` past `hold_until`), `InvalidInput` for what the model cannot take, `TimedOut`
    /// at the deadline, and the engine's.
    pub async fn invoke(&self, invocation: Invocation) -> Result<Answer, Failure> {
        let model = invocation.model.clone();
        let deadline = Instant::from_std(invocation.deadline);
        let mut record = Record::start(model.endpoint.clone(), invocation.spent.clone());
        let begun = match self.begin(invocation, &mut record).await {
            Ok(begun) => begun,
            Err(failure) => {
                record.failed(failure.kind());
                return Err(failure);
            }
        };
        let reply = match begun.work {
            Work::Generating { choices, prompt_tokens, prompts, seed, taken } => {
                let pieces = Completions::new(model, choices, begun.hold, deadline, record);
                let pieces = boxed(pieces);
                Reply::Generation(GenerationReply { prompt_tokens, prompts, pieces, seed, taken })
            }
            Work::Handled(reply) => {
                Reply::Handled(handled::answer(model, reply, begun.hold, deadline, record))
            }
            Work::Relayed(answer, route) => {
                let answer = (answer, route);
                Reply::Handled(handled::relayed(model, answer, begun.hold, deadline, record))
            }
            Work::Done(reply) => {
                record.completed();
                reply
            }
        };
        Ok(Answer { reply, served: begun.served })
    }

    async fn begin(&self, invocation: Invocation, record: &mut Record) -> Result<Begun, Failure> {
        let Invocation {
            caller,
            model: id,
            base,
            only_loaded,
            mut request,
            deadline,
            hold_until,
            ..
        } = invocation;
        let mut permit = self.admission.enter(&id, &caller)?;
        let mut tries = 0;
        loop {
            let lease = match only_loaded {
                false => {
                    let payer = caller.tenant.as_ref();
                    self.residency.acquire_for(payer, &id, hold_until.min(deadline)).await?
                }
                true => self.loaded(&id).await?,
            };
            record.leased(lease.kind(), lease.tier());
            if let Some(asked) = &base {
                of_base(&id, &lease, asked)?;
            }
            let hold = Hold { lease, permit };
            let work = self.work(&id, &caller, request, &hold, record);
            let done = timeout_at(Instant::from_std(deadline), work)
                .await
                .map_err(|_| Error::Deadline { model: id.clone() })?;
            let (work, queue) = match done {
                Ok(done) => done,
                Err(NoWork::Failed(failure)) => return Err(failure),
                Err(NoWork::NotBegun(again, failure)) => {
                    tries += 1;
                    if tries == HANDLER_TRIES {
                        return Err(failure);
                    }
                    request = Request::Raw(again);
                    // The lease goes: the group cannot be replaced before.
                    permit = hold.permit;
                    continue;
                }
            };
            let lease = &hold.lease;
            let served = Served {
                version: lease.version().clone(),
                tier: lease.tier(),
                kind: lease.kind(),
                load: lease.load_wait(),
                queue,
                style: lease.style(),
            };
            return Ok(Begun { work, served, hold });
        }
    }

    /// A lease of a model that may not be loaded for the caller. Whether it is not loaded or not
    /// there at all is the same to it.
    async fn loaded(&self, id: &ModelId) -> Result<Lease<ServedModel>, Failure> {
        self.residency.acquire_loaded(id).await.map_err(|failure| match failure.kind() {
            ErrorKind::ModelNotFound => Error::NotLoaded { model: id.clone() }.into(),
            _ => failure,
        })
    }

    async fn work(
        &self,
        id: &ModelId,
        caller: &Caller,
        request: Request,
        hold: &Hold,
        record: &mut Record,
    ) -> Result<(Work, Duration), NoWork> {
        let model = match &*hold.lease {
            ServedModel::Engine(model) => model,
            ServedModel::Handler(group) => {
                let mut raw = match request {
                    Request::Raw(raw) if raw.route == Route::Invocations => raw,
                    _ => return Err(NoWork::Failed(wrong_kind(id, ModelKind::Handler).into())),
                };
                raw.body.spent = record.spent().clone();
                let queue = record.submitted(hold.lease.load_wait(), 0, 0);
                return match group.call(raw.body.clone()).await {
                    Ok(reply) => Ok((Work::Handled(reply), queue)),
                    Err(CallError::NotBegun(failure)) => Err(NoWork::NotBegun(raw, failure)),
                    Err(CallError::Failed(failure)) => Err(NoWork::Failed(failure)),
                };
            }
            ServedModel::External(driven) => {
                // A claim also has a tenant where nobody said who asks.
                let own_prefixes = (self.claims)(caller, id).own_prefixes;
                let prefixes_of = caller.tenant.clone().filter(|_| own_prefixes);
                let to = |call| driven.call(driven::Call { prefixes_of, ..call });
                return relay(id, to, request, hold, record).await;
            }
            ServedModel::Contained(model) => {
                let to = |call| model.call(call);
                return relay(id, to, request, hold, record).await;
            }
        };
        let request = match request {
            Request::Raw(raw) => match (raw.read)(raw.body.body).await? {
                ReadBody::Request(request) => *request,
                ReadBody::OfAdapters => {
                    let queue = record.submitted(hold.lease.load_wait(), 0, 0);
                    return Ok((Work::Done(Reply::OfAdapters), queue));
                }
            },
            request => request,
        };
        let claim = Claim { spent: Some(record.spent().clone()), ..(self.claims)(caller, id) };
        let payer = claim.tenant.clone();
        let engine = model.engine().on_behalf(claim);
        let (tenant, payer) = (caller.tenant.as_ref(), payer.as_ref());
        let asked = Asked { id, tenant, payer, model, engine: &engine };
        Ok(self.engine_work(asked, request, hold.lease.load_wait(), record).await?)
    }

    async fn engine_work(
        &self,
        asked: Asked<'_>,
        request: Request,
        load: Duration,
        record: &mut Record,
    ) -> Result<(Work, Duration), Failure> {
        let Asked { id, tenant, payer, model, engine } = asked;
        let request = match request {
            Request::Tokens(asked) => {
                let (text, most) = (model.text().clone(), self.config.max_inputs);
                let (room, tenant) = (Arc::clone(&self.tokens), tenant.cloned());
                let render = self.turn(matches!(asked, Tokens::Chat { .. }), id, payer).await;
                let answer =
                    move || tokens::answer(&text, asked, most, render, (&room, tenant.as_ref()));
                let (lists, texts, taken) = self.blocking(answer).await?;
                let (kind, context) = (model.kind(), engine.spec().context);
                let reply = TokensReply { lists, texts, kind, context, taken };
                return Ok((Work::Done(Reply::Tokens(reply)), record.submitted(load, 0, 0)));
            }
            request => request,
        };
        match Task::new(request, id, model, &self.config)? {
            Task::Generate(task) => {
                let (text, spec) = (model.text().clone(), engine.spec());
                let render = self.turn(task.is_chat(), id, payer).await;
                let prepare = move || task.prepare(&text, &spec, render);
                let mut prepared = self.blocking(prepare).await?;
                let taken = match prepared.told {
                    0 => Taken::default(),
                    bytes => self.tokens.take(tenant, bytes)?,
                };
                let form = match prepared.grammar.take() {
                    Some(grammar) => Some(self.compile(model, tenant, grammar).await?),
                    None => None,
                };
                let prompt_tokens: Vec<usize> =
                    prepared.sequences.iter().map(|sequence| sequence.spec.prompt.len()).collect();
                let (seed, prompts) = (prepared.seed, std::mem::take(&mut prepared.prompts));
                let choices = submit(asked, prepared, form.as_ref())?;
                let queue = record.submitted(load, prompt_tokens.iter().sum(), choices.len());
                Ok((Work::Generating { choices, prompt_tokens, prompts, seed, taken }, queue))
            }
            Task::Encode(task) => {
                let limits =
                    Limits { rows: self.config.max_inputs, width: engine.spec().output_width };
                let text = model.text().clone();
                let prepared = self.blocking(move || task.prepare(&text, limits)).await?;
                let queue = record.submitted(load, prepared.tokens(), 0);
                let (rows, finisher) = prepared.split();
                let numbers = engine.encode(rows).await?;
                if !finisher.is_long() {
                    return Ok((Work::Done(finisher.answer(id, model.text(), numbers)?), queue));
                }
                let (id, text) = (id.clone(), model.text().clone());
                let reply = self.blocking(move || finisher.answer(&id, &text, numbers)).await?;
                Ok((Work::Done(reply), queue))
            }
        }
    }

    /// Compiles what a request's answers must look like.
    async fn compile(
        &self,
        model: &EngineModel,
        tenant: Option<&TenantName>,
        grammar: Grammar,
    ) -> Result<Compiled, Failure> {
        let (text, tenant) = (model.text().clone(), tenant.cloned());
        let began = Instant::now();
        let work = move || text.speller()?.compile(grammar, tenant.as_ref());
        let compiled = in_turn(&self.compiling, work).await;
        compiled_form(began.elapsed());
        compiled
    }

    /// A turn to have a chat's template rendered, where it is one.
    async fn turn(
        &self,
        is_chat: bool,
        id: &ModelId,
        payer: Option<&TenantName>,
    ) -> Option<Render> {
        match is_chat {
            true => Some(self.renderer.turn(id, payer.cloned()).await),
            false => None,
        }
    }

    /// Prepares a request on a blocking thread, when its turn has come.
    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Failure> {
        in_turn(&self.preparing, work).await
    }
}

/// Does work on a blocking thread when there is a permit for it, which it keeps until it is done.
async fn in_turn<T: Send + 'static>(
    turns: &Arc<Semaphore>,
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Failure> {
    let permit = Arc::clone(turns).acquire_owned().await;
    let permit = permit.map_err(|_| Error::Interrupted)?;
    let done = tokio::task::spawn_blocking(move || {
        let _until_done = permit;
        work()
    });
    Ok(done.await.map_err(|_| Error::Interrupted)??)
}

/// Refuses a model that is not what the request takes it for: an adapter of `asked`. One that is named
/// twice, as what is asked and as its adapter, is itself.
fn of_base(id: &ModelId, model: &ServedModel, asked: &ModelId) -> Result<(), Error> {
    let base = match model {
        ServedModel::Engine(model) => model.base(),
        ServedModel::Handler(_) | ServedModel::Contained(_) => None,
        ServedModel::External(driven) => driven.base(),
    };
    if base.is_some_and(|base| base == asked || id == asked) {
        return Ok(());
    }
    Err(Error::OtherBase { model: id.clone(), is_adapter: base.is_some() })
}

/// Queues every sequence; when one is refused, those before it are aborted.
fn submit(
    Asked { id, model, engine, .. }: Asked<'_>,
    prepared: Prepared,
    form: Option<&Compiled>,
) -> Result<Vec<Choice>, Failure> {
    let eos_tokens: Arc<[u32]> = match model.purpose() {
        Purpose::Generative { eos_tokens, .. } => eos_tokens.as_slice().into(),
        Purpose::Embedding { .. }
        | Purpose::Classification(_)
        | Purpose::TokenClassification(_)
        | Purpose::FillMask
        | Purpose::QuestionAnswering => [].into(),
    };
    let mut choices = Vec::with_capacity(prepared.sequences.len());
    for (choice, sequence) in prepared.sequences.into_iter().enumerate() {
        let writer = Writer::new(WriterParts {
            choice,
            codec: model.text().clone(),
            prompt: &sequence.spec.prompt,
            writing: prepared.writing.clone(),
            min_tokens: sequence.spec.min_tokens,
            eos_tokens: Arc::clone(&eos_tokens),
            calls: prepared.calls.as_ref().map(|plan| plan.calls(model.text())),
        })?;
        let constraint = form.map(|form| -> Box<dyn Constraint> { Box::new(form.follower()) });
        let spec = sequence.spec;
        let scored = spec.prompt_logprobs.map_or_else(Vec::new, |_| spec.prompt.clone());
        let tokens = engine.generate_within(spec, constraint)?;
        choices.push(Choice::new(id.clone(), (sequence.lead, scored), tokens, writer));
    }
    Ok(choices)
}

fn boxed(pieces: impl Stream<Item = Result<Piece, Failure>> + Send + 'static) -> PieceStream {
    Box::pin(pieces)
}
