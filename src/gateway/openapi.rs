//! `GET /openapi.json`: the data port described, as OpenAPI 3.1 has it.
//!
//! Statuses of errors come from the one error table; a test holds the operations against the router.

mod operations;
mod schemas;

use std::sync::OnceLock;

use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http::{HeaderValue, header};
use serde_json::{Map, Value, json};

use crate::call::Context;
use crate::error::{Face, statuses};
use crate::meter;

/// Where an operation is served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Where {
    Always,
    /// Under the container contract.
    Contract,
    /// There, and where one model has adapters.
    Adapters,
    /// Where a platform runs this server as its container.
    Platform,
}

/// What an operation answers when all is well.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Answers {
    /// JSON of this schema.
    Json(&'static str),
    /// The same with 202: what was asked is done later.
    Accepted(&'static str),
    /// A model's answer, as its schema has it, or whatever its handler writes.
    Model,
    /// The same in messages of an AWS event stream.
    Framed,
    /// JSON of this schema, or server-sent events.
    Events(&'static str),
    /// Text for Prometheus.
    Text,
    /// Nothing.
    Nothing,
}

/// What an operation reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reads {
    Nothing,
    /// JSON of this schema.
    Json(&'static str),
    /// JSON of this schema; or its fields in the query.
    JsonOrQuery(&'static str),
    /// A request to a model: JSON, text, or whatever its handler reads.
    Model,
}

/// One method of one path.
struct Operation {
    method: &'static str,
    path: &'static str,
    /// Unlike any other's.
    id: &'static str,
    summary: &'static str,
    served: Where,
    face: Face,
    /// Names of [`schemas::PARAMETERS`].
    parameters: &'static [&'static str],
    reads: Reads,
    answers: Answers,
}

/// What a server serves beside [`Where::Always`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Serving {
    contract: bool,
    adapters: bool,
    platform: bool,
}

impl Serving {
    /// The document, which is built once: it is long, and says the same to everybody.
    fn written(self) -> Bytes {
        static WRITTEN: [OnceLock<Bytes>; 8] = [const { OnceLock::new() }; 8];
        let Self { contract, adapters, platform } = self;
        let place =
            [contract, adapters, platform].iter().fold(0, |at, is| at * 2 + usize::from(*is));
        let is_served = |served| match served {
            Where::Always => true,
            Where::Contract => contract,
            Where::Adapters => adapters,
            Where::Platform => platform,
        };
        WRITTEN[place].get_or_init(|| describe(is_served).to_string().into()).clone()
    }
}

/// `GET /openapi.json`.
pub(crate) async fn document(context: Context) -> Response {
    if let Err(error) = meter::admit_look(&context, None) {
        return error.respond(Face::Endpoint);
    }
    let gateway = &context.gateway;
    let serving = Serving {
        contract: gateway.container.as_ref().is_some_and(|contract| contract.loads),
        adapters: gateway.container.is_some(),
        platform: gateway.platform.is_some(),
    };
    let json = [(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))];
    meter::settled(&context.notes, (json, serving.written()).into_response()).await
}

fn describe(is_served: impl Fn(Where) -> bool) -> Value {
    let mut paths: Map<String, Value> = Map::new();
    for operation in operations::all().filter(|it| is_served(it.served)) {
        let path = paths.entry(operation.path).or_insert_with(|| json!({}));
        path[operation.method] = operation.described();
    }
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Roundhouse",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "The data port. Credentials are needed where the operator asks for them.",
        },
        "security": [{}, {"bearer": []}, {"sigv4": []}],
        "paths": paths,
        "components": {
            "schemas": schemas::all(),
            "parameters": schemas::parameters(),
            "headers": schemas::headers(),
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "sigv4": {
                    "type": "apiKey", "in": "header", "name": "Authorization",
                    "description": "AWS Signature Version 4 for the service sagemaker.",
                },
            },
        },
    })
}

impl Operation {
    fn described(&self) -> Value {
        let parameters = self.parameters.iter();
        let parameters: Vec<Value> = parameters.map(|name| refer("parameters", name)).collect();
        let mut described = json!({
            "operationId": self.id,
            "summary": self.summary,
            "parameters": parameters,
            "responses": self.responses(),
        });
        if let Some((content, required)) = self.reads.content() {
            described["requestBody"] = json!({"required": required, "content": content});
        }
        described
    }

    fn responses(&self) -> Map<String, Value> {
        let mut responses = Map::new();
        let mut good = json!({"description": "The answer.", "headers": schemas::answer_headers()});
        if let Some(content) = self.answers.content() {
            good["content"] = content;
        }
        let status = if matches!(self.answers, Answers::Accepted(_)) { "202" } else { "200" };
        responses.insert(status.into(), good);
        let schema = schemas::error(self.face);
        let mut add = |status: &str, description: String| {
            let content = json!({"application/json": {"schema": refer("schemas", schema)}});
            responses.insert(
                status.into(),
                json!({
                    "description": description,
                    "headers": schemas::error_headers(),
                    "content": content,
                }),
            );
        };
        for (status, types) in statuses(self.face) {
            add(&status.to_string(), types.join(", "));
        }
        // Without [auth], on loopback: reached by a name that is not this server's.
        add("421", "Reached by a foreign name.".into());
        let is_registration = matches!(self.reads, Reads::JsonOrQuery(_));
        if is_registration && self.path.contains("/adapters") {
            add("424", "An adapter that cannot be loaded.".into());
        }
        if self.reads == Reads::Model && self.face != Face::Endpoint {
            // A handler's own.
            add("4XX", "What the model's handler refuses.".into());
            add("5XX", "What the model's handler fails with.".into());
        }
        responses
    }
}

impl Reads {
    fn content(self) -> Option<(Value, bool)> {
        let of = |schema: &str| json!({"schema": refer("schemas", schema)});
        match self {
            Self::Nothing => None,
            Self::Json(schema) => Some((json!({"application/json": of(schema)}), true)),
            Self::JsonOrQuery(schema) => Some((json!({"application/json": of(schema)}), false)),
            Self::Model => Some((
                json!({
                    "application/json": of("ModelRequest"),
                    "text/plain": {"schema": {"type": "string"}},
                }),
                true,
            )),
        }
    }
}

impl Answers {
    fn content(self) -> Option<Value> {
        let of = |schema: &str| json!({"schema": refer("schemas", schema)});
        let text = || json!({"schema": {"type": "string"}});
        // All of a body of events is a text; those who read it event by event have objects.
        let events = || json!({"schema": {"type": ["string", "object"]}});
        match self {
            Self::Json(schema) | Self::Accepted(schema) => {
                Some(json!({"application/json": of(schema)}))
            }
            Self::Model => Some(json!({
                "application/json": of("ModelAnswer"),
                "application/jsonlines": text(),
                "text/event-stream": events(),
                "*/*": {},
            })),
            Self::Framed => Some(json!({"application/vnd.amazon.eventstream": {}})),
            Self::Events(schema) => {
                Some(json!({"application/json": of(schema), "text/event-stream": events()}))
            }
            Self::Text => Some(json!({"text/plain": text()})),
            Self::Nothing => None,
        }
    }
}

fn refer(part: &str, name: &str) -> Value {
    json!({"$ref": format!("#/components/{part}/{name}")})
}

#[cfg(test)]
mod tests;
