"""A page of multi-task models: what is chosen on valid, what is run again, what the table says."""

import json

import numpy as np
import pytest
import yaml

from recbole_meta import multitask as module
from recbole_meta.cli import main
from recbole_meta.data.behaviours import open_behaviours, prepare_behaviours
from recbole_meta.data.objectives import read_behaviours
from recbole_meta.errors import DataError, SettingError
from recbole_meta.multitask import read_multitask, run_multitask
from recbole_meta.multitask_table import multitask_table
from recbole_meta.settings import names
from tests.data.test_label_times import world, write

PAGE = """
dataset: shop
protocol: behaviours_given
seeds: [1, 2]
trials: 6
rows:
  - {name: Pop, model: ObjectivePop, choose: each}
  - {name: CopyOther, model: CopyOther, choose: each}
  - name: EASE per target
    model: ObjectiveEASE
    choose: each
    fixed: {target: own}
    grid: {reg_weight: [1.0, 10.0, 100.0], copy: [0.0, 0.5]}
  - name: VAE
    model: MultiVAE
    choose: each
    seeds: [7]
    fixed: {epochs: 2, latent_dimension: 4, mlp_hidden_size: [4]}
    grid: {behaviour: [purchase, click, cart], learning_rate: [0.001, 0.01]}
  - name: One each
    model: MTA
    group: single
    choose: each
    fixed: {epochs: 2, eval_step: 1, embedding_size: 4, train_batch_size: 8, inputs: own}
    grid:
      "weights,stop_by":
        - [{click: 0.0, cart: 0.0}, purchase/ndcg@10]
        - [{purchase: 0.0, cart: 0.0}, click/ndcg@10]
        - [{purchase: 0.0, click: 0.0}, cart/ndcg@10]
  - name: MTA
    model: MTA
    choose: mean
    fixed: {epochs: 3, eval_step: 1, embedding_size: 4, train_batch_size: 8}
    grid: {learning_rate: [0.001, 0.02]}
published:
  - name: Other
    note: made up
    metrics: {purchase/ndcg@10: 0.5, click/ndcg@10: 0.4, cart/ndcg@10: 0.3}
"""


@pytest.fixture(scope="module")
def ran(write_splits, shop_rows):
    """(folder, page) after a run and its table."""
    folder = write_splits(**shop_rows)
    page = folder / "table.yaml"
    page.write_text(PAGE, encoding="utf-8")
    arguments = [
        "multitask", str(page), "--data_path", str(folder), "--runs", str(folder / "runs"),
        "--prepared_path", str(folder / "prepared"), "--results", str(folder / "results"),
    ]  # fmt: skip
    assert main(arguments) == 0
    return folder, page


def unit(folder, row: str) -> dict:
    return json.loads((folder / "runs" / "table" / f"{row}.json").read_text("utf-8"))


def rows(folder) -> list[dict]:
    return json.loads((folder / "results" / "table" / "table.json").read_text("utf-8"))


def test_each_objective_has_its_best_settings_on_valid(ran):
    folder, _ = ran
    found = unit(folder, "EASEpertarget")
    assert len(found["trials"]) == 6 and list(found["runs"]) == ["1"]
    for objective, chosen in found["chosen"].items():
        scores = [means[f"{objective}/ndcg@10"] for means in found["scores"]]
        assert chosen == found["trials"][int(np.argmax(scores))]


def test_one_model_has_one_choice_by_the_mean(ran):
    folder, _ = ran
    found = unit(folder, "MTA")
    scores = [means["mean/ndcg@10"] for means in found["scores"]]
    best = found["trials"][int(np.argmax(scores))]
    assert all(chosen == best for chosen in found["chosen"].values())
    assert list(found["runs"]) == ["1", "2"]
    for by_objective in found["runs"].values():
        assert len(set(by_objective.values())) == 1


def test_a_model_of_one_behaviour_is_chosen_among_those_of_the_behaviour(ran):
    folder, _ = ran
    found = unit(folder, "VAE")
    assert len(found["trials"]) == 6 and list(found["runs"]) == ["7"]  # the row's own seeds
    for objective, chosen in found["chosen"].items():
        own = [n for n, trial in enumerate(found["trials"]) if trial["behaviour"] == objective]
        best = max(own, key=lambda n: found["scores"][n][f"{objective}/ndcg@10"])
        assert chosen == found["trials"][best]
        run = folder / "runs" / "table" / found["runs"]["7"][objective]
        with np.load(run / "tasks.npz") as arrays:
            assert {name.split("/")[0] for name in arrays.files} == {objective}
    mine = [row for row in rows(folder) if row["model"] == "VAE"]
    assert {row["group"] for row in mine} == {"recbole"}


def test_the_table_says_what_the_runs_say(ran):
    folder, _ = ran
    root = folder / "runs" / "table"
    table = {(row["model"], row["metric"]): row for row in rows(folder)}
    assert len(table) == len(rows(folder)) == 6 * 3 * 4
    for name in ("MTA", "Pop"):
        runs = unit(folder, name)["runs"]
        for metric in ("cart/ndcg@10", "purchase/ndcg@10/novel"):
            objective = metric.split("/")[0]
            results = [
                json.loads((root / run[objective] / "result.json").read_text("utf-8"))
                for run in runs.values()
            ]
            means = [result["metrics"][metric] for result in results]
            row = table[name, metric]
            assert row["mean"] == pytest.approx(np.mean(means), abs=1e-4)
            assert row["low"] <= row["mean"] <= row["high"] and row["seeds"] == len(means)
            valid = [result["valid_metrics"][metric] for result in results]
            assert row["valid"] == pytest.approx(np.mean(valid), abs=1e-4)


def test_champions_are_named_on_valid(ran):
    folder, _ = ran
    for objective in ("purchase", "click", "cart"):
        mine = [row for row in rows(folder) if row["metric"] == f"{objective}/ndcg@10"]
        for group in {row["group"] for row in mine}:
            of_group = [row for row in mine if row["group"] == group]
            (best,) = [row for row in of_group if row["champion"]]
            assert best["valid"] == max(row["valid"] for row in of_group)


def test_gains_are_over_lower_groups_champions(ran):
    folder, _ = ran
    mine = {row["model"]: row for row in rows(folder) if row["metric"] == "click/ndcg@10"}
    rule = mine["EASE per target"]
    assert mine["MTA"]["gain_rule"] == pytest.approx(mine["MTA"]["mean"] - rule["mean"], abs=2e-4)
    assert mine["MTA"]["p_single"] is not None and rule["gain_rule"] is rule["gain_single"] is None
    assert mine["MTA"]["gain_recbole"] == pytest.approx(
        mine["MTA"]["mean"] - mine["VAE"]["mean"], abs=2e-4
    )
    assert mine["Pop"]["gain_floor"] is None and 0 <= rule["p_floor"] <= 1


def test_the_page_shows_rows_slices_and_what_others_published(ran):
    folder, _ = ran
    text = (folder / "results" / "table" / "table.md").read_text("utf-8")
    assert "| published | Other | 0.5000 | 0.4000 | 0.3000 |" in text
    assert text.count("| ours | MTA |") == 2 and "Novel pairs" in text
    assert "- EASE per target: 6 trials, chosen per objective" in text
    results = (folder / "runs" / "table" / "MTA").glob("seed*/result.json")
    fits = [json.loads(file.read_text("utf-8"))["seconds"]["fit"] for file in results]
    assert f"2 seeds; {np.mean(fits):.1f} s a fit." in text and len(fits) == 2


def test_nothing_is_done_twice(ran, monkeypatch):
    folder, page = ran
    for fit in ("fit_objectives", "fit_behaviour"):
        monkeypatch.setattr(module, fit, lambda *_: pytest.fail("fitted again"))
    run_multitask(str(page), folder, folder / "prepared", folder / "runs")


def test_other_defaults_of_a_model_or_a_lost_run_are_done_again(ran, monkeypatch):
    folder, page = ran
    fitted = []
    fit, check = module.fit_objectives, module.check_objective_settings

    def noted(model, *arguments):
        fitted.append(model)
        return fit(model, *arguments)

    monkeypatch.setattr(module, "fit_objectives", noted)
    (run,) = set(unit(folder, "Pop")["runs"]["1"].values())
    (folder / "runs" / "table" / run / "result.json").unlink()
    run_multitask(str(page), folder, folder / "prepared", folder / "runs")
    assert fitted == ["ObjectivePop"]

    def other(name, *arguments):
        return check(name, *arguments) | ({"epochs": 9} if name == "CopyOther" else {})

    monkeypatch.setattr(module, "check_objective_settings", other)
    run_multitask(str(page), folder, folder / "prepared", folder / "runs")
    assert fitted == ["ObjectivePop", "CopyOther"]
    monkeypatch.undo()
    run_multitask(str(page), folder, folder / "prepared", folder / "runs")


def test_a_wider_grid_tries_what_is_new_alone(ran, monkeypatch, tmp_path):
    folder, page = ran
    fitted = []
    fit = module.fit_objectives

    def noted(model, behaviours, seed, settings, device):
        fitted.append((seed, settings["learning_rate"]))
        return fit(model, behaviours, seed, settings, device)

    monkeypatch.setattr(module, "fit_objectives", noted)
    wider = tmp_path / "table.yaml"
    wider.write_text(page.read_text("utf-8").replace("[0.001, 0.02]", "[0.001, 0.02, 1.0e-9]"))
    run_multitask(str(wider), folder, folder / "prepared", folder / "runs")
    assert fitted[0] == (1, 1e-9) and {rate for _, rate in fitted} == {1e-9}
    assert len(unit(folder, "MTA")["trials"]) == 3


def test_a_row_that_is_missing_stops_the_table(ran, tmp_path):
    folder, page = ran
    other = tmp_path / "table.yaml"
    other.write_text(page.read_text("utf-8").replace("name: MTA", "name: MTB"), encoding="utf-8")
    with pytest.raises(DataError, match="Row 'MTB' is not finished"):
        multitask_table(str(other), folder / "runs", tmp_path)


REFUSED = [
    ("seeds: [1, 2]", "seeds: []", "no rows or no seeds"),
    ("name: CopyOther", "name: Pop", "'Pop' stands there twice"),
    ("model: CopyOther", "model: CopyOthr", "Did you mean 'CopyOther'"),
    ("choose: mean", "choose: men", "Did you mean 'mean'"),
    ("learning_rate: [0.001, 0.02]", "learning_rate: [0.0]", "must be above 0"),
    ("learning_rate: [0.001, 0.02]", "learning_rate: {low: 0.001, high: 0.02}", "is a range"),
    ("click/ndcg@10]", "clik/ndcg@10]", "Did you mean 'click/ndcg@10'"),
    ("behaviour: [purchase, click, cart]", "behaviour: [purchase, click]", "learns 'cart'"),
    ("behaviour: [purchase, click, cart]", "behaviour: [purchase, clik]", "Did you mean 'click'"),
    ("behaviour: [purchase, click, cart], ", "", "'behaviour' is None"),
    ("model: MultiVAE\n    choose: each", "model: MultiVAE\n    choose: mean", "must be each"),
    ("model: MultiVAE", "model: MultVAE", "Did you mean 'MultiVAE'"),
    ("trials: 6", "trials: 0", "'trials' must be at least 1"),
]


@pytest.mark.parametrize(("found", "changed", "said"), REFUSED)
def test_pages_that_would_stop_in_the_middle_are_refused(ran, tmp_path, found, changed, said):
    folder, _ = ran
    page = tmp_path / "table.yaml"
    page.write_text(PAGE.replace(found, changed, 1), encoding="utf-8")
    objectives = read_behaviours("shop", folder / "shop")
    with pytest.raises(SettingError, match=said):
        read_multitask(str(page), objectives)


@pytest.mark.parametrize("name", names("multitask"))
def test_pages_of_ours_are_read(name):
    page = module.multitask_page(name)[1]
    drawn = page.protocol == "behaviours_random"
    read_multitask(name, read_behaviours(page.dataset, expressions=drawn))


def test_a_page_of_behaviours_by_time_becomes_a_table(tmp_path):
    write(tmp_path, world())
    page = tmp_path / "timed.yaml"
    rows = [{"name": "Pop", "model": "ObjectivePop", "choose": "each"},
            {"name": "EASE", "model": "ObjectiveEASE", "choose": "each",
             "grid": {"reg_weight": [1.0, 10.0]}}]  # fmt: skip
    content = {"dataset": "shop", "protocol": "behaviours_time", "seeds": [1], "trials": 2,
               "rows": rows, "published": []}  # fmt: skip
    page.write_text(yaml.safe_dump(content), "utf-8")
    where = ["--data_path", str(tmp_path), "--prepared_path", str(tmp_path / "prepared")]
    out = ["--runs", str(tmp_path / "runs"), "--results", str(tmp_path / "results")]
    assert main(["multitask", str(page), *where, *out]) == 0
    made = prepare_behaviours("shop", tmp_path, tmp_path / "prepared", "behaviours_time")
    behaviours = open_behaviours(made)
    cells = json.loads((tmp_path / "results" / "timed" / "table.json").read_text("utf-8"))
    buyers = {cell["n_tasks"] for cell in cells if cell["metric"] == "buy/ndcg@10"}
    assert buyers == {len(behaviours.tasks("test", "buy"))}
    assert {cell["protocol"] for cell in cells} == {"behaviours_time"}


def test_an_unknown_data_set_is_one_line(ran, tmp_path, capsys):
    folder, _ = ran
    page = tmp_path / "table.yaml"
    page.write_text(PAGE.replace("dataset: shop", "dataset: shp"), encoding="utf-8")
    assert main(["multitask", str(page), "--data_path", str(folder)]) == 2
    assert "Did you mean 'shop'" in capsys.readouterr().err


def test_the_folder_is_the_one_of_prepare(ran):
    folder, _ = ran
    made = prepare_behaviours("shop", folder, folder / "prepared")
    assert [path.name for path in (folder / "prepared").glob("shop-*")] == [made.name]


def test_clean_finds_what_was_written(ran, capsys):
    folder, _ = ran
    said = ["clean", "--prepared_path", str(folder / "prepared"), "--runs", str(folder / "runs")]
    assert main(said) == 0
    named = {line.removeprefix("would delete ") for line in capsys.readouterr().out.splitlines()}
    files = {str(path) for path in (folder / "runs").rglob("*.json")}
    assert {name for name in files if not name.endswith("result.json")} <= named
    assert any("behaviours_given" in name for name in named)


# User interest.

INTEREST = """
dataset: films
protocol: behaviours_random
seeds: [1, 2]
trials: 4
rows:
  - name: Pop
    model: ObjectivePop
    choose: each
    grid: {reg_user: [0.01, 3.0, 1000000.0]}
  - {name: EASE, model: ObjectiveEASE, choose: each, fixed: {reg_weight: 10.0}}
  - name: MTA
    model: MTA
    choose: mean
    fixed: {epochs: 4, eval_step: 1, embedding_size: 4, train_batch_size: 8}
    grid: {learning_rate: [0.001, 0.02]}
  - name: One each
    model: MTA
    group: single
    choose: each
    fixed: &own {epochs: 4, eval_step: 1, embedding_size: 4, train_batch_size: 8, inputs: own}
    grid:
      "weights,stop_by":
        - [{interest: 0.0}, mean/ndcg@10]
        - [{like: 0.0, love: 0.0, seen: 0.0}, interest/cross_entropy]
published: []
"""


@pytest.fixture(scope="module")
def interest(write_films, film_rows):
    """(folder, page) after a run and its table."""
    folder = write_films(*film_rows)
    page = folder / "table.yaml"
    page.write_text(INTEREST, encoding="utf-8")
    arguments = [
        "multitask", str(page), "--data_path", str(folder), "--runs", str(folder / "runs"),
        "--prepared_path", str(folder / "prepared"), "--results", str(folder / "results"),
    ]  # fmt: skip
    assert main(arguments) == 0
    return folder


def test_a_distribution_is_chosen_by_its_cross_entropy(interest):
    for row, objectives in (("Pop", ["interest"]), ("Oneeach", ["interest"])):
        found = unit(interest, row)
        for objective in objectives:
            losses = [means[f"{objective}/cross_entropy"] for means in found["scores"]]
            assert found["chosen"][objective] == found["trials"][int(np.argmin(losses))]
    whole = unit(interest, "MTA")  # one model for all: by the mean over rankings
    scores = [means["mean/ndcg@10"] for means in whole["scores"]]
    best = whole["trials"][int(np.argmax(scores))]
    assert all(chosen == best for chosen in whole["chosen"].values())
    assert list(whole["chosen"]) == ["like", "love", "seen", "interest"]
    assert list(unit(interest, "EASE")["chosen"]) == ["like", "love", "seen"]


def test_a_table_has_a_distribution_of_those_who_say_one(interest):
    mine = [row for row in rows(interest) if row["objective"] == "interest"]
    assert {row["model"] for row in mine} == {"Pop", "MTA", "One each"}
    assert {row["metric"] for row in mine} == {"interest/cross_entropy", "interest/recall@3"}
    loss = {row["model"]: row for row in mine if row["metric"] == "interest/cross_entropy"}
    for row in loss.values():
        of_group = [other["valid"] for other in loss.values() if other["group"] == row["group"]]
        assert row["champion"] == (row["valid"] == min(of_group))
    gain = loss["MTA"]["gain_floor"]  # less is better
    assert gain == pytest.approx(loss["Pop"]["mean"] - loss["MTA"]["mean"], abs=2e-4)
    assert loss["MTA"]["p_floor"] is not None and loss["MTA"]["gain_rule"] is None
    ranked = [row for row in rows(interest) if row["objective"] == "seen"]
    assert {row["model"] for row in ranked} == {"Pop", "EASE", "MTA", "One each"}


def test_the_page_shows_a_distribution_apart(interest):
    text = (interest / "results" / "table" / "table.md").read_text("utf-8")
    rankings, shares = text.split("## interest: a distribution over categories (")
    assert "| group | model | like (" in rankings and "interest (" not in rankings
    assert "| rule | EASE |" in rankings
    assert "| rule | EASE |" not in shares and "| ours | MTA |" in shares
