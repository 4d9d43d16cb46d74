"""Fields of users and items against loops over what the files say of them."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from recbole_meta.choice import choose_model
from recbole_meta.data.features import Field, FieldEmbedding, read_fields
from recbole_meta.data.prepare import prepare, read_protocol
from recbole_meta.data.prepared import Prepared, open_prepared
from recbole_meta.data.warm import warm_users
from recbole_meta.errors import DataError
from recbole_meta.stage import Stage, load_stage

FIELDS = {  # 'type' is a method of every torch module, too
    "user": {"type": "token", "tags": "token_seq", "age": "float", "place": "float_seq"},
    "item": {"kind": "token", "words": "token_seq", "price": "float", "colour": "float_seq"},
}
PAGE = [
    "rating: rating",
    *(f"{side}_features: [{', '.join(kinds)}]" for side, kinds in FIELDS.items()),
]
ROWS = [
    (f"u{u:02}", f"i{(u + 3 * i) % 8}", 1 + (u * i) % 5, 100 * u + i)
    for u in range(20)
    for i in range(6)
]
Values = dict[str, tuple[str, str, str, str]]


def values_of(number: int) -> tuple[str, str, str, str]:
    """Of one user or item: as many categories as 1 + number % 3."""
    tags = " ".join(f"t{tag}" for tag in range(1 + number % 3))
    return f"k{number % 3}", tags, str(3 * number + 2), f"{number} {10 - number * number}"


@pytest.fixture(scope="module")
def fields(tmp_path_factory) -> Callable[[list[tuple], Values, Values], Stage]:
    """``fields(rows, users, items)``: the test stage of a data set with all types of fields."""

    def make(rows: list[tuple], users: Values, items: Values) -> Stage:
        folder = tmp_path_factory.mktemp("fields")
        (folder / "toy").mkdir()
        header = "user_id:token\titem_id:token\trating:float\ttimestamp:float"
        write(folder / "toy" / "toy.inter", [header, *("\t".join(map(str, row)) for row in rows)])
        for side, known in (("user", users), ("item", items)):
            kinds = "\t".join(f"{name}:{kind}" for name, kind in FIELDS[side].items())
            text = [f"{token}\t" + "\t".join(values) for token, values in known.items()]
            write(folder / "toy" / f"toy.{side}", [f"{side}_id:token\t{kinds}", *text])
        write(folder / "toy" / "toy.yaml", PAGE)
        protocol = read_protocol("user_cold_5_rating", shots=2)
        path = prepare("toy", protocol, "user_cold_5_rating", folder, folder / "prepared")
        return stage_of(open_prepared(path))

    return make


def write(path: Path, lines: list[str]) -> None:
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def stage_of(prepared: Prepared) -> Stage:
    return load_stage(choose_model("Constant"), prepared, "test", 2, 1, {})


def known_of(stage: Stage, side: str) -> torch.Tensor:
    """Who is met in training, as a learner tells it."""
    warm = warm_users(stage.dataset)
    field, ids = ("user_id", warm.ids) if side == "user" else ("item_id", warm.item)
    known = torch.zeros(stage.dataset.num(field), dtype=torch.bool)
    known[torch.from_numpy(ids)] = True
    return known


def read(stage: Stage, side: str, with_id: bool = False, with_fields: bool = True) -> list[Field]:
    return read_fields(stage.dataset, f"{side}_id", known_of(stage, side), with_id, with_fields)


def token_vector(stage: Stage, weight: torch.Tensor, name: str, tokens: list[str]) -> np.ndarray:
    """The mean of some categories' vectors, one at a time."""
    rows = [weight[stage.dataset.token2id(name, token)].detach().numpy() for token in tokens]
    return np.mean(rows, axis=0) if rows else np.zeros(weight.shape[1])


@pytest.fixture(scope="module")
def world(fields) -> tuple[Stage, dict[str, Values], dict[str, set[str]]]:
    """The stage; what each user and item is; who is warm. Newcomers differ from all others:
    two cold users alone have items i8 and i9, and one cold user is of a kind of his own.
    """
    plain = {f"u{n:02}": values_of(n) for n in range(20)}
    things = {f"i{n}": values_of(n) for n in range(10)}
    prepared = fields(ROWS, plain, things).prepared
    cold = sorted(prepared.cold_tasks("test"))
    rows = ROWS + [(user, item, 5, 9999) for user, item in zip(cold, ("i8", "i9"))]
    plain[cold[0]] = ("alien", "t0 odd", "9000", "700 -700")
    things["i8"] = ("alien", "odd", "9000", "700 -700")
    things["i9"] = ("k1", "t1 odd", "5", "4 4")
    stage = fields(rows, plain, things)
    assert sorted(stage.prepared.cold_tasks("test")) == cold
    warm = {"user": set(plain) - set(cold), "item": set(things) - {"i8", "i9"}}
    return stage, {"user": plain, "item": things}, warm


@pytest.mark.parametrize("side", ["user", "item"])
def test_who_is_warm(world, side: str) -> None:
    """So that the tests below ask what they say."""
    stage, values, warm = world
    known = known_of(stage, side).nonzero().squeeze(-1).numpy()
    assert set(stage.dataset.id2token(f"{side}_id", known)) == warm[side] < set(values[side])


@pytest.mark.parametrize("side", ["user", "item"])
def test_fields_follow_the_page_and_their_types(world, side: str) -> None:
    stage, _, _ = world
    fields = read(stage, side)
    assert {field.name: field.kind for field in fields} == FIELDS[side]
    n = stage.dataset.num(f"{side}_id")
    shapes = [tuple(field.values.shape) for field in fields]
    assert shapes == [(n,), (n, 3), (n,), (n, 2)]
    sizes = [stage.dataset.num(name) for name in list(FIELDS[side])[:2]]
    assert [field.size for field in fields] == [*sizes, 1, 2]


@pytest.mark.parametrize("side", ["user", "item"])
@pytest.mark.parametrize(
    ("with_id", "with_fields", "n_fields"),
    [(True, True, 5), (False, True, 4), (True, False, 1), (False, False, 0)],
)
def test_ids_and_fields_on_and_off(world, side, with_id, with_fields, n_fields) -> None:
    stage, _, _ = world
    fields = read(stage, side, with_id, with_fields)
    names = [f"{side}_id"] * with_id + list(FIELDS[side]) * with_fields
    assert [field.name for field in fields] == names and len(names) == n_fields
    module = FieldEmbedding(fields, 3, 1.0)
    assert module.size == 3 * n_fields
    assert module(torch.tensor([[1, 2], [3, 0]])).shape == (2, 2, 3 * n_fields)
    assert module(torch.tensor(1)).shape == (3 * n_fields,)
    assert module(torch.zeros(0, dtype=torch.long)).shape == (0, 3 * n_fields)


@pytest.mark.parametrize("side", ["user", "item"])
def test_every_vector_is_what_the_file_says(world, side: str) -> None:
    """Newcomers' own categories are nothing, in a set, too; numbers are scaled by warm ones."""
    stage, values, warm = world
    dataset, names = stage.dataset, list(FIELDS[side])
    fields = {field.name: field for field in read(stage, side, with_id=True)}
    torch.manual_seed(0)
    module = FieldEmbedding(list(fields.values()), 3, 1.0)
    weight = dict(zip(fields, module.weights))
    met = [{tag for who in warm[side] for tag in values[side][who][n].split()} for n in (0, 1)]
    assert "alien" not in met[0] and "odd" not in met[1] and {"t0", "t1", "t2"} == met[1]
    lines = [values[side][who] for who in sorted(warm[side])]
    numbers = np.array([[float(line[2]), *map(float, line[3].split())] for line in lines])
    mean, deviation = numbers.mean(axis=0), numbers.std(axis=0)
    for who, (kind, tags, number, vector) in values[side].items():
        own = [who] if who in warm[side] else []
        parts = [
            token_vector(stage, weight[f"{side}_id"], f"{side}_id", own),
            token_vector(stage, weight[names[0]], names[0], [kind] if kind in met[0] else []),
            token_vector(
                stage, weight[names[1]], names[1], [t for t in tags.split() if t in met[1]]
            ),
        ]
        scaled = (np.array([float(number), *map(float, vector.split())]) - mean) / deviation
        parts.append(scaled[0] * weight[names[2]].detach().numpy()[0])
        parts.append(scaled[1:] @ weight[names[3]].detach().numpy())
        found = module(torch.tensor(dataset.token2id(f"{side}_id", who))).detach().numpy()
        np.testing.assert_allclose(found, np.concatenate(parts), rtol=1e-4, atol=1e-5)
    assert not module(torch.tensor(0)).any()  # padding


@pytest.mark.parametrize("side", ["user", "item"])
def test_numbers_of_the_known_have_mean_zero_and_deviation_one(world, side: str) -> None:
    stage, _, _ = world
    known = known_of(stage, side)
    for field in read(stage, side)[2:]:
        values = field.values[known].double()
        np.testing.assert_allclose(values.mean(0), torch.zeros_like(values[0]), atol=1e-6)
        np.testing.assert_allclose(values.std(0, correction=0), torch.ones_like(values[0]), 1e-5)
        assert field.values.abs().max() > 10  # the newcomer's 9000 is not cut
        assert not field.values[0].any()


@pytest.mark.parametrize("side", ["user", "item"])
def test_gradients_reach_known_categories_alone(world, side: str) -> None:
    stage, values, warm = world
    fields = read(stage, side, with_id=True)
    module = FieldEmbedding(fields, 2, 0.1)
    module(torch.arange(stage.dataset.num(f"{side}_id"))).sum().backward()
    met = [warm[side], *({t for who in warm[side] for t in values[side][who][n].split()}
                         for n in (0, 1))]  # fmt: skip
    for field, weight, tokens in zip(fields, module.weights, met):
        moved = weight.grad.any(dim=1).nonzero().squeeze(-1).numpy()
        assert set(stage.dataset.id2token(field.name, moved)) == tokens
        assert len(moved) < field.size - 1
    assert all(weight.grad.any() for weight in module.weights)


def test_users_and_items_without_a_line(fields) -> None:
    """No category, the mean number of all lines, and a vector of zeros before it is scaled."""
    values = {
        "user": {f"u{n:02}": values_of(n) for n in range(20)},
        "item": {f"i{n}": values_of(n) for n in range(8)},
    }
    missing = {"user": "u04", "item": "i4"}
    for side, token in missing.items():
        del values[side][token]
    stage = fields(ROWS, values["user"], values["item"])
    for side, token in missing.items():
        place = stage.dataset.token2id(f"{side}_id", token)
        ids = known_of(stage, side).nonzero().squeeze(-1).numpy()
        known = stage.dataset.id2token(f"{side}_id", ids)
        fill = np.mean([float(line[2]) for line in values[side].values()])
        lines = [values[side].get(who, ("", "", str(fill), "0 0")) for who in known]
        numbers = np.array([[float(line[2]), *map(float, line[3].split())] for line in lines])
        blank = (np.array([fill, 0, 0]) - numbers.mean(axis=0)) / numbers.std(axis=0)
        kind, tags, number, vector = read(stage, side)
        assert kind.values[place] == 0 and not tags.values[place].any()
        np.testing.assert_allclose(number.values[place], blank[0], atol=1e-5)
        np.testing.assert_allclose(vector.values[place], blank[1:], rtol=1e-5)


def test_a_data_set_without_fields_has_vectors_of_length_zero(make_world) -> None:
    stage = stage_of(make_world(ROWS, "user_cold_5_rating", shots=2))
    for side in ("user", "item"):
        assert read(stage, side) == []
        assert [field.name for field in read(stage, side, with_id=True)] == [f"{side}_id"]
    module = FieldEmbedding([], 4, 1.0)
    assert module.size == 0 and not list(module.parameters())
    assert module(torch.ones(5, 2, dtype=torch.long)).shape == (5, 2, 0)


def test_a_number_that_no_known_one_varies_stays_small(fields) -> None:
    """0.1 has no exact mean in single precision; a newcomer's 0.2 must not become thousands."""
    users = {f"u{n:02}": values_of(n) for n in range(20)}
    items = {f"i{n}": values_of(n) for n in range(8)}
    cold = fields(ROWS, users, items).prepared.tasks("test")[0]
    for user, values in users.items():
        number = "0.2" if user == cold else "0.1"
        users[user] = (*values[:2], number, f"{number} {values[3].split()[1]}")
    stage = fields(ROWS, users, items)
    _, _, age, place = read(stage, "user")
    newcomer = stage.dataset.token2id("user_id", cold)
    known = known_of(stage, "user")
    assert not age.values[known].any() and not place.values[known][:, 0].any()
    assert age.values[newcomer] == pytest.approx(0.1)
    assert place.values[newcomer, 0] == pytest.approx(0.1)


def test_numbers_come_in_the_precision_of_the_model(world, float64) -> None:
    stage, _, _ = world
    module = FieldEmbedding(read(stage, "item", with_id=True), 3, 1.0)
    found = module(torch.arange(1, 4))
    assert found.dtype == torch.float64 and found.shape == (3, 15)


def test_the_start_is_random_of_the_given_deviation_and_nothing_for_padding() -> None:
    torch.manual_seed(3)
    values = torch.arange(2000)
    module = FieldEmbedding(
        [Field("a", "token", values, 2000), Field("b", "token", values, 2000)], 16, 0.05
    )
    first, second = (weight.detach() for weight in module.weights)
    for weight in (first, second):
        assert not weight[0].any()
        assert float(weight[1:].std()) == pytest.approx(0.05, rel=0.02)
    assert not torch.equal(first, second)


def test_the_mean_of_a_set_is_of_its_categories_not_of_its_width() -> None:
    values = torch.tensor([[0, 0, 0], [1, 0, 0], [2, 1, 0], [3, 2, 1], [0, 3, 0]])
    module = FieldEmbedding([Field("tags", "token_seq", values, 4)], 2, 1.0)
    (weight,) = module.weights
    with torch.no_grad():
        weight[1:] = torch.tensor([[1.0, 0], [0, 1], [4, 4]])
    expected = [[0, 0], [1, 0], [0.5, 0.5], [5 / 3, 5 / 3], [4, 4]]
    np.testing.assert_allclose(module(torch.arange(5)).detach(), expected, rtol=1e-6)


def test_state_is_restored_with_what_is_known(world) -> None:
    """Who is known is part of the model: a checkpoint brings it along."""
    stage, _, _ = world
    fields = read(stage, "item", with_id=True)
    one, two = (FieldEmbedding(fields, 3, 1.0) for _ in range(2))
    blank = [field._replace(values=torch.zeros_like(field.values)) for field in fields]
    other = FieldEmbedding(blank, 3, 1.0)
    ids = torch.arange(1, 10)
    assert not torch.equal(one(ids), two(ids))
    for copy in (two, other):
        copy.load_state_dict(one.state_dict())
        assert torch.equal(copy(ids), one(ids))


def test_who_says_what_a_known_one_has_is_read_as_he_is(world) -> None:
    stage, values, warm = world
    for side, kinds in FIELDS.items():
        for field in read(stage, side):
            for token in sorted(warm[side]):
                raw = values[side][token][list(kinds).index(field.name)]
                said = {"token": str, "token_seq": str.split, "float": float,
                        "float_seq": lambda text: [float(x) for x in text.split()]}  # fmt: skip
                found = field.read(said[field.kind](raw))
                there = field.values[stage.dataset.token2id(f"{side}_id", token)]
                there = there[there > 0] if field.kind == "token_seq" else there
                assert found.tolist() == pytest.approx(there.tolist(), abs=1e-5)


@pytest.mark.parametrize("wrong", ["old", [1.0], None, float("nan"), float("inf"), True])
def test_what_is_no_number_is_refused(wrong) -> None:
    field = Field("age", "float", torch.zeros(2), 1, (), (30.0,), (10.0,))
    assert float(field.read(40)) == 1 and float(field.unknown()) == 0
    with pytest.raises(DataError, match="'age' must be a number"):
        field.read(wrong)


@pytest.mark.parametrize("wrong", [1.0, [1.0], [1.0, "a"], [1.0, 2.0, 3.0], "ab"])
def test_what_are_no_numbers_is_refused(wrong) -> None:
    field = Field("place", "float_seq", torch.zeros(2, 2), 2, (), (0.0, 1.0), (1.0, 2.0))
    assert field.read([1, 2]).tolist() == [1.0, 0.5] and field.unknown().tolist() == [0, 0]
    with pytest.raises(DataError, match="'place' must be 2 numbers"):
        field.read(wrong)
