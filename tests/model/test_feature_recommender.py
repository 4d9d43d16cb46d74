"""What trained learners take from the files: items that are met, negatives, means, losses."""

import pytest
import torch

from recbole_meta.choice import choose_model
from recbole_meta.data.episodes import EpisodeDataLoader
from recbole_meta.data.prepare import prepare, read_protocol
from recbole_meta.data.prepared import open_prepared
from recbole_meta.errors import DataError, RecboleMetaError, SettingError
from recbole_meta.fitting import fit_learner
from recbole_meta.stage import load_stage

CURVE = {"shots": [0, 1, 3], "reserve": 4, "horizon": 3, "eligible": 8, "folds": 0}
WANTED = {"implicit": ("user_cold_curve", CURVE), "rating": ("user_cold_5_rating", {}),
          "label": ("user_cold_5_label", {})}  # fmt: skip
SETTINGS = {"embedding_size": 3, "hidden_size": [5], "train_batch_size": 64, "epochs": 1}


def folder_of(sample_path, target, kind):
    name, changes = WANTED[kind]
    protocol = read_protocol(name, **changes)
    return open_prepared(prepare("tiny", protocol, name, sample_path, target))


@pytest.fixture(scope="module")
def folders(sample_path, tmp_path_factory):
    target = tmp_path_factory.mktemp("prepared")
    return {kind: folder_of(sample_path, target, kind) for kind in WANTED}


def learner(prepared, name="MAML", phase="test", **changes):
    """A fresh model, its stage and a batch with all its episodes."""
    choice = choose_model(name)
    stage = load_stage(choice, prepared, phase, prepared.shots[0], 7, SETTINGS | changes)
    model = choice.cls(stage.config, stage.dataset)
    return model, stage, next(iter(EpisodeDataLoader(stage.dataset, 10**4, 7)))


def items_of(stage, ids):
    return set(stage.dataset.id2token("item_id", ids[ids > 0].numpy()).tolist())


def histories(prepared, phase="test"):
    rows = prepared.warm_rows(phase)
    return {user: set(group["item"]) for user, group in rows.groupby("user")}


@pytest.mark.parametrize("phase", ["valid", "test"])
def test_the_pool_is_what_warm_users_have(folders, phase):
    for kind, prepared in folders.items():
        model, stage, _ = learner(prepared, phase=phase, user_fields=kind != "implicit")
        assert items_of(stage, model.pool) == set(prepared.warm_rows(phase)["item"])


def test_an_item_that_no_warm_user_has_is_unknown(make_world):
    """Its id has no vector: not in the pool, and zero when it is asked for."""
    rows = [(f"u{u}", f"i{(u + n) % 9}", 3.0, 10 * u + n) for u in range(30) for n in range(8)]
    cold = make_world(rows, "user_cold_curve", **CURVE).tasks("test")[0]
    prepared = make_world([*rows, (cold, "rare", 3.0, 10**6)], "user_cold_curve", **CURVE)
    assert cold in prepared.tasks("test")
    model, stage, batch = learner(prepared, query_rows=None, query_negatives=None)
    rare = stage.dataset.token2id("item_id", "rare")
    assert rare not in model.pool.tolist()
    assert not model.encode(torch.tensor([rare])).any()
    assert not model.query(batch)[0].mask[:, rare].any(), "nor a negative"
    known = sorted(set(prepared.warm_rows("test")["item"]))
    vectors = model.encode(torch.tensor([stage.dataset.token2id("item_id", i) for i in known]))
    assert len(known) == 9 and (vectors.abs().sum(1) > 0).all()


def test_negatives_of_a_query_are_met_by_others_and_not_by_the_user(folders):
    prepared = folders["implicit"]
    model, stage, batch = learner(prepared, query_rows=None, query_negatives=3)
    query, shared = model.query(batch)
    assert not shared
    have, pool = histories(prepared), set(prepared.warm_rows("test")["item"])
    drawn = 0
    for row, user in enumerate(stage.dataset.id2token("user_id", batch["task"].numpy())):
        there = query.mask[row] > 0
        chosen = items_of(stage, query.x[row][there & (query.label[row] == 0)])
        assert chosen <= pool and not chosen & have[user]
        positives = items_of(stage, query.x[row][there & (query.label[row] == 1)])
        assert positives == items_of(stage, batch["query_item"][row])
        drawn += len(chosen)
    assert drawn > len(batch["task"])


def test_negatives_of_a_support_are_not_of_the_support(folders):
    prepared = folders["implicit"]
    model, stage, batch = learner(prepared, support_negatives=2)
    support = model.complete(model._examples(batch, "support"))
    pool = set(prepared.warm_rows("test")["item"])
    for row in range(len(batch["task"])):
        there = support.mask[row] > 0
        one = items_of(stage, support.x[row][there & (support.label[row] == 1)])
        zero = items_of(stage, support.x[row][there & (support.label[row] == 0)])
        assert one == items_of(stage, batch["support_item"][row])
        assert zero <= pool and not zero & one and bool(zero) == bool(one)


def test_the_catalogue_of_a_query_is_all_that_could_be_recommended(folders):
    """Warm items less the first rows of the user; 1 where they are in the query."""
    prepared = folders["implicit"]
    model, stage, batch = learner(prepared, query_rows=None, query_negatives=None)
    query, shared = model.query(batch)
    pool = set(prepared.warm_rows("test")["item"])
    assert shared and query.x.shape == (model.n_items, model.item_embedding.size)
    items = torch.arange(model.n_items)
    for row in range(len(batch["task"])):
        barred = items_of(stage, batch["barred_item"][row])
        assert len(barred) == CURVE["reserve"]
        assert items_of(stage, items[query.mask[row] > 0]) == pool - barred
        asked = items_of(stage, batch["query_item"][row])
        assert items_of(stage, items[query.label[row] > 0]) == asked and not asked & barred


def test_a_positive_that_was_not_drawn_is_no_negative(folders):
    prepared = folders["implicit"]
    model, stage, _ = learner(prepared, query_rows=None, query_negatives=None)
    batch = next(iter(EpisodeDataLoader(stage.dataset, 10**4, 7, query_rows=1)))
    assert batch["query_item"].shape[1] == 1
    query, _ = model.query(batch)
    pool, items = set(prepared.warm_rows("test")["item"]), torch.arange(model.n_items)
    undrawn = 0
    for row in range(len(batch["task"])):
        barred, left = (items_of(stage, batch[f"{n}_item"][row]) for n in ("barred", "undrawn"))
        assert items_of(stage, items[query.mask[row] > 0]) == pool - barred - left
        undrawn += len(left)
    assert undrawn >= len(batch["task"]) and set(query.mask.unique().tolist()) == {0, 1}


def test_predictions_start_at_the_mean_of_warm_ratings(folders):
    prepared = folders["rating"]
    model, *_ = learner(prepared, "CNP")
    mean = prepared.warm_rows("test")["target"].mean()
    assert float(model.label_mean) == pytest.approx(mean, abs=1e-5) and 1 < mean < 5
    everything = prepared.rows("test")["target"].mean()
    assert abs(everything - mean) > 1e-3, "the query would give the same"
    last = model.prior[f"bias_{len(SETTINGS['hidden_size'])}"]
    assert abs(float(last.detach()) - mean) < 1


@pytest.mark.parametrize(
    ("kind", "name", "changes", "said"),
    [
        ("rating", "MAML", {"loss": "bce"}, "'loss' is bce; where 'rating' feedback"),
        ("rating", "CNP", {"loss": "softmax"}, "may be mae | mse"),
        ("label", "MeLU", {"loss": "mse"}, "'loss' is mse; where 'label' feedback"),
        ("rating", "ANIL", {"inner_loss": "bce"}, "'inner_loss' is bce"),
        ("implicit", "MAML", {"inner_loss": "mae"}, "may be softmax | bce | mse"),
        ("rating", "CNP", {"item_id": False}, "all items are the same"),
        ("rating", "MAML", {"hidden_size": []}, "'hidden_size' must list at least 1"),
    ],
)
def test_settings_that_make_no_sense_are_refused(folders, kind, name, changes, said):
    fields = {"item_fields": True, "user_fields": True} if name == "MeLU" else {}
    with pytest.raises(SettingError) as error:
        learner(folders[kind], name, **fields, **changes)
    assert said in str(error.value)


@pytest.mark.parametrize("side", ["user", "item"])
def test_fields_that_the_data_set_has_not_are_refused(make_world, side):
    rows = [(f"u{u}", f"i{(u + n) % 9}", 3.0, 10 * u + n) for u in range(30) for n in range(8)]
    prepared = make_world(rows, "user_cold_curve", **CURVE)
    with pytest.raises(DataError, match=f"no feature of {side}s"):
        learner(prepared, **{f"{side}_fields": True})


def test_labels_are_ratings_that_were_read(folders):
    """MeLU's usual losses: squared errors of ratings, the cross-entropy of labels."""
    choice = choose_model("MeLU")
    for kind in ("rating", "label"):
        model, _, _ = learner(folders[kind], "MeLU")
        assert "+ratings" in choice.cls.reads_with(model.settings, kind)
    assert "+ratings" not in choose_model("MAML").cls.reads_with(model.settings, "implicit")
    by_name = {kind: learner(folders[kind], "MeLU")[0] for kind in ("rating", "label")}
    assert by_name["rating"].loss_function.__name__ == "mse"
    assert by_name["label"].loss_function.__name__ == "bce"


def test_a_wrong_setting_is_named_when_fitting(folders):
    choice = choose_model("MAML")
    stage = load_stage(choice, folders["rating"], "test", 5, 7, SETTINGS | {"loss": "softmax"})
    with pytest.raises(RecboleMetaError, match="MAML: 'loss' is softmax"):
        fit_learner(choice, stage)
