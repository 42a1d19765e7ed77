//! Adapters over experts and their routers, beside others and the base in one step.

use super::*;

#[test]
fn parity_of_adapters_over_experts_beside_others_and_the_base() {
    let adapters = ["mixtral-all", "mixtral-attention"].map(String::from);
    let wants = adapters.each_ref().map(|case| expected(case));
    let mut loaded = with("mixtral", &adapters, &served());
    let mut alone = open("mixtral", &served()).runner;
    for chunk in [usize::MAX, 3] {
        let mut sequences = Vec::new();
        for prompt in 0..3 {
            for (id, want) in (1..).zip(&wants) {
                sequences.push(Sequence::new(Some(id), &want.prompts[prompt]));
            }
        }
        let compared = run("mixtral", &mut *loaded.runner, &mut sequences, chunk);
        println!("mixed, {chunk} at a time: {:.1e}, {} tokens", compared.logits, compared.tokens);
        assert!(compared.logits <= LOGITS, "{}", compared.logits);
    }
    // Rows of the base are the base's, whatever the routers beside them say.
    let tokens = [5, 9, 77, 31, 6];
    let want = step(&mut *alone, vec![row(0, 0, &tokens)]);
    let ids = [Some(1), None, Some(2), None, Some(1)];
    let rows = ids.iter().enumerate().map(|(index, id)| named(row(index, 0, &tokens), *id));
    let got = step(&mut *loaded.runner, rows.collect());
    for (id, got) in ids.iter().zip(&got) {
        match id {
            None => assert!(apart(got, &want[0]) < 1e-5),
            Some(_) => assert!(apart(got, &want[0]) > MOVED),
        }
    }
    assert!(apart(&got[0], &got[4]) < 1e-5, "two rows of one adapter");
}

#[test]
fn what_finds_experts_is_charged_to_adapters_that_change_some() {
    let [all, attention] = ["mixtral-all", "mixtral-attention"]
        .map(|case| adapter_plan(case).on(&plan("mixtral", &served())).unwrap().footprint().host);
    let dense =
        adapter_plan("llama-qv").on(&plan("llama-mha", &served())).unwrap().footprint().host;
    assert!(all > attention);
    // Two parts a layer of one, four of the other; nothing for experts that are not changed.
    assert!(attention.0 < 2 * dense.0 + 512, "{attention} {dense}");
}
