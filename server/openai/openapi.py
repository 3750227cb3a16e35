"""The OpenAPI description: request bodies from the models, examples that run, one error shape.

The routes parse their bodies from the bytes (`parse`), so FastAPI does not know the models.
"""

from collections.abc import Callable, Iterator
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from server.openai.schemas.requests import ChatRequest, CompletionRequest, TokenizeRequest
from server.openai.schemas.responses import ResponsesRequest

REF = "#/components/schemas/{model}"
REQUESTS: tuple[type[BaseModel], ...] = (
    ChatRequest,
    CompletionRequest,
    TokenizeRequest,
    ResponsesRequest,
)

RED_DOT = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAABAAAAAQCAIAAACQkWg2AAAAF0lEQVR42mP4z8BAEmIY1TCq"
    "Yfhq+P8fAFvg/wEf0ZAbAAAAAElFTkSuQmCC"
)


API_KEY = {
    "type": "http",
    "scheme": "bearer",
    "description": "One of this server's API keys. This page forgets it when it is closed.",
}

# What a streamed answer looks like: chunks as server-sent events, then `data: [DONE]`.
STREAMED: dict[str, Any] = {"text/event-stream": {"schema": {"type": "string"}}}


class ErrorBody(BaseModel):
    """What went wrong. `param` names the request field at fault."""

    message: str
    type: str
    param: str | None
    code: str


class ErrorEnvelope(BaseModel):
    """OpenAI's error envelope: every error of every route."""

    error: ErrorBody


def described(model: type[BaseModel], example: dict[str, Any]) -> dict[str, Any]:
    """`openapi_extra` of a route whose body is a `model`."""
    content = {"schema": {"$ref": REF.format(model=model.__name__)}, "example": example}
    return {"requestBody": {"required": True, "content": {"application/json": content}}}


def describe(
    app: FastAPI, model: Callable[[], str], *, with_key: bool
) -> Callable[[], dict[str, Any]]:
    """`app.openapi` with the request models among the components, and examples for this `model`.

    `with_key`: requests need an API key, for which `/docs` then has a button.
    """

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            schema = get_openapi(title=app.title, version=app.version, routes=app.routes)
            _, models = models_json_schema(
                [(model, "validation") for model in REQUESTS], ref_template=REF
            )
            components = schema.setdefault("components", {}).setdefault("schemas", {})
            assert not components.keys() & models["$defs"].keys(), "one name, two models"
            components.update(models["$defs"])
            if with_key:
                schema["components"]["securitySchemes"] = {"API key": API_KEY}
                schema["security"] = [{"API key": []}]
            app.openapi_schema = schema
        for example in _examples(app.openapi_schema):
            example["model"] = model()  # whose name is known once it is loaded
        return app.openapi_schema

    return openapi


def _examples(schema: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The example of each route that takes JSON."""
    for methods in schema["paths"].values():
        body = methods.get("post", {}).get("requestBody")
        if body is not None and "application/json" in body["content"]:
            yield body["content"]["application/json"]["example"]


def chat_example(model: str) -> dict[str, Any]:
    """Two images and a question, ready to send."""
    image = {"type": "image_url", "image_url": {"url": RED_DOT}}
    question = {"type": "text", "text": "What is in image 2?"}
    return {
        "model": model,
        "messages": [{"role": "user", "content": [image, image, question]}],
        "max_tokens": 32,
        "kv_cache": "look-m@0.2",
    }


def response_example(model: str) -> dict[str, Any]:
    """The same two images, as items."""
    image = {"type": "input_image", "image_url": RED_DOT, "detail": "auto"}
    question = {"type": "input_text", "text": "What is in image 2?"}
    return {
        "model": model,
        "input": [{"role": "user", "content": [image, image, question]}],
        "max_output_tokens": 32,
        "kv_cache": "look-m@0.2",
    }


def tokenize_example(model: str) -> dict[str, Any]:
    """The same, to be counted."""
    chat = chat_example(model)
    return {name: chat[name] for name in ("model", "messages", "kv_cache")}


def text_example(model: str) -> dict[str, Any]:
    """A sentence to go on with."""
    return {"model": model, "prompt": "Once upon a time", "max_tokens": 16}
