"""Makes the checkpoints of the generation bench: seeded random weights in the shapes of
SmolLM2-135M and Llama-3.2-1B, as Hugging Face folders (bf16) and as GGUF (bf16, and q8_0 by
llama-quantize).

    python loadtest/generation/make.py OUT [LLAMA_QUANTIZE]

Needs numpy, torch, safetensors and gguf. Tokens 0 to 255 are bytes and there are no merges, so a text
of n ASCII characters is n tokens for every server.
"""

import json
import subprocess
import sys
from pathlib import Path

import gguf
import numpy as np
import torch
from safetensors.torch import save_file

SHAPES = {
    "smol": dict(hidden=576, inner=1536, layers=30, heads=9, kv_heads=3, vocab=49152),
    "l1b": dict(hidden=2048, inner=8192, layers=16, heads=32, kv_heads=8, vocab=128256),
}
CONTEXT = 8192


def byte_characters():
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    chars = {byte: chr(byte) for byte in printable} | {byte: chr(256 + at) for at, byte in enumerate(others)}
    return [chars[byte] for byte in range(256)]


def vocabulary(size):
    return byte_characters() + ["<s>", "</s>"] + [f"token{at}" for at in range(258, size)]


def tokenizer(size):
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    special = [
        {"id": at, "content": name, "single_word": False, "lstrip": False, "rstrip": False,
         "normalized": False, "special": True} for name, at in [("<s>", 256), ("</s>", 257)]]
    return {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": special,
        "normalizer": None, "pre_tokenizer": level, "post_processor": None, "decoder": level,
        "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
                  "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False,
                  "vocab": {text: at for at, text in enumerate(vocabulary(size))}, "merges": []},
    }


def tensors(shape):
    """Names of the checkpoint with their tensors in bf16, in the order of the layers."""
    torch.manual_seed(7)
    hidden, inner = shape["hidden"], shape["inner"]
    keys = hidden // shape["heads"] * shape["kv_heads"]

    def matrix(rows, columns):
        return (torch.randn(rows, columns) * 0.02).to(torch.bfloat16)

    ones = torch.ones(hidden, dtype=torch.bfloat16)
    yield "model.embed_tokens.weight", matrix(shape["vocab"], hidden)
    for layer in range(shape["layers"]):
        name = f"model.layers.{layer}"
        yield f"{name}.input_layernorm.weight", ones.clone()
        yield f"{name}.post_attention_layernorm.weight", ones.clone()
        for part, rows in [("q_proj", hidden), ("k_proj", keys), ("v_proj", keys), ("o_proj", hidden)]:
            yield f"{name}.self_attn.{part}.weight", matrix(rows, hidden)
        yield f"{name}.mlp.gate_proj.weight", matrix(inner, hidden)
        yield f"{name}.mlp.up_proj.weight", matrix(inner, hidden)
        yield f"{name}.mlp.down_proj.weight", matrix(hidden, inner)
    yield "model.norm.weight", ones.clone()


def config(shape):
    return {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu",
        "hidden_size": shape["hidden"], "intermediate_size": shape["inner"],
        "num_hidden_layers": shape["layers"], "num_attention_heads": shape["heads"],
        "num_key_value_heads": shape["kv_heads"], "vocab_size": shape["vocab"],
        "max_position_embeddings": CONTEXT, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
        "tie_word_embeddings": True, "torch_dtype": "bfloat16", "bos_token_id": 256, "eos_token_id": 257,
        "attention_bias": False, "mlp_bias": False,
    }


GGUF_NAMES = {
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm", "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}


def gguf_name(name):
    if name == "model.embed_tokens.weight":
        return "token_embd.weight"
    if name == "model.norm.weight":
        return "output_norm.weight"
    _, _, layer, rest = name.split(".", 3)
    return f"blk.{layer}.{GGUF_NAMES[rest.removesuffix('.weight')]}.weight"


def interleaved(weight, heads):
    """Rows of queries or keys in the order of GGUF's rotation."""
    rows, columns = weight.shape
    return weight.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)


def write_gguf(path, shape, weights):
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(shape["hidden"])
    writer.add_block_count(shape["layers"])
    writer.add_feed_forward_length(shape["inner"])
    writer.add_head_count(shape["heads"])
    writer.add_head_count_kv(shape["kv_heads"])
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(shape["hidden"] // shape["heads"])
    writer.add_vocab_size(shape["vocab"])
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_BF16)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(vocabulary(shape["vocab"]))
    writer.add_token_types([1] * 256 + [3, 3] + [1] * (shape["vocab"] - 258))
    # llama.cpp wants one; no text has two zero bytes in a row.
    writer.add_token_merges([" ".join([byte_characters()[0]] * 2)])
    writer.add_bos_token_id(256)
    writer.add_eos_token_id(257)
    writer.add_add_bos_token(False)
    for name, weight in weights.items():
        if weight.dim() == 1:
            writer.add_tensor(gguf_name(name), weight.float().numpy())
            continue
        if "q_proj" in name or "k_proj" in name:
            weight = interleaved(weight, shape["heads" if "q_proj" in name else "kv_heads"])
        raw = weight.contiguous().view(torch.uint8).numpy().reshape(weight.shape[0], -1)
        writer.add_tensor(gguf_name(name), raw, raw_dtype=gguf.GGMLQuantizationType.BF16)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main(out, quantize):
    for name, shape in SHAPES.items():
        weights = dict(tensors(shape))
        folder = out / name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(json.dumps(config(shape)))
        (folder / "tokenizer.json").write_text(json.dumps(tokenizer(shape["vocab"])))
        save_file(weights, folder / "model.safetensors", {"format": "pt"})
        path = out / f"{name}-bf16.gguf"
        write_gguf(path, shape, weights)
        if quantize:
            subprocess.run([quantize, path, out / f"{name}-q8_0.gguf", "q8_0", "2"], check=True,
                           stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else None)
