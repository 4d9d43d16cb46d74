"""Cards of the published learners, from tables written here by hand."""

import json

import pytest

from recbole_meta import cards
from recbole_meta.cards import card, write_cards
from recbole_meta.errors import DataError, SettingError
from recbole_meta.model import our_models
from recbole_meta.settings import load_properties, names

CELL = {
    "protocol": "melu_cw", "k": 90, "metric": "mae", "slice": "held_out", "split": "all",
    "gain_over_floor": None, "gain_low": None, "gain_high": None, "low": 0.7, "high": 0.8,
}  # fmt: skip
LINE = {
    "text": "MAE", "benchmark": "melu", "protocol": "melu_cw", "k": 90, "metric": "mae",
    "slice": "held_out", "rows": ["MeLU", "Other"], "published": 0.8, "source": "Table 2",
}  # fmt: skip
PAGE = {"paper": "P", "code": "C", "differs": "D", "claims": [LINE], "ours": [], "open": ["x"]}


def table(folder, **gains):
    """A floor of .75 and a row of .72 for MeLU."""
    floor = CELL | {"model": "Median", "group": "floor", "mean": 0.75}
    worse = CELL | {"model": "Mean", "group": "floor", "mean": 0.79, "gain_over_floor": -0.04}
    failed = CELL | {"model": "Bias", "group": "floor", "mean": None, "gain_over_floor": None}
    mine = CELL | {"model": "MeLU", "group": "published", "mean": 0.72, "gain_over_floor": 0.03}
    of_fold = mine | {"split": "1", "mean": 0.1}
    (folder / "melu").mkdir(parents=True)
    rows = [failed, worse, of_fold, floor, mine | gains]
    (folder / "melu" / "table.json").write_text(json.dumps(rows), "utf-8")


@pytest.fixture
def page(monkeypatch):
    def use(**changes):
        monkeypatch.setattr(
            cards, "load_properties",
            lambda kind, name: PAGE | changes if kind == "card" else load_properties(kind, name),
        )  # fmt: skip

    use()
    return use


@pytest.mark.parametrize(
    "low, high, verdict",
    [(0.01, 0.05, "above the floor"), (-0.01, 0.05, "level with the floor"),
     (-0.05, -0.01, "below the floor")],
)  # fmt: skip
def test_the_verdict_is_that_of_the_interval(tmp_path, page, low, high, verdict):
    table(tmp_path, gain_low=low, gain_high=high)
    text = card("MeLU", tmp_path)
    assert f"| Median 0.750 | +0.030 [{low:+.3f}, {high:+.3f}] | {verdict}; " in text
    assert "0.800 (Table 2) | MeLU | 0.720 [0.700, 0.800]" in text
    counted = "1 are above" if low > 0 else "0 are above"
    assert f"Of 1 measured rows {counted} the best floor" in text
    assert "| Other | not run |" in text and "Not measured: x" in text


@pytest.mark.parametrize(
    "published, said",
    [
        (0.8, "0.080 better than published"),
        (0.7, "within 0.02"),
        (0.6, "0.120 worse than published"),
    ],
)
def test_a_smaller_error_is_better_than_the_paper(tmp_path, page, published, said):
    table(tmp_path, gain_low=0.01, gain_high=0.05)
    page(claims=[LINE | {"published": published}])
    assert said in card("MeLU", tmp_path)


def test_a_row_without_a_floor_has_no_verdict(tmp_path, page):
    table(tmp_path, gain_over_floor=None, gain_low=None, gain_high=None)
    text = card("MeLU", tmp_path)
    assert "| MeLU | 0.720 [0.700, 0.800] | | | |" in text and "measured rows" not in text


def test_a_card_without_any_table_says_not_run(tmp_path, page):
    text = card("MeLU", tmp_path)
    assert text.count("not run") == 2 and "measured rows" not in text
    assert "recbole-meta benchmark melu --data_path" in text


def test_a_benchmark_that_is_none_and_a_damaged_table(tmp_path, page):
    page(claims=[LINE | {"benchmark": "nothing"}])
    with pytest.raises(SettingError, match="names the benchmark 'nothing'"):
        card("MeLU", tmp_path)
    page()
    (tmp_path / "melu").mkdir()
    (tmp_path / "melu" / "table.json").write_text("[", "utf-8")
    with pytest.raises(DataError, match="damaged"):
        card("MeLU", tmp_path)


def test_every_published_learner_has_its_card(tmp_path):
    written = {path.stem for path in write_cards(tmp_path)}
    learners = {name for name, model in our_models().items() if model.group == "published"}
    assert written == learners


def test_every_line_names_a_protocol_and_rows_of_its_benchmark():
    for name in names("card"):
        page = load_properties("card", name)
        for line in [*page["claims"], *page["ours"]]:
            benchmark = load_properties("benchmark", line["benchmark"])
            assert line["protocol"] in {each["protocol"] for each in benchmark["settings"]}
            rows = {row["name"] for row in (*benchmark["rows"], *benchmark["trained"]["rows"])}
            assert set(line["rows"]) <= rows, (name, line)
