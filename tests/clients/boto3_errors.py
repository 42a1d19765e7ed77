"""What boto3 raises for each fault of a caller, a model or the store.

usage: boto3_errors.py DATA_URL ENDPOINT CASES
CASES is JSON: [{"target", "body", "raises", "original"?, "says"?}]
"""

import json
import sys

import boto3
from botocore.config import Config
from botocore.exceptions import ClientError


def main():
    url, endpoint, cases = sys.argv[1:4]
    client = boto3.client(
        "sagemaker-runtime",
        endpoint_url=url,
        region_name="us-east-1",
        aws_access_key_id="any",
        aws_secret_access_key="any",
        config=Config(retries={"total_max_attempts": 1}, read_timeout=70),
    )
    for case in json.loads(cases):
        arguments = {"EndpointName": case.get("endpoint", endpoint), "Body": case["body"]}
        if case.get("repeat"):
            arguments["Body"] = case["body"] * case["repeat"]
        if case.get("target") is not None:
            arguments["TargetModel"] = case["target"]
        try:
            client.invoke_endpoint(ContentType="application/json", **arguments)
        except ClientError as error:
            name = type(error).__name__
            assert name == case["raises"], f"{case}: raised {name}: {error}"
            if "original" in case:
                found = error.response["OriginalStatusCode"]
                assert found == case["original"], f"{case}: OriginalStatusCode {found}"
            message = error.response["Error"]["Message"]
            assert case.get("says", "") in message, f"{case}: says {message!r}"
        else:
            raise AssertionError(f"{case}: nothing was raised")
    print("all as expected")


main()
