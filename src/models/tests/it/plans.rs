//! A plan that breaks the contract is refused, and the runner goes on.

use crate::support::{LlamaCase, apart, expected, open, row, settings, step, whole};
use roundhouse_engine::{BlockId, Row, RunnerError, StepPlan};

#[test]
fn a_decoder_refuses_faulty_rows_and_stays_usable() {
    let case = "llama-mha";
    let want: LlamaCase = expected(case);
    let mut runner = open(case, &settings()).runner;
    let prompt = &want.prompts[3];
    let half = prompt.ids.len() / 2;
    step(&mut *runner, vec![row(0, 0, &prompt.ids[..half])]);

    let good = row(1, 0, &[1, 2, 3]);
    let faulty: [(Row, &str); 6] = [
        (Row { tokens: vec![], ..good.clone() }, "no tokens"),
        (Row { tokens: vec![1, 128], ..good.clone() }, "token 128"),
        (Row { position: 126, ..good.clone() }, "position 129"),
        (Row { position: usize::MAX, ..good.clone() }, "context is 128"),
        (Row { blocks: vec![BlockId(0)], position: 15, ..good.clone() }, "1 blocks and needs 2"),
        (Row { blocks: vec![BlockId(160)], ..good.clone() }, "block 160; the pool has 160"),
    ];
    for (row, words) in faulty {
        // Beside a sound row, which must not be computed either.
        let plan = StepPlan { rows: vec![good.clone(), row] };
        let Err(RunnerError::Input(text)) = runner.forward(&plan) else {
            panic!("{words}: not refused")
        };
        assert!(text.contains("row 1") && text.contains(words), "{text}");
    }
    let spec = runner.spec();
    let many = (0..5).map(|index| row(index, 0, &[1; 110])).collect();
    assert!(spec.step_tokens < 550);
    assert!(matches!(runner.forward(&StepPlan { rows: many }), Err(RunnerError::Input(_))));

    let rest = step(&mut *runner, vec![row(0, half, &prompt.ids[half..])]);
    assert!(apart(&rest[0], &prompt.last_logits) < 2e-3);
}

#[test]
fn an_encoder_refuses_chunks_and_blocks() {
    let mut runner = open("bert-plain", &settings()).runner;
    for row in [
        Row { position: 4, ..whole(&[2, 3]) },
        Row { blocks: vec![BlockId(0)], ..whole(&[2, 3]) },
        whole(&[2; 49]),
    ] {
        let refused = runner.forward(&StepPlan { rows: vec![row] });
        assert!(matches!(refused, Err(RunnerError::Input(_))));
    }
}

#[test]
fn rows_without_an_output_get_none_and_an_empty_step_is_fine() {
    for case in ["llama-mha", "bert-plain"] {
        let mut runner = open(case, &settings()).runner;
        let silent = |index, tokens: &[u32]| match case {
            "llama-mha" => Row { output: false, ..row(index, 0, tokens) },
            _ => Row { output: false, ..whole(tokens) },
        };
        assert!(step(&mut *runner, vec![]).is_empty());
        assert!(step(&mut *runner, vec![silent(0, &[1, 2])]).is_empty());
        let mut loud = silent(1, &[4, 5]);
        loud.output = true;
        assert_eq!(step(&mut *runner, vec![silent(0, &[1, 2]), loud]).len(), 1);
    }
}
