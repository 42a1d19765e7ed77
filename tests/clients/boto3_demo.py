"""Every request of expectations files through an unmodified boto3, in an order that
forces evictions, each answer checked by content: completions equal those of Hugging Face
transformers to the letter, forecasts those of scikit-learn.

usage: boto3_demo.py DATA_URL ENDPOINT EXPECTATIONS...
"""

import json
import math
import random
import sys
import time

import boto3
from botocore.config import Config

# How long packages may take to install, whatever the first load of a handler brings.
PATIENCE = 180  # seconds


def body_of(entry):
    if "body" in entry:
        return entry["body"]
    return json.dumps(question(entry))


def question(entry):
    if "messages" in entry:
        return {"messages": entry["messages"], "temperature": 0, "max_tokens": 96}
    if "prompt" in entry:
        return {"inputs": entry["prompt"], "parameters": {"max_new_tokens": 96}}
    if "candidates" in entry:
        return {"inputs": [entry["inputs"], *entry["candidates"]]}
    return {"inputs": entry["inputs"]}


def check(entry, answer):
    if "answer" in entry:
        assert same(answer, numbers(entry["answer"])), (entry, answer)
    elif "messages" in entry:
        assert answer["choices"][0]["message"]["content"] == entry["text"], (entry, answer)
    elif "prompt" in entry:
        assert answer["generated_text"] == entry["text"], (entry, answer)
    elif "candidates" in entry:
        query, *shelf = answer
        similar = [sum(a * b for a, b in zip(query, other)) for other in shelf]
        assert max(range(len(similar)), key=similar.__getitem__) == entry["nearest"], entry
        assert abs(max(similar) - entry["similarity"]) < 1e-4, (entry, max(similar))
    else:
        assert answer[0]["label"] == entry["label"], (entry, answer)
        assert abs(answer[0]["score"] - entry["score"]) < 1e-4, (entry, answer)


def same(given, wanted):
    """Whether two answers are equal, numbers as far as other machines compute them."""
    if isinstance(wanted, dict):
        return given.keys() == wanted.keys() and all(same(given[key], wanted[key]) for key in wanted)
    if isinstance(wanted, list):
        return len(given) == len(wanted) and all(map(same, given, wanted))
    if isinstance(wanted, float):
        return math.isclose(given, wanted, rel_tol=1e-6, abs_tol=2e-4)
    return given == wanted


def answer_of(entry, response):
    wanted = entry.get("answer_type", "application/json")
    assert response["ContentType"].split(";")[0] == wanted, (entry, response["ContentType"])
    body = response["Body"].read().decode()
    return numbers(body) if wanted == "text/csv" else json.loads(body)


def numbers(answer):
    """The numbers of an answer in CSV; other answers as they are."""
    return [float(line) for line in answer.splitlines()] if isinstance(answer, str) else answer


def ask(client, endpoint, entry):
    """Invokes; comes again, as it is told to, while a handler's packages are installed."""
    until = time.monotonic() + PATIENCE
    while True:
        try:
            return client.invoke_endpoint(
                EndpointName=endpoint,
                TargetModel=entry["target"],
                ContentType=entry.get("content_type", "application/json"),
                Accept=entry.get("accept", "application/json"),
                Body=body_of(entry),
            )
        except client.exceptions.ModelNotReadyException:
            if time.monotonic() > until:
                raise


def main():
    url, endpoint, *files = sys.argv[1:]
    entries = []
    for path in files:
        with open(path, encoding="utf-8") as file:
            entries += json.load(file)
    client = boto3.client(
        "sagemaker-runtime",
        endpoint_url=url,
        region_name="us-east-1",
        aws_access_key_id="any",
        aws_secret_access_key="any",
        config=Config(retries={"total_max_attempts": 1}),
    )
    random.Random(1).shuffle(entries)
    for entry in entries:
        response = ask(client, endpoint, entry)
        assert response["ResponseMetadata"]["HTTPStatusCode"] == 200
        assert response["ResponseMetadata"]["RequestId"]
        check(entry, answer_of(entry, response))
    print(f"{len(entries)} answers right")


main()
