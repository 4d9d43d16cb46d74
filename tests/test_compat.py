"""RecBole runs on the versions of today, and leaves the process and the folder as they were."""

import json
import logging
import os
import subprocess
import sys
import warnings
from functools import cache
from pathlib import Path

import pytest
import torch
import yaml

from recbole_meta import compat
from recbole_meta.errors import SettingError

REPOSITORY = Path(compat.__file__).parents[1]

# What breaks without each fix (a function `use`), and what the error names.
BROKEN = {
    "numpy_config_aliases": (
        """
        from recbole.config import Config
        from recbole.model.general_recommender.pop import Pop
        assert Config(Pop, "ml-100k")["model"] == "Pop"
        """,
        "`np.float_`",
    ),
    "numpy_float": (
        """
        from recbole.data.interaction import Interaction
        assert Interaction({"age": [1.5, 2.0]})["age"].tolist() == [1.5, 2.0]
        """,
        "'float'",
    ),
    "scipy_dok_update": (
        """
        from types import SimpleNamespace
        from scipy.sparse import coo_matrix
        from recbole.model.general_recommender.lightgcn import LightGCN
        graph = SimpleNamespace(n_users=1, n_items=2, interaction_matrix=coo_matrix([[0.0, 1.0]]))
        adjacency = LightGCN.get_norm_adj_mat(graph).to_dense().round(decimals=3)
        assert adjacency.tolist() == [[0, 0, 1], [0, 0, 0], [1, 0, 0]]
        """,
        "'_update'",
    ),
}


def python(code: str, folder: Path) -> str:
    """What ``code`` prints in a fresh interpreter."""
    run = subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    return run.stdout


@cache
def without_and_with(name: str) -> dict[str, str]:
    code = f"""
import json
from recbole_meta import compat
def use():{BROKEN[name][0]}
def outcome():
    try:
        use()
    except AttributeError as error:
        return str(error)
    return "works"
for fix in compat.FIXES:
    if fix.__name__ != {name!r}:
        fix()
without = outcome()
compat.apply_fixes()
compat.apply_fixes()
print(json.dumps(dict(without=without, fixed=outcome())))
"""
    return json.loads(python(code, REPOSITORY))


@pytest.mark.parametrize("name", [fix.__name__ for fix in compat.FIXES])
def test_each_fix_is_still_necessary(name: str) -> None:
    outcome = without_and_with(name)["without"]
    assert outcome != "works", f"{name}: this fix has become unnecessary"
    assert BROKEN[name][1] in outcome


@pytest.mark.parametrize("name", [fix.__name__ for fix in compat.FIXES])
def test_each_fix_works(name: str) -> None:
    assert without_and_with(name)["fixed"] == "works"


def test_fixes_leave_alone_what_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    import numpy
    from scipy.sparse import dok_matrix

    mine = object()
    monkeypatch.setattr(numpy, "float_", mine, raising=False)
    monkeypatch.setattr(numpy, "float", mine, raising=False)
    monkeypatch.setattr(dok_matrix, "_update", mine, raising=False)
    compat.apply_fixes()
    assert numpy.float_ is numpy.float is dok_matrix._update is mine


def test_neither_ray_nor_quick_start_is_imported(tmp_path: Path) -> None:
    code = """
import sys
from recbole_meta import compat
compat.recbole_config(compat.recbole_model("BPR"), "ml-100k")
with compat.contained():
    import recbole.data, recbole.trainer, recbole.utils
names = ("ray", "recbole.quick_start", "pkg_resources", "lightgbm", "hyperopt")
print([name for name in names if name in sys.modules])
"""
    assert python(code, tmp_path) == "[]\n"
    assert os.listdir(tmp_path) == []


def process_state() -> tuple:
    """All that RecBole is known to change."""
    from recbole.trainer import trainer

    resolvers = vars(yaml.FullLoader).get("yaml_implicit_resolvers")
    copied = resolvers and {key: list(pairs) for key, pairs in resolvers.items()}
    handlers = list(logging.getLogger().handlers)
    filters = list(warnings.filters)
    return (
        id(sys.argv),
        list(sys.argv),
        dict(os.environ),
        id(resolvers),
        copied,
        filters,
        handlers,
        trainer.get_tensorboard,
    )


def test_contained_restores_everything_after_an_error_and_nested(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "argv", ["program", "--epochs=7"])
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    monkeypatch.setenv("GOES", "away")
    before = process_state()
    with pytest.raises(ZeroDivisionError), compat.contained():
        assert sys.argv == ["program"]
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
        os.environ["NEW"] = "1"
        del os.environ["GOES"]
        outer = process_state()
        with compat.contained():
            sys.argv.append("--more")
            yaml.FullLoader.add_implicit_resolver("!x", None, ["x"])
            os.environ["CUDA_VISIBLE_DEVICES"] = "0"
        assert process_state() == outer
        raise ZeroDivisionError
    assert process_state() == before


def test_only_known_harmless_warnings_are_silent() -> None:
    def heard(kind: type[Warning], message: str, module: str) -> bool:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            with compat.contained():
                warnings.warn_explicit(message, kind, "file.py", 1, module)
        return bool(caught)

    assert not heard(FutureWarning, "chained assignment", "recbole.data.dataset.dataset")
    assert not heard(UserWarning, "torch.sparse.SparseTensor(...)", "recbole.model.x.lightgcn")
    assert not heard(DeprecationWarning, "__array_wrap__ must accept", "numpy._core.fromnumeric")
    assert heard(UserWarning, "something else", "recbole.trainer.trainer")
    assert heard(FutureWarning, "chained assignment", "recbole_meta.data.prepare")


def test_config_takes_nothing_from_the_command_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["program", "--epochs=7", "--x=open('ran','w')", "word"])
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    before = process_state()
    config = compat.recbole_config(compat.recbole_model("BPR"), "ml-100k")
    assert config["epochs"] == 300 and "x" not in config
    assert process_state() == before
    assert os.listdir(tmp_path) == []


def test_settings_arrive_as_given(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    strings = {
        "a": "abs",
        "b": "open('ran','w')",
        "c": "1e3",
        "d": "True",
        "e": "1/0",
        "f": 'it\'s "so"\n',
        "g": "",
        "h": "[1]",
    }
    others = {"topk": [5], "train_neg_sample_args": {"distribution": "popularity"}, "none": None}
    config = compat.recbole_config(
        compat.recbole_model("BPR"), "ml-100k", settings={**strings, **others}
    )
    assert {key: config[key] for key in strings} == strings
    assert config["topk"] == [5] and config["none"] is None
    assert config["train_neg_sample_args"]["alpha"] == 1.0  # RecBole completes its copy
    assert others["train_neg_sample_args"] == {"distribution": "popularity"}
    assert os.listdir(tmp_path) == []


def test_settings_win_over_files_and_later_files_over_earlier(tmp_path: Path) -> None:
    first, second = tmp_path / "first.yaml", tmp_path / "second.yaml"
    first.write_text("epochs: 1\nseed: 1\ntopk: [1]\nlearning_rate: 1e-4\ngpu_id: '0,1'\n")
    second.write_text("epochs: 2\nseed: 2\nuse_gpu: True\n")
    config = compat.recbole_config(
        compat.recbole_model("BPR"), "ml-100k", [str(first), second], {"epochs": 3, "gpu_id": "1"}
    )
    assert (config["epochs"], config["seed"], config["topk"]) == (3, 2, [1])
    assert config["learning_rate"] == 1e-4  # RecBole's own resolver, which reads it as a number
    assert config["device"] == torch.device("cpu")
    assert config["gpu_id"] == "" and config["use_gpu"] is False  # no question to CUDA is asked


@pytest.mark.parametrize("device", ["gpu", "cuda:2", "cuda:", "CPU", "", "mps"])
def test_a_device_that_is_not_there_is_refused(
    device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(SettingError, match=rf"'{device}'.* cpu, cuda, cuda:0, cuda:1\."):
        compat.recbole_config(compat.recbole_model("BPR"), "ml-100k", device=device)


def test_cuda_where_there_is_none_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SettingError, match=r"'cuda'.* Allowed: cpu\."):
        compat.recbole_config(compat.recbole_model("BPR"), "ml-100k", device="cuda")


@pytest.mark.parametrize("device", ["cuda", "cuda:1"])
def test_the_device_asked_for_is_the_one_of_the_config(
    device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    config = compat.recbole_config(compat.recbole_model("BPR"), "ml-100k", device=device)
    assert config["device"] == torch.device(device) and config["use_gpu"] is True
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "4,5"


def test_every_model_in_recboles_two_folders_has_its_name() -> None:
    import recbole

    models = Path(recbole.__file__).parent / "model"
    folders = [models / "general_recommender", models / "context_aware_recommender"]
    files = {path.stem for folder in folders for path in folder.glob("[!_]*.py")}
    names = compat.recbole_model_names()
    assert {name.lower() for name in names} == files and len(names) == len(files)
    assert names == sorted(names)
    assert [compat.recbole_model(name).__name__ for name in names] == names


@pytest.mark.parametrize(("name", "meant"), [("lightgcn", "LightGCN"), ("xDeepFN", "xDeepFM")])
def test_an_unknown_model_names_the_nearest(name: str, meant: str) -> None:
    with pytest.raises(SettingError, match=f"'{name}'. Did you mean '{meant}'"):
        compat.recbole_model(name)


def slow(*names: str) -> list:
    return [pytest.param(name, marks=pytest.mark.slow) for name in names]


@pytest.mark.parametrize(
    "name",
    ["Pop", "LightGCN", "FM", *slow("ItemKNN", "EASE", "BPR", "NeuMF", "MultiVAE", "DeepFM")],
)
def test_a_model_trains_is_judged_and_read_back_without_a_trace(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from recbole.data import create_dataset, data_preparation
    from recbole.utils import get_trainer, init_seed

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["program", "--epochs=50"])
    settings = {"epochs": 1, "checkpoint_dir": "private", "eval_batch_size": 400_000}
    if name in ("FM", "DeepFM"):
        settings |= {"metrics": ["AUC"], "valid_metric": "AUC", "threshold": {"rating": 4}}
        settings |= {"train_neg_sample_args": None, "eval_args": {"mode": "labeled"}}
    if name == "MultiVAE":
        settings |= {"train_neg_sample_args": None}
    model_class = compat.recbole_model(name)
    before = process_state()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        inside = process_state()
        with compat.contained():
            config = compat.recbole_config(model_class, "ml-100k", settings=settings)
            init_seed(1, True)
            train, valid, test = data_preparation(config, create_dataset(config))
            model = model_class(config, train.dataset)
            trainer = get_trainer(config["MODEL_TYPE"], name)(config, model)
            trainer.fit(train, valid, verbose=False)
            result = trainer.evaluate(test, load_best_model=False)
            other = model_class(config, train.dataset)
            compat.load_recbole_checkpoint(trainer.saved_model_file, other)
            trainer.model = other
            again = trainer.evaluate(valid, load_best_model=False)
        assert process_state() == inside
    assert process_state() == before
    assert set(result) == set(again)
    assert all(0 < value < 1 for value in result.values())
    assert again == trainer.best_valid_result
    assert os.listdir(tmp_path) == ["private"]
    assert len(os.listdir(tmp_path / "private")) == 1
