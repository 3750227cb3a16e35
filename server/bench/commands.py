"""`lookm bench` and the commands under it: options in, reports out.

Knows typer; measuring is done by the modules beside it, which are loaded when they are needed.
"""

import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from server.bench.terminal import command, echo, errors_in_one_line, progress

if TYPE_CHECKING:
    from lookm.bench.records import Json

app = typer.Typer(help="Measure a running server, or what compression buys.")

URL = "http://127.0.0.1:8000"

# What several commands take alike.
Url = Annotated[str, typer.Option(help="Any OpenAI-compatible server.")]
Model = Annotated[str | None, typer.Option(help="Default: the first it lists.")]
ApiKey = Annotated[str | None, typer.Option(envvar="LOOKM_API_KEY", help="Sent as a bearer token.")]
SidePx = Annotated[int, typer.Option(min=8, help="Side of each picture.")]
TimeoutS = Annotated[float, typer.Option(help="After which a request has failed.")]


@app.callback(invoke_without_command=True)
def load(
    context: typer.Context,
    url: Url = URL,
    model: Model = None,
    api_key: ApiKey = None,
    rate: Annotated[
        float | None, typer.Option(help="Open loop: Poisson arrivals per second.")
    ] = None,
    concurrency: Annotated[
        int | None, typer.Option(help="Instead: clients with one request at a time; 8 by default.")
    ] = None,
    requests: Annotated[int | None, typer.Option(help="How many; 100 without a duration.")] = None,
    duration_s: Annotated[float | None, typer.Option(help="How long requests are sent.")] = None,
    warm_up: Annotated[int, typer.Option(min=0, help="Requests before, not measured.")] = 2,
    images: Annotated[str, typer.Option(help="Per request: 2, or 1-8, or ~4 (exponential).")] = "2",
    image_side_px: SidePx = 336,
    words: Annotated[str, typer.Option(help="Of text per request, as --images.")] = "40",
    answer_tokens: Annotated[str, typer.Option(help="Asked per answer, as --images.")] = "64",
    policies: Annotated[
        str, typer.Option(help="full=0.3,look-m@0.2=0.7; else what the server does by default.")
    ] = "",
    kv_cache_field: Annotated[
        bool, typer.Option(help="Policies in a field; with --no-..., in the model's name.")
    ] = True,
    ignore_eos: Annotated[
        bool, typer.Option(help="Ask for the whole length; not every server knows the field.")
    ] = True,
    slo_ttft_s: Annotated[float | None, typer.Option(help="SLO: first token within.")] = None,
    slo_itl_s: Annotated[float | None, typer.Option(help="SLO: p99 of gaps within.")] = None,
    slo_e2e_s: Annotated[float | None, typer.Option(help="SLO: whole answer within.")] = None,
    timeout_s: TimeoutS = 600,
    seed: Annotated[int, typer.Option(min=0, help="Of requests and arrivals.")] = 0,
    json: Annotated[Path | None, typer.Option(help="Write the report, with every request.")] = None,
    html: Annotated[Path | None, typer.Option(help="Write a page with plots.")] = None,
    compare: Annotated[Path | None, typer.Option(help="Print it beside this saved run.")] = None,
) -> None:
    """Load a server and report latencies, throughput, errors, goodput and KV memory."""
    if context.invoked_subcommand is not None:
        return
    from lookm.bench import records
    from server.bench.load import report
    from server.bench.load.arrivals import Schedule
    from server.bench.load.client import Target, first_model
    from server.bench.load.compare import compare as compared
    from server.bench.load.generator import run
    from server.bench.load.measures import Slo
    from server.bench.load.workload import Spread, Workload, parse_policies

    with errors_in_one_line():
        before = None if compare is None else records.read(compare, "load")
        if rate is None and concurrency is None:
            concurrency = 8
        if requests is None and duration_s is None:
            requests = 100
        schedule = Schedule(rate, concurrency, requests, duration_s)
        target = Target(url, api_key, timeout_s)
        workload = Workload(
            model=model or first_model(target),
            images=Spread.parse(images),
            image_side_px=image_side_px,
            words=Spread.parse(words),
            answer_tokens=Spread.parse(answer_tokens),
            policies=parse_policies(policies),
            kv_cache_field=kv_cache_field,
            ignore_eos=ignore_eos,
            seed=seed,
            nonce=time.time_ns(),
        )
        with progress(requests) as on_answer:
            measured = run(target, workload, schedule, warm_up=warm_up, on_answer=on_answer)
        slo = Slo(slo_ttft_s, slo_itl_s, slo_e2e_s)
        made = report.load_report(measured, target, workload, schedule, slo, command())
        made["warm_up"] = warm_up
        if before is not None:
            echo(compared(before, made))
        else:
            echo(report.lines(made))
        _write(made, json, html)
    raise typer.Exit(0 if made["total"]["completed"] else 1)


@app.command("compare")
def compare_runs(
    first: Annotated[Path, typer.Argument(help="A saved run (--json).")],
    second: Annotated[Path, typer.Argument(help="Another.")],
    any_workload: Annotated[
        bool, typer.Option("--any-workload", help="Even if they did not ask the same.")
    ] = False,
    html: Annotated[Path | None, typer.Option(help="Write a page with plots of both.")] = None,
) -> None:
    """Print two saved runs side by side, with ratios."""
    from lookm.bench import records
    from server.bench.load.compare import compare

    with errors_in_one_line():
        pair = records.read(first, "load"), records.read(second, "load")
        echo(compare(*pair, any_workload=any_workload))
        if html is not None:
            from server.bench.html import compare_page

            records.write_text(html, compare_page(*pair))


@app.command("capacity")
def capacity(
    url: Annotated[str | None, typer.Option(help="A running server; else one is started.")] = None,
    model: Annotated[
        str | None, typer.Option(help="To start: name or folder; of --url: its name.")
    ] = None,
    kv_cache_memory: Annotated[str, typer.Option(help="Pool of the started server.")] = "64MiB",
    method: Annotated[str, typer.Option(help="The preset whose fractions are tried.")] = "look-m",
    keep: Annotated[str, typer.Option(help="Fractions kept.")] = "1,0.5,0.35,0.2,0.1",
    elastic: Annotated[
        str, typer.Option(help="A range, too: what is kept of it as load grows; '' for none.")
    ] = "0.1-0.5",
    images: Annotated[int, typer.Option(min=1, help="Of each conversation.")] = 24,
    image_side_px: SidePx = 112,
    words: Annotated[int, typer.Option(min=1, help="Of text of each conversation.")] = 20,
    answer_tokens: Annotated[int, typer.Option(min=1, help="Of each answer.")] = 64,
    slo_ttft_s: Annotated[float, typer.Option(help="First token within.")] = 10,
    slo_itl_s: Annotated[float, typer.Option(help="p99 of an answer's gaps within.")] = 1,
    max_conversations: Annotated[int, typer.Option(min=1, help="Bound of the search.")] = 256,
    kv_cache_field: Annotated[
        bool, typer.Option(help="Policies in a field; with --no-..., in the model's name.")
    ] = True,
    api_key: Annotated[
        str | None, typer.Option(envvar="LOOKM_API_KEY", help="For --url: a bearer token.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of pictures and words.")] = 0,
    json: Annotated[Path | None, typer.Option(help="Write the report, with every trial.")] = None,
    html: Annotated[Path | None, typer.Option(help="Write a page with plots.")] = None,
) -> None:
    """How many conversations one KV pool serves together, by the fraction kept."""
    from server.bench.capacity.elastic import parse_range
    from server.bench.capacity.report import lines
    from server.bench.capacity.run import Place, measured
    from server.bench.capacity.search import Experiment, parse_fractions
    from server.bench.load.measures import Slo
    from server.bench.load.workload import Spread, Workload

    with errors_in_one_line():
        workload = Workload(
            model=model or ("llava-demo" if url is None else ""),
            images=Spread(images, images),
            image_side_px=image_side_px,
            words=Spread(words, words),
            answer_tokens=Spread(answer_tokens, answer_tokens),
            kv_cache_field=kv_cache_field,
            seed=seed,
            nonce=time.time_ns(),
        )
        experiment = Experiment(
            workload,
            method,
            parse_fractions(keep),
            Slo(slo_ttft_s, slo_itl_s),
            max_conversations,
        )
        place = Place(url, api_key, kv_cache_memory)
        made = measured(experiment, place, command(), parse_range(elastic))
        echo(lines(made))
        _write(made, json, html)


@app.command("conversations")
def conversations(
    url: Url = URL,
    model: Model = None,
    api_key: ApiKey = None,
    users: Annotated[int, typer.Option(min=1, help="Who chat at the same time.")] = 1,
    turns: Annotated[int, typer.Option(min=1, help="Questions of each user.")] = 4,
    images: Annotated[int, typer.Option(min=0, help="Of each user's document.")] = 4,
    image_side_px: SidePx = 336,
    words: Annotated[int, typer.Option(min=1, help="Of each question.")] = 20,
    answer_tokens: Annotated[int, typer.Option(min=1, help="Of each answer, at most.")] = 32,
    think_s: Annotated[float, typer.Option(min=0, help="Mean time between turns.")] = 0,
    slo_ttft_s: Annotated[
        float, typer.Option(min=0, help="First token of a served user's later turns.")
    ] = 2,
    documents_first: Annotated[
        bool, typer.Option("--documents-first", help="All first turns before any second.")
    ] = False,
    shared_document: Annotated[
        bool, typer.Option("--shared-document", help="All users ask about the same pictures.")
    ] = False,
    policies: Annotated[
        str,
        typer.Option(
            help="full,look-m@0.2,look-m@0.2+kept, one after the other; else the server's default."
        ),
    ] = "",
    timeout_s: TimeoutS = 600,
    seed: Annotated[int, typer.Option(min=0, help="Of pictures and words.")] = 0,
    json: Annotated[Path | None, typer.Option(help="Write the report.")] = None,
) -> None:
    """Chats that go on: the time to the first token by turn, and what the server knew before."""
    import asyncio

    from server.bench.conversations import Chats, chat, conversations_report, lines
    from server.bench.load.client import Target, first_model
    from server.bench.load.workload import parse_policies

    with errors_in_one_line():
        target = Target(url, api_key, timeout_s)
        found, served = {}, model or first_model(target)
        for number, (policy, _) in enumerate(parse_policies(policies)):
            chats = Chats(
                model=served,
                users=users,
                turns=turns,
                images=images,
                image_side_px=image_side_px,
                words=words,
                answer_tokens=answer_tokens,
                think_s=think_s,
                slo_ttft_s=slo_ttft_s,
                documents_first=documents_first,
                shared_document=shared_document,
                seed=seed,
                nonce=time.time_ns() + number,
            )
            found[policy] = asyncio.run(chat(chats, target, policy))
        report = conversations_report(chats, target, found, command())
        echo(lines(report))
        _write(report, json, None)


@app.command("stall")
def stall(
    url: Url = URL,
    model: Model = None,
    api_key: ApiKey = None,
    streams: Annotated[int, typer.Option(min=1, help="That run, of text only.")] = 2,
    stream_tokens: Annotated[int, typer.Option(min=2, help="Of each; then it begins again.")] = 512,
    prompts: Annotated[int, typer.Option(min=1, help="That arrive, one after the other.")] = 3,
    images: Annotated[int, typer.Option(min=0, help="Of each arriving prompt.")] = 6,
    image_side_px: SidePx = 336,
    words: Annotated[int, typer.Option(min=1, help="Of each prompt and stream.")] = 20,
    answer_tokens: Annotated[int, typer.Option(min=1, help="Of arriving prompts, at most.")] = 2,
    baseline_s: Annotated[float, typer.Option(min=0, help="With nobody arriving.")] = 5,
    pause_s: Annotated[float, typer.Option(min=0, help="After each arriving prompt.")] = 0.5,
    warm_up: Annotated[int, typer.Option(min=0, help="Prompts before, not measured.")] = 1,
    policies: Annotated[
        str,
        typer.Option(help="full,look-m@0.2, of arriving prompts; else the server's default."),
    ] = "",
    ignore_eos: Annotated[
        bool, typer.Option(help="Ask for whole streams; not every server knows the field.")
    ] = True,
    timeout_s: TimeoutS = 600,
    seed: Annotated[int, typer.Option(min=0, help="Of pictures and words.")] = 0,
    json: Annotated[Path | None, typer.Option(help="Write the report.")] = None,
) -> None:
    """Running streams while prompts with many images arrive: gaps between tokens, and waits."""
    from server.bench.load.client import Target, first_model
    from server.bench.load.workload import parse_policies
    from server.bench.stall import Stall, watch
    from server.bench.stall_report import lines, stall_report

    with errors_in_one_line():
        target = Target(url, api_key, timeout_s)
        asked = Stall(
            model=model or first_model(target),
            streams=streams,
            stream_tokens=stream_tokens,
            prompts=prompts,
            images=images,
            image_side_px=image_side_px,
            words=words,
            answer_tokens=answer_tokens,
            baseline_s=baseline_s,
            pause_s=pause_s,
            warm_up=warm_up,
            ignore_eos=ignore_eos,
            seed=seed,
        )
        found = {}
        for policy, _ in parse_policies(policies):
            found[policy] = watch(replace(asked, nonce=time.time_ns()), target, policy)
        report = stall_report(asked, target, found, command())
        echo(lines(report))
        _write(report, json, None)
    raise typer.Exit(0 if any(each["gaps"] for each in report["policies"].values()) else 1)


def _write(report: "Json", as_json: Path | None, as_html: Path | None) -> None:
    """Save a report of any kind, as JSON, as a page, or both."""
    from lookm.bench import records

    if as_json is not None:
        records.save(report, as_json)
    if as_html is not None:
        from server.bench.html import page

        records.write_text(as_html, page(report))
