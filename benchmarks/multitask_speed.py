"""An epoch of MMoE, and of every kind of balancer, in one run.

    python benchmarks/multitask_speed.py --data_path ../shared/data --json speed.json

ML-1M's ratings, users and items by id alone; like (rating >= 4) and love (rating = 5), and above
(the rating is above the user's mean) as the third objective where balancers are compared. The
batches are drawn once and are the same for all; an epoch is ``--rows`` of them, float32, Adam. Each
time is the median of ``--repeats`` epochs, taken in turns, after one that is not counted.

- ``mmoe``: ours with equal weights through the trainer's own loop, 4 experts of (64, 32), towers of
  32, embeddings of 16, linear gates.
- ``loop``: the same sizes, one expert after the other (``nn.Linear`` each).
- ``deepctr_torch``: DeepCTR-Torch's MMOE of the same sizes, where it is installed (it is no
  dependency: ``pip install --no-deps deepctr-torch``): its forward, the sum of its two losses,
  backward and step, without its own loop of fit, which computes metrics beside.
- ``balancers``: seconds of three objectives per balancer, and its ratio to EW.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn
from torch.nn.functional import binary_cross_entropy

from recbole_meta.compat import contained, recbole_config
from recbole_meta.errors import SettingError
from recbole_meta.model import row_models
from recbole_meta.settings import load_properties
from recbole_meta.trainer import Trainer

BALANCERS = {
    "EW": {}, "RLW": {}, "UW": {}, "DWA": {}, "FAMO": {}, "PCGrad": {}, "MGDA": {}, "IMTLG": {},
    "AlignedMTL": {}, "GradDrop": {}, "GradVac": {}, "ConFIG": {},
    "BiLevel": {"inner_lr": 0.1, "meta_lr": 0.01, "conditioned": "none", "rows": 2048},
    "UPGrad": {}, "CAGrad": {"c": 0.5},
    "NashMTL": {"max_norm": 1.0, "update_weights_every": 1, "optim_niter": 20},
}  # fmt: skip
WITH_SOLVER = ("UPGrad", "CAGrad", "NashMTL")
NAMES = ("like", "love", "above")
BATCH = 2048


def read_rows(folder: Path, number: int) -> tuple[Any, list[Any]]:
    """RecBole's dataset of ML-1M's ids, and batches of labelled rows."""
    values = {
        "data_path": str(folder),
        "load_col": {"inter": ["user_id", "item_id", "rating"]},
        "benchmark_filename": None,
        "eval_args": {"split": {"RS": [1, 0, 0]}, "order": "RO", "group_by": None, "mode": "full"},
    }
    config = recbole_config(row_models()["MMoE"], "ml-1m", [], values)
    with contained():
        from recbole.data import create_dataset
        from recbole.data.interaction import Interaction

        dataset = create_dataset(config).build()[0]
    rating = dataset.inter_feat["rating"].float()
    users, items = dataset.inter_feat["user_id"], dataset.inter_feat["item_id"]
    frame = pd.DataFrame({"user": users.numpy(), "rating": rating.numpy()})
    mean = torch.from_numpy(frame.groupby("user")["rating"].transform("mean").to_numpy())
    labels = {"like": rating >= 4, "love": rating == 5, "above": rating > mean}
    order = np.random.default_rng(0).permutation(len(users))
    rows = Interaction(
        {"user_id": users, "item_id": items, **{n: y.float() for n, y in labels.items()}}
    )
    parts = torch.from_numpy(order[: BATCH * (len(order) // BATCH)]).split(BATCH)
    return dataset, [rows[part] for part in parts[: number or None]]


class Rows:
    """A loader of batches that are drawn already."""

    def __init__(self, batches: list[Any]) -> None:
        self.batches = batches

    def __iter__(self):
        return iter(self.batches)


def ours(dataset: Any, batches: list[Any], objectives: tuple[str, ...], balancer: str) -> Callable:
    """An epoch by the trainer's own loop."""
    values = {
        "objectives": {name: {"label": name, "type": "binary"} for name in objectives},
        "balancer": balancer, "balancer_settings": BALANCERS[balancer], "epochs": 1,
        "checkpoint_dir": ".", "learning_rate": 0.001,
    }  # fmt: skip
    config = recbole_config(row_models()["MMoE"], "ml-1m", [], load_properties("model", "MMoE"))
    for key, value in values.items():
        config[key] = value
    torch.manual_seed(0)
    with contained():
        trainer = Trainer(config, row_models()["MMoE"](config, dataset))
    trainer.held_out = batches[0]
    return lambda: trainer._train_epoch(Rows(batches), 0)


class LoopMMoE(nn.Module):
    """MMoE of the same sizes, one expert after the other."""

    def __init__(self, users: int, items: int, objectives: int) -> None:
        super().__init__()
        self.user, self.item = nn.Embedding(users, 16), nn.Embedding(items, 16)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU())
            for _ in range(4)
        )
        self.gates = nn.ModuleList(nn.Linear(32, 4) for _ in range(objectives))
        self.towers = nn.ModuleList(
            nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 1)) for _ in range(objectives)
        )

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        x = torch.cat([self.user(rows[:, 0].long()), self.item(rows[:, 1].long())], 1)
        h = torch.stack([expert(x) for expert in self.experts], 1)
        found = []
        for gate, tower in zip(self.gates, self.towers, strict=True):
            mixed = (gate(x).softmax(-1).unsqueeze(-1) * h).sum(1)
            found.append(torch.sigmoid(tower(mixed)))
        return torch.cat(found, 1)


def deepctr(dataset: Any) -> nn.Module:
    from deepctr_torch.inputs import SparseFeat
    from deepctr_torch.models import MMOE

    columns = [
        SparseFeat("user_id", dataset.user_num, embedding_dim=16),
        SparseFeat("item_id", dataset.item_num, embedding_dim=16),
    ]
    return MMOE(
        columns, num_experts=4, expert_dnn_hidden_units=(64, 32), gate_dnn_hidden_units=(),
        tower_dnn_hidden_units=(32,), task_types=("binary", "binary"), task_names=NAMES[:2],
        l2_reg_linear=0, l2_reg_embedding=0, l2_reg_dnn=0, device="cpu",
    )  # fmt: skip


def other(model: nn.Module, batches: list[Any]) -> Callable:
    """An epoch of a model that gives probabilities [B, 2] of rows [B, 2] of ids."""
    optimizer = torch.optim.Adam(model.parameters(), 0.001)
    ready = [
        (
            torch.stack([b["user_id"], b["item_id"]], 1).float(),
            torch.stack([b[n] for n in NAMES[:2]], 1),
        )
        for b in batches
    ]

    def epoch() -> None:
        model.train()
        for x, y in ready:
            optimizer.zero_grad()
            p = model(x)
            loss = sum(binary_cross_entropy(p[:, k], y[:, k]) for k in range(2))
            loss.backward()
            optimizer.step()

    return epoch


def measure(epochs: dict[str, Callable], repeats: int) -> dict[str, float]:
    """Median seconds of each, taken in turns."""
    seconds: dict[str, list[float]] = {name: [] for name in epochs}
    for turn in range(repeats + 1):
        for name, epoch in epochs.items():
            start = time.perf_counter()
            epoch()
            if turn:
                seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(each) for name, each in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data_path", default="../shared/data", type=Path)
    parser.add_argument("--rows", default=0, type=int, help="batches of an epoch; 0: all")
    parser.add_argument("--balancer_rows", default=60, type=int, help="batches, for balancers")
    parser.add_argument("--repeats", default=3, type=int)
    parser.add_argument("--threads", default=1, type=int)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    dataset, batches = read_rows(arguments.data_path, arguments.rows)
    models = {"mmoe": ours(dataset, batches, NAMES[:2], "EW")}
    models["loop"] = other(LoopMMoE(dataset.user_num, dataset.item_num, 2), batches)
    if find_spec("deepctr_torch") is not None:
        models["deepctr_torch"] = other(deepctr(dataset), batches)
    found: dict[str, Any] = {
        "batch": BATCH, "batches": len(batches), "threads": arguments.threads,
        "torch": torch.__version__, "seconds": measure(models, arguments.repeats),
    }  # fmt: skip
    few, balanced = batches[: arguments.balancer_rows], {}
    for name in BALANCERS:
        try:
            balanced[name] = ours(dataset, few, NAMES, name)
        except SettingError as error:
            print(error)
    seconds = measure(balanced, arguments.repeats)
    found["balancers"] = {
        name: {
            "seconds": each, "ratio_to_EW": each / seconds["EW"], "solver": name in WITH_SOLVER
        }
        for name, each in seconds.items()
    }  # fmt: skip
    found["balancer_batches"] = len(few)
    text = json.dumps(found, indent=1)
    print(text)
    if arguments.json:
        arguments.json.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
