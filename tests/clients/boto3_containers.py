"""boto3 at endpoints with containers: a pipeline, direct calls, streams, refusals.

usage: boto3_containers.py DATA_URL
"""

import json
import sys

import boto3
from botocore.config import Config
from botocore.exceptions import EventStreamError


def main():
    (url,) = sys.argv[1:]
    session = boto3.Session("key", "secret", region_name="us-east-1")
    config = Config(retries={"total_max_attempts": 1}, read_timeout=70)
    runtime = session.client("sagemaker-runtime", endpoint_url=url, config=config)

    def refused(kind, **asked):
        try:
            runtime.invoke_endpoint(**asked)
        except runtime.exceptions.ClientError as error:
            assert error.response["Error"]["Code"] == kind, error.response
            return error.response
        raise AssertionError(f"{asked} was answered")

    # A pipeline of three.
    def pipe(body):
        return dict(EndpointName="pipe", ContentType="text/csv", Accept="text/plain", Body=body)

    got = runtime.invoke_endpoint(**pipe("1,2,3"))
    assert got["Body"].read() == b"12", got
    assert got["ContentType"] == "text/plain"
    assert got["InvokedProductionVariant"] == "AllTraffic"
    told = refused("ModelError", **pipe("900"))
    assert told["OriginalStatusCode"] == 422, told
    assert told["OriginalMessage"] == "too much for me", told
    assert told["Error"]["Message"].startswith("Received client error (422) from double"), told
    refused("ValidationError", TargetContainerHostname="split", **pipe("1"))

    # Direct calls to fifteen.
    for at in range(1, 16):
        got = runtime.invoke_endpoint(
            EndpointName="fifteen",
            TargetContainerHostname=f"c{at}",
            ContentType="application/x-own",
            Accept="application/json",
            CustomAttributes="trace=1",
            InferenceId=f"id-{at}",
            TargetModel="m.tar.gz",
            Body=f"hello {at}",
        )
        said = json.load(got["Body"])
        assert said["name"] == f"c{at}" and said["body"] == f"hello {at}", said
        assert said["path"] == f"/c{at}/invocations", said
        headers = said["headers"]
        assert headers["content-type"] == "application/x-own", headers
        assert headers["accept"] == "application/json", headers
        assert headers["x-amzn-sagemaker-custom-attributes"] == "trace=1", headers
        assert headers["x-amzn-sagemaker-inference-id"] == f"id-{at}", headers
        assert headers["x-amzn-sagemaker-target-model"] == "m.tar.gz", headers
        assert not {"authorization", "x-amz-date", "user-agent"} & set(headers), headers
        assert got["CustomAttributes"] == f"from c{at}", got
    refused("ValidationError", EndpointName="fifteen", Body="x")
    refused("ValidationError", EndpointName="fifteen", Body="x", TargetContainerHostname="c16")

    # Faults: the right error, each time, and the others undisturbed.
    def fault(name):
        return dict(EndpointName="faults", TargetContainerHostname=name, Body="x")

    for _ in range(3):
        got = runtime.invoke_endpoint(**fault("oom"))
        assert json.load(got["Body"]) == {"error": "out of memory"}
        for name in ("lies", "stalls", "closed"):
            told = refused("ModelError", **fault(name))
            assert told["OriginalStatusCode"] == 0, told
            assert f"from {name} with message" in told["Error"]["Message"], told
        assert json.load(runtime.invoke_endpoint(**fault("sound"))["Body"])["name"] == "sound"

    # A stream: each piece comes before the next one is made.
    def stream(turn, **said):
        body = json.dumps({"turn": turn, **said})
        asked = dict(EndpointName="streams", TargetContainerHostname="stream", Body=body)
        return runtime.invoke_endpoint_with_response_stream(**asked)

    def go_on(turn):
        body = json.dumps({"turn": turn})
        runtime.invoke_endpoint(EndpointName="streams", TargetContainerHostname="next", Body=body)

    got = stream("a", pieces=3)
    assert got["ContentType"] == "text/event-stream", got
    for at, event in enumerate(got["Body"]):
        assert event["PayloadPart"]["Bytes"] == f"data: {at}\n\n".encode(), event
        go_on("a")
    assert at == 2
    got = iter(stream("b", pieces=1, breaks=True)["Body"])
    assert next(got)["PayloadPart"]["Bytes"] == b"data: 0\n\n"
    go_on("b")
    try:
        next(got)
    except EventStreamError as error:
        assert error.response["Error"]["Code"] == "ModelStreamError", error.response
    else:
        raise AssertionError("the stream that broke ended well")
    print("ok")


main()
