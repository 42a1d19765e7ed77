"""LiteLLM: its OpenAI route and both of its SageMaker routes, whole and streamed.

usage: litellm_demo.py DATA_URL ENDPOINT CHAT_MODEL QUESTION WANTED ENCODER
"""

import sys

import litellm


def text(stream):
    return "".join(chunk.choices[0].delta.content or "" for chunk in stream)


def main():
    url, endpoint, chat, question, wanted, encoder = sys.argv[1:7]
    messages = [{"role": "user", "content": question}]
    openai = {"model": f"openai/{chat}", "api_base": f"{url}/v1", "api_key": "any",
              "messages": messages, "temperature": 0, "max_tokens": 64}
    said = litellm.completion(**openai).choices[0].message.content
    assert wanted in said, said
    assert text(litellm.completion(**openai, stream=True)) == said
    vectors = litellm.embedding(model=f"openai/{encoder}", input=["a parcel is late", "my package"],
                                api_base=f"{url}/v1", api_key="any").data
    assert len(vectors) == 2, vectors

    aws = {"aws_access_key_id": "any", "aws_secret_access_key": "any", "aws_region_name": "us-east-1"}
    chats = {"model": f"sagemaker_chat/{endpoint}", "messages": messages, "temperature": 0,
             "max_tokens": 64, **aws}
    address = f"{url}/endpoints/{endpoint}"
    whole = litellm.completion(
        **chats, sagemaker_base_url=f"{address}/invocations",
        extra_headers={"X-Amzn-SageMaker-Target-Model": chat},
    )
    assert whole.choices[0].message.content == said, whole
    streamed = litellm.completion(
        **chats, sagemaker_base_url=f"{address}/invocations-response-stream", stream=True,
        extra_headers={"X-Amzn-SageMaker-Target-Model": chat},
    )
    assert text(streamed) == said

    print("all as expected")


main()
