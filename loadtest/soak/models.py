"""Small seeded decoders of random weights: a store for the soak, without any library."""

from __future__ import annotations

import json
import os
import random
import struct

HIDDEN, INNER, LAYERS, HEADS, KV_HEADS, HEAD = 256, 688, 4, 4, 2, 64
# Bytes of ASCII, so that each token has a text of its own; begin and end.
BYTES, CONTEXT = 128, 512
VOCAB = BYTES + 2


def store(folder: str, names: list[str]) -> None:
    """Writes one checkpoint of about 6 MB per name, each with weights of its own."""
    for seed, name in enumerate(names):
        os.makedirs(os.path.join(folder, name), exist_ok=True)
        for file, content in files(seed).items():
            with open(os.path.join(folder, name, file), "wb") as out:
                out.write(content)


def files(seed: int) -> dict[str, bytes]:
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": HIDDEN,
        "intermediate_size": INNER, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS, "head_dim": HEAD, "vocab_size": VOCAB,
        "max_position_embeddings": CONTEXT, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
        "tie_word_embeddings": True, "hidden_act": "silu", "bos_token_id": BYTES,
        "eos_token_id": BYTES + 1, "torch_dtype": "bfloat16",
    }
    return {
        "config.json": json.dumps(config).encode(),
        "tokenizer.json": json.dumps(tokenizer()).encode(),
        "model.safetensors": weights(random.Random(seed)),
    }


def weights(dice: random.Random) -> bytes:
    shapes = {"model.embed_tokens.weight": [VOCAB, HIDDEN], "model.norm.weight": [HIDDEN]}
    for index in range(LAYERS):
        layer = f"model.layers.{index}"
        shapes |= {
            f"{layer}.self_attn.q_proj.weight": [HEADS * HEAD, HIDDEN],
            f"{layer}.self_attn.k_proj.weight": [KV_HEADS * HEAD, HIDDEN],
            f"{layer}.self_attn.v_proj.weight": [KV_HEADS * HEAD, HIDDEN],
            f"{layer}.self_attn.o_proj.weight": [HIDDEN, HEADS * HEAD],
            f"{layer}.mlp.gate_proj.weight": [INNER, HIDDEN],
            f"{layer}.mlp.up_proj.weight": [INNER, HIDDEN],
            f"{layer}.mlp.down_proj.weight": [HIDDEN, INNER],
            f"{layer}.input_layernorm.weight": [HIDDEN],
            f"{layer}.post_attention_layernorm.weight": [HIDDEN],
        }
    header, body = {}, bytearray()
    for name, shape in shapes.items():
        count = shape[0] * (shape[1] if len(shape) == 2 else 1)
        begin = len(body)
        body += noise(dice, count) if len(shape) == 2 else b"\x80\x3f" * count
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [begin, len(body)]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + bytes(body)


# The upper byte of a bf16 number of either sign between 2^-5 and 2^-3.
UPPER = bytes((byte & 0x80) | (0x3D if byte & 1 else 0x3E) for byte in range(256))


def noise(dice: random.Random, count: int) -> bytearray:
    numbers = bytearray(dice.randbytes(2 * count))
    numbers[1::2] = numbers[1::2].translate(UPPER)
    return numbers


def tokenizer() -> dict:
    """One token per byte, in the byte-level alphabet."""
    vocab, beyond = {}, 0x100
    for byte in range(BYTES):
        is_printable = 0x21 <= byte <= 0x7E
        vocab[chr(byte if is_printable else beyond)] = byte
        beyond += not is_printable
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True,
             "use_regex": True}
    added = [{"id": BYTES + index, "content": content, "single_word": False, "lstrip": False,
              "rstrip": False, "normalized": False, "special": True}
             for index, content in enumerate(["<s>", "</s>"])]
    return {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": added,
        "normalizer": None, "pre_tokenizer": level, "post_processor": None, "decoder": level,
        "model": {"type": "BPE", "dropout": None, "unk_token": None,
                  "continuing_subword_prefix": None, "end_of_word_suffix": None,
                  "fuse_unk": False, "byte_fallback": False, "vocab": vocab, "merges": []},
    }
