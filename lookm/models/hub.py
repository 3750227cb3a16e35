"""A hub name's files, in the hub's cache: found there, or downloaded, with progress in the log.

The small files come first: what they give reason to refuse costs no download of weights. Downloads
that were cut go on where they ended. Knows huggingface_hub; nothing about models.
"""

import contextlib
import logging
import os
import shutil
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from lookm.errors import ModelError, in_one_line
from lookm.models.headers import Weight

SMALL = ("*.json", "*.jinja", "*.txt", "tokenizer.model", "spiece.model")
REPORT_S = 5.0
SPARE_BYTES = 2**26  # beside what is downloaded
DENIED = (401, 403)

logger = logging.getLogger(__name__)


def cached(name: str) -> Path | None:
    """The folder of a repository in the cache, whole or not; None where there is none."""
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    repository = Path(constants.HF_HUB_CACHE, repo_folder_name(repo_id=name, repo_type="model"))
    try:
        commit = (repository / "refs" / "main").read_text().strip()
    except OSError:
        return None
    folder = repository / "snapshots" / commit
    return folder if folder.is_dir() else None


def download_config(name: str) -> Path:
    """The config alone. Raises `ModelError`."""
    return _download(name, ["config.json"])


def download_small(name: str) -> Path:
    """All but the weights, as the hub has them now, or as the cache does where there is no network.
    Raises `ModelError`."""
    return _download(name, SMALL)


def download_weights(name: str, choices: Sequence[set[str]]) -> Path:
    """The first of these sets of files that the repository has. Raises `ModelError`."""
    files = _listed(name, set().union(*choices))
    if files is None:
        return _offline(name, None)
    there = {each.filename for each in files}
    wanted = next((each for each in choices if each <= there), None)
    if wanted is None:
        raise ModelError(f"{name} has no weights, or not all of them", param="model")
    missing = [each for each in files if each.filename in wanted and each.will_download]
    total_bytes = sum(each.file_size for each in missing)
    partial_bytes = _bytes(_blobs(name).glob("*.incomplete"))
    _check_space(name, total_bytes - partial_bytes)
    with _reported(name, len(missing), total_bytes, partial_bytes):
        return _download(name, wanted)


def remote_weights(name: str) -> dict[str, Weight] | None:
    """The headers of a repository's safetensors, a few KiB each; None where they cannot be had."""
    from huggingface_hub import get_safetensors_metadata

    with _quiet():
        try:
            files = get_safetensors_metadata(name).files_metadata.values()
            return {
                weight: Weight(str(each.dtype), tuple(each.shape))
                for file in files
                for weight, each in file.tensors.items()
            }
        except Exception as error:  # noqa: BLE001 - network libraries raise of all kinds
            logger.info("%s: its weights are not judged: %s", name, in_one_line(error))
            return None


def _listed(name: str, patterns: Iterable[str]) -> Sequence[Any] | None:
    """What the hub has, file by file; None where it cannot be reached."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import DryRunError

    with _quiet():
        try:
            return list(snapshot_download(name, allow_patterns=list(patterns), dry_run=True))
        except DryRunError as error:
            if _status(error.__cause__) in DENIED:
                raise _refused(name, error.__cause__) from None
            return None
        except Exception as error:  # noqa: BLE001 - network libraries raise of all kinds
            raise _refused(name, error) from None


def _download(name: str, patterns: Iterable[str]) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError

    with _quiet():
        try:
            return Path(snapshot_download(name, allow_patterns=list(patterns), max_workers=4))
        except (GatedRepoError, LocalEntryNotFoundError) as error:
            return _offline(name, error)
        except Exception as error:  # noqa: BLE001 - network libraries raise of all kinds
            raise _refused(name, error) from None


def _offline(name: str, error: Exception | None) -> Path:
    """What the cache has. Raises `ModelError` where it has nothing."""
    folder = cached(name)
    if folder is None:
        status = _status(error) or _status(error and error.__cause__)
        if status in DENIED:
            raise _refused(name, error if _status(error) else error and error.__cause__)
        raise ModelError(
            f"{name} is not in the cache ({_cache()}), and {_unreachable(status)}; "
            "fill the cache there with `hf download`, or give a directory",
            param="model",
        )
    logger.warning("%s: %s; the cached files are used", name, _unreachable())
    return folder


def _unreachable(status: int | None = None) -> str:
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        return "HF_HUB_OFFLINE forbids to ask the hub"
    from huggingface_hub import constants

    if status is not None:
        return f"the hub ({constants.ENDPOINT}) answers with status {status}"
    return f"the hub ({constants.ENDPOINT}) cannot be reached: look at the network and proxies"


def _refused(name: str, error: BaseException | None) -> ModelError:
    """What went wrong, in one line with what to do."""
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    has_token = bool(os.environ.get("HF_TOKEN"))
    if isinstance(error, GatedRepoError) or _status(error) == 403:
        message = (
            f"{name} is gated: accept its licence on its page, and "
            + ("look whether HF_TOKEN is" if has_token else "set HF_TOKEN to")
            + " a token of that account"
        )
    elif isinstance(error, RepositoryNotFoundError) or _status(error) == 401:
        message = (
            f"the hub has no {name}, or it is private: look at the spelling; for a private one, "
            + ("look whether HF_TOKEN is" if has_token else "set HF_TOKEN to")
            + " a token that may read it"
        )
    elif isinstance(error, OSError) and error.errno == 28:
        message = f"no space is left for {name} in {_cache()}: free some, or set HF_HOME elsewhere"
    elif isinstance(error, PermissionError):
        message = f"{_cache()} cannot be written to: mend its rights, or set HF_HOME elsewhere"
    else:
        why = in_one_line(error)
        message = f"{name} was not downloaded: {why}. Start again: it goes on from there"
    return ModelError(message, param="model")


def _status(error: BaseException | None) -> int | None:
    return getattr(getattr(error, "response", None), "status_code", None)


def _check_space(name: str, needed_bytes: int) -> None:
    cache = _cache()
    there = next(each for each in (cache, *cache.parents) if each.exists())
    free = shutil.disk_usage(there).free
    if needed_bytes > 0 and needed_bytes + SPARE_BYTES > free:
        raise ModelError(
            f"{name} needs {needed_bytes / 2**30:.1f} GiB in {cache}, which has "
            f"{free / 2**30:.1f} GiB free: free some, or set HF_HOME elsewhere",
            param="model",
        )


def _cache() -> Path:
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE).expanduser()


def _blobs(name: str) -> Path:
    from huggingface_hub.file_download import repo_folder_name

    return _cache() / repo_folder_name(repo_id=name, repo_type="model") / "blobs"


def _bytes(paths: Iterable[Path]) -> int:
    """Of those that are still there: what is downloaded gets another name."""
    total = 0
    for path in paths:
        with contextlib.suppress(OSError):
            total += path.stat().st_size
    return total


@contextlib.contextmanager
def _reported(name: str, num_files: int, total_bytes: int, partial_bytes: int) -> Iterator[None]:
    """A line in the log every few seconds, by what lies in the cache, and one at the end."""
    if not num_files:
        yield
        return
    blobs, done, began = _blobs(name), threading.Event(), time.monotonic()
    begin_bytes = _bytes(blobs.glob("*"))
    logger.info(
        "downloading %s: %d files, %s%s, to %s",
        name,
        num_files,
        _gib(total_bytes),
        f", of which {_gib(partial_bytes)} are there" if partial_bytes else "",
        blobs.parent,
    )

    def report() -> None:
        while not done.wait(REPORT_S):
            new_bytes = max(0, _bytes(blobs.glob("*")) - begin_bytes)
            rate = new_bytes / (time.monotonic() - began) / 2**20
            left = len(list(blobs.glob("*.incomplete")))
            logger.info(
                "downloading %s: %s of %s, %.1f MiB/s, %d files under way",
                name,
                _gib(new_bytes + partial_bytes),
                _gib(total_bytes),
                rate,
                left,
            )

    watch = threading.Thread(target=report, name="download-progress", daemon=True)
    watch.start()
    try:
        yield
    finally:
        done.set()
        watch.join()
    took_s = max(time.monotonic() - began, 1e-3)
    rate = (total_bytes - partial_bytes) / took_s / 2**20
    logger.info("downloaded %s in %.0f s, %.1f MiB/s", name, took_s, rate)


def _gib(size_bytes: int) -> str:
    return (
        f"{size_bytes / 2**30:.2f} GiB" if size_bytes >= 2**29 else f"{size_bytes / 2**20:.1f} MiB"
    )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """No progress bars: what happens is in our own log."""
    from huggingface_hub.utils.tqdm import (
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
    )

    was_off = are_progress_bars_disabled()
    if not was_off:
        disable_progress_bars()
    try:
        yield
    finally:
        if not was_off:
            enable_progress_bars()
