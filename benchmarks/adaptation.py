"""Does a learner use its support, and how many inner steps does it need?

The learners that a benchmark trained are judged on test once more, without training, and its closed
forms of ours, fitted with what valid chose at each k:

- ``steps``: with 0 to 10 inner steps, where they take any;
- ``controls``: with shuffled labels of the support, another user's support, an empty one. The gain
  is paired over users: the mean of (own support - control), above zero: the support helped.
- ``cost``: seconds of the trainings (the mean over splits, as they were run), milliseconds to adapt
  to one user's support (the median of 50 users, one after the other), bytes of his state.

    python benchmarks/adaptation.py engine --json results/engine/adaptation.json
    python benchmarks/adaptation.py melu --data_path ../shared/data --json FILE
    python benchmarks/adaptation.py learners --rows Blend,MetaRidge --json FILE

With ``--rows`` these are judged, and the figures of all others stay as the JSON has them; times
are then of several runs.
The benchmark must have run: its runs hold the trained models; a learner whose units were put back
from a file has none and is left out. Beside the JSON a page is written.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from recbole_meta.benchmark import Benchmark, Judging, Row
from recbole_meta.choice import choose_model
from recbole_meta.errors import DataError, SettingError, nearest
from recbole_meta.evaluation.controls import CONTROLS, Control
from recbole_meta.evaluation.metrics import sign
from recbole_meta.evaluation.significance import holm, paired_gain, wilcoxon_p
from recbole_meta.fitting import fit_learner, judge_learner, load_learner
from recbole_meta.outcome import valid_metric
from recbole_meta.reading import read_benchmark
from recbole_meta.stage import Stage, load_stage
from recbole_meta.trainer import Trainer
from recbole_meta.unit import Site

STEPS = range(11)
TIMED = 50  # users whose adapting is timed
DIVERGED = 100.0  # an error beyond this many grades says nothing


class Learner:
    """A learner of one split, trained, or a closed form with the settings of each k."""

    def __init__(self, site: Site, judging: Judging, split: int, row: Row) -> None:
        self.choice, self.prepared = choose_model(row.model), site.prepared(judging, split)
        self.seed, self.metric = row.seeds[0], valid_metric(self.prepared).name
        folder = site.folder / judging.name / str(split)
        name = row.unit(None, self.seed, site.benchmark.seed)
        unit = json.loads((folder / f"{name}.json").read_text("utf-8"))
        self.chosen: dict[str, Any] = unit["chosen"]
        run = site.folder / next(iter(unit["runs"].values()))
        self.train_seconds = json.loads((run / "result.json").read_text("utf-8"))["seconds"]["fit"]
        training = folder / "training" / name
        again = training / "refit" / "best.pt"
        self.path = None
        if row in site.benchmark.trained_rows:
            self.path = again if again.is_file() else training / "best.pt"
            if not self.path.is_file():
                raise FileNotFoundError(self.path)
        self._made: dict[str, tuple[Stage, Trainer]] = {}
        self.at(self.prepared.shots[-1])

    def at(self, k: int) -> None:
        """The model of this k: one for all of them, where it was trained."""
        settings = self.chosen.get(str(k), next(iter(self.chosen.values())))
        key = json.dumps(settings)
        if key not in self._made:
            shots = self.prepared.shots[0]
            stage = load_stage(self.choice, self.prepared, "test", shots, self.seed, settings)
            if self.path is None:
                self._made[key] = stage, fit_learner(self.choice, stage)
            else:
                self._made[key] = stage, load_learner(self.choice, stage, self.path)
        self.stage, self.trainer = self._made[key]

    @property
    def steps(self) -> int | None:
        """The inner steps that it was trained with; None: it takes none."""
        return getattr(self.trainer.model.settings, "inner_steps", None)

    def one_label(self) -> bool:
        """Whether all examples of all supports had the same label when it was judged last."""
        support = self.trainer.model.support
        return len(support.label[support.mask > 0].unique()) == 1

    def judged(
        self, k: int, steps: int | None = None, control: Control | None = None
    ) -> dict[str, float]:
        """The metric of each test user."""
        self.at(k)
        model = self.trainer.model
        trained = model.settings
        if steps is not None:
            model.settings = replace(trained, inner_steps=steps)
        try:
            found = judge_learner(self.trainer, self.choice, self.stage, "test", k, control)
        finally:
            model.settings = trained
        values = found.metrics[found.primary][self.metric]
        return dict(zip(found.arrays["task"].tolist(), values.tolist(), strict=True))

    def cost(self) -> tuple[float, int]:
        """Milliseconds to adapt to one support, and bytes of the state, as judged last."""
        model, took = self.trainer.model, []
        size = 0
        users = (model.support.mask.sum(1) > 0).nonzero().squeeze(1)[:TIMED]  # [T]
        with torch.no_grad():
            for user in users.split(1):
                start = time.perf_counter()
                state = model.adapt_tasks(user)
                took.append(time.perf_counter() - start)
                size = sum(part.nbytes for part in state.values())
        return 1e3 * float(np.median(took)), size


def pooled(learners: Sequence[Learner], k: int, **how: Any) -> Any:
    """The metric of each user, the mean over the splits in which he is judged, by name."""
    of_user: dict[str, list[float]] = {}
    for learner in learners:
        for user, value in learner.judged(k, **how).items():
            of_user.setdefault(user, []).append(value)
    return np.array([np.mean(of_user[user]) for user in sorted(of_user)])


def examine(site: Site, judging: Judging, row: Row) -> Iterator[dict[str, Any]]:
    """Every figure of one learner on one entry, over its splits."""
    learners = [Learner(site, judging, split, row) for split in judging.splits]
    about = {"entry": judging.name, "model": row.name, "metric": learners[0].metric}
    for k in learners[0].prepared.shots:
        if k == 0:  # nothing to adapt to
            continue
        own = pooled(learners, k)
        if (trained := learners[0].steps) is not None:
            for n in STEPS:
                try:
                    figure = mean(pooled(learners, k, steps=n))
                except DataError:  # scores that are no numbers
                    figure = None
                yield about | {"k": k, "steps": n, "trained": trained, "mean": figure}
        for name, control in CONTROLS.items():
            if name == "shuffled" and all(learner.one_label() for learner in learners):
                continue  # a ranking's support without negatives
            values = pooled(learners, k, control=control)
            direction = sign(about["metric"])
            gain = paired_gain(direction * own, direction * values)
            yield about | {
                "k": k, "control": name, "own": mean(own), "mean": mean(values),
                "gain": round(gain.mean, 4), "low": round(gain.low, 4), "high": round(gain.high, 4),
                "p": wilcoxon_p(own, values),
            }  # fmt: skip
    pooled(learners, k)  # its supports are those that the cost is of
    costs = [learner.cost() for learner in learners]
    yield about | {
        "k": k, "cost": "cost", "adapt_ms": round(float(np.mean([ms for ms, _ in costs])), 3),
        "state_bytes": max(size for _, size in costs),
        "train_seconds": round(float(np.mean([each.train_seconds for each in learners])), 1),
    }  # fmt: skip


def mean(values: Any) -> float:
    return round(float(np.nanmean(values)), 4)


def page(name: str, found: list[dict[str, Any]]) -> str:
    """The figures as tables, one of steps and one of controls per entry."""
    lines = [
        f"# {name}: what the support does",
        "",
        f"Made by `benchmarks/adaptation.py {name}` from the benchmark's trained models; all",
        "figures are in `adaptation.json`. Test users, each the mean over his splits.",
        "",
        "Steps: **bold** as trained. Controls: how much better a learner is with its own support;",
        "`*`: better at p < .01 (Wilcoxon over users, Holm over this page); without it nothing",
        "shows that the support helped. No figure: all labels are the same, nothing is to shuffle.",
    ]
    for entry in dict.fromkeys(row["entry"] for row in found):
        here = [row for row in found if row["entry"] == entry]
        metric = here[0]["metric"]
        if any(row.get("steps") is not None for row in here):
            lines += ["", f"## {entry}: {metric} after n inner steps", ""]
            lines += table("n = ", "steps", STEPS, here, step_cell)
        lines += ["", f"## {entry}: {metric}, and gain over a control", ""]
        lines += table("", "control", ["own", *CONTROLS], here, control_cell)
        costs = [row for row in here if "cost" in row]
        if costs:
            lines += ["", f"## {entry}: cost", ""]
            lines += ["| model | training, s | adapting to k rows, ms | k | state, bytes |"]
            lines += ["|---" * 5 + "|"]
            lines += [cost_line(row) for row in costs]
    return "\n".join(lines) + "\n"


def table(
    label: str,
    key: str,
    columns: Sequence[Any],
    rows: list[dict[str, Any]],
    cell: Callable[[dict[str, Any]], str],
) -> list[str]:
    """A row per model and k; ``key`` tells the column of a figure."""
    names = [f"{label}{column}" for column in columns]
    lines = ["| model | k | " + " | ".join(names) + " |", "|---" * (len(names) + 2) + "|"]
    figures = [row for row in rows if key in row]
    for model, k in dict.fromkeys((row["model"], row["k"]) for row in figures):
        mine = [row for row in figures if (row["model"], row["k"]) == (model, k)]
        shown = {row[key]: cell(row) for row in mine} | {"own": f"{mine[0].get('own', 0):.3f}"}
        cells = [shown.get(column, "") for column in columns]
        lines.append(f"| {model} | {k} | " + " | ".join(cells) + " |")
    return lines


def step_cell(row: dict[str, Any]) -> str:
    diverged = row["mean"] is None or row["mean"] > DIVERGED
    mean = "diverges" if diverged else f"{row['mean']:.3f}"
    return f"**{mean}**" if row["steps"] == row["trained"] else mean


def cost_line(row: dict[str, Any]) -> str:
    cells = (row["model"], row["train_seconds"], row["adapt_ms"], row["k"], row["state_bytes"])
    return "| " + " | ".join(map(str, cells)) + " |"


def control_cell(row: dict[str, Any]) -> str:
    star = "*" if row["p_holm"] < 0.01 and row["gain"] > 0 else ""
    return f"{row['gain']:+.3f} [{row['low']:+.3f}, {row['high']:+.3f}]{star}"


def judged_here(benchmark: Benchmark, row: Row) -> bool:
    """Learners that train, and closed forms of ours; floors and rules are none."""
    choice = choose_model(row.model)
    return choice.ours and (row in benchmark.trained_rows or choice.group == "ours")


def chosen_rows(benchmark: Benchmark, names: str | None) -> list[Row]:
    """The rows of these names, of all where there are none."""
    rows = [*benchmark.rows, *benchmark.trained_rows]
    if names is None:
        return rows
    wanted = [name.strip() for name in names.split(",")]
    known = [row.name for row in rows if judged_here(benchmark, row)]
    for name in wanted:
        if name not in known:
            raise SettingError(f"{benchmark.name} has no learner '{name}'. {nearest(name, known)}")
    return [row for row in rows if row.name in wanted]


def kept_figures(path: Path, benchmark: Benchmark) -> dict[tuple[str, str], list[dict[str, Any]]]:
    """The figures of an older run, by entry and learner."""
    try:
        found = [(row["entry"], row["model"], row) for row in json.loads(path.read_text("utf-8"))]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise DataError(f"{path} holds no figures to keep: {error}") from error
    kept: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for entry, model, row in found:
        kept.setdefault((entry, model), []).append(row)
    entries = {judging.name for judging in benchmark.settings}
    names = {row.name for row in (*benchmark.rows, *benchmark.trained_rows)}
    if not any(entry in entries and model in names for entry, model in kept):
        raise DataError(f"{path} has no figures of {benchmark.name}, which --rows would keep.")
    return kept


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("benchmark")
    parser.add_argument("--data_path", default="dataset")
    parser.add_argument("--prepared_path", default="dataset/prepared")
    parser.add_argument("--runs", default="runs")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", default=None)
    parser.add_argument("--rows", help="of these learners alone: NAME,NAME; others as they are")
    options = parser.parse_args()
    if options.rows and not options.json:
        parser.error("--rows keeps the other rows of the file that --json names")
    torch.set_num_threads(options.threads)
    benchmark = read_benchmark(options.benchmark)
    site = Site(benchmark, options.data_path, options.prepared_path, Path(options.runs))
    asked = chosen_rows(benchmark, options.rows)
    kept = kept_figures(Path(options.json), benchmark) if options.rows else {}
    found: list[dict[str, Any]] = []
    for judging in benchmark.settings:
        if judging.trained_from != judging.name:
            continue
        for row in (*benchmark.rows, *benchmark.trained_rows):
            if not judged_here(benchmark, row):
                continue
            about, old = f"{judging.name}, {row.name}", kept.pop((judging.name, row.name), [])
            if row in asked:
                try:
                    old = list(examine(site, judging, row))
                    print(f"{about}: done", flush=True)
                except FileNotFoundError:
                    print(f"{about}: its trained model is not there", flush=True)
            elif not old:
                print(f"{about}: the file has no figures of it", flush=True)
            found += old
    for entry, model in kept:
        print(f"{entry}, {model}: left out, since it is not in the page", flush=True)
    tested = {i: float(f"{row['p']:.3g}") for i, row in enumerate(found) if "p" in row}
    for i, p in holm(tested).items():
        found[i] |= {"p": tested[i], "p_holm": float(f"{p:.3g}")}
    text = page(benchmark.name, found)
    print(text)
    if options.json:
        path = Path(options.json)
        path.write_text("[\n" + ",\n".join(json.dumps(row) for row in found) + "\n]\n", "utf-8")
        path.with_suffix(".md").write_text(text, "utf-8")


if __name__ == "__main__":
    main()
