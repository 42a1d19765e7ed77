//! `roundhouse invoke`: one request to a model, through the data port.
//!
//! Without an endpoint it is `POST /invocations`; with one, SageMaker's `InvokeEndpoint`, or
//! with `--stream` its response stream, whose frames [`frames`] takes apart. [`text`] finds
//! what a model said in an answer.

use std::io::{IsTerminal, Read};
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use futures_util::StreamExt;
use reqwest::{Method, RequestBuilder, Response};
use serde_json::{Value, json};

use super::client::{Client, error_body};
use super::target::Target;
use super::{TargetArgs, output};
use crate::error::Error;

pub(super) mod frames;
mod text;

use frames::{Frame, Frames};
use text::Lines;

/// The server ends a request long before, unless its own limits were raised.
const TIMEOUT: Duration = Duration::from_secs(24 * 3600);

/// Arguments of `invoke`.
#[derive(Debug, Clone, Args)]
pub struct InvokeArgs {
    /// Which model.
    #[command(flatten)]
    pub target: TargetArgs,
    /// What to ask.
    #[command(flatten)]
    pub body: BodyArgs,
    /// New tokens at most; with --prompt.
    #[arg(long, value_name = "N", requires = "prompt")]
    pub max_tokens: Option<u32>,
    /// The body's media type.
    #[arg(
        long,
        value_name = "TYPE",
        default_value = "application/json",
        conflicts_with = "prompt"
    )]
    pub content_type: String,
    /// Print the answer as it comes.
    #[arg(long)]
    pub stream: bool,
    /// Print the answer as it was sent, also with --prompt.
    #[arg(long)]
    pub json: bool,
    /// The server's data address.
    #[arg(
        long,
        env = "ROUNDHOUSE_DATA_URL",
        default_value = "http://127.0.0.1:8080",
        hide_env_values = true
    )]
    pub url: String,
    /// A tenant's bearer key, where the server asks for one.
    #[arg(long, value_name = "KEY", env = "ROUNDHOUSE_API_KEY", hide_env_values = true)]
    pub key: Option<String>,
    /// Authorities that vouch for an https address, beside this machine's, in PEM.
    #[arg(long, value_name = "FILE", env = "ROUNDHOUSE_CA", hide_env_values = true)]
    pub ca: Option<PathBuf>,
}

/// Where the body comes from; standard input where none is given.
#[derive(Debug, Clone, Args)]
#[group(multiple = false)]
pub struct BodyArgs {
    /// The body itself.
    #[arg(long, value_name = "TEXT")]
    pub body: Option<String>,
    /// A file with the body.
    #[arg(long, value_name = "FILE")]
    pub file: Option<PathBuf>,
    /// A text to continue, embed or classify; the answer's text is printed.
    #[arg(long, value_name = "TEXT", visible_alias = "text")]
    pub prompt: Option<String>,
}

/// Asks, and prints the answer: a model's text without what would steer a terminal, everything else
/// as it was sent.
pub(super) async fn run(args: InvokeArgs) -> Result<(), Error> {
    let target = args.target.check()?;
    let client = Client::new(&args.url, args.ca.as_deref())?.with_key(args.key.as_deref());
    let body = body(&args)?;
    let request = request(&client, &target, &args, body)?;
    let response = client.send(request.timeout(TIMEOUT)).await?;
    let framed = args.stream && target.endpoint.is_some();
    let plain = args.body.prompt.is_none() || args.json;
    if args.stream {
        return stream(&client, response, framed, plain).await;
    }
    let answer = response.bytes().await.map_err(|source| client.broken(source))?;
    let said = match plain {
        true => None,
        false => serde_json::from_slice(&answer).ok().as_ref().and_then(text::of_answer),
    };
    match said {
        Some(said) => output::print(&said)?,
        None => output::print_bytes(&answer)?,
    }
    output::print("\n")
}

fn body(args: &InvokeArgs) -> Result<Vec<u8>, Error> {
    let BodyArgs { body, file, prompt } = &args.body;
    let written = match (body, file, prompt) {
        (Some(body), _, _) => body.clone().into_bytes(),
        (_, Some(file), _) => std::fs::read(file)
            .map_err(|error| Error::io(format!("cannot read {}", file.display()), error))?,
        (_, _, Some(prompt)) => {
            let mut body = json!({ "inputs": prompt });
            if let Some(most) = args.max_tokens {
                body["parameters"] = json!({ "max_new_tokens": most });
            }
            body.to_string().into_bytes()
        }
        (None, None, None) => {
            if std::io::stdin().is_terminal() {
                let message = "nothing to ask: give --prompt, --body or --file, or pipe a body in";
                return Err(Error::Usage(message.into()));
            }
            let mut read = Vec::new();
            std::io::stdin()
                .read_to_end(&mut read)
                .map_err(|error| Error::io("cannot read standard input", error))?;
            if read.trim_ascii().is_empty() {
                let message = "standard input is empty: give --prompt or --body";
                return Err(Error::Usage(message.into()));
            }
            read
        }
    };
    Ok(if args.stream { asking_for_stream(written) } else { written })
}

/// The body with `"stream": true`, unless it says something about that itself.
fn asking_for_stream(body: Vec<u8>) -> Vec<u8> {
    let Ok(Value::Object(mut object)) = serde_json::from_slice(&body) else {
        return body;
    };
    if object.contains_key("stream") {
        return body;
    }
    object.insert("stream".into(), true.into());
    Value::Object(object).to_string().into_bytes()
}

fn request(
    client: &Client,
    target: &Target,
    args: &InvokeArgs,
    body: Vec<u8>,
) -> Result<RequestBuilder, Error> {
    let path = match (&target.endpoint, args.stream) {
        (None, _) => "/invocations".to_owned(),
        (Some(endpoint), false) => format!("/endpoints/{endpoint}/invocations"),
        (Some(endpoint), true) => format!("/endpoints/{endpoint}/invocations-response-stream"),
    };
    let named = reqwest::header::HeaderValue::from_bytes(target.target.as_str().as_bytes())
        .map_err(|_| Error::Usage(format!("'{}' cannot be sent in a header", target.target)))?;
    Ok(client
        .request(Method::POST, &path)
        .header("x-amzn-sagemaker-target-model", named)
        .header("content-type", &args.content_type)
        .body(body))
}

/// Prints an answer as it comes: its text, or as it was sent.
async fn stream(
    client: &Client,
    response: Response,
    framed: bool,
    plain: bool,
) -> Result<(), Error> {
    let mut pieces = response.bytes_stream();
    let mut frames = Frames::default();
    let mut lines = Lines::default();
    // All of it, until something of it is understood.
    let mut held = Some(Vec::new());
    while let Some(piece) = pieces.next().await {
        let piece = piece.map_err(|source| client.broken(source))?;
        let payloads = if framed { payloads(&mut frames, &piece)? } else { vec![piece.to_vec()] };
        for payload in payloads {
            if plain {
                output::print_bytes(&payload)?;
                continue;
            }
            let told = lines.push(&payload);
            match &mut held {
                Some(held) if told.is_empty() => held.extend_from_slice(&payload),
                held => *held = None,
            }
            for said in told {
                output::print(&said?)?;
            }
        }
    }
    if framed && !frames.is_empty() {
        let cut = std::io::Error::from(std::io::ErrorKind::UnexpectedEof);
        return Err(Error::io("the response stream was cut off", cut));
    }
    if plain {
        return Ok(());
    }
    match (lines.finish(), held) {
        (Some(said), _) => output::print(&said?)?,
        // An answer without a text, as vectors are, is printed as it was sent.
        (None, Some(held)) => output::print_bytes(&held)?,
        (None, None) => {}
    }
    output::print("\n")
}

fn payloads(frames: &mut Frames, piece: &[u8]) -> Result<Vec<Vec<u8>>, Error> {
    let mut payloads = Vec::new();
    frames.push(piece);
    while let Some(frame) = frames.next()? {
        match frame {
            Frame::Part(payload) => payloads.push(payload),
            Frame::Exception { name, payload } => {
                let (_, message) = error_body(&String::from_utf8_lossy(&payload));
                // Once a stream has begun, its status was 200; this is what SageMaker means by it.
                return Err(Error::Refused { status: 424, kind: Some(name), message });
            }
        }
    }
    Ok(payloads)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_json_object_asks_for_a_stream_and_anything_else_is_left_alone() {
        let asking = |body: &str| String::from_utf8(asking_for_stream(body.into())).unwrap();
        assert_eq!(asking(r#"{"inputs":"a"}"#), r#"{"inputs":"a","stream":true}"#);
        assert_eq!(asking(r#"{"stream":false}"#), r#"{"stream":false}"#);
        assert_eq!(asking("text"), "text");
    }
}
