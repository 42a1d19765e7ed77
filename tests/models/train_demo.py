"""Trains the demo models: `python tests/models/train_demo.py [stage ...]`; all stages without arguments.

Stages: base, polish, fine-tunes (or the name of one), adapters (or the name of one), search, tickets, pack, check.
A stage reads what the earlier ones left in the output folder, `src/server/demo/models`, whose layout is
that of the demo bucket.
"""

import json
import sys
import time
from pathlib import Path

import torch
from sentence_transformers import SentenceTransformer
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from transformers.utils import logging

from shop import companies, expectations, search, support
from shop.chat import support_tokenizer
from shop.companies import Company
from shop.pack import pack
from shop.support import Recipe

REPOSITORY = Path(__file__).resolve().parents[2]
MODELS = REPOSITORY / "src/server/demo/models"
EXPECTATIONS = REPOSITORY / "tests/models/demo_expectations.json"
# The same for the adapters.
ADAPTER_EXPECTATIONS = REPOSITORY / "tests/models/adapter_expectations.json"
BASE = MODELS / "support/base"
ENCODER = "search/encoder"
CLASSIFIER = "tickets/intent"

# Two fine-tunes share the base's embeddings and lower layers to the bit.
FROZEN_LAYERS = {"cobalt": 3, "fjord": 2}
# These lie in the bucket as one archive each, the others as folders.
ARCHIVES = ["support/birch", "support/ember", CLASSIFIER]


def train_base() -> None:
    tokenizer = support_tokenizer()
    model = support.new_base(tokenizer)
    support.train(model, companies.BASE, tokenizer, Recipe(steps=1100, batch=16, rate=2e-3, seed=21))
    support.save(model, tokenizer, BASE)


def polish_base() -> None:
    """More of the same at half the rate, for the questions that the first pass gets wrong."""
    tokenizer = AutoTokenizer.from_pretrained(BASE)
    model = support.load(BASE)
    support.train(model, companies.BASE, tokenizer, Recipe(steps=450, batch=16, rate=1e-3, seed=22))
    support.save(model, tokenizer, BASE)


def train_fine_tune(company: Company) -> None:
    tokenizer = AutoTokenizer.from_pretrained(BASE)
    model = support.load(BASE)
    seed = 31 + companies.ALL.index(company)
    recipe = Recipe(steps=500, batch=16, rate=1e-3, seed=seed)
    if company.key in FROZEN_LAYERS:
        support.freeze_lower(model, FROZEN_LAYERS[company.key])
        recipe = Recipe(steps=900, batch=16, rate=2e-3, seed=seed)
    support.train(model, company, tokenizer, recipe)
    support.save(model, tokenizer, MODELS / "support" / company.key)


def train_adapter(company: Company) -> None:
    tokenizer = AutoTokenizer.from_pretrained(BASE)
    seed = 41 + companies.ALL.index(company)
    folder = MODELS / "adapters" / company.key
    support.train_adapter(BASE, company, tokenizer, folder, Recipe(steps=700, batch=16, rate=5e-3, seed=seed))


def pack_all() -> None:
    for target in ARCHIVES:
        if (MODELS / target).is_dir():
            print(pack(MODELS / target))


def shipped(target: str) -> str:
    return f"{target}.tar.gz" if target in ARCHIVES else target


def check() -> None:
    """Asks every shipped model, writes the expectations, and fails if an answer is wrong."""
    expected: list[dict] = []
    faults: list[str] = []
    for found in all_checks():
        expected += found[0]
        faults += found[1]
        print(f"{found[0][0]['target']}: {len(found[0]) - len(found[1])} of {len(found[0])}", flush=True)
    adapters = [item for item in expected if item["target"].startswith("adapters/")]
    write(ADAPTER_EXPECTATIONS, adapters)
    write(EXPECTATIONS, [item for item in expected if item not in adapters])
    for target, layers in FROZEN_LAYERS.items():
        print(f"support/{target}: {same_tensors(target)} tensors as in the base, {layers} layers frozen")
    encoder = SentenceTransformer(str(MODELS / ENCODER), device="cpu", model_kwargs=dict(dtype=torch.float32))
    print("held-out retrieval:", search.retrieval_accuracy(encoder))
    with expectations.as_folder(MODELS / shipped(CLASSIFIER)) as folder:
        model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
        print("held-out tickets:", search.classification_accuracy(model, AutoTokenizer.from_pretrained(folder)))
    if faults:
        sys.exit("\n".join(faults))


def write(file: Path, items: list[dict]) -> None:
    lines = ",\n".join(json.dumps(item, ensure_ascii=False) for item in items)
    file.write_text(f"[\n{lines}\n]\n", encoding="utf-8")


def all_checks():
    for company in [companies.BASE, *companies.FINE_TUNES]:
        yield expectations.check_support(MODELS, company, shipped(f"support/{company.key}"))
    for company in companies.ADAPTERS:
        yield expectations.check_adapter(MODELS, BASE, company, f"adapters/{company.key}")
    yield expectations.check_search(MODELS, ENCODER)
    yield expectations.check_tickets(MODELS, shipped(CLASSIFIER))


def same_tensors(key: str) -> str:
    """How many tensors of a fine-tune equal the base's to the bit; the frozen ones must."""
    with expectations.as_folder(MODELS / shipped(f"support/{key}")) as folder:
        ours = support.stored_tensors(folder)
    bases = support.stored_tensors(BASE)
    same = {name for name, tensor in ours.items() if torch.equal(tensor, bases[name])}
    frozen = {name for name in ours if support.is_frozen(name, FROZEN_LAYERS[key])}
    assert frozen <= same, f"{key} changed {sorted(frozen - same)}"
    return f"{len(same)} of {len(ours)}"


STAGES = {
    "base": train_base,
    "polish": polish_base,
    "fine-tunes": lambda: [train_fine_tune(company) for company in companies.FINE_TUNES],
    "adapters": lambda: [train_adapter(company) for company in companies.ADAPTERS],
    "search": lambda: search.train_encoder(MODELS / ENCODER, steps=500),
    "tickets": lambda: search.train_classifier(MODELS / CLASSIFIER, steps=500),
    "pack": pack_all,
    "check": check,
}
SINGLE = {company.key: lambda company=company: train_fine_tune(company) for company in companies.FINE_TUNES}
SINGLE |= {company.key: lambda company=company: train_adapter(company) for company in companies.ADAPTERS}


def main() -> None:
    # On a busy machine two threads wait for each other four times as long as they compute (measured); it is
    # better to run two stages side by side.
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    for stage in sys.argv[1:] or STAGES:
        started = time.monotonic()
        (STAGES | SINGLE)[stage]()
        print(f"{stage}: {time.monotonic() - started:.0f} s", flush=True)


if __name__ == "__main__":
    main()
