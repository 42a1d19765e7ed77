"""Makes the checkpoints of the cold loads: Llamas with random weights, 500 MB in f32 and in bf16,
2 GB in f32, a small one that others can push out, and an archive of the first.

    python loadtest/coldload/make_models.py OUT

Needs numpy. The tensors lie in the order in which `save_pretrained` writes them.
"""

import json
import os
import sys
import tarfile

import numpy as np

OUT = sys.argv[1]
VOCAB = 258


def tokenizer():
    """Bytes as tokens, so that its reading takes no part in the times."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    chars = {byte: chr(byte) for byte in printable}
    chars |= {byte: chr(256 + at) for at, byte in enumerate(others)}
    vocab = {chars[byte]: byte for byte in range(256)} | {"<s>": 256, "</s>": 257}
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    special = [
        {"id": at, "content": name, "single_word": False, "lstrip": False, "rstrip": False,
         "normalized": False, "special": True}
        for name, at in [("<s>", 256), ("</s>", 257)]
    ]
    return {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": special,
        "normalizer": None, "pre_tokenizer": level, "post_processor": None, "decoder": level,
        "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
                  "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False,
                  "vocab": vocab, "merges": []},
    }


def tensors(hidden, inner, layers):
    shapes = {"model.embed_tokens.weight": (VOCAB, hidden), "model.norm.weight": (hidden,)}
    for layer in range(layers):
        name = f"model.layers.{layer}"
        for part in ["q_proj", "k_proj", "v_proj", "o_proj"]:
            shapes[f"{name}.self_attn.{part}.weight"] = (hidden, hidden)
        shapes[f"{name}.mlp.gate_proj.weight"] = (inner, hidden)
        shapes[f"{name}.mlp.up_proj.weight"] = (inner, hidden)
        shapes[f"{name}.mlp.down_proj.weight"] = (hidden, inner)
        for part in ["input_layernorm", "post_attention_layernorm"]:
            shapes[f"{name}.{part}.weight"] = (hidden,)
    return dict(sorted(shapes.items()))


def llama(name, dtype, hidden, inner, layers, seed):
    folder = os.path.join(OUT, name)
    os.makedirs(folder, exist_ok=True)
    width = {"F32": 4, "BF16": 2}[dtype]
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": hidden,
        "intermediate_size": inner, "num_hidden_layers": layers, "num_attention_heads": hidden // 64,
        "num_key_value_heads": hidden // 64, "vocab_size": VOCAB, "max_position_embeddings": 512,
        "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": True,
        "hidden_act": "silu", "bos_token_id": 256, "eos_token_id": 257,
        "torch_dtype": {"F32": "float32", "BF16": "bfloat16"}[dtype],
    }
    with open(os.path.join(folder, "config.json"), "w") as out:
        json.dump(config, out)
    with open(os.path.join(folder, "tokenizer.json"), "w") as out:
        json.dump(tokenizer(), out)
    shapes, header, at = tensors(hidden, inner, layers), {}, 0
    for tensor, shape in shapes.items():
        end = at + int(np.prod(shape)) * width
        header[tensor] = {"dtype": dtype, "shape": shape, "data_offsets": [at, end]}
        at = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    rng = np.random.default_rng(seed)
    with open(os.path.join(folder, "model.safetensors"), "wb") as out:
        out.write(len(text).to_bytes(8, "little") + text)
        for shape in shapes.values():
            values = rng.standard_normal(shape, dtype=np.float32) * np.float32(0.02)
            if len(shape) == 1:
                values = np.ones(shape, dtype=np.float32)
            out.write(values.tobytes() if dtype == "F32" else (values.view(np.uint32) >> 16).astype(np.uint16).tobytes())


os.makedirs(OUT, exist_ok=True)
llama("f32-500m", "F32", 1024, 2816, 10, 1)
llama("bf16-500m", "BF16", 1024, 2816, 20, 2)
llama("f32-2g", "F32", 2048, 5632, 10, 3)
llama("small", "F32", 512, 1408, 8, 4)
with tarfile.open(os.path.join(OUT, "packed.tar.gz"), "w:gz", compresslevel=1) as archive:
    archive.add(os.path.join(OUT, "f32-500m"), arcname=".")
for where, _, names in sorted(os.walk(OUT)):
    for name in sorted(names):
        path = os.path.join(where, name)
        # As uploaded an hour ago: what is new settles first.
        os.utime(path, (os.path.getmtime(path) - 3600,) * 2)
        print(f"{os.path.getsize(path):>12} {os.path.relpath(path, OUT)}")
