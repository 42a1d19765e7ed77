"""A byte-level BPE tokenizer, its ids, the decode of every prefix, and rendered chat templates."""

import json
from pathlib import Path

import jinja2
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from reference_output import fresh_folder, write_json
from reference_templates import TEMPLATES

VOCAB_SIZE = 640
SPECIAL_TOKENS = ["<|begin_of_text|>", "<|im_start|>", "<|im_end|>", "<|endoftext|>", "<|eot_id|>"]
# The word pattern of Llama 3.
WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
TOKENIZER_TEXT = [
    "The turntable brings the wanted engine out, and the roundhouse keeps more engines than it has stalls. ",
    "We'll answer as soon as the parcel is found; it's been 12345 days and 6.78 hours, they've said. ",
    "Ünïcödé wörds: naïve café, Straße, señor, façade, Ελληνικά, русский текст, 東京から京都まで, 你好世界. ",
    "def load(path):\n    with open(path) as file:\n        return [line.strip() for line in file]\n\n",
    "🚂🚃🚃 at the station 🚉, 👍🏽 said the 👩‍🔧.\n",
]
TEXTS = [
    "",
    " ",
    "Hello, world!",
    " leading space",
    "   three leading spaces",
    "trailing space ",
    "a\nb\r\nc\n\n\nd\t\te",
    "I'll say it's 1234567.89, won't you?",
    "emoji 🚂 and 👩‍🔧 and 👍🏽 and 🇨🇭",
    "combining: e\u0301 vs \u00e9, n\u0303 vs \u00f1, a\u0308\u0323",
    "東京から京都まで, 你好世界。",
    "русский текст и Ελληνικά",
    "مرحبا بالعالم",
    "zero\u200bwidth and no\u00a0break and \ufeffmark",
    "<|im_start|>user\nspecial tokens in text<|im_end|>\n",
    "<|im_start|> not closed <|im_",
    "def f(x):\n    return x ** 2  # square\n",
    "ΑΒΓ\x00\x01\x7f control",
]


def write_text_case(root: Path) -> None:
    folder = fresh_folder(root / "bpe")
    tokenizer = byte_level_bpe()
    tokenizer.chat_template = TEMPLATES["chatml"]
    tokenizer.save_pretrained(folder)
    write_template_into_config(folder)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    write_json(
        folder / "expected.json",
        dict(
            case="bpe", kind="text", encode=[encoded(tokenizer, text) for text in TEXTS],
            decode=[prefixes(tokenizer, ids) for ids in token_sequences(tokenizer)],
            templates=[rendered(tokenizer, name, template) for name, template in TEMPLATES.items()],
        ),
    )


def byte_level_bpe() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(WORDS), behavior="isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE, min_frequency=1, show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=[AddedToken(token, normalized=False, special=True) for token in SPECIAL_TOKENS],
    )
    tokenizer.train_from_iterator(TOKENIZER_TEXT, trainer)
    begin = SPECIAL_TOKENS[0]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{begin} $A", pair=f"{begin} $A {begin} $B",
        special_tokens=[(begin, tokenizer.token_to_id(begin))],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=begin, eos_token="<|im_end|>", pad_token="<|endoftext|>",
        clean_up_tokenization_spaces=False, model_max_length=512,
    )


def write_template_into_config(folder: Path) -> None:
    """transformers 4.57 writes the template to a file of its own; older checkpoints have it in the
    configuration. We keep both, with the same content."""
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config["chat_template"] = TEMPLATES["chatml"]
    path.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def encoded(tokenizer: PreTrainedTokenizerFast, text: str) -> dict:
    return dict(
        text=text,
        ids=tokenizer.encode(text, add_special_tokens=False),
        ids_with_special=tokenizer.encode(text, add_special_tokens=True),
    )


def token_sequences(tokenizer: PreTrainedTokenizerFast) -> list[list[int]]:
    """Token lists whose prefixes end inside a character: whole texts, and bytes that never become one."""
    texts = [TEXTS[8], TEXTS[9], TEXTS[10], TEXTS[12], TEXTS[7], TEXTS[14]]
    whole = [tokenizer.encode(text, add_special_tokens=True) for text in texts]
    emoji = tokenizer.encode("x \U0001f9a9 y", add_special_tokens=False)
    return [*whole, emoji[:-2], emoji[2:], [emoji[2], *tokenizer.encode("ok", add_special_tokens=False)]]


def prefixes(tokenizer: PreTrainedTokenizerFast, ids: list[int]) -> dict:
    lengths = range(1, len(ids) + 1)
    return dict(
        ids=ids,
        prefixes_skip_special=[tokenizer.decode(ids[:n], skip_special_tokens=True) for n in lengths],
        prefixes_keep_special=[tokenizer.decode(ids[:n], skip_special_tokens=False) for n in lengths],
    )


MESSAGE_LISTS = {
    "one-question": [dict(role="user", content="Hi there")],
    "system-and-question": [
        dict(role="system", content="You are terse."),
        dict(role="user", content="  When are you open? \n"),
    ],
    "several-turns": [
        dict(role="system", content=""),
        dict(role="user", content="One"),
        dict(role="assistant", content=" Two "),
        dict(role="user", content="Drei & <vier> \"fünf\" 🚂"),
    ],
    "ends-with-assistant": [dict(role="user", content="Say A"), dict(role="assistant", content="A")],
    "starts-with-assistant": [dict(role="assistant", content="Hello"), dict(role="user", content="Hi")],
}
TOOLS = [
    dict(
        type="function",
        function=dict(
            name="find_parcel", description="Finds a parcel & says where <it> is",
            parameters=dict(type="object", properties=dict(number=dict(type="string")), required=["number"]),
        ),
    )
]


def rendered(tokenizer: PreTrainedTokenizerFast, name: str, template: str) -> dict:
    cases = []
    for list_name, messages in MESSAGE_LISTS.items():
        for generation in (True, False):
            cases.append(render_case(tokenizer, template, list_name, messages, generation, None))
    if "tools" in template:
        messages = MESSAGE_LISTS["one-question"]
        cases.append(render_case(tokenizer, template, "one-question", messages, True, TOOLS))
    return dict(name=name, template=template, bos_token=tokenizer.bos_token, eos_token=tokenizer.eos_token, cases=cases)


def render_case(tokenizer, template, list_name, messages, generation, tools) -> dict:
    case = dict(messages_name=list_name, messages=messages, add_generation_prompt=generation, tools=tools)
    try:
        case["rendered"] = tokenizer.apply_chat_template(
            messages, tools=tools, chat_template=template, add_generation_prompt=generation, tokenize=False
        )
    except jinja2.exceptions.TemplateError as error:
        case["error"] = str(error)
    return case
