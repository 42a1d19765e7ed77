"""Makes the checkpoints of the memory runs: seeded Llamas of 500 MB in their files, in f32,
bf16 and f16, and folders with real-sized tokenizers over one tiny model.

    python loadtest/witness/make_models.py OUT

Needs torch, transformers and tokenizers. The tokenizers are trained on the Python sources of
the interpreter that runs this: any text will do, their size is what matters.
"""

import json
import os
import shutil
import sys
import sysconfig

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import BertConfig, BertModel, LlamaConfig, LlamaForCausalLM

OUT = sys.argv[1]


def sources(most):
    """Paths of text files, up to so many bytes."""
    total = 0
    for folder in [sysconfig.get_paths()["stdlib"], sysconfig.get_paths()["purelib"]]:
        for where, _, names in os.walk(folder):
            for name in sorted(names):
                path = os.path.join(where, name)
                if name.endswith((".py", ".txt", ".md")) and os.path.isfile(path):
                    total += os.path.getsize(path)
                    if total > most:
                        return
                    yield path


FILES = list(sources(60_000_000))


def bpe(size):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train(FILES, trainer)
    return tokenizer


def wordpiece(size):
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(
        vocab_size=size, special_tokens=["[UNK]", "[CLS]", "[SEP]"], show_progress=False
    )
    tokenizer.train(FILES, trainer)
    return tokenizer


def unigram(size):
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=size, special_tokens=["<unk>"], unk_token="<unk>", show_progress=False
    )
    tokenizer.train(FILES[:400], trainer)
    return tokenizer


def llama(name, dtype, hidden, layers, intermediate, vocab, tokenizer):
    torch.manual_seed(7)
    config = LlamaConfig(
        vocab_size=vocab, hidden_size=hidden, intermediate_size=intermediate,
        num_hidden_layers=layers, num_attention_heads=hidden // 64,
        num_key_value_heads=hidden // 256, max_position_embeddings=8192,
        tie_word_embeddings=True, bos_token_id=0, eos_token_id=0,
    )
    folder = os.path.join(OUT, name)
    LlamaForCausalLM(config).to(dtype).save_pretrained(folder)
    tokenizer.save(os.path.join(folder, "tokenizer.json"))


def tiny_bert(name, tokenizer):
    torch.manual_seed(7)
    config = BertConfig(
        vocab_size=tokenizer.get_vocab_size(), hidden_size=16, intermediate_size=16,
        num_hidden_layers=1, num_attention_heads=1, max_position_embeddings=64,
    )
    folder = os.path.join(OUT, "tokenizers", name)
    BertModel(config, add_pooling_layer=False).save_pretrained(folder)
    tokenizer.save(os.path.join(folder, "tokenizer.json"))


def main():
    shutil.rmtree(OUT, ignore_errors=True)
    os.makedirs(OUT)
    large = bpe(49_152)
    # 125 million parameters in f32, 250 million in two bytes each: 500 MB.
    llama("llama-f32", torch.float32, 768, 12, 2560, 49_152, large)
    llama("llama-bf16", torch.bfloat16, 1024, 16, 3328, 49_152, large)
    llama("llama-f16", torch.float16, 1024, 16, 3328, 49_152, large)
    tiny_bert("bpe-49k", large)
    tiny_bert("bpe-8k", bpe(8_000))
    tiny_bert("bpe-128k", bpe(128_000))
    tiny_bert("wordpiece-30k", wordpiece(30_522))
    tiny_bert("unigram-32k", unigram(32_000))
    sizes = {}
    for where, _, names in os.walk(OUT):
        for name in names:
            path = os.path.join(where, name)
            sizes[os.path.relpath(path, OUT)] = os.path.getsize(path)
    print(json.dumps(sizes, indent=1))


main()
