r"""A saved model as one program, which needs torch and neither RecBole nor this package.

.. math:: (items, labels, mask, features) \to scores

items, labels, mask [B, S]: what B newcomers said, padded to S; features: a tensor for each field of
the newcomers that the model reads; scores [B, I]: of the whole catalogue, what is judged. B and S
are free. Where newcomers are items there are users in the place of items.
"""

import io
import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.func import vmap
from torch.fx.experimental.proxy_tensor import make_fx

from recbole_meta.data.features import Field
from recbole_meta.episode import Examples
from recbole_meta.errors import SettingError
from recbole_meta.serving import Served

FORMAT = 1
ABOUT = "about.json"  # the file in the program's file that says what it takes
_TRACED = 1009  # sizes from here on stand for free ones: unlike those that the model fixes
_CHECKED = (1, 2, 9)  # sizes for which the program must say what the model says
_UNTRACEABLE = (RuntimeError, ValueError, TypeError, AttributeError, AssertionError)


class Program(nn.Module):
    """``adapt`` and ``score`` of B newcomers."""

    def __init__(self, served: Served) -> None:
        super().__init__()
        self.model, self.encoded = served.model, served.encoded
        self.fields = _fields(served)

    def forward(self, items: Tensor, labels: Tensor, mask: Tensor, *features: Tensor) -> Tensor:
        model = self.model
        if self.fields:
            values = [_value(*each) for each in zip(self.fields, features, strict=True)]
            task = model.encode_values(values)  # [B, D_t]
        else:
            nothing = model.encode_newcomer({})
            task = nothing.expand(items.shape[0], *nothing.shape)
        support = model.complete(Examples(items, labels, mask, task))
        states = vmap(model.adapt)(support._replace(x=self.encoded[support.x]))
        scores: Tensor = model.output(vmap(model.score, (0, None))(states, self.encoded))
        return scores  # [B, I]


def exported(served: Served) -> bytes:
    """The file of the program, for ``torch.export.load``; ``about.json`` in it says what it takes.

    A model whose ``adapt`` or ``score`` is no program of tensors for every B and S is refused, and
    so is one whose program says something else than the model.
    """
    name, program, takes = type(served.model).__name__, Program(served), inputs(served)
    free = {size: place for place, size in enumerate(_free(takes))}
    try:
        found = _traced(program, takes, {size: _TRACED + place for size, place in free.items()})
    except _UNTRACEABLE as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise SettingError(
            f"{name} cannot be exported: its adapt or score is no program for every number of "
            f"newcomers and every length of support ({reason})"
        ) from error
    run = found.module()
    for size in _CHECKED:
        given = _made(takes, {one: max(1, size - place) for one, place in free.items()})
        with torch.no_grad():
            same = torch.allclose(
                run(*given), program(*given), rtol=1e-4, atol=1e-5, equal_nan=True
            )
        if not same:
            raise SettingError(f"{name} cannot be exported: its program scores otherwise.")
        found.example_inputs = given, {}  # the file holds the last ones
    about = {
        "format": FORMAT,
        "model": served.info(),
        "inputs": takes,
        "candidates": served.candidate.nonzero().squeeze(-1).tolist(),
    }
    buffer = io.BytesIO()
    torch.export.save(found, buffer, extra_files={ABOUT: json.dumps(about, ensure_ascii=False)})
    return buffer.getvalue()


def inputs(served: Served) -> list[dict[str, Any]]:
    """Of each argument in order its name, type, shape and meaning; of ids their tokens, by id."""
    kind = str(torch.get_default_dtype()).removeprefix("torch.")
    others = f"{served.kind}s"
    said = "ratings" if served.takes_ratings else "1: liked, 0: disliked"
    return [
        {"name": others, "dtype": "int64", "shape": ["B", "S"], "is": "ids; 0 in padding",
         "tokens": served.items},
        {"name": "labels", "dtype": kind, "shape": ["B", "S"], "is": f"{said}; 0 in padding"},
        {"name": "mask", "dtype": kind, "shape": ["B", "S"], "is": "1: said, 0: padding"},
        *(_input(place, field) for place, field in enumerate(_fields(served))),
    ]  # fmt: skip


def _fields(served: Served) -> list[Field]:
    return served.model.task_fields


def _input(place: int, field: Field) -> dict[str, Any]:
    shape = {"token_seq": ["B", f"L{place}"], "float_seq": ["B", field.size]}.get(field.kind, ["B"])
    about = {"name": field.name, "shape": shape}
    if not field.kind.startswith("token"):
        return about | {"dtype": "float64", "is": "numbers; nan if unknown"}
    tokens = list(field.tokens)
    return about | {"dtype": "int64", "is": "ids; 0 if unknown and in padding", "tokens": tokens}


def _value(field: Field, given: Tensor) -> Tensor:
    """What `Field.read` makes of it, for B newcomers."""
    if field.kind.startswith("token"):
        return given
    width = field.size if field.kind == "float_seq" else ()
    mean, deviation = (given.new_tensor(part).reshape(width) for part in field[-2:])
    return ((given - mean) / deviation).nan_to_num(nan=0.0).to(torch.get_default_dtype())


def _free(takes: Sequence[Mapping[str, Any]]) -> list[str]:
    """The names of the free sizes."""
    return list(dict.fromkeys(n for one in takes for n in one["shape"] if isinstance(n, str)))


def _made(takes: Sequence[Mapping[str, Any]], sizes: Mapping[str, int]) -> tuple[Tensor, ...]:
    """Arguments of these sizes: any ids; labels, mask and numbers 0 or 1."""
    rng = torch.Generator().manual_seed(0)
    return tuple(
        torch.randint(len(one.get("tokens", "01")), [sizes.get(n, n) for n in one["shape"]],
                      generator=rng).to(getattr(torch, one["dtype"]))
        for one in takes
    )  # fmt: skip


def _traced(
    program: Program, takes: Sequence[Mapping[str, Any]], sizes: Mapping[str, int]
) -> ExportedProgram:
    """``make_fx`` first: torch.export alone takes no ``torch.func.grad``."""
    free = {name: Dim(name, min=1) for name in sizes}
    shapes = tuple(
        {axis: free[n] for axis, n in enumerate(one["shape"]) if n in free} for one in takes
    )
    given = _made(takes, sizes)
    with torch.no_grad():
        graph = make_fx(program, tracing_mode="symbolic", _allow_non_fake_inputs=True)(*given)
        return torch.export.export(graph, given, dynamic_shapes=shapes)
