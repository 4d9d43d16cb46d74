"""The published table and the terminal's, from result files written here by hand."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import yaml
from scipy import stats

from recbole_meta.errors import DataError
from recbole_meta.evaluation.entries import Entry, RunFiles, benchmark_page, champion
from recbole_meta.report import benchmark_table
from recbole_meta.terminal import terminal_table

GROUP_OF = {"Pop": "floor", "QueryPop": "floor", "Fold": "fold-in", "EASE": "recbole",
            "BPR": "recbole", "MAML": "published", "Ridge": "ours", "Other": "ours"}  # fmt: skip
LEAD = {"implicit": "ndcg@10", "rating": "mae", "label": "auc"}
ALL = {
    "implicit": ["ndcg@10", "recall@10", "mrr@10", "hit@10"],
    "rating": ["mae", "rmse"],
    "label": ["auc", "logloss"],
}


class Tree:
    """A folder of runs as a sweep leaves it."""

    def __init__(self, root: Path) -> None:
        self.root, self.page = root, root / "made.yaml"
        self.entries: list[dict] = []

    def entry(self, name: str, splits: list[int], searched=False, **more) -> None:
        entry = {"name": name, "protocol": "user_cold_curve", "splits": splits, **more}
        self.entries.append(entry)
        rows = [{"name": n, "model": n, "grid": {}} for n, g in GROUP_OF.items() if g != "recbole"]
        grid = {"grid": {"a": ["b", "c"]}} if searched else {}
        theirs = [{"name": n, "model": n} | grid for n, g in GROUP_OF.items() if g == "recbole"]
        search = {"setting": self.entries[0]["name"], "split": 0, "shots": 5, "trials": 3}
        trained = {"searches": [search], "rows": theirs}
        page = {
            "dataset": "made",
            "seed": 0,
            "trials": 7,
            "settings": self.entries,
            "rows": rows,
            "trained": trained,
        }
        self.page.write_text(yaml.safe_dump(page), "utf-8")

    def run(
        self, model, values, valid, entry="time", split=0, k=5, query="after",
        feedback="implicit", slices=None, seed=0, reads="ids",
    ):  # fmt: skip
        """One unit: ``values`` (user -> lead metric) on test, ``valid`` the mean on valid."""
        base = self.root / "runs" / "made" / entry / str(split)
        unit_name = f"{model}-k{k}-seed{seed}"
        folder = base / "runs" / unit_name
        folder.mkdir(parents=True)
        lead, names = LEAD[feedback], ALL[feedback]
        arrays = {"task": np.array(list(values))}
        arrays |= {name: np.array(list(values.values())) for name in names}
        found = {query: dict.fromkeys(names, float(np.mean(list(values.values()))))}
        for name, members in (slices or {}).items():
            column = np.array([members.get(user, np.nan) for user in values])
            arrays[f"{name}/{lead}"], found[name] = column, {lead: float(np.nanmean(column))}
        np.savez(folder / "tasks.npz", **arrays)
        result = {
            "model": model, "group": GROUP_OF[model], "reads": reads, "dataset": "made",
            "protocol": "user_cold_curve", "order": "time", "split": split, "shots": k,
            "seed": seed, "query": query, "metrics": found[query], "slices": found,
            "valid_slices": {q: dict.fromkeys(names, valid) for q in found},
            "seconds": {"fit": 1.0, "evaluate": 0.5},
        }  # fmt: skip
        (folder / "result.json").write_text(json.dumps(result), "utf-8")
        place = str(folder.relative_to(self.root / "runs" / "made"))
        unit = {"row": model, "runs": {str(k): place}, "chosen": {str(k): {}}}
        if GROUP_OF[model] != "recbole":
            unit |= {"scores": [], "trials": [{}]}
        (base / f"{unit_name}.json").write_text(json.dumps(unit), "utf-8")
        return folder

    def table(self) -> tuple[list[dict], str]:
        table, page = benchmark_table(str(self.page), self.root / "runs", self.root / "results")
        return json.loads(table.read_text("utf-8")), page.read_text("utf-8")


@pytest.fixture
def tree(tmp_path) -> Tree:
    return Tree(tmp_path)


def pick(rows: list[dict], **wanted) -> dict:
    """The only row with these entries."""
    (row,) = [row for row in rows if wanted.items() <= row.items()]
    return row


def users(*values: float, first: int = 0) -> dict[str, float]:
    return {f"u{first + i:02d}": value for i, value in enumerate(values)}


def spread(mean: float, seed: int, n: int = 40) -> dict[str, float]:
    return users(*np.random.default_rng(seed).normal(mean, 0.1, n).tolist())


# The unit is the user.


def test_a_row_says_what_it_reads_where_rows_differ(tree):
    tree.entry("time", [0])
    tree.run("Pop", users(0.1, 0.2), valid=0.5)
    tree.run("Ridge", users(0.3, 0.2), valid=0.5)
    assert "| group | model (2 users) | k = 5 |" in tree.table()[1]
    tree.run("Other", users(0.3, 0.2), valid=0.5, reads="ids +user fields")
    text = tree.table()[1]
    assert "| group | model (2 users) | reads | k = 5 |\n|---|---|---|---|" in text
    assert "| floor | Pop | ids | **0.150** |" in text
    assert "| Other | ids +user fields | " in text


def test_what_the_splits_of_a_row_read_is_all_named(tree):
    tree.entry("time", [0, 1])
    for split in (0, 1):
        tree.run("Pop", users(0.1, 0.2), valid=0.5, split=split)
    tree.run("Ridge", users(0.3, 0.2), valid=0.5)
    tree.run("Ridge", users(0.3, 0.2), valid=0.5, split=1, reads="ids +ratings")
    rows, text = tree.table()
    cell = {"model": "Ridge", "split": "all", "metric": "ndcg@10", "slice": "after", "k": 5}
    assert pick(rows, **cell)["reads"] == "ids or ids +ratings"
    assert "| ours | Ridge | ids or ids +ratings | " in text


def test_a_user_of_two_splits_counts_once(tree):
    """u1 and u2 are judged twice: their values are averaged first, then users."""
    tree.entry("time", [0, 1])
    tree.run("Pop", {"u0": 0.0, "u1": 0.2, "u2": 0.4}, valid=0.5)
    tree.run("Pop", {"u1": 0.4, "u2": 0.4, "u3": 1.0}, valid=0.5, split=1)
    tree.run("Ridge", {"u0": 0.5, "u1": 0.5, "u2": 0.9}, valid=0.5)
    tree.run("Ridge", {"u1": 0.7, "u2": 0.5, "u3": 1.0}, valid=0.7, split=1)
    rows, text = tree.table()
    cell = {"metric": "ndcg@10", "slice": "after", "k": 5}
    pop = pick(rows, model="Pop", split="all", **cell)
    assert pop["mean"] == pytest.approx((0.0 + 0.3 + 0.4 + 1.0) / 4)  # and not 2.4 / 6
    assert pop["n_tasks"] == 4
    ridge = pick(rows, model="Ridge", split="all", **cell)
    assert ridge["mean"] == pytest.approx((0.5 + 0.6 + 0.7 + 1.0) / 4)
    assert ridge["gain_over_floor"] == pytest.approx((0.5 + 0.3 + 0.3 + 0.0) / 4)
    assert ridge["gain_low"] <= ridge["gain_over_floor"] <= ridge["gain_high"]
    assert ridge["gain_low"] >= 0 and ridge["gain_high"] <= 0.5  # paired: the gains' own range
    assert ridge["valid"] == pytest.approx(0.6)
    one = pick(rows, model="Ridge", split="1", **cell)
    assert one["mean"] == pytest.approx(2.2 / 3, abs=1e-4) and one["n_tasks"] == 3
    assert one["gain_over_floor"] is None and one["champion"] is False
    assert one["valid"] == pytest.approx(0.7)
    assert "| ours | Ridge | **0.700** (+0.275 [" in text and "model (4 users)" in text


def test_seeds_are_averaged_inside_a_user(tree):
    """Before the mean, the interval and the test; a row that lacks a seed is not finished."""
    tree.entry("time", [0, 1])
    for split in (0, 1):
        tree.run("Pop", users(0.1, 0.1, 0.1, first=split), valid=0.5, split=split)
        for seed, values in ((0, (0.0, 0.4, 0.8)), (7, (0.4, 0.0, 0.8))):
            tree.run("BPR", users(*values, first=split), valid=0.5, split=split, seed=seed)
        tree.run("EASE", users(0.1, 0.1, 0.1, first=split), valid=0.4, split=split)
    page = yaml.safe_load(tree.page.read_text("utf-8"))
    page["trained"]["seeds"] = [0, 7]
    tree.page.write_text(yaml.safe_dump(page), "utf-8")
    rows, text = tree.table()
    assert "Not finished, so not shown: QueryPop, Fold, MAML, Ridge, Other, EASE." in text
    cell = {"model": "BPR", "metric": "ndcg@10", "slice": "after"}
    both = pick(rows, split="all", **cell)
    of_users = [0.2, 0.2, 0.5, 0.8]  # u02 is judged in both splits: .8, .2
    assert both["mean"] == pytest.approx(np.mean(of_users)) and both["n_tasks"] == 4
    assert (both["seeds"], pick(rows, model="Pop", metric="ndcg@10", split="all")["seeds"]) == (
        2,
        1,
    )
    gains = [value - 0.1 for value in of_users]
    assert both["p_floor"] == pytest.approx(stats.wilcoxon(gains).pvalue, rel=5e-3)
    for split in ("0", "1"):
        alone = pick(rows, split=split, **cell)
        assert alone["mean"] == pytest.approx(0.4) and alone["n_tasks"] == 3
    page["trained"]["rows"] = [
        {"name": "EASE", "model": "EASE", "seeds": [0]},
        page["trained"]["rows"][1],
    ]
    tree.page.write_text(yaml.safe_dump(page), "utf-8")
    assert pick(tree.table()[0], model="EASE", split="all", metric="ndcg@10")["seeds"] == 1


# Champions and tests.


@pytest.fixture
def board(tree) -> Tree:
    """Three k; on test the order within the groups is the opposite of valid's."""
    tree.entry("time", [0])
    for k, gain in ((1, 0.0), (5, 0.06), (10, 0.2)):
        tree.run("Pop", spread(0.3, 1), valid=0.5, k=k)
        tree.run("QueryPop", spread(0.4, 2), valid=0.4, k=k)
        tree.run("Fold", spread(0.32, 3), valid=0.45, k=k)
        tree.run("EASE", spread(0.2, 4), valid=0.6, k=k)
        tree.run("BPR", spread(0.9, 5), valid=0.5, k=k)
        tree.run("MAML", spread(0.35, 8), valid=0.5, k=k)
        tree.run("Ridge", spread(0.3 + gain, 6), valid=0.7, k=k)
        tree.run("Other", spread(0.8, 7), valid=0.6, k=k)
    return tree


def test_champions_are_named_by_valid(board):
    rows, text = board.table()
    lead = [r for r in rows if r["metric"] == "ndcg@10" and r["slice"] == "after"]
    named = {(r["k"], r["model"]) for r in lead if r["champion"]}
    assert named == {(k, m) for k in (1, 5, 10) for m in ("Pop", "Fold", "EASE", "MAML", "Ridge")}
    assert all(r["gain_over_floor"] is None for r in lead if r["model"] == "Pop")
    gain = pick(lead, k=10, model="Other")["gain_over_floor"]
    assert gain == pytest.approx(
        np.mean(list(spread(0.8, 7).values())) - np.mean(list(spread(0.3, 1).values())), abs=1e-4
    ), "over the floor that valid named"
    (line,) = [line for line in text.splitlines() if line.startswith("| ours | Other |")]
    assert "**" not in line
    (line,) = [line for line in text.splitlines() if line.startswith("| ours | Ridge |")]
    assert line.count("**") == 6


def by_hand_holm(p: dict) -> dict:
    """Step down: the i-th smallest of m times (m - i), never below the one before."""
    adjusted, before = {}, 0.0
    for i, (key, value) in enumerate(sorted(p.items(), key=lambda pair: pair[1])):
        before = max(before, min(1.0, value * (len(p) - i)))
        adjusted[key] = before
    return adjusted


def test_only_champions_are_tested_and_holm_is_over_the_whole_table(board):
    rows, text = board.table()
    values = {("Pop", k): spread(0.3, 1) for k in (1, 5, 10)}
    for k, gain in ((1, 0.0), (5, 0.06), (10, 0.2)):
        values |= {("Fold", k): spread(0.32, 3), ("EASE", k): spread(0.2, 4),
                   ("MAML", k): spread(0.35, 8), ("Ridge", k): spread(0.3 + gain, 6)}  # fmt: skip

    def p(model, against, k):
        ours, theirs = values[model, k], values[against, k]
        return stats.wilcoxon([ours[user] - theirs[user] for user in ours]).pvalue

    floor = {(m, k): p(m, "Pop", k) for m in ("Fold", "EASE", "MAML", "Ridge") for k in (1, 5, 10)}
    cf = {(m, k): p(m, "EASE", k) for m in ("MAML", "Ridge") for k in (1, 5, 10)}  # best on valid
    published = {("Ridge", k): p("Ridge", "MAML", k) for k in (1, 5, 10)}
    for column, raw in (("p_floor", floor), ("p_cf", cf), ("p_published", published)):
        found = {(r["model"], r["k"]): r[column] for r in rows if r[column] is not None}
        assert found == pytest.approx(by_hand_holm(raw), rel=5e-3), column
    for rival, name in (("cf", "EASE"), ("published", "MAML")):
        row = pick(rows, model="Ridge", k=10, metric="ndcg@10", split="all")
        mean = np.mean([values["Ridge", 10][u] - v for u, v in values[name, 10].items()])
        assert row[rival] == name
        assert row[f"gain_over_{rival}"] == pytest.approx(mean, abs=1e-4)
        assert row[f"{rival}_low"] < mean < row[f"{rival}_high"]
    tests = ("p_floor", "p_cf", "p_published")
    tested = [r for r in rows if any(r[p] is not None for p in tests)]
    assert {(r["metric"], r["slice"], r["split"]) for r in tested} == {("ndcg@10", "after", "all")}
    (line,) = [line for line in text.splitlines() if line.startswith("| ours | Ridge |")]
    first, _, third = line.strip("| ").split(" | ")[2:]
    assert ">floor" not in first and all(f">{of}" in third for of in ("floor", "CF", "published"))
    assert "| champion | Ridge | Ridge | Ridge |" in text
    (line,) = [line for line in text.splitlines() if line.startswith("| over published learners |")]
    assert [cell.split(":")[0] for cell in line.strip("| ").split(" | ")[1:]] == 3 * ["MAML"]
    (line,) = [line for line in text.splitlines() if line.startswith("| recbole | EASE |")]
    assert "<floor" in line and ">floor" not in line


def test_the_champion_of_ours_and_who_is_better(tree):
    """Below the published one and above the rule, which only k = 5 has."""
    tree.entry("time", [0])
    ours, rule, theirs = spread(0.4, 2), spread(0.2, 3), spread(0.8, 4)
    for k in (1, 5):
        tree.run("Pop", spread(0.3, 1), valid=0.5, k=k)
        tree.run("Ridge", ours, valid=0.5, k=k)
        tree.run("MAML", theirs, valid=0.5, k=k)
    tree.run("Fold", rule, valid=0.5, k=5)
    rows, text = tree.table()
    (line,) = [line for line in text.splitlines() if line.startswith("| ours | Ridge |")]
    assert "<published" in line and ">published" not in line and line.count(">CF") == 1
    row = pick(rows, model="Ridge", k=5, metric="ndcg@10", split="all")
    for title, name, values in (("fold-in rules and RecBole's models", "cf", rule),
                                ("published learners", "published", theirs)):  # fmt: skip
        gains = np.array([ours[user] - values[user] for user in ours])
        mean, wide = gains.mean(), 1.96 * gains.std(ddof=1) / len(gains) ** 0.5
        low, high = row[f"{name}_low"], row[f"{name}_high"]
        assert (low, high) == pytest.approx((mean - wide, mean + wide), abs=0.2 * wide)
        (line,) = [line for line in text.splitlines() if line.startswith(f"| over {title} |")]
        first, second = (cell.strip() for cell in line.strip("|").split("|")[1:])
        p = f"{row[f'p_{name}']:.2g}"
        assert second == f"{row[name]}: {mean:+.3f} [{low:+.3f}, {high:+.3f}], p {p}"
        assert (first == "") == (name == "cf")


def test_groups_that_did_not_run_are_no_champions(tree):
    tree.entry("time", [0])
    tree.run("Ridge", spread(0.5, 1), valid=0.5)
    rows, text = tree.table()
    row = pick(rows, metric="ndcg@10", split="all")
    assert row["champion"] and row["p_floor"] is row["p_cf"] is row["gain_over_floor"] is None
    assert "Not finished, so not shown: Pop, QueryPop, Fold, MAML, Other, EASE, BPR." in text
    assert "The champion of ours" not in text and "| over " not in text


def test_choices_are_shown_where_no_model_of_recbole_is_judged(tree):
    tree.entry("time", [0], trained_from=None)
    tree.run("Ridge", spread(0.5, 1), valid=0.5)
    assert "- Ridge: 1 trials; edges chosen: none" in tree.table()[1]


# What is shown and what is not.


def test_a_row_that_lacks_a_split_is_named_and_not_shown(tree):
    tree.entry("time", [0, 1])
    for model in GROUP_OF:
        for split in (0, 1):
            if (model, split) != ("Other", 1):
                tree.run(model, spread(0.5, split), valid=0.5, split=split)
    rows, text = tree.table()
    assert {row["model"] for row in rows} == GROUP_OF.keys() - {"Other"}
    assert "Not finished, so not shown: Other." in text


def test_what_failed_is_a_row_that_says_so(tree):
    """At the k of the unit, or at all; another entry's, a mended one's and old files' are none."""
    tree.entry("time", [0])
    tree.entry("other", [0])
    for entry in ("time", "other"):
        for k in (1, 5):
            tree.run("Pop", spread(0.4, k), valid=0.5, k=k, entry=entry)
    tree.run("EASE", spread(0.5, 1), valid=0.5, k=1)

    def fail(place, row, group, error, k=None, entries=("time",)):
        path = tree.root / "runs" / "made" / f"{place}.json.failed"
        path.parent.mkdir(parents=True, exist_ok=True)
        about = {"row": row, "group": group, "error": error, "k": k, "entries": entries}
        path.write_text(json.dumps(about), "utf-8")

    fail("search/time/BPR/0", "BPR", "recbole", "TimeUp: It did not end in 10 minutes.")
    fail("time/0/EASE-k5", "EASE", "recbole", "LinAlgError: Singular matrix", 5)
    fail("time/0/Pop", "Pop", "floor", "ValueError: mended")
    fail("other/0/Ridge", "Ridge", "ours", "ValueError: no", None, ["other"])
    (tree.root / "runs/made/time/0/Fold.json.failed").write_text("Traceback, of old", "utf-8")
    rows, text = tree.table()
    failed = {(r["model"], r["k"], r["failed"]) for r in rows if "failed" in r}
    late = "TimeUp: It did not end in 10 minutes."
    assert failed == {("BPR", 1, late), ("BPR", 5, late), ("Ridge", 1, "ValueError: no"),
                      ("EASE", 5, "LinAlgError: Singular matrix"),
                      ("Ridge", 5, "ValueError: no")}  # fmt: skip
    assert all(r["mean"] is r["p_floor"] is None for r in rows if "failed" in r)
    time, other = text.split("\n## ")[1:3]
    assert "| recbole | BPR | failed | failed |" in time and "| BPR |" not in other
    assert re.search(r"\| recbole \| EASE \| [^|]*0\.\d+[^|]* \| failed \|", time)
    assert f"Failed: BPR ({late}); EASE (LinAlgError: Singular matrix)." in time
    assert "not shown: QueryPop, Fold, MAML, Ridge, Other." in time and "| Ridge |" not in time
    assert "| ours | Ridge | failed | failed |" in other


def test_recboles_rows_are_read_from_the_entry_that_has_them(tree):
    """``all`` asks for everything after the reserve, which ``time`` judged as a slice."""
    tree.entry("time", [0])
    tree.entry("all", [0], trained_from="time")
    tree.entry("none", [0], trained_from=None, groups=["floor"])
    rest = spread(0.7, 3)
    for model in GROUP_OF:
        tree.run(model, spread(0.2, 2), valid=0.3, query="rows_1_10", slices={"after": rest})
        if GROUP_OF[model] != "recbole":
            tree.run(model, spread(0.6, 4), valid=0.5, entry="all")
    tree.run("Pop", spread(0.1, 5), valid=0.5, entry="none")
    rows, text = tree.table()
    of_time, of_all, of_none = text.split("\n## ")[1:4]
    assert "| BPR |" in of_time and "| BPR |" in of_all and "| BPR |" not in of_none
    after = [row for row in rows if row["slice"] == "after" and row["metric"] == "ndcg@10"]
    bpr = pick(after, model="BPR", split="all")
    assert bpr["mean"] == pytest.approx(np.mean(list(rest.values())), abs=1e-4)
    assert "Not finished" not in text


def test_it_is_said_on_what_the_settings_were_chosen(tree):
    """RecBole's rows are searched once, perhaps elsewhere and by another query."""
    tree.entry("time", [0, 1])
    tree.entry("global", [8])
    tree.entry("all", [0, 1], trained_from="time")
    tree.entry("none", [0], searched=True, trained_from=None, groups=["floor"])
    some = spread(0.2, 2)
    for entry, split in (("time", 0), ("time", 1), ("global", 8)):
        tree.run("Ridge", some, 0.3, entry, split, query="rows_1_10")
        tree.run("BPR", some, 0.3, entry, split, query="rows_1_10", slices={"after": some})
    for entry, split in (("all", 0), ("all", 1), ("none", 0)):
        tree.run("Pop", some, 0.3, entry, split)
    _, text = tree.table()
    of_time, of_global, of_all, of_none = (part.splitlines()[2] for part in text.split("## ")[1:5])
    ours = "Ours: at most 7 trials per k and split, on valid by this query."
    search = "one search of 3 trials at k = 5, on valid of split 0 of `time`, for all k and splits"
    assert of_none == ours
    assert all(line.startswith(ours) and search in line for line in (of_time, of_global, of_all))
    assert of_time.endswith("; users of that valid may be judged in other splits.")
    assert of_global.endswith("; `time` sees users and rows that the splits here hold back.")
    assert (
        "the runs of `time`: **search and early stopping chose by its query, rows_1_10**" in of_all
    )


def test_it_is_said_how_learners_that_train_were_searched(tree):
    """Beside RecBole's models, and without them."""
    tree.entry("time", [0], searched=True)
    some = spread(0.2, 2)
    for model in ("Pop", "Ridge"):
        tree.run(model, some, 0.3)
    page = yaml.safe_load(tree.page.read_text("utf-8"))
    page["trained"]["rows"].append({"name": "Ridge", "model": "Ridge"})
    tree.page.write_text(yaml.safe_dump(page), "utf-8")
    line = tree.table()[1].split("## ")[1].splitlines()[2]
    assert line.endswith("What trains has the page's settings: none was searched.")
    page["trained"]["rows"][-1]["grid"] = {"a": ["b", "c"]}
    tree.page.write_text(yaml.safe_dump(page), "utf-8")
    closed = "Closed forms: at most 7 trials per k and split, on valid by this query."
    where = "on valid of split 0 of `time`, for all k and splits."
    line = tree.table()[1].split("## ")[1].splitlines()[2]
    assert line == (
        f"{closed} Learners that train: one search of 3 trials, by the mean over k, {where}"
    )
    tree.run("BPR", some, 0.3)
    line = tree.table()[1].split("## ")[1].splitlines()[2]
    assert line == (
        f"{closed} RecBole's models: one search of 3 trials at k = 5; learners that train: by the "
        f"mean over k, {where}"
    )


def test_what_ended_a_choice_or_a_training_is_said(tree):
    """Edges of settings that are searched together, and epochs near their cap."""
    tree.entry("time", [0, 1])
    for split in (0, 1):
        tree.run("Pop", spread(0.2, split), 0.3, split=split)
        folder = tree.run("MAML", spread(0.2, split), 0.3, split=split)
        result = json.loads((folder / "result.json").read_text("utf-8"))
        result |= {"history": [{}], "epochs": 19 - 10 * split, "config": {"epochs": 20}}
        (folder / "result.json").write_text(json.dumps(result), "utf-8")
        unit = folder.parents[1] / "MAML-k5-seed0.json"
        content = json.loads(unit.read_text("utf-8")) | {
            "chosen": {"5": {"a": 3, "b": 1, "c": 1, "d": 0.9}}
        }
        del content["scores"], content["trials"]
        unit.write_text(json.dumps(content), "utf-8")
    page = yaml.safe_load(tree.page.read_text("utf-8"))
    grid = {
        "a,b": [[1, 0], [2, 1], [3, 2]],
        "c": [1, 2],
        "d": {"low": 1e-6, "high": 1, "log": True},
    }
    page["trained"]["rows"].append({"name": "MAML", "model": "MAML", "grid": grid})
    tree.page.write_text(yaml.safe_dump(page), "utf-8")
    edges = "a = 3 in 2 of 2; d near 1 in 2 of 2"
    line = f"- MAML: 3 trials; edges chosen: {edges}; best epoch near the cap in 1 of 2\n"
    assert line in tree.table()[1]


def test_a_slice_that_only_a_later_split_has_is_shown(tree):
    tree.entry("time", [0, 1])
    later = {"u00": 0.25, "u01": 0.75}
    for model in ("Pop", "Ridge"):
        tree.run(model, spread(0.5, 1), valid=0.5)
        tree.run(model, spread(0.5, 2), valid=0.5, split=1, slices={"later": later})
    rows, text = tree.table()
    row = pick(rows, model="Ridge", slice="later", split="all")
    assert row["mean"] == pytest.approx(0.5) and row["n_tasks"] == 2
    assert "Slice `later` (2 users):" in text


def test_nothing_finished_is_an_error_that_says_what_to_run(tree):
    tree.entry("time", [0])
    with pytest.raises(DataError, match=r"made/time: no finished run.*recbole-meta benchmark made"):
        tree.table()


@pytest.mark.parametrize("content", ['{"row": "Pop", "ru', "[]", '{"row": "Pop"}', "\xff"])
def test_a_damaged_unit_is_named(tree, content):
    tree.entry("time", [0])
    tree.run("Pop", spread(0.5, 1), valid=0.5)
    file = tree.root / "runs" / "made" / "time" / "0" / "Pop-k5-seed0.json"
    file.write_text(content, "latin-1")
    with pytest.raises(DataError, match=r"time/0/Pop-k5-seed0\.json is damaged: run"):
        tree.table()


def test_ratings_are_better_when_smaller(tree):
    tree.entry("time", [0])
    same = {"feedback": "rating"}
    tree.run("Pop", spread(0.8, 1), valid=0.9, **same)
    tree.run("QueryPop", spread(0.9, 2), valid=0.8, **same)
    tree.run("Ridge", spread(0.5, 3), valid=0.6, **same)
    tree.run("Other", spread(0.4, 4), valid=0.7, **same)
    tree.run("Fold", spread(1.3, 5), valid=0.8, **same)
    rows, text = tree.table()
    named = {row["model"] for row in rows if row["champion"]}
    assert named == {"QueryPop", "Ridge", "Fold"}
    for metric in ("mae", "rmse"):  # 0.9 of QueryPop, the floor that valid named
        ridge, fold = (pick(rows, model=m, metric=metric) for m in ("Ridge", "Fold"))
        assert ridge["gain_over_floor"] == pytest.approx(
            np.mean(list(spread(0.9, 2).values())) - np.mean(list(spread(0.5, 3).values())),
            abs=1e-4,
        )
        assert 0 < ridge["gain_low"] < ridge["gain_over_floor"] < ridge["gain_high"]
        assert fold["gain_high"] < 0
    assert pick(rows, model="Ridge", metric="mae")["gain_over_cf"] > 0
    (ridge,) = [line for line in text.splitlines() if "| ours | Ridge |" in line]
    (fold,) = [line for line in text.splitlines() if "| Fold |" in line]
    assert ">floor" in ridge and ">CF" in ridge and "<floor" in fold and "MAE" in text


def test_champion_ignores_rows_that_valid_did_not_judge(tree):
    tree.entry("time", [0])
    folders = [tree.run(m, spread(0.5, 1), valid=v) for m, v in (("Ridge", 0.4), ("Other", 0.9))]
    entries = [Entry(f.name, "ours", "ids", (RunFiles(f),)) for f in folders]
    assert champion(entries, ["ours"], "after", "ndcg@10").name == "Other-k5-seed0"
    assert champion(entries, ["floor"], "after", "ndcg@10") is None
    del entries[1].runs[0].result["valid_slices"]["after"]
    assert champion(entries, ["ours"], "after", "ndcg@10").name == "Ridge-k5-seed0"


# The committed tables.

ROOT = Path(__file__).resolve().parents[1]


def committed(name: str) -> dict[tuple, float]:
    """(entry, model, k) -> NDCG@10 of the primary query in ``results/<name>/table.json``."""
    rows = json.loads((ROOT / "results" / name / "table.json").read_text("utf-8"))
    found = {}
    for judging in benchmark_page(name)[1]["settings"]:
        asked = {"global": "rows_11_20", "time": "rows_11_20", "first": "rows_1_10"}
        order = judging.get("changed", {}).get("order", "time")
        wanted = {"protocol": judging["protocol"], "order": order, "split": "all",
                  "metric": "ndcg@10", "slice": asked.get(judging["name"], "after")}  # fmt: skip
        for row in rows:
            if wanted.items() <= row.items():
                found[judging["name"], row["model"], row["k"]] = row["mean"]
    return found


def tables_of(page: Path) -> list[list[list[str]]]:
    """The cells of each Markdown table, without its head."""
    blocks = re.findall(r"(?:^\|.*\n)+", page.read_text("utf-8"), re.M)
    return [[line.strip("| \n").split(" | ") for line in b.splitlines()[2:]] for b in blocks]


def test_the_page_of_distances_says_what_the_tables_say():
    """Every cell, and that those farther off than .02 are the bold ones, explained one by one."""
    found, narrow = committed("foundation"), committed("narrow")
    levels, far = tables_of(ROOT / "results" / "foundation" / "README.md")
    bold = {}
    for section, model, *cells in levels:
        for k, cell in zip((0, 1, 3, 5, 10), cells, strict=False):
            if cell.strip():
                here, reference = (float(number) for number in re.findall(r"\d\.\d+", cell))
                value = found[section, model, k]
                assert f"{value:.3f}" == f"{here:.3f}", (section, model, k)
                assert ("**" in cell) == (abs(value - reference) > 0.02), (section, model, k)
                if "**" in cell:
                    bold[section, model, k] = reference
    for section, model, k, *cells in far:
        key = section, model, int(k)
        expected = [f"{value:.3f}" for value in (bold.pop(key), found[key], narrow[key])]
        assert cells == expected, key
    assert not bold


# The terminal's table.


def lines_of(text: str) -> dict[str, str]:
    """Model -> its line."""
    return {line[1:].split()[1]: line for line in text.splitlines() if line[1:].split()[1:]}


def test_the_terminal_marks_the_best_and_compares_with_the_floor_of_valid(tree):
    tree.entry("time", [0])
    runs = [
        tree.run("Pop", users(0.1, 0.3), valid=0.9),
        tree.run("QueryPop", users(0.7, 0.7), valid=0.1),
        tree.run("Ridge", users(0.4, 0.6), valid=0.2),
        tree.run("Other", users(0.5, 0.9), valid=0.3),
    ]
    text = terminal_table(runs)
    found = lines_of(text)
    assert [model for model, line in found.items() if line.startswith("*")][:1] == ["QueryPop"]
    assert "gain over Pop [95 %]" in text and "(best floor on valid)" in found["Pop"]
    assert "+0.3000 [+0.3000, +0.3000]" in found["Ridge"], "paired over users"
    assert "+0.5000 [+0.4000, +0.6000]" in found["Other"]
    assert "1.5" in found["Ridge"].split() and found["Ridge"].split()[-1] == "ids"
    order = [line for line in text.splitlines() if line.split()[-1] == "ids"]
    assert [line[1:].split()[1] for line in order] == ["Pop", "QueryPop", "Ridge", "Other"]
    assert "larger is better" in text and "settings are the defaults." in text
    assert "the defaults but noise = 0.1." in terminal_table(runs, {"noise": 0.1})


def test_the_terminal_marks_the_smallest_error(tree):
    tree.entry("time", [0])
    same = {"feedback": "rating"}
    runs = [
        tree.run("Pop", users(0.9, 1.1), valid=0.8, **same),
        tree.run("QueryPop", users(0.8, 0.9), valid=0.9, **same),
        tree.run("Ridge", users(0.5, 0.9), valid=0.7, **same),
        tree.run("Other", users(2.0, 2.0), valid=0.7, **same),
    ]
    text = terminal_table(runs)
    found = lines_of(text)
    assert [m for m, line in found.items() if line.startswith("* ") and "ours" in line] == ["Ridge"]
    assert "gain over Pop" in text and "smaller is better" in text
    assert "+0.3000 [+0.2000, +0.4000]" in found["Ridge"]


def test_the_terminal_has_a_table_for_each_k(tree):
    tree.entry("time", [0])
    runs = [tree.run("Ridge", users(0.1 * k, 0.2), valid=0.5, k=k) for k in (1, 10, 5)]
    text = terminal_table(runs)
    heads = [line for line in text.splitlines() if line.startswith("made, ")]
    assert [head.split("k = ")[1].split(":")[0] for head in heads] == ["1", "5", "10"]
    assert "2 cold users" in heads[0]
