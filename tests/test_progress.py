"""What a sweep says of itself: its log, the time left, and the memory that its processes share."""

import json
import subprocess
import sys
import time

import psutil
import pytest

from recbole_meta.progress import Log, said_left, seconds_left
from recbole_meta.room import Peak, Room


@pytest.mark.parametrize(
    ("n", "seconds", "processes", "said"),
    [
        (41, 12_000, 2, "41 units are missing, about 1 h 40 min with 2 processes"),
        (41, 2_900, 1, "41 units are missing, about 48 min with 1 process"),
        (1, 80, 2, "1 unit is missing, about 80 s with 2 processes"),
        (3, None, 2, "3 units are missing"),
        (0, 0, 2, "0 units are missing"),
    ],
)
def test_the_time_left_is_said(n, seconds, processes, said):
    assert said_left(n, seconds, processes) == said


def test_the_time_left_is_that_of_the_same_kind():
    """The mean of the row's finished units, trials apart from judged ones; else of all."""
    took = {("MAML", True): [10.0, 20.0], ("MAML", False): [100.0], ("Pop", False): [1.0, 1.0]}
    assert seconds_left([("MAML", True)] * 4, took) == 60
    assert seconds_left([("MAML", False), ("Pop", False)], took) == 101
    assert seconds_left([("CNP", False)], took) == pytest.approx(132 / 5)
    assert seconds_left([("CNP", False)], {}) is None


def test_the_log_has_a_line_per_event_and_gives_the_largest_peak(tmp_path):
    log = Log(tmp_path / "runs" / "sweep.jsonl")
    assert list(log.events()) == [] and log.peak("A", "MAML") is None
    log.add("start", "a.json", row="A", model="MAML")
    for row, peak in (("A", 0.5), ("A", 0.75), ("B", 2.0)):
        log.add("done", "a.json", row=row, model="MAML", peak_gb=peak)
    with open(log.file, "a") as stream:
        stream.write('{"event": "do\n[1]\n')
    log.add("done", "c.json", row="C", model="Pop", peak_gb=0.1)
    assert [event["event"] for event in log.events()] == ["start", "done", "done", "done", "done"]
    assert log.peak("A", "MAML") == 0.75, "the row's own"
    assert log.peak("Another", "MAML") == 2.0, "the model's"
    assert log.peak("Another", "Pop") == 0.1 and log.peak("Another", "CNP") is None


@pytest.fixture
def other():
    """Another process, which does nothing."""
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)"])
    yield process
    process.kill()
    process.wait()


def test_a_unit_begins_where_there_is_room(tmp_path, other):
    """What others will need counts, and what they have; one always runs; the dead have none."""
    here = psutil.Process().memory_info().rss / 1e9
    mine, theirs = Room(tmp_path, 10.0), Room(tmp_path, 10.0, other.pid)
    assert mine.enter(50.0), "nobody else works"
    mine.leave()
    assert theirs.enter(6.0)
    assert not mine.enter(4.5) and mine.enter(3.5)
    mine.leave()
    small = Room(tmp_path, 6.0 + here / 2)
    assert not small.enter(0.0), "what it has already is more than is left"
    theirs.leave()
    assert mine.enter(9.0) and not theirs.enter(5.0)
    mine.leave()
    assert theirs.enter(6.0) and not mine.enter(5.0)
    other.kill()
    other.wait()
    assert mine.enter(5.0) and not theirs.file.exists()
    mine.close()
    assert [path.suffix for path in (tmp_path / "processes").glob("*.json")] == []


def test_without_a_bound_there_is_always_room(tmp_path):
    room = Room(tmp_path, None)
    assert room.enter(1e9) and not list(tmp_path.iterdir())


def test_the_file_of_a_process_whose_number_was_given_away_is_none(tmp_path, other):
    mine, theirs = Room(tmp_path, 1.0), Room(tmp_path, 1.0, other.pid)
    said = json.loads(theirs.file.read_text())
    theirs.file.write_text(json.dumps(said | {"gb": 9.0, "since": said["since"] - 5}))
    assert mine.enter(5.0) and not theirs.file.exists()


def test_the_peak_is_seen_after_it_is_over():
    with Peak() as peak:
        taken = bytearray(300_000_000)
        taken[::4096] = b"x" * len(taken[::4096])
        time.sleep(0.3)
        del taken
        time.sleep(0.2)
    assert peak.gb > psutil.Process().memory_info().rss / 1e9 + 0.2
