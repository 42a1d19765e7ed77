//! How a server is asked: the same case in the words of its API.

use clap::ValueEnum;
use serde_json::{Value, json};

use crate::pieces::Framing;
use crate::schedule::Case;

/// An API.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Face {
    /// SageMaker's runtime: `/endpoints/ENDPOINT/invocations`, the target in a header.
    Sagemaker,
    /// OpenAI's: `/v1/completions` for a text, `/v1/chat/completions` for messages; ours,
    /// llama-server's and any other.
    Openai,
    /// SageMaker's container contract, `/models/TARGET/invoke`: ours, multi-model-server's, Triton's
    /// SageMaker port.
    Container,
    /// `/predictions/TARGET`: TorchServe's and multi-model-server's own.
    Predictions,
}

/// One request, but for its connection.
pub(crate) struct Asked {
    /// Below the base address.
    pub(crate) path: String,
    pub(crate) headers: Vec<(&'static str, String)>,
    pub(crate) body: Value,
}

/// What of a request is the same for all.
#[derive(Debug, Clone, Default)]
pub(crate) struct How {
    /// SageMaker's name of the endpoint.
    pub(crate) endpoint: String,
    /// Whether the answer shall come in pieces.
    pub(crate) stream: bool,
    /// Targets are adapters of this one.
    pub(crate) base: Option<String>,
    /// Where an adapter is named beside its base.
    pub(crate) adapters: AdaptersIn,
}

/// Where a request names its adapter, where its target is the base.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum AdaptersIn {
    /// In `X-Amzn-SageMaker-Adapter-Identifier`, as SageMaker's platform does.
    #[default]
    Header,
    /// In the body's `adapters`, as LMI has it.
    Body,
}

const TARGET: &str = "x-amzn-sagemaker-target-model";
const ADAPTER: &str = "x-amzn-sagemaker-adapter-identifier";

impl Face {
    /// The case in this API's words.
    ///
    /// # Errors
    /// What the API has no words for.
    pub(crate) fn asked(self, case: &Case, how: &How) -> Result<Asked, String> {
        if self == Self::Openai {
            // An adapter is a model like any other.
            return openai(case, how.stream);
        }
        let (mut body, mut headers) = (case.body.clone(), Vec::new());
        if how.stream && body.is_object() {
            body["stream"] = Value::Bool(true);
        }
        let target = match (&how.base, self) {
            (None, _) => &case.target,
            (Some(_), Self::Predictions) => {
                return Err("TorchServe's predictions have no word for an adapter".into());
            }
            (Some(base), _) => {
                match how.adapters {
                    AdaptersIn::Header => headers.push((ADAPTER, case.target.clone())),
                    AdaptersIn::Body => body["adapters"] = Value::from(case.target.as_str()),
                }
                base
            }
        };
        let path = match self {
            Self::Container => format!("/models/{}/invoke", target.replace('/', "%2F")),
            Self::Predictions => format!("/predictions/{}", target.replace('/', "%2F")),
            Self::Sagemaker | Self::Openai => {
                headers.push((TARGET, target.clone()));
                let operation =
                    if how.stream { "invocations-response-stream" } else { "invocations" };
                format!("/endpoints/{}/{operation}", how.endpoint)
            }
        };
        Ok(Asked { path, headers, body })
    }

    /// What streams are wrapped in.
    pub(crate) fn framing(self) -> Framing {
        match self {
            Self::Openai => Framing::Events,
            Self::Sagemaker => Framing::Frames,
            Self::Container | Self::Predictions => Framing::Lines,
        }
    }
}

fn openai(case: &Case, stream: bool) -> Result<Asked, String> {
    let mut body = case.body.clone();
    let path = if body.get("messages").is_some() {
        "/v1/chat/completions"
    } else if body.get("prompt").is_some() {
        "/v1/completions"
    } else if let Some(text) = body["inputs"].as_str() {
        let tokens = body["parameters"]["max_new_tokens"].as_u64().unwrap_or(24);
        let least = body["parameters"]["min_new_tokens"].as_u64();
        body = json!({"prompt": text, "max_tokens": tokens, "temperature": 0});
        if let Some(least) = least {
            body["min_tokens"] = least.into();
            body["ignore_eos"] = Value::Bool(true);
        }
        "/v1/completions"
    } else {
        return Err(format!("a case of {} has neither messages, prompt nor a text", case.target));
    };
    body["model"] = Value::from(case.target.as_str());
    if stream {
        body["stream"] = Value::Bool(true);
    }
    Ok(Asked { path: path.into(), headers: Vec::new(), body })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn case(body: Value) -> Case {
        Case { target: "team/a".into(), body, contains: Vec::new() }
    }

    #[test]
    fn a_text_is_a_completion_for_openai_and_itself_for_sagemaker() {
        let case = case(json!({"inputs": "hi", "parameters": {"max_new_tokens": 7}}));
        let how = How { endpoint: "demo".into(), ..How::default() };
        let streams = How { stream: true, ..how.clone() };
        let asked = Face::Openai.asked(&case, &streams).unwrap();
        assert_eq!(asked.path, "/v1/completions");
        let wanted = json!({"prompt": "hi", "max_tokens": 7, "temperature": 0, "model": "team/a", "stream": true});
        assert_eq!(asked.body, wanted);
        let asked = Face::Sagemaker.asked(&case, &how).unwrap();
        assert_eq!(asked.path, "/endpoints/demo/invocations");
        assert_eq!(asked.headers, [(TARGET, "team/a".to_owned())]);
        assert_eq!(asked.body, case.body);
        let asked = Face::Sagemaker.asked(&case, &streams).unwrap();
        assert_eq!(asked.path, "/endpoints/demo/invocations-response-stream");
        assert_eq!(asked.body["stream"], true);
    }

    #[test]
    fn an_adapter_is_named_beside_its_base() {
        let case = case(json!({"inputs": "hi"}));
        let header = How { endpoint: "e".into(), base: Some("b".into()), ..How::default() };
        let asked = Face::Sagemaker.asked(&case, &header).unwrap();
        let wanted = [(ADAPTER, "team/a".to_owned()), (TARGET, "b".to_owned())];
        assert_eq!((asked.headers.as_slice(), &asked.body), (&wanted[..], &case.body));
        let body = How { adapters: AdaptersIn::Body, ..header.clone() };
        let asked = Face::Container.asked(&case, &body).unwrap();
        assert_eq!(
            (asked.path.as_str(), &asked.body["adapters"]),
            ("/models/b/invoke", &json!("team/a"))
        );
        assert!(asked.headers.is_empty());
        assert_eq!(Face::Openai.asked(&case, &header).unwrap().body["model"], "team/a");
        assert!(Face::Predictions.asked(&case, &header).is_err());
    }

    #[test]
    fn what_an_api_has_no_words_for_is_said() {
        let vectors = case(json!({"inputs": ["a", "b"]}));
        assert!(Face::Openai.asked(&vectors, &How::default()).is_err());
        let asked = Face::Container.asked(&vectors, &How::default()).unwrap();
        assert_eq!(asked.path, "/models/team%2Fa/invoke");
    }
}
