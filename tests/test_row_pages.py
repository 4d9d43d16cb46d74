"""A table of models of rows: made once, resumed, and its figures from the files."""

import json
import shutil

import numpy as np
import pytest
import yaml

from recbole_meta import row_pages
from recbole_meta.cli import main
from recbole_meta.data.row_splits import open_rows, prepare_rows
from recbole_meta.errors import DataError, SettingError
from recbole_meta.row_fitting import judge_of
from recbole_meta.row_pages import read_rows_page, run_rows
from recbole_meta.settings import names
from tests.data.test_row_splits import world

TRAINED = {"epochs": 2, "train_batch_size": 64, "negatives": 1, "embedding_size": 4}
PAGE = {
    "dataset": "made", "protocol": "rows_random", "split_seed": 0, "seeds": [1, 2], "trials": 2,
    "most_users": None, "test_users": None, "choose": "like/ndcg@10",
    "shown": ["like/ndcg@10", "rating/mae", "like/pooled_auc"], "against": None,
    "rows": [
        {"name": "Floor", "model": "ObjectiveRate"},
        {"name": "Single", "model": "SingleTask",
         "fixed": {**TRAINED, "budget": "total", "match": "SharedBottom", "tower_sizes": [4],
                   "match_settings": {"bottom_sizes": [8], "tower_sizes": [4]}}},
        {"name": "Shared", "model": "SharedBottom",
         "fixed": {**TRAINED, "bottom_sizes": [8], "tower_sizes": [4]},
         "grid": {"learning_rate": [0.001, 0.03]}},
        {"name": "EASE", "model": "EASE", "fixed": {"objective": "like"},
         "grid": {"reg_weight": [1.0, 1000.0]}},
    ],
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pages")
    world(folder, n_users=30)
    (folder / "small.yaml").write_text(yaml.safe_dump(PAGE), "utf-8")
    assert go(folder) == 0
    return folder


def go(folder) -> int:
    where = ["--data_path", str(folder), "--prepared_path", str(folder / "prepared")]
    out = ["--runs", str(folder / "runs"), "--results", str(folder / "results")]
    return main(["rows", str(folder / "small.yaml"), *where, *out])


def table(folder):
    return json.loads((folder / "results" / "small" / "table.json").read_text("utf-8"))


def test_the_table_has_the_mean_of_users_over_seeds(folder):
    cells = {(c["model"], c["metric"]): c for c in table(folder)}
    assert len(cells) == 10  # RecBole's model ranks for one objective, and says no value
    assert ("EASE", "like/ndcg@10") in cells and cells["Shared", "like/ndcg@10"]["gain_recbole"]
    runs = sorted((folder / "runs" / "small" / "Shared").glob("seed*"))
    assert len(runs) == 2
    values = []
    for run in runs:
        with np.load(run / "tasks.npz") as arrays:
            values.append(arrays["rating/mae"])
    mean = np.nanmean(np.mean(values, axis=0))
    assert cells["Shared", "rating/mae"]["mean"] == pytest.approx(mean, abs=1e-5)
    assert (
        cells["Shared", "rating/mae"]["seeds"] == 2 and cells["Floor", "rating/mae"]["seeds"] == 1
    )
    single = []
    for run in sorted((folder / "runs" / "small" / "Single").glob("seed*")):
        with np.load(run / "tasks.npz") as arrays:
            single.append(arrays["rating/mae"])
    gain = np.nanmean(np.mean(single, axis=0) - np.mean(values, axis=0))  # a smaller error: better
    assert cells["Shared", "rating/mae"]["gain_single"] == pytest.approx(gain, abs=1e-5)
    assert cells["Shared", "like/pooled_auc"]["gain_single"] is None


def test_a_ranking_of_one_objective_is_no_mean_of_several(folder, tmp_path):
    file = tmp_path / "small.yaml"
    changes = {"choose": "mean/ndcg@10", "shown": ["mean/ndcg@10", "like/ndcg@10"]}
    file.write_text(yaml.safe_dump(PAGE | changes), "utf-8")
    where = str(folder), str(folder / "prepared"), tmp_path / "runs", tmp_path
    made, _ = run_rows(str(file), *where)
    cells = {(c["model"], c["metric"]): c for c in json.loads(made.read_text("utf-8"))}
    models = {name for name, metric in cells if metric == "mean/ndcg@10"}
    assert models == {"Floor", "Single", "Shared"}
    # and its settings are chosen by what it ranks
    assert cells["EASE", "like/ndcg@10"]["mean"] == pytest.approx(
        next(c["mean"] for c in table(folder) if (c["model"], c["metric"])
             == ("EASE", "like/ndcg@10"))
    )  # fmt: skip


def test_the_settings_are_those_that_valid_names(folder):
    root = folder / "runs" / "small" / "Shared"
    found = [json.loads(p.read_text("utf-8")) for p in (root / "search").glob("*.json")]
    best = max(found, key=lambda trial: trial["valid"]["like/ndcg@10"])
    for run in root.glob("seed*/result.json"):
        result = json.loads(run.read_text("utf-8"))
        assert result["config"]["learning_rate"] == best["config"]["learning_rate"]


def test_what_has_its_file_is_not_done_again_and_what_lacks_it_is(folder):
    before = {p: p.stat().st_mtime_ns for p in (folder / "runs").rglob("*.json")}
    text = table(folder)
    gone = next((folder / "runs" / "small" / "Single").glob("seed2-*"))
    shutil.rmtree(gone)
    assert go(folder) == 0
    after = {p: p.stat().st_mtime_ns for p in (folder / "runs").rglob("*.json")}
    changed = {p for p in before if before[p] != after[p]}
    assert changed == {gone / "result.json"}
    assert table(folder) == text  # the same bits


def test_after_a_row_that_fails_nothing_begins(folder, tmp_path):
    """Its error comes out; of eight rows that wait, those of one other process have begun."""
    fails = {"name": "Fails", "model": "SharedBottom", "fixed": {**TRAINED, "learning_rate": 1e30}}
    rest = [{**PAGE["rows"][2], "name": f"Row{n}"} for n in range(8)]
    (tmp_path / "many.yaml").write_text(yaml.safe_dump({**PAGE, "rows": [fails, *rest]}), "utf-8")
    where = str(folder), str(folder / "prepared"), tmp_path / "runs", tmp_path
    with pytest.raises(DataError, match="the loss is"):
        run_rows(str(tmp_path / "many.yaml"), *where, processes=2)
    assert len(list((tmp_path / "runs" / "many").iterdir())) <= 1


def test_two_processes_make_the_same_table(folder, tmp_path):
    where = str(folder), str(folder / "prepared"), tmp_path / "runs", tmp_path
    made, _ = run_rows(str(folder / "small.yaml"), *where, processes=2)
    assert json.loads(made.read_text("utf-8")) == table(folder)
    with pytest.raises(SettingError, match="'processes' must be at least 1, found 0"):
        run_rows(str(folder / "small.yaml"), *where, processes=0)


def test_the_objectives_may_name_what_is_shown(folder, tmp_path):
    """On the data set's page; what is prepared does not depend on it."""
    page = yaml.safe_load((folder / "made" / "made.yaml").read_text("utf-8"))
    (tmp_path / "made").mkdir()
    for file in (folder / "made").iterdir():
        shutil.copy(file, tmp_path / "made")
    file = tmp_path / "small.yaml"
    file.write_text(yaml.safe_dump(PAGE | {"shown": None}), "utf-8")
    where = str(tmp_path), str(folder / "prepared"), folder / "runs", tmp_path
    with pytest.raises(SettingError, match="no objective of 'made' has 'metrics'"):
        run_rows(str(file), *where)
    page["objectives"]["rating"]["metrics"] = ["rmse"]
    page["objectives"]["like"]["metrics"] = ["mrr@10", "auc"]
    (tmp_path / "made" / "made.yaml").write_text(yaml.safe_dump(page, sort_keys=False), "utf-8")
    before = sorted((folder / "prepared").iterdir())
    made, _ = run_rows(str(file), *where)
    found = [cell["metric"] for cell in json.loads(made.read_text("utf-8"))]
    assert sorted(set(found)) == ["like/auc", "like/mrr@10", "rating/rmse"]
    assert sorted((folder / "prepared").iterdir()) == before
    page["objectives"]["rating"]["metrics"] = ["auc"]
    (tmp_path / "made" / "made.yaml").write_text(yaml.safe_dump(page, sort_keys=False), "utf-8")
    with pytest.raises(SettingError, match="'rating/auc'"):
        run_rows(str(file), *where)


def test_the_best_fit_of_the_search_is_the_first_seeds_run(folder, tmp_path, monkeypatch):
    fitted = []
    fit = row_pages.fit_rows

    def noted(model, rows, seed, settings, *more):
        fitted.append((model, seed, settings.get("learning_rate")))
        return fit(model, rows, seed, settings, *more)

    monkeypatch.setattr(row_pages, "fit_rows", noted)
    (tmp_path / "one.yaml").write_text(yaml.safe_dump({**PAGE, "rows": PAGE["rows"][2:3]}), "utf-8")
    where = (str(folder), str(folder / "prepared"), tmp_path / "runs", tmp_path)
    run_rows(str(tmp_path / "one.yaml"), *where)
    assert [(seed, rate) for _, seed, rate in fitted[:2]] == [(1, 0.001), (1, 0.03)]
    assert len(fitted) == 3 and fitted[2][1] == 2
    (kept,) = (tmp_path / "runs" / "one" / "Shared").glob("seed1-*/result.json")
    rate = json.loads(kept.read_text("utf-8"))["config"]["learning_rate"]
    whole = open_rows(prepare_rows("made", "rows_random", folder, folder / "prepared"))
    again = fit("SharedBottom", whole, 1, {**PAGE["rows"][2]["fixed"], "learning_rate": rate})
    metrics = json.loads(kept.read_text("utf-8"))["metrics"]
    assert again.test(whole).means() == pytest.approx(metrics)
    # what valid said of the best epoch is what it says of the model that is kept
    judged = judge_of(whole, "valid", None).judge(again.model)
    assert again.valid.means() == judged.means()


def test_a_page_with_a_trial_more_does_nothing_twice(folder, tmp_path, monkeypatch):
    """A row of one trial is tested without a search; with more trials, its test is one of them."""
    row = PAGE["rows"][2]
    root = (str(folder), str(folder / "prepared"), tmp_path / "runs", tmp_path)
    page = tmp_path / "one.yaml"
    for rates, fits in (([0.001], [1, 2]), ([0.001, 0.03], [1])):
        fitted = []
        fit = row_pages.fit_rows
        monkeypatch.setattr(
            row_pages, "fit_rows", lambda *a, to=fitted, by=fit: to.append(a[2]) or by(*a)
        )
        one = {**row, "grid": {"learning_rate": rates}}
        page.write_text(yaml.safe_dump({**PAGE, "rows": [one]}), "utf-8")
        made, _ = run_rows(str(page), *root)
        monkeypatch.undo()
        assert fitted == fits
    whole = [cell for cell in table(folder) if cell["model"] == "Shared"]
    found = {cell["metric"]: cell["mean"] for cell in json.loads(made.read_text("utf-8"))}
    assert found == {cell["metric"]: cell["mean"] for cell in whole}


def test_a_row_may_stand_for_all_to_be_compared_with(folder, tmp_path):
    file = tmp_path / "small.yaml"
    file.write_text(yaml.safe_dump(PAGE | {"against": "Shared"}), "utf-8")
    made, text = run_rows(
        str(file), str(folder), str(folder / "prepared"), folder / "runs", tmp_path
    )
    cells = {(c["model"], c["metric"]): c for c in json.loads(made.read_text("utf-8"))}
    plain = {(c["model"], c["metric"]): c for c in table(folder)}
    single, shared = cells["Single", "rating/mae"], plain["Shared", "rating/mae"]
    assert single["gain_against"] == pytest.approx(-shared["gain_single"])
    assert cells["Shared", "rating/mae"]["gain_against"] is None
    assert all(cell["gain_against"] is None for cell in plain.values())
    assert f"({single['gain_against']:+.4f})" in text.read_text("utf-8")


REFUSED = [
    ({"against": "Sharde"}, "'against' is 'Sharde'. Did you mean 'Shared'"),
    ({"choose": "like/ndgc@10"}, "is 'like/ndgc@10'"),
    ({"rows": []}, "no rows or no seeds"),
    ({"rows": [PAGE["rows"][0], PAGE["rows"][0]]}, "stands there twice"),
    (
        {"rows": [PAGE["rows"][0], {"name": "F loor", "model": "EASE"}]},
        "'F loor' and 'Floor' would be one file",
    ),
    ({"rows": [{"name": "../x", "model": "EASE"}]}, "named '../x', which is no file's name"),
    ({"rows": [{"name": " ", "model": "EASE"}]}, "named ' ', which is no file's name"),
    ({"seeds": [1, 1]}, "'seeds' of 'Floor' must be different"),
    ({"rows": [{"name": "X", "model": "MMOE"}]}, "Unknown model of rows 'MMOE'"),
    ({"rows": [{"name": "X", "model": "MMoE", "fixed": {"stop_by": "like/mae"}}]}, "'stop_by'"),
    ({"rows": [{"name": "X", "model": "MMoE", "fixed": {"expert": 3}}]}, "expert"),
    ({"rows": [{"name": "X", "model": "ItemKN"}]}, "rows 'ItemKN'. Did you mean 'ItemKNN'"),
    ({"rows": [{"name": "X", "model": "MMoE", "fixed": {"balancer": "UPGrd"}}]}, "'UPGrad'"),
    ({"rows": [{"name": "X", "model": "MMoE", "fixed": {"balancer": "Fixed"}}]}, "'weights'"),
]


@pytest.mark.parametrize(("changes", "said"), REFUSED)
def test_a_page_that_cannot_run_is_refused(folder, tmp_path, changes, said):
    file = tmp_path / "bad.yaml"
    file.write_text(yaml.safe_dump(PAGE | changes), "utf-8")
    with pytest.raises(SettingError, match=said):
        run_rows(str(file), str(folder), str(folder / "prepared"), tmp_path / "runs", tmp_path)
    assert not list(tmp_path.glob("runs/*"))


def test_every_page_reads():
    for name in names("rows"):
        assert read_rows_page(name)[1].rows
