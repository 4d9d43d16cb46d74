"""One model through the runner: what comes back, what is written, what is left as found."""

import csv
import json
import os
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from recbole_meta import fitting
from recbole_meta.data.prepared import open_prepared
from recbole_meta.errors import DataError, RecboleMetaError, SettingError
from recbole_meta.evaluation.entries import RunFiles
from recbole_meta.evaluation.judge import Judge
from recbole_meta.evaluation.recompute import recompute
from recbole_meta.model import our_models
from recbole_meta.quick_start import protocol_settings, run
from recbole_meta.settings import load_properties, names
from recbole_meta.terminal import terminal_table

CURVE = {"shots": [0, 2], "reserve": 4, "horizon": 5, "eligible": 12, "folds": 0}
GLOBAL = {"shots": [2], "reserve": 4, "horizon": 5, "eligible": 12, "blocks": 4, "split": 4}
METRICS = ["ndcg@10", "recall@10", "mrr@10", "hit@10"]


@pytest.fixture(scope="module")
def prepared_path(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("prepared")


@pytest.fixture
def start(tmp_path, sample_path, prepared_path):
    """``start(model, protocol, **settings)`` on the tiny data set, runs below tmp_path."""

    def start(model, protocol="user_cold_5", results="runs", seed=1, files=(), **settings):
        return run(
            model, "tiny", protocol, settings=settings, seed=seed, config_files=files, threads=1,
            data_path=sample_path, prepared_path=prepared_path, results=tmp_path / results,
        )  # fmt: skip

    return start


def result_of(entry) -> dict:
    return json.loads((Path(entry["folder"]) / "result.json").read_text("utf-8"))


def arrays_of(entry) -> dict[str, np.ndarray]:
    with np.load(Path(entry["folder"]) / "tasks.npz", allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


def column(path: Path, field: str) -> list[str]:
    with open(path, encoding="utf-8", newline="") as file:
        rows = csv.DictReader(file, delimiter="\t")
        return [value for row in rows for key, value in row.items() if key.split(":")[0] == field]


def test_recboles_keys_come_back_and_are_those_of_the_largest_k(start):
    found = start("PriorRidge", "user_cold_curve", **CURVE)
    assert [entry["shots"] for entry in found["runs"]] == [0, 2]
    last = result_of(found["runs"][-1])
    assert found["test_result"] == last["metrics"] != result_of(found["runs"][0])["metrics"]
    assert found["best_valid_result"] == last["valid_metrics"]
    assert found["best_valid_score"] == last["valid_metrics"]["ndcg@10"]
    assert found["valid_score_bigger"] is True
    assert found["model"] == "PriorRidge" and Path(found["prepared"]).is_dir()
    assert found["best_valid_score"] != round(found["best_valid_score"], 4), "RecBole rounds"


def test_errors_are_better_when_smaller(start):
    found = start("ShrunkMedian", "user_cold_5_rating")
    assert found["valid_score_bigger"] is False
    assert found["best_valid_score"] == found["best_valid_result"]["mae"] > 0


def test_the_folder_of_a_run(start, tmp_path):
    found = start("PriorRidge", "user_cold_curve", seed=7, noise=0.5, split=1, **CURVE)
    (folder,) = [Path(entry["folder"]) for entry in found["runs"] if entry["shots"] == 2]
    assert folder == tmp_path / "runs" / "tiny-user_cold_curve-time-1" / "PriorRidge-seed7-k2"
    assert sorted(path.name for path in folder.iterdir()) == ["result.json", "tasks.npz"]
    result = result_of(found["runs"][1])
    assert list(result) == [
        "model", "group", "reads", "dataset", "protocol", "order", "split", "seed", "shots",
        "query", "metrics", "slices", "valid_metrics", "valid_slices", "seconds", "epochs",
        "history", "config", "versions", "data", "commit",
    ]  # fmt: skip
    about = json.loads((Path(found["prepared"]) / "protocol.json").read_text("utf-8"))
    said = {
        "model": "PriorRidge", "group": "ours", "reads": "ids", "dataset": "tiny",
        "protocol": "user_cold_curve", "order": "time", "split": 1, "seed": 7, "shots": 2,
        "query": "rows_5_9", "epochs": 0,
        "data": {"prepared": Path(found["prepared"]).name, "sha256": about["sha256"]},
    }  # fmt: skip
    assert {key: result[key] for key in said} == said
    assert result["config"]["noise"] == 0.5 and result["config"]["base"] == "pop"
    assert list(result["seconds"]) == ["fit", "evaluate"]
    assert all(0 < seconds < 60 for seconds in result["seconds"].values())
    assert result["slices"]["rows_5_9"] == result["metrics"] and list(result["metrics"]) == METRICS
    assert result["versions"]["torch"] == torch.__version__ and "python" in result["versions"]
    assert result["commit"] is None or len(result["commit"]) == 40


@pytest.mark.parametrize("model", ["PriorRidge", "EASE"])
def test_seconds_tell_of_both_fits_where_test_has_its_own_training_file(start, model):
    found = start(model, "user_cold_global", **GLOBAL)
    seconds = result_of(found["runs"][0])["seconds"]
    assert seconds.keys() == {"fit", "fit_valid", "evaluate"}
    assert all(0 < value < 60 for value in seconds.values())


def test_the_arrays_of_a_ranking(start):
    found = start("Pop", "user_cold_curve", **CURVE)
    arrays, result = arrays_of(found["runs"][1]), result_of(found["runs"][1])
    n = len(arrays["task"])
    assert all(array.dtype.kind in "Uif" for array in arrays.values())
    tasks = json.loads((Path(found["prepared"]) / "protocol.json").read_text())["tasks"]["test"]
    assert arrays["task"].tolist() == tasks == sorted(tasks)
    assert arrays["topk"].shape == arrays["topk_score"].shape == (n, 10)
    assert arrays["topk_score"].dtype == np.float64
    assert arrays["cut_tie_size"].dtype.kind == arrays["cut_tie_positives"].dtype.kind == "i"
    for query, metrics in result["slices"].items():
        for metric, mean in metrics.items():
            values = arrays[metric if query == "rows_5_9" else f"{query}/{metric}"]
            assert values.shape == (n,) and values.dtype == np.float64
            assert np.nanmean(values) == pytest.approx(mean, abs=1e-12)
    listed = zip(arrays["topk_score"].tolist(), arrays["topk"].tolist(), strict=True)
    keys = [list(zip([-score for score in scores], items)) for scores, items in listed]
    assert keys == [sorted(key) for key in keys]
    assert any(a[0] == b[0] for key in keys for a, b in pairwise(key)), "no tie was tested"


def test_equal_scores_are_listed_by_token(start):
    """Random gives all items one score: the list is the first ten candidates by token."""
    found = start("Random")
    arrays, folder = arrays_of(found["runs"][0]), Path(found["prepared"])
    catalogue = column(folder / f"{folder.name}.item", "item_id")
    train = folder / f"{folder.name}.train.inter"
    seen = set(zip(column(train, "user_id"), column(train, "item_id"), strict=True))
    for task, items in zip(arrays["task"].tolist(), arrays["topk"].tolist(), strict=True):
        candidates = sorted(item for item in catalogue if (task, item) not in seen)
        assert items == candidates[:10]
    assert set(arrays["cut_tie_size"].tolist()) == {len(catalogue) - 5}


def test_the_arrays_of_ratings(start):
    found = start("UserItemBias", "user_cold_5_rating")
    arrays, folder = arrays_of(found["runs"][0]), Path(found["prepared"])
    test = folder / f"{folder.name}.test.inter"
    keys = zip(column(test, "user_id"), column(test, "item_id"), strict=True)
    labels = dict(zip(keys, map(float, column(test, "rating")), strict=True))
    pairs = list(zip(arrays["query_task"].tolist(), arrays["query_item"].tolist(), strict=True))
    assert pairs == sorted(labels) and arrays["label"].tolist() == [labels[p] for p in pairs]
    assert arrays["prediction"].dtype == np.float64 == arrays["mae"].dtype
    assert len(arrays["mae"]) == len(arrays["task"]) == len({task for task, _ in pairs})


@pytest.mark.parametrize(
    ("model", "settings"), [("Pop", {}), ("PriorRidge", {}), ("EASE", {}), ("BPR", {"epochs": 2})]
)
def test_the_same_seed_gives_the_same_bytes(start, model, settings):
    once, again = (start(model, results=name, **settings)["runs"][0] for name in ("a", "b"))
    first, second = (Path(entry["folder"]) / "tasks.npz" for entry in (once, again))
    assert first.read_bytes() == second.read_bytes()


def test_another_seed_trains_another_model(start):
    scores = [
        arrays_of(start("BPR", seed=seed, epochs=1)["runs"][0])["topk_score"] for seed in (1, 2)
    ]
    assert not np.array_equal(*scores)


def test_settings_win_over_later_files_and_those_over_earlier_ones(start, tmp_path):
    first, second = tmp_path / "first.yaml", tmp_path / "second.yaml"
    first.write_text(yaml.safe_dump({"embedding_size": 4, "noise": 0.5, "split": 1, "shots": 6}))
    second.write_text("embedding_size: 8\nsplit: 2\nbase_weight: 1e0\n")
    found = start("PriorRidge", files=[first, second], noise=2, split=3)
    result = result_of(found["runs"][0])
    assert result["config"]["embedding_size"] == 8 and result["config"]["noise"] == 2
    assert result["config"]["base_weight"] == 1.0
    assert (result["split"], result["shots"]) == (3, 6)


def test_what_was_given_beyond_the_page_is_noted_down(start):
    result = result_of(start("BPR", epochs=1, train_batch_size=64)["runs"][0])
    assert result["config"]["train_batch_size"] == 64 and result["config"]["epochs"] == 1


def test_code_in_a_setting_is_a_string(start, tmp_path, monkeypatch):
    """RecBole alone evaluates every string that a Config is given."""
    monkeypatch.chdir(tmp_path)
    code = "__import__('pathlib').Path('owned').touch()"
    found = start("NeuMF", epochs=1, mf_pretrain_path=code, mf_embedding_size=4)
    assert not Path("owned").exists()
    assert result_of(found["runs"][0])["config"]["mf_pretrain_path"] == code


@pytest.mark.filterwarnings("error:Mean of empty slice")
@pytest.mark.parametrize("ratings", [[0], [-3, 2, 9]])
def test_a_metric_that_nobody_has_is_null(make_world, tmp_path, ratings):
    """Graded nDCG has a meaning neither for ratings of 0 nor for negative ones."""
    rows = [(f"u{u:02}", f"i{i}", ratings[(u + i) % len(ratings)], i)
            for u in range(30) for i in range(u % 3, 9)]  # fmt: skip
    world = make_world(rows, "user_cold_5_rating")
    found = run("Constant", "ml-100k", "user_cold_5_rating", threads=1, results=tmp_path / "runs",
                data_path=world.path.parents[1], prepared_path=world.path.parent)  # fmt: skip
    assert np.isnan(found["test_result"]["ndcg_exp@3"]) and found["test_result"]["mae"] >= 0

    def refused(word):
        pytest.fail(f"{word} is no JSON")

    folder = Path(found["runs"][0]["folder"])
    text = (folder / "result.json").read_text("utf-8")
    result = json.loads(text, parse_constant=refused)
    assert result["metrics"]["ndcg_exp@3"] is None and result["metrics"]["mae"] is not None
    assert np.isnan(RunFiles(folder).valid("after", "ndcg_exp@3"))
    assert np.isnan(recompute(folder, world.path.parent)["after"]["ndcg_exp@3"])
    assert "Constant" in terminal_table([folder])


def test_a_model_that_raises_is_named_with_its_settings(start):
    message = r"^EASE stopped with LinAlgError: Singular matrix \(settings: .*reg_weight = 0"
    with pytest.raises(RecboleMetaError, match=message) as caught:
        start("EASE", reg_weight=0.0)
    assert isinstance(caught.value.__cause__, np.linalg.LinAlgError)


def test_one_settings_file_may_be_given_alone(start, tmp_path):
    file = tmp_path / "a.yaml"
    file.write_text("noise: 0.25\n", encoding="utf-8")
    for given in (file, str(file), [file]):
        found = start("PriorRidge", files=given)
        assert result_of(found["runs"][0])["config"]["noise"] == 0.25


@pytest.mark.parametrize("seed", [-1, 2**32, None, "5"])
def test_a_seed_that_numpy_cannot_take(start, seed):
    with pytest.raises(SettingError, match=f"'seed' must be from 0 to 4294967295, found {seed}"):
        start("Pop", seed=seed)


def test_nothing_is_left_where_one_stands(sample_path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["program", "--epochs=1", "--gpu_id=3"])
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
    before, threads = dict(os.environ), torch.get_num_threads()
    found = run("BPR", "tiny", data_path=sample_path, prepared_path="made", results="out",
                settings={"epochs": 1}, threads=1)  # fmt: skip
    assert sorted(path.name for path in tmp_path.iterdir()) == ["made", "out"]
    assert sys.argv == ["program", "--epochs=1", "--gpu_id=3"] and dict(os.environ) == before
    assert torch.get_num_threads() == threads
    files = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert sorted(path.name for path in files) == [".lock", "result.json", "tasks.npz"]
    assert Path(found["prepared"]).parent.samefile("made")


@pytest.mark.parametrize(
    ("model", "protocol", "settings", "message"),
    [
        ("BPRR", "user_cold_5", {}, "Did you mean 'BPR'"),
        ("PriorRidge", "user_cold", {}, "Unknown protocol 'user_cold'"),
        ("PriorRidge", "user_cold_5", {"embedding_size": "big"}, "type int, found 'big'"),
        ("BPR", "user_cold_5", {"embedding_size": "big"}, "type int, found 'big'"),
        ("BPR", "user_cold_5", {"learning_rate": True}, "type float, found True"),
        ("BPR", "user_cold_5", {"epochs": 0}, "at least 1, found 0"),
        ("EASE", "user_cold_5", {"epochs": 3}, "closed form"),
        ("Pop", "user_cold_5_rating", {}, "cannot be judged on feedback 'rating'"),
        ("FM", "user_cold_5", {}, "cannot be judged on feedback 'implicit', only on label"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_made(
    sample_path, tmp_path, model, protocol, settings, message
):
    with pytest.raises(SettingError, match=message):
        run(model, "tiny", protocol, settings=settings, data_path=sample_path,
            prepared_path=tmp_path / "made", results=tmp_path / "out")  # fmt: skip
    assert not list(tmp_path.iterdir())


def test_results_that_cannot_be_written_are_refused_first(sample_path, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(SettingError, match=r"Cannot write into the folder .*file/out"):
        run("Pop", "tiny", data_path=sample_path, prepared_path=tmp_path / "made",
            results=tmp_path / "file" / "out")  # fmt: skip
    assert not (tmp_path / "made").exists()


def test_an_old_result_never_stands_beside_new_tasks(start, monkeypatch):
    folder = Path(start("Pop")["runs"][0]["folder"])
    monkeypatch.setattr("recbole_meta.tracking.versions", lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        start("Pop", split=0)
    assert (folder / "result.json").is_file(), "nothing new was written, so the old run stays"
    monkeypatch.undo()

    def full(path, content):
        if path.name == "result.json":
            raise OSError("no space left")
        path.write_bytes(content)

    monkeypatch.setattr("recbole_meta.tracking.write_atomically", full)
    with pytest.raises(DataError, match=r"Cannot write the run .*: no space left"):
        start("Pop")
    assert not (folder / "result.json").exists()


# The global protocol: chosen before the cut of valid, fitted again before the cut of test.


def lines_of(prepared: Path, name: str) -> int:
    return len(column(prepared / f"{prepared.name}.{name}.inter", "user_id"))


@pytest.fixture
def watched(monkeypatch):
    """What is trained on, and who is judged, in order: ('epoch', rows), ('judge', users)."""
    import recbole.trainer

    events: list[tuple[str, object]] = []
    train_epoch, collect = recbole.trainer.Trainer._train_epoch, Judge.eval_batch_collect

    def epoch(self, train_data, epoch_idx, *args, **kwargs):
        events.append(("epoch", len(train_data._dataset.inter_feat)))
        return train_epoch(self, train_data, epoch_idx, *args, **kwargs)

    def judge(self, scores, interaction, *args):
        tokens = {number: token for token, number in self.users.items()}
        found = {tokens[number] for number in interaction[self.user_field].tolist()}
        events.append(("judge", frozenset(found)))
        return collect(self, scores, interaction, *args)

    monkeypatch.setattr(recbole.trainer.Trainer, "_train_epoch", epoch)
    monkeypatch.setattr(Judge, "eval_batch_collect", judge)
    return events


def script_scores(monkeypatch, scores: list[float]) -> None:
    """Valid says these scores, whatever the model does."""
    import recbole.trainer

    said = iter(scores)
    plain = recbole.trainer.Trainer._valid_epoch

    def valid_epoch(self, *args, **kwargs):
        return next(said), plain(self, *args, **kwargs)[1]

    monkeypatch.setattr(recbole.trainer.Trainer, "_valid_epoch", valid_epoch)


@pytest.mark.parametrize(
    ("scores", "chosen"), [([0.3, 0.9, 0.1], 2), ([0.9, 0.1, 0.2], 1), ([0.5, 0.5, 0.1], 2)]
)
def test_a_refit_lasts_as_long_as_valid_said(start, watched, monkeypatch, scores, chosen):
    script_scores(monkeypatch, scores)
    found = start("BPR", "user_cold_global", epochs=3, **GLOBAL)
    prepared = Path(found["prepared"])
    train, refit = lines_of(prepared, "train_2"), lines_of(prepared, "refit_2")
    assert train < refit
    epochs = [what for kind, what in watched if kind == "epoch"]
    assert epochs == [train] * 3 + [refit] * chosen
    assert result_of(found["runs"][0])["epochs"] == chosen


def test_test_is_not_seen_while_valid_chooses(start, watched):
    found = start("BPR", "user_cold_global", epochs=2, **GLOBAL)
    tasks = open_prepared(found["prepared"]).description["tasks"]
    judged = [(place, who) for place, (kind, who) in enumerate(watched) if kind == "judge"]
    last_epoch = max(place for place, (kind, _) in enumerate(watched) if kind == "epoch")
    for place, users in judged:
        assert users <= set(tasks["test" if place > last_epoch else "valid"])
    assert frozenset.union(*(who for place, who in judged if place > last_epoch)) == set(
        tasks["test"]
    )


def test_a_learner_is_fitted_on_its_phases_own_file(start, monkeypatch):
    fitted = []
    plain = fitting.fit_learner

    def fit(choice, stage, *args, **kwargs):
        config = stage.config
        fitted.append((config["benchmark_filename"], sorted(stage.data), config["phase"]))
        return plain(choice, stage, *args, **kwargs)

    monkeypatch.setattr(fitting, "fit_learner", fit)
    start("PriorRidge", "user_cold_global", **GLOBAL)
    assert fitted == [
        (["train_2", "valid", "valid"], ["valid"], "valid"),
        (["refit_2", "test", "test"], ["test"], "test"),
    ]


def test_the_model_of_the_best_epoch_is_judged(start, monkeypatch):
    one = start("BPR", results="one", epochs=1)["test_result"]
    script_scores(monkeypatch, [0.9, 0.1, 0.1])
    assert start("BPR", results="three", epochs=3)["test_result"] == one


def test_an_unknown_data_set_names_the_nearest(sample_path, tmp_path):
    with pytest.raises(DataError, match="Did you mean 'tiny'"):
        run("Pop", "tiyn", data_path=sample_path, prepared_path=tmp_path, results=tmp_path)


def test_no_setting_of_a_model_is_one_of_a_protocol():
    """Else it could not be given to a run."""
    theirs = set().union(*(protocol_settings(name) for name in names("protocol")))
    for model in our_models():
        assert not load_properties("model", model).keys() & theirs, model
