"""Tokenizers as GGUF files write them, and the tokens that llama.cpp and Hugging Face make of texts."""

import io
import json
import tempfile
from pathlib import Path

import gguf
import llama_cpp
import sentencepiece
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import LlamaTokenizerFast

from reference_output import fresh_folder, write_json

CORPUS = [
    "The quick brown fox jumps over the lazy dog, and the dog doesn't mind.",
    "It's 2024 and they've shipped 1,234,567 parcels; we're at 99% of the plan.",
    "Opening hours: Monday to Friday from 9 am to 6 pm. Returns are free for 30 days!",
    "def add(first, second):\n    return first + second\n\nprint(add(1, 2))\n",
    "Überraschung im Café: naïve Gäste zahlen 12 € für Crème brûlée.",
    "Where's the order? I'd like to know what I'LL pay when it's here.",
    "{\"name\": \"value\", \"list\": [1, 22, 333, 4444]}",
] * 4

TEXTS = [
    "", " ", "hello", " hello", "Hello world", "  two  spaces  ", "it's I'LL they've WE'RE", "123 1234 12345678",
    "a,b;c!! ... --- ==> $5.00 + 7^2 | x<y>z~", "line one\nline two\n\n\nline five\r\n\ttabbed  \n  ",
    "Überraschung im Café naïve Crème brûlée", "日本語 テキスト 漢字かな交じり", "emoji 🦊🦊 and 👩‍👩‍👧 done", "русский текст, ещё",
    "The quick brown fox jumps over the lazy dog.", "def add(first, second):\n    return first + second",
    "trailing space ", "\u00a0non\u00a0breaking", "x" * 40, "print(add(1, 2)) # 22 + 333 = 355",
]
SPECIAL = [
    "<s>system</s> text", "before<|eot_id|>after", "<|eot_id|> x<|begin_of_text|>", "one<|user|>two <|user|> three",
]

PRE = [
    "llama-bpe", "gpt-2", "qwen2", "smollm", "default", "smaug-bpe", "dbrx", "tekken", "deepseek-r1-qwen", None,
]


def byte_pairs():
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=460, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    model = json.loads(tokenizer.to_str())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].get)
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    kinds = [1] * len(tokens)
    # Whole words that no merge makes, so that taking words whole shows.
    tokens += ["parcels", "<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>", "<|user|>"]
    kinds += [1, 3, 3, 3, 4]
    special = dict(bos=len(tokens) - 4, eos=len(tokens) - 3, eot=len(tokens) - 2)
    return dict(model="gpt2", tokens=tokens, kinds=kinds, merges=merges, scores=[], special=special)


def pieces(folder):
    """A sentencepiece model of byte pairs, as Llama 2's is."""
    target = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS), model_writer=target, model_type="bpe", vocab_size=420, byte_fallback=True,
        character_coverage=0.99, normalization_rule_name="identity", remove_extra_whitespaces=False,
        add_dummy_prefix=True, split_digits=True, allow_whitespace_only_pieces=True, minloglevel=2,
    )
    path = folder / "tokenizer.model"
    path.write_bytes(target.getvalue())
    model = sentencepiece.SentencePieceProcessor(model_proto=target.getvalue())
    ids = range(model.get_piece_size())

    def kind(id):
        return 2 if model.is_unknown(id) else 3 if model.is_control(id) else 6 if model.is_byte(id) else 1

    vocabulary = dict(
        model="llama", tokens=[model.id_to_piece(id) for id in ids], scores=[model.get_score(id) for id in ids],
        kinds=[kind(id) for id in ids], merges=[], special=dict(unknown=0, bos=1, eos=2),
    )
    return vocabulary, LlamaTokenizerFast(vocab_file=str(path), legacy=True, add_prefix_space=True)


def write(path, vocabulary, pre, add_bos, add_space_prefix=None):
    """A file with a tokenizer and no tensors: llama.cpp reads it for its vocabulary alone."""
    writer = gguf.GGUFWriter(str(path), "llama")
    for add in ("context_length", "embedding_length", "block_count", "feed_forward_length", "head_count"):
        getattr(writer, f"add_{add}")(32)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model(vocabulary["model"])
    if pre:
        writer.add_tokenizer_pre(pre)
    writer.add_token_list(vocabulary["tokens"])
    writer.add_token_types(vocabulary["kinds"])
    if vocabulary["scores"]:
        writer.add_token_scores(vocabulary["scores"])
    if vocabulary["merges"]:
        writer.add_token_merges(vocabulary["merges"])
    for role, id in vocabulary["special"].items():
        getattr(writer, f"add_{'unk' if role == 'unknown' else role}_token_id")(id)
    if add_bos is not None:
        writer.add_add_bos_token(add_bos)
    if add_space_prefix is not None:
        writer.add_add_space_prefix(add_space_prefix)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def of_llama_cpp(path):
    llama = llama_cpp.Llama(str(path), vocab_only=True, verbose=False)
    return lambda text, add_special: llama.tokenize(text.encode(), add_bos=add_special, special=True)


def write_vocabulary_cases(root: Path) -> None:
    folder = fresh_folder(root / "gguf")
    with tempfile.TemporaryDirectory() as temporary:
        temporary = Path(temporary)
        pairs = byte_pairs()
        spm, hugging_face = pieces(temporary)
        cases = [(pairs, pre, None, None) for pre in PRE] + [(pairs, "llama-bpe", False, None)]
        cases += [(spm, None, None, None), (spm, None, False, False)]
        written = []
        for vocabulary, pre, add_bos, add_space_prefix in cases:
            path = temporary / "vocabulary.gguf"
            write(path, vocabulary, pre, add_bos, add_space_prefix)
            tokenize = of_llama_cpp(path)
            texts = TEXTS + SPECIAL
            case = dict(
                vocabulary="pieces" if vocabulary is spm else "pairs", pre=pre, add_bos=add_bos,
                add_space_prefix=add_space_prefix,
                texts=[dict(text=t, ids=tokenize(t, False), ids_with_special=tokenize(t, True)) for t in texts],
            )
            if vocabulary is spm and add_bos is None:
                for entry in case["texts"]:
                    ids = hugging_face(entry["text"], add_special_tokens=False)["input_ids"]
                    if ids != entry["ids"]:
                        print("Hugging Face differs from llama.cpp:", repr(entry["text"]), ids, entry["ids"])
            written.append(case)
        write_json(folder / "vocabularies.json", dict(pairs=pairs, pieces=spm, cases=written))


if __name__ == "__main__":
    write_vocabulary_cases(Path(__file__).parents[2] / "src/serving/tests/references")
