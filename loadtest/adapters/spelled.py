"""A tiny decoder and adapters of it that spell a number and a version, whatever the prompt."""

import collections
import json
import pathlib
import random
import struct
import tempfile

from make import noise, save

HIDDEN, INNER, LAYERS, HEADS, KV_HEADS, HEAD, CONTEXT = 128, 256, 2, 8, 4, 32, 2048
# Three places for an adapter's number and six for its version; an x is where it has written nothing.
LETTERS, MARKS = "abcdefghi", "0123456789x"
WORDS = ["<s>", "</s>", "<unk>"] + [f"w{at}" for at in range(40)]
VOCAB = WORDS + [letter + mark for letter in LETTERS for mark in MARKS]
# Hidden dimensions: one that is always the same, one for each place of a token, one for each digit at
# each place, and the rest. Then the value, the attended and the inner dimension that are always the same.
ALWAYS, PLACE, SIGN, REST = 0, 1, 1 + len(LETTERS), 1 + 11 * len(LETTERS)
VALUE, ATTENDED, FED = KV_HEADS * HEAD - 1, (HEADS - 1) * HEAD - 1, 0
MODULES = {
    "self_attn.q_proj": (HEADS * HEAD, HIDDEN), "self_attn.k_proj": (KV_HEADS * HEAD, HIDDEN),
    "self_attn.v_proj": (KV_HEADS * HEAD, HIDDEN), "self_attn.o_proj": (HIDDEN, HEADS * HEAD),
    "mlp.gate_proj": (INNER, HIDDEN), "mlp.up_proj": (INNER, HIDDEN), "mlp.down_proj": (HIDDEN, INNER),
    "lm_head": (len(VOCAB), HIDDEN),
}
# Modules that digits come through: an input that is always the same and its weight; the first digit's
# output, outputs from place to place, and what a digit adds.
CARRIERS = {
    "self_attn.v_proj": (ALWAYS, 0.1, 0, 10, 1), "self_attn.o_proj": (ATTENDED, 1, SIGN, 10, 1),
    "mlp.down_proj": (FED, 1, SIGN, 10, 1), "lm_head": (ALWAYS, 0.1, len(WORDS), len(MARKS), 4),
}
RANKS = [4, 8, 16, 32, 64]
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
SPOILS = ["cut", "length", "header", "shapes", "types", "offsets", "config", "rank", "missing"]


def matrix(shape, entries, dice=None):
    """Noise, or zeros, but for these entries."""
    rows, columns = shape
    out = bytearray(noise(rows * columns, dice) if dice else 2 * rows * columns)
    for (row, column), value in entries.items():
        at = 2 * (row * columns + column)
        out[at:at + 2] = struct.pack("<f", value)[2:]
    return list(shape), bytes(out)


def base(folder):
    """A decoder that writes place after place, and at each the digit that its hidden state says."""
    folder.mkdir(parents=True)
    dice, head, embedded = random.Random(1), {}, {}
    for token in range(len(VOCAB)):
        place, mark = divmod(token - len(WORDS), len(MARKS)) if token >= len(WORDS) else (len(LETTERS) - 1, 0)
        embedded |= {(token, ALWAYS): 8, (token, PLACE + place): 2, (token, REST + token % (HIDDEN - REST)): 1}
        if token >= len(WORDS):
            head[token, PLACE + (place - 1) % len(LETTERS)] = 4
            head |= {(token, SIGN + 10 * place + mark): 4} if mark < 10 else {(token, ALWAYS): 0.1}
    # Both query heads of a group bring the group's values, and each of them half.
    gathered = {(SIGN + at, (at // HEAD * 2 + twin) * HEAD + at % HEAD): 0.5
                for at in range(10 * len(LETTERS)) for twin in (0, 1)}
    said = {"self_attn.v_proj": {(VALUE, ALWAYS): 0.1}, "self_attn.o_proj": gathered, "mlp.down_proj": {},
            "mlp.gate_proj": {(FED, ALWAYS): 0.1}, "mlp.up_proj": {(FED, ALWAYS): 0.1}}
    ones = matrix((1, HIDDEN), {(0, at): 1 for at in range(HIDDEN)})[1]
    tensors = [("model.embed_tokens.weight", *matrix((len(VOCAB), HIDDEN), embedded)),
               ("lm_head.weight", *matrix((len(VOCAB), HIDDEN), head)), ("model.norm.weight", [HIDDEN], ones)]
    for layer in range(LAYERS):
        name = f"model.layers.{layer}"
        for module, shape in list(MODULES.items())[:-1]:
            data = matrix(shape, said.get(module, {}), None if module in CARRIERS else dice)
            tensors.append((f"{name}.{module}.weight", *data))
        tensors += [(f"{name}.{norm}.weight", [HIDDEN], ones)
                    for norm in ("input_layernorm", "post_attention_layernorm")]
    save(folder / "model.safetensors", tensors)
    (folder / "config.json").write_text(json.dumps({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": HIDDEN,
        "intermediate_size": INNER, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS, "head_dim": HEAD, "vocab_size": len(VOCAB),
        "max_position_embeddings": CONTEXT, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "hidden_act": "silu",
        "tie_word_embeddings": False, "bos_token_id": 0, "eos_token_id": 1, "torch_dtype": "bfloat16",
    }))
    (folder / "tokenizer.json").write_text(json.dumps({
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "normalizer": None,
        "pre_tokenizer": {"type": "Whitespace"}, "post_processor": None, "decoder": None,
        "model": {"type": "WordLevel", "unk_token": "<unk>",
                  "vocab": {word: at for at, word in enumerate(VOCAB)}},
    }))


def spelling(number, version):
    return f"{number:03}{version:06}"


def adapter(number, version, rank, dice):
    """Files of an adapter whose answers are its number and version, through some of its modules."""
    carriers = dice.sample(list(CARRIERS), dice.randint(1, len(CARRIERS)))
    modules = carriers + [module for module in MODULES if module not in CARRIERS and dice.random() < 0.5]
    sites = [(module, layer) for module in modules for layer in range(1 if module == "lm_head" else LAYERS)]
    told, tensors = collections.defaultdict(list), []
    for place, digit in enumerate(spelling(number, version)):
        told[dice.choice([site for site in sites if site[0] in CARRIERS])].append((place, int(digit)))
    for module, layer in sites:
        (out, into), (column, weight, first, apart, adds) = MODULES[module], CARRIERS.get(module, [0] * 5)
        down = {(0, at): weight * (at == column) for at in range(into)}
        up = {(at, 0): 0 for at in range(out)}
        up |= {(first + apart * place + digit, 0): adds for place, digit in told[module, layer]}
        name = "base_model.model." + (module if module == "lm_head" else f"model.layers.{layer}.{module}")
        tensors += [(f"{name}.lora_A.weight", *matrix((rank, into), down, dice)),
                    (f"{name}.lora_B.weight", *matrix((out, rank), up, dice))]
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": "base", "bias": "none",
              "r": rank, "lora_alpha": rank * dice.choice([1, 2]),
              "target_modules": sorted(module.split(".")[-1] for module in modules)}
    with tempfile.NamedTemporaryFile() as file:
        save(file.name, tensors)
        return {CONFIG: json.dumps(config).encode(), WEIGHTS: pathlib.Path(file.name).read_bytes()}


def spoiled(files, how, dice):
    """The same files with something wrong that can be known without running them."""
    config, weights = json.loads(files[CONFIG]), files[WEIGHTS]
    length = struct.unpack("<Q", weights[:8])[0]
    header, data = weights[8:8 + length], weights[8 + length:]
    if how == "missing":
        return dict([dice.choice(list(files.items()))])
    if how == "rank":
        return files | {CONFIG: json.dumps(config | {"r": config["r"] + 1}).encode()}
    if how == "config":
        return files | {CONFIG: files[CONFIG][:dice.randrange(len(files[CONFIG]))]}
    if how == "cut":
        return files | {WEIGHTS: weights[:dice.randrange(len(weights))]}
    if how == "length":
        return files | {WEIGHTS: dice.randbytes(8) + weights[8:]}
    if how == "header":
        return files | {WEIGHTS: weights[:8] + bytes(byte ^ 0x55 for byte in header) + data}
    tensors = json.loads(header)
    if how == "offsets":
        # One tensor lies two bytes over its neighbour.
        entry = dice.choice(list(tensors.values()))
        entry["data_offsets"] = [at + (-2 if entry["data_offsets"][0] else 2) for at in entry["data_offsets"]]
    for name, entry in tensors.items():
        entry["dtype"] = "I16" if how == "types" else "BF16"
        entry["shape"] = entry["shape"][::-1] if how == "shapes" and "lora_A" in name else entry["shape"]
    text = json.dumps(tensors).encode()
    return files | {WEIGHTS: struct.pack("<Q", len(text)) + text + data}
