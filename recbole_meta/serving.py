"""A trained model behind a sign-up page: newcomers in, rankings out, external tokens throughout.

`saved_model.load` reads one from its file. A newcomer is a value: adapting never changes the model,
updating gives another newcomer, so any number of threads may serve from one model.

Where items were cold in training the newcomer is an item: ``likes`` are users who took it, and what
is called an item here is a user: the ranking is of users, those who would take it first.
"""

import io
import math
import pickle
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from numbers import Real
from typing import Any

import numpy as np
import torch
from torch.func import vmap

from recbole_meta.data.facts import Facts
from recbole_meta.episode import Examples
from recbole_meta.errors import DataError, RecboleMetaError, SettingError, nearest
from recbole_meta.model.meta_recommender import MetaRecommender
from recbole_meta.newcomer import FORMAT, Newcomer
from recbole_meta.said import named_values, support_of, token_list

_SAYS = ("likes", "dislikes", "ratings", "features")  # arguments of adapt
DAMAGED = (  # what reading a file raises that is not what it should be
    OSError, RuntimeError, EOFError, pickle.UnpicklingError, KeyError, ValueError, TypeError,
    AttributeError, IndexError,
)  # fmt: skip


class Served:
    """A trained model by external tokens."""

    def __init__(self, model: MetaRecommender, content: Mapping[str, Any]) -> None:
        self.model = model
        self.feedback = str(content["feedback"])
        self.kind = "item" if model.side == "user" else "user"  # of what is ranked
        self.items = [str(token) for token in content["items"]]  # by id; 0 is padding
        self.about: dict[str, Any] = dict(content["about"])
        self.bounds: tuple[float, float] | None = (
            None if content["bounds"] is None else tuple(map(float, content["bounds"]))  # type: ignore[assignment]
        )
        self.candidate = content["candidates"].bool()  # [I]
        if len(self.items) < 2 or self.candidate.shape != (len(self.items),):
            raise DataError("The model has no catalogue: there is nothing to recommend.")
        self._id = {token: place for place, token in enumerate(self.items) if place}
        self.place = np.argsort(np.argsort(np.array(self.items)))  # [I] among tokens, for ties
        with torch.no_grad():
            self.encoded = model.encode(model.all_others)  # [I, ..]

    @property
    def takes_ratings(self) -> bool:
        """Whether a newcomer says ratings: they were learnt, or a ranking reads them."""
        return self.feedback == "rating" or self.model.reads_ratings

    def adapt(
        self,
        likes: Iterable[Any] = (),
        dislikes: Iterable[Any] = (),
        ratings: Mapping[Any, float] | None = None,
        features: Mapping[str, Any] | None = None,
        unknown: str = "error",
    ) -> Newcomer:
        """What is known of a newcomer from this; from nothing at all: the prior.

        ``likes`` and ``dislikes`` where rankings or labels were learnt, ``ratings`` where ratings
        were, or where a ranking reads them. ``unknown``: error | ignore (with a warning), for items
        that the model does not know.
        """
        said = self.read_said(likes, dislikes, ratings, unknown)
        return self.newcomer_of(said, named_values("'features'", features))

    def info(self) -> dict[str, Any]:
        """What it is, what it was trained on and what it takes."""
        model, (_, facts) = self.model, facts_of(self.model)
        takes = ["ratings"] if self.takes_ratings else ["likes"]
        takes += ["dislikes"] if not self.takes_ratings and model.reads_labels else []
        fields = {"user": [], "item": []} if facts is None else {
            "user": [field.name for field in facts.user_fields if field.name != model.USER_ID],
            "item": [field.name for field in facts.item_fields if field.name != model.ITEM_ID],
        }  # fmt: skip
        return {
            "model": type(model).__name__,
            "judged as": {"implicit": "rankings", "rating": "ratings", "label": "labels"}[
                self.feedback
            ],
            "takes": takes,
            "ratings from, to": None if self.bounds is None else list(self.bounds),
            "newcomers are": f"{model.side}s",
            f"{self.kind}s": len(self.items) - 1,
            "candidates": int(self.candidate.sum()),
            "features of users": fields["user"],
            "features of items": fields["item"],
            "parameters": sum(p.numel() for p in model.parameters()),
            **self.about,
            "settings": asdict(model.settings),
        }

    def read_newcomer(self, content: bytes) -> Newcomer:
        """The newcomer of `Newcomer.to_bytes`, with this model."""
        try:
            found = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
            if found["format"] != FORMAT:
                raise DataError(
                    f"The newcomer has format {found['format']}, this version reads {FORMAT}."
                )
            for name, mine in self.taker().items():
                if found[name] != mine:
                    raise DataError(
                        f"The newcomer is of another kind of model: its {name} is {found[name]!r}, "
                        f"not {mine!r}."
                    )
            said, features = found["said"], named_values("'features'", found["features"])
            if self.takes_ratings:
                return self.newcomer_of(self.read_said((), (), said, "error"), features)
            by = {label: [i for i in said if said[i] == label] for label in (1, 0)}
            if len(by[1]) + len(by[0]) < len(said):
                raise DataError("The bytes are no newcomer: a label is neither 1 nor 0.")
            return self.newcomer_of(self.read_said(by[1], by[0], {}, "error"), features)
        except RecboleMetaError:
            raise
        except DAMAGED as error:
            raise DataError(f"The bytes are no newcomer: {reason(error)}") from error

    def taker(self) -> dict[str, str]:
        """What a newcomer's bytes must agree with: the same can be said to such a model."""
        data = str(self.about.get("dataset", ""))
        said = "rating" if self.takes_ratings else self.feedback
        return {"side": self.model.side, "feedback": said, "dataset": data}

    def adapt_many(
        self, newcomers: Iterable[Mapping[str, Any]], unknown: str = "error"
    ) -> list[Newcomer]:
        """`adapt` for each one's arguments by name, together: the same but for rounding."""
        if not isinstance(newcomers, Iterable):
            raise DataError(f"'newcomers' must be a list, found {newcomers!r}.")
        newcomers = [named_values("A newcomer", one) for one in newcomers]
        for one in newcomers:
            for name in one:
                if name not in _SAYS:
                    raise SettingError(f"No argument '{name}' of adapt. {nearest(name, _SAYS)}")
        said = [
            self.read_said(
                one.get("likes", ()), one.get("dislikes", ()), one.get("ratings"), unknown
            )
            for one in newcomers
        ]
        features = [named_values("'features'", one.get("features")) for one in newcomers]
        return self.newcomers_of(said, features)

    def newcomers_of(
        self, said: Sequence[dict[int, float]], features: Sequence[dict[str, Any]]
    ) -> list[Newcomer]:
        """`newcomer_of` each, together."""
        if not said:
            return []
        model = self.model
        with torch.no_grad():
            support = model.complete(support_of(said))
            task = torch.stack([model.encode_newcomer(each) for each in features])
            encoded = support._replace(x=model.encode(support.x), task=task)
            states = vmap(model.adapt, chunk_size=model.settings.chunk_size)(encoded)
        apart = [{name: part[n] for name, part in states.items()} for n in range(len(said))]
        return [Newcomer(self, *each) for each in zip(said, features, apart, strict=True)]

    def newcomer_of(self, said: dict[int, float], features: dict[str, Any]) -> Newcomer:
        """Adapted to labels by id and to features."""
        model = self.model
        with torch.no_grad():
            support = Examples(*(part[0] for part in model.complete(support_of([said]))))
            task = model.encode_newcomer(features)
            state = model.adapt(support._replace(x=model.encode(support.x), task=task))
        return Newcomer(self, said, features, state)

    def read_said(
        self,
        likes: Iterable[Any],
        dislikes: Iterable[Any],
        ratings: Mapping[Any, float] | None,
        unknown: str,
    ) -> dict[int, float]:
        """The labels by id, refused where the model does not learn from such."""
        if unknown not in ("error", "ignore"):
            near = nearest(str(unknown), ["error", "ignore"])
            raise SettingError(f"'unknown' is {unknown!r}. {near}")
        liked, disliked = token_list("likes", likes), token_list("dislikes", dislikes)
        rated = {
            token: self._rating(token, value)
            for token, value in named_values("'ratings'", ratings).items()
        }
        if self.takes_ratings and (liked or disliked):
            raise DataError("The model learnt ratings: give 'ratings', not likes or dislikes.")
        if not self.takes_ratings and rated:
            raise DataError("The model learnt no ratings: give 'likes' and 'dislikes'.")
        both = set(liked) & set(disliked)
        if both:
            raise DataError(f"Liked and disliked at once: {', '.join(sorted(both))}.")
        if disliked and not self.model.reads_labels:
            raise DataError(f"{type(self.model).__name__} learns from likes alone.")
        labels = dict.fromkeys(liked, 1.0) | dict.fromkeys(disliked, 0.0) | rated
        return {place: labels[self.items[place]] for place in self.ids(labels, unknown)}

    def _rating(self, token: str, value: Any) -> float:
        if not isinstance(value, Real) or isinstance(value, bool) or not math.isfinite(value):
            raise DataError(f"The rating of '{token}' must be a number, found {value!r}.")
        rating = float(value)
        if self.bounds is not None and not self.bounds[0] <= rating <= self.bounds[1]:
            low, high = self.bounds
            raise DataError(
                f"The rating of '{token}' is {rating:g}: from {low:g} to {high:g} is known."
            )
        return rating

    def ids(self, tokens: Iterable[Any], unknown: str = "error") -> list[int]:
        """The ids of what is ranked; unknown ones are an error that names them, or left out."""
        named = token_list(f"{self.kind}s", tokens)
        missing = [token for token in named if token not in self._id]
        if missing and unknown == "error":
            raise DataError(f"Unknown {self.kind}s: {', '.join(missing)}.")
        if missing:
            warnings.warn(f"Unknown {self.kind}s are left out: {', '.join(missing)}.", stacklevel=3)
        return [self._id[token] for token in named if token in self._id]

    def new(self, given: Mapping[Any, Mapping[str, Any]] | None) -> dict[str, dict[str, Any]]:
        """What the model never met, by token, and its features."""
        found = {
            token: named_values(f"The features of '{token}'", features)
            for token, features in named_values("'new_items'", given).items()
        }
        known = [token for token in found if token in self._id]
        if known:
            raise DataError(
                f"Not new: {', '.join(known)}. What the model knows is asked for by its name alone."
            )
        return found


def facts_of(model: MetaRecommender) -> tuple[str, Facts | None]:
    """The part of the model that reads fields, as a prefix of its names, and what it reads."""
    for name, part in model.named_modules():
        if (facts := getattr(part, "facts", None)) is not None:
            return f"{name}." if name else "", facts
    return "", None


def reason(error: Exception) -> str:
    """Why a file cannot be read, in a line."""
    if isinstance(error, pickle.UnpicklingError):
        return "it holds more than plain data, or is cut short"
    return next(iter(str(error).splitlines()), type(error).__name__)
