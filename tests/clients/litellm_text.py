"""LiteLLM's `sagemaker/` routes: text whole and streamed, awaited too, by inference component, and embeddings.

This route sends `inputs`, reads an object or an array of one, and cannot send a target model: its endpoint has one
target, or `model_id` names an inference component.

usage: litellm_text.py DATA_URL CHAT_ENDPOINT FLEET_ENDPOINT COMPONENT VECTORS_ENDPOINT
"""

import asyncio
import json
import math
import os
import sys
import urllib.request

PROMPT = "Our shop"
TOKENS = 16


def same(pieces, wanted):
    """LiteLLM takes the blanks off a stream's first pieces, and leaves the token in that ends a text."""
    said, wanted = "".join("".join(pieces).split()), "".join(wanted.split())
    rest = said[len(wanted):]
    return said.startswith(wanted) and (not rest or rest.startswith("<") and rest.endswith(">"))


def direct(url, endpoint):
    body = json.dumps({"inputs": PROMPT, "parameters": {"max_new_tokens": TOKENS}}).encode()
    request = urllib.request.Request(f"{url}/endpoints/{endpoint}/invocations", body,
                                     {"Content-Type": "application/json"})
    with urllib.request.urlopen(request) as answer:
        return json.load(answer)["generated_text"]


def main():
    url, chat, fleet, component, vectors = sys.argv[1:6]
    # Its embeddings go through boto3, which finds its server here.
    os.environ["AWS_ENDPOINT_URL_SAGEMAKER_RUNTIME"] = url
    import litellm

    wanted = direct(url, chat)
    assert wanted, "the model says nothing"
    aws = {"aws_access_key_id": "any", "aws_secret_access_key": "any", "aws_region_name": "us-east-1"}

    def asked(endpoint, operation, **more):
        # Without a template of its own it would look for one on Hugging Face's hub.
        litellm.register_prompt_template(model=endpoint, roles={})
        return {"model": f"sagemaker/{endpoint}", "max_tokens": TOKENS, **aws, **more,
                "messages": [{"role": "user", "content": PROMPT}],
                "sagemaker_base_url": f"{url}/endpoints/{endpoint}/{operation}"}

    for endpoint, more in [(chat, {}), (fleet, {"model_id": component})]:
        whole = litellm.completion(**asked(endpoint, "invocations", **more))
        assert whole.choices[0].message.content == wanted, (whole, wanted)
        stream = litellm.completion(**asked(endpoint, "invocations-response-stream", **more), stream=True)
        pieces = [chunk.choices[0].delta.content or "" for chunk in stream]
        assert same(pieces, wanted), (pieces, wanted)
        assert len([piece for piece in pieces if piece]) > 3, pieces

    async def awaited():
        whole = await litellm.acompletion(**asked(chat, "invocations"))
        assert whole.choices[0].message.content == wanted, whole
        stream = await litellm.acompletion(**asked(chat, "invocations-response-stream"), stream=True)
        said = [chunk.choices[0].delta.content or "" async for chunk in stream]
        assert same(said, wanted), said

    asyncio.run(awaited())

    found = litellm.embedding(model=f"sagemaker/{vectors}",
                              input=["a parcel is late", "my package has not come"], **aws).data
    a, b = (item["embedding"] for item in found)
    assert math.isclose(sum(x * x for x in a), 1, abs_tol=1e-3), a
    assert sum(x * y for x, y in zip(a, b)) > 0.3, (a, b)
    print("all as expected")


main()
