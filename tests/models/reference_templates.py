"""Chat templates of well-known shapes, written anew: each uses another corner of the template language."""

CHATML = """\
{%- for message in messages -%}
{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{ '<|im_start|>assistant\\n' }}
{%- endif -%}
"""

# bos token, loop.first, the trim filter, set.
HEADERS = """\
{% set loop_messages = messages %}{% for message in loop_messages %}\
{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' + message['content'] | trim + '<|eot_id|>' %}\
{% if loop.first %}{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}\
{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"""

# namespace, loop.index0, strip(), raise_exception, slices, tests, and eos after each answer.
ALTERNATING = """\
{%- set ns = namespace(system='', turns=0) -%}
{%- if messages[0]['role'] == 'system' -%}
    {%- set ns.system = messages[0]['content'].strip() -%}
    {%- set rest = messages[1:] -%}
{%- else -%}
    {%- set rest = messages -%}
{%- endif -%}
{{ bos_token }}
{%- for message in rest -%}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}
        {{ raise_exception('roles must alternate user/assistant/user/assistant/...') }}
    {%- endif -%}
    {%- set ns.turns = ns.turns + 1 -%}
    {%- if message['role'] == 'user' -%}
        {%- if loop.index0 == 0 and ns.system -%}
            {{ '[INST] ' + ns.system + '\\n\\n' + message['content'].strip() + ' [/INST]' }}
        {%- else -%}
            {{ '[INST] ' + message['content'].strip() + ' [/INST]' }}
        {%- endif -%}
    {%- elif message['role'] == 'assistant' -%}
        {{ ' ' + message['content'].strip() + eos_token }}
    {%- else -%}
        {{ raise_exception('only user and assistant roles are supported') }}
    {%- endif -%}
{%- endfor -%}
{%- if ns.turns > 2 -%}
    {{ '(' ~ ns.turns ~ ' turns)' }}
{%- endif -%}
"""

# tojson (Python's separators, no HTML escapes), tools, a macro, defined tests, whitespace left to trim_blocks.
TOOLS = """\
{%- macro header(role) -%}
<|im_start|>{{ role }}
{% endmacro -%}
{%- if tools is defined and tools -%}
{{ header('system') }}
You may call these functions:
{% for tool in tools %}
    {{ tool | tojson }}
{% endfor %}
As a document:
{{ tools | tojson(indent=2) }}<|im_end|>
{% endif -%}
{% for message in messages %}
    {% if message.content is string and message.content | length > 0 %}
{{ header(message.role) }}{{ message.content | trim }}{{ '<|im_end|>' }}
    {% elif message.role not in ['system'] %}
{{ raise_exception('empty message from ' ~ message.role) }}
    {% endif %}
    {% if loop.last and message.role == 'user' and message.content.startswith('Hi') %}
{# a comment never shows #}
{{ {'greeting': message.content, 'roles': messages | map(attribute='role') | list} | tojson }}
    {% endif %}
{% endfor %}
{% if add_generation_prompt %}
{{ header('assistant') }}
{%- endif -%}
"""

# replace, split, upper, title, ternaries, ranges, items(), break.
STRINGS = """\
{%- for message in messages if message.role != 'system' -%}
    {%- set words = message.content.split() -%}
    {{ message.role | upper }}({{ words | length }}):
    {%- for word in words -%}
        {%- if loop.index > 3 %} ...{% break %}{% endif %} {{ word.replace('e', '3') if loop.index is odd else word.title() }}
    {%- endfor %}
{% for key, value in message.items() %}{{ key }}={{ value.rstrip() | replace('\\n', ' ') }};{% endfor %}

{% endfor -%}
{{ 'assistant:' if add_generation_prompt else '' }}"""

# What newer templates ask of their tools and messages: iterable (None is not), selectattr and map, equality of
# messages, filtered loops over items, slices of text, functions that may be missing.
ASKING = """\
{%- set users = messages | selectattr('role', 'equalto', 'user') | list -%}
{{- 'dated ' if strftime_now is defined else 'undated ' -}}
{%- if tools is iterable and tools | length > 0 -%}
{{- 'tools:' -}}
{%- for tool in tools -%}
{%- for key, value in tool.function.items() if key != 'parameters' -%}
{{- ' ' + key + '=' + (value if value is string else value | tojson) -}}
{%- endfor -%}
{%- set text = tool | tojson -%}
{{- ' ' + text[:-1] + '...' + text[-1:] + ('.' if loop.last else ', ') -}}
{%- endfor -%}
{%- elif tools is none -%}
{{- 'no tools' -}}
{%- endif -%}
{%- for message in messages %}
{{ message.get('role', 'nobody') }}{{ ' (latest)' if message == users[-1] }}: {{ message['content'][:40] }}
{%- if not message.get('tool_calls') and 'name' not in message and message.content is iterable %} -{% endif -%}
{%- endfor %}
{{ messages | map(attribute='content') | map('trim') | join(' | ') }}
"""

TEMPLATES = {
    "chatml": CHATML,
    "headers": HEADERS,
    "alternating": ALTERNATING,
    "tools": TOOLS,
    "strings": STRINGS,
    "asking": ASKING,
}
