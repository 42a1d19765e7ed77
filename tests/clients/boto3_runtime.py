"""The whole of InvokeEndpoint and InvokeEndpointWithResponseStream beside target models, through an
unmodified boto3: endpoints of one target, production variants, inference components, ids, sessions.

usage: boto3_runtime.py DATA_URL LABEL_OF_ONE LABEL_OF_OTHER
At DATA_URL: endpoint `many` with targets acme/m and acme/n and a component ic-1 for acme/m, `one` with
the target acme/m, `split` with the variants blue (acme/m) and green (acme/n).
"""

import datetime
import json
import sys

import boto3
from botocore.config import Config
from botocore.exceptions import ClientError

BODY = json.dumps({"inputs": "hello"})


def client_of(url):
    return boto3.client(
        "sagemaker-runtime",
        endpoint_url=url,
        region_name="us-east-1",
        aws_access_key_id="any",
        aws_secret_access_key="any",
        config=Config(retries={"total_max_attempts": 1}),
    )


class Caller:
    def __init__(self, url):
        self.client = client_of(url)

    def plain(self, endpoint, body=BODY, **names):
        return self.client.invoke_endpoint(
            EndpointName=endpoint, Body=body, ContentType="application/json", **names
        )

    def label(self, endpoint, **names):
        return json.load(self.plain(endpoint, **names)["Body"])[0]["label"]

    def streamed(self, endpoint, **names):
        """The label and the variant of an answer by the stream operation."""
        response = self.client.invoke_endpoint_with_response_stream(
            EndpointName=endpoint, Body=BODY, ContentType="application/json", **names
        )
        parts = [event["PayloadPart"]["Bytes"] for event in response["Body"]]
        assert all(part.endswith(b"\n") for part in parts), parts
        return json.loads(b"".join(parts))[0]["label"], response["InvokedProductionVariant"]

    def refused(self, endpoint, says, call=None, **names):
        """Expects a ValidationError that says this; returns all of it."""
        try:
            (call or self.plain)(endpoint, **names)
        except ClientError as error:
            assert error.response["ResponseMetadata"]["HTTPStatusCode"] == 400, error.response
            assert error.response["Error"]["Code"] == "ValidationError", error.response
            assert says in error.response["Error"]["Message"], error.response
            return error.response
        raise AssertionError(f"{endpoint} {names}: nothing was raised")


def targets(caller, one):
    assert caller.label("one") == one
    assert caller.streamed("one") == (one, "AllTraffic")
    caller.refused("one", "not a multi-model endpoint", TargetModel="acme/m")
    assert caller.label("many", TargetModel="acme/m") == one
    caller.refused("many", "missing the target model header")
    # Where an operation has no header for it, these name it.
    told = {"CustomAttributes": "target-model=acme/m"}
    assert caller.streamed("many", **told) == (one, "AllTraffic")


def components(caller, one):
    assert caller.label("many", InferenceComponentName="ic-1") == one
    assert caller.streamed("many", InferenceComponentName="ic-1") == (one, "AllTraffic")
    caller.refused("many", "inference component ic-2 not found", InferenceComponentName="ic-2")


def variants(caller, one, other):
    labels = {"blue": one, "green": other}
    for name, label in labels.items():
        response = caller.plain("split", TargetVariant=name)
        assert response["InvokedProductionVariant"] == name
        assert json.load(response["Body"])[0]["label"] == label
        assert caller.streamed("split", TargetVariant=name) == (label, name)
    seen = {}
    for _ in range(60):
        response = caller.plain("split")
        name = response["InvokedProductionVariant"]
        assert json.load(response["Body"])[0]["label"] == labels[name]
        seen[name] = seen.get(name, 0) + 1
    # Nine of ten go to blue; all sixty would one time in five hundred.
    assert seen["blue"] > seen.get("green", 0), seen
    caller.refused("split", "variant red not found", TargetVariant="red")


def headers(caller):
    caller.plain("one", InferenceId="order 7", PrefixAwareId="shop")
    caller.refused("one", "x-amzn-sagemaker-inference-id must have", InferenceId="i" * 65)
    caller.refused("one", "enable-explanations is not supported", EnableExplanations="`true`")
    caller.refused("one", "target-container-hostname names c1", TargetContainerHostname="c1")


def sessions(caller, one, other):
    opening = json.dumps({"requestType": "NEW_SESSION"})
    closing = json.dumps({"requestType": "CLOSE"})
    labels = {"blue": one, "green": other}
    for endpoint, names in [("one", {}), ("many", {"TargetModel": "acme/m"}), ("split", {})]:
        response = caller.plain(endpoint, body=opening, SessionId="NEW_SESSION", **names)
        session, expires = response["NewSessionId"].split("; Expires=")
        until = datetime.datetime.strptime(expires, "%Y-%m-%dT%H:%M:%SZ")
        left = until - datetime.datetime.now(datetime.timezone.utc).replace(tzinfo=None)
        assert 1000 < left.total_seconds() <= 1200, left
        variant = response["InvokedProductionVariant"]
        for _ in range(5):
            response = caller.plain(endpoint, SessionId=session, **names)
            assert response["InvokedProductionVariant"] == variant
            label = json.load(response["Body"])[0]["label"]
            assert label == labels.get(variant, one)
            assert caller.streamed(endpoint, SessionId=session) == (label, variant)
        caller.refused("many" if endpoint == "one" else "one", "not known", SessionId=session)
        response = caller.plain(endpoint, body=closing, SessionId=session, **names)
        assert response["ClosedSessionId"] == session
        caller.refused(endpoint, "the session is not known", SessionId=session, **names)
        caller.refused(endpoint, "not known", caller.streamed, SessionId=session)
    caller.refused("one", "a session is opened by the body", SessionId="NEW_SESSION")


def main():
    url, one, other = sys.argv[1:4]
    caller = Caller(url)
    targets(caller, one)
    components(caller, one)
    variants(caller, one, other)
    headers(caller)
    sessions(caller, one, other)
    print("all as expected")


main()
