"""The tokenizer and the chat template of the support models."""

import random

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from . import companies
from .dialogues import dialogue, question_and_answer

VOCAB_SIZE = 1024
CONTEXT = 512
PAD, START, END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
# One digit a token: opening hours and telephone numbers are then spelled, not guessed.
WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
TEMPLATE = """\
{%- for message in messages -%}
{%- if message['role'] not in ['system', 'user', 'assistant'] -%}
{{ raise_exception('unknown role ' + message['role']) }}
{%- endif -%}
{%- if message['content'] -%}
{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] | trim + '<|im_end|>\\n' }}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{ '<|im_start|>assistant\\n' }}
{%- endif -%}
"""


def support_tokenizer() -> PreTrainedTokenizerFast:
    rng = random.Random(1)
    texts = ["\n".join(question_and_answer(rng.choice(companies.ALL), rng)) for _ in range(12000)]
    texts += ["Question: Answer: system user assistant"] * 500
    texts += [message["content"] for _ in range(3000) for message in dialogue(rng.choice(companies.ALL), rng)]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(WORDS), behavior="isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE, show_progress=False, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=[AddedToken(token, normalized=False, special=True) for token in (PAD, START, END)],
    )
    tokenizer.train_from_iterator(texts, trainer)
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=PAD, eos_token=END, pad_token=PAD, model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )
    wrapped.chat_template = TEMPLATE
    return wrapped


def chat_example(tokenizer: PreTrainedTokenizerFast, messages: list[dict]) -> tuple[list[int], list[int]]:
    """Token ids, and labels that hold only what the assistant says, its end token included."""
    ids: list[int] = []
    labels: list[int] = []
    for message in messages:
        if not message["content"]:
            continue
        head = tokenizer.encode(f"{START}{message['role']}\n", add_special_tokens=False)
        said = tokenizer.encode(message["content"].strip() + END, add_special_tokens=False)
        line_break = tokenizer.encode("\n", add_special_tokens=False)
        ids += head + said + line_break
        labels += [-100] * len(head)
        labels += said if message["role"] == "assistant" else [-100] * len(said)
        labels += [-100] * len(line_break)
    return ids, labels


def plain_example(tokenizer: PreTrainedTokenizerFast, question: str, reply: str) -> tuple[list[int], list[int]]:
    """The same without the chat template, for plain completion requests."""
    head = tokenizer.encode(f"Question: {question}\nAnswer:", add_special_tokens=False)
    said = tokenizer.encode(f" {reply}{END}", add_special_tokens=False)
    return head + said, [-100] * len(head) + said
