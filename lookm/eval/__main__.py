"""`lookm eval`, also `python -m lookm.eval`: options in, OUT/scores.json and OUT/report.html out.

Knows argparse; the work is done by the modules beside it.
"""

import argparse
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from lookm.config import EngineConfig
from lookm.engine import Engine
from lookm.errors import ConfigError, LookmError
from lookm.eval import (
    demo,
    kv_dtypes,
    kv_dtypes_table,
    milebench,
    text,
    text_table,
    turns,
    turns_table,
)
from lookm.eval.local import Local
from lookm.eval.milebench_score import columns
from lookm.eval.page import check_charts, markdown
from lookm.eval.pictures import kept_section
from lookm.eval.questions import FULL, Question
from lookm.eval.remote import PolicyIn, Remote
from lookm.eval.report import columns_table, report_html, score_table, scores_json
from lookm.eval.run import ask_all, open_store, with_full
from lookm.eval.scores import ALL, Score, score_tasks
from lookm.models.detail import Detail
from lookm.policy import parse

SUITES = ("demo", "turns", "kv-dtypes", "milebench", "text")
POLICIES = (FULL, "look-m@0.5", "look-m@0.2")
#: MileBench's limit for LLaVA-1.5, and what such an image takes of it.
MILEBENCH_CONTEXT, LLAVA_IMAGE_TOKENS = 4096, 576
#: Left free for the chat's own markup, which MileBench does not count.
MARKUP_TOKENS = 64
TURNS, TALKS = 4, 40  # of the suite of conversations


def main(
    arguments: Sequence[str] | None = None,
    about: Callable[[], dict[str, Any]] = dict,
    prog: str = "python -m lookm.eval",
) -> int:
    """Ask, count, show; returns the exit status. `about` tells where a run was made (its command,
    commit and machine), for `scores.json`."""
    options = _parser(prog).parse_args(arguments)
    try:
        _evaluate(options, about())
    except (LookmError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"stopped; the same command goes on from {options.out}", file=sys.stderr)
        return 130
    return 0


def _turns(options: argparse.Namespace, where: dict[str, Any]) -> None:
    """Conversations, on the demo model here."""
    num_images, count = options.images[-1], options.count or TALKS
    if num_images < TURNS:
        raise ConfigError(f"each turn asks about another picture: {TURNS} pictures at least")
    talks = [turns.draw_talk(num_images, TURNS, options.seed, number) for number in range(count)]
    engine = Engine.from_config(EngineConfig(model=options.model or "llava-demo"))
    report = {"kind": "turns", **where, "turns": TURNS, "images": num_images, "talks": count}
    report |= {"seed": options.seed, "rows": []}
    for policy, reuse, found in turns.study(engine, with_full(options.policies), talks):
        report["rows"].append(turns.row(policy, reuse, found))
        print(f"{policy} {reuse}", file=sys.stderr)
    print("\n".join(turns_table.lines(report)))
    if options.json is not None:
        options.json.write_text(json.dumps(report, indent=1) + "\n")


def _kv_dtypes(options: argparse.Namespace, where: dict[str, Any]) -> None:
    """The demo suite with the cache at 16 bits and at int8, on the demo model here."""
    families = options.tasks or list(demo.FAMILIES)
    count = options.count or demo.DEFAULT_COUNT
    questions = list(demo.questions(families, options.images, count, options.seed))
    config = EngineConfig(model=options.model or "llava-demo", dtype=options.dtype)
    rows = kv_dtypes.study(config, questions, with_full(options.policies), options.out)
    report = {"kind": "kv-dtypes", **where, "seed": options.seed, "questions": len(questions)}
    report |= {"rows": rows}
    print("\n".join(kv_dtypes_table.lines(report)))
    if options.json is not None:
        options.json.write_text(json.dumps(report, indent=1) + "\n")


def _text(options: argparse.Namespace, where: dict[str, Any]) -> None:
    """Likelihoods of texts, on a real language model here."""
    from lookm.models.language import SMOLLM, LanguageModel

    asked = with_full(options.policies or text.all_policies())
    for policy in asked:
        parse(policy)
    texts = text.read_texts(options.texts or text.TEXTS / options.split)
    texts = dict(list(texts.items())[: options.count])
    model = LanguageModel.load(options.model or SMOLLM)
    options.out.mkdir(parents=True, exist_ok=True)
    lengths = text.Lengths()
    marks = list(text.study(model, texts, asked, lengths, saved=options.out / "text.jsonl"))
    about = {**where, "model": model.name, "prompt_tokens": lengths.prompt}
    about |= {"answer_tokens": lengths.answer, "split": None if options.texts else options.split}
    report = text.report(marks, asked, about)
    print("\n".join(text_table.lines(report)))
    if options.json is not None:
        options.json.write_text(text_table.saved(report))


def _evaluate(options: argparse.Namespace, where: dict[str, Any]) -> None:
    options.suite = options.suite_first or options.suite
    if options.suite == "text":
        _text(options, where)
        return
    options.policies = options.policies or list(POLICIES)
    if alone := {"turns": _turns, "kv-dtypes": _kv_dtypes}.get(options.suite):
        alone(options, where)
        return
    if options.report:
        check_charts()
    policies = with_full(options.policies)
    backend = _backend(options, policies)
    questions, suite, metric = _questions(options, backend)
    if not questions:
        raise ConfigError("no questions: these tasks make no sense for so few images")
    store = open_store(options.out, backend, suite, options.restart)
    ask_all(backend, questions, policies, store)
    scores = score_tasks(store.answers, [one.key for one in questions], policies)
    about = {"suite": options.suite, "seed": options.seed, **where}
    about |= {"settings": store.settings, "metric": metric}
    about["asked_by"] = _asked_by(options, questions)
    if options.suite == "milebench":
        about["columns"] = _columns(scores)
    saved = json.dumps(scores_json(scores, about), indent=1)
    for path in (options.out / "scores.json", options.json):
        if path is not None:
            path.write_text(saved + "\n")
    print(f"{store.settings['model']}, {len(questions)} questions, {metric}, 95 % intervals\n")
    print(markdown(score_table(scores[ALL], metric)))
    if "columns" in about:
        print("\n" + markdown(columns_table(about["columns"])))
    if options.report:
        page = options.out / "report.html"
        kept = kept_section(backend, questions, policies, store.answers)
        page.write_text(report_html(scores, about, kept), encoding="utf-8")
        print(f"\n{page}")


def _backend(options: argparse.Namespace, policies: Sequence[str]) -> Local | Remote:
    """The server at `--url`, or an engine in this process."""
    detail = Detail(options.detail, options.max_tokens_per_image)
    if options.url is not None:
        places: dict[bool, PolicyIn] = {True: "field", False: "nowhere"}
        place: PolicyIn = "model" if options.kv_cache_in_model else places[options.kv_cache_field]
        if place == "nowhere" and list(policies) != [FULL]:
            raise ConfigError("with --no-kv-cache-field the only policy is `full`: --policies full")
        key = os.environ.get("OPENAI_API_KEY")
        return Remote(options.url, options.model, place, options.concurrency, key, detail=detail)
    for policy in policies:
        parse(policy)
    config = EngineConfig(
        model=options.model or "llava-demo",
        dtype=options.dtype,
        kv_cache_dtype=options.kv_cache_dtype,
    )
    return Local(Engine.from_config(config), detail=detail)


def _questions(
    options: argparse.Namespace, backend: Local | Remote
) -> tuple[list[Question], dict[str, str], str]:
    """The questions, the settings that name them, and the name of their metric."""
    if options.suite == "demo":
        families = options.tasks or list(demo.FAMILIES)
        options.count = options.count or demo.DEFAULT_COUNT
        drawn = demo.questions(families, options.images, options.count, options.seed)
        return list(drawn), {"suite": "demo"}, "exact answers"
    if options.data is None:
        raise ConfigError("--suite milebench reads its files: --data FOLDER")
    truncation = _truncation(options, backend)
    said = "no truncation"
    if truncation is not None:
        said = f"{truncation.max_tokens} tokens, {truncation.image_tokens} an image"
    suite = {"suite": "milebench", "prompt": said}
    if options.combined:
        suite["combined"] = str(options.combined)
    read = milebench.questions(
        options.data, options.tasks, truncation, options.combined, options.count
    )
    return list(read), suite, "MileBench's metric"


def _truncation(
    options: argparse.Namespace, backend: Local | Remote
) -> milebench.Truncation | None:
    """Of MileBench's prompts: with the engine's own tokenizer, or the one of `--tokenizer`."""
    if isinstance(backend, Local):
        described = backend.engine.processor.tokenizer_json
        room = backend.engine.info.max_context_tokens - milebench.MAX_TOKENS - MARKUP_TOKENS
        limit = options.context_tokens or min(MILEBENCH_CONTEXT, room)
        if described is None:
            raise ConfigError("MileBench's prompts are cut with a fast tokenizer; this has none")
        tokenizer = Tokenizer.from_str(described)
        per_image = options.image_tokens or backend.image_tokens()
        return milebench.Truncation(tokenizer, limit, per_image)
    if options.tokenizer is None:
        return None
    tokenizer = Tokenizer.from_file(str(options.tokenizer))
    limit = options.context_tokens or MILEBENCH_CONTEXT
    return milebench.Truncation(tokenizer, limit, options.image_tokens or LLAVA_IMAGE_TOKENS)


def _columns(scores: Mapping[str, Sequence[Score]]) -> dict[str, dict[str, float | None]]:
    """Policy -> MileBench's columns."""
    return {
        one.policy: columns({task: found[at].right for task, found in scores.items()})
        for at, one in enumerate(scores[ALL])
    }


def _asked_by(options: argparse.Namespace, questions: Sequence[Question]) -> dict[str, Any]:
    tasks = list(dict.fromkeys(one.task for one in questions))
    images = sorted({one.num_images for one in questions})
    return {"tasks": tasks, "images": images, "count": options.count, "questions": len(questions)}


def _parser(prog: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=prog, description="Answers against kept KV bytes.")
    add = parser.add_argument
    add(
        "suite_first",
        nargs="?",
        choices=SUITES,
        metavar="SUITE",
        help=f"one of {', '.join(SUITES)}",
    )
    add("--suite", choices=SUITES, default="demo", help="the same, as an option")
    said = f"{' '.join(POLICIES)}; text: every preset at {', '.join(map(str, text.KEEPS))}"
    add("--policies", "--kv-cache", nargs="+", metavar="METHOD@KEPT", help=said)
    add(
        "--tasks", nargs="+", metavar="TASK", help="families, or MileBench's data sets; all of them"
    )
    add(
        *("--count", "--limit"),
        type=int,
        help="demo: per family and number of images (20); milebench: per set; text: texts",
    )
    add("--model", help="bundled name, directory or hub name; with --url a name it serves")
    add("--dtype", choices=("auto", "float32", "bfloat16", "float16"), default="auto")
    add("--kv-cache-dtype", choices=("auto", "int8", "fp8"), default="auto")
    add("--detail", choices=("low", "auto", "high"), default="auto", help="of all images")
    add("--max-tokens-per-image", type=int, metavar="N", help="or a budget of vision tokens")
    add("--out", type=Path, default=Path("eval-run"), help="folder; the same one goes on")
    add("--restart", action="store_true", help="forget the answers that are in --out")
    add("--json", type=Path, help="write the scores here too")
    add("--no-report", dest="report", action="store_false", help="no report.html")
    suite = parser.add_argument_group("demo suite").add_argument
    suite("--images", nargs="+", type=int, default=list(demo.DEFAULT_IMAGES))
    suite("--seed", type=int, default=0, help="of the questions")
    written = parser.add_argument_group("text suite").add_argument
    written("--texts", type=Path, help="folder of *.txt, of 1,072 tokens or more each")
    written("--split", choices=text.SPLITS, default=text.SPLITS[0], help="of the bundled texts")
    miles = parser.add_argument_group("MileBench").add_argument
    miles("--data", type=Path, help="folder of <name>/<name>.json")
    miles("--combined", type=int, help="the variant with all images in one, of up to this many")
    miles("--context-tokens", type=int, help="prompts are cut to it; 4096, or less for the model")
    miles("--image-tokens", type=int, help="what an image counts; as the model, remote 576")
    miles(
        "--tokenizer", type=Path, help="with --url: tokenizer.json to cut by; else nothing is cut"
    )
    server = parser.add_argument_group("a server instead of an engine here").add_argument
    server("--url", help="such as http://127.0.0.1:8000; OPENAI_API_KEY is sent if set")
    server("--concurrency", type=int, default=4)
    server("--kv-cache-in-model", action="store_true", help="policy in the model's name")
    server("--no-kv-cache-field", dest="kv_cache_field", action="store_false", help="a foreign one")
    return parser


if __name__ == "__main__":
    sys.exit(main())
