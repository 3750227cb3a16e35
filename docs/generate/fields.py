"""`docs/request-fields.md`, the reference of request fields, written from the request models."""

from collections.abc import Iterator
from pathlib import Path

from pydantic import BaseModel

from server.openai.schemas import (
    files,
    images,
    input_items,
    kv_cache,
    requests,
    responses,
    tools,
    video,
)
from server.openai.schemas.fields import markdown_table

PATH = Path(__file__).parents[1] / "request-fields.md"

INTRODUCTION = """\
# Request fields

Written by `make docs` from the request models; do not edit.

- *honoured*: does what OpenAI's documentation says, or what the note says.
- *accepted*: valid, and changes nothing here; the note says why that is harmless.
- *refused*: 400 with the field in `error.param`; `null` and what the note lets pass ask for nothing
  and are allowed.

Any other field, and any value of a wrong type or out of range, is a 400 that names it.
"""

SECTIONS: tuple[tuple[str, type[BaseModel]], ...] = (
    ("`POST /v1/chat/completions`", requests.ChatRequest),
    ("`POST /v1/completions`", requests.CompletionRequest),
    ("`POST /v1/responses`", responses.ResponsesRequest),
    ("`POST /tokenize`", requests.TokenizeRequest),
    ("`kv_cache` as an object", kv_cache.KvCache),
    ("`kv_cache.keep` as an object", kv_cache.KeepRange),
    ("`stream_options`", requests.StreamOptions),
    ("`usage_options`", requests.UsageOptions),
    ("`messages[]` of the user", requests.UserMessage),
    ("`messages[]` of the assistant", requests.AssistantMessage),
    ("`messages[]` of a tool", requests.ToolMessage),
    ("`tools[].function`", tools.FunctionDefinition),
    ("`image_url` of a content part", images.ImageUrl),
    ("`video_url` of a content part (vLLM's)", video.VideoUrl),
    ("`file` of a content part", files.FileContent),
    ("`input[]` of a response: `message`", input_items.InputMessage),
    ("`input[]` of a response: `function_call`", input_items.FunctionCall),
    ("`input[]` of a response: `function_call_output`", input_items.FunctionCallOutput),
    ("`input[]` of a response: `reasoning`", input_items.ReasoningItem),
    ("`input_image` of a response", input_items.InputImage),
    ("`input_file` of a response", input_items.InputFile),
    ("`tools[]` of a response", responses.FunctionTool),
    ("`text` of a response", responses.TextConfig),
    ("`reasoning` of a response", responses.Reasoning),
)


def reference() -> str:
    """The whole document."""
    return INTRODUCTION + "".join(_sections())


def _sections() -> Iterator[str]:
    for title, model in SECTIONS:
        yield f"\n## {title}\n\n{markdown_table(model)}\n"


def write() -> None:
    """Write the document."""
    PATH.write_text(reference(), encoding="utf-8")
