"""boto3's invoke_endpoint_async: inputs from the store and sent along, answers, failures, refusals.

usage: boto3_async.py DATA_URL S3_URL ENDPOINT TARGET LABEL ACCESS_KEY SECRET_KEY
"""

import json
import sys
import time
import urllib.parse

import boto3
from botocore.config import Config
from botocore.exceptions import ClientError

BUCKET = "models"
BODY = json.dumps({"inputs": "hello"})


def main():
    url, store_url, endpoint, target, label, *keys = sys.argv[1:8]
    session = boto3.Session(*keys, region_name="us-east-1")
    config = Config(retries={"total_max_attempts": 1}, read_timeout=70)
    runtime = session.client("sagemaker-runtime", endpoint_url=url, config=config)
    path_style = Config(s3={"addressing_style": "path"})
    s3 = session.client("s3", endpoint_url=store_url, config=path_style)

    def waited(location, other):
        """As SageMaker's own predictor waits: it looks for both objects."""
        deadline = time.monotonic() + 120
        keys = [urllib.parse.urlparse(uri).path.lstrip("/") for uri in (location, other)]
        while time.monotonic() < deadline:
            for key in keys:
                try:
                    s3.head_object(Bucket=BUCKET, Key=key)
                except ClientError:
                    continue
                found = s3.get_object(Bucket=BUCKET, Key=key)
                return key, found["ContentType"], json.load(found["Body"])
            time.sleep(0.1)
        raise AssertionError(f"neither {keys} came")

    def refused(**asked):
        try:
            runtime.invoke_endpoint_async(EndpointName=endpoint, **asked)
        except runtime.exceptions.ClientError as error:
            assert error.response["ResponseMetadata"]["HTTPStatusCode"] == 400, error.response
            assert error.response["Error"]["Code"] == "ValidationError", error.response
            return error.response["Error"]["Message"]
        raise AssertionError(f"{asked} was taken")

    named = {"CustomAttributes": f"target-model={target}", "ContentType": "application/json"}
    s3.put_object(Bucket=BUCKET, Key="async/in/one.json", Body=BODY)

    # From the store.
    taken = runtime.invoke_endpoint_async(
        EndpointName=endpoint,
        InputLocation=f"s3://{BUCKET}/async/in/one.json",
        InferenceId="my-own-id",
        Accept="application/json",
        RequestTTLSeconds=600,
        InvocationTimeoutSeconds=60,
        **named,
    )
    assert taken["ResponseMetadata"]["HTTPStatusCode"] == 202, taken
    assert taken["InferenceId"] == "my-own-id", taken
    assert taken["OutputLocation"].startswith(f"s3://{BUCKET}/async/out/"), taken
    assert taken["FailureLocation"].endswith("-error.out"), taken
    key, content_type, answer = waited(taken["OutputLocation"], taken["FailureLocation"])
    assert key in taken["OutputLocation"] and content_type == "application/json", (key, content_type)
    assert answer[0]["label"] == label, answer

    # Sent along, named as asked.
    taken = runtime.invoke_endpoint_async(
        EndpointName=endpoint, Body=BODY, S3OutputPathExtension="day/1", Filename="answer.json", **named
    )
    assert taken["OutputLocation"] == f"s3://{BUCKET}/async/out/day/1/answer.json", taken
    assert taken["InferenceId"], taken
    _, _, answer = waited(taken["OutputLocation"], taken["FailureLocation"])
    assert answer[0]["label"] == label, answer

    # The target may be named by the body, as on a stream.
    body = json.dumps({"model": target, "inputs": "hello"})
    taken = runtime.invoke_endpoint_async(EndpointName=endpoint, Body=body, ContentType="application/json")
    _, _, answer = waited(taken["OutputLocation"], taken["FailureLocation"])
    assert answer[0]["label"] == label, answer

    # What fails is an object too.
    for asked in (
        {"Body": BODY, "CustomAttributes": "target-model=not/there", "ContentType": "application/json"},
        {"Body": '{"parameters": {}}', **named},
        {"InputLocation": f"s3://{BUCKET}/async/in/none", **named},
    ):
        taken = runtime.invoke_endpoint_async(EndpointName=endpoint, **asked)
        key, _, failure = waited(taken["OutputLocation"], taken["FailureLocation"])
        assert key in taken["FailureLocation"], (key, taken)
        assert failure["code"] in (400, 404) and failure["message"], failure

    # What may not be asked is no request.
    assert "neither" in refused(**named)
    assert "both" in refused(Body=BODY, InputLocation=f"s3://{BUCKET}/async/in/one.json", **named)
    assert "https" in refused(InputLocation="https://models/async/in/one.json", **named)
    for elsewhere in ("async/out/x", "other/x", "async/in/../out/x", "async/in/"):
        assert "not under a prefix" in refused(InputLocation=f"s3://{BUCKET}/{elsewhere}", **named)
    for location in ("s3://169.254.169.254/latest/meta-data", "s3://[fd00:ec2::254]/x"):
        assert "not under a prefix" in refused(InputLocation=location, **named)
    assert "http" in refused(InputLocation="https://169.254.169.254/latest/meta-data", **named)
    print("ok")


if __name__ == "__main__":
    main()
