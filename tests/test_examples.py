"""The examples run, and what they print is what a hand-written computation finds."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from recbole_meta.data.atomic import AtomicFile
from recbole_meta.saved_model import load

ROOT = Path(__file__).resolve().parents[1]
LIKES = [
    "Toy Story (1995)", "Twister (1996)", "Alien (1979)", "Casablanca (1942)",
    "Citizen Kane (1941)",
]  # fmt: skip
ONE_MORE = "English Patient, The (1996)"


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """What ``examples/newcomer.py`` printed: its tables, title -> rows of cells; its model."""
    folder = tmp_path_factory.mktemp("newcomer")
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / "newcomer.py")],
        cwd=folder, env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert {path.name for path in folder.iterdir()} == {"dataset", "runs"}
    *parts, end = done.stdout.strip().split("\n\n")
    tables = {title: rows(table) for title, table in zip(parts[::2], parts[1::2], strict=True)}
    (saved,) = (folder / "runs").rglob("model.pt")
    return tables, end, load(saved)


def rows(table: str) -> list[list[str]]:
    """The cells below the line of dashes, by its columns."""
    _, dashes, *lines = table.splitlines()
    columns = [match.span() for match in re.finditer("-+", dashes)]
    return [[line[start:end].strip() for start, end in columns] for line in lines]


@pytest.fixture(scope="module")
def token(ml100k) -> dict[str, str]:
    """Film -> token; the first one of films that are there twice."""
    file = AtomicFile(ml100k / "ml-100k.item")
    cells = [line.split("\t") for line in file.lines]
    return {f"{title} ({year})": item for item, title, year, _ in reversed(cells)}


def reason(cell: str) -> tuple[str, float]:
    by, _, film = cell.partition(" ")
    return film, float(by)


def test_the_rankings_before_and_after(told, token) -> None:
    tables, _, model = told
    found = tables["PriorRidge: the first ten"]
    ranked = model.adapt([token[film] for film in LIKES]).rank(10)
    assert [row[0] for row in found] == [str(place) for place in range(1, 11)]
    assert [token[row[1]] for row in found] == [item for item, _ in model.adapt().rank(10)]
    assert [token[row[2]] for row in found] == [item for item, _ in ranked]
    assert [row[3] for row in found] == [f"{score:.4f}" for _, score in ranked]


def test_the_reasons_are_films_of_the_support(told, token) -> None:
    """And those without which the score falls most and least, by adapting without each."""
    tables, _, model = told
    top = [row[2] for row in tables["PriorRidge: the first ten"]]
    whole = model.adapt([token[film] for film in LIKES])
    catalogue = [item for item, _ in whole.rank(10**6)]
    moved, mean = {}, {}
    for left in LIKES:
        less = model.adapt([token[film] for film in LIKES if film != left]).score(catalogue)
        by = {item: score - less[item] for item, score in whole.score(catalogue).items()}
        moved[left] = {film: by[token[film]] for film in top}
        mean[left] = sum(by.values()) / len(by)
    assert max(mean.values()) > 1e-3, "else both tables are one"
    for title, shift in (
        ("What moved their scores", dict.fromkeys(LIKES, 0.0)),
        ("The same, less a film's mean over all candidates", mean),
    ):
        assert [row[0] for row in tables[title]] == top
        for film, *cells in tables[title]:
            by = sorted((moved[left][film] - shift[left] for left in LIKES), reverse=True)
            reasons = [reason(cell) for cell in cells]
            assert [gain for _, gain in reasons] == pytest.approx([*by[:2], by[-1]], abs=1e-4)
            for left, gain in reasons:
                assert gain == pytest.approx(moved[left][film] - shift[left], abs=1e-4)
    assert len({row[1].split(" ", 1)[1] for row in tables["What moved their scores"]}) > 1


def test_one_more_like_changes_the_ranking(told, token) -> None:
    tables, end, model = told
    before = [row[2] for row in tables["PriorRidge: the first ten"]]
    found = tables[f"After {ONE_MORE}, too"]
    after = [row[2] for row in found]
    assert after != before and ONE_MORE not in after
    newcomer = model.adapt([token[film] for film in [*LIKES, ONE_MORE]])
    assert [(token[row[2]], row[3]) for row in found] == [
        (item, f"{score:.4f}") for item, score in newcomer.rank(10)
    ]
    was = model.adapt([token[film] for film in LIKES])
    place = {item: str(n) for n, (item, _) in enumerate(was.rank(10**6), start=1)}
    scores = was.score([token[film] for film in after])
    for _, earlier, film, score, by in found:
        assert earlier == place[token[film]]
        assert float(score) - scores[token[film]] == pytest.approx(float(by), abs=2e-4)
    gone = [film for film in before if film not in after]
    assert end == f"No longer among the first ten: {'; '.join(gone)}" and gone
