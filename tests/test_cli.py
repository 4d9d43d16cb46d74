"""The command line: what it prints, and that bad input is one line and exit code 2."""

import json
import logging
import re
import subprocess
import sys
from pathlib import Path
from subprocess import PIPE

import pytest
import torch

from recbole_meta.cli import main, run_main
from recbole_meta.settings import names

COMMANDS = [
    "list",
    "prepare",
    "run",
    "recompute",
    "benchmark",
    "table",
    "groups",
    "cards",
    "keep",
    "rows",
    "multitask",
    "fuse",
    "adapt",
    "export",
    "info",
    "clean",
]


@pytest.fixture(autouse=True)
def _logging_kept():
    """The command sets the level of our logger; the next test finds it as it was."""
    level = logging.getLogger("recbole_meta").level
    yield
    logging.getLogger("recbole_meta").setLevel(level)


@pytest.fixture
def call(tmp_path, monkeypatch, capsys, sample_path):
    """``call("run -m Pop")`` in an empty folder: exit code, stdout, stderr."""
    monkeypatch.chdir(tmp_path)

    def run(line: str, *more: str, data: bool = True):
        arguments = [*line.split(), *more]
        if data and arguments[0] in ("run", "prepare"):
            arguments += ["--data_path", str(sample_path)]
        try:
            code = main(arguments)
        except SystemExit as left:  # argparse's own
            code = left.code
        return code, *capsys.readouterr()

    return run


def refused(result, *said: str) -> str:
    """One line on stderr that says all of this, nothing on stdout, nothing made."""
    code, out, err = result
    assert code == 2
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert err.endswith("\n")
    assert "Traceback" not in err
    for text in said:
        assert text in err, err
    assert not Path("dataset").exists(), "it worked before it refused"
    return err


# What it prints.


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_an_example_that_is_read(call, command):
    code, out, _ = call(f"{command} --help", data=False)
    assert code == 0
    assert f"example: recbole-meta {command}" in " ".join(out.split())


def test_every_command_is_in_the_help(call):
    code, out, _ = call("--help", data=False)
    assert code == 0
    assert "example: recbole-meta run" in out
    listed = re.findall(r"^    (\w+)", out, re.M)
    assert listed == COMMANDS


def test_help_of_the_runner(capsys):
    with pytest.raises(SystemExit) as left:
        run_main(["--help"])
    out = capsys.readouterr().out
    assert left.value.code == 0
    assert "example: python run_recbole_meta.py -m" in " ".join(out.split())
    assert "default: user_cold_5" in " ".join(out.split())


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_only_defaults_that_there_are(call, command):
    out = " ".join(call(f"{command} --help", data=False)[1].split())
    for nothing in ("None", "False", "", "0"):
        assert f"(default: {nothing})" not in out
    assert ("--key=value changes a setting of the protocol" in out) == (
        command in ("prepare", "run")
    )


def test_list_models(call):
    code, out, _ = call("list models")
    rows = [line.split() for line in out.splitlines()]
    assert code == 0
    assert ["ours", "PriorRidge", "implicit"] in rows
    assert ["floor", "UserItemBias"] in [row[:2] for row in rows]
    assert ["recbole", "BPR"] in rows
    assert ["recbole", "recbole.Pop"] in rows  # ours has its name
    assert next(line for line in out.splitlines() if " DMF" in line).endswith("untried)")
    assert [row[0] for row in rows] == sorted((row[0] for row in rows), key="flo fol our rec".find)


@pytest.mark.parametrize("what", ["protocols", "benchmarks"])
def test_list_pages(call, what):
    code, out, _ = call(f"list {what}")
    assert code == 0
    assert [line.split()[0] for line in out.splitlines()] == names(what.removesuffix("s"))
    for line in out.splitlines():
        assert "#" not in line
        assert len(line.split()) > 3  # it says what it is


def test_list_datasets(call, sample_path):
    code, out, _ = call("list datasets --data_path", str(sample_path))
    assert code == 0
    assert out.split() == ["ml-100k", "tiny"]


def test_a_data_set_that_cannot_be_prepared_is_not_listed(call):
    for name in ("mine/mine.inter", "zipped/zipped.inter.gz", "cut/cut.train.inter", "a/b.inter"):
        Path("data", name).parent.mkdir(parents=True)
        Path("data", name).write_text("")
    assert call("list datasets --data_path data")[1].split() == ["mine", "ml-100k"]


def test_prepare_says_where_and_how_many(call, sample_path):
    code, out, _ = call("prepare -d tiny --split=1")
    folder, counts = out.splitlines()
    assert code == 0
    rows = len((sample_path / "tiny" / "tiny.inter").read_text().splitlines()) - 1
    about = json.loads((Path(folder) / "protocol.json").read_text())
    assert counts == (
        f"{rows} rows, 60 users, 40 items (98% of the users eligible); cold: 6 valid, 12 test"
    )
    assert about["settings"]["split"] == 1


def test_run_prints_the_table_and_keeps_the_runs(call):
    code, out, err = call(
        "run -m Pop,PriorRidge -d tiny --split=1 --embedding_size=8 --threads 1 --json all.json"
    )
    assert code == 0, err
    assert err == ""  # no progress bar where no terminal shows it
    head, titles, pop, ridge, foot, where = out.splitlines()
    assert head == (
        "tiny, user_cold_5, order time, split 1, k = 5: 12 cold users, query 'after'"
    )  # and not split 0
    assert titles.split()[:3] == ["group", "model", "ndcg@10"]
    assert "gain over Pop [95 %]" in titles
    assert "(best floor on valid)" in pop
    assert not pop.startswith("*")
    assert ridge.startswith("*")  # even lovers get even items
    assert "larger is better" in foot
    assert "embedding_size = 8" in foot
    assert where == "Runs: runs"
    told = json.loads(Path("all.json").read_text())
    assert list(told) == ["Pop", "PriorRidge"]
    (entry,) = told["PriorRidge"]["runs"]
    result = json.loads((Path(entry["folder"]) / "result.json").read_text())
    assert result["config"]["embedding_size"] == 8
    mean, low, high = (float(x) for x in re.search(r"(\S+) \[(\S+), (\S+)\]", ridge).groups())
    assert mean == pytest.approx(result["metrics"]["ndcg@10"], abs=5e-5)
    assert low < mean < high
    gain = float(re.search(r"\+(\S+) \[\+", ridge).group(1))
    assert gain == pytest.approx(
        told["PriorRidge"]["test_result"]["ndcg@10"] - told["Pop"]["test_result"]["ndcg@10"],
        abs=1e-4,
    )


def test_verbose_says_what_is_read_with_which_settings_and_how_long_it_takes(call, caplog):
    line = "run -m PriorRidge -d tiny -q --embedding_size=8"
    assert call(line)[0] == 0
    assert caplog.messages == []
    assert call(f"{line} -v")[0] == 0
    found, read, done = caplog.messages
    assert re.fullmatch(
        r".*/tiny: prepared folder dataset/prepared/tiny-user_cold_5-\w+ found", found
    )
    assert re.fullmatch(
        r"PriorRidge reads train of tiny-user_cold_5-\w+: \d+ rows, 60 users, 40 items, "
        r"tasks: 6 valid, 12 test \(\d+\.\d s\)",
        read,
    )
    assert re.match(r"PriorRidge at k = 5: fit \d+\.\d s, evaluate \d+\.\d s, settings: ", done)
    assert "embedding_size = 8" in done and "noise = " in done


def test_the_runner_runs_what_the_command_runs(tmp_path, monkeypatch, capsys, sample_path):
    monkeypatch.chdir(tmp_path)
    line = f"-m Pop -d tiny --order random --seed 7 --data_path {sample_path} --results here"
    assert run_main(line.split()) == 0
    assert "order random" in capsys.readouterr().out
    assert Path("here/tiny-user_cold_5-random-0/Pop-seed7-k5/result.json").is_file()


def test_precedence_of_config_files_and_arguments(call):
    Path("one.yaml").write_text("embedding_size: 4\nnoise: 0.5\nsplit: 1\n")
    Path("two.yaml").write_text("embedding_size: 6\nbase_weight: 3.0\n")
    line = "run -m PriorRidge -d tiny --base_weight=2 --config_files"
    code, out, err = call(line, "one.yaml two.yaml")
    assert code == 0, err
    assert "split 1" in out
    (path,) = Path("runs").rglob("result.json")
    config = json.loads(path.read_text())["config"]
    assert (config["embedding_size"], config["noise"], config["base_weight"]) == (6, 0.5, 2.0)


def test_a_setting_reaches_only_the_models_that_read_it(call):
    code, _, err = call("run -m Pop,PriorRidge,EASE -d tiny --reg_weight=11.5")
    assert code == 0, err
    held = {
        result["model"]: result["config"].get("reg_weight")
        for result in (json.loads(path.read_text()) for path in Path("runs").rglob("result.json"))
    }
    assert held == {"Pop": None, "PriorRidge": None, "EASE": 11.5}


def test_recompute_prints_the_run(call):
    call("run -m Pop -d tiny -q")
    code, out, _ = call("recompute runs/tiny-user_cold_5-time-0/Pop-seed2020-k5")
    result = json.loads(
        Path("runs/tiny-user_cold_5-time-0/Pop-seed2020-k5/result.json").read_text()
    )
    first = out.splitlines()[0].split()
    assert code == 0
    assert first[:2] == ["after", "ndcg@10"]
    assert float(first[2]) == pytest.approx(result["metrics"]["ndcg@10"], abs=5e-7)
    lie = json.loads(json.dumps(result))
    lie["metrics"]["ndcg@10"] = 0.99
    Path("runs/tiny-user_cold_5-time-0/Pop-seed2020-k5/result.json").write_text(json.dumps(lie))
    code, out, err = call("recompute runs/tiny-user_cold_5-time-0/Pop-seed2020-k5")
    assert (code, out) == (2, "")
    assert "result.json: 'after ndcg@10' does not follow" in err


# Cleaning.


@pytest.fixture
def strangers(call):
    """A run and its prepared folder, beside files that are not ours."""
    call("run -m Pop -d tiny -q")
    keep = ["runs/notes.txt", "runs/other/result.json", "dataset/prepared/mine/data.inter"]
    keep += ["runs/deep/my.json", "dataset/tiny/tiny.inter", "dataset/prepared/x/protocol.json"]
    for name in keep:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text("{}")
    return keep


def files() -> list[str]:
    return sorted(str(path) for path in Path().rglob("*") if path.is_file())


def test_clean_deletes_nothing_unasked(call, strangers):
    before = files()
    code, out, _ = call("clean")
    assert code == 0
    assert files() == before
    lines = out.splitlines()
    assert len(lines) == 2
    assert all(line.startswith("would delete ") for line in lines)


def test_clean_deletes_only_prepared_folders_and_runs(call, strangers):
    before = files()
    gone = [name for name in before if name not in strangers]
    assert len(gone) >= 11  # 7 of the prepared folder, 2 of the run, the locks of both
    code, out, _ = call("clean --yes")
    assert code == 0
    assert out.count("deleted ") == 2
    assert files() == sorted(strangers)
    assert not Path("runs/tiny-user_cold_5-time-0").exists()  # no empty folders left
    assert "nothing to delete" in call("clean --yes")[1]


def test_clean_takes_what_a_training_left_and_no_strangers_file(call):
    code, out, _ = call("run -m CNP -d tiny --epochs=1 --save")
    assert code == 0
    (model,) = Path("runs").rglob("model.pt")
    assert f"CNP: {model}" in out and (model.parent / "best.pt").is_file()
    stranger = Path("runs/mine/best.pt")
    stranger.parent.mkdir()
    stranger.write_bytes(b"not ours")
    assert call("clean --yes")[0] == 0
    assert files_below("runs") == [str(stranger)]


def files_below(folder):
    return [str(path) for path in sorted(Path(folder).rglob("*")) if path.is_file()]


def test_clean_where_nothing_is(call):
    assert call("clean --yes")[:2] == (0, "nothing to delete\n")


def test_a_reader_who_leaves_stops_nothing(call):
    """`recbole-meta clean --yes | head -1`: all is deleted, and there is no traceback."""
    runs = [Path(f"runs/{'x' * 100}/{number:04}") for number in range(1000)]  # more than a pipe
    for run in runs:
        run.mkdir(parents=True)
        (run / "result.json").write_text("{}")
        (run / "tasks.npz").write_text("")
    program = [sys.executable, "-m", "recbole_meta.cli", "clean", "--yes"]
    with subprocess.Popen(program, stdout=PIPE, stderr=PIPE, text=True) as process:
        assert process.stdout.readline().startswith("deleted ")
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 141
    assert not Path("runs").exists()


# Bad input. Each names what was found, and the nearest name where there is one.

BAD = [
    ("run -m BPRR", "Unknown model 'BPRR'. Did you mean 'BPR'?"),
    ("run -m PriorRigde", "Unknown model 'PriorRigde'. Did you mean 'PriorRidge'?"),
    ("run -m priorridge", "Did you mean 'PriorRidge'?"),
    ("run -m recbole.BPRR", "Did you mean 'BPR'?"),
    ("run -m Pop,BPRR", "'BPRR'"),
    ("run -m ,", "--model names no model"),
    ("run -m Pop -p user_cold5", "Unknown protocol 'user_cold5'. Did you mean 'user_cold_5'?"),
    ("prepare -p user_cold5", "Did you mean 'user_cold_5'?"),
    ("run -m Pop -p ../protocol/user_cold_6", "Unknown protocol"),
    ("run -m Pop -d tinyy", "tinyy.inter", "Did you mean 'tiny'?", "data_path"),
    ("prepare -d tinyy", "Did you mean 'tiny'?"),
    ("run -m PriorRidge --embeding_size=8", "'embeding_size'. Did you mean 'embedding_size'?"),
    ("run -m BPR --embeding_size=8", "'embeding_size'. Did you mean 'embedding_size'?"),
    ("run -m BPR,Pop --embeding_size=8", "'embeding_size'. Did you mean 'embedding_size'?"),
    ("run -m Pop --splitt=1", "Did you mean 'split'?"),
    ("run -m Pop --s=1", "setting 's'"),
    ("prepare -d tiny --shot=1", "Did you mean 'shots'?"),
    ("run -m PriorRidge --embedding_size=big", "'embedding_size'", "int", "'big'"),
    ("run -m PriorRidge --embedding_size=8.5", "'embedding_size'", "int", "8.5"),
    ("run -m PriorRidge --embedding_size=true", "'embedding_size'", "int", "True"),
    ("run -m BPR --embedding_size=big", "'embedding_size'", "int", "'big'"),
    ("run -m BPR --learning_rate=fast", "'learning_rate'", "float", "'fast'"),
    ("run -m BPR --learner=adma", "'adma'. Did you mean 'adam'?"),
    ("run -m BPR --epochs=0", "'epochs' must be at least 1, found 0"),
    ("run -m BPR --train_batch_size=0", "'train_batch_size' must be at least 1"),
    ("run -m Pop --shots=five", "'shots'", "int", "'five'"),
    ("run -m Pop --shots=-1", "shots"),
    ("run -m Pop --folds=5 --split=5", "split"),
    ("run -m Pop --threshold=4", "'threshold'"),
    ("run -m BPR --val_interval={rating:[3,5]}", "'val_interval' is ignored by RecBole"),
    ("run -m BPR --user_inter_num_interval=[5,inf)", "'user_inter_num_interval' is ignored"),
    ("run -m BPR --item_inter_num_interval=[5,inf)", "'item_inter_num_interval' is ignored"),
    ("run -m BPR --filter_inter_by_user_or_item=true", "is ignored by RecBole"),
    ("run -m BPR,Pop --val_interval=1", "'val_interval' is ignored by RecBole"),
    ("run -m BPR --gpu_id=1", "'gpu_id' is no setting but an argument of the command", "--device"),
    ("run -m BPR --metrics=[Recall]", "'metrics' is set by the prepared folder or the command"),
    ("run -m BPR --topk=20", "'topk' is set by"),
    ("run -m BPR --eval_args={}", "'eval_args' is set by"),
    ("run -m BPR --save_dataset=true", "'save_dataset' is set by"),
    ("run -m BPR --checkpoint_dir=x", "'checkpoint_dir' is set by"),
    ("run -m Pop --device gpu", "No device 'gpu' here"),
    ("run -m Pop --threads 0", "'threads' must be at least 1, found 0"),
    ("run -m Pop --threads many", "--threads", "many"),
    ("run -m Pop --order tmie", "--order", "tmie"),
    ("run -m Pop --config_files none.yaml", "none.yaml"),
    ("run -m Pop -p user_cold_5_label", "Pop cannot be judged on feedback 'label', only on impl"),
    ("run -m BPR -p user_cold_5_rating", "BPR cannot be judged on feedback 'rating'"),
    ("run -m FM -p user_cold_5_rating", "FM cannot be judged on feedback 'rating'"),
    ("run -m UserItemBias", "UserItemBias cannot be judged on feedback 'implicit'"),
    ("run -m PriorRidge --epochs=3", "'epochs': it is a closed form"),
    ("run -m EASE --learning_rate=0.1", "'learning_rate': it is a closed form"),
    ("run -m Pop,EASE --epochs=3", "'epochs': they are closed forms"),
    ("run -m Pop split=1", "'split=1'", "--key=value"),
    ("run -m Pop --split", "'--split'", "--key=value"),
    ("run -m Pop --noise=[1", "'--noise'"),
    ("run -m Pop --noise=!!python/object/apply:os.getcwd[]", "'--noise'"),
    ("run -m Pop --json no/such/all.json", "Cannot write into the folder no/such"),
    ("recompute runs/none", "runs/none is not the folder of a run"),
    ("recompute x --split=1", "unrecognized arguments: --split=1"),
    ("benchmark fuondation", "Did you mean 'foundation'?"),
    ("benchmark none.yaml", "none.yaml"),
    ("table fuondation", "Did you mean 'foundation'?"),
    ("list model", "model", "choose from"),
    ("lsit models", "lsit", "choose from"),
]


@pytest.mark.parametrize("bad", BAD, ids=lambda bad: bad[0])
def test_bad_input_is_one_line(call, bad):
    line, *said = bad
    refused(call(line), *said)


def test_no_command_is_one_line(call):
    refused(call("", "--verbose", data=False))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_cuda_without_a_gpu(call):
    refused(call("run -m Pop -d tiny --device cuda"), "No device 'cuda' here. Allowed: cpu.")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"a: [1\nb: 2", "bad.yaml"),
        (b"- 1\n- 2", "bad.yaml must hold 'key: value' lines, found list"),
        (b"a: \xff\xfe", "bad.yaml"),
        (b"noise: !!python/object/apply:os.getcwd []", "bad.yaml"),
        (b"embeding_size: 8", "'embeding_size'. Did you mean 'embedding_size'?"),
        (b"1: 8", "setting '1'"),
        (b"model: BPR", "'model' is no setting but an argument of the command and of run(): --mo"),
        (b"dataset: tiny", "an argument of the command and of run(): --dataset."),
        (b"seed: 3", "an argument of the command and of run(): --seed."),
    ],
)
def test_a_config_file_that_cannot_be_used(call, text, said):
    Path("bad.yaml").write_bytes(text)
    refused(call("run -m PriorRidge -d tiny --config_files bad.yaml"), said)


def test_results_folder_that_cannot_be_written(call):
    Path("taken").write_text("a file")
    for line in ("--results taken", "--results taken/below"):
        refused(call(f"run -m Pop -d tiny {line}"), "Cannot write into the folder taken")


def test_json_that_cannot_be_written(call):
    Path("taken").write_text("a file")
    Path("folder").mkdir()
    refused(call("run -m Pop -d tiny --json taken/all.json"), "taken")
    refused(call("run -m Pop -d tiny --json folder"), "--json names a file, found folder")
    refused(call("run -m Pop -d tiny --json /dev/null"), "--json names a file, found /dev/null")


def test_a_full_disk_while_json_is_written(call, monkeypatch):
    def full(path, content):
        if path.name == "all.json":
            raise OSError(28, "No space left on device")
        path.write_bytes(content)

    monkeypatch.setattr("recbole_meta.tracking.write_atomically", full)
    code, out, err = call("run -m Pop -d tiny --json all.json")
    assert (code, err) == (2, "error: Cannot write all.json: No space left on device.\n")
    assert out.splitlines()[-1] == "Runs: runs" and not Path("all.json").exists()


def test_prepared_path_that_cannot_be_written(call):
    Path("taken").write_text("a file")
    refused(call("run -m Pop -d tiny --prepared_path taken"), "taken")
    refused(call("prepare -d tiny --prepared_path taken"), "taken")


def test_code_in_a_value_stays_a_string(call):
    """RecBole alone evaluates every string of its settings."""
    trap = "__import__('pathlib').Path('ran').touch()"
    refused(call("run -m BPR -d tiny", f"--embedding_size={trap}"), "'embedding_size'", "int")
    code, _, err = call("run -m EASE -d tiny", f"--training_neg_sample_args={trap}")
    assert code == 2, err
    refused(call("run -m Pop -d tiny", f"--protocol={trap}"), "Unknown protocol")
    assert not Path("ran").exists()


def test_an_interrupt_is_no_traceback(call, monkeypatch):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("recbole_meta.quick_start.run", interrupted)
    code, out, err = call("run -m Pop -d tiny")
    assert (code, out) == (130, "")
    assert err == "interrupted; finished runs are kept\n"


def test_what_the_system_refuses_is_one_line(call, monkeypatch):
    def refuses(path):
        raise PermissionError(13, "Permission denied", "runs/kept")

    call("run -m Pop -d tiny -q")
    monkeypatch.setattr("shutil.rmtree", refuses)
    code, _, err = call("clean --yes")
    assert (code, err) == (2, "error: [Errno 13] Permission denied: 'runs/kept'\n")
