"""Ten full fine-tunes of one seeded Llama that differ in the last two layers.

    python make.py FOLDER

Seven become folders, three `.tar.gz` archives, all in bfloat16. Needs torch, transformers and
tokenizers.
"""

import pathlib
import sys
import tarfile

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM

LAYERS, TUNED = 12, 2
TARGETS = [f"tune-{i}" for i in range(7)] + [f"tune-{i}.tar.gz" for i in range(7, 10)]


def base():
    torch.manual_seed(11)
    config = LlamaConfig(
        hidden_size=768, intermediate_size=2048, num_hidden_layers=LAYERS,
        num_attention_heads=12, num_key_value_heads=12, vocab_size=4096,
        max_position_embeddings=512, tie_word_embeddings=True, bos_token_id=0, eos_token_id=1,
        initializer_range=0.05,
    )
    return LlamaForCausalLM(config).to(torch.bfloat16)


def tokenizer(path):
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {"<s>": 0, "</s>": 1} | {char: at + 2 for at, char in enumerate(alphabet)}
    made = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.save(str(path))


def main():
    store = pathlib.Path(sys.argv[1])
    store.mkdir(parents=True)
    for number, target in enumerate(TARGETS):
        model = base()
        torch.manual_seed(1000 + number)
        with torch.no_grad():
            for layer in model.model.layers[LAYERS - TUNED:]:
                for parameter in layer.parameters():
                    noise = torch.randn(parameter.shape) * 0.01
                    parameter.add_(noise.to(torch.bfloat16))
        folder = store / target.removesuffix(".tar.gz")
        model.save_pretrained(folder)
        tokenizer(folder / "tokenizer.json")
        if target.endswith(".tar.gz"):
            with tarfile.open(store / target, "w:gz", compresslevel=1) as archive:
                for path in sorted(folder.iterdir()):
                    archive.add(path, arcname=path.name)
            for path in folder.iterdir():
                path.unlink()
            folder.rmdir()


if __name__ == "__main__":
    main()
