"""Chat templates that show tools, in the ways in which models write calls."""

QWEN = """\
{%- macro shown(content) -%}
{%- if content is string %}{{ content }}{% else %}
{%- for part in content %}{% if part.type == 'image' %}<image>{% else %}{{ part.text }}{% endif %}
{%- endfor %}{% endif %}
{%- endmacro -%}
{%- if tools %}<|im_start|>system
You may call functions. They are within <tools></tools>:
<tools>
{%- for tool in tools %}
{{ tool | tojson }}
{%- endfor %}
</tools>
For each call, return within <tool_call></tool_call>:
<tool_call>
{"name": <function-name>, "arguments": <args-json-object>}
</tool_call><|im_end|>
{% endif %}
{%- for message in messages %}
{%- if message.role == 'tool' %}<|im_start|>user
<tool_response>
{{ shown(message.content) }}
</tool_response><|im_end|>
{% else %}<|im_start|>{{ message.role }}
{{ shown(message.content) }}
{%- for call in message.tool_calls or [] %}
<tool_call>
{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}
</tool_call>
{%- endfor %}<|im_end|>
{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""

# Contents of turns beside calls are strings here: a list would be shown as it is.
MISTRAL = """\
{%- if tools %}[AVAILABLE_TOOLS]{{ tools | tojson }}[/AVAILABLE_TOOLS]{% endif %}
{%- for message in messages %}
{%- if message.role == 'user' %}[INST]
{%- for part in message.content %}{{ part.text or '<image>' }}{% endfor %}[/INST]
{%- elif message.role == 'tool' %}
{%- if message.tool_call_id | length != 9 %}{{ raise_exception('9 characters') }}{% endif %}
[TOOL_RESULTS]{"content": {{ message.content | tojson }}}[/TOOL_RESULTS]
{%- elif message.tool_calls %}[TOOL_CALLS] [
{%- for call in message.tool_calls %}
{%- if call.id | length != 9 %}{{ raise_exception('9 characters') }}{% endif %}
{{- call.function | tojson }}{{ ', ' if not loop.last }}
{%- endfor %}]</s>
{%- else %}{% for part in message.content %}{{ part.text }}{% endfor %}</s>
{%- endif %}
{%- endfor %}"""

MISTRAL_ARGS = MISTRAL.replace(
    "[TOOL_CALLS] [\n", "\n"
).replace(
    "{{- call.function | tojson }}{{ ', ' if not loop.last }}",
    "{{- '[TOOL_CALLS]' + call.function.name + '[ARGS]' }}{{ call.function.arguments | tojson }}",
).replace("{%- endfor %}]</s>", "{%- endfor %}</s>")  # fmt: skip

# Calls are bare JSON, one a turn; a tool's answer is shown as JSON.
LLAMA = """\
{%- set ns = namespace(shown=false) %}<|begin_of_text|>
{%- for message in messages %}
{%- if message.role == 'user' %}<|start_header_id|>user<|end_header_id|>

{% if tools and not ns.shown %}{% set ns.shown = true -%}
Answer with JSON for a function call, as {"name": function name, "parameters": its arguments}.
{% for tool in tools %}{{ tool | tojson }}

{% endfor %}{% endif %}
{%- for part in message.content %}{{ part.text or '<image>' }}{% endfor %}<|eot_id|>
{%- elif message.role == 'tool' %}<|start_header_id|>ipython<|end_header_id|>

{{ message.content | tojson }}<|eot_id|>
{%- elif message.tool_calls %}
{%- if message.tool_calls | length != 1 %}{{ raise_exception('one call at a time') }}{% endif %}
{%- set call = message.tool_calls[0].function %}<|start_header_id|>assistant<|end_header_id|>

{{ '{"name": "' + call.name + '", "parameters": ' }}{{ call.arguments | tojson }}}<|eot_id|>
{%- else %}<|start_header_id|>assistant<|end_header_id|>

{% for part in message.content %}{{ part.text }}{% endfor %}<|eot_id|>
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>

{% endif %}"""

LLAMA_TAGGED = LLAMA.replace('{{ \'{"name"', '<|python_tag|>{{ \'{"name"')

UNKNOWN = QWEN.replace("<tool_call>", "<call>").replace("</tool_call>", "</call>")
WITHOUT = QWEN.replace("{%- if tools %}", "{%- if false %}")
UNKNOWN_BARE = LLAMA.replace('{{ \'{"name"', 'call: {{ \'{"name"')
