"""Tool calling: from a template that can show tools to `message.tool_calls`.

    dialects  how a model writes calls: found out once, from its chat template
    reader    generated text into content and calls, however it is cut into pieces
    allowed   some of the tools, by `tool_choice`
    forms     `tool_choice` as a form that the answer must have
    checks    what a request may say about tools

Importing this package imports nothing.
"""
