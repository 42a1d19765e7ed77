use std::path::Path;
use std::sync::LazyLock;

use proptest::prelude::*;

use super::*;
use crate::tools::CallFormat;

const EOS: u32 = 2;
const REFERENCES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/references/bpe");

fn codec() -> TextCodec {
    static CODEC: LazyLock<TextCodec> =
        LazyLock::new(|| TextCodec::open(Path::new(REFERENCES)).unwrap());
    CODEC.clone()
}

fn writer(stop: &[&str], min_tokens: usize) -> Writer {
    let stop = stop.iter().map(|stop| (*stop).to_owned()).collect();
    writing(Writing { stop, ..Writing::default() }, min_tokens)
}

fn writing(writing: Writing, min_tokens: usize) -> Writer {
    Writer::new(WriterParts {
        choice: 3,
        codec: codec(),
        prompt: &[1],
        writing,
        min_tokens,
        eos_tokens: [EOS].into(),
        calls: None,
    })
    .unwrap()
}

fn token(id: u32, finish: Option<FinishReason>) -> TokenOut {
    TokenOut { id, logprob: -0.5, top: vec![(id, -0.5)], prompt: vec![], reused: 4, finish }
}

/// Writes tokens, the last with `finish`; the pieces up to the finished one.
fn write(writer: &mut Writer, ids: &[u32], finish: FinishReason) -> Vec<Piece> {
    let mut pieces = Vec::new();
    for (index, &id) in ids.iter().enumerate() {
        let last = (index + 1 == ids.len()).then_some(finish);
        let Some(piece) = writer.on_token(token(id, last)).unwrap() else {
            continue;
        };
        let finished = piece.finished.is_some();
        pieces.push(piece);
        if finished {
            break;
        }
    }
    pieces
}

fn text(pieces: &[Piece]) -> String {
    pieces.iter().map(|piece| piece.text.as_str()).collect()
}

fn finish(pieces: &[Piece]) -> Finished {
    pieces.last().unwrap().finished.unwrap()
}

#[test]
fn nothing_of_a_stop_string_that_spans_tokens_goes_out() {
    let ids = codec().encode("one two\n\nUser: three", false).unwrap();
    let pieces = write(&mut writer(&["\n\nUser:", "never"], 0), &ids, FinishReason::Length);
    assert_eq!(text(&pieces), "one two");
    assert_eq!(finish(&pieces).reason, Finish::StopSequence);
    let tokens: usize = pieces.iter().map(|piece| piece.tokens.len()).sum();
    assert_eq!(finish(&pieces).generated_tokens, tokens);
    assert!(tokens < ids.len());
}

#[test]
fn text_held_for_a_stop_string_goes_out_with_its_tokens_when_the_answer_ends() {
    let ids = codec().encode("one\n\nUs", false).unwrap();
    let pieces = write(&mut writer(&["\n\nUser:"], 0), &ids, FinishReason::Length);
    assert_eq!(text(&pieces), "one\n\nUs");
    assert_eq!(
        finish(&pieces),
        Finished { reason: Finish::Length, generated_tokens: ids.len(), cached_tokens: 4 }
    );
    let tokens: Vec<u32> =
        pieces.iter().flat_map(|piece| &piece.tokens).map(|token| token.id).collect();
    assert_eq!(tokens, ids);
}

#[test]
fn the_token_that_stops_the_answer_has_no_text_in_it() {
    let mut ids = codec().encode("one two", false).unwrap();
    let own = *ids.last().unwrap();
    let before = codec().decode(&ids[..ids.len() - 1]).unwrap();
    let pieces = write(&mut writer(&[], 0), &ids, FinishReason::StopToken);
    assert_eq!(text(&pieces), before);
    assert_eq!(finish(&pieces).reason, Finish::StopSequence);
    assert_eq!(pieces.last().unwrap().tokens.last().unwrap().id, own);

    ids.push(EOS);
    let pieces = write(&mut writer(&[], 0), &ids, FinishReason::StopToken);
    assert_eq!(text(&pieces), "one two");
    assert_eq!(finish(&pieces).reason, Finish::EndOfSequence);
    let last = pieces.last().unwrap().tokens.last().unwrap();
    assert!(last.special);
    assert_eq!(last.text, "<|im_end|>");
}

#[test]
fn what_ends_an_answer_and_special_tokens_are_part_of_it_where_they_are_asked_for() {
    let mut ids = codec().encode("one two", false).unwrap();
    let kept = Writing { keep_special: true, ..Writing::default() };
    ids.insert(1, 1);
    let pieces = write(&mut writing(kept.clone(), 0), &ids, FinishReason::Length);
    let own = codec().token_text(1);
    assert!(text(&pieces).contains(&own) && text(&pieces).replace(&own, "") == "one two");
    ids.push(EOS);
    let all = codec().join(&ids, false).unwrap();
    let pieces = write(&mut writing(kept.clone(), 0), &ids, FinishReason::StopToken);
    assert_eq!(text(&pieces), all.strip_suffix("<|im_end|>").unwrap());
    let with_end = Writing { include_stop: true, ..kept };
    let pieces = write(&mut writing(with_end, 0), &ids, FinishReason::StopToken);
    assert_eq!(text(&pieces), all);

    let ids = codec().encode("one two three", false).unwrap();
    let stop = vec!["two".to_owned()];
    let with_stop = Writing { stop, include_stop: true, ..Writing::default() };
    let pieces = write(&mut writing(with_stop, 0), &ids, FinishReason::Length);
    assert_eq!(text(&pieces), "one two");
}

#[test]
fn each_token_knows_whether_the_text_has_it_and_whether_it_is_the_end() {
    use TokenPlace::{End, Hidden, Text};
    // A special token between two others, then one that may end the answer.
    let one = codec().encode("one", false).unwrap()[0];
    let kept = Writing { keep_special: true, ..Writing::default() };
    let with_end = Writing { include_stop: true, ..Writing::default() };
    let whole = Writing { include_stop: true, ..kept.clone() };
    let stopped = FinishReason::StopToken;
    for (how, last, finish, places) in [
        (Writing::default(), EOS, stopped, [Text, Hidden, Text, End]),
        (Writing::default(), EOS, FinishReason::Length, [Text, Hidden, Text, Hidden]),
        (Writing::default(), one, stopped, [Text, Hidden, Text, End]),
        (with_end.clone(), EOS, stopped, [Text, Hidden, Text, End]),
        (with_end, one, stopped, [Text, Hidden, Text, Text]),
        (kept, EOS, stopped, [Text, Text, Text, End]),
        (whole, EOS, stopped, [Text, Text, Text, Text]),
    ] {
        let pieces = write(&mut writing(how.clone(), 0), &[one, 1, one, last], finish);
        let tokens: Vec<&TokenInfo> = pieces.iter().flat_map(|piece| &piece.tokens).collect();
        let got: Vec<TokenPlace> = tokens.iter().map(|token| token.place).collect();
        assert_eq!(got, places, "{how:?} {finish:?}");
        // What has a place in the text is the text.
        let shown = tokens.iter().filter(|token| token.place == Text);
        let shown: String = shown.map(|token| token.text.as_str()).collect();
        assert_eq!(shown, text(&pieces), "{how:?} {finish:?}");
    }
}

/// A writer that looks for calls; `<|im_start|>` marks them, as a special token does in other
/// vocabularies.
fn calling(free: bool, single: bool) -> Writer {
    let reader = CallReader::new(CallFormat::Hermes, vec!["look".into()], single);
    let calls = Calls { reader, markers: vec![(1, "<tool_call>")], free };
    Writer { calls: Some(calls), ..writer(&[], 0) }
}

#[test]
fn calls_are_no_text_and_are_why_an_answer_ends_that_was_free_to_make_them() {
    let call = "{\"name\": \"look\", \"arguments\": {\"at\": \"é🚂\"}}</tool_call>";
    let codec = codec();
    let mut ids = codec.encode("See:\n", false).unwrap();
    ids.push(1);
    ids.extend(codec.encode(call, false).unwrap());
    ids.push(EOS);
    for (free, stop, reason) in [
        (true, FinishReason::StopToken, Finish::ToolCalls),
        (false, FinishReason::StopToken, Finish::EndOfSequence),
        (true, FinishReason::Length, Finish::Length),
    ] {
        let pieces = write(&mut calling(free, false), &ids, stop);
        assert_eq!(text(&pieces), "See:");
        let calls: Vec<_> = pieces.iter().flat_map(|piece| &piece.calls).collect();
        assert_eq!((calls.len(), calls[0].name.as_str()), (1, "look"));
        assert_eq!(calls[0].arguments, "{\"at\":\"é🚂\"}");
        assert_eq!(finish(&pieces).reason, reason);
        let tokens: usize = pieces.iter().map(|piece| piece.tokens.len()).sum();
        assert_eq!(tokens, ids.len());
    }
}

#[test]
fn an_answer_ends_with_the_only_call_that_it_may_make() {
    let codec = codec();
    let call = "{\"name\": \"look\", \"arguments\": {}}</tool_call>";
    let mut ids = vec![1];
    ids.extend(codec.encode(call, false).unwrap());
    let one = ids.len();
    ids.extend(ids.clone());
    ids.push(EOS);
    let told = |pieces: &[Piece]| pieces.iter().map(|piece| piece.calls.len()).sum::<usize>();
    let pieces = write(&mut calling(true, false), &ids, FinishReason::StopToken);
    assert_eq!((told(&pieces), finish(&pieces).generated_tokens), (2, ids.len()));
    for (free, reason) in [(true, Finish::ToolCalls), (false, Finish::EndOfSequence)] {
        let pieces = write(&mut calling(free, true), &ids, FinishReason::StopToken);
        assert_eq!((told(&pieces), finish(&pieces).generated_tokens), (1, one));
        assert_eq!(finish(&pieces).reason, reason);
        // Also where the length would end it there.
        let pieces = write(&mut calling(free, true), &ids[..one], FinishReason::Length);
        assert_eq!(finish(&pieces).reason, reason);
        // A call that the length cut short is none of which that could be said.
        let pieces = write(&mut calling(free, true), &ids[..one - 1], FinishReason::Length);
        assert_eq!((told(&pieces) > 0, finish(&pieces).reason), (!free, Finish::Length));
    }
}

#[test]
fn stop_strings_wait_for_the_least_number_of_tokens() {
    let ids = codec().encode("stop and stop", false).unwrap();
    let first = codec().encode("stop", false).unwrap().len();
    let pieces = write(&mut writer(&["stop"], first), &ids, FinishReason::Length);
    assert_eq!(text(&pieces), "stop and ");
    assert_eq!(finish(&pieces).reason, Finish::StopSequence);
}

#[test]
fn tokens_wait_for_their_character() {
    let ids = codec().encode("👩", false).unwrap();
    assert!(ids.len() > 1, "the reference vocabulary has no token for it");
    let mut writer = writer(&[], 0);
    for &id in &ids[..ids.len() - 1] {
        assert_eq!(writer.on_token(token(id, None)).unwrap(), None);
    }
    let piece = writer.on_token(token(ids[ids.len() - 1], None)).unwrap().unwrap();
    assert_eq!((piece.choice, piece.text.as_str(), piece.tokens.len()), (3, "👩", ids.len()));
    assert_eq!(piece.finished, None);
}

#[test]
fn an_answer_that_ends_within_a_character_ends_before_it() {
    let mut ids = codec().encode("so 👩", false).unwrap();
    ids.pop();
    let pieces = write(&mut writer(&[], 0), &ids, FinishReason::Length);
    assert_eq!((text(&pieces).as_str(), finish(&pieces).reason), ("so ", Finish::Length));
    let tokens = pieces.iter().flat_map(|piece| &piece.tokens);
    assert_eq!(tokens.map(|token| token.id).collect::<Vec<_>>(), ids, "none is lost");
    ids.push(EOS);
    let pieces = write(&mut writer(&[], 0), &ids, FinishReason::StopToken);
    assert_eq!(text(&pieces), "so ");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn every_token_is_reported_once_and_the_text_is_whole(
        ids in prop::collection::vec(0u32..540, 1..24),
    ) {
        let pieces = write(&mut writer(&[], 0), &ids, FinishReason::Length);
        let (text, whole) = (text(&pieces), codec().decode(&ids).unwrap());
        // But for a character that it ends within.
        let rest = whole.strip_prefix(&text);
        prop_assert!(matches!(rest, Some("" | "\u{FFFD}")), "{:?} of {:?}", text, whole);
        let tokens: Vec<u32> =
            pieces.iter().flat_map(|piece| &piece.tokens).map(|token| token.id).collect();
        prop_assert_eq!(tokens, ids);
        prop_assert!(pieces[..pieces.len() - 1].iter().all(|piece| piece.finished.is_none()));
    }
}
