//! The body that an engine is sent: the client's, with the engine's own name for the model.

use std::collections::BTreeMap;

use bytes::Bytes;
use serde_json::value::RawValue;

use super::call::Route;
use super::spec::AdapterRoutes;

/// OpenAI's paths.
const CHAT: &str = "/v1/chat/completions";
const COMPLETIONS: &str = "/v1/completions";
const EMBEDDINGS: &str = "/v1/embeddings";
/// SGLang's own route, whose bodies name an adapter by a field instead of the model.
const GENERATE: &str = "/generate";
/// By these SGLang finds an adapter where the model's name has none.
const OF_SGLANG: [&str; 2] = ["lora_path", "lora_id"];

/// A body and where it goes.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Rewritten {
    pub(super) path: String,
    pub(super) body: Bytes,
}

/// Finds out where a body goes and puts the engine's name for the model into it. Everything else of
/// it stays as it was written, but for what would name another adapter. A body that is no JSON object
/// is for an `invocations` path alone, and goes there as it is, where no model is chosen by it: engines
/// read more as JSON than we do. `None` where there is none for it.
pub(super) fn rewrite(
    route: Route,
    invocations: Option<&str>,
    adapters: Option<AdapterRoutes>,
    name: &str,
    body: &Bytes,
) -> Option<Rewritten> {
    let mut fields = serde_json::from_slice::<BTreeMap<String, Box<RawValue>>>(body).ok();
    let path = match (route, invocations, &fields) {
        (Route::Tokenize | Route::Detokenize | Route::Decode, ..) => route.of_tokenizer()?,
        (Route::Chat, ..) => CHAT,
        (Route::Completions, ..) => COMPLETIONS,
        (Route::Embeddings, ..) => EMBEDDINGS,
        (Route::Invocations, Some(path), _) => path,
        (Route::Invocations, None, Some(fields)) => {
            let has = |name: &str| fields.contains_key(name);
            match () {
                () if has("messages") => CHAT,
                () if has("prompt") => COMPLETIONS,
                () if has("input") => EMBEDDINGS,
                () => return None,
            }
        }
        (Route::Invocations, None, None) => return None,
    };
    let body = match &mut fields {
        Some(fields) => {
            if adapters == Some(AdapterRoutes::Sglang) {
                fields.retain(|field, _| !OF_SGLANG.contains(&field.as_str()));
                if let Some((_, adapter)) = name.split_once(':').filter(|_| path == GENERATE) {
                    let adapter = serde_json::value::to_raw_value(adapter).ok()?;
                    fields.insert(OF_SGLANG[0].to_owned(), adapter);
                }
            }
            let name = serde_json::value::to_raw_value(name).ok()?;
            fields.insert("model".to_owned(), name);
            Bytes::from(serde_json::to_vec(fields).ok()?)
        }
        None if adapters.is_some() || route != Route::Invocations => return None,
        None if [CHAT, COMPLETIONS, EMBEDDINGS].contains(&path) => return None,
        None => body.clone(),
    };
    Some(Rewritten { path: path.to_owned(), body })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rewritten(route: Route, invocations: Option<&str>, body: &str) -> Option<(String, String)> {
        let Rewritten { path, body } =
            rewrite(route, invocations, None, "m", &Bytes::from(body.to_owned()))?;
        Some((path, String::from_utf8(body.to_vec()).unwrap()))
    }

    #[test]
    fn the_model_is_named_as_the_engine_calls_it_and_the_rest_stays_as_it_was_written() {
        let body = r#"{"messages": [1.10, {"b": 1, "a": 2}], "model": "ep:x", "seed": 18446744073709551616}"#;
        let (path, sent) = rewritten(Route::Chat, None, body).unwrap();
        assert_eq!(path, "/v1/chat/completions");
        let want =
            r#"{"messages":[1.10, {"b": 1, "a": 2}],"model":"m","seed":18446744073709551616}"#;
        assert_eq!(sent, want);
    }

    #[test]
    fn bodies_of_invocations_go_where_their_fields_belong() {
        for (body, path) in [
            (r#"{"messages": []}"#, Some(CHAT)),
            (r#"{"prompt": ""}"#, Some(COMPLETIONS)),
            (r#"{"input": ""}"#, Some(EMBEDDINGS)),
            (r#"{"inputs": ""}"#, None),
            ("[1]", None),
        ] {
            let found = rewritten(Route::Invocations, None, body).map(|(path, _)| path);
            assert_eq!(found.as_deref(), path, "{body}");
        }
        let (path, sent) = rewritten(Route::Invocations, Some("/in"), "a,b").unwrap();
        assert_eq!((path.as_str(), sent.as_str()), ("/in", "a,b"));
    }

    #[test]
    fn what_is_for_a_tokenizer_goes_where_it_was_sent() {
        let (path, sent) = rewritten(Route::Tokenize, Some("/in"), r#"{"content": "a"}"#).unwrap();
        assert_eq!((path.as_str(), sent.as_str()), ("/tokenize", r#"{"content":"a","model":"m"}"#));
        let (path, _) = rewritten(Route::Decode, None, r#"{"ids": [1]}"#).unwrap();
        assert_eq!(path, "/decode");
        assert_eq!(rewritten(Route::Detokenize, Some("/in"), "[1]"), None);
    }

    #[test]
    fn sglangs_own_route_is_told_the_adapter_by_its_field() {
        let body = Bytes::from_static(br#"{"text": "x", "lora_path": "theirs"}"#);
        let sent = |name: &str| {
            let (route, sglang) = (Route::Invocations, Some(AdapterRoutes::Sglang));
            let sent = rewrite(route, Some(GENERATE), sglang, name, &body).unwrap();
            String::from_utf8(sent.body.to_vec()).unwrap()
        };
        assert_eq!(sent("m:own"), r#"{"lora_path":"own","model":"m:own","text":"x"}"#);
        assert_eq!(sent("m"), r#"{"model":"m","text":"x"}"#);
    }

    #[test]
    fn no_body_names_an_adapter_of_somebody_else() {
        let sent = |adapters, body: &'static str| {
            let body = Bytes::from_static(body.as_bytes());
            let sent = rewrite(Route::Invocations, Some("/in"), adapters, "m:own", &body)?;
            Some(String::from_utf8(sent.body.to_vec()).unwrap())
        };
        let (vllm, sglang) = (Some(AdapterRoutes::Vllm), Some(AdapterRoutes::Sglang));
        let body =
            r#"{"lora_path": "theirs", "lora_\u0069d": 7, "model": "m:theirs", "prompt": ""}"#;
        assert_eq!(sent(sglang, body).unwrap(), r#"{"model":"m:own","prompt":""}"#);
        // What Python reads as JSON, and we do not.
        for body in
            [r#"{"model": "theirs", "x": NaN}"#, "\u{feff}{\"model\": \"theirs\"}", "{\0\"\0m\0"]
        {
            assert_eq!(sent(vllm, body), None, "{body}");
            assert_eq!(sent(sglang, body), None, "{body}");
            assert_eq!(sent(None, body).as_deref(), Some(body));
            let body = Bytes::from_static(body.as_bytes());
            assert_eq!(rewrite(Route::Invocations, Some(CHAT), None, "m", &body), None);
        }
    }
}
