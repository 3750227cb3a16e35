"""An agent of pydantic-ai whose answer is a typed object, which it asks for as a tool call."""

import sys
from typing import Literal

from pydantic import BaseModel
from pydantic_ai import Agent
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider


class Order(BaseModel):
    """What is ordered."""

    cups: Literal[1, 2, 3]


provider = OpenAIProvider(base_url=sys.argv[1], api_key="any")
agent = Agent(OpenAIChatModel("toy", provider=provider), output_type=Order)
settings = {"max_tokens": 200, "seed": 3, "parallel_tool_calls": False}
print(repr(agent.run_sync("Two teas, please.", model_settings=settings).output))
