//! One completion: from an engine's tokens to pieces of text.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use futures_util::Stream;
use roundhouse_engine::{FinishReason, PromptToken, TokenOut, TokenStream};
use roundhouse_types::{Failure, ModelId};

use crate::text::{Detokeniser, Scan, StopMatcher, TextCodec};
use crate::tools::CallReader;
use crate::{Error, Finish, Finished, Piece, TokenInfo, TokenPlace, ToolCall};

#[cfg(test)]
mod tests;

/// Makes text of one sequence's tokens and ends it at a stop string.
#[derive(Debug)]
pub(crate) struct Writer {
    choice: usize,
    codec: TextCodec,
    detokeniser: Detokeniser,
    stops: StopMatcher,
    /// Stop strings are not looked for in the text of so many tokens.
    min_tokens: usize,
    /// Whether the token that ends the answer is part of it.
    include_stop: bool,
    /// Whether special tokens are, by their names.
    keep_special: bool,
    /// Which stop tokens are the artefact's rather than the client's.
    eos_tokens: Arc<[u32]>,
    /// Where calls of tools are looked for.
    calls: Option<Calls>,
    /// Tokens whose text is held back.
    waiting: Vec<TokenInfo>,
    generated: usize,
}

/// How calls of tools are found in an answer.
#[derive(Debug)]
pub(crate) struct Calls {
    pub(crate) reader: CallReader,
    /// Special tokens that mark calls, with their texts: part of the text for the reader.
    pub(crate) markers: Vec<(u32, &'static str)>,
    /// Whether the request left it to the model: then calls are why the answer ended.
    pub(crate) free: bool,
}

/// What a writer starts from.
pub(crate) struct WriterParts<'a> {
    pub(crate) choice: usize,
    pub(crate) codec: TextCodec,
    pub(crate) prompt: &'a [u32],
    pub(crate) writing: Writing,
    pub(crate) min_tokens: usize,
    pub(crate) eos_tokens: Arc<[u32]>,
    pub(crate) calls: Option<Calls>,
}

/// How an answer is written.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Writing {
    /// Strings that end it.
    pub(crate) stop: Vec<String>,
    /// Whether what ends it is part of it.
    pub(crate) include_stop: bool,
    /// Whether special tokens are.
    pub(crate) keep_special: bool,
}

impl Writer {
    pub(crate) fn new(parts: WriterParts<'_>) -> Result<Self, Error> {
        Ok(Self {
            choice: parts.choice,
            detokeniser: Detokeniser::after(parts.codec.clone(), parts.prompt)?,
            codec: parts.codec,
            stops: StopMatcher::new(parts.writing.stop).including(parts.writing.include_stop),
            min_tokens: parts.min_tokens,
            include_stop: parts.writing.include_stop,
            keep_special: parts.writing.keep_special,
            eos_tokens: parts.eos_tokens,
            calls: parts.calls,
            waiting: Vec::new(),
            generated: 0,
        })
    }

    /// Takes the next token; `None` while its text has to wait. The piece with `finished` is the
    /// last, also where the engine would go on.
    pub(crate) fn on_token(&mut self, token: TokenOut) -> Result<Option<Piece>, Error> {
        self.generated += 1;
        let (id, finish, cached_tokens) = (token.id, token.finish, token.reused);
        let place = self.place(id, finish);
        self.waiting.push(self.token_info((id, place), (Some(token.logprob), None), token.top));
        let text = self.text(id, finish)?;
        let scan = if self.generated > self.min_tokens {
            self.stops.push(&text)
        } else {
            Scan::Pass(text)
        };
        let (text, reason) = match (scan, finish) {
            (Scan::Stop(text), _) => (text, Some(Finish::StopSequence)),
            (Scan::Pass(text), Some(finish)) => {
                (text + &self.stops.finish(), Some(self.reason(finish, id)))
            }
            (Scan::Pass(text), None) => (text, None),
        };
        let mut waits = self.detokeniser.holds() || self.stops.holds();
        let (text, calls) = self.said(text, reason.is_some());
        waits |= self.calls.as_ref().is_some_and(|calls| calls.reader.holds());
        // What a model says behind the only call that it may make is not waited for.
        let done = self.calls.as_ref().is_some_and(|calls| calls.reader.is_done());
        let reason = if done { Some(Finish::EndOfSequence) } else { reason };
        if reason.is_none() && text.is_empty() && calls.is_empty() && waits {
            return Ok(None);
        }
        let reason = reason.map(|reason| self.with_calls(reason));
        let generated_tokens = self.generated;
        Ok(Some(Piece {
            choice: self.choice,
            text,
            tokens: std::mem::take(&mut self.waiting),
            prompt: Vec::new(),
            calls,
            finished: reason.map(|reason| Finished { reason, generated_tokens, cached_tokens }),
        }))
    }

    /// The text that a token adds.
    fn text(&mut self, id: u32, finish: Option<FinishReason>) -> Result<String, Error> {
        let mut text = match (finish, self.marker(id)) {
            // The token that stops the sequence is not part of the answer.
            (Some(FinishReason::StopToken), _) if !self.include_stop => String::new(),
            (_, Some(marker)) => self.detokeniser.finish()? + marker,
            (_, None) if self.keep_special && self.codec.is_special(id) => {
                self.detokeniser.finish()? + &self.codec.token_text(id)
            }
            (_, None) => self.detokeniser.push(id)?,
        };
        if finish.is_some() {
            text.push_str(&self.detokeniser.end()?);
        }
        Ok(text)
    }

    /// Where a token stands in the answer: as [`text`](Self::text) has it.
    fn place(&self, id: u32, finish: Option<FinishReason>) -> TokenPlace {
        let hidden = self.codec.is_special(id) && !self.keep_special && self.marker(id).is_none();
        match finish {
            Some(FinishReason::StopToken) if hidden || !self.include_stop => TokenPlace::End,
            _ if hidden => TokenPlace::Hidden,
            _ => TokenPlace::Text,
        }
    }

    fn marker(&self, id: u32) -> Option<&'static str> {
        let markers = &self.calls.as_ref()?.markers;
        markers.iter().find(|(marker, _)| *marker == id).map(|(_, text)| *text)
    }

    /// Takes calls of tools out of the text.
    fn said(&mut self, text: String, last: bool) -> (String, Vec<ToolCall>) {
        let Some(Calls { reader, free, .. }) = &mut self.calls else {
            return (text, Vec::new());
        };
        let mut said = reader.push(&text);
        if last {
            let rest = reader.finish(!*free);
            said.text.push_str(&rest.text);
            said.calls.extend(rest.calls);
        }
        (said.text, said.calls)
    }

    fn with_calls(&self, reason: Finish) -> Finish {
        let called = self.calls.as_ref().is_some_and(|calls| calls.free && calls.reader.called());
        if called && reason != Finish::Length { Finish::ToolCalls } else { reason }
    }

    fn reason(&self, finish: FinishReason, id: u32) -> Finish {
        match finish {
            FinishReason::StopToken if self.eos_tokens.contains(&id) => Finish::EndOfSequence,
            FinishReason::StopToken => Finish::StopSequence,
            FinishReason::Complete => Finish::EndOfSequence,
            FinishReason::Length => Finish::Length,
        }
    }

    fn token_info(
        &self,
        (id, place): (u32, TokenPlace),
        (logprob, rank): (Option<f32>, Option<usize>),
        top: Vec<(u32, f32)>,
    ) -> TokenInfo {
        let top = top.into_iter();
        TokenInfo {
            id,
            text: self.codec.token_text(id),
            logprob,
            rank,
            special: self.codec.is_special(id),
            place,
            top: top.map(|(id, logprob)| (id, self.codec.token_text(id), logprob)).collect(),
        }
    }

    /// The tokens of a prompt that was scored: the first follows nothing.
    fn prompt_infos(&self, prompt: &[u32], scores: Vec<PromptToken>) -> Vec<TokenInfo> {
        let one = |PromptToken { logprob, rank, top }| ((Some(logprob), rank), top);
        let scores = std::iter::once(((None, None), Vec::new())).chain(scores.into_iter().map(one));
        let place = |id| match self.codec.is_special(id) {
            true => TokenPlace::Hidden,
            false => TokenPlace::Text,
        };
        prompt
            .iter()
            .zip(scores)
            .map(|(&id, (score, top))| self.token_info((id, place(id)), score, top))
            .collect()
    }
}

/// The pieces of one completion. Ends after the piece with `finished` or after an error, and
/// then has let go of its sequence, as it has when dropped.
pub(crate) struct Choice {
    model: ModelId,
    /// The prompt, where the client wants it back.
    lead: Option<Piece>,
    /// Its tokens, where it is scored: then it waits for the first token, which has the scores.
    scored: Vec<u32>,
    /// That token, while its lead goes before it.
    first: Option<TokenOut>,
    tokens: Option<TokenStream>,
    writer: Writer,
}

impl Choice {
    /// A choice that begins with `lead`, and with the scores of the tokens `scored`.
    pub(crate) fn new(
        model: ModelId,
        (lead, scored): (String, Vec<u32>),
        tokens: TokenStream,
        writer: Writer,
    ) -> Self {
        let choice = writer.choice;
        let lead = (!lead.is_empty() || !scored.is_empty()).then_some(Piece {
            choice,
            text: lead,
            tokens: Vec::new(),
            prompt: Vec::new(),
            calls: Vec::new(),
            finished: None,
        });
        Self { model, lead, scored, first: None, tokens: Some(tokens), writer }
    }

    /// The lead that goes before `token`, with the scores that came with it.
    fn scored_lead(&mut self, token: &mut TokenOut) -> Option<Piece> {
        let scores = std::mem::take(&mut token.prompt);
        let prompt = self.writer.prompt_infos(&std::mem::take(&mut self.scored), scores);
        self.lead.take().map(|lead| Piece { prompt, ..lead })
    }
}

impl Stream for Choice {
    type Item = Result<Piece, Failure>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        if this.scored.is_empty()
            && let Some(lead) = this.lead.take()
        {
            return Poll::Ready(Some(Ok(lead)));
        }
        loop {
            let Some(tokens) = &mut this.tokens else {
                return Poll::Ready(None);
            };
            let next = match this.first.take() {
                Some(first) => Some(Ok(first)),
                None => ready!(Pin::new(tokens).poll_next(context)),
            };
            let result = match next {
                Some(Ok(mut token)) => {
                    if let Some(lead) = this.scored_lead(&mut token) {
                        this.first = Some(token);
                        return Poll::Ready(Some(Ok(lead)));
                    }
                    this.writer.on_token(token).map_err(Failure::from)
                }
                Some(Err(failure)) => Err(failure),
                None => {
                    let message = "its answer broke off";
                    Err(Error::Broken { model: this.model.clone(), message }.into())
                }
            };
            match result {
                Ok(None) => {}
                Ok(Some(piece)) => {
                    if piece.finished.is_some() {
                        this.tokens = None;
                    }
                    return Poll::Ready(Some(Ok(piece)));
                }
                Err(failure) => {
                    this.tokens = None;
                    return Poll::Ready(Some(Err(failure)));
                }
            }
        }
    }
}
