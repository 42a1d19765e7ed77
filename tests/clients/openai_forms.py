"""The OpenAI client against what gives answers a form: response_format, vLLM's extra fields, calls
of tools (whole, streamed, demanded, in the history), logit bias, several answers, cached tokens.

usage: openai_forms.py DATA_URL CHAT_MODEL
"""

import json
import re
import sys

import openai


def main():
    url, model = sys.argv[1:3]
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0)
    question = [{"role": "user", "content": "Where is my parcel? Answer in a form, please."}]

    def ask(**fields):
        return client.chat.completions.create(model=model, messages=question, **{"max_tokens": 400, "seed": 5, **fields})

    schema = {
        "type": "object",
        "properties": {
            "place": {"enum": ["van", "depot"]},
            "days": {"type": "integer", "minimum": 1, "maximum": 9},
            "note": {"type": "string", "maxLength": 12},
        },
        "required": ["place", "days", "note"],
        "additionalProperties": False,
    }

    def check(text):
        said = json.loads(text)
        assert set(said) == {"place", "days", "note"}, said
        assert said["place"] in ("van", "depot") and 1 <= said["days"] <= 9 and len(said["note"]) <= 12, said

    form = {"type": "json_schema", "json_schema": {"name": "answer", "strict": True, "schema": schema}}
    for temperature in (0, 1.5):
        answer = ask(response_format=form, n=3, temperature=temperature)
        assert len(answer.choices) == 3
        for choice in answer.choices:
            check(choice.message.content)
            assert choice.finish_reason == "stop", choice
    pieces = [chunk.choices[0].delta.content or "" for chunk in ask(response_format=form, stream=True, temperature=1)]
    check("".join(pieces))
    cut = ask(response_format=form, max_tokens=2)
    assert cut.choices[0].finish_reason == "length", cut

    any_object = ask(response_format={"type": "json_object"}, temperature=0).choices[0]
    assert any_object.message.content.startswith("{"), any_object
    if any_object.finish_reason == "stop":
        assert isinstance(json.loads(any_object.message.content), dict), any_object
    chosen = ask(extra_body={"guided_choice": ["yes", "no, never"]}).choices[0]
    assert chosen.message.content in ("yes", "no, never"), chosen
    number = ask(extra_body={"structured_outputs": {"regex": r"\d{3}-[a-f]{2}"}}).choices[0].message.content
    assert re.fullmatch(r"[0-9]{3}-[a-f]{2}", number), number
    check(ask(extra_body={"guided_json": json.dumps(schema)}).choices[0].message.content)

    try:
        ask(response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "colour"}}})
    except openai.BadRequestError as error:
        assert "response_format" in str(error) and "colour" in str(error), error
    else:
        raise AssertionError("a schema that is none was taken")

    tools = [
        {"type": "function", "function": {"name": "find_parcel", "parameters": {
            "type": "object", "properties": {"number": {"type": "string", "pattern": "^[0-9]{4}$"}},
            "required": ["number"], "additionalProperties": False}}},
        {"type": "function", "function": {"name": "call_human"}},
    ]

    def called(call):
        arguments = json.loads(call.function.arguments)
        assert call.id and call.type == "function", call
        if call.function.name == "find_parcel":
            assert re.fullmatch("[0-9]{4}", arguments["number"]), arguments
        else:
            assert call.function.name == "call_human" and arguments == {}, call

    demanded = ask(tools=tools, tool_choice="required", temperature=1).choices[0]
    assert demanded.finish_reason == "tool_calls" and demanded.message.content is None, demanded
    for call in demanded.message.tool_calls:
        called(call)
    named = ask(tools=tools, tool_choice={"type": "function", "function": {"name": "find_parcel"}}).choices[0]
    assert named.message.tool_calls[0].function.name == "find_parcel" and named.finish_reason == "stop", named
    called(named.message.tool_calls[0])

    calls, reason = {}, None
    for chunk in ask(tools=tools, tool_choice="required", stream=True, temperature=1):
        reason = chunk.choices[0].finish_reason or reason
        for part in chunk.choices[0].delta.tool_calls or []:
            call = calls.setdefault(part.index, {"id": part.id, "name": part.function.name, "arguments": ""})
            call["arguments"] += part.function.arguments
    assert reason == "tool_calls" and calls and all(call["id"] and call["name"] for call in calls.values()), calls
    assert all(isinstance(json.loads(call["arguments"]), dict) for call in calls.values())

    history = question + [
        demanded.message.model_dump(exclude_none=True),
        {"role": "tool", "tool_call_id": demanded.message.tool_calls[0].id, "content": "it is in the van"},
    ]
    try:
        client.chat.completions.create(model=model, messages=history, max_tokens=5, tools=tools, tool_choice="none")
    except openai.BadRequestError as error:
        # The history reached the template, and this one knows no tools.
        assert "unknown role tool" in str(error), error
    else:
        raise AssertionError("the demo's template took a tool's answer")

    biased = client.completions.create(
        model=model, prompt="Our shop", max_tokens=6, logprobs=2, logit_bias={"70": 100},
        extra_body={"ignore_eos": True, "min_tokens": 6})
    assert len(set(biased.choices[0].logprobs.tokens)) == 1, biased
    assert len(biased.choices[0].logprobs.tokens) == 6

    # As programs that evaluate models ask: what is each token of a text given, after those before it?
    def scored(text):
        asked = client.completions.create(
            model=model, prompt=text, max_tokens=1, temperature=0, logprobs=1, echo=True)
        [choice], used = asked.choices, asked.usage
        assert choice.text.startswith(text), choice
        assert len(choice.logprobs.tokens) == used.prompt_tokens + used.completion_tokens, asked
        values, tops = choice.logprobs.token_logprobs[:-1], choice.logprobs.top_logprobs[:-1]
        assert values[0] is None and tops[0] is None
        assert all(value <= max(top.values()) <= 0 for value, top in zip(values[1:], tops[1:]))
        assert "".join(choice.logprobs.tokens[:-1]) == text, choice.logprobs.tokens
        return values[1:]

    short, long = scored("Our shop opens at"), scored("Our shop opens at nine. Can I return a lamp?")
    same = [abs(a - b) < 1e-3 for a, b in zip(short[:-1], long)]
    assert len(short) > 3 and all(same), (short, long)

    # vLLM's own way to ask that, with ranks. The beginning was computed before, and is told all the same.
    text = "Our shop opens at nine. Can I return a lamp?"
    extra = {"prompt_logprobs": 3, "return_token_ids": True}
    for _ in range(2):
        asked = client.completions.create(model=model, prompt=text, max_tokens=2, temperature=0, extra_body=extra)
        [choice] = asked.choices
        ids, told = choice.prompt_token_ids, choice.prompt_logprobs
        assert choice.logprobs is None and not choice.text.startswith(text), choice
        assert (len(ids), len(choice.token_ids)) == (asked.usage.prompt_tokens, asked.usage.completion_tokens), asked
        own = [given[str(id)] for id, given in zip(ids[1:], told[1:])]
        assert told[0] is None and len(own) == len(long), told
        assert all(abs(one["logprob"] - value) < 1e-3 for one, value in zip(own, long)), (own, long)
        assert "".join(one["decoded_token"] for one in own) == text[len(text) - sum(len(o["decoded_token"]) for o in own):]
        for given, one in zip(told[1:], own):
            ranks = sorted(other["rank"] for other in given.values())
            assert ranks == ([1, 2, 3] if one["rank"] <= 3 else [1, 2, 3, one["rank"]]), given
            assert sorted(given.values(), key=lambda it: it["rank"]) == sorted(given.values(), key=lambda it: -it["logprob"])
    chat = ask(max_tokens=2, extra_body=extra)
    assert len(chat.prompt_logprobs) == len(chat.prompt_token_ids) == chat.usage.prompt_tokens, chat
    assert len(chat.choices[0].token_ids) == chat.usage.completion_tokens, chat
    pieces = list(ask(max_tokens=4, stream=True, extra_body={"return_token_ids": True}))
    assert pieces[0].prompt_token_ids == chat.prompt_token_ids, pieces[0]
    streamed = [id for chunk in pieces for choice in chunk.choices for id in getattr(choice, "token_ids", None) or []]
    assert 0 < len(streamed) <= 4, pieces

    prompt = "A prompt that is long enough to fill some blocks of keys and values. " * 4
    first = client.completions.create(model=model, prompt=prompt, max_tokens=2, n=3, temperature=1)
    again = client.completions.create(model=model, prompt=prompt, max_tokens=2, n=3, temperature=1)
    assert first.usage.prompt_tokens_details.cached_tokens == 0, first.usage
    assert 0 < again.usage.prompt_tokens_details.cached_tokens < again.usage.prompt_tokens, again.usage
    print("all as expected")


main()
