"""Templates in the shapes that checkpoints publish: nothing of a message is lost, or they are
refused."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from lookm import Processor
from lookm.errors import ModelError, RequestError
from lookm.models.chat_forms import as_is, as_string, called_content, find_forms, joined
from tests.lookm.models.hub_shape import edit, write
from tests.lookm.models.toy_processors import llava, template
from tests.lookm.models.toys import TOYS

TEXTS = [{"type": "text", "text": "one "}, {"type": "text", "text": "two"}]
IMAGE = {"type": "image"}

LIST = "{% for p in m.content %}{{ '<image>' if p.type == 'image' else p.text }}{% endfor %}"
CONTENT_KEY = LIST.replace("p.text", "p['content']")
FIRST_ONLY = (
    "{% if m.content is string %}{{ m.content }}{% else %}{{ m.content[0].text }}{% endif %}"
)
STRING = "{{ m.content + '' }}"


def shaped(user: str, system: str = LIST, assistant: str = LIST) -> str:
    """A template that treats each role in its own way."""
    return (
        "{% for m in messages %}[{{ m.role }}] {% if m.role == 'user' %}"
        f"{user}{{% elif m.role == 'system' %}}{system}{{% else %}}{assistant}{{% endif %}}"
        "{% endfor %}{% if add_generation_prompt %}[go]{% endif %}"
    )


def processor(chat_template: str | None) -> Processor:
    hf_processor = llava()
    hf_processor.chat_template = chat_template
    config = TOYS["llava"].config()
    config.image_token_id = hf_processor.tokenizer.convert_tokens_to_ids("<image>")
    return Processor(hf_processor, config, name="toy")


SHAPES = {
    "lists": (shaped(LIST), (as_is, as_is, as_is)),
    "pixtral": (shaped(CONTENT_KEY, STRING, STRING), (called_content, as_string, as_string)),
    "mistral": (shaped(LIST, FIRST_ONLY, FIRST_ONLY), (as_is, joined, joined)),
    "first text only": (shaped(LIST, LIST, FIRST_ONLY), (as_is, as_is, joined)),
}


@pytest.mark.parametrize("name", SHAPES)
def test_each_role_gets_the_form_in_which_all_is_said(name: str) -> None:
    chat_template, expected = SHAPES[name]
    ours = processor(chat_template)
    assert tuple(ours._forms[role] for role in ("user", "system", "assistant")) == expected
    rendered = ours.rendered(
        [
            {"role": "system", "content": TEXTS},
            {"role": "user", "content": [TEXTS[0], IMAGE, *TEXTS]},
            {"role": "assistant", "content": TEXTS},
            {"role": "user", "content": TEXTS},
        ]
    )
    said = "[system] one two[user] one <image>one two[assistant] one two[user] one two[go]"
    assert rendered == said


@pytest.mark.parametrize(
    ("chat_template", "role"),
    [
        (shaped("{{ m.content[0].text }}"), "user"),
        (shaped("{% for p in m.content %}{{ p.words }}<image>{% endfor %}"), "user"),
        (shaped("{{ m.content }}"), "user"),
        (shaped(LIST.replace("<image>", "")), "user"),
        (shaped(LIST, "I obey."), "'system'"),
        (shaped(LIST, LIST, ""), "'assistant'"),
        (shaped(LIST.replace("p.text", "p.text[:1000]")), "user"),
        (shaped(LIST, LIST.replace("p.text", "p.text[:1000]")), "'system'"),
        (shaped(LIST).replace("in messages", "in messages[-2:]"), "'assistant'"),
        (shaped("{% if loop.last %}" + LIST + "{% endif %}"), "'assistant'"),
        ("{% for", "user"),
    ],
)
def test_a_template_that_loses_something_is_refused_at_start(chat_template: str, role: str) -> None:
    with pytest.raises(ModelError, match=f"the chat template of toy loses .*{role}"):
        processor(chat_template)


def test_a_role_that_the_template_refuses_is_refused_by_request_in_its_words() -> None:
    ours = processor(shaped(LIST, "{{ raise_exception('no systems here') }}"))
    user = {"role": "user", "content": [IMAGE, *TEXTS]}
    assert "<image>one two" in ours.rendered([user])
    with pytest.raises(RequestError, match="no systems here"):
        ours.rendered([{"role": "system", "content": TEXTS}, user])


def test_a_template_that_fails_in_its_own_way_is_a_refusal() -> None:
    def render(_messages: Sequence[Mapping[str, Any]]) -> str:
        raise RequestError("no")

    with pytest.raises(ModelError, match=r"loses a user's text or image \(no\)"):
        find_forms(render, "<image>", "toy")


def test_without_a_template_a_processor_still_takes_plain_text() -> None:
    ours = processor(None)
    assert ours.text("hello")
    with pytest.raises(ModelError, match="no chat template"):
        ours.rendered([{"role": "user", "content": TEXTS}])


@pytest.mark.parametrize(
    "found",
    [
        template("<image>"),
        [{"name": "default", "template": template("<image>")}, {"name": "rag", "template": "x"}],
        [{"name": "chat", "template": template("<image>")}],
    ],
)
def test_a_template_in_the_tokenizers_config_is_found(tmp_path: Path, found: Any) -> None:
    write(tmp_path)
    expected = (tmp_path / "chat_template.jinja").read_text()
    (tmp_path / "chat_template.jinja").unlink()
    edit(tmp_path / "tokenizer_config.json", lambda config: config.update(chat_template=found))
    assert Processor.load(str(tmp_path))._template == expected


def test_several_templates_without_a_default_are_refused_with_their_names(tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / "chat_template.jinja").unlink()
    found = [{"name": name, "template": "x"} for name in ("rag", "tools")]
    edit(tmp_path / "tokenizer_config.json", lambda config: config.update(chat_template=found))
    with pytest.raises(ModelError, match=r"several chat templates .*: rag, tools"):
        Processor.load(str(tmp_path))


def test_a_template_in_a_json_file_is_found(tmp_path: Path) -> None:
    write(tmp_path)
    path = tmp_path / "chat_template.jinja"
    expected = path.read_text()
    path.unlink()
    (tmp_path / "chat_template.json").write_text("{}")
    edit(tmp_path / "chat_template.json", lambda value: value.update(chat_template=expected))
    assert Processor.load(str(tmp_path))._template == expected
