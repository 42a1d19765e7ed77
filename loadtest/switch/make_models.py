"""Makes the two checkpoints of the switch runs: seeded Llamas of 505 MB in f32 that share
nothing.

    python loadtest/switch/make_models.py OUT

Needs torch, transformers and tokenizers.
"""

import os
import shutil
import sys

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM

OUT = sys.argv[1]


def byte_tokenizer():
    """One token per byte: what a tokenizer knows is no part of a switch."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: index for index, letter in enumerate(alphabet)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def main():
    shutil.rmtree(OUT, ignore_errors=True)
    for seed, name in enumerate(["north", "south"], 1):
        torch.manual_seed(seed)
        config = LlamaConfig(
            vocab_size=49_152, hidden_size=768, num_hidden_layers=12, intermediate_size=2560,
            num_attention_heads=12, num_key_value_heads=3, max_position_embeddings=1024,
            tie_word_embeddings=True, bos_token_id=0, eos_token_id=0,
        )
        folder = os.path.join(OUT, name)
        LlamaForCausalLM(config).save_pretrained(folder)
        byte_tokenizer().save(os.path.join(folder, "tokenizer.json"))
        print(name, os.path.getsize(os.path.join(folder, "model.safetensors")))


main()
