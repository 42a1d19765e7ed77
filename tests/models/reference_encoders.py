"""Tiny encoders of every family, each with all of its heads in one checkpoint, and what transformers computes."""

import json
from pathlib import Path

import torch
import transformers
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

import reference_adapters
from reference_output import fresh_folder, randomise, rounded, write_json

VOCAB, HIDDEN, POSITIONS = 96, 32, 48
ENDS = {
    "vectors": "Model",
    "classes": "ForSequenceClassification",
    "token-classes": "ForTokenClassification",
    "words": "ForMaskedLM",
    "places": "ForQuestionAnswering",
}
SHAPE = dict(
    vocab_size=VOCAB, hidden_size=HIDDEN, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48,
    max_position_embeddings=POSITIONS,
)
# Two labels everywhere: heads of one name then have one shape.
FAMILIES = {
    "encoder-bert": dict(seed=301, name="Bert", config=SHAPE | dict(pad_token_id=0)),
    "encoder-roberta": dict(
        seed=302, name="Roberta",
        config=SHAPE | dict(max_position_embeddings=POSITIONS + 2, type_vocab_size=1, layer_norm_eps=1e-5),
    ),
    "encoder-xlm-roberta": dict(
        seed=303, name="XLMRoberta",
        config=SHAPE | dict(max_position_embeddings=POSITIONS + 4, type_vocab_size=1, pad_token_id=3),
    ),
    "encoder-distilbert": dict(
        seed=304, name="DistilBert",
        config=dict(
            vocab_size=VOCAB, dim=HIDDEN, hidden_dim=48, n_layers=2, n_heads=4, max_position_embeddings=POSITIONS,
        ),
    ),
    "encoder-mpnet": dict(
        seed=305, name="MPNet", config=SHAPE | dict(max_position_embeddings=POSITIONS + 2, layer_norm_eps=1e-5),
    ),
    "encoder-modernbert": dict(
        seed=306, name="ModernBert",
        config=SHAPE | dict(
            num_hidden_layers=4, global_attn_every_n_layers=3, local_attention=8, pad_token_id=0, cls_token_id=1,
            bos_token_id=1, sep_token_id=2, eos_token_id=2, reference_compile=False,
        ),
        changed=[("classes", dict(classifier_pooling="mean")), ("vectors", dict(local_rope_theta=None))],
    ),
    "encoder-deberta": dict(
        seed=308, name="DebertaV2",
        config=SHAPE | dict(
            relative_attention=True, share_att_key=True, pos_att_type=["p2c", "c2p"], position_buckets=8,
            max_relative_positions=-1, norm_rel_ebd="layer_norm", position_biased_input=False, type_vocab_size=0,
        ),
    ),
    "encoder-deberta-plain": dict(
        seed=309, name="DebertaV2",
        config=SHAPE | dict(
            relative_attention=True, share_att_key=True, pos_att_type="c2p|p2c", max_relative_positions=12,
            type_vocab_size=2, pooler_hidden_act="relu",
        ),
    ),
    "encoder-albert": dict(
        seed=310, name="Albert",
        config=SHAPE | dict(embedding_size=16, num_hidden_layers=4, num_hidden_groups=2, hidden_act="gelu_new"),
    ),
    "encoder-electra": dict(seed=307, name="Electra", config=SHAPE | dict(embedding_size=16)),
}

DECODER = dict(
    vocab_size=VOCAB, hidden_size=HIDDEN, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
    intermediate_size=48, max_position_embeddings=POSITIONS,
)
# Decoders that make vectors: with the modules of sentence-transformers around a language model, or bare.
EMBEDDERS = {
    "encoder-qwen3-last": dict(
        seed=321, name="Qwen3", architecture="Qwen3ForCausalLM", config=DECODER | dict(head_dim=16), pooling="lasttoken",
    ),
    "encoder-mistral-mean": dict(
        seed=322, name="Mistral", architecture="MistralModel", config=DECODER | dict(sliding_window=8), pooling=None,
    ),
    "encoder-llama-mean": dict(
        seed=323, name="Llama", architecture="LlamaModel", config=DECODER | dict(attention_bias=True), pooling="mean_tokens",
    ),
}

# Adapters for classifiers of families whose heads PEFT saves whole, and for a decoder that makes vectors.
ADAPTERS = {
    "roberta-classes": dict(
        base="encoder-roberta", seed=341, architecture="RobertaForSequenceClassification",
        config=dict(task_type="SEQ_CLS", r=4, lora_alpha=8, target_modules=["query", "value", "intermediate.dense"]),
    ),
    "distilbert-classes": dict(
        base="encoder-distilbert", seed=342, architecture="DistilBertForSequenceClassification",
        config=dict(
            r=3, lora_alpha=6, target_modules=["q_lin", "out_lin", "lin1"],
            modules_to_save=["pre_classifier", "classifier"],
        ),
    ),
    "modernbert-token-classes": dict(
        base="encoder-modernbert", seed=343, architecture="ModernBertForTokenClassification",
        config=dict(r=4, lora_alpha=4, target_modules=["Wqkv", "Wo", "Wi"], modules_to_save=["classifier"]),
    ),
    "mpnet-vectors": dict(
        base="encoder-mpnet", seed=344, architecture="MPNetModel",
        config=dict(r=2, lora_alpha=8, target_modules=["attn.q", "attn.o", "output.dense"]),
    ),
    "qwen3-vectors": dict(
        base="encoder-qwen3-last", seed=345, architecture="Qwen3Model",
        config=dict(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj", "down_proj"]),
    ),
}


def write_encoder_cases(root: Path) -> None:
    for folder, case in FAMILIES.items():
        write_family(fresh_folder(root / folder), folder, case)
    for folder, case in EMBEDDERS.items():
        write_embedder(fresh_folder(root / folder), folder, case)
    write_projected(fresh_folder(root / "encoder-bert-dense"))
    for folder, case in ADAPTERS.items():
        write_adapter(fresh_folder(root.parent / "encoder-adapters" / folder), root / case["base"], case)


def write_family(folder: Path, name: str, case: dict) -> None:
    config = getattr(transformers, case["name"] + "Config")(attn_implementation="eager", num_labels=2, **case["config"])
    tensors = write_checkpoint(folder, case, config)
    heads = []
    for head, changes in [*((head, {}) for head in ENDS), *case.get("changed", [])]:
        architecture = case["name"] + ENDS[head]
        changed = type(config)(**(config.to_dict() | changes), attn_implementation="eager")
        model = built(architecture, changed, tensors)
        results = [expected(head, model, item) for item in inputs(name)]
        heads.append(dict(head=head, architecture=architecture, changes=changes, inputs=results))
    write_json(folder / "expected.json", dict(case=name, seed=case["seed"], heads=heads))


def write_embedder(folder: Path, name: str, case: dict) -> None:
    config = getattr(transformers, case["name"] + "Config")(attn_implementation="eager", **case["config"])
    model = getattr(transformers, case["architecture"])(config).eval()
    randomise(model, case["seed"], spread=0.2)
    model.save_pretrained(folder)
    if case["pooling"]:
        write_modules(folder, case["pooling"])
    bare = model if case["architecture"].endswith("Model") else model.model
    last = case["pooling"] == "lasttoken"
    results = [expected("vectors", bare, item, last) for item in inputs(name)]
    head = dict(head="vectors", architecture=case["architecture"], changes={}, inputs=results)
    write_json(folder / "expected.json", dict(case=name, seed=case["seed"], heads=[head]))


def write_projected(folder: Path) -> None:
    """Two projections behind the pooling, one of them bent."""
    config = transformers.BertConfig(attn_implementation="eager", **SHAPE)
    model = transformers.BertModel(config, add_pooling_layer=False).eval()
    first, second = torch.nn.Linear(HIDDEN, 24), torch.nn.Linear(24, 16, bias=False)
    randomise(model, 331, spread=0.2)
    randomise(first, 332, spread=0.2)
    randomise(second, 333, spread=0.2)
    model.save_pretrained(folder)
    write_modules(folder, "mean_tokens", [("2_Dense", "Dense"), ("3_Dense", "Dense"), ("4_Normalize", "Normalize")])
    for path, linear, activation in (("2_Dense", first, "activation.Tanh"), ("3_Dense", second, "linear.Identity")):
        (folder / path).mkdir()
        shape = dict(in_features=linear.in_features, out_features=linear.out_features, bias=linear.bias is not None)
        write_json(folder / path / "config.json", shape | dict(activation_function=f"torch.nn.modules.{activation}"))
        save_file({f"linear.{name}": tensor.detach() for name, tensor in linear.named_parameters()}, folder / path / "model.safetensors")
    results = []
    for item in inputs("encoder-bert-dense"):
        with torch.inference_mode():
            pooled = model(torch.tensor([item["ids"]])).last_hidden_state[0].mean(dim=0)
            results.append(item | dict(pooled=rounded(second(first(pooled).tanh()))))
    head = dict(head="vectors", architecture="BertModel", changes={}, inputs=results)
    write_json(folder / "expected.json", dict(case="encoder-bert-dense", seed=331, heads=[head]))


def write_adapter(folder: Path, base: Path, case: dict) -> None:
    config = transformers.AutoConfig.from_pretrained(base, attn_implementation="eager", num_labels=2)
    model = built(case["architecture"], config, load_file(base / "model.safetensors"))
    head = next(head for head, end in ENDS.items() if case["architecture"].endswith(end))
    last = case["base"].endswith("last")
    plain = [expected(head, model, item, last) for item in inputs(case["base"])]
    adapted = get_peft_model(model, LoraConfig(**case["config"])).eval()
    reference_adapters.randomise(adapted, case["seed"], torch.float32)
    adapted.peft_config["default"].base_model_name_or_path = case["base"]
    adapted.save_pretrained(folder, save_embedding_layers=False)
    (folder / "README.md").unlink(missing_ok=True)
    results = [expected(head, adapted, item, last) for item in inputs(case["base"])]
    assert results != plain
    write_json(
        folder / "expected.json",
        dict(base=case["base"], head=head, architecture=case["architecture"], changes={}, inputs=results),
    )


def write_modules(folder: Path, pooling: str, more=(("2_Normalize", "Normalize"),)) -> None:
    kinds = [("", "Transformer"), ("1_Pooling", "Pooling"), *more]
    modules = [
        dict(idx=index, name=str(index), path=path, type=f"sentence_transformers.models.{kind}")
        for index, (path, kind) in enumerate(kinds)
    ]
    write_json(folder / "modules.json", modules)
    (folder / "1_Pooling").mkdir()
    modes = ("cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens", "weightedmean_tokens", "lasttoken")
    config = dict(word_embedding_dimension=HIDDEN) | {f"pooling_mode_{mode}": mode == pooling for mode in modes}
    write_json(folder / "1_Pooling/config.json", config | dict(include_prompt=True))


def write_checkpoint(folder: Path, case: dict, config) -> dict:
    """All heads' tensors in one file, under the names that `save_pretrained` gives them; the encoder's once."""
    tensors = {}
    for index, end in enumerate(("ForMaskedLM", "ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering")):
        model = getattr(transformers, case["name"] + end)(config)
        randomise(model, case["seed"] + 1000 * index, spread=0.2)
        model.save_pretrained(folder)
        tensors = load_file(folder / "model.safetensors") | tensors
    save_file(tensors, folder / "model.safetensors", metadata=dict(format="pt"))
    config.architectures = [case["name"] + "Model"]
    config.save_pretrained(folder)
    return tensors


def built(architecture: str, config, tensors: dict) -> torch.nn.Module:
    """The model with these tensors: every one of its own is among them, but for an unused pooler's."""
    model = getattr(transformers, architecture)(config).eval()
    prefix = "" if not architecture.endswith("Model") else model.base_model_prefix + "."
    missing, _ = model.load_state_dict(
        {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}, strict=False
    )
    model.tie_weights()
    tied = ("decoder.weight", "decoder.bias", "projector.weight", "lm_head.weight", "position_ids")
    unknown = [name for name in missing if "pooler" not in name and not name.endswith(tied)]
    assert not unknown, (architecture, unknown)
    return model


def inputs(name: str) -> list[dict]:
    """Ragged lengths, a token that pads elsewhere, and pairs where the family tells texts apart."""
    generator = torch.Generator().manual_seed(7)
    draw = lambda count: torch.randint(5, VOCAB, (count,), generator=generator).tolist()  # noqa: E731
    items = [dict(ids=draw(count), second=None) for count in (1, 2, 9, 17, 33, POSITIONS)]
    items[3]["ids"][4:6] = [1, 3]
    if name in ("encoder-bert", "encoder-deberta-plain", "encoder-electra", "encoder-albert"):
        items += [dict(ids=draw(14), second=6), dict(ids=draw(21), second=20)]
    return items


@torch.inference_mode()
def expected(head: str, model: torch.nn.Module, item: dict, last: bool = False) -> dict:
    ids = torch.tensor([item["ids"]])
    types = {}
    if item["second"] is not None:
        types["token_type_ids"] = (torch.arange(ids.shape[1]) >= item["second"]).long().unsqueeze(0)
    output = model(input_ids=ids, attention_mask=torch.ones_like(ids), **types)
    few = ids.shape[1] <= 14
    places = sorted({0, ids.shape[1] // 2, ids.shape[1] - 1}, reverse=True)
    if head == "vectors":
        hidden = output.last_hidden_state[0]
        return item | dict(pooled=rounded(hidden[-1] if last else hidden.mean(dim=0))) | (dict(each=rounded(hidden)) if few else {})
    if head == "classes":
        return item | dict(pooled=rounded(output.logits[0]))
    if head == "places":
        both = torch.stack([output.start_logits[0], output.end_logits[0]], dim=1)
        return item | dict(each=rounded(both))
    if head == "words":
        return item | dict(places=places, at=rounded(output.logits[0][places]))
    return item | dict(each=rounded(output.logits[0]))
