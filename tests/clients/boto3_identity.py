"""boto3 with right, wrong, expired, skewed and tampered signatures, whole and presigned.

usage: boto3_identity.py DATA_URL ENDPOINT TARGET KEYS
KEYS is JSON: {"right": [id, secret], "expired": [id, secret], "bearer": key, "operator": key}
"""

import base64
import datetime
import hashlib
import json
import sys
import time
import urllib.error
import urllib.request

import boto3
import botocore.auth
from botocore import UNSIGNED
from botocore.auth import SigV4QueryAuth
from botocore.awsrequest import AWSRequest
from botocore.config import Config
from botocore.credentials import Credentials
from botocore.exceptions import ClientError

BODY = json.dumps({"inputs": "hello"})
MISMATCH = "The request signature we calculated does not match the signature you provided."


def client(url, pair, **more):
    config = Config(retries={"total_max_attempts": 1}, read_timeout=70, **more.pop("config", {}))
    names = dict(zip(("aws_access_key_id", "aws_secret_access_key", "aws_session_token"), pair))
    return boto3.client(
        "sagemaker-runtime", endpoint_url=url, region_name="eu-central-1", config=config, **names, **more
    )


class Skewed:
    """botocore's signer, its clock off by some seconds."""

    def __init__(self, seconds):
        self.by = datetime.timedelta(seconds=seconds)

    def __enter__(self):
        self.real = botocore.auth.get_current_datetime
        botocore.auth.get_current_datetime = lambda *a, **k: self.real(*a, **k) + self.by

    def __exit__(self, *_):
        botocore.auth.get_current_datetime = self.real


def raised(call):
    try:
        call()
    except ClientError as error:
        status = error.response["ResponseMetadata"]["HTTPStatusCode"]
        return status, error.response["Error"]["Code"], error.response["Error"]["Message"]
    raise AssertionError("it was let in")


def http(url, body, headers=()):
    request = urllib.request.Request(url, data=body, headers=dict(headers), method="POST")
    try:
        with urllib.request.urlopen(request, timeout=70) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


class Presigner(SigV4QueryAuth):
    """botocore's, which moves a body into the query, with the body left where it is."""

    def payload(self, request):
        return hashlib.sha256(BODY.encode()).hexdigest()


def presigned(url, pair, service="sagemaker", expires=60, headers=()):
    request = AWSRequest("POST", url, headers=dict(headers))
    Presigner(Credentials(*pair), service, "us-west-2", expires=expires).add_auth(request)
    return request.url


def bearer(pair, action="CallWithBearerToken", expires=3600):
    """As SageMaker's own token generator makes it."""
    url = "https://sagemaker.amazonaws.com/"
    request = AWSRequest("POST", url, headers={"host": "sagemaker.amazonaws.com"}, params={"Action": action})
    SigV4QueryAuth(Credentials(*pair), "sagemaker", "us-west-2", expires=expires).add_auth(request)
    text = request.url.removeprefix("https://") + "&Version=1"
    return "sagemaker-api-key-" + base64.b64encode(text.encode()).decode()


def main():
    url, endpoint, target, keys = sys.argv[1:5]
    keys = json.loads(keys)
    right = keys["right"]
    asked = {"EndpointName": endpoint, "TargetModel": target, "Body": BODY, "ContentType": "application/json"}

    def invoke(pair, **more):
        return client(url, pair, **more).invoke_endpoint(**asked)

    # Right, in any region, with odd names in the path, with large and empty bodies.
    answer = json.load(invoke(right)["Body"])
    assert "label" in answer[0], answer
    named = client(url, right)
    status, code, _ = raised(lambda: named.invoke_endpoint(**{**asked, "EndpointName": "a b/ü~c"}))
    assert (status, code) == (400, "ValidationError"), (status, code)
    status, code, _ = raised(lambda: named.invoke_endpoint(**{**asked, "TargetModel": "modèle  x"}))
    assert (status, code) == (400, "ValidationError"), (status, code)
    status, code, _ = raised(lambda: named.invoke_endpoint(**{**asked, "Body": " " * 2_000_000}))
    assert code in ("ValidationError", "ModelError"), (status, code)

    # Wrong.
    unknown = ["AKIAIOSFODNN7EXAMPLE", right[1]]
    assert raised(lambda: invoke(unknown))[:2] == (403, "UnrecognizedClientException")
    assert raised(lambda: invoke([*right, "a-session-token"]))[:2] == (403, "UnrecognizedClientException")
    status, code, message = raised(lambda: invoke([right[0], "wrong"]))
    assert (status, code) == (403, "InvalidSignatureException"), (status, code)
    assert message.startswith(MISMATCH), message
    unsigned = raised(lambda: invoke([], config={"signature_version": UNSIGNED}))
    assert unsigned == (403, "MissingAuthenticationTokenException", "Missing Authentication Token"), unsigned

    # Expired: the key itself, whose second may not be over yet.
    deadline = time.monotonic() + 60
    while True:
        try:
            invoke(keys["expired"])
        except ClientError as error:
            assert error.response["Error"]["Code"] == "ExpiredTokenException", error
            break
        assert time.monotonic() < deadline, "the key goes on"

    # Skewed.
    for seconds, words in [(-600, "Signature expired: "), (600, "Signature not yet current: ")]:
        with Skewed(seconds):
            status, code, message = raised(lambda: invoke(right))
        assert (status, code) == (403, "InvalidSignatureException"), (status, code)
        assert message.startswith(words) and "5 min.)" in message, message
    with Skewed(-200):
        assert invoke(right)["ResponseMetadata"]["HTTPStatusCode"] == 200

    # Tampered on the way.
    def tampered(change):
        changing = client(url, right)
        changing.meta.events.register("before-send.sagemaker-runtime.InvokeEndpoint", change)
        return raised(lambda: changing.invoke_endpoint(**asked))

    def body(request, **_):
        request.body = BODY.replace("hello", "hellp").encode()

    def header(request, **_):
        request.headers["X-Amzn-SageMaker-Target-Model"] = "another"

    def added(request, **_):
        request.headers["X-Amzn-SageMaker-Custom-Attributes"] = "more"

    def path(request, **_):
        request.url = request.url.replace(f"/{endpoint}/", "/other/")

    for change in (body, header, path):
        status, code, message = tampered(change)
        assert (status, code) == (403, "InvalidSignatureException"), (change, code)
        assert message.startswith(MISMATCH), message
    status, code, message = tampered(added)
    assert (status, code) == (403, "InvalidSignatureException") and "not signed" in message, message

    # Presigned.
    where = f"{url}/endpoints/{endpoint}/invocations"
    headers = {"X-Amzn-SageMaker-Target-Model": target, "Content-Type": "application/json"}
    status, answer = http(presigned(where, right, headers=headers), BODY.encode(), headers)
    assert status == 200, answer
    status, answer = http(presigned(where, right, headers=headers), b"{}", headers)
    assert status == 403 and answer["Message"].startswith(MISMATCH), answer
    status, answer = http(presigned(where, right, service="s3", headers=headers), BODY.encode(), headers)
    assert status == 403 and "correct service: 'sagemaker'" in answer["Message"], answer
    with Skewed(-120):
        old = presigned(where, right, expires=60, headers=headers)
    status, answer = http(old, BODY.encode(), headers)
    assert status == 403 and answer["Message"].startswith("Signature expired: "), answer

    # Bearer: ours, and SageMaker's signed by our pair.
    for token in (keys["bearer"], bearer(right)):
        with_token = {**headers, "Authorization": f"Bearer {token}"}
        status, answer = http(where, BODY.encode(), with_token)
        assert status == 200, answer
    for token in (bearer(right, action="GetCallerIdentity"), "rh-no-such", "sk-1234"):
        with_token = {**headers, "Authorization": f"Bearer {token}"}
        status, answer = http(where, BODY.encode(), with_token)
        assert status == 403, (token, answer)
    status, answer = http(where, BODY.encode(), {**headers, "Authorization": f"Bearer {keys['operator']}"})
    assert status == 403 and "admin port" in answer["Message"], answer
    print("ok")


if __name__ == "__main__":
    main()
