"""A seeded decoder of the shape of SmolLM2-135M and a small BERT, with adapters.

    python make.py FOLDER [--quick]

`base` is 30 layers of hidden size 576, in bfloat16. Its adapters lie in `all16` (rank 16 on all seven
projections), `qv16` and `qv4` (ranks 16 and 4 on queries and values), named by number. `bert` is 4
layers of hidden size 512 that tell two labels; its adapters, rank 16 on queries and values with a
classifier of their own, lie in `bert16`. Those of one shape share CONTENTS weight files by hard links,
so that ten thousand fit a small disk; a server holds each in memory for itself. What is there already
is left as it is. Standard library only.
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
# The encoder.
BERT_HIDDEN, BERT_INNER, BERT_LAYERS, BERT_HEADS, POSITIONS = 512, 2048, 4, 8, 512
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"0123456789",
         *"the shop opens at nine and closes late in evening bread cakes are sold out by noon".split()]
# Shapes with their base, rank, modules, and how many there are: at most, and for a quick run.
SHAPES = {
    "all16": ("base", 16, list(MODULES), 1000, 8),
    "qv16": ("base", 16, QUERIES_AND_VALUES, 1000, 8),
    "qv4": ("base", 4, QUERIES_AND_VALUES, 10_000, 64),
    "bert16": ("bert", 16, ["query", "value"], 10_000, 64),
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


def bert(folder):
    folder.mkdir()
    dice, hidden = random.Random(2), BERT_HIDDEN
    tensors = []

    def linear(name, out, into):
        tensors.append((f"{name}.weight", [out, into], noise(out * into, dice)))
        tensors.append((f"{name}.bias", [out], noise(out, dice)))

    def norm(name):
        tensors.append((f"{name}.LayerNorm.weight", [hidden], struct.pack("<H", 0x3F80) * hidden))
        tensors.append((f"{name}.LayerNorm.bias", [hidden], bytes(2 * hidden)))

    for name, rows in [("word", len(WORDS)), ("position", POSITIONS), ("token_type", 2)]:
        tensors.append((f"bert.embeddings.{name}_embeddings.weight", [rows, hidden], noise(rows * hidden, dice)))
    norm("bert.embeddings")
    for layer in range(BERT_LAYERS):
        name = f"bert.encoder.layer.{layer}"
        for part in ("query", "key", "value"):
            linear(f"{name}.attention.self.{part}", hidden, hidden)
        linear(f"{name}.attention.output.dense", hidden, hidden)
        norm(f"{name}.attention.output")
        linear(f"{name}.intermediate.dense", BERT_INNER, hidden)
        linear(f"{name}.output.dense", hidden, BERT_INNER)
        norm(f"{name}.output")
    linear("bert.pooler.dense", hidden, hidden)
    linear("classifier", 2, hidden)
    save(folder / "model.safetensors", tensors)
    (folder / "config.json").write_text(json.dumps({
        "architectures": ["BertForSequenceClassification"], "model_type": "bert", "hidden_size": hidden,
        "intermediate_size": BERT_INNER, "num_hidden_layers": BERT_LAYERS, "num_attention_heads": BERT_HEADS,
        "vocab_size": len(WORDS), "max_position_embeddings": POSITIONS, "type_vocab_size": 2,
        "layer_norm_eps": 1e-12, "hidden_act": "gelu", "pad_token_id": 0, "torch_dtype": "bfloat16",
    }))
    special = [{"id": at, "content": word, "special": True, "single_word": False, "lstrip": False,
                "rstrip": False, "normalized": False} for at, word in enumerate(WORDS[:5])]
    single = [{"SpecialToken": {"id": "[CLS]", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}},
              {"SpecialToken": {"id": "[SEP]", "type_id": 0}}]
    (folder / "tokenizer.json").write_text(json.dumps({
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": special, "normalizer": None,
        "pre_tokenizer": {"type": "BertPreTokenizer"}, "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
        "post_processor": {"type": "TemplateProcessing", "single": single, "pair": single, "special_tokens": {
            word: {"id": word, "ids": [WORDS.index(word)], "tokens": [word]} for word in ("[CLS]", "[SEP]")}},
        "model": {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
                  "max_input_chars_per_word": 100, "vocab": {word: at for at, word in enumerate(WORDS)}}}))


def weights_of(base, rank, modules, dice):
    """An adapter's tensors."""
    for layer in range(LAYERS if base == "base" else BERT_LAYERS):
        for module in modules:
            if base == "base":
                (out, into), name = MODULES[module], f"base_model.model.model.layers.{layer}.{module}"
            else:
                out = into = BERT_HIDDEN
                name = f"base_model.model.bert.encoder.layer.{layer}.attention.self.{module}"
            yield f"{name}.lora_A.weight", [rank, into], noise(rank * into, dice)
            yield f"{name}.lora_B.weight", [out, rank], noise(out * rank, dice)
    if base == "bert":
        yield "base_model.model.classifier.weight", [2, BERT_HIDDEN], noise(2 * BERT_HIDDEN, dice)
        yield "base_model.model.classifier.bias", [2], noise(2, dice)


def adapters(folder, base, rank, modules, count, seed):
    contents = []
    folder.mkdir()
    for content in range(min(CONTENTS, count)):
        path = folder / f".content-{content}"
        save(path, list(weights_of(base, rank, modules, random.Random(seed + content))))
        contents.append(path)
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": base,
              "r": rank, "lora_alpha": 1, "bias": "none",
              "target_modules": sorted(module.split(".")[-1] for module in modules)}
    if base == "bert":
        config |= {"task_type": "SEQ_CLS", "modules_to_save": ["classifier"]}
    for number in range(count):
        target = folder / str(number)
        target.mkdir()
        (target / "adapter_config.json").write_text(json.dumps(config))
        os.link(contents[number % len(contents)], target / "adapter_model.safetensors")
    for path in contents:
        path.unlink()


def main():
    store, quick = pathlib.Path(sys.argv[1]), "--quick" in sys.argv[2:]
    store.mkdir(parents=True, exist_ok=True)
    for name, make in [("base", base), ("bert", bert)]:
        if not (store / name).exists():
            make(store / name)
    for seed, (shape, (beneath, rank, modules, most, few)) in enumerate(SHAPES.items()):
        if not (store / shape).exists():
            adapters(store / shape, beneath, rank, modules, few if quick else most, 1000 * (seed + 1))


if __name__ == "__main__":
    main()
