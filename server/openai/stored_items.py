"""Items that are kept with a response: ids for those that have none, an answer's items as input's,
and how a list of them shows each.

Knows shapes; the list's pages are `responses`', what is kept is `response_store`'s.
"""

import uuid
from collections.abc import Sequence
from typing import Any

from server.openai.schemas.input_items import (
    FunctionCall,
    FunctionCallOutput,
    InputFile,
    InputImage,
    InputMessage,
    Item,
    MessagePart,
    OutputText,
    ReasoningItem,
)
from server.openai.schemas.response_answers import CallAnswer, MessageAnswer, OutputAnswer

PREFIXES = {"message": "msg", "function_call": "fc", "function_call_output": "fco"}


def with_id(item: Item) -> Item:
    """The item; one without an id gets one."""
    if item.id is not None:
        return item
    item_id = f"{PREFIXES.get(item.type, 'rs')}_{uuid.uuid4().hex}"
    return item.model_copy(update={"id": item_id})


def answered(output: Sequence[OutputAnswer]) -> list[Item]:
    """What was answered, as the next request's input has it."""
    return [_item(each) for each in output]


def _item(answer: OutputAnswer) -> Item:
    if isinstance(answer, MessageAnswer):
        content: list[MessagePart] = [
            OutputText(type="output_text", text=part.text) for part in answer.content
        ]
        return InputMessage(
            type="message", role="assistant", content=content, id=answer.id, status=answer.status
        )
    if isinstance(answer, CallAnswer):
        return FunctionCall(**answer.model_dump())
    return ReasoningItem(
        type="reasoning",
        id=answer.id,
        status=answer.status,
        summary=[],
        content=[part.model_dump() for part in answer.content],
    )


def shown(item: Item, *, images: bool) -> dict[str, Any]:
    """The item in a list; `images`: with what their `image_url` was."""
    fields: dict[str, Any] = {
        "id": item.id,
        "type": item.type,
        "status": item.status or "completed",
    }
    if isinstance(item, InputMessage):
        kind = "output_text" if item.role == "assistant" else "input_text"
        content = item.content
        if isinstance(content, str):
            parts = [{"type": kind, "text": content}]
        else:
            parts = [_part(part, images=images) for part in content]
        return fields | {"role": item.role, "content": parts}
    if isinstance(item, FunctionCall):
        called = {"call_id": item.call_id, "name": item.name, "arguments": item.arguments}
        return fields | called
    if isinstance(item, FunctionCallOutput):
        output: object = item.output
        if not isinstance(item.output, str):
            output = [_part(part, images=images) for part in item.output]
        return fields | {"call_id": item.call_id, "output": output}
    return fields | {"summary": item.summary or [], "content": item.content or []}


def _part(part: MessagePart, *, images: bool) -> dict[str, Any]:
    if isinstance(part, InputImage):
        url = part.image_url if images else None
        return {"type": part.type, "detail": part.detail or "auto", "image_url": url}
    if isinstance(part, InputFile):
        return {"type": part.type, "file_id": part.file_id, "filename": part.filename}
    if isinstance(part, OutputText):
        return {"type": part.type, "text": part.text, "annotations": part.annotations or []}
    return part.model_dump(exclude_none=True)
