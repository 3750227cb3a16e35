"""The two sides in step, over messages as they are sent."""

import random

import numpy as np
import pytest

from lookm.types import ImageInput, Request
from server.worker import wire
from server.worker.known_images import KnownImages, SentImages

IMAGE_BYTES = 400


def image(number: int, num_bytes: int = IMAGE_BYTES) -> ImageInput:
    tensors = {"pixel_values": np.full(num_bytes // 4, number, dtype=np.float32)}
    return ImageInput(digest=f"digest-{number}", tensors=tensors, num_tokens=4)


def request(*images: ImageInput) -> Request:
    return Request(id="r", prompt_ids=(1, 2), images=images)


class Link:
    """What a message becomes on its way through both sides, and how many bytes it took."""

    def __init__(self, max_bytes: int) -> None:
        self.sent, self.known = SentImages(max_bytes), KnownImages()
        self.num_bytes = 0

    def send(self, *messages: wire.Up) -> list[Request]:
        received: list[Request] = []
        for message in self.sent.lighter(messages):
            frames = [bytes(frame) for frame in wire.encode(message)]
            self.num_bytes += sum(map(len, frames))
            match wire.decode_up(frames):
                case wire.Add(each):
                    received.append(self.known.whole(each))
                case wire.Together(several):
                    received += [self.known.whole(each) for each in several]
                case wire.Forget() as forget:
                    self.known.forget(forget)
        return received

    @property
    def held_bytes(self) -> int:
        return sum(each.size_bytes for each in self.known._images.values())


def same(got: Request, wanted: Request) -> bool:
    return [each.digest for each in got.images] == [each.digest for each in wanted.images] and all(
        np.array_equal(each.tensors[name], other.tensors[name])
        for each, other in zip(got.images, wanted.images, strict=True)
        for name in other.tensors
    )


def test_a_later_turn_carries_no_pixels_of_earlier_images() -> None:
    link = Link(10**6)
    first = request(image(0, 40_000), image(1, 40_000))
    assert same(link.send(wire.Add(first))[0], first)
    before = link.num_bytes
    second = request(image(0, 40_000), image(1, 40_000), image(2, 40_000))
    assert same(link.send(wire.Add(second))[0], second)
    assert 40_000 < link.num_bytes - before < 50_000


@pytest.mark.parametrize("max_images", [0, 1, 3, 100])
def test_every_request_arrives_as_it_was_and_the_worker_holds_no_more_than_allowed(
    max_images: int,
) -> None:
    rng = random.Random(max_images)
    link = Link(max_images * IMAGE_BYTES)
    for _ in range(300):
        wanted = [
            request(*(image(rng.randrange(6)) for _ in range(rng.randrange(4))))
            for _ in range(rng.randrange(1, 4))
        ]
        got = link.send(*(wire.Add(each) for each in wanted), wire.Abort("x"))
        assert all(map(same, got, wanted))
        assert len(got) == len(wanted)
        assert link.held_bytes <= max_images * IMAGE_BYTES


def test_an_image_larger_than_the_bound_is_sent_each_time_and_not_held() -> None:
    link = Link(IMAGE_BYTES)
    for _ in range(2):
        large = request(image(7, 10 * IMAGE_BYTES))
        assert same(link.send(wire.Add(large))[0], large)
        assert link.held_bytes == 0


def test_an_image_without_tensors_is_sent_as_it_is() -> None:
    bare = ImageInput(digest="d", tensors={}, num_tokens=4)
    assert Link(100).send(wire.Add(request(bare)))[0].images[0].num_tokens == 4
