"""Images to features: a model's vision tower, which may pause between its layers.

A large tower takes a second an image on a CPU, and others wait. To go on, the pass is begun again:
layers that are done give what they gave before, in the order of their calls. The model's modules
stay as they are; each layer's `forward` is wrapped once. Knows images; knows no prompts.
"""

import contextlib
import functools
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import nn

from lookm.errors import RequestError
from lookm.models.families import Family
from lookm.models.image_layouts import alike
from lookm.models.tiles import Paused
from lookm.progress import Progress
from lookm.types import ImageInput

MAX_IMAGES_TOGETHER = 16
MAX_PAUSED = 2  # images that are under way; the one that paused first is begun afresh
MAX_HELD_BYTES = 128 * 2**20  # of one image's layers: what would hold more does not pause

Pause = Callable[[], bool]


def never() -> bool:
    """For those that do not pause."""
    return False


class Vision:
    """The images' side of a transformers model. `language_model` is the side that is not."""

    def __init__(
        self, model: Any, language_model: nn.Module, family: Family, progress: Progress
    ) -> None:
        self._model = model
        self._family = family
        self.device: torch.device = model.device
        self._layers = PausableLayers(_layers(model.model, language_model), progress)

    @torch.inference_mode()
    def encode_image(self, image: ImageInput, pause: Pause = never) -> torch.Tensor:
        """Vision features of one image, `[F, N, E]` for its N tokens: F = 1, or more for deepstack.

        Level 0 takes the place of the image's embeddings; level i is added after text layer i - 1.
        Raises `Paused` where `pause()` says so, after at least one more layer; the next call goes
        on from there.
        """
        names = [name for name in self._family.image_tensors if name in image.tensors]
        tensors = {name: self.tensor(image, name) for name in names}
        if image.num_tokens == 1:  # Mistral3 squeezes a lone feature away: give it a second
            tensors = {name: torch.cat([tensor, tensor]) for name, tensor in tensors.items()}
        with self._layers.going_on(image.digest, pause):
            output = self._model.get_image_features(**tensors, return_dict=True)
        levels = [output.pooler_output]
        if self._family.deepstack:
            levels += output.deepstack_features
        features_FNE = torch.stack([torch.cat(list(level), dim=0) for level in levels])
        if image.num_tokens == 1 and features_FNE.shape[1] == 2:
            features_FNE = features_FNE[:, :1]
        if features_FNE.shape[1] != image.num_tokens:
            raise RequestError(
                f"an image gave {features_FNE.shape[1]} features for {image.num_tokens} tokens",
                param="messages",
            )
        return features_FNE

    @torch.inference_mode()
    def encode_images(
        self, images: Sequence[ImageInput], pause: Pause = never
    ) -> list[torch.Tensor]:
        """`encode_image` of each. On CUDA, images of one size go through the tower together.

        On a CPU they go one by one: batches are no faster there, and round differently.
        """
        max_together = MAX_IMAGES_TOGETHER if self.device.type == "cuda" else 1
        encoded: dict[str, torch.Tensor] = {}
        for group in alike(images, max_together):
            features = self.encode_together(group) if len(group) > 1 else None
            for i, image in enumerate(group):
                encoded[image.digest] = (
                    self.encode_image(image, pause) if features is None else features[i]
                )
        return [encoded[image.digest] for image in images]

    @torch.inference_mode()
    def encode_together(self, images: Sequence[ImageInput]) -> list[torch.Tensor]:
        """`encode_image` of several that are `images.alike`, in one pass."""
        pixels = torch.cat([self.tensor(image, "pixel_values") for image in images])
        output = self._model.get_image_features(pixel_values=pixels, return_dict=True)
        features_NE = torch.cat([part.flatten(0, -2) for part in output.pooler_output])
        counts = [image.num_tokens for image in images]
        if features_NE.shape[0] != sum(counts):
            raise RequestError(
                f"{len(images)} images gave {features_NE.shape[0]} features for {sum(counts)} "
                "tokens",
                param="messages",
            )
        parts = torch.split(features_NE, counts)
        return [part_NE[None].clone() for part_NE in parts]

    def tensor(self, image: ImageInput, name: str) -> torch.Tensor:
        """One of an image's tensors on the device, in the model's type."""
        tensor = torch.tensor(image.tensors[name], device=self.device)
        return tensor.to(self._model.dtype) if tensor.is_floating_point() else tensor


class PausableLayers:
    """Layers whose outputs are remembered while a pass is under way, by the order of the calls."""

    def __init__(self, layers: Iterable[nn.Module], progress: Progress) -> None:
        self._paused: OrderedDict[str, list[Any]] = OrderedDict()
        self._outputs: list[Any] | None = None
        self._pause: Pause = never
        self._num_calls = 0
        self._fresh = True
        for layer in layers:
            layer.forward = self._wrapped(progress.marked("vision", layer.forward))

    @contextlib.contextmanager
    def going_on(self, name: str, pause: Pause) -> Iterator[None]:
        """Around a pass called `name`, which may raise `Paused` out of any but its first layer."""
        self._outputs = self._paused.pop(name, [])
        self._pause, self._num_calls, self._fresh = pause, 0, True
        try:
            yield
        except Paused:
            self._paused[name] = self._outputs
            if len(self._paused) > MAX_PAUSED:
                self._paused.popitem(last=False)
            raise
        finally:
            self._outputs = None

    def _wrapped(self, forward: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(forward)
        def run(*args: Any, **kwargs: Any) -> Any:
            outputs, call = self._outputs, self._num_calls
            if outputs is None:
                return forward(*args, **kwargs)
            self._num_calls += 1
            if call < len(outputs):
                return outputs[call]
            if not self._fresh and _size_bytes(outputs) < MAX_HELD_BYTES and self._pause():
                raise Paused
            self._fresh = False
            outputs.append(forward(*args, **kwargs))
            return outputs[-1]

        return run


def _layers(model: nn.Module, language_model: nn.Module) -> Iterator[nn.Module]:
    """The layers of every tower beside the language model: the outermost lists of modules."""
    for child in model.children():
        if child is language_model:
            continue
        if isinstance(child, nn.ModuleList):
            yield from child
        else:
            yield from _layers(child, language_model)


def _size_bytes(outputs: Sequence[Any]) -> int:
    parts = (part for each in outputs for part in (each if isinstance(each, tuple) else (each,)))
    return sum(part.nbytes for part in parts if isinstance(part, torch.Tensor))
