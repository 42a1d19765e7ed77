"""The OpenAI client against the OpenAI routes: models, chat (whole and streamed),
completions, embeddings.

usage: openai_demo.py DATA_URL CHAT_MODEL QUESTION WANTED ENCODER
"""

import sys

import openai


def main():
    url, model, question, wanted, encoder = sys.argv[1:6]
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0)

    names = [m.id for m in client.models.list()]
    assert model in names and encoder in names, names

    messages = [{"role": "user", "content": question}]
    whole = client.chat.completions.create(model=model, messages=messages, temperature=0, max_tokens=64)
    text = whole.choices[0].message.content
    assert wanted in text, text
    assert whole.choices[0].finish_reason == "stop"
    assert whole.usage.completion_tokens > 0

    pieces, reason, usage = [], None, None
    stream = client.chat.completions.create(
        model=model, messages=messages, temperature=0, max_tokens=64, stream=True,
        stream_options={"include_usage": True},
    )
    for chunk in stream:
        if chunk.choices:
            pieces.append(chunk.choices[0].delta.content or "")
            reason = chunk.choices[0].finish_reason or reason
        usage = chunk.usage or usage
    assert "".join(pieces) == text, (pieces, text)
    assert reason == "stop" and len(pieces) > 3
    assert usage.completion_tokens == whole.usage.completion_tokens

    again = client.completions.create(model=model, prompt="Our shop", max_tokens=8, seed=7, temperature=0.9)
    same = client.completions.create(model=model, prompt="Our shop", max_tokens=8, seed=7, temperature=0.9)
    assert again.choices[0].text == same.choices[0].text

    vectors = client.embeddings.create(model=encoder, input=["a parcel is late", "my package has not come"]).data
    a, b = (v.embedding for v in vectors)
    assert abs(sum(x * x for x in a) - 1) < 1e-3
    assert sum(x * y for x, y in zip(a, b)) > 0.3

    try:
        client.chat.completions.create(model="no/such/model", messages=messages)
    except openai.NotFoundError as error:
        assert error.code == "model_not_found", error.body
    else:
        raise AssertionError("an unknown model was answered")
    print("all as expected")


main()
