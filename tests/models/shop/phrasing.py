"""Turns patterns into sentences as customers type them."""

import random
import re

from .companies import Company
from .questions import CITIES, COUNTRIES, SUBJECTS, THINGS

INNERMOST = re.compile(r"\{([^{}]*)\}")
OPENERS = [
    "hi, ", "hello, ", "hey, ", "hi! ", "hello! ", "good morning, ", "good afternoon, ", "please tell me, ", "excuse me, ",
    "sorry, ", "ok, ", "and ", "so ", "a question: ", "I have a question: ", "I would like to know, ", "quick question, ",
    "can you tell me, ", "just wondering, ", "well, ", "hi there, ",
]
CLOSERS = [", please", " please", ", thanks", " then", " exactly", ", thank you", " again"]
CONTRACTIONS = [
    (" is not", " isn't"), ("what is ", "what's "), ("where is ", "where's "), ("who is ", "who's "), ("it is ", "it's "),
    (" do not", " don't"), (" did not", " didn't"), (" has not", " hasn't"), (" have not", " haven't"),
    (" does not", " doesn't"), ("I am ", "I'm "), ("I have ", "I've "), ("I would ", "I'd "),
    ("cannot", "can't"), ("want to ", "wanna "), (" are not", " aren't"),
]
KEYS = "abcdefghijklmnopqrstuvwxyz"


def expand(pattern: str, rng: random.Random) -> str:
    """Picks one alternative of every brace, the innermost first."""
    while INNERMOST.search(pattern):
        pattern = INNERMOST.sub(lambda match: rng.choice(match.group(1).split("|")), pattern, count=1)
    return " ".join(pattern.split())


def fill(text: str, company: Company, rng: random.Random) -> str:
    nonsense = " ".join("".join(rng.choices(KEYS, k=rng.randint(2, 8))) for _ in range(rng.randint(1, 3)))
    invented = nonsense.split()[0]
    choices = {
        "company": company.name,
        "product": company.product,
        "goods": company.goods,
        "thing": rng.choice([*THINGS, invented]),
        "subject": rng.choice([*SUBJECTS, invented]),
        "city": rng.choice([*CITIES, invented.title()]),
        "country": rng.choice([*COUNTRIES, invented.title()]),
        "nonsense": nonsense,
    }
    return re.sub(r"<(\w+)>", lambda match: choices[match.group(1)], text)


def typed(text: str, rng: random.Random, is_question: bool = True) -> str:
    """Adds what real typing adds: contractions, openers, case, punctuation, now and then a slip."""
    if rng.random() < 0.4:
        text = contracted(text)
    if is_question and rng.random() < 0.3:
        text = rng.choice(OPENERS) + text
    if is_question and rng.random() < 0.08:
        text += rng.choice(CLOSERS)
    text = text[0].upper() + text[1:] if rng.random() < 0.75 else text.lower()
    if rng.random() < 0.05:
        text = with_a_slip(text, rng)
    weights = [60, 25, 8, 3, 2, 2] if is_question else [5, 40, 30, 25, 0, 0]
    return text + rng.choices(["?", "", ".", "!", " ?", "??"], weights=weights)[0]


def contracted(text: str) -> str:
    """`what is` becomes `what's`, `has not` becomes `hasn't`, and so on."""
    for long, short in CONTRACTIONS:
        text = text.replace(long, short)
    return text


def with_a_slip(text: str, rng: random.Random) -> str:
    """Drops, doubles or swaps one letter."""
    place = rng.randrange(len(text))
    kind = rng.randrange(3)
    if kind == 0:
        return text[:place] + text[place + 1:] or text
    if kind == 1:
        return text[:place] + text[place] + text[place:]
    return text[:place] + text[place:place + 2][::-1] + text[place + 2:]
