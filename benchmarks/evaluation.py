"""Full ranking of ML-1M's 1,208 cold users over 3,706 items with all metrics: how long, and
against what.

``prior_ridge_seconds``: adapt, score, rank, all metrics and slices, through the trainer. Beside
it, in the same run: the bare product [users, d] x [d, items] with top-10 (``share_of_products``
is its share), and RecBole's own evaluation of BPR on the same users, with its default batch and
with our batch of 256 users.

    python benchmarks/evaluation.py --data_path ../shared/data --json evaluation.json
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

import torch

from recbole_meta.choice import choose_model
from recbole_meta.compat import contained
from recbole_meta.data.prepare import prepare, read_protocol
from recbole_meta.data.prepared import open_prepared
from recbole_meta.data.support import read_support
from recbole_meta.evaluation.judge import Judge
from recbole_meta.fitting import fit_learner
from recbole_meta.stage import load_stage
from recbole_meta.trainer import judge_model

SHOTS = 10


def best_of(times: int, function: Callable[[], object]) -> float:
    """The shortest wall time in seconds."""
    found = []
    for _ in range(times):
        start = time.perf_counter()
        function()
        found.append(time.perf_counter() - start)
    return min(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data_path", default="../shared/data")
    parser.add_argument("--prepared_path", default="dataset/prepared")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", default=None)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    protocol = read_protocol("user_cold_curve_all", order="random", folds=0)
    folder = prepare(
        "ml-1m", protocol, "user_cold_curve_all", options.data_path, options.prepared_path
    )
    prepared = open_prepared(folder)
    result = {
        "threads": options.threads,
        "users": len(prepared.tasks("test")), "items": len(prepared.catalogue),
        **ours(prepared, options.repeats), **recbole(prepared, options.repeats),
    }  # fmt: skip
    result["share_of_products"] = result["product_and_top_seconds"] / result["prior_ridge_seconds"]
    result["speedup_vs_recbole"] = result["recbole_bpr_seconds"] / result["prior_ridge_seconds"]
    text = json.dumps({k: round(v, 4) for k, v in result.items()}, indent=1)
    print(text)
    if options.json:
        Path(options.json).write_text(text + "\n", "utf-8")


def ours(prepared, repeats: int) -> dict[str, float]:
    """PriorRidge through trainer and judge, and the products that it cannot do without."""
    choice = choose_model("PriorRidge")
    stage = load_stage(choice, prepared, "valid", 0, 2020, {})
    start = time.perf_counter()
    trainer = fit_learner(choice, stage)
    fit = time.perf_counter() - start
    tokens = stage.dataset.field2token_id
    users, items = tokens[stage.dataset.uid_field], tokens[stage.dataset.iid_field]
    trainer.model.observe(read_support(prepared, "test", SHOTS, users, items))
    judge = Judge(prepared, "test", stage.dataset, "PriorRidge")
    seconds = best_of(repeats, lambda: judge_model(trainer, judge, stage.data["test"]))
    ids = torch.tensor([users[user] for user in prepared.tasks("test")])
    w = trainer.model.adapt_tasks(ids)["w"]
    v = trainer.model.item_vector
    product = best_of(repeats, lambda: torch.topk(w @ v.T, 10))
    return {
        "prior_ridge_fit_seconds": fit,
        "prior_ridge_seconds": seconds,
        "product_and_top_seconds": product,
    }


def recbole(prepared, repeats: int) -> dict[str, float]:
    """RecBole's collector and evaluator on an untrained BPR: the time does not depend on the
    weights.
    """
    choice = choose_model("BPR")
    found = {}
    for name, settings in (
        ("recbole_bpr_seconds", {"eval_batch_size": 4096}),
        ("recbole_bpr_large_batch_seconds", {}),
    ):
        stage = load_stage(choice, prepared, "test", SHOTS, 2020, settings)
        with contained():
            from recbole.trainer import Trainer

            model = choice.cls(stage.config, stage.dataset)
            trainer = Trainer(stage.config, model)
            trainer.eval_collector.data_collect(stage.train)
            found[name] = best_of(
                min(repeats, 2),
                lambda t=trainer, s=stage: t.evaluate(s.data["test"], load_best_model=False),
            )
    return found


if __name__ == "__main__":
    main()
