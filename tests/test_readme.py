"""What the README and the pages of docs tell one to type: commands are read, Python runs."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from recbole_meta import cli
from recbole_meta.choice import check_keys, choose_model, knows
from recbole_meta.cli import judging, tables
from recbole_meta.quick_start import check_run, protocol_settings, split_settings
from recbole_meta.settings import load_properties

ROOT = Path(__file__).resolve().parents[1]
PROGRAMS = (["recbole-meta"], ["python", "run_recbole_meta.py"])


def text() -> str:
    """The README, and the pages of docs."""
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    return "\n".join(page.read_text(encoding="utf-8") for page in pages)


def blocks(language: str) -> list[str]:
    """The fenced blocks of a language, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text(), re.M | re.S)


def commands() -> list[list[str]]:
    """Every command of ours in the bash blocks, as words."""
    lines = [line for block in blocks("bash") for line in block.replace("\\\n", " ").splitlines()]
    words = [shlex.split(part, comments=True) for line in lines for part in line.split("&&")]
    return [found for found in words if any(found[: len(p)] == p for p in PROGRAMS)]


def test_the_readme_has_what_is_tested_here():
    assert blocks("python"), "no ```python block in README.md"
    programs = {words[0] for words in commands()}
    assert programs == {"recbole-meta", "python"}, "README.md shows neither or only one program"
    mentioned = re.findall(r"(?:^|&& ?)\s*(?:recbole-meta|python run_recbole_meta\.py)\b",
                           "".join(blocks("bash")), re.M)  # fmt: skip
    assert len(mentioned) == len(commands())


def test_links_lead_somewhere():
    for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        content = page.read_text(encoding="utf-8")
        heads = re.findall(r"^#+ (.*)$", re.sub(r"```.*?```", "", content, flags=re.S), re.M)
        places = {re.sub(r"[^\w -]", "", head.lower()).replace(" ", "-") for head in heads}
        for link in re.findall(r"\]\(([^)]*)\)", content):
            if link.startswith("#"):
                assert link[1:] in places, f"{page.name}: {link}"
            elif not link.startswith("http"):
                assert (page.parent / link.split("#")[0]).exists(), f"{page.name}: {link}"


@pytest.mark.parametrize("words", commands(), ids=" ".join)
def test_a_command_is_read(words):
    """By the parser; models, settings and protocol of a run exist and fit each other."""
    ours = words[0] == "recbole-meta"
    parser, rest = (cli._parser(), words[1:]) if ours else (cli._run_parser(), words[2:])
    options, free = parser.parse_known_args(rest)
    assert options.takes_settings or not free, free
    options.settings = cli._free(free)
    if options.function is judging._run:
        given = judging._changed(options)
        choices = [choose_model(name) for name in options.model.split(",")]
        _, theirs = split_settings(options.protocol, given)
        check_keys(choices, theirs)
        names = protocol_settings(options.protocol)
        for choice in choices:
            read = {k: v for k, v in given.items() if k in names or knows(choice, k)}
            check_run(choice.name, options.protocol, read, options.device, options.threads)
    elif options.function in (tables._benchmark, tables._table):
        load_properties("benchmark", options.name)
    elif options.function is judging._prepare:
        load_properties("protocol", options.protocol)


@pytest.mark.parametrize("number", range(len(blocks("python"))))
def test_a_python_block_runs(number, tmp_path):
    """In an empty folder, with nothing of the other blocks."""
    script = tmp_path / "block.py"
    script.write_text(blocks("python")[number], encoding="utf-8")
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, str(script)], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    left = {path.name for path in tmp_path.iterdir()} - {"block.py"}
    assert left <= {"dataset", "runs"}, "files beside the prepared data and the runs"


def test_the_programs_of_benchmarks_are_those_that_are_there():
    named = set(re.findall(r"python (benchmarks/\w+\.py)", text()))
    assert named == {f"benchmarks/{path.name}" for path in (ROOT / "benchmarks").glob("*.py")}


def test_preparing_is_measured(tmp_path):
    program, file = ROOT / "benchmarks" / "prepare.py", tmp_path / "prepare.json"
    words = [
        sys.executable,
        str(program),
        "--dataset",
        "tiny",
        "--data_path",
        str(ROOT / "dataset"),
    ]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*words, "--json", str(file)], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(file.read_text("utf-8"))
    inter = (ROOT / "dataset" / "tiny" / "tiny.inter").read_text("utf-8")
    assert found["rows"] == len(inter.splitlines()) - 1
    assert found["seconds"] > 0 and found["peak_rss_mb"] > 10
    assert list(tmp_path.iterdir()) == [file], "the prepared folder is a temporary one"
