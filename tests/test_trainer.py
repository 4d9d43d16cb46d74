"""Training of learners: what is kept, what stops it, and exact resume."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from recbole_meta import trainer as module
from recbole_meta.checkpoint import Checkpoints, finish, read_checkpoint
from recbole_meta.choice import choose_model
from recbole_meta.data.prepare import prepare, read_protocol
from recbole_meta.data.prepared import open_prepared
from recbole_meta.errors import DataError
from recbole_meta.evaluation.controls import empty, shuffled, swapped
from recbole_meta.fitting import fit_learner, judge_learner, load_learner
from recbole_meta.quick_start import run
from recbole_meta.stage import load_stage

CURVE = {"shots": [0, 1, 3], "reserve": 4, "horizon": 3, "eligible": 8, "folds": 0}
SMALL = dict(epochs=4, embedding_size=4, hidden_size=[6], train_batch_size=16, embedding_std=1.0)


@pytest.fixture(scope="module")
def prepared(sample_path, tmp_path_factory):
    target = tmp_path_factory.mktemp("prepared")
    protocol = read_protocol("user_cold_curve", **CURVE)
    return open_prepared(prepare("tiny", protocol, "user_cold_curve", sample_path, target))


@pytest.fixture
def train(prepared):
    """``train(name, folder, **settings)``: a fitted trainer."""

    def trained(name="MAML", folder=None, stop_after=None, seed=5, **settings):
        choice = choose_model(name)
        stage = load_stage(choice, prepared, "test", 0, seed, SMALL | settings)
        return fit_learner(choice, stage, stop_after, folder)

    return trained


def bits(trainer):
    return {name: value.numpy().tobytes() for name, value in trainer.model.state_dict().items()}


class Killed(Exception):
    """Stands for the end of the process."""


def kill_after(monkeypatch, epochs):
    """The process ends right after ``last.pt`` of this epoch is written, or in the one after it."""
    plain = Checkpoints.write

    def write(self, name, content):
        plain(self, name, content)
        if name == "last" and len(content["history"]) == epochs:
            raise Killed

    monkeypatch.setattr(Checkpoints, "write", write)


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
@pytest.mark.parametrize("name", ["MAML", "CNP"])
def test_a_run_that_was_cut_short_ends_with_the_same_bits(
    train, tmp_path, monkeypatch, name, schedule
):
    whole = train(name, schedule=schedule)
    assert len(whole.history) == 4
    kill_after(monkeypatch, 2)
    with pytest.raises(Exception, match="Killed"):
        train(name, tmp_path, schedule=schedule)
    monkeypatch.undo()
    np.random.default_rng(1).random(3)
    torch.rand(7)  # whatever happens in between
    again = train(name, tmp_path, schedule=schedule)
    assert bits(again) == bits(whole)
    assert again.history == whole.history and again.best_epoch == whole.best_epoch
    assert again.best_score == whole.best_score


def test_a_cut_between_best_and_last_changes_nothing(train, tmp_path, monkeypatch):
    whole = train()
    plain = Checkpoints.write

    def write(self, name, content):
        if name == "last" and len(content["history"]) == 3:
            raise Killed
        plain(self, name, content)

    monkeypatch.setattr(Checkpoints, "write", write)
    with pytest.raises(Exception, match="Killed"):
        train(folder=tmp_path)
    monkeypatch.undo()
    again = train(folder=tmp_path)
    assert bits(again) == bits(whole) and again.history == whole.history


@pytest.mark.parametrize("change", [dict(seed=6), dict(learning_rate=0.5), dict(epochs=3)])
def test_another_training_does_not_go_on_from_it(train, tmp_path, change):
    train(folder=tmp_path)
    alone, after = train(**change), train(folder=tmp_path, **change)
    assert bits(alone) == bits(after)


def test_a_damaged_checkpoint_is_named(train, tmp_path):
    train(folder=tmp_path)
    file = tmp_path / "last.pt"
    file.write_bytes(file.read_bytes()[:500])
    with pytest.raises(DataError, match=r"last\.pt is damaged or no checkpoint"):
        train(folder=tmp_path)


def test_a_checkpoint_runs_no_code(tmp_path):
    class Hostile:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "owned"),)

    torch.save({"format": 1, "x": Hostile()}, tmp_path / "last.pt")
    with pytest.raises(DataError, match="damaged or no checkpoint"):
        read_checkpoint(tmp_path / "last.pt")
    assert not (tmp_path / "owned").exists()


def test_the_best_epoch_is_kept_and_patience_ends_it(train, monkeypatch):
    scores = iter([0.1, 0.30001, 0.30000, 0.2, 0.9])
    monkeypatch.setattr(
        "recbole_meta.fitting._mean_over_shots", lambda trainer, choice, stage: next(scores)
    )
    found = train(epochs=9, stopping_step=1)
    assert found.best_epoch == 2 and len(found.history) == 4
    assert [entry["valid"] for entry in found.history] == [0.1, 0.30001, 0.30000, 0.2]
    assert bits(found) == bits(train(epochs=9, stop_after=2))


def test_a_fixed_number_of_epochs_is_not_judged(train):
    found = train(stop_after=2)
    assert len(found.history) == found.best_epoch == 2
    assert all("valid" not in entry for entry in found.history)


@pytest.mark.parametrize("stop_after", [None, 2])
@pytest.mark.parametrize("name", ["MAML", "MetaSGD", "CNP"])
def test_a_trained_learner_is_read_again_and_judged_the_same(
    train, prepared, tmp_path, name, stop_after
):
    """Chosen by valid, or after a fixed number of epochs."""
    choice, settings = choose_model(name), SMALL
    trainer = train(name, tmp_path, stop_after)
    finish(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["best.pt"]
    stage = load_stage(choice, prepared, "test", 0, 5, settings)
    again = load_learner(choice, stage, tmp_path / "best.pt")
    assert bits(again) == bits(trainer) and not again.model.training
    for k in (0, 3):
        one, two = (judge_learner(t, choice, stage, "test", k).arrays for t in (trainer, again))
        assert all(np.array_equal(one[key], two[key]) for key in one)


@pytest.mark.parametrize(
    ("name", "seed", "change", "said"),
    [("ANIL", 5, {}, "'model' is MAML, not ANIL"), ("MAML", 6, {}, "'seed' is 5, not 6"),
     ("MAML", 5, {"inner_lr": 0.2}, "'settings' is")],
)  # fmt: skip
def test_a_checkpoint_of_another_training_is_refused(
    train, prepared, tmp_path, name, seed, change, said
):
    train("MAML", tmp_path, inner_lr=0.1)
    stage = load_stage(choose_model(name), prepared, "test", 0, seed, SMALL | change)
    with pytest.raises(DataError, match=said):
        load_learner(choose_model(name), stage, tmp_path / "best.pt")


def test_a_checkpoint_of_before_a_setting_is_read_as_the_page_says(train, prepared, tmp_path):
    trainer, path = train("MAML", tmp_path), tmp_path / "best.pt"
    content = torch.load(path, weights_only=True)
    inner_lr = content["identity"]["settings"].pop("inner_lr")
    torch.save(content, path)
    stage = load_stage(choose_model("MAML"), prepared, "test", 0, 5, SMALL)
    assert bits(load_learner(choose_model("MAML"), stage, path)) == bits(trainer)
    other = load_stage(choose_model("MAML"), prepared, "test", 0, 5, SMALL | {"inner_lr": 7.0})
    with pytest.raises(DataError, match=f"'inner_lr': {inner_lr}"):
        load_learner(choose_model("MAML"), other, path)


@pytest.mark.parametrize("name", ["MAML", "CNP"])
def test_a_control_is_judged_in_place_of_the_support(train, prepared, name):
    choice, trainer = choose_model(name), train(name, support_negatives=2)
    stage = load_stage(choice, prepared, "test", 0, 5, SMALL | {"support_negatives": 2})

    def scores(k, control=None):
        return judge_learner(trainer, choice, stage, "test", k, control).arrays["topk_score"]

    assert np.allclose(scores(3, empty), scores(0), atol=1e-6)
    for control in (shuffled, swapped):
        assert not np.allclose(scores(3, control), scores(3), atol=1e-6)
        assert not np.allclose(scores(3, control), scores(0), atol=1e-6)


def test_a_loss_that_is_not_finite_names_the_batch(train, monkeypatch):
    plain, calls = module.Trainer.backward, []

    def backward(self, losses):
        calls.append(1)
        plain(self, losses)
        if len(calls) == 2:
            with torch.no_grad():
                self.model.prior["weight_0"][0, 0] = torch.nan

    monkeypatch.setattr(module.Trainer, "backward", backward)
    with pytest.raises(DataError, match=r"MAML: the loss is nan in epoch 1, batch 3 \(tasks"):
        train(learning_rate=1e-9)


def test_clipping_bounds_the_step(train):
    settings = dict(epochs=1, learner="sgd", learning_rate=1.0, train_batch_size=1000)
    start = train(**settings | dict(learning_rate=1e-12))
    free, tight = train(**settings), train(**settings, clip_grad_norm={"max_norm": 1e-3})

    def moved(trainer):
        pairs = zip(trainer.model.parameters(), start.model.parameters(), strict=True)
        return sum((a - b).square().sum().item() for a, b in pairs) ** 0.5

    assert moved(tight) == pytest.approx(1e-3, rel=1e-2) and moved(free) > 1e-2


def test_a_cosine_ends_near_zero(train):
    rates = []
    plain = module.Trainer._train_epoch

    def epoch(self, *args, **kwargs):
        rates.append(self.optimizer.param_groups[0]["lr"])
        return plain(self, *args, **kwargs)

    module.Trainer._train_epoch = epoch
    try:
        train(schedule="cosine", learning_rate=0.1, epochs=4)
    finally:
        module.Trainer._train_epoch = plain
    wanted = [0.1 * (1 + np.cos(np.pi * e / 4)) / 2 for e in range(4)]
    assert rates == pytest.approx(wanted)


def test_training_in_half_precision_where_asked(train):
    full, half = train(epochs=1), train(epochs=1, enable_amp=True)
    assert bits(full) != bits(half)
    assert half.history[0]["loss"] == pytest.approx(full.history[0]["loss"], rel=0.05)


def test_kill_9_at_random_moments(tmp_path):
    """Five of the hundred that ``benchmarks/resume.py`` tries."""
    root, file = Path(__file__).resolve().parents[1], tmp_path / "out.json"
    command = [sys.executable, str(root / "benchmarks" / "resume.py"), "--kills", "5"]
    done = subprocess.run(
        [*command, "--json", str(file)], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(file.read_text("utf-8"))
    assert found["kills"] == 5 and found["ended"] > 0 and found["arrays"] > 20
    assert found["differences"] == 0


def test_what_is_left_of_a_finished_training_is_its_best_epoch(sample_path, tmp_path):
    def go():
        return run(
            "CNP", "tiny", "user_cold_curve", settings=CURVE | SMALL, data_path=sample_path,
            prepared_path=tmp_path / "prepared", results=tmp_path / "runs",
        )  # fmt: skip

    found = go()
    (folder,) = [path for path in (tmp_path / "runs").rglob("CNP-seed2020") if path.is_dir()]
    assert [path.name for path in folder.iterdir()] == ["best.pt"]
    first = (folder / "best.pt").read_bytes()
    assert go()["test_result"] == found["test_result"]
    assert (folder / "best.pt").read_bytes() == first
