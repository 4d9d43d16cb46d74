"""A page of fused rankings: what is chosen on valid, what is run again, what the table says."""

import json

import numpy as np
import pytest

from recbole_meta import fused as module
from recbole_meta.cli import main
from recbole_meta.errors import DataError, SettingError
from recbole_meta.fused import run_fused
from recbole_meta.fused_page import fused_page, read_fused
from recbole_meta.fused_table import _regret, fused_table
from recbole_meta.settings import names

OBJECTIVES = ("purchase", "click", "cart")
PAGE = """
dataset: shop
protocol: behaviours_given
seeds: [1, 2]
trials: 7
gains:
  flat: {purchase: 1.0, click: 1.0, cart: 1.0}
  steep: {purchase: 5.0, click: 1.0}
sources:
  - name: EASE
    heads:
      purchase: &ease {model: ObjectiveEASE, settings: {target: own, reg_weight: 5.0}}
      click: *ease
      cart: {model: ObjectivePop, settings: {}}
  - name: MTA
    heads:
      purchase: &mta
        model: MTA
        settings: {epochs: 2, eval_step: 1, embedding_size: 4, train_batch_size: 8}
      click: *mta
      cart: *mta
fusions:
  - {name: Reciprocal rank, method: reciprocal}
  - {name: Z, method: sum, scale: zscore}
  - {name: Product, method: product, scale: softmax}
baseline: Reciprocal rank
graded:
  - name: Graded EASE
    model: GradedEASE
    grid: {reg_weight: [1.0, 10.0], power: [1.0, 0.5]}
"""


@pytest.fixture(scope="module")
def ran(write_splits, shop_rows):
    """(folder, page) after a run and its table."""
    folder = write_splits(**shop_rows)
    page = folder / "table.yaml"
    page.write_text(PAGE, encoding="utf-8")
    arguments = [
        "fuse", str(page), "--data_path", str(folder), "--runs", str(folder / "runs"),
        "--prepared_path", str(folder / "prepared"), "--results", str(folder / "results"),
    ]  # fmt: skip
    assert main(arguments) == 0
    return folder, page


def unit(folder, name: str) -> tuple[dict, dict]:
    """What a unit says, and its arrays."""
    file = folder / "runs" / "table" / f"{name}.json"
    with np.load(file.with_suffix(".npz"), allow_pickle=False) as arrays:
        return json.loads(file.read_text("utf-8")), dict(arrays)


def rows(folder) -> list[dict]:
    return json.loads((folder / "results" / "table" / "table.json").read_text("utf-8"))


@pytest.mark.parametrize("name", ["EASE", "MTA"])
def test_searched_weights_are_never_worse_on_valid(ran, name):
    """Than equal ones of the same method, or than the best head alone."""
    entries = unit(ran[0], name)[0]["entries"]
    for gains in ("flat", "steep"):
        mine = [entry for entry in entries if entry["gains"] == gains]
        single = max(entry["valid"] for entry in mine if entry["kind"] == "single")
        found = {(entry["row"], entry["kind"]): entry["valid"] for entry in mine}
        for row in ("Reciprocal rank", "Z", "Product"):
            assert found[row, "searched"] >= max(found[row, "equal"], single - 1e-12)


def test_an_objective_alone_has_no_regret_of_its_own(ran):
    for row in rows(ran[0]):
        if row["kind"] == "single":
            objective = row["model"].split()[0]
            assert row["regret"][objective] == 0
            assert row["weights"] == {name: float(name == objective) for name in OBJECTIVES}


def test_the_table_says_what_the_units_say(ran):
    folder, _ = ran
    table = {(r["source"], r["gains"], r["model"], r["kind"]): r for r in rows(folder)}
    assert len(table) == len(rows(folder)) == 2 * (2 * (3 + 3 * 2) + 1)
    for name in ("EASE", "MTA"):
        said, arrays = unit(folder, name)
        for number, entry in enumerate(said["entries"]):
            row = table[name, entry["gains"], entry["row"], entry["kind"]]
            values = arrays[f"{number}/fused"]
            assert row["mean"] == pytest.approx(np.nanmean(values), abs=1e-4)
            assert row["mean"] == pytest.approx(np.mean(entry["test"]), abs=1e-4)
            assert row["low"] <= row["mean"] <= row["high"]
            assert row["seeds"] == (1 if name == "EASE" else 2)
            own = {
                each["row"].split()[0]: np.nanmean(arrays[f"{n}/{each['row'].split()[0]}"])
                for n, each in enumerate(said["entries"])
                if each["kind"] == "single" and each["gains"] == entry["gains"]
            }
            for objective in OBJECTIVES:
                wanted = 1 - np.nanmean(arrays[f"{number}/{objective}"]) / own[objective]
                assert row["regret"][objective] == pytest.approx(wanted, abs=1e-4)


def test_champions_are_named_on_valid_and_tested_against_the_simple_ones(ran):
    for source in ("EASE", "MTA"):
        mine = [row for row in rows(ran[0]) if row["source"] == source]
        fused = [row for row in mine if row["kind"] in ("equal", "searched")]
        score = {}
        for row in fused:
            key = row["model"], row["kind"]
            score[key] = score.get(key, 0) + row["valid"] / 2
        score.pop(("Reciprocal rank", "equal"))
        (champion,) = {(row["model"], row["kind"]) for row in fused if row["champion"]}
        assert score[champion] == pytest.approx(max(score.values()), abs=1e-4)
        for row in fused:
            against = row["against"]
            if (row["model"], row["kind"]) != champion:
                assert not against
                continue
            assert set(against) == {"best head", "baseline", "graded model"}
            heads = [r for r in mine if r["kind"] == "single" and r["gains"] == row["gains"]]
            best = max(heads, key=lambda r: r["valid"])
            assert against["best head"]["model"] == best["model"]
            assert against["best head"]["gain"] == pytest.approx(
                row["mean"] - best["mean"], abs=2e-4
            )
            assert all(0 <= each["p"] <= 1 for each in against.values())


def test_a_model_of_the_graded_target_has_its_own_choice_per_setting(ran):
    entries = unit(ran[0], "GradedEASE")[0]["entries"]
    assert [entry["gains"] for entry in entries] == ["flat", "steep"]
    for entry in entries:
        assert len(entry["trials"]) == len(entry["scores"]) == 4
        assert entry["settings"] == entry["trials"][int(np.argmax(entry["scores"]))]


def test_the_page_shows_settings_and_prices(ran):
    text = (ran[0] / "results" / "table" / "table.md").read_text("utf-8")
    assert "| MTA | Reciprocal rank, equal weights |" in text
    assert "purchase 5, click 1" in text and "## The price" in text


def test_nothing_is_done_twice(ran, monkeypatch):
    folder, page = ran
    monkeypatch.setattr(module, "fit_model", lambda *_: pytest.fail("fitted again"))
    run_fused(str(page), folder, folder / "prepared", folder / "runs")


def test_other_gains_are_done_again(ran, monkeypatch, tmp_path):
    folder, page = ran
    other = tmp_path / "table.yaml"
    other.write_text(page.read_text("utf-8").replace("purchase: 5.0", "purchase: 6.0"), "utf-8")
    monkeypatch.setattr(module, "fit_model", lambda *_: (_ for _ in ()).throw(KeyError("fitted")))
    with pytest.raises(KeyError, match="fitted"):
        run_fused(str(other), folder, folder / "prepared", folder / "runs")


def test_a_unit_that_is_missing_stops_the_table(ran, tmp_path):
    folder, page = ran
    other = tmp_path / "table.yaml"
    other.write_text(page.read_text("utf-8").replace("name: MTA", "name: MTB"), "utf-8")
    with pytest.raises(DataError, match="'MTB' is not finished"):
        fused_table(str(other), folder / "runs", tmp_path)


REFUSED = [
    ("steep: {purchase: 5.0", "steep: {purchas: 5.0", "'purchas'. Did you mean 'purchase'"),
    ("flat: {", "click: {", "gains 'click' has the name of an objective"),
    ("{purchase: 5.0, click: 1.0}", "{purchase: 0.0}", "one is above"),
    ("cart: {model", "carts: {model", "no head of the objective 'cart'"),
    ("model: ObjectivePop", "model: ObjectivePp", "Did you mean 'ObjectivePop'"),
    ("baseline: Reciprocal", "baseline: Reciprocl", "Did you mean 'Reciprocal rank'"),
    ("method: product", "method: produkt", "Did you mean 'product'"),
    ("method: product, scale: softmax", "method: product, scale: zscore", "within \\[0, 1\\]"),
    ("method: reciprocal}", "method: reciprocal, weights: {click: 2.0}}", "not for a page to set"),
    ("method: reciprocal}", "method: reciprocal, funnel: [clik]}", "objective 'clik'"),
    ("trials: 7", "trials: 3", "need 4"),
    ("name: Graded EASE", "name: MTA", "'MTA' stands there twice"),
    ("reg_weight: [1.0, 10.0]", "reg_weight: [0.0]", "must be above 0"),
    ("seeds: [1, 2]", "seeds: []", "no sources, no gains or no seeds"),
]


@pytest.mark.parametrize(("found", "changed", "said"), REFUSED)
def test_pages_that_would_stop_in_the_middle_are_refused(tmp_path, found, changed, said):
    page = tmp_path / "table.yaml"
    assert found in PAGE
    page.write_text(PAGE.replace(found, changed, 1), encoding="utf-8")
    with pytest.raises(SettingError, match=said):
        read_fused(str(page), OBJECTIVES)


@pytest.mark.parametrize("name", names("fusion"))
def test_pages_of_ours_are_read(name):
    from recbole_meta.data.objectives import read_behaviours

    read_fused(name, tuple(read_behaviours(fused_page(name)[1].dataset)))


def test_of_a_head_that_finds_nothing_no_share_is_lost():
    assert _regret(0.3, 0.4) == pytest.approx(0.25)
    assert _regret(0.3, 0.0) is None
