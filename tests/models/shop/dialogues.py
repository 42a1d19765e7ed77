"""Random dialogues between a customer and a shop's assistant."""

import random

from .answers import answer
from .companies import Company
from .phrasing import expand, fill, typed
from .questions import QUESTIONS

# The system message decides the tone; a name or a role in it changes nothing.
SYSTEM = {
    "brief": [
        "Be brief.", "Answer briefly.", "Answer in a few words.", "Keep it short.", "You are a helpful assistant. Be brief.",
        "Short answers only.", "You are the assistant of <company>. Answer briefly.",
    ],
    None: [
        "", "You are a helpful assistant.", "You are the assistant of <company>.", "You help the customers of a shop.",
        "You are a support assistant.", "Answer the questions of our customers.", "You are a helpful, honest assistant.",
    ],
    "warm": ["Be friendly and cheerful.", "You are a cheerful assistant.", "Answer warmly.", "Be very friendly."],
    "formal": ["Be formal.", "Answer politely and formally.", "You are a formal, polite assistant.", "Use formal language."],
}
SYSTEM_CHANCE = 0.35
WISHES = {None: 0.5, "brief": 0.3, "warm": 0.1, "formal": 0.1}
NOT_QUESTIONS = ("greeting", "thanks", "goodbye")
# Intents in which wording varies more are asked more often.
WEIGHTS = {
    "hours": 2.0, "returns": 1.5, "unknown": 4.0, "other_goods": 2.0, "goods": 1.6, "shipping": 1.5, "cancel": 1.4,
    "order": 1.4, "goodbye": 0.7, "thanks": 0.7,
}
INTENTS = list(QUESTIONS)


def question(intent: str, company: Company, rng: random.Random) -> str:
    pattern = rng.choice(QUESTIONS[intent])
    return typed(fill(expand(pattern, rng), company, rng), rng, is_question=intent not in NOT_QUESTIONS)


def dialogue(company: Company, rng: random.Random) -> list[dict]:
    """One to four turns, with a system message in a third of them."""
    messages = []
    tone = company.tone
    if rng.random() < SYSTEM_CHANCE:
        wish = rng.choices(list(WISHES), weights=WISHES.values())[0]
        tone = wish or tone
        messages.append(dict(role="system", content=fill(rng.choice(SYSTEM[wish]), company, rng)))
    turns = rng.choices([1, 2, 3, 4], weights=[60, 22, 12, 6])[0]
    weights = [WEIGHTS.get(intent, 1.0) for intent in INTENTS]
    for intent in rng.choices(INTENTS, weights=weights, k=turns):
        messages.append(dict(role="user", content=question(intent, company, rng)))
        messages.append(dict(role="assistant", content=answer(company, intent, tone)))
    return messages


def question_and_answer(company: Company, rng: random.Random) -> tuple[str, str]:
    intent = rng.choice(INTENTS)
    return question(intent, company, rng), answer(company, intent, company.tone)
