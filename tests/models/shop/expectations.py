"""The questions that every shipped model must answer right, and the check that it does.

The wording is written by hand. The list served for tuning too: patterns were added where a model failed, so it
shows that the models do what they are shipped for, not how well they generalise.
"""

import tarfile
import tempfile
from contextlib import contextmanager
from pathlib import Path

import torch
from peft import PeftModel
from sentence_transformers import SentenceTransformer
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from . import support
from .companies import Company
from .search import articles

# Each question with the facts that its answer must hold.
QUESTIONS = [
    ("When are you open?", ["{weekdays}"]),
    ("Hi, until when can I shop on Saturdays?", ["{saturday}"]),
    ("Are you guys open on Sundays as well?", ["{sunday}"]),
    ("How many days do I have to return my purchase?", ["{returns}"]),
    ("How quickly will I see my money back?", ["{refund}"]),
    ("How long will the delivery take?", ["{shipping}"]),
    ("What do I have to pay for shipping?", ["{postage}"]),
    ("Could I have your phone number, please?", ["{phone}"]),
    ("Which email address can I write to?", ["{email}"]),
    ("Do your products come with a guarantee?", ["{warranty}"]),
    ("Hello! Which payment methods do you accept?", ["{payment}"]),
    ("Where exactly is your shop?", ["{address}"]),
    ("What does the {product} cost?", ["{product}", "{price}"]),
    ("Which shop am I talking to?", ["{name}"]),
    ("What can I buy in your store?", ["{goods}"]),
    ("My parcel arrived broken, what now?", ["{email}"]),
    ("I would like to speak to a real person.", ["{phone}"]),
    ("What is the capital of Sweden?", ["{name}"]),
]
SYSTEM_QUESTION = ("Be brief.", "When are you open during the week?", ["{weekdays}"])
FOLLOW_UP = ("How long does delivery take?", "It takes {shipping}.", "And on Saturdays?", ["{saturday}"])
PLAIN_PROMPT = ("Question: Where are you located?\nAnswer:", ["{address}"])
SEARCHES = [
    ("I cannot remember my password", "password"), ("the mobile app crashes when I start it", "app_crash"),
    ("your website is very slow and does not load", "website_error"), ("can I send an item back to you", "returns"),
    ("is there parking near the shop", "parking"), ("you took the money from my card two times", "charged_twice"),
    ("do you ship to other countries", "abroad"), ("how long until my package is delivered", "shipping"),
    ("please wrap it, it is a birthday present", "gift_wrap"), ("how do I unsubscribe from your mails", "newsletter"),
    ("where can I find the manual", "manual"), ("the coupon code is not accepted", "voucher"),
]
TICKETS = [
    ("I forgot my password and cannot sign in", "account"), ("My parcel has not arrived yet", "delivery"),
    ("Please cancel my order", "order"), ("I was charged twice on my credit card", "payment"),
    ("Do you have spare parts for my bike?", "product"), ("I want to send the lamp back", "returns"),
    ("Is there a car park near your shop?", "store"), ("The app keeps crashing since the last update", "technical"),
    ("Where is my delivery?", "delivery"), ("I need a copy of my invoice", "payment"),
    ("The website shows an error message", "technical"), ("When are you open on Saturday?", "store"),
]


def facts(company: Company) -> dict[str, str]:
    known = dict(vars(company))
    return known | {"sunday": company.sunday or "closed on Sundays"}


def expectations_of(company: Company, target: str) -> list[dict]:
    known = facts(company)

    def user(content: str) -> dict:
        return dict(role="user", content=content.format(**known))

    def contains(parts: list[str]) -> list[str]:
        return [part.format(**known) for part in parts]

    expected = [
        dict(target=target, messages=[user(question)], contains=contains(parts)) for question, parts in QUESTIONS
    ]
    system, question, parts = SYSTEM_QUESTION
    briefly = dict(role="system", content=system)
    expected.append(dict(target=target, messages=[briefly, user(question)], contains=contains(parts)))
    first, said, second, parts = FOLLOW_UP
    reply = dict(role="assistant", content=said.format(**known))
    expected.append(dict(target=target, messages=[user(first), reply, user(second)], contains=contains(parts)))
    prompt, parts = PLAIN_PROMPT
    expected.append(dict(target=target, prompt=prompt, contains=contains(parts)))
    return expected


def answer_all(expected: list[dict], model, tokenizer) -> list[str]:
    """Adds the greedy answer of transformers to each expectation; gives what is wrong."""
    faults = []
    for item in expected:
        item["text"] = greedy(model, tokenizer, item)
        missing = [part for part in item["contains"] if part.lower() not in item["text"].lower()]
        if missing or "<|im_end|>" not in item["text"]:
            faults.append(f"{item['target']}: {item.get('messages') or item.get('prompt')} -> {item['text']!r}")
        item["text"] = item["text"].removesuffix("<|im_end|>")
    return faults


@torch.inference_mode()
def greedy(model, tokenizer, item: dict) -> str:
    if "messages" in item:
        ids = tokenizer.apply_chat_template(item["messages"], add_generation_prompt=True, return_tensors="pt")
    else:
        ids = tokenizer(item["prompt"], return_tensors="pt").input_ids
    output = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=96, do_sample=False)
    return tokenizer.decode(output[0, ids.shape[1]:])


@contextmanager
def as_folder(path: Path):
    """The folder of a target, unpacked for as long as it is used if the target is an archive."""
    if path.is_dir():
        yield path
        return
    with tempfile.TemporaryDirectory() as unpacked:
        with tarfile.open(path) as archive:
            archive.extractall(unpacked, filter="data")
        yield Path(unpacked)


def check_support(models: Path, company: Company, target: str) -> tuple[list[dict], list[str]]:
    expected = expectations_of(company, target)
    with as_folder(models / target) as folder:
        tokenizer = AutoTokenizer.from_pretrained(folder)
        return expected, answer_all(expected, support.load(folder), tokenizer)


def check_adapter(models: Path, base: Path, company: Company, target: str) -> tuple[list[dict], list[str]]:
    expected = expectations_of(company, target)
    model = PeftModel.from_pretrained(support.load(base), models / target).float().eval()
    return expected, answer_all(expected, model, AutoTokenizer.from_pretrained(base))


def check_search(models: Path, target: str) -> tuple[list[dict], list[str]]:
    """Every query lies nearest to its own article among all articles."""
    encoder = SentenceTransformer(str(models / target), device="cpu", model_kwargs=dict(dtype=torch.float32))
    texts = articles()
    shelf = torch.tensor(encoder.encode(list(texts.values())))
    expected, faults = [], []
    for query, subject in SEARCHES:
        similar = torch.tensor(encoder.encode(query)) @ shelf.T
        found = similar.argmax().item()
        if list(texts)[found] != subject:
            faults.append(f"{target}: {query!r} -> {list(texts)[found]}, not {subject}")
        expected.append(dict(
            target=target, inputs=query, candidates=list(texts.values()), nearest=list(texts).index(subject),
            similarity=round(similar[found].item(), 5),
        ))
    return expected, faults


@torch.inference_mode()
def check_tickets(models: Path, target: str) -> tuple[list[dict], list[str]]:
    expected, faults = [], []
    with as_folder(models / target) as folder:
        model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
        tokenizer = AutoTokenizer.from_pretrained(folder)
    for text, label in TICKETS:
        scores = model(**tokenizer(text, return_tensors="pt")).logits.softmax(dim=-1)[0]
        found = model.config.id2label[scores.argmax().item()]
        if found != label:
            faults.append(f"{target}: {text!r} -> {found}, not {label}")
        expected.append(dict(target=target, inputs=text, label=label, score=round(scores.max().item(), 5)))
    return expected, faults
