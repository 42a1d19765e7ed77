"""Tiny encoders of every family, each with all of its heads in one checkpoint, and what transformers computes."""

import json
from pathlib import Path

import torch
import transformers
from safetensors.torch import load_file, save_file

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
    "encoder-electra": dict(seed=307, name="Electra", config=SHAPE | dict(embedding_size=16)),
}


def write_encoder_cases(root: Path) -> None:
    for folder, case in FAMILIES.items():
        write_family(fresh_folder(root / folder), folder, case)


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
    if name in ("encoder-bert", "encoder-electra"):
        items += [dict(ids=draw(14), second=6), dict(ids=draw(21), second=20)]
    return items


@torch.inference_mode()
def expected(head: str, model: torch.nn.Module, item: dict) -> dict:
    ids = torch.tensor([item["ids"]])
    types = {}
    if item["second"] is not None:
        types["token_type_ids"] = (torch.arange(ids.shape[1]) >= item["second"]).long().unsqueeze(0)
    output = model(input_ids=ids, attention_mask=torch.ones_like(ids), **types)
    few = ids.shape[1] <= 14
    places = sorted({0, ids.shape[1] // 2, ids.shape[1] - 1}, reverse=True)
    if head == "vectors":
        hidden = output.last_hidden_state[0]
        return item | dict(pooled=rounded(hidden.mean(dim=0))) | (dict(each=rounded(hidden)) if few else {})
    if head == "classes":
        return item | dict(pooled=rounded(output.logits[0]))
    if head == "places":
        both = torch.stack([output.start_logits[0], output.end_logits[0]], dim=1)
        return item | dict(each=rounded(both))
    if head == "words":
        return item | dict(places=places, at=rounded(output.logits[0][places]))
    return item | dict(each=rounded(output.logits[0]))
