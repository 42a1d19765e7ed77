"""The official clients over TLS, with and without a certificate of their own.

usage: tls_clients.py DATA_URL TARGET FOLDER SERIAL
FOLDER holds ca.crt, client.crt and client.key (the tenant's), stranger.crt and stranger.key (of
another authority); SERIAL is that of the certificate which the server should show, in hexadecimal.
"""

import socket
import ssl
import sys
from urllib.parse import urlsplit

import boto3
import httpx2
from botocore import UNSIGNED
from botocore.config import Config
from botocore.exceptions import ClientError
from openai import APIConnectionError, AuthenticationError, OpenAI


def main():
    url, target, folder, serial = sys.argv[1:5]
    port = urlsplit(url).port
    url = f"https://localhost:{port}"
    authority = f"{folder}/ca.crt"

    shown = ssl.create_default_context(cafile=authority)
    with shown.wrap_socket(socket.create_connection(("127.0.0.1", port)), server_hostname="localhost") as stream:
        served = stream.getpeercert()["serialNumber"]
    assert served.lower().lstrip("0") == serial.lower().lstrip("0"), (served, serial)

    def openai(name):
        context = ssl.create_default_context(cafile=authority)
        if name:
            context.load_cert_chain(f"{folder}/{name}.crt", f"{folder}/{name}.key")
        http = httpx2.Client(verify=context, trust_env=False)
        # The certificate is the credential: the key's header is taken off.
        http.event_hooks["request"] = [lambda request: request.headers.pop("authorization", None)]
        return OpenAI(base_url=f"{url}/v1", api_key="none", http_client=http, max_retries=0)

    assert [model.id for model in openai("client").models.list().data] == [target]
    try:
        openai(None).models.list()
        raise AssertionError("nobody is let in without a certificate")
    except AuthenticationError:
        pass
    try:
        openai("stranger").models.list()
        raise AssertionError("another authority's certificate counts")
    except APIConnectionError:
        pass

    def runtime(name):
        certificate = (f"{folder}/{name}.crt", f"{folder}/{name}.key") if name else None
        config = Config(signature_version=UNSIGNED, client_cert=certificate, retries={"total_max_attempts": 1})
        return boto3.client(
            "sagemaker-runtime", endpoint_url=url, region_name="eu-central-1", verify=authority, config=config
        )

    asked = {"EndpointName": "default", "TargetModel": target, "Body": '{"inputs": "hello"}', "ContentType": "application/json"}
    assert runtime("client").invoke_endpoint(**asked)["ResponseMetadata"]["HTTPStatusCode"] == 200
    try:
        runtime(None).invoke_endpoint(**asked)
        raise AssertionError("nobody is let in without a certificate")
    except ClientError as error:
        assert error.response["Error"]["Code"] == "MissingAuthenticationTokenException", error
    print("ok")


if __name__ == "__main__":
    main()
