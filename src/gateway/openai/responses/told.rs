//! A response as its client sees it: whole, or as events.

use roundhouse_serving::{Finish, Piece, TokenInfo, ToolCall};
use serde_json::{Map, Value, json};
use uuid::Uuid;

use super::ResponseAsk;
use crate::call::Generated;
use crate::error::{Error, Face};
use crate::openai::Tally;
use crate::openai::logprobs::{Calls, chat_logprobs};
use crate::stream::Transcript;

impl ResponseAsk {
    /// The answer in one piece.
    ///
    /// # Errors
    /// `Internal` where it has no answer.
    pub(crate) fn whole(
        &self,
        generated: &Generated,
        prompt_tokens: usize,
    ) -> Result<Value, Error> {
        let [choice] = generated.choices.as_slice() else {
            return Err(Error::internal("one input has not one answer"));
        };
        let reason = choice.finished.reason;
        let mut output = Vec::new();
        if !choice.text.is_empty() || choice.calls.is_empty() {
            let logprobs = self.scores(&choice.tokens);
            output.push(message(&id("msg"), &choice.text, &logprobs, status(reason)));
        }
        output.extend(choice.calls.iter().map(|call| called(&id("fc"), call)));
        let mut tally = Tally::new(prompt_tokens, 1);
        tally.finished(0, choice.finished);
        Ok(self.ended(output, reason, &tally))
    }

    /// The answer as a stream.
    pub(crate) fn transcript(self, prompt_tokens: usize) -> ResponseTranscript {
        ResponseTranscript {
            ask: self,
            tally: Tally::new(prompt_tokens, 1),
            sequence: 0,
            output: Vec::new(),
            open: None,
            reason: Finish::EndOfSequence,
        }
    }

    /// Log-probabilities of tokens, where they were asked for.
    fn scores(&self, tokens: &[TokenInfo]) -> Vec<Value> {
        if !self.logprobs {
            return Vec::new();
        }
        match chat_logprobs(tokens, Calls::Text)["content"].take() {
            Value::Array(content) => content,
            _ => Vec::new(),
        }
    }

    /// The answer when it has ended.
    fn ended(&self, output: Vec<Value>, reason: Finish, tally: &Tally) -> Value {
        let mut response = self.base.clone();
        response.insert("status".into(), status(reason).into());
        if reason == Finish::Length {
            let details = json!({"reason": "max_output_tokens"});
            response.insert("incomplete_details".into(), details);
        }
        response.insert("output".into(), output.into());
        response.insert("usage".into(), usage(tally));
        Value::Object(response)
    }
}

fn id(prefix: &str) -> String {
    format!("{prefix}_{}", Uuid::new_v4().simple())
}

fn status(reason: Finish) -> &'static str {
    if reason == Finish::Length { "incomplete" } else { "completed" }
}

fn usage(tally: &Tally) -> Value {
    let usage = tally.usage();
    let cached = &usage["prompt_tokens_details"]["cached_tokens"];
    json!({
        "input_tokens": usage["prompt_tokens"],
        "input_tokens_details": {"cached_tokens": cached, "cache_write_tokens": 0},
        "output_tokens": usage["completion_tokens"],
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": usage["total_tokens"],
    })
}

fn part(text: &str, logprobs: &[Value]) -> Value {
    json!({"type": "output_text", "text": text, "annotations": [], "logprobs": logprobs})
}

fn message(id: &str, text: &str, logprobs: &[Value], status: &str) -> Value {
    json!({
        "id": id,
        "type": "message",
        "role": "assistant",
        "status": status,
        "content": [part(text, logprobs)],
    })
}

fn called(id: &str, call: &ToolCall) -> Value {
    json!({
        "id": id,
        "type": "function_call",
        "call_id": call.id,
        "name": call.name,
        "arguments": call.arguments,
        "status": "completed",
    })
}

/// A response's stream: that it was made, each item from its beginning to its end, and the whole.
pub(crate) struct ResponseTranscript {
    ask: ResponseAsk,
    tally: Tally,
    /// The next event's number.
    sequence: u64,
    /// Items that have ended.
    output: Vec<Value>,
    /// The message that is being said.
    open: Option<OpenMessage>,
    reason: Finish,
}

struct OpenMessage {
    id: String,
    text: String,
    logprobs: Vec<Value>,
}

impl ResponseTranscript {
    fn event(&mut self, kind: &str, said: Value) -> Value {
        let mut event = Map::new();
        event.insert("type".into(), format!("response.{kind}").into());
        event.insert("sequence_number".into(), self.sequence.into());
        if let Value::Object(said) = said {
            event.extend(said);
        }
        self.sequence += 1;
        Value::Object(event)
    }

    /// Where the item under way stands in the answer.
    fn index(&self) -> usize {
        self.output.len()
    }

    /// Says that a message begins, where none is being said.
    fn begin(&mut self, events: &mut Vec<Value>) {
        if self.open.is_some() {
            return;
        }
        let (id, at) = (id("msg"), self.index());
        let mut item = message(&id, "", &[], "in_progress");
        item["content"] = json!([]);
        events.push(self.event("output_item.added", json!({"output_index": at, "item": item})));
        let place = json!({
            "item_id": id, "output_index": at, "content_index": 0, "part": part("", &[]),
        });
        events.push(self.event("content_part.added", place));
        self.open = Some(OpenMessage { id, text: String::new(), logprobs: Vec::new() });
    }

    /// Ends the message that is being said.
    fn close(&mut self, status: &str, events: &mut Vec<Value>) {
        let Some(OpenMessage { id, text, logprobs }) = self.open.take() else { return };
        let at = self.index();
        let done = json!({
            "item_id": id, "output_index": at, "content_index": 0, "text": text,
            "logprobs": logprobs,
        });
        events.push(self.event("output_text.done", done));
        let done = json!({
            "item_id": id, "output_index": at, "content_index": 0, "part": part(&text, &logprobs),
        });
        events.push(self.event("content_part.done", done));
        let item = message(&id, &text, &logprobs, status);
        events.push(self.event("output_item.done", json!({"output_index": at, "item": item})));
        self.output.push(item);
    }

    /// A call, from its beginning to its end.
    fn call(&mut self, call: &ToolCall, events: &mut Vec<Value>) {
        let (id, at) = (id("fc"), self.index());
        let item = called(&id, call);
        let mut begun = item.clone();
        begun["arguments"] = "".into();
        begun["status"] = "in_progress".into();
        events.push(self.event("output_item.added", json!({"output_index": at, "item": begun})));
        let delta = json!({"item_id": id, "output_index": at, "delta": call.arguments});
        events.push(self.event("function_call_arguments.delta", delta));
        let done = json!({
            "item_id": id, "output_index": at, "name": call.name, "arguments": call.arguments,
        });
        events.push(self.event("function_call_arguments.done", done));
        events.push(self.event("output_item.done", json!({"output_index": at, "item": item})));
        self.output.push(item);
    }
}

impl Transcript for ResponseTranscript {
    fn start(&mut self) -> Vec<Value> {
        let begun = json!({"response": self.ask.base});
        vec![self.event("created", begun.clone()), self.event("in_progress", begun)]
    }

    fn piece(&mut self, piece: Piece) -> Vec<Value> {
        let mut events = Vec::new();
        let logprobs = self.ask.scores(&piece.tokens);
        if !piece.text.is_empty() || !logprobs.is_empty() {
            self.begin(&mut events);
            let at = self.index();
            if let Some(open) = &mut self.open {
                open.text.push_str(&piece.text);
                open.logprobs.extend(logprobs.iter().cloned());
                let delta = json!({
                    "item_id": open.id, "output_index": at, "content_index": 0,
                    "delta": piece.text, "logprobs": logprobs,
                });
                events.push(self.event("output_text.delta", delta));
            }
        }
        for call in &piece.calls {
            self.close("completed", &mut events);
            self.call(call, &mut events);
        }
        if let Some(finished) = piece.finished {
            self.tally.finished(0, finished);
            self.reason = finished.reason;
        }
        events
    }

    fn end(&mut self) -> Vec<Value> {
        let mut events = Vec::new();
        if self.output.is_empty() {
            self.begin(&mut events);
        }
        self.close(status(self.reason), &mut events);
        let response = self.ask.ended(std::mem::take(&mut self.output), self.reason, &self.tally);
        events.push(self.event(status(self.reason), json!({"response": response})));
        events
    }

    fn failed(&self, error: &Error) -> Value {
        let mut response = self.ask.base.clone();
        response.insert("status".into(), "failed".into());
        let message = error.object(Face::OpenAi)["error"]["message"].take();
        let told = json!({"code": "server_error", "message": message});
        response.insert("error".into(), told);
        json!({
            "type": "response.failed", "sequence_number": self.sequence, "response": response,
        })
    }
}
