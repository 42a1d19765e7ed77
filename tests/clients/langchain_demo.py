"""LangChain: `SagemakerEndpoint` whole and streamed, `ChatOpenAI` whole and streamed, `OpenAIEmbeddings`.

usage: langchain_demo.py DATA_URL ENDPOINT CHAT_MODEL QUESTION WANTED GENERATOR ENCODER
"""

import json
import sys

import boto3
from langchain_aws.llms import SagemakerEndpoint
from langchain_aws.llms.sagemaker_endpoint import LLMContentHandler
from langchain_openai import ChatOpenAI, OpenAIEmbeddings


class Handler(LLMContentHandler):
    """As LangChain's own documentation has it for Hugging Face models."""

    content_type = "application/json"
    accepts = "application/json"

    def transform_input(self, prompt, model_kwargs):
        return json.dumps({"inputs": prompt, **model_kwargs}).encode()

    def transform_output(self, output):
        return json.loads(output.read())["generated_text"]


class Streaming(Handler):
    def transform_output(self, output):
        token = json.loads(output)["token"]
        return token["text"] if token and not token.get("special") else ""


def main():
    url, endpoint, chat, question, wanted, generator, encoder = sys.argv[1:8]
    client = boto3.client("sagemaker-runtime", endpoint_url=url, region_name="us-east-1",
                          aws_access_key_id="any", aws_secret_access_key="any")
    parameters = {"max_new_tokens": 16}
    whole = SagemakerEndpoint(
        endpoint_name=endpoint, client=client, content_handler=Handler(),
        model_kwargs={"parameters": parameters}, endpoint_kwargs={"TargetModel": generator},
    )
    said = whole.invoke("Our shop")
    assert said, said

    # The stream operation has no TargetModel member: the body names the model.
    streamed = SagemakerEndpoint(
        endpoint_name=endpoint, client=client, content_handler=Streaming(), streaming=True,
        model_kwargs={"parameters": parameters, "stream": True, "model": generator},
    )
    pieces = list(streamed.stream("Our shop"))
    assert "".join(pieces) == said, (pieces, said)
    assert len(pieces) > 3, pieces

    model = ChatOpenAI(model=chat, base_url=f"{url}/v1", api_key="any", temperature=0, max_tokens=64)
    answer = model.invoke(question)
    assert wanted in answer.content, answer
    assert answer.usage_metadata["output_tokens"] > 0, answer
    pieces = [chunk.content for chunk in model.stream(question)]
    assert "".join(pieces) == answer.content, pieces

    # Token lists, as LangChain cuts long texts, would need OpenAI's own vocabulary.
    vectors = OpenAIEmbeddings(model=encoder, base_url=f"{url}/v1", api_key="any",
                               check_embedding_ctx_length=False)
    a, b = vectors.embed_documents(["a parcel is late", "my package has not come"])
    assert sum(x * y for x, y in zip(a, b)) > 0.3
    print("all as expected")


main()
