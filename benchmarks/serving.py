"""How long a newcomer waits: adapt to ten items and rank 10,000, one thread, by a saved model.

    python benchmarks/serving.py --json serving.json

The data are made: 500 users, 10,000 items, with four fields of users and four of items. For
each model: ``p50_ms`` and ``p95_ms`` of `adapt` and `rank` together, over newcomers one after the
other; ``newcomers_per_second`` of them; ``batch_newcomers_per_second`` of 1,000 who are adapted
together and ranked; ``state_bytes`` of the last one's state, ``newcomer_bytes`` of `to_bytes`, and
``model_bytes`` of the file.

- ``prior_ridge``: 64 directions.
- ``cnp``: ids.
- ``maml_5_steps``: MeLU's network, 8 fields of 32 numbers, 64, 64 and 1; 5 steps on ratings.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from recbole_meta.quick_start import run
from recbole_meta.saved_model import load
from recbole_meta.serving import Served

N_ITEMS, N_USERS, N_ROWS, SAID = 10_000, 500, 20, 10
TRAINING = {"epochs": 1}
MELU = {"item_id": False, "item_fields": True, "user_fields": True, "inner_steps": 5}
MODELS = {
    "prior_ridge": ("PriorRidge", "user_cold_5", {"embedding_size": 64}),
    "cnp": ("CNP", "user_cold_5", TRAINING),
    "maml_5_steps": ("MAML", "user_cold_5_rating", TRAINING | MELU),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--newcomers", type=int, default=1000)
    parser.add_argument("--json", default=None)
    options = parser.parse_args()
    torch.set_num_threads(1)
    found: dict[str, float] = {"threads": 1, "items": N_ITEMS, "said": SAID}
    with tempfile.TemporaryDirectory() as folder:
        write_data(Path(folder) / "made")
        for name, (model, protocol, settings) in MODELS.items():
            saved = run(
                model, "made", protocol, settings=settings, data_path=folder,
                prepared_path=Path(folder) / "prepared", results=Path(folder) / "runs", save=True,
            )["saved"]  # fmt: skip
            figures = measure(load(saved), options.newcomers)
            figures["model_bytes"] = Path(saved).stat().st_size
            found |= {f"{name}_{key}": value for key, value in figures.items()}
    text = json.dumps({key: round(value, 3) for key, value in found.items()}, indent=1)
    print(text)
    if options.json:
        Path(options.json).write_text(text + "\n", "utf-8")


def write_data(folder: Path) -> None:
    """Rows of items, the first ones oftener, each at least once; fields of random categories."""
    rng = np.random.default_rng(0)
    folder.mkdir()
    weight = 1 / np.arange(10, N_ITEMS + 10)
    once = rng.permutation(N_ITEMS).reshape(N_USERS, -1)
    rows = []
    for user in range(N_USERS):
        often = rng.choice(N_ITEMS, N_ROWS, replace=False, p=weight / weight.sum())
        items = rng.permutation(np.union1d(once[user], often))
        rows += [f"u{user}\ti{item}\t{rng.integers(1, 6)}\t{n}" for n, item in enumerate(items)]
    head = "user_id:token\titem_id:token\trating:float\ttimestamp:float"
    write(folder / "made.inter", [head, *rows])
    for side, number in (("user", N_USERS), ("item", N_ITEMS)):
        names = [f"{side}_{letter}" for letter in "abcd"]
        lines = ["\t".join([f"{side}_id:token", *(f"{name}:token" for name in names)])]
        lines += [
            "\t".join([f"{side[0]}{n}", *(f"{name}{rng.integers(20)}" for name in names)])
            for n in range(number)
        ]
        write(folder / f"made.{side}", lines)
    fields = {side: [f"{side}_{letter}" for letter in "abcd"] for side in ("user", "item")}
    page = ["rating: rating", *(f"{side}_features: [{', '.join(n)}]" for side, n in fields.items())]
    write(folder / "made.yaml", page)


def write(path: Path, lines: list[str]) -> None:
    path.write_text("\n".join(lines) + "\n", "utf-8")


def measure(model: Served, newcomers: int) -> dict[str, float]:
    """Newcomers one after the other, after a few that are not counted."""
    assert len(model.items) == N_ITEMS + 1
    rng = np.random.default_rng(1)
    rated = model.feedback == "rating"
    features = {name: f"{name}3" for name in model.info()["features of users"]}
    took = []

    def some() -> list[str]:
        return [model.items[i] for i in rng.choice(np.arange(1, N_ITEMS + 1), SAID, replace=False)]

    for _ in range(newcomers + 20):
        said = some()
        ratings = dict.fromkeys(said, 4.0) if rated else None
        start = time.perf_counter()
        newcomer = model.adapt(() if rated else said, ratings=ratings, features=features)
        ranked = newcomer.rank(10)
        took.append(time.perf_counter() - start)
        assert len(ranked) == 10
    many = [
        {"ratings" if rated else "likes": dict.fromkeys(some(), 4.0), "features": features}
        for _ in range(1000)
    ]
    start = time.perf_counter()
    for newcomer in model.adapt_many(many):
        newcomer.rank(10)
    batch = time.perf_counter() - start
    p50, p95 = np.quantile(took[20:], [0.5, 0.95])
    return {
        "p50_ms": 1e3 * float(p50),
        "p95_ms": 1e3 * float(p95),
        "newcomers_per_second": newcomers / sum(took[20:]),
        "batch_newcomers_per_second": len(many) / batch,
        "state_bytes": sum(part.nbytes for part in newcomer.state.values()),
        "newcomer_bytes": len(newcomer.to_bytes()),
    }


if __name__ == "__main__":
    main()
