"""Every request of an expectations file through an unmodified boto3, in an order that
forces evictions, each answer checked by content: completions equal those of Hugging Face
transformers to the letter.

usage: boto3_demo.py DATA_URL ENDPOINT EXPECTATIONS [ROUNDS]
"""

import json
import random
import sys

import boto3
from botocore.config import Config


def body_of(entry):
    if "messages" in entry:
        return {"messages": entry["messages"], "temperature": 0, "max_tokens": 96}
    if "prompt" in entry:
        return {"inputs": entry["prompt"], "parameters": {"max_new_tokens": 96}}
    if "candidates" in entry:
        return {"inputs": [entry["inputs"], *entry["candidates"]]}
    return {"inputs": entry["inputs"]}


def check(entry, answer):
    if "messages" in entry:
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


def main():
    url, endpoint, expectations = sys.argv[1:4]
    rounds = int(sys.argv[4]) if len(sys.argv) > 4 else 1
    with open(expectations, encoding="utf-8") as file:
        entries = json.load(file)
    client = boto3.client(
        "sagemaker-runtime",
        endpoint_url=url,
        region_name="us-east-1",
        aws_access_key_id="any",
        aws_secret_access_key="any",
        config=Config(retries={"total_max_attempts": 1}),
    )
    order = random.Random(1)
    asked = 0
    for _ in range(rounds):
        order.shuffle(entries)
        for entry in entries:
            response = client.invoke_endpoint(
                EndpointName=endpoint,
                TargetModel=entry["target"],
                ContentType="application/json",
                Body=json.dumps(body_of(entry)),
            )
            assert response["ResponseMetadata"]["HTTPStatusCode"] == 200
            assert response["ResponseMetadata"]["RequestId"]
            check(entry, json.load(response["Body"]))
            asked += 1
    print(f"{asked} answers right")


main()
