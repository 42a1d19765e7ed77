//! Which path means what.

use std::sync::Arc;

use axum::Router;
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, get, post};
use http::{Method, StatusCode};
use serde_json::json;
use tower::util::MapRequestLayer;

use crate::container::adapters;
use crate::error::{Error, Face};
use crate::layers::{self, Notes};
use crate::metrics::OfRoute;
use crate::state::{GatewayState, Health};
use crate::{container, openai, openapi, platform, ranking, sagemaker, tei, tgi, tokens};

/// Paths of the container contract, and below.
const CONTAINER: [&str; 4] = ["/models", "/adapters", "/metrics", "/execution-parameters"];
/// Paths of text-generation-inference and text-embeddings-inference.
const TGI: [&str; 13] = [
    "/",
    "/decode",
    "/detokenize",
    "/embed",
    "/embed_all",
    "/generate",
    "/generate_stream",
    "/health",
    "/info",
    "/predict",
    "/rerank",
    "/similarity",
    "/tokenize",
];

/// What every route shares.
pub(crate) type Gateway = Arc<GatewayState>;

/// The data port: every route with everything that surrounds it.
pub fn router(state: GatewayState) -> Router {
    let gateway = Arc::new(state);
    let mut routes = Router::new()
        .route("/ping", named("ping", get(ping)))
        .route("/invocations", named("invocations", post(sagemaker::invocations)))
        .route(
            "/endpoints/{endpoint}/invocations",
            named("invoke_endpoint", post(sagemaker::invoke_endpoint)),
        )
        .route(
            "/endpoints/{endpoint}/invocations-response-stream",
            named("invoke_endpoint_stream", post(sagemaker::invoke_endpoint_stream)),
        )
        .route(
            "/endpoints/{endpoint}/async-invocations",
            named("invoke_endpoint_async", post(sagemaker::asynchronous::invoke_endpoint_async)),
        )
        .route(
            "/endpoints/{endpoint}/openai/v1/chat/completions",
            named("endpoint_chat", post(openai::endpoint_chat)),
        )
        .route(
            "/endpoints/{endpoint}/inference-components/{component}/openai/v1/chat/completions",
            named("component_chat", post(openai::component_chat)),
        )
        .route("/", named("generate_either", post(tgi::compatible)))
        .route("/openapi.json", named("openapi", get(openapi::document)))
        .route("/health", named("health", get(tgi::health)))
        .route("/info", named("info", get(tgi::info)))
        .route("/generate", named("generate", post(tgi::generate)))
        .route("/generate_stream", named("generate_stream", post(tgi::generate_stream)))
        .route("/v1/models", named("models", get(openai::models::list)))
        .route("/v1/models/{*id}", named("model", get(openai::models::one)))
        .route("/v1/chat/completions", named("chat", post(openai::chat)))
        .route("/v1/completions", named("completions", post(openai::completions)))
        .route("/v1/responses", named("responses", post(openai::responses)))
        .route("/v1/embeddings", named("embeddings", post(openai::embeddings)))
        .route("/v1/rerank", named("rerank", post(ranking::rerank)))
        .route("/v1/score", named("score", post(ranking::score)))
        .merge(embeddings_inference());
    if gateway.container.as_ref().is_some_and(|contract| contract.loads) {
        routes = routes.merge(container_models());
    }
    if gateway.container.is_some() {
        routes = routes.merge(container_adapters());
    }
    if gateway.platform.is_some() {
        routes = routes.route("/metrics", named("metrics", get(platform::metrics))).route(
            "/execution-parameters",
            named("execution_parameters", get(platform::execution_parameters)),
        );
    }
    let routes = routes
        .fallback(async |request: Request| refused(&request, Error::UnknownPath))
        .method_not_allowed_fallback(async |request: Request| refused(&request, Error::WrongMethod))
        .with_state(gateway.clone());
    let routes = platform::with_default_accept(routes, &gateway);
    layers::around(routes, &gateway)
}

/// The container contract's routes of models, and of adapters on one of them.
fn container_models() -> Router<Gateway> {
    Router::new()
        .route("/models", named("container_models", get(container::list).post(container::load)))
        .route(
            "/models/{name}",
            named("container_model", get(container::get).delete(container::unload)),
        )
        .route("/models/{name}/invoke", named("container_invoke", post(container::invoke)))
        .route(
            "/models/{name}/adapters",
            named("model_adapters", get(adapters::list_on).post(adapters::register_on)),
        )
        .route(
            "/models/{name}/adapters/{adapter}",
            named("model_adapter", get(adapters::get_on).delete(adapters::unregister_on)),
        )
        .route(
            "/models/{name}/adapters/{adapter}/update",
            named("model_adapter_update", post(adapters::update_on)),
        )
}

/// The container contract's routes of adapters on its one model.
fn container_adapters() -> Router<Gateway> {
    Router::new()
        .route(
            "/adapters",
            named("container_adapters", get(adapters::list).post(adapters::register)),
        )
        .route(
            "/adapters/{name}",
            named("container_adapter", get(adapters::get).delete(adapters::unregister)),
        )
        .route("/adapters/{name}/update", named("container_adapter_update", post(adapters::update)))
}

/// The routes of text-embeddings-inference, and those that ask a tokenizer.
fn embeddings_inference() -> Router<Gateway> {
    Router::new()
        .route("/embed", named("embed", post(tei::embed)))
        .route("/embed_all", named("embed_all", post(tei::embed_all)))
        .route("/predict", named("predict", post(tei::predict)))
        .route("/rerank", named("rerank_plain", post(ranking::rerank_plain)))
        .route("/similarity", named("similarity", post(tei::similarity)))
        .route("/tokenize", named("tokenize", post(tokens::tokenize)))
        .route("/detokenize", named("detokenize", post(tokens::detokenize)))
        .route("/decode", named("decode", post(tokens::decode)))
}

/// What no handler answers; who looks for the admin port is told where it is.
fn refused(request: &Request, otherwise: Error) -> Response {
    let path = request.uri().path();
    let path_exists = matches!(otherwise, Error::WrongMethod);
    let is_of_admin = matches!(*request.method(), Method::GET | Method::HEAD)
        && matches!(path, "/" | "/metrics" | "/livez" | "/readyz" | "/healthz");
    let error = if is_of_admin { Error::OnAdmin { path_exists } } else { otherwise };
    error.respond(face_of(path))
}

/// The dialect of a path, for answers that no handler gives.
pub(crate) fn face_of(path: &str) -> Face {
    if path.starts_with("/v1/") || path.contains("/openai/v1/") {
        Face::OpenAi
    } else if CONTAINER.iter().any(|at| is_below(path, at)) {
        Face::Container
    } else if path == "/invocations" {
        Face::Invocations
    } else if TGI.contains(&path) {
        Face::Tgi
    } else {
        Face::Endpoint
    }
}

fn is_below(path: &str, at: &str) -> bool {
    path.strip_prefix(at).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// Gives a route the name it has in metrics and the access log.
pub(crate) fn named(name: &'static str, route: MethodRouter<Gateway>) -> MethodRouter<Gateway> {
    let name = Arc::new(OfRoute::new(name));
    route.layer(MapRequestLayer::new(move |mut request: Request| {
        if let Some(notes) = request.extensions().get::<Notes>().cloned() {
            notes.route(&name, request.headers_mut());
        }
        request
    }))
}

/// Never waits: SageMaker gives it two seconds, whatever else is under way.
async fn ping(State(gateway): State<Gateway>) -> Response {
    match (gateway.health)() {
        Health::Healthy => axum::Json(json!({"status": "Healthy"})).into_response(),
        Health::Unhealthy(reason) => (
            StatusCode::SERVICE_UNAVAILABLE,
            axum::Json(json!({"status": "Unhealthy", "message": reason})),
        )
            .into_response(),
    }
}
