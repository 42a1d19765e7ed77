//! What operations read and answer with, and what they are told beside.

use roundhouse_serving::{ALTERNATIVES_MAX, ANSWERS_MAX};
use serde_json::{Map, Value, json};

use super::refer;
use crate::error::Face;

/// The schema of a face's errors.
pub(super) fn error(face: Face) -> &'static str {
    match face {
        Face::Endpoint | Face::Invocations => "SageMakerError",
        Face::Container => "ContainerError",
        Face::OpenAi => "OpenAiError",
        Face::Tgi => "TgiError",
    }
}

/// Headers of every good answer.
pub(super) fn answer_headers() -> Value {
    named(&[
        "x-amzn-RequestId",
        "x-request-id",
        "x-roundhouse-version",
        "x-roundhouse-tier",
        "x-roundhouse-load-ms",
        "x-roundhouse-queue-ms",
        "x-roundhouse-ignored",
    ])
}

/// Headers of every error.
pub(super) fn error_headers() -> Value {
    named(&[
        "x-amzn-RequestId",
        "x-request-id",
        "x-amzn-ErrorType",
        "Retry-After",
        "x-amz-retry-after",
    ])
}

fn named(names: &[&str]) -> Value {
    let refers = names.iter().map(|name| ((*name).to_owned(), refer("headers", name)));
    Value::Object(refers.collect())
}

pub(super) fn headers() -> Value {
    let texts = [
        ("x-amzn-RequestId", "The request's id, in the access log too."),
        ("x-request-id", "The same."),
        ("x-roundhouse-version", "The version of the artefact that answered."),
        ("x-roundhouse-tier", "Where the model was found: device, host, disk or store."),
        ("x-roundhouse-load-ms", "How long the request waited for a load."),
        ("x-roundhouse-queue-ms", "How long it waited for anything else."),
        ("x-roundhouse-ignored", "Fields of the body that nothing reads."),
        ("x-amzn-ErrorType", "The error's type, on SageMaker's routes."),
        ("Retry-After", "Seconds after which the same request may succeed."),
        ("x-amz-retry-after", "The same in milliseconds."),
    ];
    let described = texts.into_iter().map(|(name, what)| {
        (name.to_owned(), json!({"description": what, "schema": {"type": "string"}}))
    });
    Value::Object(described.collect())
}

/// One parameter: its name in the description, its own, where it is, whether it must be there, its
/// type, what it says.
type Parameter = (&'static str, &'static str, &'static str, bool, &'static str, &'static str);

const PARAMETERS: &[Parameter] = &[
    ("Endpoint", "endpoint", "path", true, "string", "The endpoint's name."),
    ("ComponentInPath", "component", "path", true, "string", "The inference component's name."),
    (
        "InputLocation",
        "X-Amzn-SageMaker-InputLocation",
        "header",
        false,
        "string",
        "Where the input lies; absent: the body is it.",
    ),
    (
        "Component",
        "X-Amzn-SageMaker-Inference-Component",
        "header",
        false,
        "string",
        "The inference component.",
    ),
    (
        "SessionId",
        "X-Amzn-SageMaker-Session-Id",
        "header",
        false,
        "string",
        "NEW_SESSION, or a stateful session's id.",
    ),
    (
        "InferenceId",
        "X-Amzn-SageMaker-Inference-Id",
        "header",
        false,
        "string",
        "The client's own id of the request.",
    ),
    ("Name", "name", "path", true, "string", "The name that the platform gave."),
    ("AdapterInPath", "adapter", "path", true, "string", "The adapter's name."),
    ("ModelId", "id", "path", true, "string", "An id of the list."),
    (
        "TargetModel",
        "X-Amzn-SageMaker-Target-Model",
        "header",
        false,
        "string",
        "The target model.",
    ),
    (
        "Adapter",
        "X-Amzn-SageMaker-Adapter-Identifier",
        "header",
        false,
        "string",
        "An adapter of it; goes before what the body names.",
    ),
    (
        "TargetVariant",
        "X-Amzn-SageMaker-Target-Variant",
        "header",
        false,
        "string",
        "The production variant.",
    ),
    (
        "CustomAttributes",
        "X-Amzn-SageMaker-Custom-Attributes",
        "header",
        false,
        "string",
        "Passed on to handlers; streams and /invocations may say target-model=… in it.",
    ),
    (
        "RouteKey",
        "x-roundhouse-route-key",
        "header",
        false,
        "string",
        "Equal values go to the same target of an alias.",
    ),
    (
        "Accept",
        "Accept",
        "header",
        false,
        "string",
        "text/event-stream for streams as events; handlers see it.",
    ),
    (
        "StreamAccept",
        "X-Amzn-SageMaker-Accept",
        "header",
        false,
        "string",
        "text/event-stream for events in the stream's parts.",
    ),
    (
        "ModelName",
        "model_name",
        "query",
        false,
        "string",
        "Under the container contract: the loaded model that is meant.",
    ),
    ("Model", "model", "query", false, "string", "The target model, where no header names it."),
    ("Limit", "limit", "query", false, "integer", "So many at most."),
    (
        "NextPageToken",
        "next_page_token",
        "query",
        false,
        "string",
        "What the page before gave as nextPageToken.",
    ),
    ("After", "after", "query", false, "string", "The id before the page."),
    (
        "LoadName",
        "model_name",
        "query",
        false,
        "string",
        "Where there is no body: the model's name.",
    ),
    ("LoadUrl", "url", "query", false, "string", "Where there is no body: its folder."),
    (
        "AdapterName",
        "name",
        "query",
        false,
        "string",
        "Where there is no body: the adapter's name.",
    ),
    ("AdapterSrc", "src", "query", false, "string", "Where there is no body: its folder."),
    (
        "AdapterSrcUpdate",
        "src",
        "query",
        false,
        "string",
        "Where there is no body: its folder now.",
    ),
    (
        "Preload",
        "preload",
        "query",
        false,
        "boolean",
        "Where there is no body: whether it is loaded now.",
    ),
    (
        "Pin",
        "pin",
        "query",
        false,
        "boolean",
        "Where there is no body: whether it stays once it is loaded.",
    ),
];

pub(super) fn parameters() -> Value {
    let described = PARAMETERS.iter().map(|(key, name, place, required, kind, what)| {
        let mut schema = json!({"type": kind});
        if *kind == "integer" {
            schema["minimum"] = 1.into();
        }
        let parameter = json!({
            "name": name, "in": place, "required": required, "description": what, "schema": schema,
        });
        ((*key).to_owned(), parameter)
    });
    Value::Object(described.collect())
}

pub(super) fn all() -> Value {
    let mut schemas = Map::new();
    let mut add = |name: &str, schema: Value| drop(schemas.insert(name.into(), schema));
    let text = || json!({"type": "string"});
    let whole = || json!({"type": "integer"});
    let switch = || json!({"type": "boolean"});
    let many = |items: Value| json!({"type": "array", "items": items});
    add("Object", json!({"type": "object"}));
    add("Health", object(json!({"status": text(), "message": text()}), &["status"]));
    add("Status", object(json!({"status": text()}), &["status"]));
    add(
        "ExecutionParameters",
        object(
            json!({"MaxConcurrentTransforms": whole(), "BatchStrategy": text(), "MaxPayloadInMB": whole()}),
            &["MaxConcurrentTransforms", "BatchStrategy", "MaxPayloadInMB"],
        ),
    );
    let model =
        object(json!({"modelName": text(), "modelUrl": text()}), &["modelName", "modelUrl"]);
    add("ContainerModel", model);
    let page = json!({"models": many(refer("schemas", "ContainerModel")), "nextPageToken": text()});
    add("ContainerModels", object(page, &["models"]));
    add(
        "ContainerLoad",
        object(json!({"model_name": text(), "url": text()}), &["model_name", "url"]),
    );
    let adapter = json!({"name": text(), "src": text(), "pin": switch()});
    add("Adapter", object(adapter, &["name", "src", "pin"]));
    add("AdapterList", many(refer("schemas", "Adapter")));
    let page = json!({"adapters": refer("schemas", "AdapterList"), "nextPageToken": text()});
    add("Adapters", object(page, &["adapters"]));
    let wish = json!({"name": text(), "src": text(), "preload": switch(), "pin": switch()});
    add("Registration", object(wish, &["name", "src"]));
    add("AdapterUpdate", object(json!({"src": text(), "preload": switch(), "pin": switch()}), &[]));
    let line = json!({
        "id": text(), "object": {"const": "model"}, "created": whole(), "owned_by": text(),
    });
    add("Model", object(line, &["id", "object", "created", "owned_by"]));
    let list = json!({
        "object": {"const": "list"}, "data": many(refer("schemas", "Model")), "has_more": switch(),
    });
    add("ModelList", object(list, &["object", "data"]));
    let info = json!({
        "router": text(), "version": text(), "model_id": text(), "model_dtype": text(),
        "max_total_tokens": whole(), "max_input_tokens": whole(),
    });
    add("Info", object(info, &["router", "version"]));
    errors(&mut add);
    requests(&mut add);
    answers(&mut add);
    Value::Object(schemas)
}

fn errors(add: &mut impl FnMut(&str, Value)) {
    let text = || json!({"type": "string"});
    let amazon = json!({
        "Message": text(), "OriginalStatusCode": {"type": "integer"}, "OriginalMessage": text(),
        "LogStreamArn": text(),
    });
    add("SageMakerError", object(amazon, &[]));
    let container = json!({"code": {"type": "integer"}, "type": text(), "message": text()});
    add("ContainerError", object(container, &[]));
    add("TgiError", object(json!({"error": {}, "error_type": text()}), &["error"]));
    let inner = json!({
        "message": text(), "type": text(), "param": {"type": ["string", "null"]},
        "code": {"type": ["string", "null"]},
    });
    add("OpenAiError", object(json!({"error": object(inner, &["message"])}), &["error"]));
}

fn requests(add: &mut impl FnMut(&str, Value)) {
    let text = || json!({"type": "string"});
    let texts = || json!({"type": "array", "items": {"type": "string"}, "minItems": 1});
    let count = || json!({"type": "integer", "minimum": 1});
    let answers = || json!({"type": "integer", "minimum": 1, "maximum": ANSWERS_MAX});
    let alternatives = || json!({"type": "integer", "minimum": 0, "maximum": ALTERNATIVES_MAX});
    let number = |from: f64, to: f64| json!({"type": "number", "minimum": from, "maximum": to});
    let sampling = || {
        json!({
            "temperature": number(0.0, 100.0), "top_p": number(0.0, 1.0),
            "top_k": {"type": "integer", "minimum": -1}, "min_p": number(0.0, 1.0),
            "repetition_penalty": number(0.01, 100.0), "seed": {"type": "integer"},
            "presence_penalty": number(-2.0, 2.0), "frequency_penalty": number(-2.0, 2.0),
            "stop": {"anyOf": [text(), texts()]},
        })
    };
    let with = |more: Value| {
        let mut all = sampling();
        if let (Value::Object(all), Value::Object(more)) = (&mut all, more) {
            all.extend(more);
        }
        all
    };
    let parameters = with(json!({
        "max_new_tokens": count(), "do_sample": {"type": "boolean"}, "details": {"type": "boolean"},
        "return_full_text": {"type": "boolean"}, "adapter_id": text(),
    }));
    let inputs = |inputs: Value| {
        json!({
            "inputs": inputs, "parameters": object(parameters.clone(), &[]),
            "stream": {"type": "boolean"}, "adapters": {}, "model": text(),
        })
    };
    let either = json!({"anyOf": [text(), texts()]});
    add("InputsRequest", object(inputs(either.clone()), &["inputs"]));
    add("GenerateRequest", object(inputs(text()), &["inputs"]));
    let message = json!({"role": text(), "content": {}});
    let chat = with(json!({
        "model": text(), "stream": {"type": "boolean"}, "max_tokens": count(),
        "max_completion_tokens": count(), "n": answers(),
        "messages": {"type": "array", "minItems": 1, "items": object(message, &["role"])},
        "tools": {"type": "array"}, "tool_choice": {}, "response_format": {"type": "object"},
        "logprobs": {"type": "boolean"}, "top_logprobs": alternatives(),
        "prompt_logprobs": alternatives(), "return_token_ids": {"type": "boolean"},
        "return_tokens_as_token_ids": {"type": "boolean"},
    }));
    add("ChatRequest", object(chat, &["messages"]));
    let response = with(json!({
        "model": text(), "input": {"anyOf": [text(), {"type": "array", "minItems": 1}]},
        "instructions": text(), "stream": {"type": "boolean"}, "max_output_tokens": count(),
        "tools": {"type": "array"}, "tool_choice": {}, "text": {"type": "object"},
        "reasoning": {"type": "object"}, "store": {"type": "boolean"},
    }));
    add("ResponseRequest", object(response, &["input"]));
    let length = json!({
        "type": "integer", "minimum": 0, "description": "0 scores the prompt: with echo alone",
    });
    let completion = with(json!({
        "model": text(), "prompt": {"anyOf": [text(), texts(), {"type": "array"}]},
        "stream": {"type": "boolean"}, "max_tokens": length, "n": answers(),
        "echo": {"type": "boolean"}, "logprobs": alternatives(),
        "prompt_logprobs": alternatives(), "return_token_ids": {"type": "boolean"},
        "return_tokens_as_token_ids": {"type": "boolean"},
    }));
    add("CompletionRequest", object(completion, &["prompt"]));
    let embeddings = json!({
        "model": text(), "input": {"anyOf": [text(), texts(), {"type": "array"}]},
        "encoding_format": {"enum": ["float", "base64"]}, "dimensions": count(),
    });
    add("EmbeddingsRequest", object(embeddings, &["input"]));
    let documents = || json!({"type": "array"});
    let rank = json!({
        "model": text(), "query": text(), "documents": documents(), "texts": documents(),
        "top_n": count(),
    });
    add("RankRequest", object(rank, &["query"]));
    let either = json!({"anyOf": [text(), documents()]});
    let score = json!({"model": text(), "text_1": either.clone(), "text_2": either});
    add("ScoreRequest", object(score, &["text_1", "text_2"]));
    let texts = json!({"anyOf": [text(), {"type": "array", "items": text(), "minItems": 1}]});
    let embed = json!({
        "model": text(), "inputs": texts.clone(), "normalize": {"type": "boolean"},
        "dimensions": {"type": "integer", "minimum": 1}, "prompt_name": text(),
    });
    add("EmbedRequest", object(embed, &["inputs"]));
    let pair = json!({"type": "array", "items": text(), "minItems": 1, "maxItems": 2});
    let batch = json!({"type": "array", "items": pair.clone(), "minItems": 1});
    let predict = json!({
        "model": text(), "inputs": {"anyOf": [text(), pair, batch]},
        "raw_scores": {"type": "boolean"},
    });
    add("PredictRequest", object(predict, &["inputs"]));
    let sentences = json!({"source_sentence": text(), "sentences": texts});
    let inputs = object(sentences, &["source_sentence", "sentences"]);
    add("SimilarityRequest", object(json!({"model": text(), "inputs": inputs}), &["inputs"]));
    let boolean = || json!({"type": "boolean"});
    let ids = || json!({"type": "array", "items": {"type": "integer", "minimum": 0}});
    let tokenize = json!({
        "model": text(), "prompt": text(), "inputs": {"anyOf": [text(), texts]},
        "messages": {"type": "array", "items": {"type": "object"}},
        "add_special_tokens": boolean(), "return_token_strs": boolean(),
    });
    let mut tokenize = object(tokenize, &[]);
    tokenize["anyOf"] =
        ["prompt", "inputs", "messages"].map(|name| json!({"required": [name]})).to_vec().into();
    add("TokenizeRequest", tokenize);
    let told = object(json!({"tokens": {"type": "array"}}), &["tokens"]);
    add("Tokenized", json!({"anyOf": [told, {"type": "array"}]}));
    add("DetokenizeRequest", object(json!({"model": text(), "tokens": ids()}), &["tokens"]));
    let lists = json!({"anyOf": [ids(), {"type": "array", "items": ids()}]});
    let decode = json!({"model": text(), "ids": lists, "skip_special_tokens": boolean()});
    add("DecodeRequest", object(decode, &["ids"]));
    let kinds = ["InputsRequest", "ChatRequest", "CompletionRequest", "EmbeddingsRequest"];
    let kinds: Vec<Value> = kinds.iter().map(|kind| refer("schemas", kind)).collect();
    add("ModelRequest", json!({"anyOf": kinds}));
}

fn answers(add: &mut impl FnMut(&str, Value)) {
    let text = || json!({"type": "string"});
    let generation = json!({"generated_text": text(), "details": {"type": "object"}});
    add("Generation", object(generation, &["generated_text"]));
    add("Generations", json!({"type": "array", "items": refer("schemas", "Generation")}));
    let answer = |kind: &str| {
        json!({
            "id": text(), "object": {"const": kind}, "created": {"type": "integer"},
            "model": text(), "choices": {"type": "array"}, "usage": {"type": "object"},
        })
    };
    let required = ["id", "object", "created", "model", "choices"];
    let ids = || json!({"type": "array", "items": {"type": "integer"}});
    let mut chat = answer("chat.completion");
    chat["prompt_token_ids"] = ids();
    chat["prompt_logprobs"] = json!({"type": "array", "items": {"type": ["object", "null"]}});
    add("ChatCompletion", object(chat, &required));
    add("Completion", object(answer("text_completion"), &required));
    let list = json!({
        "object": {"const": "list"}, "data": {"type": "array"}, "model": text(),
        "usage": {"type": "object"},
    });
    add("Embeddings", object(list, &["object", "data", "model", "usage"]));
    // A model's own: an object, a list of labels, vectors.
    add("ModelAnswer", json!({}));
    add("Array", json!({"type": "array"}));
    add("Ranks", json!({"type": ["object", "array"]}));
    add("AsyncAccepted", object(json!({"InferenceId": text()}), &["InferenceId"]));
}

fn object(properties: Value, required: &[&str]) -> Value {
    json!({"type": "object", "properties": properties, "required": required})
}

/// The names that operations may refer to.
#[cfg(test)]
pub(super) fn parameter_names() -> impl Iterator<Item = &'static str> {
    PARAMETERS.iter().map(|parameter| parameter.0)
}
