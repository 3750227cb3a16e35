"""The names, types and shapes of weights, from the headers of safetensors files: no weight is read.

A file is judged whole by its size: what its header promises must be there, to the byte. Knows the
format (https://github.com/huggingface/safetensors); nothing about models.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lookm.errors import ModelError

MAX_HEADER_BYTES = 10**8  # safetensors' own limit
LFS_POINTER = b"version https://git-lfs.github.com/spec/"

#: Bits of one number. Types that only quantised checkpoints have are not here.
BITS = {
    "BOOL": 8,
    "U8": 8,
    "I8": 8,
    "U16": 16,
    "I16": 16,
    "F16": 16,
    "BF16": 16,
    "U32": 32,
    "I32": 32,
    "F32": 32,
    "U64": 64,
    "I64": 64,
    "F64": 64,
}
FLOATS = {"F64": "float64", "F32": "float32", "BF16": "bfloat16", "F16": "float16"}


@dataclass(frozen=True, slots=True)
class Weight:
    """One entry of a header."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def num_elements(self) -> int:
        """How many numbers it has."""
        return math.prod(self.shape)

    @property
    def size_bytes(self) -> int:
        """What it takes in its file."""
        return self.num_elements * BITS[self.dtype] // 8


def check_not_pointer(path: Path) -> None:
    """Raises `ModelError` for what git checks out in place of a large file."""
    with path.open("rb") as file:
        if file.read(len(LFS_POINTER)) == LFS_POINTER:
            raise ModelError(
                f"{path} is a git LFS pointer and not the file itself: run `git lfs pull` in its "
                "folder, or download the checkpoint with `hf download`",
                param="model",
            )


def read_header(path: Path) -> dict[str, Weight]:
    """The weights of one safetensors file, by name. Raises `ModelError` for a file that is cut,
    damaged, a pointer to itself, or holds types that are not computed with."""
    check_not_pointer(path)
    size = path.stat().st_size
    with path.open("rb") as file:
        header_bytes = int.from_bytes(file.read(8), "little")
        if size < 8 or header_bytes > MAX_HEADER_BYTES or 8 + header_bytes > size:
            raise _damaged(path, f"its {size:,} bytes do not hold a safetensors header")
        try:
            header = json.loads(file.read(header_bytes))
            entries = {name: each for name, each in header.items() if name != "__metadata__"}
            places = sorted(tuple(each["data_offsets"]) for each in entries.values())
            ends = [0, *(end for _, end in places)]
            weights = {name: _weight(path, name, each) for name, each in entries.items()}
        except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError):
            raise _damaged(path, "its header is not one of safetensors") from None
    if (end := 8 + header_bytes + ends[-1]) != size:
        raise _damaged(path, f"it has {size:,} bytes, and its header says {end:,}")
    if any(begin != before for before, (begin, _) in zip(ends, places, strict=False)):
        raise _damaged(path, "by its header, weights overlap or leave gaps")
    return weights


def _weight(path: Path, name: str, entry: dict[str, Any]) -> Weight:
    begin, end = entry["data_offsets"]
    is_packed = name.endswith(("weight", "weight_packed")) and entry["dtype"] not in FLOATS
    if entry["dtype"] not in BITS or is_packed:
        raise ModelError(
            f"{path}: {name!r} is of type {entry['dtype']}: quantised checkpoints are not "
            "supported; take the one it was made from, in bfloat16 or float16",
            param="model",
        )
    weight = Weight(entry["dtype"], tuple(int(each) for each in entry["shape"]))
    if min(weight.shape, default=0) < 0 or begin < 0 or end - begin != weight.size_bytes:
        raise _damaged(path, f"its header gives {name!r} {end - begin:,} bytes for {weight}")
    return weight


def _damaged(path: Path, why: str) -> ModelError:
    return ModelError(f"{path} is cut or damaged: {why}. Download it again", param="model")
