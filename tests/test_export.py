"""Exported programs: they say what the served model says, and need torch alone."""

import io
import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.fx.experimental.symbolic_shapes import statically_known_true

from recbole_meta.cli import main
from recbole_meta.errors import SettingError
from recbole_meta.export import ABOUT, exported
from recbole_meta.model import our_models
from recbole_meta.model.meta_recommender import joined
from recbole_meta.quick_start import run
from recbole_meta.saved_model import load
from recbole_meta.serving import Served, facts_of

SMALL = {"epochs": 1, "embedding_size": 4, "hidden_size": [6], "embedding_std": 1.0}
CONTEXT = {"epochs": 2, "embedding_size": 4, "token_size": 8, "heads": 2}
FIELDS = {"item_fields": True, "user_fields": True}
CASES = {
    "user_cold_5": {
        "Pop": {}, "QueryPop": {}, "Random": {}, "ItemKNNFoldIn": {},
        "EASEFoldIn": {"base": "pop"}, "ContentKNN": {}, "PriorRidge": {}, "EpisodicRidge": {},
        "MAML": SMALL | {"inner_steps": 2}, "ANIL": SMALL | {"support_negatives": 3},
        "MetaSGD": SMALL, "CAVIA": SMALL | {"inner_steps": 2}, "BOIL": SMALL, "Reptile": SMALL,
        "RESUSRR": SMALL, "LWA": SMALL | {"support_negatives": 2}, "NLBA": SMALL, "TaNP": SMALL,
        "RESUSNN": SMALL, "MetaCF": {"epochs": 1, "embedding_size": 4, "embedding_std": 1.0},
        "MAMO": SMALL | {"inner_steps": 2}, "CNP": SMALL | {"support_negatives": 2},
        "MetaRidge": {"epochs": 2, "embedding_size": 4, "user_fields": True}, "InContext": CONTEXT,
        "KernelRidge": {"embedding_size": 4}, "SubsetRidge": {},
        "Blend": {"epochs": 2, "members": {"MetaRidge": {"embedding_size": 4},
                                           "InContext": CONTEXT, "KernelRidge": {}}},
    },
    "user_cold_5_rating": {
        "Constant": {}, "SupportMean": {}, "SupportMedian": {}, "ShrunkMedian": {},
        "UserItemBias": {}, "MAML": SMALL | FIELDS,
        "MeLU": SMALL | {"inner_lr": 0.1, "inner_steps": 2}, "CNP": SMALL | FIELDS,
        "RatingRidge": SMALL | {"directions": 3}, "InContext": CONTEXT | FIELDS,
        "RatingRidges": {"epochs": 1, "copies": 2, "member": {"embedding_size": 4}},
    },
    "user_cold_5_label": {"CNP": SMALL},
    "item_cold": {"CNP": SMALL | {"item_fields": True}, "PriorRidge": {}, "ContentRidge": {},
                  "SubsetRidge": {}},
}  # fmt: skip
PAIRS = [(model, protocol) for protocol, models in CASES.items() for model in models]
SIZES = [(1, 0), (1, 1), (1, 7), (2, 1), (3, 0), (4, 4), (7, 12), (40, 9)]  # newcomers, items


@pytest.fixture(scope="module")
def saved(sample_path, tmp_path_factory):
    """``saved(model, protocol)``: the file of a trained model, made once."""
    target, made = tmp_path_factory.mktemp("saved"), {}

    def make(model: str, protocol: str = "user_cold_5") -> Path:
        if (model, protocol) not in made:
            made[model, protocol] = run(
                model, "tiny", protocol, settings=CASES[protocol][model], data_path=sample_path,
                prepared_path=target / "prepared", results=target / "runs", save=True,
            )["saved"]  # fmt: skip
        return Path(made[model, protocol])

    return make


def read(content: bytes):
    """The program, and what its file says of it."""
    extra = {ABOUT: ""}
    program = torch.export.load(io.BytesIO(content), extra_files=extra)
    return program.module(), json.loads(extra[ABOUT])


def arguments(about: dict, said: list[dict], width: int, rng: random.Random) -> list[torch.Tensor]:
    """What who knows only the file gives the program."""
    ids = {token: place for place, token in enumerate(about["inputs"][0]["tokens"])}
    others = about["inputs"][0]["name"]
    made = {others: [], "labels": [], "mask": []}
    for one in said:
        labels = dict.fromkeys(one.get("likes", []), 1) | dict.fromkeys(one.get("dislikes", []), 0)
        rows = list((labels | one.get("ratings", {})).items())
        rng.shuffle(rows)
        made[others].append(padded([ids[token] for token, _ in rows], width))
        made["labels"].append(padded([label for _, label in rows], width))
        made["mask"].append(padded([1] * len(rows), width))
    for entry in about["inputs"][3:]:
        made[entry["name"]] = [
            read_feature(entry, one.get("features", {}).get(entry["name"])) for one in said
        ]
    return [
        torch.tensor(made[entry["name"]], dtype=getattr(torch, entry["dtype"]))
        for entry in about["inputs"]
    ]


def padded(values: list, width: int) -> list:
    return values + [0] * (width - len(values))


def read_feature(entry: dict, value):
    """A number, an id, or a list of them; None is unknown."""
    several = entry["shape"][1:]
    if "tokens" not in entry:
        unknown = float("nan")
        return value if value is not None else [unknown] * several[0] if several else unknown
    places = {token: place for place, token in enumerate(entry["tokens"])}
    if several:
        return padded([places[token] for token in value or []], 3)
    return places[value] if value else 0


def newcomers(served: Served, number: int, most: int, rng: random.Random) -> list[dict]:
    """The first one says ``most``, the second one nothing, the others something between."""
    said = []
    for length in [most, 0, *(rng.randint(0, most) for _ in range(number))][:number]:
        items = rng.sample(served.items[1:], length)
        if served.feedback == "rating":
            said.append({"ratings": {item: float(rng.randint(1, 5)) for item in items}})
        elif served.model.reads_labels:
            cut = rng.randint(0, length)
            said.append({"likes": items[:cut], "dislikes": items[cut:]})
        else:
            said.append({"likes": items})
        _, facts = facts_of(served.model)
        side = served.model.side
        fields = [] if facts is None else getattr(facts, f"{side}_fields")
        said[-1]["features"] = {f.name: feature(f, rng) for f in fields if rng.random() < 0.7}
    return said


def feature(field, rng: random.Random):
    if field.kind.startswith("token"):
        tokens = [token for token in field.tokens if token]
        several = field.kind == "token_seq"
        return rng.sample(tokens, rng.randint(0, 2)) if several else rng.choice(tokens)
    numbers = [mean + d * rng.gauss(0, 1) for mean, d in zip(field.mean, field.deviation)]
    return numbers if field.kind == "float_seq" else numbers[0]


def scores_of(served: Served, said: list[dict]) -> torch.Tensor:
    """What the served model says of the whole catalogue, [B, I]."""
    everything = torch.arange(len(served.items))
    return torch.stack([one._scores(everything, []) for one in served.adapt_many(said)])


def assert_same(program, about: dict, served: Served) -> None:
    rng = random.Random(0)
    for number, most in SIZES:
        said = newcomers(served, number, most, rng)
        with torch.no_grad():
            found = program(*arguments(about, said, max(1, most), rng))
        torch.testing.assert_close(found, scores_of(served, said), rtol=1e-4, atol=1e-5)


def test_every_model_is_a_case() -> None:
    assert {model for model, _ in PAIRS} == set(our_models())


@pytest.mark.parametrize(("model", "protocol"), PAIRS)
def test_the_program_says_what_the_model_says(saved, model, protocol) -> None:
    served = load(saved(model, protocol))
    before = {name: value.clone() for name, value in served.model.state_dict().items()}
    program, about = read(exported(served))
    assert_same(program, about, served)
    if served.model.group != "floor":  # else an equal program says nothing
        one, other = scores_of(served, newcomers(served, 1, 3, random.Random(0)) + [{}])
        assert not torch.allclose(one, other, rtol=1e-3)
    assert about["model"] == json.loads(json.dumps(served.info()))
    chosen = [token for token, there in zip(served.items, served.candidate) if there]
    assert [about["inputs"][0]["tokens"][place] for place in about["candidates"]] == chosen
    after = served.model.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())


USERS = """\
user_id:token\ttown:token\ttags:token_seq\tage:float\tplace:float_seq
{rows}
"""
PAGE = "rating: rating\ntime: timestamp\nuser_features: [town, tags, age, place]\n"


def test_every_kind_of_feature(sample_path, tmp_path) -> None:
    """By tokens and plain numbers; what is unknown is nan or 0, as where it is not said."""
    folder, rng = tmp_path / "kinds", random.Random(3)
    folder.mkdir()
    rows = (sample_path / "tiny" / "tiny.inter").read_text("utf-8")
    (folder / "kinds.inter").write_text(rows, "utf-8")
    users = sorted({line.split("\t")[0] for line in rows.splitlines()[1:]})
    lines = [
        f"{user}\tt{rng.randint(0, 3)}\t{' '.join(rng.sample('abcde', 2))}"
        f"\t{rng.randint(18, 80)}\t{rng.random() * 9} {rng.random() - 40} {rng.random()}"
        for user in users
    ]
    (folder / "kinds.user").write_text(USERS.format(rows="\n".join(lines)), "utf-8")
    (folder / "kinds.yaml").write_text(PAGE, "utf-8")
    saved = run(
        "CNP", "kinds", "user_cold_5_rating", settings=SMALL | {"user_fields": True},
        data_path=tmp_path, prepared_path=tmp_path / "prepared", results=tmp_path / "runs",
        save=True,
    )["saved"]  # fmt: skip
    served = load(saved)
    program, about = read(exported(served))
    shapes = {entry["name"]: entry["shape"] for entry in about["inputs"][3:]}
    assert shapes == {"town": ["B"], "tags": ["B", "L1"], "age": ["B"], "place": ["B", 3]}
    assert_same(program, about, served)
    said = [{"features": {"age": age}} for age in (20, 70)]
    one, other = scores_of(served, said)
    assert not torch.allclose(one, other, rtol=1e-3), "the features count"


ALONE = """\
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("recbole", "recbole_meta"):
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Blocked())
import torch

program = torch.export.load("model.pt2").module()
given = torch.load("given.pt", weights_only=True)
torch.save(program(*given), "scores.pt")
assert not {"recbole", "recbole_meta"} & {name.split(".")[0] for name in sys.modules}
"""


def test_a_process_without_recbole_runs_it(saved, tmp_path, capsys) -> None:
    path, file = saved("MAML", "user_cold_5_rating"), tmp_path / "model.pt2"
    served = load(path)
    assert main(["export", str(path), "--out", str(file)]) == 0
    assert capsys.readouterr().out == f"{file}\n"
    _, about = read(file.read_bytes())
    rng = random.Random(1)
    said = newcomers(served, 6, 5, rng)
    torch.save(arguments(about, said, 5, rng), tmp_path / "given.pt")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", ALONE], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    found = torch.load(tmp_path / "scores.pt", weights_only=True)
    torch.testing.assert_close(found, scores_of(served, said), rtol=1e-4, atol=1e-5)


# What is refused.


def by_number(adapt, support):
    return adapt(support._replace(label=support.label + len(support.x)))


def by_value(adapt, support):
    return adapt(support) if support.mask.sum() > 2 else adapt(support._replace(x=support.x * 0))


def by_chance(adapt, support):
    return adapt(support._replace(mask=torch.rand_like(support.mask)))


def by_tracing(adapt, support):
    long = statically_known_true(support.x.shape[0] > 4)
    return adapt(support._replace(mask=support.mask * (0.5 if long else 1.0)))


@pytest.mark.parametrize(
    ("planted", "said"),
    [
        (by_number, "is no program for every number of newcomers"),
        (by_value, "is no program for every number of newcomers"),
        (by_chance, "is no program for every number of newcomers"),
        (by_tracing, "its program scores otherwise"),
    ],
)
def test_a_learner_that_is_no_such_program_is_refused(saved, monkeypatch, planted, said) -> None:
    served = load(saved("PriorRidge"))
    adapt = served.model.adapt
    monkeypatch.setattr(served.model, "adapt", lambda support: planted(adapt, support))
    with pytest.raises(SettingError) as error:
        exported(served)
    assert str(error.value).startswith("PriorRidge cannot be exported: ")
    assert said in str(error.value)


def test_errors_of_the_command_line(saved, tmp_path, capsys) -> None:
    path = str(saved("Pop"))
    for out, said in [
        (tmp_path / "none" / "model.pt2", "Cannot write into the folder"),
        (tmp_path, "--out names a file"),
    ]:
        assert main(["export", path, "--out", str(out)]) == 2
        assert said in capsys.readouterr().err
    assert main(["export", str(tmp_path / "none.pt"), "--out", str(tmp_path / "model.pt2")]) == 2
    assert "none.pt" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_joined_is_cat_bit_for_bit(float64) -> None:
    """And so is its gradient: what was trained before stays."""
    left, right = torch.randn(5, 3, requires_grad=True), torch.randn(5, 2, requires_grad=True)
    weight = torch.randn(5, 5)
    grads = []
    for join in (joined, lambda a, b: torch.cat([a, b], dim=-1)):
        value = join(left, right)
        grads.append([value, *torch.autograd.grad((value * weight).sum(), (left, right))])
    assert all(torch.equal(one, other) for one, other in zip(*grads))
