"""RecBole's models on a folder of ours: through our runner and through RecBole's own code."""

from collections.abc import Callable

import pytest
from sklearn.metrics import log_loss, roc_auc_score

from recbole_meta.choice import choose_model
from recbole_meta.compat import contained, load_recbole_checkpoint
from recbole_meta.data.prepare import prepare, read_protocol
from recbole_meta.data.prepared import Prepared, open_prepared
from recbole_meta.recbole_fitting import judge_recbole

SEED = 2020
METRICS = ["ndcg@10", "recall@10", "mrr@10", "hit@10"]
MODELS = [
    ("EASE", {}),
    ("ItemKNN", {}),
    ("BPR", {"epochs": 3}),
    pytest.param("NeuMF", {"epochs": 1}, marks=pytest.mark.slow),
    pytest.param("LightGCN", {"epochs": 1}, marks=pytest.mark.slow),
]


@pytest.fixture(scope="module")
def prepared_as(tmp_path_factory) -> Callable[[str], Prepared]:
    """ml-100k by a protocol of this name."""
    folder = tmp_path_factory.mktemp("against")
    return lambda name: open_prepared(prepare("ml-100k", read_protocol(name), name, folder, folder))


def recbole_alone(model: str, prepared: Prepared, settings: dict) -> tuple[dict, dict]:
    """What ``run_recbole`` does, step by step and seed by seed: results on valid and on test."""
    with contained():
        from recbole.config import Config
        from recbole.data import create_dataset, data_preparation
        from recbole.utils import get_model, get_trainer, init_seed

        choice = choose_model(model)
        config = Config(
            model=model,
            dataset=prepared.name,
            config_file_list=[str(choice.defaults()), str(prepared.path / "recbole.yaml")],
            config_dict={
                "data_path": str(prepared.path.parent),
                "checkpoint_dir": str(prepared.path.parent / model),
                "metric_decimal_place": 12,
                "show_progress": False,
                "seed": SEED,
                "eval_batch_size": 200_000,
                **settings,
            },
        )
        init_seed(config["seed"], config["reproducibility"])
        dataset = create_dataset(config)
        train_data, valid_data, test_data = data_preparation(config, dataset)
        init_seed(config["seed"] + config["local_rank"], config["reproducibility"])
        network = get_model(config["model"])(config, train_data._dataset).to(config["device"])
        trainer = get_trainer(config["MODEL_TYPE"], config["model"])(config, network)
        _, valid = trainer.fit(train_data, valid_data, verbose=False, saved=True)
        if settings:  # it was trained in epochs: the best one counts
            load_recbole_checkpoint(trainer.saved_model_file, network)
        return valid, trainer.evaluate(test_data, load_best_model=False)


@pytest.mark.parametrize(("model", "settings"), MODELS)
def test_same_rankings_as_recbole_alone(prepared_as, model, settings):
    prepared = prepared_as("user_cold_5")
    outcome = judge_recbole(choose_model(model), prepared, 5, SEED, settings)
    valid, test = recbole_alone(model, prepared, settings)
    assert test["ndcg@10"] > 0.1  # it learned something: a random order scores .05
    for found, expected in ((outcome.valid, valid), (outcome.tested, test)):
        assert {name: found.means()[name] for name in METRICS} == pytest.approx(
            {name: expected[name] for name in METRICS}, abs=1e-4
        )


@pytest.mark.parametrize("model", ["FM", pytest.param("DeepFM", marks=pytest.mark.slow)])
def test_same_predictions_as_recbole_alone(prepared_as, model):
    prepared = prepared_as("user_cold_5_label")
    outcome = judge_recbole(choose_model(model), prepared, 5, SEED, {"epochs": 1})
    for found, expected in zip(
        (outcome.valid, outcome.tested), recbole_alone(model, prepared, {"epochs": 1}), strict=True
    ):
        rows = found.arrays["label"], found.arrays["prediction"]
        assert expected["auc"] == pytest.approx(roc_auc_score(*rows), abs=1e-4)
        assert expected["logloss"] == pytest.approx(log_loss(*rows), abs=1e-4)
        assert found.means()["auc"] > 0.52  # of a user's own rows, where a constant scores .5
