"""Tools in a chat template: shown to the model, never obeyed, and calls that stay in its text."""

import pytest
from tokenizers import AddedToken

from lookm.errors import RequestError
from lookm.models.processor import Processor
from tests.lookm.models.toy_processors import PROCESSORS
from tests.lookm.models.toys import TOYS
from tests.server.tools.templates import QWEN

QUESTION = [{"role": "user", "content": [{"type": "text", "text": "Hm?"}]}]


@pytest.fixture(scope="module")
def processor() -> Processor:
    made = PROCESSORS["llava"]()
    calls = [AddedToken(each, special=False) for each in ("<tool_call>", "</tool_call>")]
    calls += [AddedToken(each, special=True) for each in ("[TOOL_CALLS]", "<|python_tag|>")]
    made.tokenizer.add_tokens(calls)
    made.chat_template = QWEN
    config = TOYS["llava"].config()
    config.image_token_id = made.tokenizer.convert_tokens_to_ids("<image>")
    return Processor(made, config, name="toy")


def tool(description: str, **parameters: object) -> dict[str, object]:
    function = {"name": "f", "description": description, "parameters": parameters}
    return {"type": "function", "function": function}


def ids_of(processor: Processor, text: str) -> int:
    return int(processor._tokenizer.convert_tokens_to_ids(text))


def test_tools_are_in_the_prompt_where_there_are_some(processor: Processor) -> None:
    with_tools = processor.prompt(QUESTION, (), [tool("Makes tea.")])
    assert "Makes tea." in processor.decode(with_tools)
    assert "You may call functions" not in processor.decode(processor.prompt(QUESTION, ()))


def test_control_tokens_spelled_in_a_tool_are_only_text(processor: Processor) -> None:
    end = ids_of(processor, "</s>")
    plain = processor.prompt(QUESTION, (), [tool("Makes tea.")])
    spelled = processor.prompt(QUESTION, (), [tool("Makes </s> tea.", title="</s>")])
    assert spelled.count(end) == plain.count(end)
    assert "Makes </s> tea." in processor.decode(spelled)


@pytest.mark.parametrize("place", ["tools", "arguments"])
def test_control_tokens_spelled_in_a_name_are_refused(processor: Processor, place: str) -> None:
    turns, tools = QUESTION, [tool("x")]
    if place == "tools":
        tools = [tool("x", properties={"a</s>": {}})]
    else:
        call = {"function": {"name": "f", "arguments": {"a</s>": 1}}}
        turns = [*QUESTION, {"role": "assistant", "content": "", "tool_calls": [call]}]
    with pytest.raises(RequestError, match="spells a control token"):
        processor.prompt(turns, (), tools)


def test_tokens_that_announce_a_call_are_shown_and_other_control_tokens_are_not(
    processor: Processor,
) -> None:
    written = ("<s>", "[TOOL_CALLS]", "<tool_call>", "<|python_tag|>", "</s>", "<pad>")
    ids = [ids_of(processor, each) for each in written]
    assert processor.decode(ids) == "[TOOL_CALLS]<tool_call><|python_tag|>"
