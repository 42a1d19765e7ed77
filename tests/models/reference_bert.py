"""Tiny BERT encoders and classifiers, each with a real WordPiece tokenizer, and what they compute from text."""

import json
from pathlib import Path

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.models import Normalize, Pooling, Transformer
from transformers import BertConfig, BertForSequenceClassification, BertModel, BertTokenizerFast

from reference_output import fresh_folder, randomise, rounded, write_json
from wordpiece import wordpiece

MAX_LENGTH = 48
VOCAB_SIZE = 280
TOKENIZER_TEXT = [
    "The night train leaves the roundhouse at seven and carries letters, parcels and sleeping passengers.",
    "A signal box by the river counts the wagons; the keeper writes every number into a worn green book.",
    "When the turntable sticks, two fitters with long bars push until the engine faces the open stall.",
    "Coal, water, oil and patience: nothing moves without them, said the driver and wiped the gauge glass.",
    "Der Zug fährt über die Brücke. Le café de la gare est fermé. El señor pidió un billete más barato.",
    "Return the parcel within thirty days and we refund the price, the postage and a small apology.",
]
TEXTS = [
    "the turntable",
    "",
    "a",
    "The keeper counts the wagons at night.",
    "Café, señor & Brücke — 42!",
    "火车 leaves at seven 🚂",
    "   spaces\tand\nlines   between   words   ",
    "unbelievablyunsegmentedlongword",
    "Coal, water, oil and patience: nothing moves without them, said the driver.",
]
LONG_TEXT = "the engine faces the open stall and the driver counts every wagon " * 6
PAIRS = [
    ("when does the train leave?", "The night train leaves at seven."),
    ("coal", "Return the parcel within thirty days."),
]

ENCODERS = {
    "bert-mean-normalised": dict(
        seed=201, pooling="mean", normalise=True, classic=True, config=dict(hidden_act="gelu"),
    ),
    "bert-cls": dict(seed=202, pooling="cls", normalise=False, classic=False, config=dict(hidden_act="gelu_new")),
    "bert-plain": dict(seed=203, pooling=None, normalise=False, config=dict(hidden_act="relu")),
}
CLASSIFIERS = {
    "bert-single-label": dict(
        seed=211, activation="softmax", config=dict(problem_type="single_label_classification"),
        labels=["negative", "neutral", "positive"],
    ),
    "bert-multi-label": dict(
        seed=212, activation="sigmoid", config=dict(problem_type="multi_label_classification"),
        labels=["late", "damaged", "lost", "praise"],
    ),
    "bert-one-label": dict(seed=213, activation="sigmoid", config=dict(), labels=["LABEL_0"]),
}


def write_bert_cases(root: Path) -> None:
    for name, case in ENCODERS.items():
        write_encoder(fresh_folder(root / name), name, case)
    for name, case in CLASSIFIERS.items():
        write_classifier(fresh_folder(root / name), name, case)


def bert_config(tokenizer: BertTokenizerFast, **changes) -> BertConfig:
    return BertConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
        max_position_embeddings=MAX_LENGTH, attn_implementation="eager", **changes,
    )


def write_encoder(folder: Path, name: str, case: dict) -> None:
    tokenizer = wordpiece(TOKENIZER_TEXT, VOCAB_SIZE, MAX_LENGTH)
    model = BertModel(bert_config(tokenizer, **case["config"])).eval()
    randomise(model, case["seed"], spread=0.2)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    if case["pooling"]:
        save_as_sentence_transformer(folder, case)
    inputs = []
    for text in [*TEXTS, LONG_TEXT]:
        encoded = encode(tokenizer, text)
        hidden = run(model, encoded).last_hidden_state[0]  # [seq, hidden]
        pooled = hidden[0] if case["pooling"] == "cls" else hidden.mean(dim=0)
        final = torch.nn.functional.normalize(pooled, dim=0) if case["normalise"] else pooled
        inputs.append(described(text, None, encoded) | dict(pooled=rounded(pooled), embedding=rounded(final)))
    if case["pooling"]:
        check_against_sentence_transformers(folder, inputs)
    write_json(
        folder / "expected.json",
        dict(
            case=name, kind="bert-encoder", seed=case["seed"], pooling=case["pooling"] or "mean",
            normalise=case["normalise"], max_length=MAX_LENGTH, inputs=inputs,
        ),
    )


def save_as_sentence_transformer(folder: Path, case: dict) -> None:
    transformer = Transformer(str(folder), max_seq_length=MAX_LENGTH)
    modules = [transformer, Pooling(transformer.get_word_embedding_dimension(), pooling_mode=case["pooling"])]
    if case["normalise"]:
        modules.append(Normalize())
    SentenceTransformer(modules=modules, device="cpu").save(str(folder), create_model_card=False)
    if case["classic"]:
        write_classic_layout(folder, case["pooling"])
    # Git keeps no empty folder, and neither do checkpoints on a hub: `2_Normalize` has no files.
    for path in folder.iterdir():
        if path.is_dir() and not any(path.iterdir()):
            path.rmdir()


def write_classic_layout(folder: Path, pooling: str) -> None:
    """The same layout in the words of sentence-transformers 2 to 4, which most published models use."""
    modules = json.loads((folder / "modules.json").read_text())
    for module in modules:
        module["type"] = "sentence_transformers.models." + module["type"].rsplit(".", 1)[1]
    modes = ("cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens")
    config = dict(word_embedding_dimension=32)
    config |= {f"pooling_mode_{mode}": mode.split("_")[0] == pooling and "sqrt" not in mode for mode in modes}
    (folder / "modules.json").write_text(json.dumps(modules, indent=2))
    (folder / "1_Pooling/config.json").write_text(json.dumps(config, indent=2))
    (folder / "sentence_bert_config.json").write_text(
        json.dumps(dict(max_seq_length=MAX_LENGTH, do_lower_case=False), indent=2)
    )


def check_against_sentence_transformers(folder: Path, inputs: list[dict]) -> None:
    """The library that owns the layout agrees with the vectors we write (it sees one ragged batch)."""
    theirs = SentenceTransformer(str(folder), device="cpu").encode(
        [item["text"] for item in inputs], convert_to_tensor=True
    )
    ours = torch.tensor([item["embedding"] for item in inputs])
    torch.testing.assert_close(theirs, ours, atol=2e-5, rtol=1e-4)


def write_classifier(folder: Path, name: str, case: dict) -> None:
    tokenizer = wordpiece(TOKENIZER_TEXT, VOCAB_SIZE, MAX_LENGTH)
    labels = case["labels"]
    config = bert_config(
        tokenizer, id2label=dict(enumerate(labels)), label2id={label: i for i, label in enumerate(labels)},
        **case["config"],
    )
    model = BertForSequenceClassification(config).eval()
    randomise(model, case["seed"], spread=0.2)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    inputs = []
    for text, pair in [*((text, None) for text in TEXTS), *PAIRS]:
        encoded = encode(tokenizer, text, pair)
        logits = run(model, encoded).logits[0]  # [labels]
        scores = logits.sigmoid() if case["activation"] == "sigmoid" else logits.softmax(dim=0)
        inputs.append(described(text, pair, encoded) | dict(logits=rounded(logits), scores=rounded(scores)))
    write_json(
        folder / "expected.json",
        dict(
            case=name, kind="bert-classifier", seed=case["seed"], activation=case["activation"], labels=labels,
            max_length=MAX_LENGTH, inputs=inputs,
        ),
    )


def encode(tokenizer: BertTokenizerFast, text: str, pair: str | None = None) -> dict:
    return tokenizer(text, pair, truncation=True, max_length=MAX_LENGTH, return_tensors="pt")


@torch.inference_mode()
def run(model: torch.nn.Module, encoded: dict):
    return model(**encoded)


def described(text: str, pair: str | None, encoded: dict) -> dict:
    ids = encoded["input_ids"][0].tolist()
    return dict(
        text=text, pair=pair, ids=ids, type_ids=encoded["token_type_ids"][0].tolist(),
        truncated=text == LONG_TEXT,
    )
