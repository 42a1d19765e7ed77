"""A seeded decoder of the shape of SmolLM2-135M and adapters of it in three shapes.

    python make.py FOLDER [--quick]

`base` is 30 layers of hidden size 576, in bfloat16. Adapters lie in `all16` (rank 16 on all seven
projections), `qv16` and `qv4` (ranks 16 and 4 on queries and values), named by number. Those of one
shape share CONTENTS weight files by hard links, so that ten thousand fit a small disk; a server
holds each in memory for itself. Standard library only.
"""

import json
import os
import pathlib
import random
import struct
import sys

HIDDEN, INNER, LAYERS, HEADS, KV_HEADS, VOCAB = 576, 1536, 30, 9, 3, 49152
KV = HIDDEN // HEADS * KV_HEADS
CONTENTS = 8
# Modules with their outputs and inputs.
MODULES = {
    "self_attn.q_proj": (HIDDEN, HIDDEN), "self_attn.k_proj": (KV, HIDDEN),
    "self_attn.v_proj": (KV, HIDDEN), "self_attn.o_proj": (HIDDEN, HIDDEN),
    "mlp.gate_proj": (INNER, HIDDEN), "mlp.up_proj": (INNER, HIDDEN), "mlp.down_proj": (HIDDEN, INNER),
}
QUERIES_AND_VALUES = ["self_attn.q_proj", "self_attn.v_proj"]
# Shapes with their rank, modules, and how many there are: at most, and for a quick run.
SHAPES = {
    "all16": (16, list(MODULES), 1000, 8),
    "qv16": (16, QUERIES_AND_VALUES, 1000, 8),
    "qv4": (4, QUERIES_AND_VALUES, 10_000, 64),
}
# The upper byte of a bfloat16 of either sign between 1/128 and 1/32.
UPPER = bytes(0x3C if byte < 128 else 0xBC for byte in range(256))


def noise(count, dice):
    out = bytearray(2 * count)
    out[0::2] = dice.randbytes(count)
    out[1::2] = dice.randbytes(count).translate(UPPER)
    return bytes(out)


def save(path, tensors):
    """Writes tensors, each a name, a shape and its bytes, as safetensors."""
    header, at = {}, 0
    for name, shape, data in tensors:
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [at, at + len(data)]}
        at += len(data)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for _, _, data in tensors:
            file.write(data)


def base(folder):
    folder.mkdir()
    dice = random.Random(1)
    tensors = [("model.embed_tokens.weight", [VOCAB, HIDDEN], noise(VOCAB * HIDDEN, dice))]
    ones = struct.pack("<H", 0x3F80) * HIDDEN
    for layer in range(LAYERS):
        name = f"model.layers.{layer}."
        for module, (out, into) in MODULES.items():
            tensors.append((f"{name}{module}.weight", [out, into], noise(out * into, dice)))
        for norm in ("input_layernorm", "post_attention_layernorm"):
            tensors.append((f"{name}{norm}.weight", [HIDDEN], ones))
    tensors.append(("model.norm.weight", [HIDDEN], ones))
    save(folder / "model.safetensors", tensors)
    (folder / "config.json").write_text(json.dumps({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": HIDDEN,
        "intermediate_size": INNER, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS, "vocab_size": VOCAB, "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-5, "rope_theta": 100000.0, "tie_word_embeddings": True,
        "hidden_act": "silu", "bos_token_id": 0, "eos_token_id": 1, "torch_dtype": "bfloat16",
    }))
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer()))


def tokenizer():
    """One token per byte, in the byte-level alphabet."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = iter(range(0x100, 0x200))
    chars = [chr(byte) if byte in printable else chr(next(others)) for byte in range(256)]
    vocab = {"<s>": 0, "</s>": 1} | {char: at + 2 for at, char in enumerate(chars)}
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    return {"version": "1.0", "truncation": None, "padding": None, "added_tokens": [],
            "normalizer": None, "pre_tokenizer": level, "post_processor": None, "decoder": level,
            "model": {"type": "BPE", "dropout": None, "unk_token": None, "fuse_unk": False,
                      "continuing_subword_prefix": None, "end_of_word_suffix": None,
                      "byte_fallback": False, "vocab": vocab, "merges": []}}


def adapters(folder, rank, modules, count, seed):
    contents = []
    for content in range(min(CONTENTS, count)):
        dice, tensors = random.Random(seed + content), []
        for layer in range(LAYERS):
            for module in modules:
                out, into = MODULES[module]
                name = f"base_model.model.model.layers.{layer}.{module}"
                tensors.append((f"{name}.lora_A.weight", [rank, into], noise(rank * into, dice)))
                tensors.append((f"{name}.lora_B.weight", [out, rank], noise(out * rank, dice)))
        path = folder / f".content-{content}"
        folder.mkdir(exist_ok=True)
        save(path, tensors)
        contents.append(path)
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": "base",
              "r": rank, "lora_alpha": 1, "bias": "none",
              "target_modules": sorted(module.split(".")[1] for module in modules)}
    for number in range(count):
        target = folder / str(number)
        target.mkdir()
        (target / "adapter_config.json").write_text(json.dumps(config))
        os.link(contents[number % len(contents)], target / "adapter_model.safetensors")
    for path in contents:
        path.unlink()


def main():
    store, quick = pathlib.Path(sys.argv[1]), "--quick" in sys.argv[2:]
    store.mkdir(parents=True)
    base(store / "base")
    for seed, (shape, (rank, modules, most, few)) in enumerate(SHAPES.items()):
        adapters(store / shape, rank, modules, few if quick else most, 1000 * (seed + 1))


if __name__ == "__main__":
    main()
