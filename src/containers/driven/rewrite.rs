//! The body that an engine is sent: the client's, with the engine's own name for the model.

use std::collections::BTreeMap;
use std::hash::{BuildHasher, RandomState};

use bytes::Bytes;
use roundhouse_types::TenantName;
use serde_json::value::RawValue;

use super::call::Route;
use super::spec::AdapterRoutes;

/// OpenAI's paths.
const CHAT: &str = "/v1/chat/completions";
const COMPLETIONS: &str = "/v1/completions";
const EMBEDDINGS: &str = "/v1/embeddings";
const RESPONSES: &str = "/v1/responses";
/// SGLang's own route, whose bodies name an adapter by a field instead of the model.
const GENERATE: &str = "/generate";
/// By these SGLang finds an adapter where the model's name has none.
const OF_SGLANG: [&str; 2] = ["lora_path", "lora_id"];
/// Whether an engine keeps an answer: nobody would find it here, and others might.
const STORE: &str = "store";
/// What goes on with what an engine has stored, whoever asked for that.
const OF_STORED: [&str; 3] = ["conversation", "previous_response_id", "prompt"];
/// What goes on without its client.
const BACKGROUND: &str = "background";
/// By this vLLM keeps apart what it has computed of prompts that begin alike.
const SALT: &str = "cache_salt";
/// Last parts of the paths of routes that generate nothing.
const UNGENERATED: [&str; 6] = ["embeddings", "embed", "rerank", "score", "pooling", "classify"];

/// A body's fields as they were written.
type Fields = BTreeMap<String, Box<RawValue>>;

/// What a body is rewritten for.
#[derive(Clone, Copy)]
pub(super) struct To<'a> {
    pub(super) route: Route,
    /// Where the engine takes the bodies of `/invocations`.
    pub(super) invocations: Option<&'a str>,
    pub(super) adapters: Option<AdapterRoutes>,
    /// What it calls the model.
    pub(super) name: &'a str,
}

impl To<'_> {
    /// Whether what is sent there is computed of a prompt that an answer is generated for.
    fn generates(&self, path: &str) -> bool {
        let last = path.rsplit('/').next().unwrap_or_default();
        self.route.of_tokenizer().is_none() && !UNGENERATED.contains(&last)
    }
}

/// Makes what keeps tenants' prompts apart in an engine's cache. Its keys are this process's own: whoever
/// reaches the engine past us cannot make a tenant's salt.
#[derive(Debug, Default)]
pub(super) struct Salts([RandomState; 2]);

impl Salts {
    /// A tenant's, with what its client says itself: that splits up a tenant's own prompts, and no more.
    fn salt(&self, tenant: &TenantName, own: Option<&RawValue>) -> String {
        let whose = (tenant.as_str(), own.map(RawValue::get));
        let [first, second] = self.0.each_ref().map(|key| key.hash_one(whose));
        format!("{first:016x}{second:016x}")
    }
}

/// A body and where it goes.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Rewritten {
    pub(super) path: String,
    pub(super) body: Bytes,
}

/// Why a body goes nowhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unfit {
    /// There is no path for it.
    NoPath,
    /// Of this field nothing may be asked.
    Field(&'static str),
}

/// Why a body goes nowhere, where it is salted or not.
pub(super) fn unfit(to: &To<'_>, is_salted: bool, body: &Bytes) -> Option<Unfit> {
    aimed(to, is_salted, body).err()
}

/// Finds out where a body goes and puts the engine's name for the model into it. Everything else of
/// it stays as it was written, but for what would name another adapter, and the salt of what is to be
/// generated for a tenant. A body that is no JSON object is for an `invocations` path alone, and goes
/// there as it is, where nothing of it must be ours to say: engines read more as JSON than we do. No engine
/// stores responses for us, nor is asked for stored ones. `salted`: whose prompts these are, where they
/// are kept apart from others'.
pub(super) fn rewrite(
    to: &To<'_>,
    salted: Option<(&Salts, &TenantName)>,
    body: &Bytes,
) -> Result<Rewritten, Unfit> {
    let (path, fields) = aimed(to, salted.is_some(), body)?;
    let body = match fields {
        Some(fields) => written(to, salted, path, fields).ok_or(Unfit::NoPath)?,
        None => body.clone(),
    };
    Ok(Rewritten { path: path.to_owned(), body })
}

/// The fields as they are sent; `None` where they cannot be written.
fn written(
    to: &To<'_>,
    salted: Option<(&Salts, &TenantName)>,
    path: &str,
    mut fields: Fields,
) -> Option<Bytes> {
    let To { adapters, name, .. } = *to;
    if adapters == Some(AdapterRoutes::Sglang) {
        fields.retain(|field, _| !OF_SGLANG.contains(&field.as_str()));
        if let Some((_, adapter)) = name.split_once(':').filter(|_| path == GENERATE) {
            let adapter = serde_json::value::to_raw_value(adapter).ok()?;
            fields.insert(OF_SGLANG[0].to_owned(), adapter);
        }
    }
    if let Some((salts, tenant)) = salted.filter(|_| to.generates(path)) {
        let salt = salts.salt(tenant, fields.get(SALT).map(|own| &**own));
        fields.insert(SALT.to_owned(), serde_json::value::to_raw_value(&salt).ok()?);
    }
    if path == RESPONSES {
        fields.insert(STORE.to_owned(), serde_json::value::to_raw_value(&false).ok()?);
    }
    fields.insert("model".to_owned(), serde_json::value::to_raw_value(name).ok()?);
    Some(Bytes::from(serde_json::to_vec(&fields).ok()?))
}

/// Where a body goes, with its fields; without where it goes there as it is.
fn aimed<'a>(
    to: &To<'a>,
    is_salted: bool,
    body: &Bytes,
) -> Result<(&'a str, Option<Fields>), Unfit> {
    let fields = serde_json::from_slice::<Fields>(body).ok();
    let path = path(to, fields.as_ref()).ok_or(Unfit::NoPath)?;
    let must_be_read = to.adapters.is_some()
        || (is_salted && to.generates(path))
        || to.route != Route::Invocations
        || [CHAT, COMPLETIONS, EMBEDDINGS, RESPONSES].contains(&path);
    match &fields {
        None if must_be_read => return Err(Unfit::NoPath),
        Some(fields) if path == RESPONSES => {
            if let Some(field) = of_stored(fields) {
                return Err(Unfit::Field(field));
            }
        }
        _ => {}
    }
    Ok((path, fields))
}

/// The first of a response's fields that asks for what is stored, or for work without an end.
fn of_stored(fields: &Fields) -> Option<&'static str> {
    let says = |name: &str, nothing: &[&str]| {
        fields.get(name).is_some_and(|value| !nothing.contains(&value.get()))
    };
    let stored = OF_STORED.into_iter().find(|name| says(name, &["null"]));
    stored.or_else(|| says(BACKGROUND, &["null", "false"]).then_some(BACKGROUND))
}

fn path<'a>(to: &To<'a>, fields: Option<&Fields>) -> Option<&'a str> {
    Some(match (to.route, to.invocations, fields) {
        (Route::Tokenize | Route::Detokenize | Route::Decode, ..) => to.route.of_tokenizer()?,
        (Route::Chat, ..) => CHAT,
        (Route::Completions, ..) => COMPLETIONS,
        (Route::Embeddings, ..) => EMBEDDINGS,
        (Route::Responses, ..) => RESPONSES,
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
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn to<'a>(route: Route, invocations: Option<&'a str>, name: &'a str) -> To<'a> {
        To { route, invocations, adapters: None, name }
    }

    fn rewritten(route: Route, invocations: Option<&str>, body: &str) -> Option<(String, String)> {
        let Rewritten { path, body } =
            rewrite(&to(route, invocations, "m"), None, &Bytes::from(body.to_owned())).ok()?;
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
    fn a_response_is_asked_for_at_its_own_route_and_embeddings_at_theirs() {
        let response = r#"{"input":"a","model":"m","store":false}"#;
        for (route, way, want) in [
            (Route::Responses, RESPONSES, response),
            (Route::Embeddings, EMBEDDINGS, r#"{"input":"a","model":"m"}"#),
        ] {
            let (path, sent) = rewritten(route, Some("/in"), r#"{"input": "a"}"#).unwrap();
            assert_eq!((path.as_str(), sent.as_str()), (way, want));
            assert_eq!(rewritten(route, Some("/in"), "[1]"), None);
        }
    }

    #[test]
    fn a_response_is_stored_by_nobody_nor_asked_for_after_wherever_it_was_sent() {
        for (route, invocations) in
            [(Route::Responses, None), (Route::Invocations, Some(RESPONSES))]
        {
            let to = to(route, invocations, "m");
            let sent = |body: &str| {
                let body = Bytes::from(body.to_owned());
                assert_eq!(unfit(&to, false, &body), rewrite(&to, None, &body).err(), "{body:?}");
                let sent = rewrite(&to, None, &body)?;
                Ok(String::from_utf8(sent.body.to_vec()).unwrap())
            };
            for harmless in ["\"store\": true", "\"s\\u0074ore\": true", "\"store\": null"] {
                let body = format!("{{\"input\": \"a\", {harmless}}}");
                let want = r#"{"input":"a","model":"m","store":false}"#;
                assert_eq!(sent(&body).as_deref(), Ok(want), "{harmless}");
            }
            for (body, field) in [
                (r#"{"previous_response_id": "resp_1"}"#, "previous_response_id"),
                (r#"{"\u0063onversation": {"id": "c"}}"#, "conversation"),
                (r#"{"prompt": {"id": "p"}}"#, "prompt"),
                (r#"{"background": true}"#, "background"),
            ] {
                assert_eq!(sent(body), Err(Unfit::Field(field)), "{body}");
            }
            assert!(sent(r#"{"prompt": null , "background": false }"#).is_ok());
            assert_eq!(sent(r#"{"model": "theirs", "x": NaN}"#), Err(Unfit::NoPath));
        }
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
            let to = to(Route::Invocations, Some(GENERATE), name);
            let sent = To { adapters: Some(AdapterRoutes::Sglang), ..to };
            let sent = rewrite(&sent, None, &body).unwrap();
            String::from_utf8(sent.body.to_vec()).unwrap()
        };
        assert_eq!(sent("m:own"), r#"{"lora_path":"own","model":"m:own","text":"x"}"#);
        assert_eq!(sent("m"), r#"{"model":"m","text":"x"}"#);
    }

    #[test]
    fn no_body_names_an_adapter_of_somebody_else() {
        let sent = |adapters, body: &'static str| {
            let body = Bytes::from_static(body.as_bytes());
            let sent = To { adapters, ..to(Route::Invocations, Some("/in"), "m:own") };
            let sent = rewrite(&sent, None, &body).ok()?;
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
            let to = to(Route::Invocations, Some(CHAT), "m");
            assert_eq!(rewrite(&to, None, &body), Err(Unfit::NoPath));
        }
    }

    /// The salt of a body sent for a tenant to a path; empty where there is none.
    fn salt(salts: &Salts, tenant: &str, way: (Route, &str), body: &str) -> Option<String> {
        let tenant: TenantName = tenant.parse().unwrap();
        let to = to(way.0, Some(way.1), "m");
        let body = Bytes::from(body.to_owned());
        let sent = rewrite(&to, Some((salts, &tenant)), &body);
        assert_eq!(unfit(&to, true, &body), sent.as_ref().err().copied(), "{body:?}");
        let sent = String::from_utf8(sent.ok()?.body.to_vec()).unwrap();
        assert!(sent.matches(SALT).count() < 2, "{sent}");
        let sent: serde_json::Value = serde_json::from_str(&sent).unwrap();
        Some(sent[SALT].as_str().unwrap_or_default().to_owned())
    }

    #[test]
    fn what_is_generated_for_a_tenant_is_salted_and_a_client_splits_up_its_own_alone() {
        let salts = Salts::default();
        let salt =
            |tenant: &str, body: &str| salt(&salts, tenant, (Route::Chat, "/in"), body).unwrap();
        let acme = salt("acme", r#"{"messages": []}"#);
        assert_eq!(acme.len(), 32);
        assert_eq!(salt("acme", r#"{"prompt": "a"}"#), acme);
        assert_ne!(salt("evil", r#"{"messages": []}"#), acme);
        for own in [
            r#""cache_salt": "x""#,
            r#""cache_\u0073alt": "x""#,
            r#""cache_salt": null"#,
            r#""cache_salt": 7"#,
            r#""cache_salt": {"x": []}"#,
            r#""cache_salt": "y", "cache_salt": "x""#,
            &format!(r#""cache_salt": "{acme}""#),
        ] {
            let body = format!(r#"{{"messages": [], {own}}}"#);
            let split = salt("acme", &body);
            assert!(split != acme && split.len() == 32, "{own}: {split}");
            let theirs = salt("evil", &body);
            assert!(theirs != acme && theirs != split && theirs.len() == 32, "{own}: {theirs}");
        }
    }

    #[test]
    fn all_that_is_generated_is_salted_whatever_its_fields_are() {
        let salts = Salts::default();
        let salt = |route, path, body| salt(&salts, "acme", (route, path), body);
        let asked = r#"{"input": "a", "messages": []}"#;
        for (route, path, body, is_salted) in [
            (Route::Chat, "/in", asked, true),
            (Route::Completions, "/in", asked, true),
            (Route::Responses, "/in", asked, true),
            (Route::Invocations, "/in", r#"{"text": "a"}"#, true),
            (Route::Invocations, "/v1/responses", r#"{"input": "a"}"#, true),
            (Route::Invocations, CHAT, "{}", true),
            (Route::Invocations, "/v1/rerank", asked, false),
            (Route::Invocations, "/pooling", asked, false),
            (Route::Embeddings, "/in", asked, false),
            (Route::Tokenize, "/in", asked, false),
            (Route::Detokenize, "/in", r#"{"tokens": [1]}"#, false),
        ] {
            let salt = salt(route, path, body).unwrap();
            assert_eq!(!salt.is_empty(), is_salted, "{route:?} {path}");
        }
        // What is not read cannot be salted.
        assert_eq!(salt(Route::Invocations, "/in", r#"{"prompt": NaN}"#), None);
        let to = to(Route::Invocations, Some("/rerank"), "m");
        assert_eq!(unfit(&to, true, &Bytes::from_static(b"a,b")), None);
        let to = To { invocations: Some("/in"), ..to };
        assert_eq!(unfit(&to, true, &Bytes::from_static(b"a,b")), Some(Unfit::NoPath));
    }
}
