"""A run's numbers from its files alone: by `recompute`, and by plain Python written here.

Nothing of the second way is imported from the package: files are read as text, ties are counted out
by hand.
"""

import csv
import json
import math
import re
import shutil
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest

from recbole_meta.errors import DataError, LeakError, RecboleMetaError
from recbole_meta.evaluation.recompute import recompute
from recbole_meta.quick_start import run

CURVE = {"shots": [0, 2], "reserve": 4, "horizon": 5, "eligible": 12, "folds": 0}
RANKINGS = [
    ("Pop", "user_cold_curve", CURVE),
    ("Random", "user_cold_5", {}),
    ("PriorRidge", "user_cold_curve", CURVE),
    ("EASE", "user_cold_curve", CURVE | {"shots": [2]}),
]
RATINGS = [("Constant", "user_cold_5_rating", {}), ("UserItemBias", "user_cold_5_rating", {})]
LABELS = [("Constant", "user_cold_5_label", {}), ("UserItemBias", "user_cold_5_label", {})]


@pytest.fixture(scope="module")
def room(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("room")


@pytest.fixture(scope="module")
def judged(room, sample_path):
    """``judged(model, protocol, settings)``: the folders of the run (largest k) and of its data."""
    done = {}

    def judge(model, protocol, settings):
        key = (model, protocol)
        if key not in done:
            found = run(
                model, "tiny", protocol, settings=settings, threads=1, data_path=sample_path,
                prepared_path=room / "prepared", results=room / "runs",
            )  # fmt: skip
            done[key] = Path(found["runs"][-1]["folder"]), Path(found["prepared"])
        return done[key]

    return judge


def ids(case) -> str:
    return f"{case[0]}-{case[1]}"


@pytest.mark.parametrize("case", RANKINGS + RATINGS + LABELS, ids=ids)
def test_recompute_gives_the_slices_of_the_result(judged, room, case):
    folder, _ = judged(*case)
    slices = json.loads((folder / "result.json").read_text("utf-8"))["slices"]
    found = recompute(folder, room / "prepared")
    assert list(found) == list(slices) and len(slices) > 1
    for query, metrics in slices.items():
        assert found[query] == pytest.approx(metrics, abs=1e-12, rel=0), query


# Plain Python from here on.


def rows_of(folder: Path, name: str) -> list[dict[str, str]]:
    with open(folder / f"{folder.name}.{name}", encoding="utf-8", newline="") as file:
        lines = csv.DictReader(file, delimiter="\t")
        return [{key.split(":")[0]: value for key, value in line.items()} for line in lines]


def by_user(rows: list[dict[str, str]]) -> dict[str, list[dict[str, str]]]:
    found = defaultdict(list)
    for row in rows:
        found[row["user_id"]].append(row)
    return found


def arrays_of(folder: Path) -> dict[str, np.ndarray]:
    with np.load(folder / "tasks.npz", allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


def tie_groups(scores, hits, cut_size, cut_positives) -> list[tuple[int, int]]:
    """(candidates, positives) of each group of equal scores, best first; the last goes on beyond
    the list.
    """
    groups = []
    for score in dict.fromkeys(score for score in scores if score > -math.inf):
        at = [hit for s, hit in zip(scores, hits, strict=True) if s == score]
        groups.append((len(at), sum(at)))
    if scores[-1] > -math.inf:
        groups[-1] = (cut_size, cut_positives)
    return groups


def expected(groups: list[tuple[int, int]], n_positives: int, cut: int = 10) -> dict[str, float]:
    """The metrics' means over all orders of the tied, counted out."""
    relevance, missed = [], [1.0]  # of each place; that no positive stands above it
    for size, positives in groups:
        before = missed[-1]
        for place in range(1, size + 1):
            if len(relevance) == cut:
                break
            relevance.append(positives / size)
            # The ways to fill `place` places of the group without a positive.
            ways = math.comb(size - positives, place) / math.comb(size, place)
            missed.append(before * ways)
    dcg = sum(r / math.log2(place + 2) for place, r in enumerate(relevance))
    ideal = sum(1 / math.log2(place + 2) for place in range(min(n_positives, cut)))
    return {
        "ndcg@10": dcg / ideal,
        "recall@10": sum(relevance) / n_positives,
        "mrr@10": sum((missed[i] - missed[i + 1]) / (i + 1) for i in range(len(relevance))),
        "hit@10": 1 - missed[-1],
    }


def ranking_by_hand(folder: Path, prepared: Path) -> list[dict[str, float]]:
    """The primary query's metrics of each task."""
    arrays = arrays_of(folder)
    horizon = json.loads((prepared / "protocol.json").read_text("utf-8"))["horizon"]
    queries = by_user(rows_of(prepared, "test.inter"))
    found = []
    for t, task in enumerate(arrays["task"].tolist()):
        positives = {row["item_id"] for row in queries[task][:horizon]}
        hits = [item in positives for item in arrays["topk"][t].tolist()]
        groups = tie_groups(
            arrays["topk_score"][t].tolist(), hits,
            int(arrays["cut_tie_size"][t]), int(arrays["cut_tie_positives"][t]),
        )  # fmt: skip
        found.append(expected(groups, len(positives)))
    return found


@pytest.mark.parametrize("case", RANKINGS, ids=ids)
def test_a_ranking_follows_from_files_and_plain_python(judged, case):
    folder, prepared = judged(*case)
    result, arrays = json.loads((folder / "result.json").read_text("utf-8")), arrays_of(folder)
    tasks = ranking_by_hand(folder, prepared)
    for metric, mean in result["metrics"].items():
        values = [task[metric] for task in tasks]
        assert arrays[metric].tolist() == pytest.approx(values, abs=1e-12), metric
        assert sum(values) / len(values) == pytest.approx(mean, abs=1e-12), metric
    if case[0] in ("Pop", "Random"):
        assert (arrays["cut_tie_size"] > 1).any(), "no tie at the cut was tested"


def test_what_is_stored_of_pop_is_popularity(judged):
    """Scores, lists and ties at the cut from counts of warm rows alone."""
    folder, prepared = judged(*RANKINGS[0])
    arrays = arrays_of(folder)
    about = json.loads((prepared / "protocol.json").read_text("utf-8"))
    cold = set(about["tasks"]["valid"] + about["tasks"]["test"])
    warm = [row for row in rows_of(prepared, "train_0.inter") if row["user_id"] not in cold]
    counts, n_warm = Counter(row["item_id"] for row in warm), len(by_user(warm))
    reserved = by_user(rows_of(prepared, "reserved.inter"))
    queries = by_user(rows_of(prepared, "test.inter"))
    for t, task in enumerate(arrays["task"].tolist()):
        banned = {row["item_id"] for row in reserved[task]}
        candidates = sorted(set(counts) - banned, key=lambda item: (-counts[item], item))
        assert arrays["topk"][t].tolist() == candidates[:10]
        shares = [counts[item] / n_warm for item in candidates[:10]]
        assert arrays["topk_score"][t].tolist() == pytest.approx(shares, rel=1e-6)
        tied = {item for item in candidates if counts[item] == counts[candidates[9]]}
        positives = {row["item_id"] for row in queries[task][: about["horizon"]]}
        assert arrays["cut_tie_size"][t] == len(tied)
        assert arrays["cut_tie_positives"][t] == len(tied & positives)


def labels_and_predictions(folder: Path, prepared: Path, field: str):
    """Each task's (label, prediction) pairs; the labels are those of the file."""
    arrays = arrays_of(folder)
    labels = {
        (r["user_id"], r["item_id"]): float(r[field]) for r in rows_of(prepared, "test.inter")
    }
    found = defaultdict(list)
    for task, item, prediction in zip(
        arrays["query_task"].tolist(), arrays["query_item"].tolist(), arrays["prediction"].tolist(),
        strict=True,
    ):  # fmt: skip
        found[task].append((labels.pop((task, item)), prediction))
    assert not labels, "a query row was not judged"
    return found


def graded(pairs, gain, cut: int) -> float:
    """nDCG of a user's rows; equal predictions share their mean gain."""
    gains = defaultdict(list)
    for label, prediction in pairs:
        gains[prediction].append(gain(label))
    shared = [sum(g) / len(g) for _, g in sorted(gains.items(), reverse=True) for _ in g]
    ideal = sorted((gain(label) for label, _ in pairs), reverse=True)
    discount = [1 / math.log2(place + 2) for place in range(cut)]
    return sum(map(math.prod, zip(shared, discount))) / sum(map(math.prod, zip(ideal, discount)))


BY_PLACE = [1 / math.log2(place + 2) for place in range(5)]


def best_rated(pairs, weight) -> float:
    """The weights of the places that the five best rated rows take; ties share their mean."""
    labels = sorted((label for label, _ in pairs), reverse=True)
    share = {y: sum(labels[i] == y for i in range(min(5, len(labels)))) / labels.count(y)
             for y in labels}  # fmt: skip
    groups = defaultdict(list)
    for label, prediction in pairs:
        groups[prediction].append(share[label])
    shared = [sum(g) / len(g) for _, g in sorted(groups.items(), reverse=True) for _ in g]
    return sum(map(math.prod, zip(shared, weight))) / sum(weight[: len(pairs)])


@pytest.mark.parametrize("case", RATINGS, ids=ids)
def test_ratings_follow_from_files_and_plain_python(judged, case):
    folder, prepared = judged(*case)
    metrics = json.loads((folder / "result.json").read_text("utf-8"))["metrics"]
    tasks = labels_and_predictions(folder, prepared, "rating").values()
    hand = {
        "mae": [sum(abs(y - p) for y, p in rows) / len(rows) for rows in tasks],
        "rmse": [math.sqrt(sum((y - p) ** 2 for y, p in rows) / len(rows)) for rows in tasks],
        "ndcg_linear@1": [graded(rows, lambda y: y, 1) for rows in tasks],
        "ndcg_linear@3": [graded(rows, lambda y: y, 3) for rows in tasks],
        "ndcg_linear@5": [graded(rows, lambda y: y, 5) for rows in tasks],
        "ndcg_exp@5": [graded(rows, lambda y: 2**y - 1, 5) for rows in tasks],
        "precision_best@5": [best_rated(rows, [1 / 5] * 5) for rows in tasks],
        "ndcg_best@5": [best_rated(rows, BY_PLACE) for rows in tasks],
        "ndcg_exp@1": [graded(rows, lambda y: 2**y - 1, 1) for rows in tasks],
        "ndcg_exp@3": [graded(rows, lambda y: 2**y - 1, 3) for rows in tasks],
    }
    means = {metric: sum(values) / len(values) for metric, values in hand.items()}
    assert metrics == pytest.approx(means, abs=1e-12, rel=0)


def auc(rows) -> float | None:
    """The share of (1, 0) pairs in the right order, ties one half; None with one class."""
    ones, zeros = ([p for y, p in rows if y == label] for label in (1, 0))
    pairs = [(a > b) + (a == b) / 2 for a in ones for b in zeros]
    return sum(pairs) / len(pairs) if pairs else None


def log_loss(rows) -> float:
    inside = [(y, min(max(p, 1e-7), 1 - 1e-7)) for y, p in rows]
    return -sum(math.log(p if y else 1 - p) for y, p in inside) / len(rows)


@pytest.mark.parametrize("case", LABELS, ids=ids)
def test_labels_follow_from_files_and_plain_python(judged, case):
    folder, prepared = judged(*case)
    metrics = json.loads((folder / "result.json").read_text("utf-8"))["metrics"]
    tasks = labels_and_predictions(folder, prepared, "label").values()
    areas = [area for area in map(auc, tasks) if area is not None]
    losses = [log_loss(rows) for rows in tasks]
    means = {"auc": sum(areas) / len(areas), "logloss": sum(losses) / len(losses)}
    assert metrics == pytest.approx(means, abs=1e-12, rel=0)
    if case[0] == "Constant":
        assert metrics["auc"] == 0.5


def test_ratings_that_32_bits_do_not_hold(sample_path, tmp_path):
    """RecBole's columns are of 32 bits, a file's decimals are not."""
    head, *lines = (sample_path / "tiny" / "tiny.inter").read_text("utf-8").splitlines()
    lines = [re.sub(r"\t(\d)\t", r"\t\1.3\t", line) for line in lines]
    assert all(".3\t" in line for line in lines)
    file = tmp_path / "ml-100k" / "ml-100k.inter"
    file.parent.mkdir()
    file.write_text("\n".join([head, *lines]) + "\n", "utf-8")
    found = run(
        "Constant", "ml-100k", "user_cold_5_rating", threads=1, data_path=tmp_path,
        prepared_path=tmp_path / "prepared", results=tmp_path / "runs",
    )  # fmt: skip
    values = recompute(Path(found["runs"][0]["folder"]), tmp_path / "prepared")["after"]
    assert values == pytest.approx(found["test_result"], abs=1e-12)


# What is refused.


def test_a_run_of_another_folder_is_refused(judged, room, tmp_path):
    folder, prepared = judged(*RANKINGS[0])
    _, other = judged(*RANKINGS[1])
    claimed = tmp_path / "claimed"
    shutil.copytree(folder, claimed)
    result = json.loads((folder / "result.json").read_text("utf-8"))
    result["data"]["prepared"] = other.name
    (claimed / "result.json").write_text(json.dumps(result))
    with pytest.raises(DataError, match=r"is not the folder that .* was judged on"):
        recompute(claimed, room / "prepared")
    with pytest.raises(DataError, match="is not a prepared folder"):
        recompute(folder, tmp_path)
    assert prepared.is_dir()


def test_a_prepared_folder_that_was_changed_is_refused(judged, tmp_path):
    folder, prepared = judged(*RANKINGS[0])
    changed = tmp_path / prepared.name
    shutil.copytree(prepared, changed)
    file = changed / f"{prepared.name}.test.inter"
    file.write_text(file.read_text("utf-8").replace("i1\t", "i2\t", 1), "utf-8")
    with pytest.raises(LeakError, match="changed by hand"):
        recompute(folder, tmp_path)


@pytest.mark.parametrize("damage", ["no json", "no dict", "no data", "no npz", "half npz", "empty"])
def test_what_is_no_run_is_refused(judged, room, tmp_path, damage):
    folder, _ = judged(*RANKINGS[0])
    broken = tmp_path / "run"
    shutil.copytree(folder, broken)
    json_file, npz_file = broken / "result.json", broken / "tasks.npz"
    if damage == "no json":
        json_file.unlink()
    elif damage == "no dict":
        json_file.write_text("[]")
    elif damage == "no data":
        json_file.write_text("{}")
    elif damage == "no npz":
        npz_file.unlink()
    elif damage == "half npz":
        npz_file.write_bytes(npz_file.read_bytes()[:500])
    else:
        npz_file.write_bytes(b"")
    with pytest.raises(RecboleMetaError, match="is not the folder of a run"):
        recompute(broken, room / "prepared")


@pytest.fixture
def lying(judged, room, tmp_path):
    """``lying(case, arrays, result)``: the message for a run of which this was changed."""

    def recomputed(case, arrays=None, result=None) -> str:
        folder, _ = judged(*case)
        copy = tmp_path / "run"
        shutil.copytree(folder, copy)
        stored = json.loads((folder / "result.json").read_text("utf-8"))
        if arrays:
            np.savez(copy / "tasks.npz", **arrays(arrays_of(folder)))
        if result:
            result(stored)
            (copy / "result.json").write_text(json.dumps(stored))
        with pytest.raises(DataError) as refused:
            recompute(copy, room / "prepared")
        return str(refused.value)

    return recomputed


@pytest.mark.parametrize("case", [RATINGS[1], LABELS[1]], ids=ids)
def test_labels_are_those_of_the_prepared_folder(lying, case):
    """Flipped labels in a run whose stored numbers follow from them."""

    def flipped(arrays):
        arrays["label"][3:] = 5 - arrays["label"][3:]
        return arrays

    said = lying(case, flipped)
    assert re.search(
        r"tasks\.npz: \d+ labels are not those of the prepared folder, the first", said
    )


@pytest.mark.parametrize("case", [RATINGS[0], LABELS[0]], ids=ids)
def test_every_query_row_must_be_there(lying, case):
    rows = ("query_task", "query_item", "label", "prediction")

    def shortened(arrays):
        return arrays | {name: arrays[name][1:] for name in rows}

    assert re.search(r"has \d+ query rows, .*; 1 are missing, e\.g\. \('u", lying(case, shortened))


def test_every_query_row_must_be_there_once(lying):
    def doubled(arrays):
        rows = ("query_task", "query_item", "label", "prediction")
        return arrays | {name: np.append(arrays[name], arrays[name][:1]) for name in rows}

    assert "; 0 are missing." in lying(RATINGS[0], doubled)


def test_tasks_are_those_of_the_prepared_folder(lying):
    said = lying(RANKINGS[0], lambda arrays: arrays | {"task": arrays["task"][::-1]})
    assert "tasks.npz: its tasks are not those of tiny-user_cold_curve-" in said


@pytest.mark.parametrize("case", [RANKINGS[0], RATINGS[0], LABELS[0]], ids=ids)
@pytest.mark.parametrize("query", ["primary", "slice"])
def test_a_stored_number_must_follow(lying, judged, case, query):
    stored = json.loads((judged(*case)[0] / "result.json").read_text("utf-8"))
    query = list(stored["slices"])[query == "slice"]
    metric = next(iter(stored["metrics"]))
    name = metric if query == stored["query"] else f"{query}/{metric}"
    said = lying(case, lambda arrays: arrays | {name: np.nan_to_num(arrays[name]) + 1e-6})
    assert f"tasks.npz: '{name}' does not follow" in said


def test_a_mean_must_follow(lying):
    def better(stored):
        stored["slices"][stored["query"]]["ndcg@10"] = 0.99

    assert "'rows_5_9 ndcg@10' does not follow" in (said := lying(RANKINGS[0], result=better))
    assert "stored 0.990000, recomputed 0." in said


def test_the_metrics_of_the_result_must_follow(lying):
    assert "recomputed" in lying(RANKINGS[0], result=lambda r: r["metrics"].update({"mrr@10": 1}))


def test_a_slice_that_is_none_is_noticed(lying):
    def more(stored):
        stored["slices"]["after_1_2"] = stored["metrics"]

    assert "its queries are not rows_5_9, after" in lying(RANKINGS[0], result=more)


def test_an_array_that_is_missing_is_named(lying):
    said = lying(RANKINGS[0], lambda arrays: {k: v for k, v in arrays.items() if k != "topk"})
    assert said.endswith("its files have no entry 'topk'.")
