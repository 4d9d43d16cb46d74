"""Judging the rows of a benchmark on test, with what was best on valid."""

import json
import time
from dataclasses import replace
from typing import Any

from recbole_meta.benchmark import Judging, Row, Settings
from recbole_meta.checkpoint import finish
from recbole_meta.choice import ModelChoice, choose_model, model_page
from recbole_meta.data.prepare import read_protocol
from recbole_meta.data.prepared import Prepared
from recbole_meta.evaluation.entries import slug
from recbole_meta.fitting import fit_learner, judge_all, judge_learner
from recbole_meta.outcome import Outcome, used_settings, valid_metric
from recbole_meta.recbole_fitting import judge_recbole
from recbole_meta.search import Searches
from recbole_meta.stage import Stage, load_stage, stage_config
from recbole_meta.tracking import write_run
from recbole_meta.unit import Site

_OF_BATCHES = ("train_batch_size", "eval_batch_size", "train_neg_sample_args")  # of the loaders


class RowJudge:
    """What comes out for a row on an entry's split, and whether an older result still holds."""

    def __init__(self, site: Site, searches: Searches) -> None:
        self.site, self.searches = site, searches
        self._stages: dict[tuple[str, ...], Stage] = {}

    def closed_form(self, judging: Judging, split: int, row: Row, seed: int) -> dict[str, Any]:
        """Every trial on valid at every k, then the best of each k on test."""
        prepared = self.site.prepared(judging, split)
        choice = choose_model(row.model)
        metric = valid_metric(prepared)
        sign = 1 if metric.bigger else -1
        best: dict[int, tuple[float, Settings, Any, float]] = {}
        scores: list[dict[str, float]] = []
        trials, trainer = row.trials(self.site.benchmark.trials), None
        for trial in trials:
            stage = self._stage(choice, prepared, "valid", seed, trial)
            start, trainer = time.perf_counter(), None  # one fit at a time: they may be large
            config = self._config(choice, prepared, "valid", seed, trial)
            trainer = fit_learner(choice, stage, config=config)
            fit = time.perf_counter() - start
            scores.append({})
            for k in prepared.shots:
                judged = judge_learner(trainer, choice, stage, "valid", k)
                score = judged.means()[metric.name]
                scores[-1][str(k)] = score
                if k not in best or sign * score > sign * best[k][0]:
                    best[k] = (score, trial, judged, fit)
        runs = {}
        for trial in reversed(trials):  # the last one's fit is test's where the training file is
            asked = [k for k, entry in best.items() if entry[1] is trial]
            if not asked:
                continue
            last = self._stage(choice, prepared, "test", seed, trial)
            if trainer is None or trial is not trials[-1] or last is not stage:
                config, trainer = self._config(choice, prepared, "test", seed, trial), None
                trainer = fit_learner(choice, last, config=config)
            for k in asked:
                _, _, valid, fit = best[k]
                start = time.perf_counter()
                test = judge_learner(trainer, choice, last, "test", k)
                seconds = {"fit": fit, "evaluate": time.perf_counter() - start}
                used = used_settings(choice, trainer.config, trial)
                outcome = Outcome(k, valid, test, seconds, used)
                runs[str(k)] = self._write(row, choice, judging, split, prepared, seed, outcome)
        runs = {str(k): runs[str(k)] for k in best}
        named = {str(k): entry[1] for k, entry in best.items()}
        return {"row": row.name, "runs": runs, "chosen": named, "trials": trials, "scores": scores}

    def trained(
        self, judging: Judging, split: int, row: Row, k: int | None, seed: int
    ) -> dict[str, Any] | None:
        """The best settings of the search: RecBole's model at k, a learner at every k (None)."""
        settings = self.searches.best(row, judging)
        if settings is None:
            return None
        prepared = self.site.prepared(judging, split)
        choice = choose_model(row.model)
        name = row.unit(None, seed, self.site.benchmark.seed)
        training = self.site.folder / judging.name / str(split) / "training" / name
        if k is None:
            outcomes = list(judge_all(choice, prepared, seed, settings, folder=training))
        else:
            outcomes = [judge_recbole(choice, prepared, k, seed, settings)]
        runs = {
            str(outcome.k): self._write(row, choice, judging, split, prepared, seed, outcome)
            for outcome in outcomes
        }
        finish(training)
        return {"row": row.name, "runs": runs, "chosen": dict.fromkeys(runs, settings)}

    def chosen(self, row: Row, judging: Judging, k: int | None) -> dict[str, Any]:
        """What a unit of a row that trains says it was made by."""
        shots = (
            read_protocol(judging.protocol, **judging.changed).support_sizes if k is None else (k,)
        )
        return {"chosen": dict.fromkeys(map(str, shots), self.searches.best(row, judging))}

    def agrees(
        self,
        judging: Judging,
        split: int,
        row: Row,
        k: int | None,
        seed: int,
        content: dict[str, Any],
    ) -> bool:
        """The runs are of this row, these shots (None: all), this prepared folder and seed, and
        their settings are the chosen ones over the model's page.
        """
        protocol = read_protocol(judging.protocol, **(judging.changed | {"split": split}))
        shots = [str(k) for k in (protocol.support_sizes if k is None else (k,))]
        if content["row"] != row.name or list(content["runs"]) != shots:
            return False
        choice = choose_model(row.model)
        for shot in shots:
            folder = self.site.folder / content["runs"][shot]
            result = json.loads((folder / "result.json").read_text("utf-8"))
            used = json.loads(json.dumps(model_page(choice) | content["chosen"][shot]))
            config = result["config"]
            if not (
                (folder / "tasks.npz").is_file()
                and result["data"]["sha256"] == self.site.sha256(judging, split)
                and (result["seed"], result["group"]) == (seed, choice.group)
                and content["chosen"][shot].keys() <= config.keys()
                and all(config[key] == used[key] for key in config.keys() & used.keys())
            ):
                return False
        return True

    def _stage(
        self, choice: ModelChoice, prepared: Prepared, phase: str, seed: int, settings: Settings
    ) -> Stage:
        """Loaded once per training file, seed and settings of batches: most rows of ours share
        it.
        """
        values = model_page(choice) | settings
        batches = {name: values[name] for name in _OF_BATCHES if name in values}
        train = prepared.train_name(phase, prepared.shots[0])
        key = (prepared.name, train, str(seed), str(choice.cls.input_type), json.dumps(batches))
        if key not in self._stages:
            while len(self._stages) > 1:  # valid's and test's of one protocol are kept
                self._stages.pop(next(iter(self._stages)))
            self._stages[key] = load_stage(
                choice, prepared, phase, prepared.shots[0], seed, batches
            )
        return self._stages[key]

    def _config(
        self, choice: ModelChoice, prepared: Prepared, phase: str, seed: int, settings: Settings
    ) -> Any:
        """A trial's own Config: what a row sets on a shared one, the next row would find there."""
        return stage_config(choice, prepared, phase, prepared.shots[0], seed, settings)

    def _write(
        self,
        row: Row,
        choice: ModelChoice,
        judging: Judging,
        split: int,
        prepared: Prepared,
        seed: int,
        outcome: Outcome,
    ) -> str:
        named = replace(choice, name=slug(row.name))
        folder = write_run(
            self.site.folder / judging.name / str(split) / "runs", named, prepared, seed, outcome
        )
        return str(folder.relative_to(self.site.folder))
