"""A conversation through langchain-openai: whole, streamed, and with a second turn."""

import sys

from langchain_core.messages import HumanMessage
from langchain_openai import ChatOpenAI

base_url, *urls = sys.argv[1:]
chat = ChatOpenAI(
    model="llava-demo",
    base_url=base_url,
    api_key="any",
    temperature=0,
    max_tokens=32,
    extra_body={"kv_cache": "look-m@0.5"},
)
pictures = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
turn = HumanMessage([*pictures, {"type": "text", "text": "What is in image 2?"}])
answer = chat.invoke([turn])
streamed = "".join(chunk.content for chunk in chat.stream([turn]))
assert streamed == answer.content, streamed
assert answer.usage_metadata["input_tokens"] > 128
assert chat.invoke([turn, answer, HumanMessage("And in image 1?")]).content
print(answer.content)
