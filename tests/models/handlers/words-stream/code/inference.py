"""Says words one after another: {"words": [...], "times": 2, "pause": 0.01, "as": "json"}."""
import json
import time


def model_fn(model_dir):
    return None


def transform_fn(model, body, content_type, accept):
    asked = json.loads(body)
    if asked.get("as") == "json":
        return objects(asked), "application/jsonlines"
    return texts(asked), "text/plain; charset=utf-8"


def words(asked):
    for _ in range(asked.get("times", 1)):
        for word in asked.get("words", ["one", "two", "three"]):
            time.sleep(asked.get("pause", 0))
            if word == "fail":
                raise RuntimeError("asked to fail")
            yield word


def texts(asked):
    for word in words(asked):
        yield word + " "


def objects(asked):
    for index, word in enumerate(words(asked)):
        yield {"index": index, "word": word}
