"""What a client may say of a video."""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from server.openai.schemas.fields import Honoured
from server.openai.schemas.images import Detailed, MaxTokens
from server.openai.schemas.strict import Strict, not_empty


class VideoUrl(Strict):
    """Where a video is, and how it is sampled."""

    url: Annotated[
        str,
        AfterValidator(not_empty),
        Field(json_schema_extra={"minLength": 1}),
        Honoured(
            "data:, https:, http:, or sha256: of a video sent before; MP4, MOV, WebM, MKV or AVI, "
            "whose sound is not heard"
        ),
    ]
    fps: Annotated[
        Annotated[float, Field(gt=0, le=120)] | None,
        Honoured("frames looked at in a second; 1 where none is given"),
    ] = None
    max_frames: Annotated[
        Annotated[int, Field(ge=1, le=4096)] | None,
        Honoured(
            "where there would be more, as many are spread evenly over the video; where none is "
            "given 32, less with `--max-images` or where three quarters of the context hold fewer"
        ),
    ] = None
    detail: Detailed = None
    max_tokens_per_image: MaxTokens = None


class VideoPart(Strict):
    """A video, at this place of the text, as vLLM takes it: frames, each behind its time."""

    type: Annotated[Literal["video_url"], Honoured()]
    video_url: Annotated[VideoUrl, Honoured()]
