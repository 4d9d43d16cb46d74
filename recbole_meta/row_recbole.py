"""RecBole's own models, unmodified, where rows with several objectives are judged.

A model learns the pairs of train whose label of one binary objective is 1 (the setting
``objective``), ranks the catalogue, and is judged on that objective's rankings alone, by the judge
of the multi-task models: the same users, the same hidden items, the same candidates.
"""

import time
from collections.abc import Mapping
from tempfile import gettempdir
from typing import Any

import numpy as np

from recbole_meta.choice import check_settings, model_page
from recbole_meta.compat import contained, recbole_config
from recbole_meta.data.row_loader import LabelledRows
from recbole_meta.data.row_splits import SPLITS, RowSplits
from recbole_meta.errors import SettingError, nearest
from recbole_meta.evaluation.rows import RowsJudged
from recbole_meta.ranker import USERS, Ranker, choose_ranker, fit_ranker
from recbole_meta.row_fitting import RowFit, judge_of, row_dataset

OBJECTIVE = "objective"  # the setting: a binary one
_METRIC = "ndcg@10"  # chooses the epoch, on valid


def check_ranker_settings(name: str, given: Mapping[str, Any], folder: RowSplits) -> dict[str, Any]:
    """All settings of a model of RecBole's: those given over its page, and the objective that it
    learns; refused where they cannot be.
    """
    choice = choose_ranker(name)
    settings = dict(given)
    objective = settings.pop(OBJECTIVE, None)
    known = [each for each, one in folder.objectives.items() if one.type == "binary"]
    if objective not in known:
        raise SettingError(
            f"{name}: '{OBJECTIVE}' is {objective!r}: it says whose positives the model learns. "
            f"{nearest(str(objective), known)}"
        )
    check_settings(choice, settings)
    return model_page(choice) | settings | {OBJECTIVE: objective}


class RankerRowFit(RowFit):
    """A fitted model of RecBole's: rankings of one objective."""

    def test(self, folder: RowSplits, most_users: int | None = None) -> RowsJudged:
        start = time.perf_counter()
        judge = judge_of(folder, "test", most_users)
        with contained():
            judged = judge.judge_ranking(self.model, self.settings[OBJECTIVE])
        self.seconds["evaluate"] = time.perf_counter() - start
        return judged


def fit_ranker_of_rows(
    name: str,
    folder: RowSplits,
    seed: int,
    settings: Mapping[str, Any],
    device: str = "cpu",
    most_users: int | None = None,
) -> RankerRowFit:
    """RecBole's model fitted by RecBole's trainer, and judged on valid by ``most_users``."""
    start = time.perf_counter()
    used = check_ranker_settings(name, settings, folder)
    objective, choice = used[OBJECTIVE], choose_ranker(name)
    values = {
        "eval_batch_size": row_dataset(folder).item_num * USERS,
        "seed": seed,
        "reproducibility": True,
        "show_progress": False,
        **{key: value for key, value in used.items() if key != OBJECTIVE},
        "data_path": str(folder.path.parent),
        "benchmark_filename": list(SPLITS),
        "checkpoint_dir": gettempdir(),
    }
    pages = [path for path in (choice.defaults(), folder.path / "recbole.yaml") if path]
    config = recbole_config(choice.cls, folder.name, pages, values, device)
    judge = judge_of(folder, "valid", most_users)

    def loaders() -> tuple[Any, Any]:
        from recbole.data import create_dataset
        from recbole.data.utils import create_samplers, get_dataloader

        dataset = create_dataset(config)
        train, valid, test = dataset.build()
        liked = positives(folder, train, objective)
        train.inter_feat = train.inter_feat[liked]
        sampler = create_samplers(config, dataset, [train, valid, test])[0]
        loader = get_dataloader(config, "train")(config, train, sampler, shuffle=True)
        return loader, valid  # valid_data is asked for, and read by ``score`` alone

    def score(ranker: Ranker, dataset: Any) -> float:
        return judge.judge_ranking(ranker, objective).means()[f"{objective}/{_METRIC}"]

    fit = fit_ranker(choice, config, loaders, score)
    seconds = {"fit": time.perf_counter() - start}
    with contained():
        valid = judge.judge_ranking(fit.ranker, objective)
    return RankerRowFit(fit.ranker, valid, used, seconds, fit.epochs, fit.history)


def positives(folder: RowSplits, train: Any, objective: str) -> "np.ndarray[Any, Any]":
    """The places of the rows of RecBole's train whose label of the objective is 1."""
    rows = LabelledRows(folder, "train", train)
    liked = (rows.labels[objective] == 1).numpy()
    n_items = train.item_num
    wanted = rows.user[liked] * n_items + rows.item[liked]
    user, item = (train.inter_feat[f].numpy() for f in (train.uid_field, train.iid_field))
    return np.flatnonzero(np.isin(user * n_items + item, wanted))
