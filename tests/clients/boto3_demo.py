"""Every request of an expectations file through an unmodified boto3, in an order that
forces evictions, each answer checked by content.

usage: boto3_demo.py DATA_URL ENDPOINT EXPECTATIONS [ROUNDS]
"""

import json
import random
import sys

import boto3
from botocore.config import Config


def body_of(entry):
    if "messages" in entry:
        return {"messages": entry["messages"], "temperature": 0, "max_tokens": 64}
    if "prompt" in entry:
        return {"inputs": entry["prompt"], "parameters": {"max_new_tokens": 64}}
    return {"inputs": entry["inputs"]}


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
            text = response["Body"].read().decode("utf-8")
            for wanted in entry["contains"]:
                assert wanted in text, f"{entry['target']}: {wanted!r} is not in {text}"
            asked += 1
    print(f"{asked} answers right")


main()
