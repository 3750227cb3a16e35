"""Chat requests that must be refused: what is wrong, the fields, status, code and param."""

import zlib
from typing import Any

from tests.server.requests import data_url, image, png, text


def messages(*content: Any, role: str = "user") -> dict[str, Any]:
    return {"messages": [{"role": role, "content": list(content)}]}


def huge_png() -> bytes:
    """20,000 x 20,000 pixels, by its header."""
    header = bytearray(png())
    header[16:24] = (20_000).to_bytes(4, "big") * 2
    header[29:33] = zlib.crc32(header[12:29]).to_bytes(4, "big")
    return bytes(header)


TOOL = {"type": "function", "function": {"name": "f"}}
TOOL_CALL = {"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}}
URL = "messages[0].content[0].image_url.url"
FILE = "messages[0].content[0].file"
VIDEO = "messages[0].content[0].video_url.url"


def file(**content: Any) -> dict[str, Any]:
    return {"type": "file", "file": content}


def video(url: str, **sampled: Any) -> dict[str, Any]:
    return {"type": "video_url", "video_url": {"url": url, **sampled}}


BAD: list[tuple[str, dict[str, Any], int, str, str | None]] = [
    ("no messages", {"messages": []}, 400, "invalid_value", "messages"),
    ("null messages", {"messages": None}, 400, "invalid_type", "messages"),
    ("text as messages", {"messages": "hi"}, 400, "invalid_type", "messages"),
    ("number as message", {"messages": [3]}, 400, "invalid_type", "messages[0]"),
    ("wrong role", messages("x", role="robot"), 400, "invalid_value", "messages[0].role"),
    ("tool role", {"messages": [{"role": "tool", "content": "x", "tool_call_id": "a"}]}, 400,
     "unsupported_parameter", "messages[0].role"),
    ("function role", messages("x", role="function"), 400, "invalid_value", "messages[0].role"),
    ("tools", {"tools": [TOOL]}, 400, "unsupported_parameter", "tools"),
    ("tool choice alone", {"tool_choice": "required"}, 400, "invalid_value", "tool_choice"),
    ("unknown tool choice", {"tool_choice": "any"}, 400, "invalid_value", "tool_choice"),
    ("tool without a function", {"tools": [{"type": "function"}]}, 400,
     "missing_required_parameter", "tools[0].function"),
    ("no role", {"messages": [{"content": "x"}]}, 400, "missing_required_parameter",
     "messages[0].role"),
    ("no content", {"messages": [{"role": "user"}]}, 400, "missing_required_parameter",
     "messages[0].content"),
    ("content a number", {"messages": [{"role": "user", "content": 3}]}, 400, "invalid_type",
     "messages[0].content"),
    ("content empty", messages(), 400, "invalid_value", "messages[0].content"),
    ("tool calls", {"messages": [{"role": "assistant", "tool_calls": [TOOL_CALL]}]}, 400,
     "unsupported_parameter", "messages[0].tool_calls"),
    ("tool call without id", {"messages": [{"role": "assistant", "tool_calls": [{}]}]}, 400,
     "missing_required_parameter", "messages[0].tool_calls[0].id"),
    ("audio part", messages({"type": "input_audio"}), 400, "invalid_value",
     "messages[0].content[0].type"),
    ("part without type", messages({"text": "x"}), 400, "missing_required_parameter",
     "messages[0].content[0].type"),
    ("image without url", messages({"type": "image_url", "image_url": {}}), 400,
     "missing_required_parameter", URL),
    ("image_url a string", messages({"type": "image_url", "image_url": "x"}), 400, "invalid_type",
     "messages[0].content[0].image_url"),
    ("unknown field in a part", messages(text("x") | {"z": 1}), 400, "unknown_parameter",
     "messages[0].content[0].z"),
    ("not an image", messages(image(data_url(b"hello world"))), 400, "unsupported_image", URL),
    ("truncated PNG", messages(image(data_url(png(size=(64, 64))[:-40]))), 400, "invalid_image",
     URL),
    ("20,000 pixels squared", messages(image(data_url(huge_png()))), 400, "image_too_large", URL),
    ("bad base64", messages(image("data:image/png;base64,@@@")), 400, "invalid_image_url", URL),
    ("bytes that are no video", messages(video(data_url())), 400, "unsupported_video", VIDEO),
    ("unknown video", messages(video("sha256:" + "0" * 64)), 404, "video_not_found", VIDEO),
    ("digest of a video too short", messages(video("sha256:0")), 400, "invalid_video_url", VIDEO),
    ("video without a URL", messages(video("")), 400, "invalid_value", VIDEO),
    ("video of no frames", messages(video("data:,", max_frames=0)), 400, "invalid_value",
     VIDEO.replace("url.url", "url.max_frames")),
    ("unknown digest", messages(image("sha256:" + "0" * 64)), 404, "image_not_found", URL),
    ("bad digest", messages(image("sha256:0")), 400, "invalid_image_url", URL),
    ("file path", messages(image("/etc/passwd")), 400, "invalid_image_url", URL),
    ("file URL", messages(image("file:///etc/passwd")), 400, "invalid_image_url", URL),
    ("loopback", messages(image("http://127.0.0.1:8080/a.png")), 400, "invalid_image_url", URL),
    ("private", messages(image("https://10.0.0.1/a.png")), 400, "invalid_image_url", URL),
    ("second image bad", messages(image(), text("x"), image("ftp://a/b")), 400,
     "invalid_image_url", "messages[0].content[2].image_url.url"),
    ("too many images", messages(*[image()] * 65), 400, "invalid_value", "messages"),
    ("unknown field", {"tempratur": 1}, 400, "unknown_parameter", "tempratur"),
    ("keep 7", {"kv_cache": "look-m@7"}, 400, "invalid_kv_cache", "kv_cache"),
    ("unknown preset", {"kv_cache": "zip@0.2"}, 400, "invalid_kv_cache", "kv_cache"),
    ("policy a number", {"kv_cache": 0.2}, 400, "invalid_type", "kv_cache"),
    ("policy without method", {"kv_cache": {"keep": 0.2}}, 400, "missing_required_parameter",
     "kv_cache.method"),
    ("policy with a typo", {"kv_cache": {"method": "look-m", "kep": 1}}, 400, "unknown_parameter",
     "kv_cache.kep"),
    ("keep and keep_tokens", {"kv_cache": {"method": "look-m", "keep": 0.2, "keep_tokens": 9}},
     400, "invalid_kv_cache", "kv_cache"),
    ("keep_tokens huge", {"kv_cache": {"method": "look-m", "keep_tokens": 2**64}}, 400,
     "invalid_value", "kv_cache.keep_tokens"),
    ("unknown merge", {"kv_cache": {"method": "look-m", "merge": "mix"}}, 400, "invalid_value",
     "kv_cache.merge"),
    ("two policies", {"model": "fake:h2o@0.3", "kv_cache": "h2o@0.4"}, 400, "invalid_kv_cache",
     "kv_cache"),
    ("bad policy in model", {"model": "fake:zip"}, 400, "invalid_kv_cache", "model"),
    ("unknown model", {"model": "gpt-6"}, 404, "model_not_found", "model"),
    ("model not text", {"model": 3}, 400, "invalid_type", "model"),
    ("prompt too long", messages(text("word " * 9000)), 400, "context_length_exceeded",
     "messages"),
    ("text that no context holds", messages(text("a b " * 2_500_000)), 400,
     "context_length_exceeded", "messages"),
    ("schema too large", {"response_format": {"type": "json_schema", "json_schema": {
        "name": "a", "schema": {"enum": ["x"] * 70_000}}}}, 400, "invalid_value",
     "response_format"),
    ("seventeen keys", {"metadata": {str(n): "x" for n in range(17)}}, 400, "invalid_value",
     "metadata"),
    ("long key", {"metadata": {"k" * 65: "x"}}, 400, "invalid_value", "metadata." + "k" * 65),
    ("long value", {"metadata": {"k": "x" * 513}}, 400, "invalid_value", "metadata.k"),
    ("long identifier", {"safety_identifier": "x" * 65}, 400, "invalid_value",
     "safety_identifier"),
    ("long user", {"user": "x" * 1025}, 400, "invalid_value", "user"),
    ("long name", {"messages": [{"role": "user", "content": "a", "name": "x" * 1025}]}, 400,
     "invalid_value", "messages[0].name"),
    ("long name of a schema", {"response_format": {"type": "json_schema", "json_schema": {
        "name": "x" * 65, "schema": {"type": "object"}}}}, 400, "invalid_value",
     "response_format.json_schema.name"),
    ("biases for too many tokens", {"logit_bias": {str(n): 1 for n in range(1025)}}, 400,
     "invalid_value", "logit_bias"),
    ("long stop", {"stop": "x" * 257}, 400, "invalid_value", "stop"),
    ("answer too long", {"max_tokens": 8192}, 400, "context_length_exceeded", "max_tokens"),
    ("no tokens", {"max_tokens": 0}, 400, "invalid_value", "max_tokens"),
    ("two limits", {"max_completion_tokens": 5}, 400, "invalid_value", "max_completion_tokens"),
    ("hot", {"temperature": 2.5}, 400, "invalid_value", "temperature"),
    ("temperature text", {"temperature": "1"}, 400, "invalid_type", "temperature"),
    ("top_p above 1", {"top_p": 1.01}, 400, "invalid_value", "top_p"),
    ("file without a source", messages(file(filename="a.pdf")), 400, "invalid_value", FILE),
    ("file of two sources", messages(file(file_data="data:,", file_id="x")), 400, "invalid_value",
     FILE),
    ("file a string", messages({"type": "file", "file": "x"}), 400, "invalid_type", FILE),
    ("unknown field in a file", messages(file(file_id="x", z=1)), 400, "unknown_parameter",
     f"{FILE}.z"),
    ("no such file", messages(file(file_id="file-x")), 404, "file_not_found", f"{FILE}.file_id"),
    ("file as bare base64", messages(file(file_data="JVBERi0=")), 400, "invalid_file_url",
     f"{FILE}.file_data"),
    ("file data as a URL", messages(file(file_url=data_url())), 400, "invalid_file_url",
     f"{FILE}.file_url"),
    ("file of text", messages(file(file_data=data_url(b"hello"))), 400, "unsupported_file",
     f"{FILE}.file_data"),
    ("file path as file", messages(file(file_url="/etc/passwd")), 400, "invalid_file_url",
     f"{FILE}.file_url"),
    ("file at loopback", messages(file(file_url="http://127.0.0.1/a.pdf")), 400,
     "invalid_file_url", f"{FILE}.file_url"),
    ("truncated PNG as file", messages(file(file_data=data_url(png(size=(64, 64))[:-40]))), 400,
     "invalid_file", f"{FILE}.file_data"),
    ("bomb as file", messages(file(file_data=data_url(huge_png()))), 400, "file_too_large",
     f"{FILE}.file_data"),
    ("pages that are no pages", messages(file(file_data=data_url(), pages="one")), 400,
     "invalid_value", f"{FILE}.pages"),
    ("page of a picture", messages(file(file_data=data_url(), pages="2")), 400, "invalid_file",
     f"{FILE}.pages"),
    ("file of a system", messages(file(file_data=data_url()), role="system"), 400, "invalid_value",
     "messages[0].content[0].type"),
    ("top_k huge", {"top_k": 2**64}, 400, "invalid_value", "top_k"),
    ("min_tokens huge", {"min_tokens": 2**64}, 400, "invalid_value", "min_tokens"),
    ("seed huge", {"seed": 2**64}, 400, "invalid_value", "seed"),
    ("five stops", {"stop": ["a", "b", "c", "d", "e"]}, 400, "invalid_value", "stop"),
    ("empty stop", {"stop": [""]}, 400, "invalid_value", "stop[0]"),
    ("usage without stream", {"stream_options": {"include_usage": True}}, 400, "invalid_value",
     "stream_options"),
    ("seventeen answers", {"n": 17}, 400, "invalid_value", "n"),
    ("no answers", {"n": 0}, 400, "invalid_value", "n"),
    ("n not a number", {"n": "2"}, 400, "invalid_type", "n"),
    ("refused by the engine", messages(text("fake:reject")), 400, "invalid_value", "messages"),
    ("failed by the engine", messages(text("fake:error")), 503, "engine_failed", None),
]  # fmt: skip
