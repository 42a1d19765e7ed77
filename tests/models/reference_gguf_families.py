"""Tiny models of other families as GGUF files, written by llama.cpp's own converter, and what llama.cpp and
transformers compute from them: `LLAMA_CPP=path/to/llama.cpp python tests/models/reference_gguf_families.py`.

The converter is no package: it comes with llama.cpp's source, which the source package of llama-cpp-python holds
(`pip download --no-binary :all: llama-cpp-python`, then `vendor/llama.cpp`). Only the vocabulary is ours.
"""

import os
import sys
import tempfile
from pathlib import Path

# Its converter goes with its own version of gguf.
sys.path[:0] = [os.environ["LLAMA_CPP"], os.path.join(os.environ["LLAMA_CPP"], "gguf-py")]

import gguf
import numpy as np
import torch
import transformers

from reference_gguf import PROMPT_LENGTHS, EVERY_POSITION_PROMPT, greedy, theirs, without_repacking, write_vocabulary
from reference_output import fresh_folder, randomise, rounded, write_json

SHAPE = dict(
    hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
    vocab_size=320, max_position_embeddings=128, rms_norm_eps=1e-5, bos_token_id=256, eos_token_id=257, pad_token_id=None,
)
YARN = dict(rope_type="yarn", factor=4.0, original_max_position_embeddings=32)

# Windows are shorter than most prompts; caps are low enough to bend.
CASES = {
    "gguf-family-qwen2": ("Qwen2", dict(SHAPE, rope_theta=1e6, tie_word_embeddings=True)),
    "gguf-family-qwen2-yarn": ("Qwen2", dict(SHAPE, rope_scaling=YARN, rope_theta=1e4, tie_word_embeddings=False)),
    "gguf-family-qwen3": ("Qwen3", dict(SHAPE, head_dim=32, rope_theta=1e6, tie_word_embeddings=False)),
    "gguf-family-smollm3": (
        "SmolLM3", dict(SHAPE, num_hidden_layers=4, no_rope_layer_interval=4, rope_theta=2e6, tie_word_embeddings=True),
    ),
    "gguf-family-phi3": ("Phi3", dict(SHAPE, sliding_window=None, tie_word_embeddings=False, original_max_position_embeddings=128)),
    "gguf-family-gemma": ("Gemma", dict(SHAPE, head_dim=32, hidden_act="gelu_pytorch_tanh")),
    "gguf-family-gemma2": (
        "Gemma2", dict(SHAPE, head_dim=32, query_pre_attn_scalar=32, sliding_window=8, attn_logit_softcapping=4.0,
                       final_logit_softcapping=6.0),
    ),
    "gguf-family-gemma3": (
        "Gemma3", dict(SHAPE, num_hidden_layers=7, head_dim=32, query_pre_attn_scalar=32, sliding_window=8,
                       sliding_window_pattern=6),
    ),
    "gguf-family-mixtral": (
        "Mixtral", dict(SHAPE, num_local_experts=4, num_experts_per_tok=2, rope_theta=1e4, sliding_window=None,
                        tie_word_embeddings=False),
    ),
    "gguf-family-qwen3moe": (
        "Qwen3Moe", dict(SHAPE, head_dim=32, num_experts=6, num_experts_per_tok=3, moe_intermediate_size=64,
                         norm_topk_prob=True, rope_theta=1e6, tie_word_embeddings=False),
    ),
    "gguf-family-granite": (
        "Granite", dict(SHAPE, embedding_multiplier=3.0, attention_multiplier=0.2, residual_multiplier=0.6,
                        logits_scaling=2.5, tie_word_embeddings=True),
    ),
    "gguf-family-olmo2": ("Olmo2", dict(SHAPE, rope_theta=1e5, tie_word_embeddings=False)),
}


def convert(model, family, folder, path):
    """The file that llama.cpp's converter makes of a checkpoint, with weights in f16."""
    from conversion import ModelBase, get_model_class

    model.save_pretrained(folder)
    # Gemma's converter counts the tokens of the vocabulary's file.
    write_json(Path(folder) / "tokenizer.json", dict(model=dict(vocab={str(at): at for at in range(320)}), added_tokens=[]))
    ModelClass = get_model_class(f"{family}ForCausalLM")
    ModelClass.set_vocab = lambda self: write_vocabulary(self.gguf_writer, SHAPE["vocab_size"])
    hparams = ModelBase.load_hparams(Path(folder), False)
    ModelClass(Path(folder), gguf.LlamaFileType.MOSTLY_F16, path, hparams=hparams).write()


@torch.no_grad()
def write_case(folder, seed, family, shape):
    config_class = "Gemma3TextConfig" if family == "Gemma3" else f"{family}Config"
    # The fused kernels leave caps out.
    config = getattr(transformers, config_class)(**shape, attn_implementation="eager")
    model = getattr(transformers, f"{family}ForCausalLM")(config).eval()
    randomise(model, seed, 0.12)
    for name, parameter in model.named_parameters():
        if "norm" in name and family.startswith("Gemma"):
            parameter.sub_(1.0)
        # What the file will hold.
        if parameter.dim() > 1:
            parameter.copy_(parameter.half().float())
    path = folder / "model.gguf"
    with tempfile.TemporaryDirectory() as checkpoint:
        convert(model, family, checkpoint, path)
    generator = torch.Generator().manual_seed(seed + 1000)
    prompts = [torch.randint(0, shape["vocab_size"], (length,), generator=generator).tolist() for length in PROMPT_LENGTHS]
    last = [model(torch.tensor([ids])).logits[0] for ids in prompts]
    reference = theirs(path, prompts)
    content = dict(
        types={tensor.name: tensor.tensor_type.name for tensor in gguf.GGUFReader(str(path)).tensors},
        prompts=[
            dict(ids=ids, last_logits=rounded(logits[-1]), greedy=greedy(model, ids)) for ids, logits in zip(prompts, last)
        ],
        every_position=dict(prompt=EVERY_POSITION_PROMPT, logits=rounded(last[EVERY_POSITION_PROMPT])),
        llama_cpp=reference,
    )
    apart = max(
        float(np.abs(np.array(ours["last_logits"]) - np.array(logits)).max())
        for ours, logits in zip(content["prompts"], reference["last_logits"])
    )
    print(f"{folder.name}: {path.stat().st_size} bytes, llama.cpp differs by {apart:.2g}")
    write_json(folder / "expected.json", content)


def main():
    torch.set_num_threads(1)
    transformers.utils.logging.set_verbosity_error()
    without_repacking()
    root = Path(__file__).resolve().parents[2] / "src/models/tests/references"
    for seed, (name, (family, shape)) in enumerate(CASES.items(), 301):
        write_case(fresh_folder(root / name), seed, family, shape)


if __name__ == "__main__":
    main()
