"""The table of rows from made files: who is compared with whom, and how sure a gain is."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from scipy.stats import wilcoxon

from recbole_meta.row_table import Finished, row_table

METRICS = ["like/ndcg@10", "rating/mae"]
# name -> group, what is added to the metrics on test, the means on valid
ROWS = {
    "Floor": ("floor", [0.0, 0.9], [0.1, 1.0]),
    "Lucky": ("single", [0.5, 0.0], [0.2, 0.8]),  # the best on test, not on valid
    "Sound": ("single", [0.3, 0.3], [0.3, 0.7]),
    "Shared": ("published", [0.35, 0.28], [0.4, 0.6]),
}


def made(folder, name, group, added, valid, seeds=2):
    places = []
    for seed in range(seeds):
        random = np.random.default_rng([seed, *name.encode()])
        values = np.abs(np.array(added)[:, None] + 0.2 * random.normal(size=(2, 30)))
        values[0, :5] = np.nan  # nobody to rank for
        place = folder / name / f"seed{seed}"
        place.mkdir(parents=True)
        np.savez(place / "tasks.npz", task=np.arange(30), **dict(zip(METRICS, values)))
        result = {
            "metrics": dict(zip(METRICS, np.nanmean(values, 1))), "seconds": {"fit": 1.0},
            "valid_metrics": dict(zip(METRICS, valid)), "parameters": 1,
        }  # fmt: skip
        (place / "result.json").write_text(json.dumps(result), "utf-8")
        places.append(place)
    return Finished(name, group, 1, {}, places)


@pytest.fixture(scope="module")
def cells(tmp_path_factory):
    folder = tmp_path_factory.mktemp("table")
    rows = [made(folder, name, *about) for name, about in ROWS.items()]
    page = SimpleNamespace(
        dataset="d", protocol="rows_random", choose=METRICS[0], shown=METRICS, against="Lucky"
    )
    file, _ = row_table("made", page, rows, folder)
    users = {(r.name, m): np.mean([a[m] for a in r.arrays], 0) for r in rows for m in METRICS}
    found = json.loads(file.read_text("utf-8"))
    return {(cell["model"], cell["metric"]): cell for cell in found}, users


def test_the_single_task_model_is_that_which_is_best_on_valid(cells):
    found, users = cells
    for metric, sign in zip(METRICS, (1, -1)):
        gain = sign * np.nanmean(users["Shared", metric] - users["Sound", metric])
        assert found["Shared", metric]["gain_single"] == pytest.approx(gain, abs=1e-5)
        gain = sign * np.nanmean(users["Shared", metric] - users["Lucky", metric])
        assert found["Shared", metric]["gain_against"] == pytest.approx(gain, abs=1e-5)
        assert found["Sound", metric]["gain_single"] is None
        assert all(found["Floor", metric][f"p_{base}"] is None for base in ("floor", "single"))


def test_p_values_are_of_pairs_of_users_and_adjusted_over_all_tests(cells):
    found, users = cells
    bases = {"floor": "Floor", "single": "Sound", "against": "Lucky"}
    p = {
        (row, metric, base): wilcoxon(
            (users[row, metric] - users[other, metric])[~np.isnan(users[row, metric])]
        ).pvalue
        for metric in METRICS
        for row in ("Lucky", "Sound", "Shared")
        for base, other in bases.items()
        if row != other
    }
    largest = 0.0
    for place, key in enumerate(sorted(p, key=p.__getitem__)):
        largest = max(largest, min(1.0, p[key] * (len(p) - place)))
        row, metric, base = key
        assert found[row, metric][f"p_{base}"] == pytest.approx(largest, rel=1e-2)
    said = [cell[f"p_{base}"] for cell in found.values() for base in bases]
    assert sum(each is not None for each in said) == len(p) == 14
    assert min(p.values()) < 0.01 < max(p.values())
