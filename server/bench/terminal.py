"""What the commands of `lookm bench` share: errors in one line, a progress bar, what was typed.

Knows typer and rich; nothing about measuring.
"""

import contextlib
import shlex
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import typer
from rich.console import Console
from rich.progress import Progress

from lookm.errors import LookmError

UNSAID = frozenset(("--api-key", "--json", "--html", "--out", "--compare"))


@contextlib.contextmanager
def errors_in_one_line() -> Iterator[None]:
    """A wrong option or a server that is not there is one line on standard error, and status 2."""
    try:
        yield
    except (ValueError, RuntimeError, LookmError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from None


@contextlib.contextmanager
def progress(total: int | None) -> Iterator[Callable[[Any], None]]:
    """A bar on standard error, where that is a terminal; call the value for every answer."""
    shown = sys.stderr.isatty()
    with Progress(console=Console(stderr=True), transient=True, disable=not shown) as bar:
        task = bar.add_task("answers", total=total)
        yield lambda _: bar.advance(task)


def echo(lines: Iterable[str]) -> None:
    """Print each line as it comes."""
    for line in lines:
        typer.echo(line)


def command() -> str:
    """What was typed, for reports: without keys, folders, and what does not change the run."""
    shown = ["lookm"]
    words = iter(sys.argv[1:])
    for word in words:
        flag, is_whole, _ = word.partition("=")
        if flag not in UNSAID:
            shown.append(word)
        elif not is_whole:
            next(words, None)
    return shlex.join(shown)
