"""One trainer for all models of ours, and the judge in place of RecBole's evaluation for every
trainer.
"""

from typing import Any

import recbole.trainer
import torch

from recbole_meta.evaluation.judge import Judge, Judged


class Trainer(recbole.trainer.Trainer):
    """RecBole's trainer that calls ``prepare`` first and needs no parameters."""

    def _build_optimizer(self, **kwargs: Any) -> "torch.optim.Optimizer | None":
        parameters = list(self.model.parameters())
        return super()._build_optimizer(**kwargs) if parameters else None

    def fit(self, train_data: Any, valid_data: Any = None, **kwargs: Any) -> Any:
        """Closed forms are fitted, then epochs run where there are any; (best valid score, its
        result).
        """
        self.model.prepare(train_data)
        if self.epochs > 0:
            return super().fit(train_data, valid_data, **kwargs)
        if valid_data is None:
            return -1, None
        self.best_valid_score, self.best_valid_result = self._valid_epoch(valid_data)
        return self.best_valid_score, self.best_valid_result


def judge_with(trainer: recbole.trainer.Trainer, judge: Judge) -> None:
    """Let this judge collect and evaluate what the trainer's model scores."""
    trainer.eval_collector = judge
    trainer.evaluator = judge


def judge_model(trainer: recbole.trainer.Trainer, judge: Judge, data: Any) -> Judged:
    """Judge the trainer's model as it is on the tasks of ``data``."""
    judge_with(trainer, judge)
    trainer.evaluate(data, load_best_model=False)
    return judge.last()
