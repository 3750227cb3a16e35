"""What the documents say about the code is what the code says."""

import re
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml

import lookm
from docs.generate import detail
from docs.generate.families import families_table
from lookm.models.detail import Detail
from lookm.models.families import FAMILIES
from lookm.policy import PRESETS, parse

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
DOCUMENTS = ("README.md", "ARCHITECTURE.md", "CONTRIBUTING.md")


def tracked_files():
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    return [ROOT / line for line in listed.stdout.splitlines()]


def test_the_readme_has_every_preset():
    table = README.split("| `kv_cache` | keeps | merges |")[1].split("\n\n")[0]
    named = set(re.findall(r"`([a-z0-9-]+)(?:@[\d.]+)?`", table))
    assert named == set(PRESETS)


def test_policies_the_readme_shows_are_valid():
    shown = set(re.findall(r"[`\":](?:llava-demo:)?([a-z0-9-]+@[\d.]+)[`\"]", README))
    assert "look-m@0.2" in shown
    for policy in shown:
        parse(policy)


def test_the_readme_has_the_families_table():
    assert families_table() in README


def test_make_targets_that_the_documents_name_exist():
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z0-9-]+):", makefile, re.MULTILINE))
    for document in DOCUMENTS:
        text = (ROOT / document).read_text()
        named = set(re.findall(r"^(?:\$ )?make ([a-z0-9-]+)", text, re.MULTILINE))
        assert named <= targets, document


def test_files_that_the_documents_name_exist():
    for document in DOCUMENTS:
        text = (ROOT / document).read_text()
        for path in re.findall(r"`((?:lookm|server|tests|docker)/[\w./-]+)`", text):
            assert (ROOT / path).exists(), (document, path)
        for path in re.findall(r"\]\(([\w./-]+\.md)\)", text):
            assert (ROOT / path).exists(), (document, path)


def test_the_steps_that_the_architecture_draws_are_where_it_says():
    drawn = (ROOT / "ARCHITECTURE.md").read_text().splitlines()
    steps = [re.match(r"[ 0-9]+((?:lookm|server)/\S+\.py) +([\w.]+) ", line) for line in drawn]
    found = [step.groups() for step in steps if step is not None]
    assert len(found) > 15
    for path, name in found:
        text = (ROOT / path).read_text()
        for part in name.split("."):
            assert re.search(rf"(?:class|def) {part}\b", text), (path, name)


def test_the_lock_pins_every_dependency_and_the_agreed_torch():
    lock = (ROOT / "requirements.lock").read_text()
    pinned = dict(re.findall(r"^([A-Za-z0-9_.-]+)==([^\s;]+)", lock, re.MULTILINE))
    names = {name.lower().replace("_", "-") for name in pinned}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    for requirement in wanted:
        name = re.split(r"[<>=;\[ ]", requirement)[0].lower().replace("_", "-")
        assert name in names, requirement
    assert pinned["torch"] == "2.13.0"
    assert "torchvision" not in names


def test_ci_runs_what_a_contributor_runs():
    assert "make check test test-extras" in (ROOT / ".ci" / "run").read_text()
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())
    steps = [step.get("run") for job in workflow["jobs"].values() for step in job["steps"]]
    assert [step for step in steps if step] == [
        ".ci/chromium",
        "make check test test-extras",
        "make release",
    ]


def test_a_commit_is_checked_by_the_tools_of_make_check():
    makefile = (ROOT / "Makefile").read_text()
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    for hook in hooks:
        tool = hook["entry"].removeprefix(".venv/bin/").removesuffix(" --fix")
        assert f"$(BIN)/{tool}" in makefile, hook["id"]


def test_each_row_of_architectures_table_is_held_by_an_import_contract():
    table = (ROOT / "ARCHITECTURE.md").read_text().split("## What each folder knows")[1]
    rows = set(re.findall(r"^\| `([^`]+)` \|", table.split("\n## ")[0], re.MULTILINE))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    contracts = {each["name"] for each in project["tool"]["importlinter"]["contracts"]}
    assert rows <= contracts, rows - contracts


def test_the_changelog_begins_with_this_version():
    newest = re.search(r"^## \[([\d.]+)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert newest[1] == project["version"] == lookm.__version__


def test_no_file_depends_on_another_machine():
    hosts = ("pypi" + ".org", "/work" + "/", "../" + "shared")
    for path in tracked_files():
        if path.suffix in {".py", ".md", ".toml", ".yml", ".lock", ""} and path.is_file():
            text = path.read_text(errors="ignore")
            assert not any(host in text for host in hosts), path


def test_files_and_functions_stay_small():
    for path in tracked_files():
        if path.suffix == ".py" and path.parts[len(ROOT.parts)] in {"lookm", "server"}:
            assert len(path.read_text().splitlines()) <= 330, path


def test_the_page_of_detail_has_what_the_ladders_say():
    written = detail.PATH.read_text(encoding="utf-8")
    assert written == detail.page(written), "run make docs"
    families = {model_type for model_type, *_ in detail.PUBLISHED.values()} | {"qwen2_vl"}
    assert families == set(FAMILIES)


@pytest.mark.parametrize(
    ("checkpoint", "low", "auto", "high"),
    [
        ("LLaVA-1.5", 576, 576, 576),
        ("InternVL3", 256, 13 * 256, 13 * 256),
        ("Idefics3 8B", 169, 13 * 169, 13 * 169),
        ("Gemma 3", 256, 256, 3 * 256),
        ("Pixtral 12B", 27 * 37, 48 * 64, 48 * 64),
    ],
)
def test_levels_of_published_checkpoints(checkpoint, low, auto, high):
    asked = [Detail("low"), Detail("auto"), Detail("high")]
    assert [detail.tokens(checkpoint, each) for each in asked] == [low, auto, high]
