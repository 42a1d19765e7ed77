"""Tiny LoRA adapters on the tiny bases, and what transformers computes from the merged weights."""

import copy
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from reference_llama import logits
from reference_output import fresh_folder, rounded, write_json

PROMPT_LENGTHS = (1, 5, 19)
GREEDY_TOKENS = 12
ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]

# Every case: the base's folder, what PEFT is asked for, and how the file differs from what PEFT writes.
CASES = {
    "llama-all": dict(base="llama-mha", seed=301, config=dict(r=4, lora_alpha=6, target_modules=ALL)),
    "llama-qv": dict(base="llama-mha", seed=302, config=dict(r=2, lora_alpha=8, target_modules=["q_proj", "v_proj"])),
    "llama-patterns": dict(
        base="llama-mha", seed=303,
        config=dict(
            r=4, lora_alpha=8, target_modules=r".*\.(q_proj|k_proj|up_proj|down_proj)",
            rank_pattern={"layers.1.self_attn.q_proj": 7, r".*\.2\..*up_proj": 1, "k_proj": 16},
            alpha_pattern={"down_proj": 3, "layers.0.self_attn.q_proj": 20},
        ),
    ),
    "llama-layers": dict(
        base="llama-mha", seed=304,
        config=dict(
            r=3, lora_alpha=5, target_modules=ALL, exclude_modules=["up_proj"], layers_to_transform=[0, 2],
            layers_pattern="layers",
        ),
    ),
    "llama-rslora-default-names": dict(
        base="llama-mha", seed=305, named=True,
        config=dict(r=9, lora_alpha=4, use_rslora=True, target_modules="all-linear"),
    ),
    "llama-dora": dict(
        base="llama-mha", seed=306, config=dict(r=4, lora_alpha=8, use_dora=True, target_modules=ALL),
    ),
    "llama-head-saved": dict(
        base="llama-mha", seed=307,
        config=dict(r=2, lora_alpha=4, target_modules=["q_proj", "o_proj"], modules_to_save=["lm_head", "embed_tokens"]),
    ),
    "llama-embeddings-tied": dict(
        base="llama-gqa-tied", seed=308, unmerged=True,
        config=dict(r=3, lora_alpha=6, target_modules=["embed_tokens", "q_proj", "lm_head"]),
    ),
    "llama-bf16": dict(
        base="llama-gqa-tied", seed=309, dtype=torch.bfloat16, config=dict(r=4, lora_alpha=8, target_modules=ALL),
    ),
    "llama-f16": dict(
        base="llama-gqa-tied", seed=310, dtype=torch.float16, config=dict(r=5, lora_alpha=8, target_modules=ALL),
    ),
    "llama-bias": dict(
        base="llama-biases", seed=311,
        config=dict(r=2, lora_alpha=4, target_modules=["q_proj", "down_proj"], bias="all"),
    ),
    "llama-lora-bias": dict(
        base="llama-biases", seed=312,
        config=dict(r=2, lora_alpha=4, target_modules=["v_proj", "up_proj"], bias="lora_only", lora_bias=True),
    ),
    "qwen2-all": dict(base="qwen2-biases", seed=313, config=dict(r=4, lora_alpha=8, target_modules=ALL)),
    "phi3-fused": dict(
        base="phi3-window-partial", seed=314,
        config=dict(r=4, lora_alpha=8, target_modules=["qkv_proj", "o_proj", "gate_up_proj", "down_proj"]),
    ),
    "gpt2-conv": dict(
        base="gpt2", seed=315,
        config=dict(r=4, lora_alpha=8, target_modules=["c_attn", "c_proj", "c_fc"], fan_in_fan_out=True, bias="all"),
    ),
    "gpt2-dora": dict(
        base="gpt2", seed=316,
        config=dict(r=2, lora_alpha=4, target_modules=["c_attn", "c_fc"], fan_in_fan_out=True, use_dora=True),
    ),
    "gpt-neox": dict(
        base="gpt-neox-parallel", seed=317,
        config=dict(r=4, lora_alpha=8, target_modules=["query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"]),
    ),
    "mixtral-attention": dict(
        base="mixtral", seed=321, config=dict(r=4, lora_alpha=8, target_modules=["q_proj", "k_proj", "v_proj", "o_proj"]),
    ),
    "mixtral-all": dict(base="mixtral", seed=322, config=dict(r=3, lora_alpha=6, target_modules="all-linear")),
    "qwen2-moe-all": dict(
        base="qwen2-moe-shared", seed=323, config=dict(r=2, lora_alpha=4, target_modules="all-linear"),
    ),
    "qwen3-moe-experts": dict(
        base="qwen3-moe-dense-layer", seed=324,
        config=dict(r=2, lora_alpha=4, use_rslora=True, target_modules=["gate_proj", "up_proj", "down_proj", "q_proj"]),
    ),
    "olmoe-all": dict(base="olmoe-limits", seed=325, config=dict(r=2, lora_alpha=4, target_modules="all-linear")),
    "opt-biases": dict(
        base="opt", seed=341,
        config=dict(r=4, lora_alpha=8, target_modules=["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"], bias="all"),
    ),
    "phi-biases": dict(
        base="phi", seed=342,
        config=dict(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj", "dense", "fc1", "fc2", "lm_head"], bias="all"),
    ),
    "falcon-grouped": dict(
        base="falcon-grouped", seed=343,
        config=dict(r=4, lora_alpha=8, target_modules=["query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"]),
    ),
    "olmo2-all": dict(base="olmo2", seed=344, config=dict(r=4, lora_alpha=8, target_modules=ALL)),
    "glm4-fused": dict(
        base="glm4", seed=345,
        config=dict(r=4, lora_alpha=8, target_modules=["q_proj", "k_proj", "o_proj", "gate_up_proj", "down_proj"]),
    ),
    "gemma3-images": dict(
        base="gemma3-images", seed=346,
        config=dict(r=4, lora_alpha=8, target_modules=r".*language_model.*\.(q_proj|k_proj|o_proj|up_proj|down_proj)"),
    ),
    "bert-classifier": dict(
        base="bert-single-label", seed=318, classifies=True,
        config=dict(r=4, lora_alpha=8, target_modules=["query", "value", "dense"], task_type="SEQ_CLS"),
    ),
    "bert-biases": dict(
        base="bert-single-label", seed=319, classifies=True,
        config=dict(r=2, lora_alpha=2, target_modules=["query", "key"], bias="all"),
    ),
    "bert-words": dict(
        base="bert-single-label", seed=320, classifies=True,
        config=dict(r=2, lora_alpha=2, target_modules=["word_embeddings", "intermediate.dense"]),
    ),
}
# Different adapters for one base, to share a step.
EIGHT = [
    dict(r=1 + index * 2, lora_alpha=4 + index, target_modules=ALL if index % 2 else ["q_proj", "v_proj", "down_proj"])
    for index in range(8)
]


def write_adapter_cases(root: Path, bases: Path) -> None:
    cases = dict(CASES)
    for index, config in enumerate(EIGHT):
        cases[f"eight-{index}"] = dict(base="llama-mha", seed=331 + index, config=config)
    for name, case in cases.items():
        write_case(fresh_folder(root / name), bases, name, case)


def load_base(folder: Path, classifies: bool):
    kind = AutoModelForSequenceClassification if classifies else AutoModelForCausalLM
    return kind.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()


def write_case(folder: Path, bases: Path, name: str, case: dict) -> None:
    classifies = case.get("classifies", False)
    base = bases / case["base"]
    model = get_peft_model(load_base(base, classifies), LoraConfig(**case["config"])).eval()
    randomise(model, case["seed"], case.get("dtype", torch.float32))
    model.peft_config["default"].base_model_name_or_path = case["base"]
    # Without it PEFT asks the hub about a base of that name.
    save_embeddings = any("embed" in module for module in case["config"]["target_modules"])
    model.save_pretrained(folder, save_embedding_layers=save_embeddings)
    (folder / "README.md").unlink(missing_ok=True)
    if "dtype" in case:
        convert(folder, case["dtype"])
    # The reference is what the stored weights mean: read back and merged.
    model = PeftModel.from_pretrained(load_base(base, classifies), folder).eval()
    reference = copy.deepcopy(model).merge_and_unload(safe_merge=True).eval()
    # With tied weights, merging one of the two changes both: then PEFT's own forward is what is meant.
    reference = model if case.get("unmerged") else reference
    write = expected_classes if classifies else expected_text
    content = write(reference, case["seed"], load_base(base, classifies))
    if case.get("named"):
        name_default(folder)
    write_json(folder / "expected.json", dict(case=name, base=case["base"], seed=case["seed"], **content))


def randomise(model, seed: int, dtype: torch.dtype) -> None:
    """Trains nothing: draws every parameter that would be trained."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not parameter.requires_grad:
                continue
            noise = torch.randn(parameter.shape, generator=generator)
            if "magnitude" in name:
                parameter.mul_(1.0 + 0.2 * noise)
            elif "bias" in name:
                parameter.copy_(0.2 * noise)
            else:
                parameter.copy_((0.15 * noise).to(dtype).float())


def name_default(folder: Path) -> None:
    """Names as a training loop that saves the state itself leaves them: no prefix, the adapter's name inside.

    PEFT itself does not find those: the reference was computed before.
    """
    from safetensors.torch import load_file, save_file

    path = folder / "adapter_model.safetensors"
    named = {
        key.removeprefix("base_model.model.").replace(".weight", ".default.weight"): value
        for key, value in load_file(path).items()
    }
    save_file(named, path)


def convert(folder: Path, dtype: torch.dtype) -> None:
    from safetensors.torch import load_file, save_file

    path = folder / "adapter_model.safetensors"
    save_file({key: value.to(dtype) for key, value in load_file(path).items()}, path)


def expected_text(model, seed: int, base) -> dict:
    generator = torch.Generator().manual_seed(seed)
    vocab = base.config.get_text_config().vocab_size
    answers = []
    for length in PROMPT_LENGTHS:
        ids = torch.randint(0, vocab, (length,), generator=generator).tolist()
        last = logits(model, ids)[-1]
        tokens, margins = greedy(model, ids)
        answer = dict(ids=ids, last_logits=rounded(last), greedy=dict(ids=tokens, margins=rounded(margins)))
        # How far the adapter moves the base: a forgotten one shows.
        answer["moved"] = rounded((last - logits(base, ids)[-1]).abs().max().item())
        answers.append(answer)
    return dict(prompts=answers)


@torch.inference_mode()
def greedy(model, prompt: list[int]) -> tuple[list[int], list[float]]:
    ids = list(prompt)
    margins = []
    for _ in range(GREEDY_TOKENS):
        best = logits(model, ids)[-1].topk(2)
        ids.append(best.indices[0].item())
        margins.append((best.values[0] - best.values[1]).item())
    return ids[len(prompt):], margins


@torch.inference_mode()
def expected_classes(model, seed: int, base) -> dict:
    generator = torch.Generator().manual_seed(seed)
    inputs = []
    for length in (1, 6, 30):
        ids = torch.randint(0, base.config.vocab_size, (length,), generator=generator).tolist()
        tensor = torch.tensor([ids])
        mask = torch.ones_like(tensor)
        got = model(input_ids=tensor, attention_mask=mask).logits[0]
        plain = base(input_ids=tensor, attention_mask=mask).logits[0]
        inputs.append(dict(ids=ids, logits=rounded(got), moved=rounded((got - plain).abs().max().item())))
    return dict(inputs=inputs)
