"""Callers with AWS's own credentials: a GetCallerIdentity presigned by boto3, brought as a bearer token.

usage: boto3_iam.py DATA_URL ENDPOINT TARGET STS_URL SERVER_ID PRINCIPALS
PRINCIPALS is JSON, as sts_stand_in.py takes it: of `acme`, of `stranger`, by these access key ids.
"""

import base64
import json
import sys
import urllib.error
import urllib.request

import boto3
from botocore import UNSIGNED
from botocore.config import Config
from openai import OpenAI

PREFIX = "rh-aws-v1."


def token(session, server_id, endpoint_url=None, expires=60, call="get_caller_identity", **arguments):
    """As the README has it."""
    sts = session.client("sts", endpoint_url=endpoint_url)
    name = lambda request, **_: request.headers.add_header("x-roundhouse-server-id", server_id)
    sts.meta.events.register("before-sign.sts", name)
    url = sts.generate_presigned_url(call, Params=arguments, ExpiresIn=expires, HttpMethod="GET")
    return PREFIX + base64.urlsafe_b64encode(url.encode()).decode().rstrip("=")


def session(key, principals, secret=None):
    known, session_token, _ = principals[key]
    return boto3.Session(key, secret or known, session_token, region_name="eu-central-1")


def asked(sts):
    with urllib.request.urlopen(f"{sts}/asked", timeout=10) as answer:
        return json.load(answer)


def main():
    url, endpoint, target, sts, server_id, principals = sys.argv[1:7]
    principals = json.loads(principals)
    where = f"{url}/endpoints/{endpoint}/invocations"

    def ask(bearer):
        headers = {
            "Authorization": f"Bearer {bearer}",
            "Content-Type": "application/json",
            "X-Amzn-SageMaker-Target-Model": target,
        }
        request = urllib.request.Request(where, b'{"inputs": "hello"}', headers, method="POST")
        try:
            with urllib.request.urlopen(request, timeout=70) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)

    acme = session("acme", principals)
    right = token(acme, server_id, sts)
    for _ in range(5):
        status, answer = ask(right)
        assert status == 200, answer
    assert asked(sts) == 1, asked(sts)

    # The clients themselves.
    openai = OpenAI(base_url=f"{url}/v1", api_key=right, max_retries=0)
    listed = [model.id for model in openai.models.list().data]
    assert target in listed, listed
    runtime = boto3.client(
        "sagemaker-runtime", endpoint_url=url, region_name="eu-central-1", config=Config(signature_version=UNSIGNED)
    )

    def bring(request, **_):
        request.headers["Authorization"] = f"Bearer {right}"

    runtime.meta.events.register("before-send.sagemaker-runtime", bring)
    invoked = runtime.invoke_endpoint(
        EndpointName=endpoint, TargetModel=target, Body='{"inputs": "hello"}', ContentType="application/json"
    )
    assert invoked["ResponseMetadata"]["HTTPStatusCode"] == 200
    assert asked(sts) == 1, "one token is asked about once"

    # A wrong secret; a server of another name; nobody's principal: AWS is asked about each.
    unknown = "The security token included in the request is invalid."
    for wrong in (token(session("acme", principals, "wrong"), server_id, sts), token(acme, "another-server", sts)):
        status, answer = ask(wrong)
        assert (status, answer["Message"]) == (403, unknown), answer
    status, answer = ask(token(session("stranger", principals), server_id, sts))
    assert status == 403 and "is no tenant of ours" in answer["Message"], answer
    assert asked(sts) == 4, asked(sts)

    # What is no GetCallerIdentity for the STS of this server is sent to nobody.
    role = {"RoleArn": "arn:aws:iam::123456789012:role/x", "RoleSessionName": "one"}
    elsewhere = sts.replace("127.0.0.1", "localhost")
    for odd in (
        token(acme, server_id, elsewhere),
        token(acme, server_id),
        token(acme, server_id, sts, call="assume_role", **role),
        token(acme, server_id, sts, expires=3600),
        PREFIX,
        right[:-1] + "!",
    ):
        status, answer = ask(odd)
        assert status in (400, 403), answer
    assert asked(sts) == 4, asked(sts)
    print("ok")


if __name__ == "__main__":
    main()
