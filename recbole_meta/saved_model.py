"""Files of fitted models: all that serving needs, so that no data set has to be there."""

import io
from collections.abc import Collection, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from recbole_meta.compat import contained
from recbole_meta.data.facts import Facts, StoredDataset
from recbole_meta.data.features import Field
from recbole_meta.errors import DataError, RecboleMetaError, nearest
from recbole_meta.model import our_models
from recbole_meta.model.meta_recommender import MetaRecommender
from recbole_meta.serving import DAMAGED, Served, facts_of, reason
from recbole_meta.settings import load_properties

FORMAT = 3


def load(path: str | Path) -> Served:
    """The model of a file that ``recbole-meta run --save`` wrote; reading it runs no code."""
    path = Path(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(content, dict) or content.get("kind") != "model":
            raise DataError(f"{path} is no saved model.")
        if content["format"] != FORMAT:
            raise DataError(f"{path} has format {content['format']}, this version reads {FORMAT}.")
        with contained():
            served = Served(_build(content), content)
        served.adapt()._scores(torch.tensor([1]), [])  # what is missing shows here
        return served
    except RecboleMetaError as error:
        if str(path) in str(error):
            raise
        raise type(error)(f"{path}: {error}") from error
    except DAMAGED as error:
        raise DataError(f"{path} is damaged or no saved model: {reason(error)}") from error


def _build(content: Mapping[str, Any]) -> MetaRecommender:
    known = our_models()
    if content["model"] not in known:
        raise DataError(f"Unknown model '{content['model']}'. {nearest(content['model'], known)}")
    side, facts = content["side"], None
    part = content["part"]  # of the model, which reads the fields: 'members.InContext.'
    state = {k.removeprefix(part): v for k, v in content["state"].items() if k.startswith(part)}
    if side not in ("user", "item"):
        raise DataError(f"A newcomer is a user or an item, found {side!r}.")
    if content["facts"] is not None:
        fields = {
            kind: [
                _field(described, None if kind == side else state[f"{kind}_embedding.values_{n}"])
                for n, described in enumerate(content["facts"][f"{kind}_fields"])
            ]
            for kind in ("item", "user")
        }
        pool = state.get("pool", torch.zeros(0))  # where it has one it is a buffer
        grades = (state.get(name, torch.zeros(0)) for name in ("grades", "grade_share"))
        facts = Facts(side, content["feedback"], 0.0, pool, fields["item"], fields["user"], *grades)
    user, item = content["user_field"], content["item_field"]
    page = load_properties("model", content["model"])  # of what was no setting then
    config = page | content["settings"] | {
        "USER_ID_FIELD": user, "ITEM_ID_FIELD": item,
        "NEG_PREFIX": "neg_", "device": torch.device("cpu"),
    }  # fmt: skip
    sizes = {user: 1, item: len(content["items"])}
    if side == "item":
        sizes = {item: 1, user: len(content["items"])}
    stored = StoredDataset(side, sizes, facts)
    model: MetaRecommender = known[content["model"]](config, stored)
    model.load_state_dict(content["state"])
    model.eval()
    return model


def model_bytes(
    model: MetaRecommender, dataset: Any, feedback: str, candidates: Collection[str], about: Any
) -> bytes:
    """A fitted model with all that serving it needs, the training tasks' own data not among it."""
    tokens = [str(token) for token in dataset.field2id_token[model.OTHER_ID]]
    part, facts = facts_of(model)
    rating = dataset.config["RATING_FIELD"]
    bounds = None
    if feedback == "rating":
        values = dataset.inter_feat[rating]
        bounds = [float(values.min()), float(values.max())]
    content = {
        "kind": "model",
        "format": FORMAT,
        "model": type(model).__name__,
        "settings": {k: list(v) if isinstance(v, tuple) else v
                     for k, v in asdict(model.settings).items()},
        "feedback": feedback,
        "side": model.side,
        "user_field": dataset.uid_field,
        "item_field": dataset.iid_field,
        "items": tokens,
        "candidates": torch.tensor([token in candidates for token in tokens]),
        "bounds": bounds,
        "part": part,
        "facts": None if facts is None else {
            "item_fields": [_described(field) for field in facts.item_fields],
            "user_fields": [_described(field) for field in facts.user_fields],
        },
        "state": {name: value.cpu() for name, value in model.state_dict().items()},
        "about": about,
    }  # fmt: skip
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def _described(field: Field) -> dict[str, Any]:
    return {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in field._asdict().items()
        if name != "values"
    }


def _field(described: Mapping[str, Any], values: Tensor | None) -> Field:
    """The field with these values, or with those of a newcomer who says nothing."""
    said: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in described.items()}
    field = Field(values=torch.zeros(1), **said)
    return field._replace(values=field.unknown().unsqueeze(0) if values is None else values)
