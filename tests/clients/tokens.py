"""Tokens of models, held against the library that their files are made for.

usage: tokens.py DATA_URL STORE CHAT_MODEL ENCODER
STORE is the folder in which the models lie.
"""

import json
import os
import sys
import urllib.request

from tokenizers import Tokenizer

TEXTS = ["When are you open?", "caf\u00e9 \U0001f600 na\u00efve", "  two  blanks ", ""]


def main():
    url, store, chat, encoder = sys.argv[1:5]

    def ask(path, model, **body):
        request = urllib.request.Request(f"{url}/{path}", json.dumps({"model": model, **body}).encode(),
                                         {"Content-Type": "application/json"})
        with urllib.request.urlopen(request) as answer:
            return json.load(answer)

    for model in (chat, encoder):
        own = Tokenizer.from_file(os.path.join(store, model, "tokenizer.json"))
        own.no_truncation()
        own.no_padding()
        for special in (True, False):
            all_lists = ask("tokenize", model, inputs=TEXTS, add_special_tokens=special)
            assert len(all_lists) == len(TEXTS)
            for text, told in zip(TEXTS, all_lists):
                wanted = own.encode(text, add_special_tokens=special)
                ids = ask("tokenize", model, prompt=text, add_special_tokens=special, return_token_strs=True)
                assert ids["tokens"] == wanted.ids and ids["token_strs"] == wanted.tokens, (text, ids)
                assert ids["count"] == len(wanted.ids) and ids["max_model_len"] > 0, ids
                assert [token["id"] for token in told] == wanted.ids, (text, told)
                for token, mask, (start, stop) in zip(told, wanted.special_tokens_mask, wanted.offsets):
                    assert token["special"] == bool(mask), token
                    if not mask:
                        assert (token["start"], token["stop"]) == (start, stop), token
                        assert token["text"] == text[start:stop], token
                assert ask("detokenize", model, tokens=wanted.ids)["prompt"] == own.decode(
                    wanted.ids, skip_special_tokens=False), text
                for skips in (True, False):
                    texts = ask("decode", model, ids=[wanted.ids], skip_special_tokens=skips)
                    assert texts == [own.decode(wanted.ids, skip_special_tokens=skips)], text
    wanted = Tokenizer.from_file(os.path.join(store, chat, "tokenizer.json")).encode(TEXTS[0])
    flat = ask("tokenize", chat, inputs=TEXTS[0])
    assert [token["id"] for token in flat] == wanted.ids, flat
    for token, mask, (start, stop) in zip(flat, wanted.special_tokens_mask, wanted.offsets):
        assert token["text"] == ("" if mask else TEXTS[0][start:stop]), token

    # A chat has as many tokens as the model is said to have read for it.
    messages = [{"role": "user", "content": TEXTS[0]}]
    answer = ask("v1/chat/completions", chat, messages=messages, max_tokens=1)
    count = ask("tokenize", chat, messages=messages)["count"]
    assert answer["usage"]["prompt_tokens"] == count, (answer["usage"], count)
    print("all as expected")


main()
