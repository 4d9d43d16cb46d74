"""What every model of ours keeps, found by itself under ``model/meta`` and ``model/baseline``."""

import io
import re
import sys
from dataclasses import fields, replace
from typing import get_type_hints

import numpy as np
import pandas as pd
import pytest
import torch
from recbole.data.interaction import Interaction

from recbole_meta.episode import Examples
from recbole_meta.evaluation.judge import Judge
from recbole_meta.fitting import judge_learner
from recbole_meta.model import our_models
from recbole_meta.settings import load_properties, properties_folder

CASES = [
    (name, world)
    for name, cls in our_models().items()
    for world in (*cls.feedback, *(["items"] if "implicit" in cls.feedback else []))
    if ("item" if world == "items" else "user") in cls.sides
]
READS = {"ids", "+ratings", "+user fields", "+item fields", "+times"}
TASKS, WIDTH = 7, 6

each_model = pytest.mark.parametrize("name", our_models())


@pytest.fixture(scope="module", params=CASES, ids="-".join)
def fitted(request, worlds, fit):
    """Each model on each kind of feedback, and with items as tasks."""
    name, kind = request.param
    return fit(worlds[kind], name)


@pytest.fixture(params=range(3))
def support(request, fitted) -> Examples:
    """Tasks with 0 to 4 different items in random places, and rubbish in the padding."""
    rng = torch.Generator().manual_seed(request.param)
    n_others = fitted.model.n_others
    x = torch.stack([torch.randperm(n_others - 1, generator=rng)[:WIDTH] + 1 for _ in range(TASKS)])
    sizes = torch.randint(0, 5, (TASKS, 1), generator=rng)
    sizes[0] = 0
    mask = (torch.rand(TASKS, WIDTH, generator=rng).argsort(1).argsort(1) < sizes).float()
    return Examples(x, labels_for(fitted, (TASKS, WIDTH), rng), mask, torch.arange(1, TASKS + 1))


def labels_for(fitted, shape, rng) -> torch.Tensor:
    if fitted.prepared.feedback == "implicit":
        return torch.ones(shape)
    low, high = {"rating": (1, 6), "label": (0, 2)}[fitted.prepared.feedback]
    return torch.randint(low, high, shape, generator=rng).float()


def assert_same(left: torch.Tensor, right: torch.Tensor) -> None:
    torch.testing.assert_close(left, right, rtol=1e-4, atol=1e-5)


def test_is_born_on_one_device(fitted):
    """Whatever the Config says: ``to(device)`` moves all of it, and nothing before."""
    config = fitted.stage.config
    before, config["device"] = config["device"], torch.device("meta")
    try:
        model = fitted.choice.cls(config, fitted.stage.dataset)
    finally:
        config["device"] = before
    tensors = [*model.named_parameters(), *model.named_buffers()]
    assert [name for name, tensor in tensors if tensor.device != torch.device("cpu")] == []


# What is written about a model.


@each_model
def test_page_has_the_settings(name):
    kind = get_type_hints(our_models()[name])["settings"]
    assert list(load_properties("model", name)) == [field.name for field in fields(kind)]


@each_model
def test_page_says_type_and_meaning(name):
    text = (properties_folder() / "model" / f"{name}.yaml").read_text("utf-8")
    for line in text.splitlines():
        assert re.fullmatch(r"\w+: +\S.* # \([a-z ~]+\) \S.*", line), line


@each_model
def test_header_and_docstring(name):
    cls = our_models()[name]
    head = sys.modules[cls.__module__].__doc__.strip().splitlines()
    assert head[0] == name
    assert head[1] == "#" * 48
    assert len(head) > 2, "the header says where it comes from, or what it is"
    assert cls.__doc__ and cls.__doc__ != cls.__mro__[1].__doc__


@each_model
def test_place_in_a_table(name):
    cls = our_models()[name]
    assert cls.group in ("floor", "fold-in", "published", "ours")
    assert {part for part in re.split(r" (?=\+)", cls.reads)} <= READS
    assert set(cls.feedback) <= {"implicit", "rating", "label"} and cls.feedback


# What a support does.


def test_scores_are_finite(fitted, support):
    assert fitted.scores(support).isfinite().all()


def test_padding_does_not_matter(fitted, support):
    padded = fitted.scores(support)
    for task in range(TASKS):
        shots = int(support.mask[task].sum())
        real = support.mask[task].argsort(descending=True)[: max(1, shots)]
        alone = Examples(
            *(field[task, real].unsqueeze(0) for field in support[:3]),
            support.task[task : task + 1],
        )
        assert_same(fitted.scores(alone)[0], padded[task])


def test_order_of_the_support_does_not_matter(fitted, support):
    order = torch.randperm(WIDTH, generator=torch.Generator().manual_seed(5))
    turned = Examples(*(field[:, order] for field in support[:3]), support.task)
    assert_same(fitted.scores(turned), fitted.scores(support))


def test_empty_support_is_the_prior(fitted, support):
    nobody = torch.zeros(TASKS, WIDTH)
    rubbish = fitted.scores(support._replace(mask=nobody))
    clean = fitted.scores(Examples(torch.zeros_like(support.x), nobody, nobody, support.task))
    assert torch.equal(rubbish, clean)
    if "+item fields" not in fitted.reads:  # of the task itself
        assert_same(clean, clean[:1].expand_as(clean))
    assert_same(fitted.scores(support)[0], clean[0])  # task 0 has no support


def test_tasks_do_not_see_each_other(fitted, support):
    together = fitted.scores(support)
    for task in range(TASKS):
        alone = fitted.scores(support.of(torch.tensor([task])))
        assert_same(alone[0], together[task])


def test_chunks_do_not_matter(fitted, support):
    whole, settings = fitted.scores(support), fitted.model.settings
    try:
        for size in (1, 3, None):
            fitted.model.settings = replace(settings, chunk_size=size)
            assert_same(fitted.scores(support), whole)
    finally:
        fitted.model.settings = settings


# What RecBole calls.


def test_predict_agrees_with_full_ranking(fitted, support):
    model, whole = fitted.model, fitted.scores(support)
    task, other = torch.meshgrid(torch.arange(TASKS), torch.arange(model.n_others), indexing="ij")
    mixed = torch.randperm(task.numel(), generator=torch.Generator().manual_seed(0))
    task, other = task.flatten()[mixed], other.flatten()[mixed]
    pairs = Interaction({model.TASK_ID: task + 1, model.OTHER_ID: other})
    with torch.no_grad():
        found = model.predict(pairs)
    assert_same(found, whole[task, other])


def test_adapting_changes_nothing_in_the_model(fitted, support):
    before = {key: value.clone() for key, value in fitted.model.state_dict().items()}
    first = fitted.scores(support).clone()
    one = fitted.scores(support.of(torch.tensor([1])))
    one[:] = -torch.inf  # a caller masks what may not be ranked
    fitted.scores(support)[:, 0] = -torch.inf
    assert torch.equal(fitted.scores(support), first)
    for key, value in fitted.model.state_dict().items():
        assert torch.equal(value, before[key]), key


def test_state_dict_into_a_fresh_model(fitted, support):
    file = io.BytesIO()
    torch.save(fitted.model.state_dict(), file)
    file.seek(0)
    fresh = fitted.choice.cls(fitted.stage.config, fitted.stage.dataset)
    fresh.load_state_dict(torch.load(file, weights_only=True))
    trained, expected = fitted.trainer.model, fitted.scores(support)
    try:
        fitted.trainer.model = fresh.eval()
        assert torch.equal(fitted.scores(support), expected)
    finally:
        fitted.trainer.model = trained


def test_a_checkpoint_that_lacks_something_is_refused(fitted):
    state = fitted.model.state_dict()
    if not state:
        pytest.skip("a model without parameters")
    state.popitem()
    with pytest.raises(RuntimeError, match="Missing key"):
        fitted.model.load_state_dict(state)


def test_order_of_the_tasks_does_not_matter(fitted):
    prepared, model = fitted.prepared, fitted.model
    k = prepared.shots[-1]
    expected = judge_learner(fitted.trainer, fitted.choice, fitted.stage, "test", k)
    judge = Judge(prepared, "test", fitted.stage.dataset, fitted.choice.name)
    rows = prepared.rows("test")
    known = pd.concat([prepared.rows(prepared.train_name("test", prepared.shots[0])),
                       prepared.rows("valid")])  # fmt: skip
    known = known.assign(id=known["item"].map(fitted.id_of("item")))
    if prepared.feedback == "implicit":
        rows = rows.drop_duplicates("user")
    rows = rows.sample(frac=1, random_state=1)
    for part in np.array_split(np.arange(len(rows)), 3):
        some = rows.iloc[part]
        batch = {model.USER_ID: torch.tensor(some["user"].map(fitted.id_of("user")).to_numpy())}
        if prepared.feedback == "implicit":
            score = model.full_sort_predict(Interaction(batch)).view(len(some), -1).clone()
            score[:, 0] = -torch.inf
            for n, user in enumerate(some["user"]):  # RecBole hides what a user had before
                score[n, known.loc[known["user"] == user, "id"].to_numpy()] = -torch.inf
        else:
            item = torch.tensor(some["item"].map(fitted.id_of("item")).to_numpy())
            label = torch.tensor(some["target"].to_numpy()).float()
            batch |= {model.ITEM_ID: item, prepared.target: label}
            score = model.predict(Interaction(batch))
        judge.eval_batch_collect(score, Interaction(batch), None, None)
    found = judge.get_data_struct()
    for query, metrics in expected.metrics.items():
        for metric, values in metrics.items():
            np.testing.assert_allclose(found.metrics[query][metric], values, rtol=1e-5)
