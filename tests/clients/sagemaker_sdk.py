"""The SageMaker Python SDK's predictors: JSON, a target model per call as `MultiDataModel` makes it,
a stream, and the errors that they show.

usage: sagemaker_sdk.py DATA_URL ENDPOINT CHAT_MODEL QUESTION WANTED CLASSIFIER TEXT LABEL
"""

import json
import sys

import boto3
from botocore.exceptions import ClientError
from sagemaker.base_deserializers import JSONDeserializer, StreamDeserializer
from sagemaker.base_serializers import JSONSerializer
from sagemaker.iterators import LineIterator
from sagemaker.predictor import Predictor
from sagemaker.session import Session


def main():
    url, endpoint, chat, question, wanted, classifier, text, label = sys.argv[1:9]
    keys = {"region_name": "us-east-1", "aws_access_key_id": "any", "aws_secret_access_key": "any"}
    runtime = boto3.client("sagemaker-runtime", endpoint_url=url, **keys)
    session = Session(
        boto_session=boto3.Session(**keys),
        sagemaker_client=boto3.client("sagemaker", endpoint_url=url, **keys),
        sagemaker_runtime_client=runtime,
    )
    predictor = Predictor(endpoint, session, JSONSerializer(), JSONDeserializer())

    answer = predictor.predict({"inputs": text}, target_model=classifier)
    assert answer[0]["label"] == label, answer

    body = {"messages": [{"role": "user", "content": question}], "temperature": 0, "max_tokens": 64}
    answer = predictor.predict(body, target_model=chat, inference_id="sdk-1")
    said = answer["choices"][0]["message"]["content"]
    assert wanted in said, answer

    lines = predictor.predict_stream({**body, "model": chat, "stream": True}, iterator=LineIterator)
    pieces = []
    for line in lines:
        choices = json.loads(line)["choices"] if line else []
        pieces += [choice["delta"].get("content") or "" for choice in choices]
    assert "".join(pieces) == said, pieces
    assert len(pieces) > 3, pieces

    raw = Predictor(endpoint, session, JSONSerializer(), StreamDeserializer())
    stream, kind = raw.predict({"inputs": text}, target_model=classifier)
    assert kind.split(";")[0] == "application/json", kind
    assert json.loads(stream.read())[0]["label"] == label

    try:
        predictor.predict({"inputs": text}, target_model="no/such/model")
    except ClientError as error:
        assert error.response["Error"]["Code"] == "ValidationError", error.response
    else:
        raise AssertionError("an unknown model was answered")
    print("all as expected")


main()
