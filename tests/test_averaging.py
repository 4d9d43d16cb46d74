"""The moving average of weights against its sum, and what the trainer judges and keeps of it."""

import pytest
import torch

from recbole_meta.averaging import MovingAverage
from recbole_meta.checkpoint import Checkpoints
from recbole_meta.compat import contained
from recbole_meta.model.multitask.mta import MTA
from recbole_meta.objective_fitting import check_objective_settings, objective_config, train_set
from recbole_meta.trainer import Trainer

FEW = {"embedding_size": 4, "train_batch_size": 8, "eval_step": 1, "learning_rate": 0.05,
       "stopping_step": 9, "dropout": 0.3}  # fmt: skip


def average_of(start: torch.Tensor, steps: list[torch.Tensor], decay: float) -> torch.Tensor:
    """Step by step."""
    mean = start
    for n, step in enumerate(steps, start=1):
        kept = min(decay, n / (n + 5))
        mean = kept * mean + (1 - kept) * step
    return mean


def test_it_is_the_weighted_sum_of_all_steps():
    torch.manual_seed(0)
    start, steps = torch.randn(3, 2), torch.randn(25, 3, 2)
    parameter = torch.nn.Parameter(start.clone())
    average = MovingAverage([parameter], 0.7)
    for step in steps:
        with torch.no_grad():
            parameter.copy_(step)
        average.update()
    with average.inside():
        torch.testing.assert_close(parameter.detach(), average_of(start, list(steps), 0.7))
    assert torch.equal(parameter, steps[-1])
    with pytest.raises(KeyError), average.inside():
        raise KeyError
    assert torch.equal(parameter, steps[-1])


@pytest.fixture
def train(shop):
    """``train(epochs, scores, folder, average)``: a fitted trainer; scores of epochs on valid."""

    def trained(epochs, scores=None, folder=None, average=0.9):
        values = check_objective_settings(
            "MTA", FEW | {"average": average, "epochs": epochs}, tuple(shop.objectives)
        )
        with contained():
            from recbole.data.dataloader import UserDataLoader
            from recbole.utils import init_seed

            config = objective_config("MTA", shop, 1, values)
            init_seed(1, True)
            trainer = Trainer(config, MTA(config, train_set(shop)))
            trainer.start = trainer.model.shared.detach().clone()
            trainer.judged = []

            def validate():
                trainer.judged.append(trainer.model.shared.detach().clone())
                return scores[len(trainer.history)]

            trainer.validate = scores and validate
            loader = UserDataLoader(config, train_set(shop), None, shuffle=True)
            if folder is not None:
                trainer.checkpoints = Checkpoints(folder, {"of": "test"})
                loader.state_dict = lambda: {"generator": loader.generator.get_state()}
                loader.load_state_dict = lambda state: loader.generator.set_state(
                    state["generator"]
                )
            trainer.fit(loader)
        return trainer

    return trained


@pytest.mark.parametrize("scores", [[0.1, 0.3, 0.2], None])
def test_the_average_is_judged_and_kept(train, monkeypatch, scores):
    """Of the best epoch, or of the last one where nothing chooses; the steps are as without it."""
    seen, update = [], MovingAverage.update

    def noted(self):
        update(self)
        seen.append(self.parameters[place].clone())

    model = train(1, average=0.0).model
    place = [name for name, _ in model.named_parameters()].index("shared")
    monkeypatch.setattr(MovingAverage, "update", noted)
    trainer = train(3, scores)
    steps = len(seen) // 3
    means = [average_of(trainer.start, seen[: n * steps], 0.9) for n in (1, 2, 3)]
    for found, mean in zip(trainer.judged, means):
        torch.testing.assert_close(found, mean)
    best = 2 if scores else 3
    assert trainer.best_epoch == best
    torch.testing.assert_close(trainer.model.shared.detach(), means[best - 1])
    plain = train(3, scores, average=0.0)
    assert [e["loss"] for e in plain.history] == [e["loss"] for e in trainer.history]


def test_a_training_that_was_cut_goes_on_with_its_average(train, tmp_path):
    """Two epochs, then the others from last.pt: the same bits as without a break."""
    scores = [0.5, 0.4, 0.6, 0.3]
    whole = train(4, scores, tmp_path / "whole").model.state_dict()
    train(2, scores, tmp_path / "cut")
    again = train(4, scores, tmp_path / "cut").model.state_dict()
    assert whole.keys() == again.keys()
    for name, value in whole.items():
        assert torch.equal(value, again[name]), name
