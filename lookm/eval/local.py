"""A back end: the engine in this process, all policies in one continuous batch.

Knows the engine. Knows nothing of suites or scores.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from PIL import Image

from lookm.engine import Engine
from lookm.errors import RequestError
from lookm.eval.questions import Job, Question, Reply
from lookm.models.detail import Detail
from lookm.models.preprocessing import PLAIN
from lookm.policy import parse
from lookm.positions import Positions, describe
from lookm.types import CacheReport, ImageInput, Request, Sampling


class Local:
    """Answers greedily, with pictures seen in a `detail`. `max_open` requests are with the engine
    at a time."""

    def __init__(self, engine: Engine, max_open: int = 64, detail: Detail = PLAIN) -> None:
        self.engine = engine
        self._detail = detail
        self._max_open = max_open
        self._prompt: tuple[str, tuple[int, ...], tuple[ImageInput, ...]] = ("", (), ())

    @property
    def settings(self) -> Mapping[str, str]:
        """The model and the arithmetic."""
        info = self.engine.info
        return {
            "model": info.name,
            "dtype": info.dtype,
            "device": info.device,
            "attention": self.engine.plan.attention,
            "kv_cache_dtype": self.engine.plan.kv_cache_dtype,
            **({"detail": self._detail.name} if self._detail.name else {}),
        }

    def image_tokens(self) -> int:
        """How many prompt tokens a plain square picture takes."""
        square = Image.new("RGB", (336, 336))
        return self.engine.processor.image(square, "plain", detail=self._detail).num_tokens

    def replies(self, jobs: Iterable[Job]) -> Iterator[Reply]:
        """Jobs of one question should follow each other: its pictures are then read once."""
        waiting = iter(jobs)
        open_by_id: dict[str, _Open] = {}
        number, more = 0, True
        try:
            while more or open_by_id:
                while more and len(open_by_id) < self._max_open:
                    job = next(waiting, None)
                    if job is None:
                        more = False
                        break
                    number += 1
                    try:
                        self.engine.add(self._request(str(number), job))
                    except RequestError as error:
                        yield Reply(job, "", error=str(error))
                        continue
                    open_by_id[str(number)] = _Open(job)
                yield from self._step(open_by_id)
        finally:
            for name in open_by_id:
                self.engine.abort(name)

    def kept(self, job: Job) -> Positions | None:
        """Asked with an answer of one token."""
        request = replace(self._request("kept", job), positions=True)
        request = replace(request, sampling=Sampling(max_tokens=1))
        for event in self.engine.generate([request]):
            if event.positions is not None:
                processor = self.engine.processor
                return describe(event.positions, request.prompt_ids, request.images, processor)
        return None

    def _step(self, open_by_id: "dict[str, _Open]") -> Iterator[Reply]:
        for event in self.engine.step():
            one = open_by_id.get(event.request_id)
            if one is None:
                continue
            one.text += event.text
            one.cache = event.cache or one.cache
            if event.finish is not None:
                del open_by_id[event.request_id]
                yield one.reply(event.error)

    def _request(self, name: str, job: Job) -> Request:
        ids, images = self._read(job.question)
        room = self.engine.info.max_context_tokens - len(ids)
        if room < 1:
            raise RequestError(f"the prompt has {len(ids)} tokens, more than the model's context")
        sampling = Sampling(max_tokens=min(job.question.max_tokens, room))
        return Request(name, ids, images, parse(job.policy), sampling)

    def _read(self, question: Question) -> tuple[tuple[int, ...], tuple[ImageInput, ...]]:
        if self._prompt[0] != question.key:
            processor = self.engine.processor
            images = tuple(
                processor.image(
                    picture, hashlib.sha256(picture.tobytes()).hexdigest(), detail=self._detail
                )
                for picture in question.pictures()
            )
            self._prompt = (question.key, processor.prompt(question.messages, images), images)
        return self._prompt[1:]


@dataclass(slots=True)
class _Open:
    """A job with the engine, and what has come of it."""

    job: Job
    text: str = ""
    cache: CacheReport | None = None

    def reply(self, error: str | None) -> Reply:
        if self.cache is None:
            return Reply(self.job, self.text, error=error or "no cache report")
        return Reply(self.job, self.text, self.cache.bytes, self.cache.full_bytes, error)
