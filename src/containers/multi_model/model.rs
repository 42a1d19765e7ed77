//! A model in a container: how it comes, answers and leaves.

use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::{Future, StreamExt};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode, header};
use http_body_util::BodyExt;
use roundhouse_types::{ErrorKind, Failure, ModelId, RetryHint};
use tokio::time::Instant;
use tracing::warn;

use super::ask::{self, Said, TARGET_MODEL};
use super::container::{Inner, ModelContainer, Phase, target_header};
use super::watch::gone;
use crate::driven::{Answer, Call, CallError, NewsFn, Route};
use crate::{Backend, Error, Incoming, Outgoing};

/// Whoever asks has deadlines of its own, and drops a request at them.
const LONGEST: Duration = Duration::from_secs(24 * 3600);
/// How often room is made for one request.
const ROOM_TRIES: usize = 2;
/// What SageMaker passes on to a container beside the types, and back.
const PASSED_ON: &str = "x-amzn-sagemaker-";

/// Has another model leave the container; says whether one did.
pub type RoomFn = Arc<dyn Fn() -> Pin<Box<dyn Future<Output = bool> + Send>> + Send + Sync>;

/// A model that is to be loaded into a container.
pub struct Load {
    /// What the container calls it below our prefix: letters and digits, another for each version and
    /// device.
    pub name: String,
    /// What it is.
    pub model: ModelId,
    /// Its files, where we see them.
    pub folder: PathBuf,
    /// Is told of its end, where the container has lost it.
    pub news: NewsFn,
    /// Asked for room where a request finds none (a status of 507).
    pub room: RoomFn,
}

/// Why a model is not in a container.
#[derive(Debug, Clone)]
pub enum LoadError {
    /// There is no memory for it, says the container.
    Full(Failure),
    /// Any other reason.
    Failed(Failure),
}

/// A model in a container, as requests use it.
pub struct ContainedModel {
    container: ModelContainer,
    name: String,
    target: HeaderValue,
    generation: u64,
    room: RoomFn,
    has_left: AtomicBool,
}

/// An entry of a load that goes on; taken out where the load fails or is dropped. What the container
/// made of it nevertheless is deleted when it is next looked at.
struct Entered<'a> {
    container: &'a Inner,
    name: &'a str,
    generation: u64,
    stays: bool,
}

impl Drop for Entered<'_> {
    fn drop(&mut self) {
        if !self.stays {
            self.container.take(self.name, self.generation);
        }
    }
}

impl ModelContainer {
    /// Loads a model. If dropped before, the container is told to delete it, some time later.
    ///
    /// # Errors
    /// `Full` where it says 507; `ModelInvalid` with what it says where it refuses it, `ModelFailed`
    /// where it fails with it; and those of a container that does not answer.
    pub async fn load(&self, load: &Load) -> Result<ContainedModel, LoadError> {
        let failed = |error: Error| LoadError::Failed(error.into());
        let container = &*self.0;
        let folder = container.spec.seen(&load.folder).map_err(LoadError::Failed)?;
        let backend = container.backend().await.map_err(failed)?;
        container.clean(&backend).await.map_err(failed)?;
        let name = format!("{}{}", container.prefix, load.name);
        let model = Some(load.model.clone());
        let generation = container.enter(&name, Phase::Loading, model).ok_or_else(|| {
            let what = format!("container {} is still taking it out", container.name);
            let failure = Failure::new(ErrorKind::NotReady, what);
            LoadError::Failed(failure.with_retry(RetryHint::Later))
        })?;
        let mut entered = Entered { container, name: &name, generation, stays: false };
        let mut target = target_header(&load.model, &name);
        let limit = container.spec.load_timeout;
        let mut said = ask::load(&backend, (&name, &target), &folder, limit).await;
        if said.as_ref().is_ok_and(|said| said.status == StatusCode::CONFLICT) {
            // Of a load or an unload whose end we did not see: nobody knows what state it is in.
            ask::unload(&backend, (&name, Some(&target)), limit).await.map_err(failed)?;
            said = ask::load(&backend, (&name, &target), &folder, limit).await;
        }
        if said.as_ref().is_ok_and(|said| said.status == StatusCode::CONFLICT)
            && let Ok(own) = HeaderValue::from_str(&name)
        {
            // Triton knows models by the target that is said, and another version of it is there.
            target = own;
            said = ask::load(&backend, (&name, &target), &folder, limit).await;
        }
        let said = said.map_err(failed)?;
        if !said.status.is_success() {
            return Err(refused(container, &said));
        }
        entered.stays = true;
        container.turn(&name, generation, Phase::Live(Arc::clone(&load.news)));
        let (container, room) = (self.clone(), Arc::clone(&load.room));
        let has_left = AtomicBool::new(false);
        drop(entered);
        Ok(ContainedModel { container, name, target, generation, room, has_left })
    }
}

impl ContainedModel {
    /// Sends a request on. Returns when the answer begins, whatever its status. If dropped before, or if
    /// the answer's body is dropped, the container is told to stop.
    ///
    /// # Errors
    /// `NotBegun` where the container is gone, or has not this model any more; `InvalidInput` where it
    /// was sent to a route that containers do not have, and what was wrong with its answer.
    pub async fn call(&self, call: Call) -> Result<Answer, CallError> {
        if call.route != Route::Invocations {
            let what = "the container that serves this target takes /invocations only";
            return Err(CallError::Failed(Failure::new(ErrorKind::InvalidInput, what)));
        }
        let container = &*self.container.0;
        let backend = container.backend_now().await.map_err(|error| self.lost(&error))?;
        let path = format!("/models/{}/invoke", self.name);
        let headers = self.headers(&call);
        let mut tries = 0;
        loop {
            let body = Outgoing::whole(call.body.clone());
            let mut request = ask::request(Method::POST, &path, body);
            *request.headers_mut() = headers.clone();
            let answered = backend.send(request, Instant::now() + LONGEST).await;
            let response = answered.map_err(|error| match error {
                Error::Unreachable { .. } => self.lost(&error),
                error => CallError::Failed(error.into()),
            })?;
            match response.status() {
                StatusCode::NOT_FOUND => return self.not_found(&backend, response).await,
                StatusCode::INSUFFICIENT_STORAGE if tries < ROOM_TRIES => {
                    tries += 1;
                    if !(self.room)().await {
                        return Ok(answer(response));
                    }
                }
                _ => return Ok(answer(response)),
            }
        }
    }

    /// A 404 is the model's own answer, or the container's that it has no such model.
    async fn not_found(
        &self,
        backend: &Backend,
        response: Response<Incoming>,
    ) -> Result<Answer, CallError> {
        let container = &*self.container.0;
        if container.check(backend, &self.name, self.generation).await {
            return Ok(answer(response));
        }
        let what = format!("container {} does not hold it any more", container.name);
        Err(CallError::NotBegun(Failure::new(ErrorKind::NotReady, what)))
    }

    fn lost(&self, error: &Error) -> CallError {
        let failure = gone(error);
        self.container.0.all_died(&failure);
        CallError::NotBegun(failure)
    }

    /// SageMaker's headers, never a credential.
    fn headers(&self, call: &Call) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, text) in &call.headers {
            if name.starts_with(PASSED_ON)
                && let (Ok(name), Ok(value)) = (name.parse::<HeaderName>(), text.parse())
            {
                headers.insert(name, value);
            }
        }
        for (name, text) in [
            (header::CONTENT_TYPE, &call.content_type),
            (header::ACCEPT, &call.accept),
            (HeaderName::from_static("x-amzn-requestid"), &Some(call.request_id.clone())),
        ] {
            if let Some(Ok(value)) = text.as_ref().map(|text| HeaderValue::from_str(text)) {
                headers.insert(name, value);
            }
        }
        headers.insert(TARGET_MODEL, self.target.clone());
        headers
    }

    /// Takes it out of its container; returns when its memory is free. A second call finds nothing to do.
    pub async fn leave(&self) {
        let container = &*self.container.0;
        if self.has_left.swap(true, Ordering::AcqRel)
            || !container.turn(&self.name, self.generation, Phase::Leaving)
        {
            // One that died is out already.
            return;
        }
        let left = match container.backend_now().await {
            Ok(backend) => {
                let own = (self.name.as_str(), Some(&self.target));
                ask::unload(&backend, own, container.spec.load_timeout).await
            }
            Err(error) => Err(error),
        };
        container.take(&self.name, self.generation);
        match left {
            Ok(said) if said.status.is_success() || said.status == StatusCode::NOT_FOUND => {}
            Ok(said) => {
                let (status, said) = (said.status.as_u16(), said.words());
                warn!(container = %container.name, model = self.name, status, said,
                    "a container did not unload a model, it is asked again later");
            }
            // One that has ended has forgotten it.
            Err(error) => {
                warn!(container = %container.name, model = self.name, %error,
                    "a container did not unload a model");
            }
        }
    }
}

impl Drop for ContainedModel {
    fn drop(&mut self) {
        if !*self.has_left.get_mut() {
            // It is deleted when the container is next looked at.
            self.container.0.take(&self.name, self.generation);
        }
    }
}

fn answer(response: Response<Incoming>) -> Answer {
    let (head, body) = response.into_parts();
    let text = |value: &HeaderValue| value.to_str().ok().map(str::to_owned);
    let own = head.headers.iter().filter(|(name, _)| name.as_str().starts_with(PASSED_ON));
    let headers = own.filter_map(|(name, value)| Some((name.to_string(), text(value)?))).collect();
    let content_type = head.headers.get(header::CONTENT_TYPE).and_then(text);
    let pieces = body.into_data_stream().map(|piece| piece.map_err(Failure::from));
    Answer { status: head.status.as_u16(), content_type, headers, body: Box::pin(pieces) }
}

fn refused(container: &Inner, said: &Said) -> LoadError {
    let (status, words, name) = (said.status, said.words(), &container.name);
    let failure = |kind, what: &str| {
        Failure::new(kind, format!("container {name} {what} ({}): {words}", status.as_u16()))
    };
    if status == StatusCode::INSUFFICIENT_STORAGE {
        let full = failure(ErrorKind::NotReady, "has no room for it");
        return LoadError::Full(full.with_retry(RetryHint::Later));
    }
    LoadError::Failed(match status.is_client_error() {
        true => failure(ErrorKind::ModelInvalid, "refuses it"),
        false => failure(ErrorKind::ModelFailed, "does not load it"),
    })
}
