"""A checkpoint's folder, judged before anything of it is loaded: in milliseconds, and by name.

Reads its JSON files and the headers of its weights. What fits a model's class and what does not is
`weights`' to say. Knows no torch, no transformers, no network.
"""

import json
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lookm.errors import ModelError
from lookm.models.headers import FLOATS, Weight, check_not_pointer, read_header
from lookm.models.refusals import check_config

CONFIG = "config.json"
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLED, PICKLED_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "spiece.model", "vocab.json")
IMAGE_PROCESSORS = ("processor_config.json", "preprocessor_config.json")
#: What transformers reads besides weights; all of it is small.
JSON_FILES = (
    "generation_config.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.json",
    *IMAGE_PROCESSORS,
    "video_preprocessor_config.json",
)
LARGE_FILES = (*TOKENIZERS, "chat_template.jinja", "tekken.json")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A folder that was found whole.

    `dtype` as transformers' "auto": of the config, of a part of it, of the first weight. `weights`:
    by name, None where no header tells them (.bin).
    """

    folder: Path
    config: Mapping[str, Any]
    generation_config: Mapping[str, Any]
    dtype: str | None
    weights: Mapping[str, Weight] | None

    @property
    def num_parameters(self) -> int | None:
        """Numbers in all weights."""
        if self.weights is None:
            return None
        return sum(each.num_elements for each in self.weights.values())


def open_checkpoint(folder: Path, name: str = "", *, with_weights: bool = True) -> Checkpoint:
    """The checkpoint in `folder`, called `name` in messages. Raises `ModelError`, in one line that
    says which file is not what it should be, and what to do."""
    name = name or str(folder)
    config = read_config(folder, name)
    found = {each: _read_json(folder / each) for each in JSON_FILES if (folder / each).is_file()}
    _check_processor(folder, name)
    generation_config = found.get("generation_config.json", {})
    _check_ends_of_text(generation_config, folder / "generation_config.json")
    weights = read_weights(folder, name) if with_weights else None
    return Checkpoint(
        folder=folder,
        config=config,
        generation_config=generation_config,
        dtype=_dtype(folder / CONFIG, config, weights),
        weights=weights,
    )


def open_config(folder: Path, name: str = "") -> Checkpoint:
    """A checkpoint as far as its config tells. Raises `ModelError`."""
    config = read_config(folder, name or str(folder))
    return Checkpoint(folder, config, {}, _dtype(folder / CONFIG, config, None), None)


def read_config(folder: Path, name: str) -> dict[str, Any]:
    """The config of a kind of checkpoint that can be served. Raises `ModelError` for others."""
    if not (folder / CONFIG).is_file():
        raise ModelError(f"{name} {_no_config(folder)}", param="model")
    config = _read_json(folder / CONFIG)
    check_config(name, config)
    return config


def _dtype(
    path: Path, config: Mapping[str, Any], weights: Mapping[str, Weight] | None
) -> str | None:
    parts = (config, *filter(_is_object, config.values()))
    named = (part.get("dtype") or part.get("torch_dtype") for part in parts)
    name = next((name for name in named if name not in (None, "auto")), None)
    if name is None:
        floats = (FLOATS.get(each.dtype) for each in (weights or {}).values())
        name = next((each for each in floats if each), None)
    name = None if name is None else str(name).removeprefix("torch.")
    if name not in (None, *FLOATS.values()):
        raise ModelError(
            f"{path} names the dtype {name!r}, which is none of {', '.join(FLOATS.values())}: "
            "mend it, or take another checkpoint",
            param="model",
        )
    return name


def _no_config(folder: Path) -> str:
    """What else a folder without a config.json may be."""
    names = {each.name for each in folder.iterdir()}
    if "params.json" in names:
        return (
            "is in Mistral's own format (params.json): take a repository that has config.json and "
            "model.safetensors as well, such as mistralai/Mistral-Small-3.1-24B-Instruct-2503"
        )
    if "adapter_config.json" in names:
        return "is an adapter (LoRA): merge it into its model, and serve what comes out"
    if any(each.endswith(".gguf") for each in names):
        return "holds GGUF, which is llama.cpp's format: take the checkpoint it was made from"
    if "model_index.json" in names:
        return "is a pipeline of diffusers, not an image-and-text model"
    return "has no config.json: give the folder that holds it and the weights"


def _check_processor(folder: Path, name: str) -> None:
    """A tokenizer and an image processor, as far as files can tell."""
    for each in filter(Path.is_file, (folder / each for each in LARGE_FILES)):
        check_not_pointer(each)
    if not any((folder / each).is_file() for each in TOKENIZERS):
        if (folder / "tekken.json").is_file():
            raise ModelError(
                f"{name} has Mistral's own tokenizer alone (tekken.json), which is not supported: "
                "put the tokenizer.json and tokenizer_config.json of the same tokenizer beside "
                "it, or take a repository that has them, such as "
                "mistralai/Mistral-Small-3.1-24B-Instruct-2503",
                param="model",
            )
        raise ModelError(
            f"{name} has no tokenizer: none of {', '.join(TOKENIZERS)} is there", param="model"
        )
    if (folder / "tokenizer.json").is_file():
        _check_ends(folder / "tokenizer.json")
    if not any((folder / each).is_file() for each in IMAGE_PROCESSORS):
        raise ModelError(
            f"{name} has no image processor: neither {' nor '.join(IMAGE_PROCESSORS)} is there",
            param="model",
        )


def _check_ends_of_text(generation_config: Mapping[str, Any], path: Path) -> None:
    given = generation_config.get("eos_token_id")
    ids = given if isinstance(given, list) else [given]
    if given is not None and not all(type(each) is int for each in ids):
        message = f"{path}: eos_token_id {given!r} is no token id, nor a list of them: mend it"
        raise ModelError(message, param="model")


def _check_ends(path: Path) -> None:
    """A large JSON file is judged by its end: parsing it takes as long as loading the tokenizer."""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 64))
        if not file.read().rstrip().endswith(b"}"):
            raise ModelError(f"{path} is cut: it does not end. Download it again", param="model")


def weight_files(folder: Path) -> list[set[str]]:
    """The files that may hold the weights, in transformers' order: the first that are there do."""
    found: list[set[str]] = []
    for single, index in ((SINGLE, INDEX), (PICKLED, PICKLED_INDEX)):
        found.append({single})
        if (folder / index).is_file():
            found.append(set(_weight_map(folder / index).values()))
    return found


def read_weights(folder: Path, name: str) -> dict[str, Weight] | None:
    """The headers of what transformers would load, in its order: one file, shards, then pickles,
    which have none (None). Raises `ModelError` for a file that is missing, cut or damaged."""
    if (folder / SINGLE).is_file():
        return read_header(folder / SINGLE)
    if (folder / INDEX).is_file():
        return dict(_sharded(folder / INDEX))
    if (folder / PICKLED).is_file() or (folder / PICKLED_INDEX).is_file():
        _check_pickled(folder)
        return None
    raise ModelError(
        f"{name} has no weights: neither {SINGLE} nor {INDEX} is there. Download them, for "
        "example with `hf download`",
        param="model",
    )


def _sharded(index: Path) -> Iterator[tuple[str, Weight]]:
    files = _shards(index)
    held: dict[str, str] = {}  # by which file
    for file in sorted(set(files.values())):
        header = read_header(index.parent / file)
        yield from header.items()
        for weight in (each for each, place in files.items() if place == file):
            if weight not in header:
                raise ModelError(
                    f"{index.parent / file} does not hold {weight!r}, as {index.name} says: the "
                    "two are of different versions. Download both again",
                    param="model",
                )
        if twice := sorted(header.keys() & held.keys()):
            raise ModelError(
                f"{index.parent / file} and {held[twice[0]]} both hold {twice[0]!r}: the two are "
                "of different versions. Download both again",
                param="model",
            )
        held |= dict.fromkeys(header, file)


def _check_pickled(folder: Path) -> None:
    names = {PICKLED}
    if not (folder / PICKLED).is_file():
        names = set(_shards(folder / PICKLED_INDEX).values())
    for path in (folder / each for each in sorted(names)):
        check_not_pointer(path)
        with path.open("rb") as file:
            is_archive = file.read(2) == b"PK"
        if not path.stat().st_size or (is_archive and not zipfile.is_zipfile(path)):
            raise ModelError(f"{path} is cut or damaged. Download it again", param="model")


def _shards(index: Path) -> dict[str, str]:
    """Each weight's file. Raises `ModelError` where one is not there."""
    files = _weight_map(index)
    missing = sorted({each for each in files.values() if not (index.parent / each).is_file()})
    if missing:
        shown = ", ".join(missing[:3]) + (", …" if len(missing) > 3 else "")
        raise ModelError(
            f"{index.parent} lacks {len(missing)} of the {len(set(files.values()))} files that "
            f"{index.name} names: {shown}. Download them",
            param="model",
        )
    return files


def _weight_map(index: Path) -> dict[str, str]:
    files = _read_json(index).get("weight_map")
    if not isinstance(files, dict) or not all(isinstance(each, str) for each in files.values()):
        raise ModelError(f"{index} has no weight_map: download it again", param="model")
    return files


def _read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises `ModelError`."""
    check_not_pointer(path)
    try:
        value = json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        where = ""
        if isinstance(error, json.JSONDecodeError):
            where = f" ({error.msg}, line {error.lineno})"
        raise ModelError(f"{path} is not JSON{where}: download it again", param="model") from None
    if not isinstance(value, dict):
        raise ModelError(f"{path} holds no JSON object: download it again", param="model")
    return value


def _is_object(value: object) -> bool:
    return isinstance(value, Mapping)
