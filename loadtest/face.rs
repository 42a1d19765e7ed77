//! How a server is asked: the same case in the words of its API.

use clap::ValueEnum;
use serde_json::{Value, json};

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
    pub(crate) header: Option<(&'static str, String)>,
    pub(crate) body: Value,
}

impl Face {
    /// The case in this API's words. `stream` asks for the answer in pieces.
    ///
    /// # Errors
    /// What the API has no words for.
    pub(crate) fn asked(self, case: &Case, endpoint: &str, stream: bool) -> Result<Asked, String> {
        let body = case.body.clone();
        match self {
            Self::Openai => openai(case, stream),
            _ if stream => Err("streams are asked for by --face openai".into()),
            Self::Sagemaker => {
                let header = ("x-amzn-sagemaker-target-model", case.target.clone());
                let path = format!("/endpoints/{endpoint}/invocations");
                Ok(Asked { path, header: Some(header), body })
            }
            Self::Container => {
                let path = format!("/models/{}/invoke", case.target.replace('/', "%2F"));
                Ok(Asked { path, header: None, body })
            }
            Self::Predictions => {
                let path = format!("/predictions/{}", case.target.replace('/', "%2F"));
                Ok(Asked { path, header: None, body })
            }
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
    Ok(Asked { path: path.into(), header: None, body })
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
        let asked = Face::Openai.asked(&case, "demo", true).unwrap();
        assert_eq!(asked.path, "/v1/completions");
        let wanted = json!({"prompt": "hi", "max_tokens": 7, "temperature": 0, "model": "team/a", "stream": true});
        assert_eq!(asked.body, wanted);
        let asked = Face::Sagemaker.asked(&case, "demo", false).unwrap();
        assert_eq!(asked.path, "/endpoints/demo/invocations");
        assert_eq!(asked.header.unwrap().1, "team/a");
        assert_eq!(asked.body, case.body);
    }

    #[test]
    fn what_an_api_has_no_words_for_is_said() {
        let vectors = case(json!({"inputs": ["a", "b"]}));
        assert!(Face::Openai.asked(&vectors, "", false).is_err());
        assert!(Face::Container.asked(&vectors, "", true).is_err());
        let asked = Face::Container.asked(&vectors, "", false).unwrap();
        assert_eq!(asked.path, "/models/team%2Fa/invoke");
    }
}
