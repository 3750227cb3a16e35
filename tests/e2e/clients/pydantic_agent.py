"""An agent of pydantic-ai that looks at two images."""

import sys

from pydantic_ai import Agent, BinaryContent
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider

base_url, *urls = sys.argv[1:]
provider = OpenAIProvider(base_url=base_url, api_key="any")
agent = Agent(OpenAIChatModel("llava-demo", provider=provider))
pictures = [BinaryContent.from_data_uri(url) for url in urls]
settings = {"max_tokens": 32, "temperature": 0, "extra_body": {"kv_cache": "look-m@0.5"}}
print(agent.run_sync([*pictures, "What is in image 2?"], model_settings=settings).output)
