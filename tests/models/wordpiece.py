"""A WordPiece tokenizer with a vocabulary counted from text.

The trainer of the tokenizers library breaks ties by hash order, so that no two runs agree; counting
words and word ends is good enough for small vocabularies and gives the same file each time.
"""

from collections import Counter

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import BertTokenizerFast

SPECIAL_TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
LONGEST_SUFFIX = 5


def wordpiece(texts: list[str], vocab_size: int, max_length: int) -> BertTokenizerFast:
    """Lowercases and strips accents, as `bert-base-uncased` does."""
    normaliser = normalizers.BertNormalizer(lowercase=True)
    words = Counter(
        word
        for text in texts
        for word, _ in pre_tokenizers.BertPreTokenizer().pre_tokenize_str(normaliser.normalize_str(text))
    )
    vocabulary = {token: number for number, token in enumerate(counted_vocabulary(words, vocab_size))}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]", max_input_chars_per_word=100))
    tokenizer.normalizer = normaliser
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(prefix="##")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS]:0 $A:0 [SEP]:0",
        pair="[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1",
        special_tokens=[(token, vocabulary[token]) for token in ("[CLS]", "[SEP]")],
    )
    return BertTokenizerFast(tokenizer_object=tokenizer, do_lower_case=True, model_max_length=max_length)


def counted_vocabulary(words: Counter, size: int) -> list[str]:
    characters = sorted({character for word in words for character in word})
    letters = [*characters, *(f"##{character}" for character in characters)]
    pieces = Counter()
    for word, count in words.items():
        if len(word) > 1:
            pieces[word] += count
        for length in range(2, min(LONGEST_SUFFIX, len(word) - 1) + 1):
            pieces[f"##{word[-length:]}"] += count
            pieces[word[:-length]] += count if len(word) - length > 1 else 0
    ranked = sorted(pieces, key=lambda piece: (-pieces[piece], piece))
    return [*SPECIAL_TOKENS, *letters, *ranked][:size]
