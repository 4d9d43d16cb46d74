"""Users of valid who are judged in another split: against the files of the protocol."""

import importlib.util
from pathlib import Path

import yaml

from recbole_meta.data.prepare import prepare, read_protocol
from recbole_meta.data.prepared import open_prepared

FILE = Path(__file__).resolve().parents[1] / "benchmarks" / "shared_users.py"
CHANGED = {"order": "random", "shots": [0, 1], "reserve": 4, "horizon": 5, "eligible": 12,
           "folds": 0}  # fmt: skip


def test_the_users_who_are_valid_here_and_judged_there(tmp_path, sample_path, capsys):
    spec = importlib.util.spec_from_file_location("shared_users", FILE)
    program = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(program)
    one = {"name": "one", "protocol": "user_cold_curve", "changed": CHANGED, "splits": [0]}
    three = one | {"name": "three", "splits": [0, 1, 2]}
    page = {"dataset": "tiny", "seed": 3, "trials": 1, "settings": [one, three],
            "rows": [{"name": "Pop", "model": "Pop"}],
            "trained": {"searches": [], "shots": [], "rows": []}}  # fmt: skip
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(page), "utf-8")
    program.main([str(tmp_path / "small.yaml"), "--data_path", str(sample_path),
                  "--prepared_path", str(tmp_path / "prepared")])  # fmt: skip
    users: dict[str, dict[str, set[int]]] = {}
    for split in range(3):
        wanted = read_protocol("user_cold_curve", **CHANGED, split=split)
        made = prepare("tiny", wanted, "user_cold_curve", sample_path, tmp_path / "again")
        folder = open_prepared(made)
        for phase in ("valid", "test"):
            for user in folder.tasks(phase):
                users.setdefault(user, {"valid": set(), "test": set()})[phase].add(split)
    valid = [each for each in users.values() if each["valid"]]
    shared = sum(any(v != t for v in u["valid"] for t in u["test"]) for u in valid)
    assert 0 < shared < len(valid), "a sample that shows it"
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("one: 0 of ")
    assert second == f"three: {shared} of {len(valid)} users of valid are judged in another split"
