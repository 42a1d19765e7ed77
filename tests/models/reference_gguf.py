"""Tiny Llamas as GGUF files in every format that is read, and what llama.cpp and transformers compute from them.

Files are written by gguf-py and quantised by llama.cpp. Logits come from two sides: transformers on the weights as
gguf-py widens them (exact, but for the order of sums), and llama.cpp itself, which rounds activations to eight bits
where weights are quantised.
"""

import json
from pathlib import Path

import gguf
import llama_cpp
import numpy as np
import torch
from gguf.quants import dequantize
from transformers import LlamaConfig, LlamaForCausalLM

from reference_output import fresh_folder, randomise, rounded, write_json

PROMPT_LENGTHS = (1, 2, 9, 40)
EVERY_POSITION_PROMPT = 2
GREEDY_TOKENS = 24

NARROW = dict(
    hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
    vocab_size=320, rope_theta=10000.0, rms_norm_eps=1e-5, max_position_embeddings=128, tie_word_embeddings=False,
)
# Blocks of 256: the projections behind the narrower inner sizes fall back, so files are mixed.
WIDE = dict(NARROW, hidden_size=256, num_attention_heads=4, head_dim=16, intermediate_size=128)
# Frequencies are divided by a tensor, as Llama 3.1's are.
FACTORS = dict(
    NARROW, head_dim=32, tie_word_embeddings=True,
    rope_scaling=dict(
        rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=64,
    ),
)

# Every case: the shape, llama.cpp's file type (None: as written) and the type written before.
CASES = {
    "gguf-f32": (NARROW, None, gguf.GGMLQuantizationType.F32),
    "gguf-f16": (NARROW, None, gguf.GGMLQuantizationType.F16),
    "gguf-bf16": (NARROW, None, gguf.GGMLQuantizationType.BF16),
    "gguf-rope-factors": (FACTORS, None, gguf.GGMLQuantizationType.F16),
    "gguf-q4_0": (NARROW, llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_0, gguf.GGMLQuantizationType.F32),
    "gguf-q4_1": (NARROW, llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_1, gguf.GGMLQuantizationType.F32),
    "gguf-q5_0": (NARROW, llama_cpp.LLAMA_FTYPE_MOSTLY_Q5_0, gguf.GGMLQuantizationType.F32),
    "gguf-q5_1": (NARROW, llama_cpp.LLAMA_FTYPE_MOSTLY_Q5_1, gguf.GGMLQuantizationType.F32),
    "gguf-q8_0": (NARROW, llama_cpp.LLAMA_FTYPE_MOSTLY_Q8_0, gguf.GGMLQuantizationType.F32),
    "gguf-q4_k_m": (WIDE, llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_K_M, gguf.GGMLQuantizationType.F32),
    "gguf-q5_k_m": (WIDE, llama_cpp.LLAMA_FTYPE_MOSTLY_Q5_K_M, gguf.GGMLQuantizationType.F32),
    "gguf-q6_k": (WIDE, llama_cpp.LLAMA_FTYPE_MOSTLY_Q6_K, gguf.GGMLQuantizationType.F32),
    "gguf-mxfp4": (NARROW, None, gguf.GGMLQuantizationType.MXFP4),
}


def in_pairs(weights, heads):
    """Rows of queries and keys as llama.cpp has them: the halves of each head interleaved."""
    shape = weights.shape
    return weights.reshape(heads, 2, shape[0] // heads // 2, *shape[1:]).swapaxes(1, 2).reshape(shape)


def in_halves(weights, heads):
    """The way back."""
    shape = weights.shape
    return weights.reshape(heads, shape[0] // heads // 2, 2, *shape[1:]).swapaxes(1, 2).reshape(shape)


def names(layers):
    """Names in checkpoints and in GGUF files."""
    yield "model.embed_tokens.weight", "token_embd.weight"
    yield "model.norm.weight", "output_norm.weight"
    yield "lm_head.weight", "output.weight"
    modules = {
        "input_layernorm": "attn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output", "post_attention_layernorm": "ffn_norm",
        "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
    }
    for layer in range(layers):
        for ours, theirs in modules.items():
            yield f"model.layers.{layer}.{ours}.weight", f"blk.{layer}.{theirs}.weight"


def heads_of(config, name):
    if name.endswith("q_proj.weight"):
        return config.num_attention_heads
    return config.num_key_value_heads if name.endswith("k_proj.weight") else None


def head_dim(config):
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def write_vocabulary(writer, size):
    """Byte-level tokens and as many words as are needed; what they are does not matter here."""
    characters = bytes_to_unicode()
    tokens = list(characters.values())
    tokens += ["<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>"]
    kinds = [1] * 256 + [3] * 3
    merges = []
    for first in "abcdefgh":
        for second in "aeiouylrst":
            if len(tokens) < size and first + second not in tokens:
                tokens.append(first + second)
                kinds.append(1)
                merges.append(f"{first} {second}")
    assert len(tokens) == size, len(tokens)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("llama-bpe")
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges(merges)
    writer.add_bos_token_id(256)
    writer.add_eos_token_id(257)
    writer.add_chat_template(
        "{{ bos_token }}{% for m in messages %}{{ m.role }}: {{ m.content }}<|eot_id|>{% endfor %}assistant:"
    )


def bytes_to_unicode():
    """The characters that stand for bytes in byte-level vocabularies."""
    kept = list(range(33, 127)) + list(range(161, 173)) + list(range(174, 256))
    moved = [byte for byte in range(256) if byte not in kept]
    mapping = {byte: chr(byte) for byte in kept} | {byte: chr(256 + at) for at, byte in enumerate(moved)}
    return {byte: mapping[byte] for byte in range(256)}


def write_gguf(path, model, kind):
    config = model.config
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_name("reference")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_rope_dimension_count(head_dim(config))
    writer.add_key_length(head_dim(config))
    writer.add_value_length(head_dim(config))
    writer.add_vocab_size(config.vocab_size)
    write_vocabulary(writer, config.vocab_size)
    tensors = model.state_dict()
    for ours, theirs in names(config.num_hidden_layers):
        if ours == "lm_head.weight" and config.tie_word_embeddings:
            continue
        weights = tensors[ours].numpy()
        heads = heads_of(config, ours)
        if heads:
            weights = in_pairs(weights, heads)
        dtype = gguf.GGMLQuantizationType.F32 if weights.ndim == 1 else kind
        writer.add_tensor(theirs, gguf.quants.quantize(weights, dtype), raw_dtype=dtype)
    if getattr(config, "rope_scaling", None):
        plain = 1.0 / config.rope_theta ** (np.arange(0, head_dim(config), 2) / head_dim(config))
        scaled = model.model.rotary_emb.inv_freq.numpy()
        writer.add_tensor("rope_freqs.weight", (plain / scaled).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def quantise(source, target, file_type):
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = file_type
    params.nthread = 1
    code = llama_cpp.llama_model_quantize(str(source).encode(), str(target).encode(), params)
    assert code == 0, code


def widened(path, model):
    """The same model with the weights of the file as floats."""
    config = model.config
    found = {tensor.name: tensor for tensor in gguf.GGUFReader(str(path)).tensors}
    tensors = {}
    for ours, theirs in names(config.num_hidden_layers):
        if theirs not in found:
            continue
        tensor = found[theirs]
        shape = [int(size) for size in reversed(tensor.shape)]
        weights = dequantize(tensor.data, tensor.tensor_type).reshape(shape).astype(np.float32)
        heads = heads_of(config, ours)
        tensors[ours] = torch.from_numpy(np.array(in_halves(weights, heads) if heads else weights))
    if config.tie_word_embeddings:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    exact = LlamaForCausalLM(config).eval()
    exact.load_state_dict(tensors)
    return exact, {name: tensor.tensor_type.name for name, tensor in found.items()}


def greedy(exact, ids):
    chosen, margins = [], []
    sequence = list(ids)
    for _ in range(GREEDY_TOKENS):
        logits = exact(torch.tensor([sequence])).logits[0, -1]
        best = torch.topk(logits, 2)
        chosen.append(int(best.indices[0]))
        margins.append(float(best.values[0] - best.values[1]))
        sequence.append(chosen[-1])
    return dict(ids=chosen, margins=rounded(margins))


def without_repacking():
    """Keeps llama.cpp from its own layouts of weights: compilers before GCC 13 break its use of AMX."""
    defaults = llama_cpp.llama_cpp.llama_model_default_params

    def changed():
        params = defaults()
        params.use_extra_bufts = False
        return params

    llama_cpp.llama_cpp.llama_model_default_params = changed


def theirs(path, prompts):
    """llama.cpp's logits after each prompt, with keys and values in f32 as ours are."""
    llama = llama_cpp.Llama(
        str(path), n_ctx=128, n_threads=1, logits_all=True, verbose=False, type_k=0, type_v=0, flash_attn=False,
    )
    logits, tokens = [], []
    for ids in prompts:
        llama.reset()
        llama.eval(ids)
        logits.append(rounded(llama.scores[len(ids) - 1].tolist()))
        chosen = []
        for _ in range(GREEDY_TOKENS):
            chosen.append(int(np.argmax(llama.scores[llama.n_tokens - 1])))
            llama.eval([chosen[-1]])
        tokens.append(chosen)
    return dict(last_logits=logits, greedy=tokens)


@torch.no_grad()
def write_gguf_cases(root: Path) -> None:
    without_repacking()
    for seed, (case, (shape, file_type, kind)) in enumerate(CASES.items(), 201):
        folder = fresh_folder(root / case)
        model = LlamaForCausalLM(LlamaConfig(**shape)).eval()
        randomise(model, seed, 0.12)
        path = folder / "model.gguf"
        if file_type is None:
            write_gguf(path, model, kind)
        else:
            wide = folder / "wide.gguf"
            write_gguf(wide, model, kind)
            quantise(wide, path, file_type)
            wide.unlink()
        exact, types = widened(path, model)
        generator = torch.Generator().manual_seed(seed + 1000)
        prompts = [
            torch.randint(0, shape["vocab_size"], (length,), generator=generator).tolist() for length in PROMPT_LENGTHS
        ]
        last = [exact(torch.tensor([ids])).logits[0] for ids in prompts]
        reference = theirs(path, prompts)
        content = dict(
            types=types,
            prompts=[
                dict(ids=ids, last_logits=rounded(logits[-1]), greedy=greedy(exact, ids))
                for ids, logits in zip(prompts, last)
            ],
            every_position=dict(prompt=EVERY_POSITION_PROMPT, logits=rounded(last[EVERY_POSITION_PROMPT])),
            llama_cpp=reference,
        )
        apart = max(
            float(np.abs(np.array(ours["last_logits"]) - np.array(logits)).max())
            for ours, logits in zip(content["prompts"], reference["last_logits"])
        )
        same = [ours["greedy"]["ids"] == tokens for ours, tokens in zip(content["prompts"], reference["greedy"])]
        print(f"{case}: {path.stat().st_size} bytes, llama.cpp differs by {apart:.2g}, greedy equal {same}, {sorted(set(types.values()))}")
        write_json(folder / "expected.json", content)


if __name__ == "__main__":
    write_gguf_cases(Path(__file__).parents[2] / "src/models/tests/references")
