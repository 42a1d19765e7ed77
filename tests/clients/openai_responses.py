"""The OpenAI client against the Responses API, and against what clients of vLLM send with a chat:
structural tags, allowed tools, messages that go on.

usage: openai_responses.py DATA_URL CHAT_MODEL
"""

import json
import re
import sys

import openai

TOOLS = [
    {"type": "function", "name": "find_parcel", "strict": True, "parameters": {
        "type": "object", "properties": {"number": {"type": "string", "pattern": "^[0-9]{4}$"}},
        "required": ["number"], "additionalProperties": False}},
    {"type": "function", "name": "call_human", "parameters": None, "strict": None},
]


def responses(client, model):
    def ask(**fields):
        return client.responses.create(model=model, **{
            "input": "When are you open?", "max_output_tokens": 64, "temperature": 0, **fields})

    whole = ask()
    assert whole.status == "completed" and whole.output_text, whole
    assert whole.usage.total_tokens == whole.usage.input_tokens + whole.usage.output_tokens
    chat = client.chat.completions.create(
        model=model, messages=[{"role": "user", "content": "When are you open?"}], max_tokens=64, temperature=0)
    assert chat.choices[0].message.content == whole.output_text, (chat, whole)
    items = [{"role": "user", "content": "Hello"}, *whole.output, {"role": "user", "content": "And on Sunday?"}]
    told = ask(instructions="Be brief.", input=[item if isinstance(item, dict) else item.model_dump() for item in items])
    assert told.usage.input_tokens > whole.usage.input_tokens and told.instructions == "Be brief.", told

    kinds, text = [], ""
    with client.responses.stream(
            model=model, input="When are you open?", max_output_tokens=64, temperature=0) as stream:
        for event in stream:
            kinds.append(event.type)
            text += event.delta if event.type == "response.output_text.delta" else ""
        final = stream.get_final_response()
    assert text == whole.output_text == final.output_text, (text, whole)
    assert kinds[:2] == ["response.created", "response.in_progress"] and kinds[-1] == "response.completed", kinds
    cut = ask(max_output_tokens=2)
    assert cut.status == "incomplete" and cut.incomplete_details.reason == "max_output_tokens", cut

    schema = {"type": "object", "properties": {"open": {"type": "boolean"}},
              "required": ["open"], "additionalProperties": False}
    form = {"format": {"type": "json_schema", "name": "answer", "schema": schema, "strict": True}}
    assert set(json.loads(ask(text=form).output_text)) == {"open"}

    called = ask(tools=TOOLS, tool_choice={"type": "function", "name": "find_parcel"}, max_output_tokens=200)
    call = called.output[0]
    assert call.type == "function_call" and call.name == "find_parcel" and call.call_id, called
    assert re.fullmatch("[0-9]{4}", json.loads(call.arguments)["number"]), call
    allowed = {"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "call_human"}]}
    names = {item.name for item in ask(tools=TOOLS, tool_choice=allowed, max_output_tokens=200).output}
    assert names == {"call_human"}, names
    try:
        ask(previous_response_id=whole.id)
    except openai.BadRequestError as error:
        assert error.param == "previous_response_id", error.body
    else:
        raise AssertionError("a response that nobody stored was gone on with")


def chats(client, model):
    question = [{"role": "user", "content": "When are you open?"}]

    def ask(messages=question, **fields):
        fields = {"max_tokens": 40, "temperature": 0, **fields}
        return client.chat.completions.create(model=model, messages=messages, **fields).choices[0]

    tag = {"begin": "<n>", "schema": {"type": "integer", "minimum": 1, "maximum": 9}, "end": "</n>"}
    older = {"type": "structural_tag", "structures": [tag], "triggers": ["<n"]}
    assert ask(extra_body={"response_format": older}).message.content == ask().message.content
    content = {"type": "json_schema", "json_schema": tag["schema"]}
    demanded = {"type": "structural_tag", "format": {
        "type": "triggered_tags", "triggers": ["<n"], "at_least_one": True, "stop_after_first": True,
        "tags": [{"type": "tag", "begin": "<n>", "content": content, "end": "</n>"}]}}
    for extra in ({"response_format": demanded}, {"structured_outputs": {"structural_tag": json.dumps(demanded)}}):
        text = ask(extra_body=extra).message.content
        assert re.fullmatch("<n>[1-9]</n>", text), text

    first = ask(max_tokens=3).message.content
    begun = question + [{"role": "assistant", "content": first}]
    goes_on = {"continue_final_message": True, "add_generation_prompt": False}
    rest = ask(begun, extra_body=goes_on).message.content
    assert ask(begun, extra_body={**goes_on, "echo": True}).message.content == first + rest
    stop = first.split()[0]
    assert ask(stop=[stop], extra_body={"include_stop_str_in_output": True}).message.content.endswith(stop)
    short = client.chat.completions.create(
        model=model, messages=question, max_tokens=2, extra_body={"truncate_prompt_tokens": 5})
    assert short.usage.prompt_tokens == 5, short
    stream = client.chat.completions.create(
        model=model, messages=question, max_tokens=5, stream=True,
        stream_options={"include_usage": True, "continuous_usage_stats": True})
    counts = [chunk.usage.completion_tokens for chunk in stream]
    assert counts == sorted(counts) and counts[0] == 0 and counts[-1] == 5, counts


def main():
    url, model = sys.argv[1:3]
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0)
    responses(client, model)
    chats(client, model)
    print("all as expected")


main()
