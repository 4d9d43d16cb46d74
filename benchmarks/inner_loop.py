"""Second-order MAML on MeLU's network: how fast, against a loop, first order and bare products.

    python benchmarks/inner_loop.py --data_path ../shared/data --json inner_loop.json

The network has 8 fields of 32 numbers (4 of the user, 4 of the item), 64, 64 and 1; the supports
are as long as those of ML-1M's users with 13 to 100 ratings less the 10 of the query; one inner
step, squared errors, gradients by all parameters and by the fields' vectors; float32. In one run:

- ``loop``: one task after the other on unpadded rows, ``autograd.grad(create_graph=True)``.
- ``engine``: the learner's own code; ``first_order`` the same with order 1.
- ``products``: nothing but the matrix products of the unpadded sizes [u; x] W: per layer forward 1
  and backward 2 for both sets, 2 more for the support's second order. The engine may need fewer: it
  multiplies the user's half once per task and never forms the first layer's adapted weights.

On a GPU there are no bare products (one by one they measure launches alone) but the engine under
bfloat16 (``amp``). ``--chunk_sizes`` lifts that many tasks at once, in which memory grows.

``tasks_per_second``: end to end on ml-100k, with the loader, the embeddings and the outer step;
10 support and 40 query rows. ``full_ranking_seconds``: ML-1M's 1,208 cold users, 3,706 items.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from recbole_meta.choice import choose_model
from recbole_meta.data.episodes import EpisodeDataLoader
from recbole_meta.data.prepare import prepare, read_protocol
from recbole_meta.data.prepared import Prepared, open_prepared
from recbole_meta.data.support import read_support
from recbole_meta.episode import Examples, buckets
from recbole_meta.evaluation.judge import Judge
from recbole_meta.inner_loop import mse
from recbole_meta.model.meta.maml import MAML, MAMLSettings
from recbole_meta.model.mlp import make_mlp
from recbole_meta.settings import load_properties, read_settings
from recbole_meta.stage import load_stage
from recbole_meta.trainer import Trainer, judge_model

USER, ITEM, HIDDEN, QUERY, RATE = 128, 128, (64, 64), 10, 0.01
Task = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]  # u [D_u], x [S, D], y [S], query x, y


class Network(MAML):
    """The learner on vectors that are given, without a data set."""

    def __init__(self, order: int, chunk_size: int | None) -> None:
        nn.Module.__init__(self)
        page = load_properties("model", "MeLU") | {
            "hidden_size": list(HIDDEN), "inner_lr": RATE, "inner_steps": 1, "meta_order": order,
            "chunk_size": chunk_size,
        }  # fmt: skip
        self.settings = read_settings(MAMLSettings, page, "MeLU")
        self.loss_function = self.inner_loss = mse
        self.prior = make_mlp(USER, ITEM, HIDDEN)

    def encode(self, items: Tensor) -> Tensor:
        return items

    def encode_tasks(self, tasks: Tensor) -> Tensor:
        return tasks


def support_sizes(prepared: Prepared) -> np.ndarray:
    """How many rows the users of 13 to 100 have beside the query's."""
    count = prepared.warm_rows("valid")["user"].value_counts().to_numpy()
    return np.sort(count[(count >= 13) & (count <= 100)] - QUERY)


def tasks_of(sizes: np.ndarray, device: str) -> list[Task]:
    """Made-up vectors and labels."""

    def made(*shape: int) -> Tensor:
        return torch.randn(shape, device=device)

    return [(made(USER), made(n, ITEM), made(n), made(QUERY, ITEM), made(QUERY)) for n in sizes]


def padded(tasks: list[Task]) -> tuple[Examples, Examples]:
    """Support and query of the tasks as the learner gets them."""
    width, device = max(len(task[1]) for task in tasks), tasks[0][0].device
    x = torch.zeros(len(tasks), width, ITEM, device=device)
    y, mask = torch.zeros(2, len(tasks), width, device=device)
    for place, (_, rows, labels, _, _) in enumerate(tasks):
        x[place, : len(rows)], y[place, : len(rows)], mask[place, : len(rows)] = rows, labels, 1
    u, qx, qy = (torch.stack([task[i] for task in tasks]) for i in (0, 3, 4))
    return Examples(x, y, mask, u), Examples(qx, qy, torch.ones_like(qy), u)


def in_buckets(support: Examples, query: Examples) -> list[tuple[Examples, Examples]]:
    """As ``episode_loss`` cuts a meta-batch, on ids there, before the fields are looked up."""
    found = []
    for chosen in buckets(support.mask):
        part, asked = support.of(chosen), query.of(chosen)
        part = part.cut(part.width())
        leaves = [t.detach().clone().requires_grad_() for t in (part.x, part.task, asked.x)]
        found.append(
            (
                part._replace(x=leaves[0], task=leaves[1]),
                asked._replace(x=leaves[2], task=leaves[1]),
            )
        )
    return found


def engine_step(
    model: Network, parts: list[tuple[Examples, Examples]], amp: bool = False
) -> Tensor:
    """Loss and all gradients of the meta-batch."""
    leaves = [*model.parameters()]
    total, tasks = 0, 0
    with torch.autocast(leaves[0].device.type, torch.bfloat16, enabled=amp):
        for support, query in parts:
            leaves += [support.x, support.task, query.x]
            total = total + model.lifted_loss(support, query).sum()
            tasks += len(support.mask)
    loss = total / tasks
    torch.autograd.grad(loss, leaves, allow_unused=model.settings.meta_order == 1)
    return loss


def loop_step(model: Network, tasks: list[Task]) -> Tensor:
    """The same by a loop over tasks, as the formula says."""
    p = dict(model.prior.items())
    first = torch.cat([p["task_weight"], p["weight_0"]])
    theta = [first, p["bias_0"], p["weight_1"], p["bias_1"], p["weight_2"], p["bias_2"]]

    def forward(w: list[Tensor], rows: Tensor) -> Tensor:
        h = torch.relu(rows @ w[0] + w[1])
        return (torch.relu(h @ w[2] + w[3]) @ w[4] + w[5]).squeeze(-1)

    total: Tensor | float = 0.0
    leaves: list[Tensor] = []
    for u, x, y, qx, qy in tasks:
        given = [t.detach().requires_grad_() for t in (u, x, qx)]
        leaves += given
        rows = torch.cat([given[0].expand(len(x), -1), given[1]], dim=1)
        asked = torch.cat([given[0].expand(len(qx), -1), given[2]], dim=1)
        inner = (forward(theta, rows) - y).square().mean()
        gradient = torch.autograd.grad(inner, theta, create_graph=True)
        adapted = [w - RATE * g for w, g in zip(theta, gradient, strict=True)]
        total = total + (forward(adapted, asked) - qy).square().mean()
    loss = total / len(tasks)
    torch.autograd.grad(loss, [*model.parameters(), *leaves])
    return loss


def bare_products(tasks: list[Task]) -> Callable[[], None]:
    """A function that does nothing but the products."""
    layers = list(zip((USER + ITEM, *HIDDEN), (*HIDDEN, 1), strict=True))
    device = tasks[0][0].device
    weights = [torch.randn(i, o, device=device) for i, o in layers]
    counts = [(len(task[1]), 5) for task in tasks] + [(QUERY, 3)] * len(tasks)
    rows = {n: [(torch.randn(n, i, device=device), torch.randn(n, o, device=device))
                for i, o in layers] for n, _ in counts}  # fmt: skip

    def products() -> None:
        for n, passes in counts:
            for (a, d), w in zip(rows[n], weights, strict=True):
                a @ w
                a.T @ d
                d @ w.T
                if passes == 5:
                    a @ w
                    a.T @ d

    return products


def seconds_of(function: Callable[[], object], repeats: int) -> float:
    """The median wall time of a call."""
    function()
    found = []
    for _ in range(repeats):
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        start = time.perf_counter()
        function()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        found.append(time.perf_counter() - start)
    return statistics.median(found)


def inner_loop(
    sizes: np.ndarray, batch: int, chunk_size: int, repeats: int, device: str
) -> dict[str, float]:
    """All four on the same meta-batch; interleaved, so that a busy machine slows all alike."""
    rng = np.random.default_rng(0)
    tasks = tasks_of(rng.choice(sizes, batch), device)
    second, first = (Network(order, chunk_size).to(device) for order in (2, 1))
    parts = in_buckets(*padded(tasks))
    fast, slow = engine_step(second, parts), loop_step(second, tasks)
    torch.testing.assert_close(fast, slow, rtol=1e-4, atol=1e-5)
    functions: dict[str, Callable[[], object]] = {
        "loop": lambda: loop_step(second, tasks),
        "engine": lambda: engine_step(second, parts),
        "first_order": lambda: engine_step(first, parts),
    }
    if device == "cpu":
        functions["products"] = bare_products(tasks)
    else:
        functions["amp"] = lambda: engine_step(second, parts, amp=True)
    rounds = [{name: seconds_of(f, 1) for name, f in functions.items()} for _ in range(repeats)]
    t = {name: statistics.median(r[name] for r in rounds) for name in functions}
    ratio = {
        "speedup_vs_loop": statistics.median(r["loop"] / r["engine"] for r in rounds),
        "cost_vs_first_order": statistics.median(r["engine"] / r["first_order"] for r in rounds),
    }
    if device == "cpu":
        shares = (r["products"] / r["engine"] for r in rounds)
        ratio["share_of_products"] = statistics.median(shares)
    else:
        ratio["speedup_of_amp"] = statistics.median(r["engine"] / r["amp"] for r in rounds)
        ratio["error_of_amp"] = abs(
            float(engine_step(second, parts, amp=True).detach() / fast.detach()) - 1
        )
    mean = float(np.mean([len(task[1]) for task in tasks]))
    return {"tasks": batch, "chunk_size": chunk_size, "mean_support": mean,
            **{f"{n}_ms": 1e3 * v for n, v in t.items()}, **ratio}  # fmt: skip


def end_to_end(prepared_path: str, repeats: int, device: str) -> dict[str, float]:
    """Epochs on ml-100k: the loader, the embeddings and Adam's step, too."""
    changes = {"shots": [10], "folds": 0, "order": "random"}
    protocol = read_protocol("user_cold_curve", **changes)
    prepared = open_prepared(
        prepare("ml-100k", protocol, "user_cold_curve", prepared_path=prepared_path)
    )
    settings = {
        "support_negatives": 0, "query_rows": 8, "query_negatives": 4, "inner_steps": 1,
        "train_batch_size": 64, "loss": "bce",
    }  # fmt: skip
    choice = choose_model("MAML")
    stage = load_stage(choice, prepared, "valid", 10, 2020, settings, device)
    model = choice.cls(stage.config, stage.dataset).to(device)
    loader = EpisodeDataLoader(stage.dataset, 64, 2020, 8)
    batch = next(iter(loader))
    assert batch["support_mask"].sum(1).eq(10).all()
    assert model.query(batch)[0].mask.sum(1).median() == 40
    trainer = Trainer(stage.config, model)
    seconds = seconds_of(lambda: trainer._train_epoch(loader, 1), repeats)
    return {"tasks_per_second": len(loader.users) / seconds}


def full_ranking(data_path: str, prepared_path: str, device: str) -> dict[str, float]:
    """MAML as it is born on the cold users of ML-1M, all metrics and slices."""
    protocol = read_protocol("user_cold_curve_all", order="random", folds=0)
    prepared = open_prepared(
        prepare("ml-1m", protocol, "user_cold_curve_all", data_path, prepared_path)
    )
    choice = choose_model("MAML")
    stage = load_stage(choice, prepared, "valid", 0, 2020, {}, device)
    model = choice.cls(stage.config, stage.dataset).to(device)
    tokens = stage.dataset.field2token_id
    users, items = tokens[stage.dataset.uid_field], tokens[stage.dataset.iid_field]
    model.observe(read_support(prepared, "test", 10, users, items))
    trainer = Trainer(stage.config, model)
    judge = Judge(prepared, "test", stage.dataset, "MAML")
    seconds = seconds_of(lambda: judge_model(trainer, judge, stage.data["test"]), 1)
    return {
        "full_ranking_users": len(prepared.tasks("test")),
        "full_ranking_items": len(prepared.catalogue),
        "full_ranking_seconds": seconds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data_path", default="../shared/data")
    parser.add_argument("--prepared_path", default="dataset/prepared")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--batches", type=int, nargs="+", default=[32, 64, 256])
    parser.add_argument("--chunk_sizes", type=int, nargs="+", default=[64])
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    protocol = read_protocol("melu_ww")
    folder = prepare("ml-1m", protocol, "melu_ww", options.data_path, options.prepared_path)
    sizes = support_sizes(open_prepared(folder))
    name = torch.cuda.get_device_name() if options.device != "cpu" else "cpu"
    result = {
        "device": name,
        "threads": options.threads,
        "torch": torch.__version__,
        "inner_loop": [
            inner_loop(sizes, batch, chunk_size, options.repeats, options.device)
            for batch in options.batches
            for chunk_size in options.chunk_sizes
            if chunk_size <= max(batch, min(options.chunk_sizes))
        ],
        **end_to_end(options.prepared_path, max(3, options.repeats // 3), options.device),
        **full_ranking(options.data_path, options.prepared_path, options.device),
    }
    text = json.dumps(result, indent=1, default=str)
    text = json.dumps(json.loads(text, parse_float=lambda v: round(float(v), 3)), indent=1)
    print(text)
    if options.json:
        options.json.write_text(text + "\n", "utf-8")


if __name__ == "__main__":
    main()
