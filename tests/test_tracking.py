"""The files of a run: whole, of one run, and not replaced without a word."""

import json
import logging
import threading
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock

from recbole_meta.choice import choose_model
from recbole_meta.errors import DataError
from recbole_meta.evaluation.judge import Judged
from recbole_meta.outcome import Outcome
from recbole_meta.tracking import LOCK, run_folder, write_run

WORLD = [(f"u{u:02}", f"i{i}", 3, 100 * u + i) for u in range(30) for i in range(u % 3, 9)]


@pytest.fixture(scope="module")
def prepared(make_world):
    return make_world(WORLD, "user_cold_5", shots=2)


@pytest.fixture
def write(tmp_path, prepared):
    """``write(0.5, noise=1)``: the folder of a run with this value and these settings."""

    def make(value: float = 0.5, data=prepared, **settings) -> Path:
        page = {"epochs": 0, "chunk_size": None}
        arrays = {"task": np.array(["u00", "u01"])}
        judged = Judged(arrays, {"after": {"ndcg@10": np.array([value, value])}})
        outcome = Outcome(2, judged, judged, {"fit": 1.0, "evaluate": 0.5}, page | settings)
        return write_run(tmp_path / "runs", choose_model("Pop"), data, 7, outcome)

    return make


def stored(folder: Path) -> tuple[dict, np.ndarray]:
    with np.load(folder / "tasks.npz") as arrays:
        return json.loads((folder / "result.json").read_text("utf-8")), arrays["ndcg@10"]


def test_a_run_with_other_settings_is_replaced_with_a_warning(write, caplog):
    folder = write(0.2, noise=0.5, learner="adam", epochs=3)
    assert write(0.3, noise=0.5, learner="adam", epochs=3) == folder
    assert caplog.messages == []
    assert write(0.4, noise=0.25, learner="adam", width=None) == folder
    assert caplog.messages == [
        f"{folder} replaces a run with epochs = 3 (now 0), noise = 0.5 (now 0.25)"
    ]
    assert caplog.records[0].levelno == logging.WARNING
    result, values = stored(folder)
    assert result["config"]["noise"] == 0.25
    assert result["metrics"] == {"ndcg@10": 0.4} and values.tolist() == [0.4, 0.4]


def test_a_run_on_other_data_is_replaced_with_a_warning(write, prepared, make_world, caplog):
    other = make_world(WORLD[1:], "user_cold_5", shots=2)
    folder = write()
    assert write(data=other) == folder
    assert caplog.messages == [
        f"{folder} replaces a run with the prepared folder {prepared.name} (now {other.name})"
    ]


@pytest.mark.parametrize("left", ["[]", "{", '{"config": 3, "data": {}}'])
def test_what_is_no_run_is_replaced(write, caplog, left):
    (write() / "result.json").write_text(left)
    assert stored(write(0.1))[0]["metrics"] == {"ndcg@10": 0.1}
    assert caplog.messages == []


def test_only_one_writes_at_a_time(write):
    folder = write(0.2)
    writer = threading.Thread(target=write, args=(0.3,))
    with FileLock(folder.parent / LOCK):
        writer.start()
        writer.join(0.3)
        assert writer.is_alive()
        assert stored(folder)[0]["metrics"] == {"ndcg@10": 0.2}
    writer.join(10)
    assert stored(folder)[0]["metrics"] == {"ndcg@10": 0.3}


@pytest.mark.parametrize("files_that_fit", [0, 1])
def test_a_full_disk_is_named_and_leaves_no_half_run(write, monkeypatch, full_disk, files_that_fit):
    folder = write()
    full_disk(files_that_fit)
    with pytest.raises(DataError, match=rf"Cannot write the run {folder}: .*No space left"):
        write(0.3)
    assert not list(folder.glob(".*")) and not (folder / "result.json").exists()
    monkeypatch.undo()
    assert stored(write(0.4))[0]["metrics"] == {"ndcg@10": 0.4}


def test_a_file_where_the_folder_should_be_is_named(write, tmp_path, prepared):
    folder = run_folder(tmp_path / "runs", "Pop", prepared, 7, 2)
    folder.parent.mkdir(parents=True)
    folder.write_text("")
    with pytest.raises(DataError, match=f"Cannot write the run {folder}: "):
        write()
