"""An image in a message, and how finely it is to be seen."""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from server.openai.schemas.fields import Accepted, Honoured
from server.openai.schemas.strict import Strict, not_empty

CACHE_HINT = "a hint for OpenAI's prompt cache"

Level = Literal["auto", "low", "high", "original"] | None
Detailed = Annotated[
    Level,
    Honoured(
        "`auto`: as the model's own processor sees it; `low`: 512 x 512 pixels of it, or the "
        "fewest tokens there are; `high`, `original`: as finely as the model can"
    ),
]
MaxTokens = Annotated[
    Annotated[int, Field(ge=1, le=2**31 - 1)] | None,
    Honoured(
        "extension: the image is seen as finely as so many tokens allow; refused where the "
        "model cannot do with so few"
    ),
]


class ImageUrl(Strict):
    """Where an image is."""

    url: Annotated[
        str,
        AfterValidator(not_empty),
        Field(json_schema_extra={"minLength": 1}),
        Honoured("data:, https:, http:, or sha256: of an image sent before"),
    ]
    detail: Detailed = None
    max_tokens_per_image: MaxTokens = None


class ImagePart(Strict):
    """An image, at this place of the text."""

    type: Annotated[Literal["image_url"], Honoured()]
    image_url: Annotated[ImageUrl, Honoured()]
    prompt_cache_breakpoint: Annotated[object, Accepted(CACHE_HINT)] = None
