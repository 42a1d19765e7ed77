"""The Hugging Face client's methods for encoders, and what the types of bodies and answers look like to Python.

usage: hf_tasks.py DATA_URL
"""

import io
import json
import sys
import urllib.request

import numpy
from huggingface_hub import InferenceClient

TARGET = "X-Amzn-SageMaker-Target-Model"


def main():
    url = sys.argv[1]
    for tokenizer, mask in (("wordpiece", "[MASK]"), ("bytes", "<mask>")):
        tasks(url, tokenizer, mask)
    types(url)
    print("as expected")


def tasks(url, tokenizer, mask):
    def client(task):
        # The root answers in the shapes of the Inference API, which this client reads.
        return InferenceClient(model=url, headers={TARGET: f"{tokenizer}/{task}"})

    embedder = client("feature-extraction")
    one = embedder.feature_extraction("the coal", normalize=True)
    assert one.shape == (16,) and abs(numpy.linalg.norm(one) - 1) < 1e-5, one
    two = embedder.feature_extraction(["the coal", "the train"], dimensions=4)
    assert two.shape == (2, 4) and abs(numpy.linalg.norm(two[1]) - 1) < 1e-5, two
    near = embedder.sentence_similarity("the coal", ["the coal", "a train leaves"])
    assert len(near) == 2 and abs(near[0] - 1) < 1e-5 and near[1] < near[0], near

    labels = client("text-classification").text_classification("the train", top_k=3)
    assert [label.label for label in labels] and len(labels) == 3, labels
    assert abs(sum(label.score for label in labels) - 1) < 1e-4
    raw = client("text-classification").text_classification("the train", function_to_apply="none", top_k=3)
    assert abs(sum(label.score for label in raw) - 1) > 1e-4, raw

    text = "The keeper counts the wagons at night."
    tagger = client("token-classification")
    tokens = tagger.token_classification(text, ignore_labels=[])
    assert all(token.entity and token.entity_group is None for token in tokens), tokens
    groups = tagger.token_classification(text, aggregation_strategy="average", ignore_labels=[])
    assert all(group.entity_group for group in groups) and len(groups) <= len(tokens)
    assert groups[0].start == 0 and groups[-1].end == len(text), groups

    fills = client("fill-mask").fill_mask(f"the {mask} leaves", top_k=3)
    assert len(fills) == 3 and fills[0].score >= fills[2].score, fills
    assert all(isinstance(fill.token, int) and "leaves" in fill.sequence for fill in fills), fills

    answer = client("question-answering").question_answering("who counts?", text, max_answer_len=3)
    assert text[answer.start : answer.end] == answer.answer and 0 < answer.score <= 1, answer
    several = client("question-answering").question_answering("who counts?", text, top_k=3)
    assert len(several) == 3, several

    ranked = client("zero-shot-classification").zero_shot_classification(text, ["coal", "trains"], multi_label=True)
    assert sorted(label.label for label in ranked) == ["coal", "trains"], ranked
    assert ranked[0].score >= ranked[1].score


def types(url):
    def post(task, body, content_type, accept, target="wordpiece"):
        headers = {TARGET: f"{target}/{task}", "Content-Type": content_type, "Accept": accept}
        request = urllib.request.Request(f"{url}/invocations", body, headers)
        with urllib.request.urlopen(request) as answer:
            return answer.headers["Content-Type"], answer.read()

    def array(values):
        file = io.BytesIO()
        numpy.save(file, values)
        return file.getvalue()

    texts = json.dumps({"inputs": ["the coal", "the train"]}).encode()
    kind, body = post("feature-extraction", texts, "application/json", "application/x-npy")
    vectors = numpy.load(io.BytesIO(body))
    assert kind == "application/x-npy" and vectors.shape == (2, 16) and vectors.dtype == numpy.float32
    as_array = post("feature-extraction", array(numpy.array(["the coal", "the train"])), "application/x-npy", "*/*")
    assert numpy.allclose(json.loads(as_array[1]), vectors, atol=1e-6)
    tokens = post("feature-extraction", array(numpy.array([[2, 9, 3], [2, 10, 3]])), "application/x-npy", "*/*")
    assert numpy.array(json.loads(tokens[1])).shape == (2, 16)
    _, body = post("feature-extraction", texts, "application/json", "text/csv")
    assert numpy.allclose(numpy.loadtxt(io.BytesIO(body), delimiter=","), vectors, atol=1e-6)

    table = b'inputs\nthe coal\n"the ""night"" train, at seven"\n'
    kind, body = post("text-classification", table, "text/csv", "application/jsonlines")
    assert kind == "application/jsonlines", kind
    assert [sorted(json.loads(line)) for line in body.splitlines()] == [["label", "score"]] * 2, body
    kind, body = post("text-classification", table, "text/csv", "text/csv")
    assert kind.startswith("text/csv") and body.splitlines()[0] == b"label,score", body
    questions = b"question,context\nwho?,the driver counts\nwhat?,coal and water\n"
    _, body = post("question-answering", questions, "text/csv", "application/json")
    assert [sorted(answer) for answer in json.loads(body)] == [["answer", "end", "score", "start"]] * 2, body
    for accept, wanted in (("image/png", 406), ("application/x-npy", 406)):
        try:
            post("text-classification", texts, "application/json", accept)
            raise SystemExit(f"{accept} was answered")
        except urllib.error.HTTPError as error:
            assert error.code == wanted, (accept, error.code, error.read())


main()
