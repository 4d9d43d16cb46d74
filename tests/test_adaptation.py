"""Whether a support helps: the unit is the user, and only who is better has a star."""

import importlib.util
import json
from pathlib import Path

import pytest
import yaml

from recbole_meta.errors import DataError, SettingError
from recbole_meta.sweep import run_benchmark

FILE = Path(__file__).resolve().parents[1] / "benchmarks" / "adaptation.py"


@pytest.fixture(scope="module")
def program():
    spec = importlib.util.spec_from_file_location("adaptation", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Split:
    """Stands for a learner of one split."""

    def __init__(self, values: dict[str, float]) -> None:
        self.values = values

    def judged(self, k: int, **how) -> dict[str, float]:
        return {user: value + how.get("steps", 0) for user, value in self.values.items()}


def test_a_user_of_two_splits_counts_once(program) -> None:
    splits = [Split({"b": 0.5, "a": 0.25}), Split({"c": 1.0, "a": 0.75})]
    assert program.pooled(splits, 5).tolist() == [0.5, 0.5, 1.0]
    assert program.pooled(splits, 5, steps=2).tolist() == [2.5, 2.5, 3.0]


@pytest.mark.parametrize(
    ("gain", "p", "star"), [(0.05, 0.001, True), (-0.05, 0.001, False), (0.05, 0.02, False)]
)
def test_only_a_gain_has_a_star(program, gain, p, star) -> None:
    row = {"gain": gain, "low": gain - 0.01, "high": gain + 0.01, "p_holm": p}
    assert program.control_cell(row).endswith("*") == star


def test_the_page_marks_what_was_trained_and_what_diverges(program) -> None:
    about = {"entry": "time", "model": "MAML", "metric": "mae", "k": 5}
    found = [about | {"steps": n, "trained": 1, "mean": None if n > 1 else 0.5} for n in range(11)]
    found.append(about | {"control": "empty", "own": 0.5, "mean": 0.6, "gain": 0.1, "low": 0.05,
                          "high": 0.15, "p": 0.001, "p_holm": 0.002})  # fmt: skip
    text = program.page("made", found)
    cells = ["MAML", "5", "0.500", "**0.500**", *["diverges"] * 9]
    assert f"| {' | '.join(cells)} |" in text
    assert "| MAML | 5 | 0.500 |  |  | +0.100 [+0.050, +0.150]* |" in text


def test_the_page_has_what_a_learner_costs(program) -> None:
    about = {"entry": "time", "model": "MAML", "metric": "mae", "k": 5}
    cost = {"cost": "cost", "adapt_ms": 1.25, "state_bytes": 4096, "train_seconds": 61.5}
    assert "| MAML | 61.5 | 1.25 | 5 | 4096 |" in program.page("made", [about | cost])


def test_closed_forms_are_fitted_with_what_valid_chose(
    program, tmp_path, sample_path, monkeypatch, capsys
) -> None:
    """Each k its own settings; what was judged is what the benchmark judged."""
    curve = {"shots": [0, 1, 3], "reserve": 4, "horizon": None, "eligible": 8, "folds": 0}
    page = {
        "dataset": "tiny", "seed": 3, "trials": 3,
        "settings": [{"name": "random", "protocol": "user_cold_curve", "splits": [0],
                      "changed": curve | {"order": "random"}}],
        "rows": [{"name": "Pop", "model": "Pop"},
                 {"name": "SubsetRidge", "model": "SubsetRidge",
                  "grid": {"reg_weight": [1e-4, 0.01, 10.0]}},
                 {"name": "PriorRidge", "model": "PriorRidge"}],
        "trained": {"searches": [{"setting": "random", "split": 0, "shots": 3, "trials": 1}],
                    "shots": [3], "rows": []},
    }  # fmt: skip
    (tmp_path / "made.yaml").write_text(yaml.safe_dump(page), "utf-8")
    place, where = str(tmp_path / "made.yaml"), (str(sample_path), str(tmp_path / "prepared"))
    run_benchmark(place, *where, tmp_path / "runs")
    words = ["adaptation", place, "--data_path", where[0], "--prepared_path", where[1],
             "--runs", str(tmp_path / "runs"), "--json", str(tmp_path / "found.json")]  # fmt: skip
    monkeypatch.setattr("sys.argv", words)
    program.main()
    assert "SubsetRidge: done" in capsys.readouterr().out
    found = json.loads((tmp_path / "found.json").read_text("utf-8"))
    assert {row["model"] for row in found} == {"SubsetRidge", "PriorRidge"}, "Pop is no learner"
    unit = json.loads((tmp_path / "runs/made/random/0/SubsetRidge.json").read_text("utf-8"))
    for k in (1, 3):
        run = tmp_path / "runs" / "made" / unit["runs"][str(k)]
        judged = json.loads((run / "result.json").read_text("utf-8"))["metrics"]["ndcg@10"]
        here = [r for r in found if r["model"] == "SubsetRidge" and r["k"] == k and "own" in r]
        assert [row["own"] for row in here] == [pytest.approx(judged, abs=1e-4)] * 2
        assert {row["control"] for row in here} == {"swapped", "empty"}
    kept = [row | {"mean": 9.0} if row["model"] == "SubsetRidge" else row for row in found]
    (tmp_path / "found.json").write_text(json.dumps(kept), "utf-8")
    monkeypatch.setattr("sys.argv", [*words, "--rows", "PriorRidge"])
    program.main()
    assert "SubsetRidge: done" not in capsys.readouterr().out
    untimed = [{k: v for k, v in row.items() if k != "adapt_ms"} for row in kept]
    again = json.loads((tmp_path / "found.json").read_text("utf-8"))
    assert [{k: v for k, v in row.items() if k != "adapt_ms"} for row in again] == untimed
    (tmp_path / "runs/made/random/0/PriorRidge.json").unlink()
    program.main()
    assert "PriorRidge: its trained model is not there" in capsys.readouterr().out
    assert json.loads((tmp_path / "found.json").read_text("utf-8")) == again, "nothing is lost"
    monkeypatch.setattr("sys.argv", [*words, "--rows", "PriorRige"])
    with pytest.raises(SettingError, match=r"no learner .PriorRige.\. Did you mean .PriorRidge"):
        program.main()
    monkeypatch.setattr("sys.argv", [*words, "--rows", "PriorRidge"])
    for text, said in (
        ("[]", "has no figures of made"),
        ("[", "holds no figures"),
        ("[1]", "holds"),
    ):
        (tmp_path / "found.json").write_text(text, "utf-8")
        with pytest.raises(DataError, match=said):
            program.main()
