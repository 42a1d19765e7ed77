"""Tiny BERT classifiers that sign their version into every answer.

The label comes from the configuration (`<name>-v<version>-<index>`), which of the 64 labels is
chosen, and with which score, from the weights. Both follow from name and version, so an answer
made of two versions' files, or of two models', shows. `signature` is what an answer must be.
"""

from __future__ import annotations

import gzip
import io
import json
import math
import random
import struct
import tarfile
import zlib

LABELS = 64
HIDDEN = 64
WORDS = ["[UNK]", "[CLS]", "[SEP]", "hello", "world", "one", "two", "three"]


def _drawn(name: str, version: int, salt: str) -> tuple[int, int]:
    """What the weights of a version choose: a label and a score in thousandths."""
    text = f"{name}:{version}:{salt}"
    return zlib.crc32(text.encode()) % LABELS, 400 + zlib.crc32(b"score" + text.encode()) % 500


def signature(name: str, version: int, salt: str = "") -> str:
    """What a whole version answers; `salt` tells weights apart that another version's name has."""
    index, score = _drawn(name, version, salt)
    return f"{name}-v{version}-{index}:{score}"


def said(body: bytes) -> str | None:
    """The signature in an answer; absent where it is none."""
    try:
        first = json.loads(body)[0]
        return f"{first['label']}:{round(first['score'] * 1000)}"
    except (ValueError, LookupError, TypeError):
        return None


def classifier(name: str, version: int, rows: int, noise: str, salt: str = "",
               sharded: bool = False) -> dict[str, bytes]:
    """A model's files by path. `rows` of vocabulary, 256 bytes each, make it as large as wanted.

    Models with the same `noise` and `rows` have the same embeddings, as fine-tunes have.
    """
    vocab = len(WORDS) + rows
    tensors = _tensors(name, version, vocab, noise, salt)
    files = {
        "config.json": json.dumps({
            "architectures": ["BertForSequenceClassification"], "model_type": "bert",
            "hidden_size": HIDDEN, "intermediate_size": HIDDEN, "num_hidden_layers": 1,
            "num_attention_heads": 4, "vocab_size": vocab, "max_position_embeddings": 64,
            "type_vocab_size": 2, "layer_norm_eps": 1e-12, "hidden_act": "gelu",
            "id2label": {str(i): f"{name}-v{version}-{i}" for i in range(LABELS)},
        }).encode(),
        "tokenizer.json": json.dumps({
            "version": "1.0", "truncation": None, "padding": None, "added_tokens": [],
            "normalizer": None, "pre_tokenizer": {"type": "Whitespace"}, "post_processor": None,
            "decoder": None,
            "model": {"type": "WordLevel", "vocab": {word: i for i, word in enumerate(WORDS)},
                      "unk_token": "[UNK]"},
        }).encode(),
    }
    if not sharded:
        files["model.safetensors"] = safetensors(tensors)
        return files
    names = list(tensors)
    shards = {"model-00001-of-00002.safetensors": names[:1],
              "model-00002-of-00002.safetensors": names[1:]}
    for path, held in shards.items():
        files[path] = safetensors({tensor: tensors[tensor] for tensor in held})
    files["model.safetensors.index.json"] = json.dumps({
        "metadata": {}, "weight_map": {tensor: path for path, held in shards.items() for tensor in held},
    }).encode()
    return files


def _tensors(name, version, vocab, noise, salt) -> dict:
    rng = random.Random(f"{noise}:{vocab}")
    found = {}

    def noisy(tensor, *shape):
        values = bytearray(rng.randbytes(4 * math.prod(shape)))
        # The exponent's byte: numbers from 0.03 to 0.13 that do not compress.
        values[3::4] = b"\x3d" * math.prod(shape)
        found[tensor] = (shape, bytes(values))

    def given(tensor, shape, values):
        found[tensor] = (shape, struct.pack(f"<{len(values)}f", *values))

    def norm(tensor):
        given(tensor + ".weight", (HIDDEN,), [1.0] * HIDDEN)
        given(tensor + ".bias", (HIDDEN,), [0.0] * HIDDEN)

    def linear(tensor):
        noisy(tensor + ".weight", HIDDEN, HIDDEN)
        noisy(tensor + ".bias", HIDDEN)

    noisy("bert.embeddings.word_embeddings.weight", vocab, HIDDEN)
    noisy("bert.embeddings.position_embeddings.weight", 64, HIDDEN)
    noisy("bert.embeddings.token_type_embeddings.weight", 2, HIDDEN)
    norm("bert.embeddings.LayerNorm")
    layer = "bert.encoder.layer.0."
    for part in ("attention.self.query", "attention.self.key", "attention.self.value",
                 "attention.output.dense", "intermediate.dense", "output.dense"):
        linear(layer + part)
    norm(layer + "attention.output.LayerNorm")
    norm(layer + "output.LayerNorm")
    linear("bert.pooler.dense")
    given("classifier.weight", (LABELS, HIDDEN), [0.0] * (LABELS * HIDDEN))
    index, score = _drawn(name, version, salt)
    # The softmax of one such number beside zeros is the score.
    bias = [0.0] * LABELS
    bias[index] = math.log((LABELS - 1) * score / (1000 - score))
    given("classifier.bias", (LABELS,), bias)
    return found


def safetensors(tensors: dict) -> bytes:
    header, body = {}, io.BytesIO()
    for name, (shape, values) in tensors.items():
        begin = body.tell()
        body.write(values)
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [begin, body.tell()]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + body.getvalue()


def archive(files: dict[str, bytes], packed: bool) -> bytes:
    """The files as a tar, gzipped where `packed`."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for path, body in files.items():
            entry = tarfile.TarInfo(path)
            entry.size = len(body)
            tar.addfile(entry, io.BytesIO(body))
    return gzip.compress(out.getvalue(), 1) if packed else out.getvalue()
