"""Which settings a model takes: values out of bounds end with a message, before data is read."""

import pytest

from recbole_meta.choice import check_settings, choose_model
from recbole_meta.errors import SettingError


@pytest.mark.parametrize(
    ("model", "settings", "message"),
    [
        ("BPR", dict(train_neg_sample_args=5), "must be 'name: value' pairs or ~, found 5"),
        ("BPR", dict(train_neg_sample_args={"sampel_num": 2}), "Did you mean 'sample_num'"),
        ("BPR", dict(train_neg_sample_args={"sample_num": 0}), "'sample_num' must be at least 1"),
        ("BPR", dict(train_neg_sample_args={"sample_num": 1.5}), "must be of type int"),
        ("BPR", dict(train_neg_sample_args={"distribution": "unifrom"}), "Did you mean 'uniform'"),
        ("BPR", dict(clip_grad_norm="abc"), "must be 'name: value' pairs or ~, found 'abc'"),
        ("BPR", dict(clip_grad_norm={"max_norm": 0}), "'max_norm' must be above 0"),
        ("BPR", dict(embedding_size=-3), "'embedding_size' must be at least 1, found -3"),
        ("BPR", dict(embedding_size=0), "'embedding_size' must be at least 1, found 0"),
        ("BPR", dict(learning_rate=-0.1), "'learning_rate' must be above 0"),
        ("BPR", dict(learning_rate=float("nan")), "'learning_rate' must be a finite number"),
        ("BPR", dict(weight_decay=-0.1), "'weight_decay' must be at least 0"),
        ("BPR", dict(stopping_step=-1), "'stopping_step' must be at least 0"),
        ("BPR", dict(epochs=0), "'epochs' must be at least 1"),
        ("LightGCN", dict(n_layers=-1), "'n_layers' must be at least 0"),
        ("NeuMF", dict(mlp_hidden_size=["a"]), "'mlp_hidden_size' must be of type int, found 'a'"),
        ("NeuMF", dict(mlp_hidden_size=[0]), "'mlp_hidden_size' must be at least 1, found 0"),
        ("ItemKNN", dict(k=0), "'k' must be at least 1, found 0"),
        ("EASE", dict(reg_weight=-1), "'reg_weight' must be at least 0"),
        ("EASEFoldIn", dict(reg_weight=0), "'reg_weight' must be above 0, found 0"),
        ("ItemKNNFoldIn", dict(shrink=-1), "'shrink' must be at least 0"),
        ("ItemKNNFoldIn", dict(neighbours=-1), "'neighbours' must be at least 0"),
        ("PriorRidge", dict(noise=-1.0), "'noise' must be above 0, found -1.0"),
        ("PriorRidge", dict(noise=float("inf")), "'noise' must be a finite number"),
        ("PriorRidge", dict(chunk_size=0), "'chunk_size' must be at least 1"),
        ("PriorRidge", dict(embedding_size=0), "'embedding_size' must be at least 1"),
        ("EpisodicRidge", dict(reg_weight=0.0), "'reg_weight' must be above 0"),
        ("ShrunkMedian", dict(pseudo_count=-1), "'pseudo_count' must be at least 0"),
    ],
)
def test_a_value_out_of_bounds_is_named(model, settings, message):
    with pytest.raises(SettingError, match=f"{model}: .*{message}"):
        check_settings(choose_model(model), settings)


@pytest.mark.parametrize(
    ("model", "settings"),
    [
        ("BPR", dict(train_neg_sample_args={"distribution": "popularity", "alpha": 0.5})),
        ("BPR", dict(clip_grad_norm={"max_norm": 5, "norm_type": 2})),
        ("BPR", dict(clip_grad_norm=None, weight_decay=0)),
        ("NeuMF", dict(mlp_hidden_size=[64, 32, 16])),
        ("EASE", dict(reg_weight=100)),
        ("PriorRidge", dict(chunk_size=None, base_weight=0)),
    ],
)
def test_values_within_bounds_pass(model, settings):
    check_settings(choose_model(model), settings)
