"""What an image, and what a video, may cost."""

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class VideoConfig:
    """Limits of one video, and how it is sampled where a request does not say.

    `max_pixels` are those of a frame as it is stored; `frame_pixels`, of each frame as it is kept:
    larger ones are scaled down (602,112 are what Qwen's own processors make of video). `max_s` is
    the time of the last frame, `max_packets` bounds encoded frames. `cpu_s` and `limit_s` bound
    reading it and decoding it, each; `look_bytes` is what finding its frames may take.
    """

    max_bytes: int = 100 * 2**20
    max_pixels: int = 4096 * 2304
    max_s: float = 3600.0
    max_packets: int = 2**18
    frame_pixels: int = 602_112
    fps: float = 1.0
    max_frames: int = 32
    fetch_timeout_s: float = 30.0
    cpu_s: int = 30
    limit_s: float = 90.0
    look_bytes: int = 128 * 2**20


MAX_REQUEST_PIXELS = 256 * 10**6


@dataclass(frozen=True, slots=True)
class MediaConfig:
    """Limits and permissions of one `MediaLoader`.

    Sizes are of the encoded image; pixels are width times height. `target_side`: a picture whose
    shorter side is at least twice this is reduced by a power of two (a JPEG while it is decoded),
    so that a 12-megapixel photo takes 9 MB and not 36; None keeps every pixel.
    `max_request_pixels` counts what is kept after that reduction, over all images of a request.

    `allow_private` opens private and loopback addresses and every port. `allowed_hosts`, if set,
    are the only hosts: exact names, or `*.example.com` for those below a name.

    `memory_bytes`: what decoding may take, all pictures together, counted before it is taken, from
    the size that the header claims and the format (`decode.WORKING_BYTES`). What does not fit
    waits, what never fits is refused. `decode_cpu_s` and `decode_limit_s` bound one picture or one
    page, `document_limit_s` the pages of a document together, `max_file_bytes` its bytes;
    `max_request_images` counts pages and frames. A video may take a minute: `max_videos` turns and
    processes are beside those of pictures, so that none of these waits for one.

    Memory at worst: in the decoding processes `memory_bytes`; in this one `max_decodes` pictures,
    `max_downloaded_bytes` of downloads that wait for them, and what they become (tensors).
    """

    max_bytes: int = 32 * 2**20
    max_request_bytes: int = 256 * 2**20
    max_pixels: int = 8192 * 8192
    max_request_pixels: int = MAX_REQUEST_PIXELS
    max_request_images: int = 64
    max_file_bytes: int = 64 * 2**20
    max_aspect: int = 50
    target_side: int | None = 1344

    fetch_timeout_s: float = 10.0
    connect_timeout_s: float = 3.0
    max_redirects: int = 3
    max_fetches: int = 32  # beside one for each request
    max_downloaded_bytes: int = 512 * 2**20
    max_decodes: int = 2
    memory_bytes: int = 3 * 2**29
    decode_cpu_s: int = 10
    decode_limit_s: float = 30.0
    document_limit_s: float = 300.0
    max_videos: int = 1
    video: VideoConfig = field(default_factory=VideoConfig)

    allow_private: bool = False
    allowed_hosts: tuple[str, ...] | None = None
    allowed_ports: frozenset[int] = frozenset((80, 443, 8080, 8443))
