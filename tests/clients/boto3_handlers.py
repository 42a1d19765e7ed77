"""Calls of an expectations file (tests/models/handlers/expected.py) through an unmodified
boto3, by TargetModel, in an order that forces evictions, each answer compared with what the
handler's own functions answer. Between them goes a request to each of the other targets.

usage: boto3_handlers.py DATA_URL ENDPOINT EXPECTED ROUNDS [OTHER_TARGET=JSON_BODY ...]
"""

import base64
import json
import math
import random
import sys

import boto3
from botocore.config import Config

# Sums in another order differ in the last digits.
TOLERANCE = 1e-5


def close(one, other):
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(close(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(close, one, other))
    if isinstance(one, (int, float)) and isinstance(other, (int, float)):
        return math.isclose(one, other, rel_tol=TOLERANCE, abs_tol=TOLERANCE)
    return one == other


def main():
    url, endpoint, expected, rounds = sys.argv[1:5]
    others = [argument.split("=", 1) for argument in sys.argv[5:]]
    with open(expected, encoding="utf-8") as file:
        calls = json.load(file)
    client = boto3.client(
        "sagemaker-runtime",
        endpoint_url=url,
        region_name="us-east-1",
        aws_access_key_id="any",
        aws_secret_access_key="any",
        config=Config(retries={"total_max_attempts": 1}),
    )

    def invoke(target, body, content_type, accept):
        names = {"Accept": accept} if accept else {}
        response = client.invoke_endpoint(
            EndpointName=endpoint, TargetModel=target, Body=body, ContentType=content_type, **names
        )
        return response["ContentType"], response["Body"].read()

    order = random.Random(1)
    same = equal = 0
    first = {}
    for _ in range(int(rounds)):
        order.shuffle(calls)
        for index, call in enumerate(calls):
            body = base64.b64decode(call["body_base64"])
            kind, answer = invoke(call["target"], body, call["content_type"], call["accept"])
            assert kind == call["response_content_type"], (call["target"], kind)
            wanted = base64.b64decode(call["response_base64"])
            if answer == wanted:
                same += 1
            else:
                assert close(json.loads(answer), call["response_json"]), (call["target"], answer)
                equal += 1
            if others:
                target, body = others[index % len(others)]
                _, answer = invoke(target, body, "application/json", None)
                assert first.setdefault(target, answer) == answer, (target, answer)
    print(f"{same} answers the same to the byte, {equal} within {TOLERANCE}; others: {len(first)}")


if __name__ == "__main__":
    main()
