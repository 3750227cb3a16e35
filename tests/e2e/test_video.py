"""A video, as a user sends it: the openai client, a real server, the bundled model."""

import hashlib

import pytest
from PIL import Image

from lookm.demo.scenes import Scene, render
from tests.server.media.clips import clip, url
from tests.server.process import ServerProcess

pytestmark = [pytest.mark.e2e, pytest.mark.extras]

COLOURS = ("red", "blue", "green", "orange")
ANSWER = "Image 1 is red, image 2 is blue, image 3 is green and image 4 is orange."


def film() -> bytes:
    """A circle that changes its colour every second; ten frames a second."""
    scenes: list[Image.Image] = [render(Scene(kind="circle", colour=each)) for each in COLOURS]
    shown = [scenes[n // 10].resize((224, 224)) for n in range(10 * len(scenes))]
    return clip("mp4", range(0, 1000 * len(scenes), 100), shown)


@pytest.mark.parametrize(
    ("policy", "streamed"), [("full", False), ("look-m-plus@0.5", False), ("full", True)]
)
def test_the_model_sees_what_happens_in_a_video(
    demo_server: ServerProcess, policy: str, streamed: bool
) -> None:
    data = film()
    for where in (url(data), "sha256:" + hashlib.sha256(data).hexdigest()):
        answer = demo_server.client.chat.completions.create(
            model="llava-demo",
            temperature=0,
            messages=[
                {
                    "role": "user",
                    "content": [
                        {"type": "video_url", "video_url": {"url": where}},
                        {"type": "text", "text": "List the colours of all images."},
                    ],
                }
            ],
            stream=streamed,
            extra_body={"kv_cache": policy},
        )
        if streamed:
            text = "".join(chunk.choices[0].delta.content or "" for chunk in answer)
        else:
            text = answer.choices[0].message.content
            usage = answer.usage.kv_cache
            assert usage["image_tokens"] == 64 * len(COLOURS)
            assert usage["compressed"] == (policy != "full")
        assert text == ANSWER
