"""Tools bound through langchain-openai, whole and streamed. The model is a random one."""

import sys
from typing import Literal

from langchain_core.messages import ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI


@tool
def order(cups: Literal[1, 2, 3]) -> str:
    """Orders cups of tea."""
    return f"{cups} cups of tea are made."


chat = ChatOpenAI(model="toy", base_url=sys.argv[1], api_key="any", max_tokens=200, seed=3)
bound = chat.bind_tools([order], tool_choice="order", strict=True)
answer = bound.invoke("Two teas, please.")
(call,) = answer.tool_calls
assert call["args"]["cups"] in (1, 2, 3), call
streamed = None
for chunk in bound.stream("Two teas, please."):
    streamed = chunk if streamed is None else streamed + chunk
assert [each["args"] for each in streamed.tool_calls] == [call["args"]], streamed
turns = [("user", "Two teas, please."), answer]
turns.append(ToolMessage(order.invoke(call["args"]), tool_call_id=call["id"]))
assert chat.bind_tools([order]).invoke(turns, max_tokens=20).content
print(call["args"])
