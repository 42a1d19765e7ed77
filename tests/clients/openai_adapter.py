"""The OpenAI client asks an adapter by its name, as it asks vLLM's.

usage: openai_adapter.py DATA_URL BASE ADAPTER
"""

import sys

import openai


def main():
    url, base, adapter = sys.argv[1:4]
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0)
    messages = [{"role": "user", "content": "Which shop am I talking to?"}]

    def ask(model):
        answer = client.chat.completions.create(model=model, messages=messages, temperature=0, max_tokens=64)
        assert answer.model == model
        return answer.choices[0].message.content

    assert ask(adapter) != ask(base)
    shown = client.models.retrieve(adapter)
    assert (shown.parent, shown.root) == (base, adapter), shown
    assert any(model.id == adapter and model.parent == base for model in client.models.list())
    pieces = client.completions.create(model=adapter, prompt="Question: ", max_tokens=4, stream=True)
    assert sum(1 for _ in pieces) > 0
    print("as expected")


main()
