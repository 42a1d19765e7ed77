"""A tiny gpt-oss whose experts are in MXFP4 as they are published, and what transformers computes from it."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import GptOssConfig, GptOssForCausalLM
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from reference_families import GPT_OSS, OSS_LARGER
from reference_llama import expected
from reference_output import fresh_folder, randomise, write_json

NAME = "mxfp4-gpt-oss"
SEED = 624
# The least exponents of scales, with which numbers have about the spread of the other case's weights.
EXPONENTS = {"gate_up_proj": 122, "down_proj": 117}
# Exponents of which all numbers are told: below what is normal in f32, one, and the largest.
CORNERS = [0, 1, 2, 126, 127, 128, 252]


def write_mxfp4_case(root: Path) -> None:
    folder = fresh_folder(root / NAME)
    config = GptOssConfig(
        bos_token_id=1, eos_token_id=2, attn_implementation="eager", max_position_embeddings=128, **GPT_OSS,
    )
    model = GptOssForCausalLM(config).eval()
    stored = randomised(model)
    save_file({name: tensor.contiguous() for name, tensor in stored.items()}, folder / "model.safetensors")
    keys = config.to_diff_dict() | dict(
        architectures=["GptOssForCausalLM"], dtype="bfloat16",
        quantization_config=dict(
            quant_method="mxfp4",
            modules_to_not_convert=[
                "model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens", "lm_head",
            ],
        ),
    )
    (folder / "config.json").write_text(json.dumps(keys, indent=2, sort_keys=True) + "\n")
    write_json(folder / "expected.json", expected(model, NAME, SEED) | dict(kind="decoder"))
    write_json(folder / "numbers.json", numbers())


def randomised(model: GptOssForCausalLM) -> dict:
    """Draws the model's parameters anew, and says how they are stored."""
    randomise(model, SEED, spread=0.2)
    generator = torch.Generator().manual_seed(SEED)
    stored = {name: parameter.to(torch.bfloat16) for name, parameter in model.state_dict().items()}
    meant = {}
    for name in list(stored):
        kind = name.rsplit(".", 1)[1]
        if name.endswith("router.weight"):
            stored[name] *= OSS_LARGER["router.weight"]
        if kind not in EXPONENTS:
            meant[name] = stored[name]
            continue
        experts, inputs, outputs = stored.pop(name).shape
        shape = (experts, outputs, inputs // 32)
        blocks = torch.randint(0, 256, (*shape, 16), dtype=torch.uint8, generator=generator)
        scales = torch.randint(0, 3, shape, dtype=torch.uint8, generator=generator) + EXPONENTS[kind]
        stored |= {f"{name}_blocks": blocks, f"{name}_scales": scales}
        meant[name] = convert_moe_packed_tensors(blocks, scales)
    model.load_state_dict({name: parameter.float() for name, parameter in meant.items()})
    return stored


def numbers() -> dict:
    """Blocks of all sixteen numbers under each of some scales, and the bits of what they are in f32."""
    pairs = [low | (15 - low) << 4 for low in range(16)]
    blocks = torch.tensor(pairs, dtype=torch.uint8).repeat(1, len(CORNERS), 1, 1)
    scales = torch.tensor(CORNERS, dtype=torch.uint8).reshape(1, -1, 1)
    wide = convert_moe_packed_tensors(blocks, scales)[0].T.float().contiguous()
    return dict(pairs=pairs, exponents=CORNERS, bits=wide.view(torch.int32).tolist())
