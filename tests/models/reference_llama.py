"""Tiny Llama checkpoints and what transformers computes from them."""

import copy
import json
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from reference_output import fresh_folder, randomise, rounded, write_json

PROMPT_LENGTHS = (1, 2, 7, 17, 40)
EVERY_POSITION_PROMPT = 2
GREEDY_TOKENS = 24

# Every case: how the configuration differs, the dtype on disk, and the shard size where it is sharded.
CASES = {
    "llama-mha": dict(
        seed=101,
        config=dict(
            vocab_size=128, hidden_size=48, intermediate_size=96, num_hidden_layers=3, num_attention_heads=4,
            num_key_value_heads=4, rope_theta=10000.0, rms_norm_eps=1e-5, tie_word_embeddings=False,
        ),
    ),
    "llama-gqa-tied": dict(
        seed=102,
        config=dict(
            vocab_size=256, hidden_size=64, intermediate_size=112, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, rope_theta=500000.0, rms_norm_eps=1e-6, tie_word_embeddings=True,
        ),
    ),
    # Head size 32 and theta 10000 give wavelengths 6.3, 11.2 | 19.9, 35.3, 62.8 | 112, ...; the bounds
    # of the bands are 64 / 4 = 16 and 64 / 1 = 64, so each band holds at least two frequencies.
    "llama-rope-llama3": dict(
        seed=103,
        config=dict(
            vocab_size=200, hidden_size=40, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, head_dim=32, rope_theta=10000.0, rms_norm_eps=1e-5, tie_word_embeddings=True,
            rope_scaling=dict(
                rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
                original_max_position_embeddings=64,
            ),
        ),
    ),
    "llama-bf16": dict(
        seed=104,
        dtype=torch.bfloat16,
        config=dict(
            vocab_size=160, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=8,
            num_key_value_heads=2, rope_theta=10000.0, rms_norm_eps=1e-5, tie_word_embeddings=True,
        ),
    ),
    "llama-f16": dict(
        seed=105,
        dtype=torch.float16,
        config=dict(
            vocab_size=512, hidden_size=32, intermediate_size=80, num_hidden_layers=4, num_attention_heads=2,
            num_key_value_heads=1, rope_theta=100000.0, rms_norm_eps=1e-5, tie_word_embeddings=True,
        ),
    ),
    "llama-sharded": dict(
        seed=106,
        max_shard_size="60KB",
        config=dict(
            vocab_size=144, hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4,
            num_key_value_heads=2, rope_theta=10000.0, rms_norm_eps=1e-5, tie_word_embeddings=False,
        ),
    ),
    "llama-biases": dict(
        seed=107,
        config=dict(
            vocab_size=176, hidden_size=48, intermediate_size=72, num_hidden_layers=2, num_attention_heads=6,
            num_key_value_heads=3, rope_theta=25000.0, rms_norm_eps=1e-5, tie_word_embeddings=False,
            attention_bias=True, mlp_bias=True,
        ),
    ),
}


def write_llama_cases(root: Path) -> None:
    for name, case in CASES.items():
        write_case(fresh_folder(root / name), name, case)


def write_case(folder: Path, name: str, case: dict) -> None:
    config = LlamaConfig(
        max_position_embeddings=128, bos_token_id=1, eos_token_id=2, pad_token_id=None,
        attn_implementation="eager", **case["config"],
    )
    dtype = case.get("dtype", torch.float32)
    model = LlamaForCausalLM(config).eval()
    randomise(model, case["seed"], spread=0.2)
    model = model.to(dtype)
    model.config.dtype = dtype
    model.save_pretrained(folder, max_shard_size=case.get("max_shard_size", "10GB"))
    # The reference is what the stored weights mean, computed in f32.
    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    write_json(folder / "expected.json", expected(model, name, case["seed"]))
    if "rope_scaling" in case["config"]:
        write_newer_config(folder)


def write_newer_config(folder: Path) -> None:
    """`config-v5.json`: the same configuration as transformers 5 writes it, with all of rope in one object."""
    config = json.loads((folder / "config.json").read_text())
    config["rope_parameters"] = config.pop("rope_scaling") | dict(rope_theta=config.pop("rope_theta"))
    config["transformers_version"] = "5.23.0"
    (folder / "config-v5.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def expected(model: PreTrainedModel, name: str, seed: int, lengths=PROMPT_LENGTHS) -> dict:
    generator = torch.Generator().manual_seed(seed)
    vocab = model.config.get_text_config().vocab_size
    prompts = [torch.randint(0, vocab, (length,), generator=generator).tolist() for length in lengths]
    double = copy.deepcopy(model).double()
    answers = []
    for ids in prompts:
        last = logits(model, ids)[-1]
        tokens, margins = greedy(model, ids)
        answers.append(dict(ids=ids, last_logits=rounded(last), greedy=dict(ids=tokens, margins=rounded(margins))))
    every = prompts[EVERY_POSITION_PROMPT]
    longest = prompts[-1]
    return dict(
        case=name,
        kind="llama",
        seed=seed,
        compute_dtype="f32",
        float64_deviation=rounded((logits(model, longest).double() - logits(double, longest)).abs().max().item()),
        prompts=answers,
        every_position=dict(prompt=EVERY_POSITION_PROMPT, logits=rounded(logits(model, every))),
    )


@torch.inference_mode()
def logits(model: PreTrainedModel, ids: list[int]) -> torch.Tensor:
    return model(input_ids=torch.tensor([ids]), use_cache=False).logits[0]  # [seq, vocab]


def greedy(model: PreTrainedModel, prompt: list[int]) -> tuple[list[int], list[float]]:
    """The most likely continuation, each step computed from scratch, and each step's lead over the runner-up."""
    ids = list(prompt)
    margins = []
    for _ in range(GREEDY_TOKENS):
        best = logits(model, ids)[-1].topk(2)
        ids.append(best.indices[0].item())
        margins.append((best.values[0] - best.values[1]).item())
    return ids[len(prompt):], margins
