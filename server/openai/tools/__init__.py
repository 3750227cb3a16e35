"""Tool calling: from a template that can show tools to `message.tool_calls`.

    formats           how models write calls: a row for each form
    template_support  how this model does: found out once, from its chat template
    checks            what a request may say about tools
    choice            `tool_choice`: which tools, and the form that the answer must have
    reader            generated text into content and calls, however it is cut into pieces

Importing this package imports nothing.
"""
