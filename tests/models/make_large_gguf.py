"""Writes a Llama of 450 M random parameters as GGUF, for measurements: `python make_large_gguf.py FOLDER`.

`q8_0.gguf` is written by gguf-py, `q4_k_m.gguf` made of it by llama.cpp. The same seed gives the same bytes.
"""

import sys
from pathlib import Path

import gguf
import llama_cpp
import numpy as np
from gguf.quants import quantize

from reference_gguf import bytes_to_unicode

HIDDEN, INNER, LAYERS, HEADS, KV_HEADS, VOCAB = 1536, 4096, 16, 24, 8, 32000


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "q8_0.gguf"
    random = np.random.default_rng(7)
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_context_length(4096)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(HIDDEN // HEADS)
    writer.add_vocab_size(VOCAB)
    tokens = list(bytes_to_unicode().values()) + ["<|begin_of_text|>", "<|end_of_text|>"]
    kinds = [1] * 256 + [3, 3]
    tokens += [f"token{at}" for at in range(VOCAB - len(tokens))]
    kinds += [1] * (VOCAB - len(kinds))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("llama-bpe")
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges([])
    writer.add_bos_token_id(256)
    writer.add_eos_token_id(257)

    def matrix(name, rows, columns):
        kind = gguf.GGMLQuantizationType.Q8_0
        values = random.standard_normal((rows, columns), dtype=np.float32) * 0.03
        writer.add_tensor(name, quantize(values, kind), raw_dtype=kind)

    def norm(name):
        writer.add_tensor(name, np.ones(HIDDEN, dtype=np.float32))

    keys = HIDDEN // HEADS * KV_HEADS
    matrix("token_embd.weight", VOCAB, HIDDEN)
    norm("output_norm.weight")
    for layer in range(LAYERS):
        norm(f"blk.{layer}.attn_norm.weight")
        norm(f"blk.{layer}.ffn_norm.weight")
        shapes = dict(
            attn_q=(HIDDEN, HIDDEN), attn_k=(keys, HIDDEN), attn_v=(keys, HIDDEN), attn_output=(HIDDEN, HIDDEN),
            ffn_gate=(INNER, HIDDEN), ffn_up=(INNER, HIDDEN), ffn_down=(HIDDEN, INNER),
        )
        for name, shape in shapes.items():
            matrix(f"blk.{layer}.{name}.weight", *shape)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_K_M
    params.allow_requantize = True
    params.nthread = 1
    target = folder / "q4_k_m.gguf"
    assert llama_cpp.llama_model_quantize(str(path).encode(), str(target).encode(), params) == 0


if __name__ == "__main__":
    main(Path(sys.argv[1]))
