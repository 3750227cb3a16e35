"""`lookm serve`, `check`, `plan`, `bench`, `eval` and `version`. Knows typer; decides nothing.

The options of `serve` are the fields of `Settings`.
"""

import inspect
import json
import types
from collections.abc import Callable, Iterator
from typing import Annotated, Any, cast, get_origin

import typer
from pydantic import ValidationError
from pydantic.fields import FieldInfo

from server.bench import commands as bench
from server.settings import Settings
from server.sizes import format_size
from server.version import version

app = typer.Typer(
    name="lookm",
    help="OpenAI-compatible server in which every request chooses how much KV cache is kept.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(version())
        raise typer.Exit


@app.callback()
def main(
    _version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    """What all commands share: nothing but `--version`."""


@app.command("version")
def show_version() -> None:
    """Print the version."""
    _show_version(True)


@app.command("plan")
def plan(
    model: Annotated[str, typer.Option(help="Bundled name, directory or hub name.")] = "llava-demo",
    gpu_memory: Annotated[str, typer.Option(help="Memory of the GPU.")] = "24GiB",
    weights: Annotated[
        str | None, typer.Option(help="Size of the weights; else estimated.")
    ] = None,
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16, float16.")] = "auto",
    prompt_tokens: Annotated[int, typer.Option(min=1, help="A prompt, images included.")] = 1536,
    answer_tokens: Annotated[int, typer.Option(min=1, help="An answer.")] = 256,
    max_context_tokens: Annotated[
        int | None, typer.Option(min=1, help="As of lookm serve; else all that the model holds.")
    ] = None,
    max_running: Annotated[int, typer.Option(min=1, help="As of lookm serve.")] = 64,
    replicas: Annotated[int, typer.Option(min=1, help="Servers, each on a GPU of its own.")] = 1,
) -> None:
    """Print what fits on a GPU, by bits and by the fraction kept, and how to serve it.

    Loads no weights.
    """
    from lookm.config import DType, EngineConfig
    from lookm.errors import LookmError
    from server.what_fits import plan

    config = EngineConfig(
        model=model,
        dtype=cast(DType, dtype),
        max_context_tokens=max_context_tokens,
        max_running=max_running,
    )
    try:
        tokens = (prompt_tokens, answer_tokens)
        for line in plan(config, gpu_memory, weights, tokens, replicas):
            typer.echo(line)
    except (LookmError, ValueError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from None


@app.command("check")
def check(
    model: Annotated[str, typer.Argument(help="Bundled name, directory or hub name.")],
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16, float16.")] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Say whether a checkpoint will work here, and what it is. Loads no weights.

    The exit status is 0 where it will, and 1 where it will not.
    """
    from lookm.config import DType
    from server.check import check, lines

    verdict = check(model, device, cast(DType, dtype))
    if as_json:
        typer.echo(json.dumps(verdict.to_json(), indent=2))
    else:
        for line in lines(verdict):
            typer.echo(line)
    raise typer.Exit(0 if verdict.works else 1)


@app.command(
    "eval",
    context_settings={
        "allow_extra_args": True,
        "ignore_unknown_options": True,
        "help_option_names": [],
    },
)
def evaluate(context: typer.Context) -> None:
    """Ask the same questions under many cache policies: answers against kept bytes."""
    from lookm.bench.provenance import provenance
    from lookm.eval.__main__ import main
    from server.bench.terminal import command

    raise typer.Exit(main(context.args, lambda: provenance(command()), "lookm eval"))


def serve(**flags: str | bool | list[str] | None) -> None:
    """Start the server. Every option is also read from LOOKM_<OPTION>."""
    try:
        given: dict[str, Any] = {
            name: ",".join(flag) if isinstance(flag, list) else flag
            for name, flag in flags.items()
            if flag not in (None, [])
        }
        settings = Settings(**given)
    except ValidationError as error:
        for line in explain(error):
            typer.echo(f"error: {line}", err=True)
        raise typer.Exit(2) from None
    from server.launch import launch

    raise typer.Exit(launch(settings))


def explain(error: ValidationError) -> Iterator[str]:
    """One line per wrong setting, naming the flag and the variable."""
    for found in error.errors(include_url=False, include_input=False):
        name = str(found["loc"][0])
        message = found["msg"].removeprefix("Value error, ")
        yield f"{flag_of(name)} (LOOKM_{name.upper()}): {message}"


def flag_of(name: str) -> str:
    """`kv_cache_memory` as it is typed: `--kv-cache-memory`."""
    return "--" + name.replace("_", "-")


def with_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give `command` one option per setting: a string for pydantic to read, or a switch."""
    parameters = [_option(name, info) for name, info in Settings.model_fields.items()]
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {p.name: p.annotation for p in parameters}
    return command


def _option(name: str, info: FieldInfo) -> inspect.Parameter:
    flag = flag_of(name)
    is_switch = info.annotation is bool
    default = info.get_default()
    shown = "" if default in (None, (), False) else f" (default {_show(default)})"
    option = typer.Option(
        f"{flag}/--no-{flag[2:]}" if is_switch else flag,
        help=f"{info.description}{shown}",
        show_default=False,
        metavar=None if is_switch else "VALUE",
    )
    is_list = get_origin(info.annotation) is tuple  # may be given several times
    kind = (bool if is_switch else list[str] if is_list else str) | types.NoneType
    return inspect.Parameter(
        name,
        inspect.Parameter.KEYWORD_ONLY,
        default=None,
        annotation=Annotated[kind, option],
    )


def _show(default: object) -> str:
    if isinstance(default, int) and default >= 2**20:
        return format_size(default).replace(" ", "")
    return str(default)


app.command("serve")(with_options(serve))
app.add_typer(bench.app, name="bench")
