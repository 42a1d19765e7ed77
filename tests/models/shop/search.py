"""Trains the sentence encoder and the ticket classifier, and measures both on patterns they never saw."""

import random
from pathlib import Path

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.models import Normalize, Pooling, Transformer
from transformers import BertConfig, BertForSequenceClassification, BertModel

from wordpiece import wordpiece

from . import companies
from .answers import answer
from .phrasing import expand, fill, typed
from .topics import FROM_CHAT, LABELS, OWN, split, subjects

MAX_LENGTH = 128
TEMPERATURE = 0.05
ARTICLE_CHANCE = 0.3
DISK_DTYPE = torch.bfloat16


class Phrases:
    """Random phrasings of each subject, either of the patterns to learn from or of those held out."""

    def __init__(self, seed: int, held_out: bool = False):
        self.rng = random.Random(seed)
        self.subjects = {name: (label, split(patterns)[held_out]) for name, (label, patterns) in subjects().items()}
        self.names = list(self.subjects)

    def phrase(self, subject: str) -> str:
        _, patterns = self.subjects[subject]
        text = expand(self.rng.choice(patterns), self.rng)
        return typed(fill(text, self.rng.choice(companies.ALL), self.rng), self.rng)

    def article(self, subject: str) -> str:
        if subject in FROM_CHAT:
            return answer(self.rng.choice(companies.ALL), subject, "plain")
        return OWN[subject][2]


def articles() -> dict[str, str]:
    """One help text for each subject: the shop's own answers, and articles on what it does not chat about."""
    chat = {subject: answer(companies.BASE, subject, "plain") for subject in FROM_CHAT}
    return chat | {subject: article for subject, (_, _, article) in OWN.items()}


def vocabulary_text() -> list[str]:
    phrases = Phrases(seed=51)
    return [phrases.phrase(name) for name in phrases.names for _ in range(300)] + 20 * list(articles().values())


def bert_config(tokenizer, **sizes) -> BertConfig:
    return BertConfig(
        vocab_size=len(tokenizer), max_position_embeddings=MAX_LENGTH, hidden_dropout_prob=0.1,
        attention_probs_dropout_prob=0.0, initializer_range=0.05, pad_token_id=tokenizer.pad_token_id, **sizes,
    )


def train_encoder(folder: Path, steps: int) -> None:
    torch.manual_seed(52)
    tokenizer = wordpiece(vocabulary_text(), vocab_size=1400, max_length=MAX_LENGTH)
    model = BertModel(bert_config(
        tokenizer, hidden_size=128, num_hidden_layers=4, num_attention_heads=4, intermediate_size=384,
    ))
    phrases = Phrases(seed=53)

    def contrast() -> torch.Tensor:
        left = [phrases.phrase(name) for name in phrases.names]
        right = [
            phrases.article(name) if phrases.rng.random() < ARTICLE_CHANCE else phrases.phrase(name)
            for name in phrases.names
        ]
        similar = embed(model, tokenizer, left) @ embed(model, tokenizer, right).T / TEMPERATURE
        itself = torch.arange(len(left))
        loss = torch.nn.functional.cross_entropy
        return (loss(similar, itself) + loss(similar.T, itself)) / 2

    optimise(model, contrast, steps, "encoder")
    model.to(DISK_DTYPE).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    transformer = Transformer(str(folder), model_kwargs=dict(dtype=DISK_DTYPE), max_seq_length=MAX_LENGTH)
    modules = [transformer, Pooling(transformer.get_word_embedding_dimension(), pooling_mode="mean"), Normalize()]
    SentenceTransformer(modules=modules, device="cpu").save(str(folder), create_model_card=False)
    (folder / "2_Normalize").rmdir()


def embed(model: BertModel, tokenizer, texts: list[str]) -> torch.Tensor:
    encoded = tokenizer(texts, padding=True, truncation=True, max_length=MAX_LENGTH, return_tensors="pt")
    hidden = model(**encoded).last_hidden_state  # [batch, seq, hidden]
    mask = encoded["attention_mask"].unsqueeze(-1)
    return torch.nn.functional.normalize((hidden * mask).sum(dim=1) / mask.sum(dim=1), dim=-1)


def train_classifier(folder: Path, steps: int) -> None:
    torch.manual_seed(54)
    tokenizer = wordpiece(vocabulary_text(), vocab_size=1200, max_length=MAX_LENGTH)
    model = BertForSequenceClassification(bert_config(
        tokenizer, hidden_size=96, num_hidden_layers=3, num_attention_heads=4, intermediate_size=288,
        id2label=dict(enumerate(LABELS)), label2id={label: number for number, label in enumerate(LABELS)},
        problem_type="single_label_classification",
    ))
    phrases = Phrases(seed=55)

    def loss() -> torch.Tensor:
        names = phrases.rng.choices(phrases.names, k=64)
        encoded = tokenizer([phrases.phrase(name) for name in names], padding=True, return_tensors="pt")
        labels = torch.tensor([LABELS.index(phrases.subjects[name][0]) for name in names])
        return torch.nn.functional.cross_entropy(model(**encoded).logits, labels, label_smoothing=0.02)

    optimise(model, loss, steps, "classifier")
    model.to(DISK_DTYPE).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def optimise(model: torch.nn.Module, loss_of_a_batch, steps: int, name: str) -> None:
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, max_lr=1e-3, total_steps=steps, pct_start=0.1)
    model.train()
    for step in range(steps):
        loss = loss_of_a_batch()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        schedule.step()
        if (step + 1) % 100 == 0:
            print(f"{name} step {step + 1}/{steps} loss {loss.item():.4f}", flush=True)
    model.eval()


def retrieval_accuracy(encoder: SentenceTransformer, each: int = 20) -> dict[str, float]:
    """How often the nearest article is the right one, and the nearest known phrasing is of the same subject."""
    queries = Phrases(seed=61, held_out=True)
    known = Phrases(seed=62)
    texts = articles()
    shelf = torch.tensor(encoder.encode(list(texts.values())))
    index = torch.tensor(encoder.encode([known.phrase(name) for name in known.names for _ in range(10)]))
    index_names = [name for name in known.names for _ in range(10)]
    asked = [(name, queries.phrase(name)) for name in queries.names for _ in range(each)]
    vectors = torch.tensor(encoder.encode([text for _, text in asked]))
    nearest_article = (vectors @ shelf.T).argmax(dim=1).tolist()
    nearest_phrase = (vectors @ index.T).argmax(dim=1).tolist()
    right_articles = sum(list(texts)[found] == name for found, (name, _) in zip(nearest_article, asked))
    right_phrases = sum(index_names[found] == name for found, (name, _) in zip(nearest_phrase, asked))
    return dict(article=right_articles / len(asked), paraphrase=right_phrases / len(asked))


@torch.inference_mode()
def classification_accuracy(model, tokenizer, each: int = 40) -> float:
    phrases = Phrases(seed=63, held_out=True)
    right = []
    for name in phrases.names:
        texts = [phrases.phrase(name) for _ in range(each)]
        found = model(**tokenizer(texts, padding=True, return_tensors="pt")).logits.argmax(dim=1).tolist()
        right += [LABELS[label] == phrases.subjects[name][0] for label in found]
    return sum(right) / len(right)
