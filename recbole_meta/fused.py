"""A table of fused rankings of behaviours: weights searched on valid, tested once per seed.

A page of ``properties/fusion`` names trained models (``sources``: a head per objective), ways to
fuse them, settings of gains, and models of the graded target itself. Each source and each of those
models is a unit: one file of what was tried and chosen, one of every user's values on test. What
has its files, made by the page, the settings and the data of today, is not done again.
"""

import json
import logging
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from recbole_meta.benchmark import Row
from recbole_meta.data.behaviours import Behaviours, open_behaviours, prepare_behaviours
from recbole_meta.evaluation.entries import slug
from recbole_meta.evaluation.graded import GradedJudge, Values
from recbole_meta.evaluation.metrics import mean
from recbole_meta.fused_page import FusedPage, Source, fused_page, read_fused
from recbole_meta.fused_recommender import FusedRecommender, FusedSettings, Head
from recbole_meta.fusion import combine, prepared, weight_trials
from recbole_meta.objective_fitting import (
    check_objective_settings,
    fit_model,
    objective_config,
    train_set,
)
from recbole_meta.outcome import thread_limit
from recbole_meta.search import digest
from recbole_meta.settings import load_properties, read_settings
from recbole_meta.tracking import (
    check_writable,
    commit,
    json_text,
    npz_bytes,
    read_finished,
    versions,
    write_atomically,
)

_log = logging.getLogger(__name__)
_PLAIN = {"method": "sum", "scale": "none"}  # of one head: its own ranking

Weights = tuple[float, ...]
Place = tuple[str, Weights]  # a way to fuse, its weights


def run_fused(
    name: str,
    data_path: str = "dataset",
    prepared_path: str = "dataset/prepared",
    runs: str | Path = "runs",
    device: str = "cpu",
) -> Path:
    """Run what is missing of a page, on one thread; the folder of its units."""
    about = fused_page(name)[1]
    behaviours = open_behaviours(
        prepare_behaviours(about.dataset, data_path, prepared_path, about.protocol)
    )
    page = read_fused(name, tuple(behaviours.objectives))
    check_writable(Path(runs))
    folder = Path(runs) / page.name
    folder.mkdir(parents=True, exist_ok=True)
    run = _Run(page, behaviours, folder, device)
    with thread_limit(1):
        for row in page.graded:
            run.unit(row.name, run.graded_row, row)
        for source in page.sources:
            run.unit(source.name, run.source, source)
    return folder


class _Run:
    """The work of a page."""

    def __init__(self, page: FusedPage, behaviours: Behaviours, folder: Path, device: str) -> None:
        self.page, self.behaviours, self.folder, self.device = page, behaviours, folder, device
        self.objectives = tuple(behaviours.objectives)
        self.dataset = train_set(behaviours)
        self.judges = {
            split: GradedJudge(behaviours, split, self.dataset, page.gains)
            for split in ("valid", "test")
        }
        config = objective_config("ObjectivePop", behaviours, page.seeds[0], {}, device)
        self.config = config

    def unit(self, name: str, work: Any, about: Any) -> None:
        """Do it, unless it is there."""
        file = self.folder / f"{slug(name)}.json"
        made_by = self._made_by(about)
        found = read_finished(file)
        if found | made_by == found and file.with_suffix(".npz").is_file():
            return
        start = time.perf_counter()
        entries, arrays = work(about)
        content = made_by | {
            "name": name, "objectives": list(self.objectives), "entries": entries,
            "seconds": round(time.perf_counter() - start, 2),
            "versions": versions(), "commit": commit(),
        }  # fmt: skip
        file.unlink(missing_ok=True)  # no old entries beside new values
        write_atomically(file.with_suffix(".npz"), npz_bytes(arrays))
        write_atomically(file, json_text(content).encode())
        _log.info("%s: done", name)

    def _made_by(self, about: Row | Source) -> dict[str, Any]:
        """What a unit depends on."""
        page = self.page
        if isinstance(about, Row):
            gains = next(iter(page.gains.values()))
            used: Any = [
                check_objective_settings(about.model, trial | {"gains": gains}, self.objectives)
                for trial in about.trials(page.trials)
            ]
            seeds = about.seeds
        else:
            seeds = page.seeds
            used = [
                {name: check_objective_settings(head.model, head.settings, self.objectives)
                 for name, head in about.heads.items()},
                {name: vars(fusion) for name, fusion in page.fusions.items()},
            ]  # fmt: skip
        depends = {"gains": page.gains, "trials": page.trials, "seeds": list(seeds)}
        known = {"sha256": self.behaviours.sha256, "dataset": self.behaviours.name}
        return json.loads(json_text(known | depends | {"settings": used}))

    def graded_row(self, row: Row) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        """A model of the graded target: its settings chosen for each setting of gains."""
        trials = row.trials(self.page.trials)
        scores: dict[str, list[float]] = {gains: [] for gains in self.page.gains}
        for trial in trials:
            for gains in scores:
                values = self._judged(row.model, trial, gains, "valid", row.seeds[0])
                scores[gains].append(mean(values[gains]))
            _log.info("%s, %s: %s", row.name, trial, {g: each[-1] for g, each in scores.items()})
        entries, arrays = [], {}
        for gains, each in scores.items():
            chosen = trials[int(np.argmax(each))]
            closed = not load_properties("model", row.model)["epochs"]
            tests = [
                self._judged(row.model, chosen, gains, "test", seed)
                for seed in (row.seeds[:1] if closed else row.seeds)
            ]
            entry = {"gains": gains, "row": row.name, "kind": "graded", "weights": None,
                     "settings": chosen, "trials": trials, "scores": each,
                     "valid": max(each)}  # fmt: skip
            arrays |= _arrays(len(entries), gains, self.objectives, tests)
            entries.append(entry | _seeds(gains, tests))
        return entries, arrays | {"task": self.judges["test"].tasks}

    def _judged(
        self, model: str, settings: Mapping[str, Any], gains: str, split: str, seed: int
    ) -> Values:
        """By the ranking of a model of the graded target, whose epoch is chosen on valid."""
        settings = {**settings, "gains": self.page.gains[gains]}

        def values(fitted: Any, split: str) -> Values:
            main = self.objectives[0]
            return self.judges[split].judge(lambda users: fitted.rank(users, main))

        fitted = fit_model(
            model, self.behaviours, seed, settings, self.device,
            lambda fitted: mean(values(fitted, "valid")[gains]),
        )[0]  # fmt: skip
        return values(fitted.eval(), split)

    def source(self, source: Source) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        """Each head alone, and every way to fuse them with equal and with searched weights."""
        trials = weight_trials(len(self.objectives), self.page.trials, self.page.seeds[0])
        heads = source.heads.values()
        trained = any(load_properties("model", head.model)["epochs"] for head in heads)
        seeds = self.page.seeds if trained else self.page.seeds[:1]
        first = self._fused(source, seeds[0])
        tried = {(name, weights) for name in self.page.fusions for weights in trials}
        alone = {("", weights) for weights in trials[1 : len(self.objectives) + 1]}
        valid = self._values(first, "valid", tried | alone)
        entries = self._entries(valid, trials)
        wanted = {(entry["fusion"], tuple(entry["weights"])) for entry in entries}
        tests = []
        for seed in seeds:
            model = first if seed == seeds[0] else self._fused(source, seed)
            tests.append(self._values(model, "test", wanted))
        arrays: dict[str, Any] = {"task": self.judges["test"].tasks}
        for number, entry in enumerate(entries):
            place = entry.pop("fusion"), tuple(entry["weights"])
            each = [values[place] for values in tests]
            entry |= _seeds(entry["gains"], each)
            entry["weights"] = dict(zip(self.objectives, place[1]))
            arrays |= _arrays(number, entry["gains"], self.objectives, each)
        return entries, arrays

    def _entries(self, valid: dict[Place, Values], trials: list[Weights]) -> list[dict[str, Any]]:
        """What is judged on test under each setting of gains: heads, equal and best weights."""
        entries = []
        for gains in self.page.gains:
            for objective, weights in zip(self.objectives, trials[1:]):
                entries.append({"gains": gains, "row": f"{objective} alone", "kind": "single",
                                "fusion": "", "weights": weights,
                                "valid": mean(valid["", weights][gains])})  # fmt: skip
            for name in self.page.fusions:
                scores = [mean(valid[name, weights][gains]) for weights in trials]
                for kind, best in (("equal", 0), ("searched", int(np.argmax(scores)))):
                    entries.append({"gains": gains, "row": name, "kind": kind, "fusion": name,
                                    "weights": trials[best], "valid": scores[best]})  # fmt: skip
        return entries

    def _fused(self, source: Source, seed: int) -> FusedRecommender:
        models: dict[str, Any] = {}
        heads = {}
        for objective, head in source.heads.items():
            key = f"{head.model} {digest(head.settings)}"
            if key not in models:
                found = fit_model(head.model, self.behaviours, seed, head.settings, self.device)
                models[key] = found[0].eval()
            heads[objective] = Head(models[key], objective)
        return FusedRecommender(self.config, self.dataset, heads).to(self.config["device"]).eval()

    def _values(
        self, model: FusedRecommender, split: str, wanted: Iterable[Place]
    ) -> dict[Place, Values]:
        """Of every way to fuse and its weights; the heads rank each user once."""
        judge, wanted = self.judges[split], sorted(wanted)
        plain = read_settings(
            FusedSettings, {**load_properties("model", "FusedRecommender"), **_PLAIN}, "heads"
        )
        fusions = {"": plain, **self.page.fusions}
        order = {name: tuple(self.objectives.index(each) for each in fusion.funnel)
                 for name, fusion in fusions.items()}  # fmt: skip
        found = {place: judge.empty() for place in wanted}
        for batch in judge.batches():
            with torch.no_grad():
                scores = model.head_scores(batch.user.to(self.config["device"])).cpu()
                hidden = (scores == -torch.inf).all(0)
                last = None, None
                for name, weights in wanted:
                    if last[0] != name:
                        last = name, prepared(scores, fusions[name])
                    fused = combine(last[1], weights, fusions[name], order[name])
                    fused = fused.masked_fill(hidden, -torch.inf)
                    judge.collect(found[name, weights], batch, fused)
        return found


def _seeds(gains: str, tests: list[Values]) -> dict[str, Any]:
    return {"test": [mean(values[gains]) for values in tests]}


def _arrays(
    number: int, gains: str, objectives: tuple[str, ...], tests: list[Values]
) -> dict[str, Any]:
    """Each user's mean over seeds, under the gains and of each objective."""
    names = {"fused": gains} | {name: name for name in objectives}
    return {
        f"{number}/{key}": np.mean([values[name] for values in tests], axis=0)
        for key, name in names.items()
    }
