//! What is refused, and in which words.

use std::path::Path;

use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde_json::{Value, json};

use super::*;

/// An adapter's files, changed.
pub(super) struct Changed {
    config: Value,
    tensors: Vec<(String, Vec<usize>, Vec<u8>)>,
}

impl Changed {
    fn from(case: &str) -> Self {
        Self::of_folder(&folder(case))
    }

    pub(super) fn of_folder(folder: &Path) -> Self {
        let read = |name: &str| std::fs::read(folder.join(name)).unwrap();
        let bytes = read("adapter_model.safetensors");
        let file = SafeTensors::deserialize(&bytes).unwrap();
        let tensors = file
            .iter()
            .map(|(name, view)| (name.to_owned(), view.shape().to_vec(), view.data().to_vec()));
        let config = serde_json::from_slice(&read("adapter_config.json")).unwrap();
        Self { config, tensors: tensors.collect() }
    }

    pub(super) fn set(mut self, key: &str, value: Value) -> Self {
        self.config[key] = value;
        self
    }

    pub(super) fn without(mut self, part: &str) -> Self {
        let before = self.tensors.len();
        self.tensors.retain(|(name, ..)| !name.contains(part));
        assert!(self.tensors.len() < before, "{part}");
        self
    }

    /// With a tensor of zeros more.
    pub(super) fn with(mut self, name: &str, shape: &[usize]) -> Self {
        let bytes = shape.iter().product::<usize>() * 4;
        self.tensors.push((name.to_owned(), shape.to_vec(), vec![0; bytes]));
        self
    }

    fn renamed(mut self, from: &str, to: &str) -> Self {
        let found = self.tensors.iter_mut().find(|(name, ..)| name.contains(from)).unwrap();
        found.0 = found.0.replace(from, to);
        self
    }

    fn shaped(mut self, part: &str, shape: &[usize]) -> Self {
        let found = self.tensors.iter_mut().find(|(name, ..)| name.contains(part)).unwrap();
        found.1 = shape.to_vec();
        found.2 = vec![0; shape.iter().product::<usize>() * 4];
        self
    }

    fn spoiled(mut self, part: &str, number: f32) -> Self {
        let found = self.tensors.iter_mut().find(|(name, ..)| name.contains(part)).unwrap();
        found.2[..4].copy_from_slice(&number.to_le_bytes());
        self
    }

    fn write(&self) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let views = self.tensors.iter().map(|(name, shape, data)| {
            (name, TensorView::new(Dtype::F32, shape.clone(), data).unwrap())
        });
        let bytes = safetensors::serialize(views, None).unwrap();
        std::fs::write(dir.path().join("adapter_model.safetensors"), bytes).unwrap();
        std::fs::write(dir.path().join("adapter_config.json"), self.config.to_string()).unwrap();
        dir
    }

    /// Why it is refused, before anything of a base is known.
    fn unread(&self) -> String {
        let dir = self.write();
        AdapterPlan::read(&read_local(dir.path()).unwrap()).unwrap_err().to_string()
    }

    /// Why it is refused on a base.
    pub(super) fn unfit(&self, base: &str) -> String {
        let dir = self.write();
        let read = AdapterPlan::read(&read_local(dir.path()).unwrap()).unwrap();
        read.on(&plan(base, &settings())).unwrap_err().to_string()
    }
}

#[test]
fn what_is_not_computed_is_refused_by_name_before_a_weight_is_read() {
    for (key, value, says) in [
        ("peft_type", json!("IA3"), "an adapter of peft_type IA3 is not served yet; LORA is"),
        ("peft_type", json!(null), "it has no peft_type"),
        ("init_lora_weights", json!("pissa"), "an adapter with init_lora_weights pissa is"),
        ("init_lora_weights", json!("pissa_niter_4"), "init_lora_weights pissa_niter_4 is"),
        ("init_lora_weights", json!("olora"), "init_lora_weights olora is"),
        ("init_lora_weights", json!("loftq"), "init_lora_weights loftq is"),
        (
            "trainable_token_indices",
            json!([1, 2]),
            "a LoRA adapter with trainable_token_indices is",
        ),
        ("target_parameters", json!(["experts.w"]), "a LoRA adapter with target_parameters is"),
        ("layer_replication", json!([[0, 2]]), "a LoRA adapter with layer_replication is"),
        ("alora_invocation_tokens", json!([5]), "a LoRA adapter with alora_invocation_tokens is"),
        ("use_qalora", json!(true), "a LoRA adapter with use_qalora is"),
        ("ensure_weight_tying", json!(true), "a LoRA adapter with ensure_weight_tying is"),
        ("something_new", json!(3), "a LoRA adapter with something_new is"),
        ("bias", json!("some"), "bias is 'some', and must be none, all or lora_only"),
        ("r", json!(0), "r is 0, and must be a rank: a whole number from 1 to 65536"),
        ("r", json!("8"), "r is \"8\", and must be a rank: a whole number from 1 to 65536"),
        ("init_lora_weights", json!("corda"), "init_lora_weights corda is"),
        ("init_lora_weights", json!("lora_ga"), "init_lora_weights lora_ga is"),
        (
            "monteclora_config",
            json!({"num_samples": 4}),
            "a LoRA adapter with monteclora_config is",
        ),
        ("velora_config", json!({"num_groups": 4}), "a LoRA adapter with velora_config is"),
        ("kasa_config", json!({"beta": 1e-4}), "a LoRA adapter with kasa_config is"),
        ("arrow_config", json!({"top_k": 3}), "a LoRA adapter with arrow_config is"),
        ("use_bdlora", json!({"nblocks": 2}), "a LoRA adapter with use_bdlora is"),
        ("lora_alpha", json!("much"), "lora_alpha is \"much\", and must be a number"),
        ("target_modules", json!("q_proj("), "target_modules is 'q_proj('"),
        ("rank_pattern", json!({"(": 3}), "rank_pattern has the pattern '('"),
        ("use_dora", json!(true), "has no lora_magnitude_vector"),
        ("lora_bias", json!(true), "has no bias of its B"),
        ("target_modules", json!(["k_proj"]), "target_modules does not name it"),
    ] {
        let refused = Changed::from("llama-all").set(key, value.clone()).unread();
        assert!(refused.contains(says), "{key} {value}: {refused}");
    }
}

/// Whether an adapter is read, whatever its base.
fn is_read(changed: &Changed) -> bool {
    let dir = changed.write();
    let read = AdapterPlan::read(&read_local(dir.path()).unwrap());
    read.map_err(|error| println!("{}: {error}", changed.config)).is_ok()
}

#[test]
fn keys_that_say_nothing_are_passed_over_known_or_not() {
    for value in [json!(null), json!(false), json!({}), json!([]), json!("")] {
        assert!(is_read(&Changed::from("llama-all").set("something_new", value)));
    }
    // All that PEFT 0.21 writes of an adapter that uses none of it.
    let written = json!({
        "alora_invocation_tokens": null, "alpha_pattern": {}, "arrow_config": null,
        "auto_mapping": null, "bias": "none", "corda_config": null,
        "ensure_weight_tying": false, "eva_config": null, "exclude_modules": null,
        "fan_in_fan_out": false, "inference_mode": false, "init_lora_weights": true,
        "kasa_config": null, "layer_replication": null, "layers_pattern": null,
        "layers_to_transform": null, "loftq_config": {}, "lora_bias": false, "lora_dropout": 0.0,
        "lora_ga_config": null, "megatron_config": null, "megatron_core": "megatron.core",
        "modules_to_save": null, "monteclora_config": null, "peft_type": "LORA",
        "peft_version": "0.21.2", "qalora_group_size": 16, "rank_pattern": {}, "revision": null,
        "target_parameters": null, "task_type": null, "trainable_token_indices": null,
        "use_bdlora": null, "use_dora": false, "use_qalora": false, "use_rslora": false,
        "velora_config": null,
    });
    let mut changed = Changed::from("llama-all");
    for (key, value) in written.as_object().unwrap() {
        changed = changed.set(key, value.clone());
    }
    assert!(is_read(&changed));
}

#[test]
fn ways_to_begin_that_leave_the_base_as_it_was_are_taken() {
    for way in ["gaussian", "orthogonal", "eva", "mica", "MiCA"] {
        assert!(is_read(&Changed::from("llama-all").set("init_lora_weights", json!(way))), "{way}");
    }
    // As PEFT leaves it in what it saved for the base as it was.
    for key in ["corda_config", "lora_ga_config", "eva_config", "loftq_config"] {
        assert!(is_read(&Changed::from("llama-all").set(key, json!({"rho": 0.5}))), "{key}");
    }
}

#[test]
fn a_configuration_of_many_patterns_is_refused_before_they_are_compiled() {
    let many: serde_json::Map<String, Value> =
        (0..100).map(|at| (format!("(a{{{at}}}|b)"), json!(4))).collect();
    for (key, value, says) in [
        ("rank_pattern", Value::Object(many), "rank_pattern has 100 patterns"),
        ("target_modules", json!(vec!["a"; 5000]), "target_modules has 5000 entries"),
        ("modules_to_save", json!(vec!["a"; 100]), "modules_to_save has 100 entries"),
        ("exclude_modules", json!("(a{500}){500}"), "exclude_modules is '(a{500}){500}'"),
    ] {
        let refused = Changed::from("llama-all").set(key, value).unread();
        assert!(refused.contains(says), "{key}: {refused}");
    }
}

#[test]
fn tensors_that_do_not_belong_together_are_refused_by_name() {
    let llama = || Changed::from("llama-all");
    let q = "model.layers.1.self_attn.q_proj";
    for (changed, says) in [
        (
            llama().without(&format!("{q}.lora_B")),
            format!("'{q}' has 'base_model.model.{q}.lora_A.weight' and no B to it"),
        ),
        (llama().without(&format!("{q}.lora_A")), "and no A to it".into()),
        (
            llama().renamed("lora_A.weight", "lora_C.weight"),
            "is of no kind that an adapter has".into(),
        ),
        (
            llama().renamed(&format!("{q}.lora_B.weight"), &format!("{q}.bias")),
            "and no B to it".into(),
        ),
        (
            Changed::from("llama-head-saved").set("modules_to_save", json!(["lm_head"])),
            "modules_to_save does not name it".into(),
        ),
        (Changed::from("llama-bias").set("bias", json!("none")), "bias does not say so".into()),
        (
            Changed::from("llama-dora").set("use_dora", json!(false)),
            "and use_dora is not set".into(),
        ),
        (llama().set("r", json!(5)), "where the configuration asks for [5, ".into()),
        (
            llama().shaped(&format!("{q}.lora_B"), &[48, 3]),
            "has shape [48, 3] where the configuration asks for [48, 4]".into(),
        ),
        (
            llama().set("rank_pattern", json!({"layers.1.self_attn.q_proj": 2})),
            "has shape [4, 48] where the configuration asks for [2, 48]".into(),
        ),
    ] {
        let refused = changed.unread();
        assert!(refused.contains(&says), "{refused}");
    }
}

#[test]
fn a_head_that_its_base_cannot_carry_is_refused_with_what_to_do() {
    let classes = || Changed::from("bert-classifier");
    let nobodys =
        classes().set("task_type", json!(null)).set("modules_to_save", json!(["classifier"]));
    let halved = classes().shaped("classifier.weight", &[4, 32]).without("classifier.bias");
    for (refused, says) in [
        (nobodys.unfit("bert-plain"), "is of a head of the adapter's own, and its base has none"),
        (halved.unfit("bert-single-label"), "'classifier' is a head of its own, and has no bias"),
    ] {
        assert!(refused.contains(says), "{refused}");
    }
}

#[test]
fn what_does_not_fit_the_base_is_refused_with_both_shapes() {
    let llama = || Changed::from("llama-all");
    let q = "model.layers.1.self_attn.q_proj";
    for (changed, says) in [
        (
            llama().shaped(&format!("{q}.lora_A"), &[4, 47]),
            "has shape [4, 47] where the configuration asks for [4, 48]",
        ),
        (
            llama().shaped(&format!("{q}.lora_B"), &[50, 4]),
            "has shape [50, 4] where the configuration asks for [48, 4]",
        ),
        (
            llama().without(q),
            "target_modules names 'model.layers.1.self_attn.q_proj', and no tensor is for it",
        ),
        (
            Changed::from("llama-head-saved").shaped("lm_head", &[130, 48]),
            "has shape [130, 48] where the configuration asks for [128, 48]",
        ),
    ] {
        let refused = changed.unfit("llama-mha");
        assert!(refused.contains(says), "{refused}");
    }
    let [from, to] = ["layers.0.self_attn.q_proj", "layers.0.block_sparse_moe.experts.99.w1"];
    let expert = Changed::from("mixtral-attention")
        .set("target_modules", json!(["q_proj", "k_proj", "v_proj", "o_proj", "99.w1"]))
        .renamed(&format!("{from}.lora_A"), &format!("{to}.lora_A"))
        .renamed(&format!("{from}.lora_B"), &format!("{to}.lora_B"))
        .unfit("mixtral");
    assert!(expert.contains("experts.99.w1', and the base has no such module"), "{expert}");
    let missing = Changed::from("llama-all").unfit("phi3-window-partial");
    assert!(
        missing.contains("the base has no such module that an adapter can change"),
        "{missing}"
    );
}

fn unloaded(changed: &Changed, base: &str) -> String {
    let dir = changed.write();
    let base = open(base, &settings());
    let read = AdapterPlan::read(&read_local(dir.path()).unwrap()).unwrap();
    let loaded = load_adapter(&Folder::new(dir.path()), &read, &base.base, &Cancel::new());
    loaded.unwrap_err().to_string()
}

#[test]
fn numbers_that_are_not_finite_are_refused_by_name() {
    for number in [f32::NAN, f32::INFINITY] {
        let changed = Changed::from("llama-all").spoiled("layers.2.mlp.up_proj.lora_A", number);
        let refused = unloaded(&changed, "llama-mha");
        assert!(
            refused.contains("mlp.up_proj.lora_A.weight' has values that are not finite"),
            "{refused}"
        );
    }
}

#[test]
fn embeddings_that_are_not_the_base_s_are_refused() {
    let changed =
        Changed::from("llama-embeddings-tied").shaped("embed_tokens.base_layer.weight", &[256, 64]);
    let refused = unloaded(&changed, "llama-gqa-tied");
    assert!(refused.contains("holds other weights than the base"), "{refused}");
}

#[test]
fn an_adapter_without_its_files_is_refused_by_name() {
    let dir = Changed::from("llama-all").write();
    let from = dir.path().join("adapter_model.safetensors");
    std::fs::rename(&from, dir.path().join("adapter_model.bin")).unwrap();
    let refused = AdapterPlan::read(&read_local(dir.path()).unwrap()).unwrap_err().to_string();
    assert!(refused.contains("adapter_model.bin is not read: convert it to safetensors"));
    std::fs::remove_file(dir.path().join("adapter_config.json")).unwrap();
    let refused = AdapterPlan::read(&read_local(dir.path()).unwrap()).unwrap_err().to_string();
    assert_eq!(refused, "adapter_config.json: is not there, or too large");
}

#[test]
fn an_adapter_over_experts_has_all_that_it_says_or_none_of_them() {
    let all = || Changed::from("mixtral-all");
    let lacks = all().without("layers.1.block_sparse_moe.experts.2.w3").unfit("mixtral");
    let names = "'model.layers.1.block_sparse_moe.experts.2.w3', and no tensor is for it";
    assert!(lacks.contains(names), "{lacks}");
    let shaped = all().shaped("layers.0.block_sparse_moe.experts.0.w2.lora_B", &[33, 3]);
    assert!(shaped.unfit("mixtral").contains("has shape [33, 3]"));
    for spelt in ["layers.0.block_sparse_moe.experts.01.w1", "layers.00.block_sparse_moe.gate"] {
        let plain = spelt.replace("01.w1", "1.w1").replace("00.", "0.");
        let odd = ["A", "B"].into_iter().fold(all(), |it, part| {
            it.renamed(&format!("{plain}.lora_{part}"), &format!("{spelt}.lora_{part}"))
        });
        let refused = odd.unfit("mixtral");
        assert!(refused.contains("has no such module"), "{spelt}: {refused}");
    }
    // As trained where a layer's experts are one tensor: neither they nor routers are modules there.
    let dir = all().without("block_sparse_moe").write();
    let read = AdapterPlan::read(&read_local(dir.path()).unwrap()).unwrap();
    assert!(read.on(&plan("mixtral", &settings())).is_ok());
}
