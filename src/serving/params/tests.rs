use roundhouse_engine::KvSpec;

use super::*;

const SPEC: RunnerSpec =
    RunnerSpec { output_width: 100, context: 64, step_tokens: 16, kv: Some(KvSpec::whole(4, 12)) };

fn resolve(face: Face, asked: &Generation) -> Result<Parameters, Error> {
    Parameters::resolve(face, asked, &GenerationDefaults::default(), &[2], 100)
}

fn temperature(face: Face, asked: Generation, defaults: &GenerationDefaults) -> f32 {
    Parameters::resolve(face, &asked, defaults, &[], 100).unwrap().sampling.temperature
}

#[test]
fn every_field_out_of_range_is_named() {
    let all = Generation::default();
    let cases = [
        (Generation { temperature: Some(-0.1), ..all.clone() }, "temperature: "),
        (Generation { temperature: Some(f32::NAN), ..all.clone() }, "temperature: "),
        (Generation { temperature: Some(f32::INFINITY), ..all.clone() }, "temperature: "),
        (Generation { top_p: Some(0.0), ..all.clone() }, "top_p: "),
        (Generation { top_p: Some(1.1), ..all.clone() }, "top_p: "),
        (Generation { min_p: Some(1.1), ..all.clone() }, "min_p: "),
        (Generation { repetition_penalty: Some(0.0), ..all.clone() }, "repetition_penalty: "),
        (Generation { presence_penalty: Some(2.1), ..all.clone() }, "presence_penalty: "),
        (Generation { frequency_penalty: Some(-2.1), ..all.clone() }, "frequency_penalty: "),
        (Generation { max_tokens: Some(0), ..all.clone() }, "max_tokens: "),
        (Generation { logprobs: Some(21), ..all.clone() }, "logprobs: "),
        (Generation { ranked_prompt: Some(21), ..all.clone() }, "prompt_logprobs: "),
        (Generation { stop: vec!["a".into(), String::new()], ..all.clone() }, "stop[1]: "),
        (Generation { stop: vec!["a".into(); 17], ..all.clone() }, "stop: "),
        (Generation { stop: vec!["a".repeat(1025)], ..all.clone() }, "stop[0]: "),
        (Generation { stop_token_ids: vec![100], ..all.clone() }, "stop_token_ids[0]: "),
        (Generation { logit_bias: vec![(5, 1.0), (100, 1.0)], ..all.clone() }, "logit_bias.100: "),
    ];
    for (asked, start) in cases {
        let error = resolve(Face::OpenAi, &asked).unwrap_err().to_string();
        assert!(error.starts_with(start), "{error}");
    }
}

#[test]
fn faces_differ_in_whether_they_sample() {
    let nothing = GenerationDefaults::default();
    let artefact = GenerationDefaults {
        do_sample: Some(true),
        temperature: Some(0.6),
        ..GenerationDefaults::default()
    };
    let asked = Generation::default;
    let off = Generation { do_sample: Some(false), temperature: Some(0.9), ..asked() };
    let on = Generation { do_sample: Some(true), ..asked() };
    let hinted = Generation { top_k: Some(5), ..asked() };
    let cold = Generation { temperature: Some(0.0), ..asked() };
    for (face, asked, defaults, expected) in [
        (Face::Inputs, asked(), &nothing, 0.0),
        (Face::Inputs, asked(), &artefact, 0.6),
        (Face::Inputs, on, &nothing, 1.0),
        (Face::Inputs, hinted, &nothing, 1.0),
        (Face::Inputs, off.clone(), &artefact, 0.0),
        (Face::OpenAi, asked(), &nothing, 1.0),
        (Face::OpenAi, asked(), &artefact, 0.6),
        (Face::OpenAi, off, &artefact, 0.0),
        (Face::OpenAi, cold, &artefact, 0.0),
    ] {
        assert_eq!(temperature(face, asked.clone(), defaults), expected, "{face:?} {asked:?}");
    }
}

#[test]
fn lengths_follow_the_context_and_the_face() {
    // The pool of 48 positions is what binds, not the context of 64.
    let length = |face, asked: Option<usize>, prompt: usize| {
        let asked = Generation { max_tokens: asked, ..Generation::default() };
        resolve(face, &asked)?.sequence(vec![1; prompt], 0, &SPEC).map(|spec| spec.max_tokens)
    };
    assert_eq!(length(Face::Inputs, None, 8).unwrap(), 30);
    assert_eq!(length(Face::Inputs, None, 40).unwrap(), 8);
    assert_eq!(length(Face::OpenAi, None, 8).unwrap(), 40);
    let usual = |face, usual_tokens| {
        let asked = Generation { usual_tokens: Some(usual_tokens), ..Generation::default() };
        resolve(face, &asked).unwrap().sequence(vec![1; 8], 0, &SPEC).unwrap().max_tokens
    };
    for face in [Face::Inputs, Face::OpenAi] {
        let cut = "another server's or route's, cut to the context";
        assert_eq!((usual(face, 39), usual(face, 100)), (39, 40), "{cut}: {face:?}");
    }
    assert_eq!(length(Face::OpenAi, Some(40), 8).unwrap(), 40);
    for (prompt, asked, message) in [
        (
            8,
            Some(41),
            "max_tokens: 8 tokens of prompt and 41 new ones exceed the context of 48 tokens by 1",
        ),
        (
            48,
            None,
            "prompt: it has 48 tokens, 1 too many for one token of an answer in the context of 48 tokens",
        ),
        (
            60,
            Some(5),
            "prompt: it has 60 tokens, 13 too many for one token of an answer in the context of 48 tokens",
        ),
        (
            40,
            Some(usize::MAX),
            "max_tokens: 40 tokens of prompt and 18446744073709551615 new ones exceed the context of 48 \
             tokens by 18446744073709551607",
        ),
        (0, None, "prompt: it has no tokens"),
    ] {
        let error = length(Face::OpenAi, asked, prompt).unwrap_err().to_string();
        assert_eq!(error, message);
    }
}

#[test]
fn a_fault_is_told_by_the_name_that_the_client_has_for_the_field() {
    let names = FieldNames {
        prompt: "inputs",
        max_tokens: "parameters.max_new_tokens",
        min_tokens: "parameters.min_new_tokens",
        prefix: "parameters.",
        function: ".function",
    };
    let asked = || Generation { names, max_tokens: Some(5), ..Generation::default() };
    let refused = |asked: Generation, prompt: usize| {
        let sequence = |parameters: Parameters| parameters.sequence(vec![1; prompt], 0, &SPEC);
        resolve(Face::Inputs, &asked).and_then(sequence).unwrap_err().to_string()
    };
    for (asked, prompt, field) in [
        (asked(), 44, "parameters.max_new_tokens: "),
        (asked(), 60, "inputs: "),
        (asked(), 0, "inputs: "),
        (Generation { min_tokens: Some(6), ..asked() }, 8, "parameters.min_new_tokens: "),
        (Generation { stop_token_ids: vec![100], ..asked() }, 8, "parameters.stop_token_ids[0]: "),
        (Generation { logit_bias: vec![(100, 1.0)], ..asked() }, 8, "parameters.logit_bias.100: "),
    ] {
        let told = refused(asked, prompt);
        assert!(told.starts_with(field), "{told}");
    }
}

#[test]
fn sequences_of_a_request_have_seeds_in_a_row() {
    let asked = Generation { seed: Some(u64::MAX), ..Generation::default() };
    let parameters = resolve(Face::OpenAi, &asked).unwrap();
    let seed = |index| parameters.sequence(vec![1], index, &SPEC).unwrap().sampling.seed;
    assert_eq!([seed(0), seed(1), seed(2)], [u64::MAX, 0, 1]);
    let drawn = |_| resolve(Face::OpenAi, &Generation::default()).unwrap().seed();
    let seeds: Vec<u64> = (0..4).map(drawn).collect();
    assert!(seeds.iter().all(|&seed| seed < 1 << 53));
    assert!(seeds.windows(2).any(|pair| pair[0] != pair[1]));
}

#[test]
fn the_end_of_sequence_can_be_ignored_but_not_the_clients_own_stops() {
    let asked = Generation { stop_token_ids: vec![7], ..Generation::default() };
    assert_eq!(resolve(Face::OpenAi, &asked).unwrap().stop_tokens, [7, 2]);
    let asked = Generation { ignore_eos: true, ..asked };
    assert_eq!(resolve(Face::OpenAi, &asked).unwrap().stop_tokens, [7]);
    let asked = Generation { min_tokens: Some(31), ..Generation::default() };
    let error = resolve(Face::Inputs, &asked).unwrap().sequence(vec![1], 0, &SPEC).unwrap_err();
    assert_eq!(error.to_string(), "min_tokens: 31 is more than the 30 at most");
}
