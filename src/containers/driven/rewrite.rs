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
/// SGLang's own route, whose bodies name an adapter by a field instead of the model.
const GENERATE: &str = "/generate";
/// By these SGLang finds an adapter where the model's name has none.
const OF_SGLANG: [&str; 2] = ["lora_path", "lora_id"];
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

/// Whether there is a path for a body, where it is salted or not.
pub(super) fn takes(to: &To<'_>, is_salted: bool, body: &Bytes) -> bool {
    aimed(to, is_salted, body).is_some()
}

/// Finds out where a body goes and puts the engine's name for the model into it. Everything else of
/// it stays as it was written, but for what would name another adapter, and the salt of what is to be
/// generated for a tenant. A body that is no JSON object is for an `invocations` path alone, and goes
/// there as it is, where nothing of it must be ours to say: engines read more as JSON than we do. `None`
/// where there is none for it. `salted`: whose prompts these are, where they are kept apart from others'.
pub(super) fn rewrite(
    to: &To<'_>,
    salted: Option<(&Salts, &TenantName)>,
    body: &Bytes,
) -> Option<Rewritten> {
    let (path, fields) = aimed(to, salted.is_some(), body)?;
    let Some(mut fields) = fields else {
        return Some(Rewritten { path: path.to_owned(), body: body.clone() });
    };
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
    fields.insert("model".to_owned(), serde_json::value::to_raw_value(name).ok()?);
    let body = Bytes::from(serde_json::to_vec(&fields).ok()?);
    Some(Rewritten { path: path.to_owned(), body })
}

/// Where a body goes, with its fields; without where it goes there as it is.
fn aimed<'a>(to: &To<'a>, is_salted: bool, body: &Bytes) -> Option<(&'a str, Option<Fields>)> {
    let To { route, invocations, adapters, .. } = *to;
    let fields = serde_json::from_slice::<Fields>(body).ok();
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
    let must_be_read = adapters.is_some()
        || (is_salted && to.generates(path))
        || route != Route::Invocations
        || [CHAT, COMPLETIONS, EMBEDDINGS].contains(&path);
    (fields.is_some() || !must_be_read).then_some((path, fields))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn to<'a>(route: Route, invocations: Option<&'a str>, name: &'a str) -> To<'a> {
        To { route, invocations, adapters: None, name }
    }

    fn rewritten(route: Route, invocations: Option<&str>, body: &str) -> Option<(String, String)> {
        let Rewritten { path, body } =
            rewrite(&to(route, invocations, "m"), None, &Bytes::from(body.to_owned()))?;
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
            let sent = rewrite(&sent, None, &body)?;
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
            assert_eq!(rewrite(&to(Route::Invocations, Some(CHAT), "m"), None, &body), None);
        }
    }

    /// The salt of a body sent for a tenant to a path; empty where there is none.
    fn salt(salts: &Salts, tenant: &str, way: (Route, &str), body: &str) -> Option<String> {
        let tenant: TenantName = tenant.parse().unwrap();
        let to = to(way.0, Some(way.1), "m");
        let body = Bytes::from(body.to_owned());
        let sent = rewrite(&to, Some((salts, &tenant)), &body);
        assert_eq!(takes(&to, true, &body), sent.is_some(), "{body:?}");
        let sent = String::from_utf8(sent?.body.to_vec()).unwrap();
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
        let asked = r#"{"input": "a", "messages": [], "prompt": "a"}"#;
        for (route, path, body, is_salted) in [
            (Route::Chat, "/in", asked, true),
            (Route::Completions, "/in", asked, true),
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
        assert!(takes(&to, true, &Bytes::from_static(b"a,b")));
        assert!(!takes(&To { invocations: Some("/in"), ..to }, true, &Bytes::from_static(b"a,b")));
    }
}
