"""One trainer for all models of ours, and the judge in place of RecBole's evaluation for every
trainer.
"""

import copy
import math
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import recbole.trainer
import torch
from torch.nn.utils.clip_grad import clip_grad_norm_
from torch.optim.lr_scheduler import LambdaLR

from recbole_meta.averaging import MovingAverage
from recbole_meta.balancing import Balancer, make_balancer
from recbole_meta.checkpoint import Checkpoints, generators, set_generators
from recbole_meta.errors import DataError, Diverged
from recbole_meta.evaluation.judge import Judge, Judged

History = list[dict[str, float]]


class Trainer(recbole.trainer.Trainer):
    """RecBole's trainer for learners: ``prepare`` first, then epochs of tasks where there are any.

    The epoch that is best on valid is kept, by unrounded values. With ``checkpoints`` every epoch
    ends with all that the next one depends on in ``last.pt``: a run that was killed and is started
    again ends with the same bits.
    """

    validate: Callable[[], float] | None = None  # the score that chooses the epoch, bigger: better
    checkpoints: Checkpoints | None = None
    stop_after: int | None = None  # epochs, where they were chosen before; the last one is kept
    after_epoch: Callable[[dict[str, float]], None] | None = None
    balancer: Balancer | None = None  # of the losses of a model that has several
    average: MovingAverage | None = None  # of the parameters; what is judged, where there is one
    held_out: Any = None  # an Interaction of labelled rows that a balancer may learn from

    def __init__(self, config: Any, model: Any) -> None:
        super().__init__(config, model)
        self.history: History = []
        self.best_epoch = 0  # from 1; 0: none
        self.best_score = -math.inf
        self.waited = 0  # validations since the best
        self._best: dict[str, Any] | None = None
        self.schedule = None
        if self.optimizer is not None:
            if config["balancer"] is not None:
                self.balancer = self._make_balancer(config, model)
            if config["average"]:
                self.average = MovingAverage(model.parameters(), config["average"])
            self.schedule = LambdaLR(self.optimizer, _rate(config["schedule"], self.epochs))
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.enable_scaler)

    def _build_optimizer(self, **kwargs: Any) -> "torch.optim.Optimizer | None":
        parameters = list(self.model.parameters())
        return super()._build_optimizer(**kwargs) if parameters else None

    def _make_balancer(self, config: Any, model: Any) -> Balancer:
        """By name; the optimiser learns its parameters too, without weight decay."""
        assert self.optimizer is not None
        made = make_balancer(config["balancer"], config["balancer_settings"] or {}, model)
        if parameters := made.parameters():
            self.optimizer.add_param_group({"params": parameters, "weight_decay": 0.0})
        return made

    def fit(self, train_data: Any, valid_data: Any = None, *args: Any, **kwargs: Any) -> Any:
        """(best valid score, its result) as RecBole's; the model is the best epoch's.

        Where ``validate`` is not set, ``valid_data`` is judged by RecBole's ``valid_metric``.
        """
        self.model.prepare(train_data)
        if self.epochs > 0:
            if self.validate is None and valid_data is not None and self.stop_after is None:
                self.validate = lambda: self._valid_score(valid_data)
            self._resume(train_data)
            while not self._is_over():
                self._one_epoch(train_data)
            if self._best is None and self.average is not None:
                self.average.exchange()
            if self._best is None and self.checkpoints is not None:
                self.checkpoints.write(
                    "best", {"epoch": self.best_epoch, "model": self.model.state_dict()}
                )
            if self._best is not None:
                self.model.load_state_dict(self._best)
            self.model.eval()
            return self.best_score, self.best_valid_result
        if valid_data is None:
            return -1, None
        self.best_valid_score, self.best_valid_result = self._valid_epoch(valid_data)
        return self.best_valid_score, self.best_valid_result

    def _valid_score(self, valid_data: Any) -> float:
        score, self.best_valid_result = self._valid_epoch(valid_data)
        return float(score if self.valid_metric_bigger else -score)

    def _is_over(self) -> bool:
        done = len(self.history)
        return done >= (self.stop_after or self.epochs) or self.waited > self.stopping_step

    def _one_epoch(self, train_data: Any) -> None:
        epoch = len(self.history) + 1
        entry = {"epoch": epoch, "loss": self._train_epoch(train_data, epoch)}
        assert self.schedule is not None
        self.schedule.step()
        if self.validate is None:
            self.best_epoch = epoch  # nothing chooses: the last one
        elif epoch % self.eval_step == 0:
            self.model.eval()
            with nullcontext() if self.average is None else self.average.inside():
                entry["valid"] = self.validate()
                self._compare(epoch, entry["valid"])
        self.history.append(entry)
        if self.checkpoints is not None:
            self.checkpoints.write("last", self._state(train_data))
        if self.after_epoch is not None:
            self.after_epoch(entry)

    def _compare(self, epoch: int, score: float) -> None:
        if not score > self.best_score:
            self.waited += 1
            return
        self.best_epoch, self.best_score, self.waited = epoch, score, 0
        self._best = copy.deepcopy(self.model.state_dict())
        if self.checkpoints is not None:
            self.checkpoints.write("best", {"epoch": epoch, "model": self._best})

    def _train_epoch(
        self, train_data: Any, epoch_idx: int, loss_func: Any = None, show_progress: bool = False
    ) -> float:
        """The mean loss of the epoch's batches."""
        self.model.train()
        loss_func = loss_func or self._losses
        total, batches = 0.0, 0
        for number, interaction in enumerate(train_data, start=1):
            interaction = interaction.to(self.device)
            self.optimizer.zero_grad()
            with torch.autocast(self.device.type, enabled=bool(self.enable_amp)):
                losses = loss_func(interaction)
                several = isinstance(losses, dict)
                loss = self.balancer.vector(losses).sum() if several else losses
            if not torch.isfinite(loss):
                raise Diverged(self._not_finite(loss.item(), epoch_idx, number, interaction))
            self.backward(losses)
            self.scaler.unscale_(self.optimizer)
            if self.clip_grad_norm:
                clip_grad_norm_(self.model.parameters(), **self.clip_grad_norm)
            self.scaler.step(self.optimizer)
            self.scaler.update()
            if self.average is not None:
                self.average.update()
            if self.balancer is not None:
                self.balancer.after_step(interaction)
            total, batches = total + loss.item(), number
        if self.balancer is not None:
            self.balancer.end_epoch()
        return total / max(1, batches)

    def _losses(self, interaction: Any) -> torch.Tensor | dict[str, torch.Tensor]:
        """The loss of a batch, or one per objective where a balancer makes a step of them."""
        if self.balancer is None:
            return self.model.calculate_loss(interaction)
        return self.balancer.losses(interaction, self.held_out)

    def backward(self, losses: torch.Tensor | dict[str, torch.Tensor]) -> None:
        """Gradients of the parameters: of one loss, or of several by name through the balancer."""
        if isinstance(losses, dict):
            assert self.balancer is not None
            self.balancer.backward(self.balancer.vector(losses), self.scaler.scale)
        else:
            self.scaler.scale(losses).backward()

    def _not_finite(self, loss: float, epoch: int, batch: int, interaction: Any) -> str:
        tasks = interaction["task"].tolist() if "task" in interaction.columns else []
        return (
            f"{type(self.model).__name__}: the loss is {loss} in epoch {epoch}, batch {batch} "
            f"(tasks with RecBole's ids {tasks[:5]}, ..). Try a smaller learning_rate or inner_lr, "
            "or clip_grad_norm."
        )

    def _state(self, train_data: Any) -> dict[str, Any]:
        """All that the next epoch depends on."""
        assert self.optimizer is not None and self.schedule is not None
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "scaler": self.scaler.state_dict(),
            "balancer": None if self.balancer is None else self.balancer.state_dict(),
            "average": None if self.average is None else self.average.state_dict(),
            "generators": generators(),
            "loader": train_data.state_dict(),
            "history": self.history,
            "best": [self.best_epoch, self.best_score, self.waited],
        }

    def _resume(self, train_data: Any) -> None:
        """Go on after the last finished epoch of this training, where there is one."""
        state = self.checkpoints.read("last") if self.checkpoints else None
        if state is None:
            return
        assert self.optimizer is not None and self.schedule is not None and self.checkpoints
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        self.scaler.load_state_dict(state["scaler"])
        if self.balancer is not None:
            self.balancer.load_state_dict(state["balancer"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        train_data.load_state_dict(state["loader"])
        self.history = state["history"]
        self.best_epoch, self.best_score, self.waited = state["best"]
        if self.validate is not None and self.best_epoch:
            best = self.checkpoints.read("best")
            if best is None or best["epoch"] < self.best_epoch:
                raise DataError(f"{self.checkpoints.folder} has a last.pt without its best.pt.")
            if best["epoch"] == self.best_epoch:  # else it is of the epoch that was cut short
                self._best = best["model"]
        set_generators(state["generators"])


def _rate(schedule: str | None, epochs: int) -> Callable[[int], float]:
    """The factor on the learning rate in an epoch, from 0."""
    if schedule == "cosine":
        return lambda epoch: 0.5 * (1 + math.cos(math.pi * epoch / max(1, epochs)))
    return lambda epoch: 1.0


def judge_with(trainer: recbole.trainer.Trainer, judge: Judge) -> None:
    """Let this judge collect and evaluate what the trainer's model scores."""
    trainer.eval_collector = judge
    trainer.evaluator = judge


def judge_model(trainer: recbole.trainer.Trainer, judge: Judge, data: Any) -> Judged:
    """Judge the trainer's model as it is on the tasks of ``data``."""
    judge_with(trainer, judge)
    trainer.evaluate(data, load_best_model=False)
    return judge.last()
