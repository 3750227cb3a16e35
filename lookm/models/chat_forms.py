"""In which form a chat template takes each role's content: found out once, by rendering a probe.

Templates are programs: some read only a list's first part, some a string, some call a part's text
`content`. The forms are tried in order, and the first in which all text comes out, in its order, is
the role's. Where none does, text would vanish in silence: a refusal. Knows messages; no tokenizer.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import groupby
from types import MappingProxyType
from typing import Any

from jinja2 import TemplateError

from lookm.errors import ModelError, RequestError

# What a template may raise besides its own refusals: it is a program.
TEMPLATE_ERRORS = (
    TemplateError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    ArithmeticError,
    RecursionError,
)

Message = Mapping[str, Any]
Part = Mapping[str, str]
Content = str | list[dict[str, str]]
Form = Callable[[Sequence[Part]], Content]
Render = Callable[[Sequence[Message]], str]

WORDS = {
    "user": ("heron", "walnut"),
    "system": ("pebble", "lantern"),
    "assistant": ("thimble", "orchard"),
}
LONG = " ".join(["of"] * 4000)  # behind a first word: some templates cut
IMAGE: Part = {"type": "image"}
NUM_IMAGES = 2  # in a user's probe


def as_is(parts: Sequence[Part]) -> Content:
    """The parts themselves."""
    return [dict(part) for part in parts]


def joined(parts: Sequence[Part]) -> Content:
    """Texts that follow each other as one."""
    content = []
    for is_text, run in groupby(parts, key=lambda part: part["type"] == "text"):
        if is_text:
            content.append({"type": "text", "text": "".join(part["text"] for part in run)})
        else:
            content += [dict(part) for part in run]
    return content


def called_content(parts: Sequence[Part]) -> Content:
    """Joined, each text under the name `content` as well (Pixtral's template reads that)."""
    return [
        part | {"content": part["text"]} if part["type"] == "text" else part
        for part in joined(parts)
        if isinstance(part, dict)
    ]


def as_string(parts: Sequence[Part]) -> Content:
    """All text as one string; only for what has no images."""
    if any(part["type"] != "text" for part in parts):
        return as_is(parts)
    return "".join(part["text"] for part in parts)


FORMS: tuple[Form, ...] = (as_is, joined, called_content, as_string)


def in_forms(messages: Sequence[Message], forms: Mapping[str, Form]) -> list[dict[str, Any]]:
    """The messages, each list of parts in its role's form."""
    return [
        {**message, "content": forms[message["role"]](message["content"])}
        if isinstance(message.get("content"), list) and message.get("role") in forms
        else dict(message)
        for message in messages
    ]


def find_forms(render: Render, image_token: str, name: str) -> Mapping[str, Form]:
    """Each role's form. A role the template refuses has none: its requests get the template's own
    words. Raises `ModelError` naming the role whose text, or image, would vanish."""
    forms: dict[str, Form] = {}
    for role in WORDS:  # users first: they speak in the others' probes, too
        form = _form(render, role, forms, image_token, name)
        if form is not None:
            forms[role] = form
    return MappingProxyType(forms)


def _form(
    render: Render, role: str, forms: Mapping[str, Form], image_token: str, name: str
) -> Form | None:
    refusal: RequestError | None = None
    is_lost = False
    for form in FORMS:
        try:
            rendered = render(in_forms(_probe(role), {**forms, role: form}))
        except RequestError as error:
            refusal = error
            continue
        if _says_all(rendered, role, image_token):
            return form
        is_lost = True
    if is_lost or role == "user":
        what = "a user's text or image" if role == "user" else f"the text of the role {role!r}"
        what += ", or of the turn before it" * (role == "assistant")
        why = "" if refusal is None else f" ({refusal})"
        raise ModelError(
            f"the chat template of {name} loses {what}{why}: take a template that shows all of "
            "a message, as chat_template.jinja in the checkpoint's folder",
            param="model",
        )
    return None


def _texts(role: str) -> tuple[str, str]:
    """What the role says in a probe, in two parts."""
    first, second = WORDS[role]
    return f"{first} {LONG}", second


def _probe(role: str) -> list[dict[str, Any]]:
    """A conversation in which the role speaks."""
    first, second = ({"type": "text", "text": text} for text in _texts("user"))
    parts = [first, IMAGE, second, IMAGE, {"type": "text", "text": "?"}]
    user = {"role": "user", "content": parts}
    if role == "user":
        return [user]
    turn = {"role": role, "content": [{"type": "text", "text": text} for text in _texts(role)]}
    return [turn, user] if role == "system" else [user, turn, user]


def _says_all(rendered: str, role: str, image_token: str) -> bool:
    """Whether both texts are there in their order, as text (not as Python writes a list), and each
    image once; beside an answer the question before it, too."""
    first, second = (rendered.find(text) for text in _texts(role))
    if role == "system":
        has_users = True
    else:
        num_users = 1 if role == "user" else 2
        has_users = rendered.count(image_token) == num_users * NUM_IMAGES and all(
            rendered.count(text) == num_users for text in _texts("user")
        )
    return 0 <= first < second and has_users and "'type':" not in rendered


def keys_of(value: Any) -> Iterator[str]:
    """Every key of every object inside, which transformers does not mark."""
    if isinstance(value, Mapping):
        yield from value
    if isinstance(value, list | Mapping):
        for inside in value.values() if isinstance(value, Mapping) else value:
            yield from keys_of(inside)


def one_template(template: str | Mapping[str, str] | None, name: str) -> str | None:
    """A checkpoint may hold several by name: the default one, or the only one."""
    if not isinstance(template, Mapping):
        return template
    if len(template) > 1 and "default" not in template:
        names = ", ".join(sorted(template))
        message = f"{name} has several chat templates and none is called default: {names}"
        raise ModelError(message, param="model")
    return template.get("default") or next(iter(template.values()), None)
