"""The official client against an engine behind the server: whole answers, streams, errors."""

import sys

import openai

url, model = sys.argv[1:]
client = openai.OpenAI(base_url=url, api_key="none", max_retries=0)
messages = [{"role": "user", "content": "hello"}]

whole = client.chat.completions.create(model=model, messages=messages)
assert whole.choices[0].message.content.startswith(f"{model}|{model}|hello|"), whole
assert whole.usage.completion_tokens == 4, whole

pieces, usage = [], None
options = {"include_usage": True}
stream = client.chat.completions.create(
    model=model, messages=messages, stream=True, stream_options=options
)
for chunk in stream:
    usage = chunk.usage or usage
    pieces += [choice.delta.content or "" for choice in chunk.choices]
assert "".join(pieces) == whole.choices[0].message.content, pieces
assert len(pieces) > 3 and usage.total_tokens == 7, (pieces, usage)

text = client.completions.create(model=model, prompt="again").choices[0].text
assert text.split("|")[2] == "again", text
assert client.embeddings.create(model=model, input="x", encoding_format="float").data[0].embedding

response = client.responses.create(model=model, input="hello")
assert response.output_text == whole.choices[0].message.content, response
assert response.usage.output_tokens == 4, response
told = list(client.responses.create(model=model, input="hello", stream=True))
pieces = [event.delta for event in told if event.type == "response.output_text.delta"]
assert "".join(pieces) == response.output_text and len(pieces) > 3, told
assert told[-1].type == "response.completed" and told[-1].response.usage.total_tokens == 7, told[-1]
try:
    client.responses.create(model=model, input="hello", previous_response_id="resp_1")
    raise SystemExit("what an engine has stored is nobody's here")
except openai.BadRequestError as error:
    assert error.param == "previous_response_id", error

try:
    client.chat.completions.create(
        model=model, messages=[{"role": "user", "content": "status 422"}]
    )
    raise SystemExit("an error of the engine's must be one of the client's")
except openai.UnprocessableEntityError as error:
    assert "as you wish" in str(error), error
try:
    for event in client.responses.create(model=model, input="die later", stream=True):
        pass
    raise SystemExit("a stream that broke off must not look whole")
except openai.APIError as error:
    assert "gone" in str(error) or "broke" in str(error), error
print("engine answers")
