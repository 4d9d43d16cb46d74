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
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.func import vmap

from recbole_meta.episode import Examples
from recbole_meta.errors import DataError, RecboleMetaError, SettingError, nearest
from recbole_meta.model.meta_recommender import MetaRecommender, State

FORMAT = 2  # of a newcomer's bytes
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
        self._place = np.argsort(np.argsort(np.array(self.items)))  # [I] among tokens, for ties
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
    ) -> "Newcomer":
        """What is known of a newcomer from this; from nothing at all: the prior.

        ``likes`` and ``dislikes`` where rankings or labels were learnt, ``ratings`` where ratings
        were, or where a ranking reads them. ``unknown``: error | ignore (with a warning), for items
        that the model does not know.
        """
        said = self._said(likes, dislikes, ratings, unknown)
        return self._newcomer(said, _pairs("'features'", features))

    def info(self) -> dict[str, Any]:
        """What it is, what it was trained on and what it takes."""
        model, facts = self.model, getattr(self.model, "facts", None)
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

    def read_newcomer(self, content: bytes) -> "Newcomer":
        """The newcomer of `Newcomer.to_bytes`, with this model."""
        try:
            found = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
            if found["format"] != FORMAT:
                raise DataError(
                    f"The newcomer has format {found['format']}, this version reads {FORMAT}."
                )
            for name, mine in self._taker().items():
                if found[name] != mine:
                    raise DataError(
                        f"The newcomer is of another kind of model: its {name} is {found[name]!r}, "
                        f"not {mine!r}."
                    )
            said, features = found["said"], _pairs("'features'", found["features"])
            if self.takes_ratings:
                return self._newcomer(self._said((), (), said, "error"), features)
            by = {label: [i for i in said if said[i] == label] for label in (1, 0)}
            if len(by[1]) + len(by[0]) < len(said):
                raise DataError("The bytes are no newcomer: a label is neither 1 nor 0.")
            return self._newcomer(self._said(by[1], by[0], {}, "error"), features)
        except RecboleMetaError:
            raise
        except DAMAGED as error:
            raise DataError(f"The bytes are no newcomer: {reason(error)}") from error

    def _taker(self) -> dict[str, str]:
        """What a newcomer's bytes must agree with: the same can be said to such a model."""
        data = str(self.about.get("dataset", ""))
        said = "rating" if self.takes_ratings else self.feedback
        return {"side": self.model.side, "feedback": said, "dataset": data}

    def adapt_many(
        self, newcomers: Iterable[Mapping[str, Any]], unknown: str = "error"
    ) -> "list[Newcomer]":
        """`adapt` for each one's arguments by name, together: the same but for rounding."""
        if not isinstance(newcomers, Iterable):
            raise DataError(f"'newcomers' must be a list, found {newcomers!r}.")
        newcomers = [_pairs("A newcomer", one) for one in newcomers]
        for one in newcomers:
            for name in one:
                if name not in _SAYS:
                    raise SettingError(f"No argument '{name}' of adapt. {nearest(name, _SAYS)}")
        said = [
            self._said(one.get("likes", ()), one.get("dislikes", ()), one.get("ratings"), unknown)
            for one in newcomers
        ]
        features = [_pairs("'features'", one.get("features")) for one in newcomers]
        return self._newcomers(said, features)

    def _newcomers(
        self, said: Sequence[dict[int, float]], features: Sequence[dict[str, Any]]
    ) -> "list[Newcomer]":
        """`_newcomer` of each, together."""
        if not said:
            return []
        model = self.model
        with torch.no_grad():
            support = model.complete(_support(said))
            task = torch.stack([model.encode_newcomer(each) for each in features])
            encoded = support._replace(x=model.encode(support.x), task=task)
            states = vmap(model.adapt, chunk_size=model.settings.chunk_size)(encoded)
        apart = [{name: part[n] for name, part in states.items()} for n in range(len(said))]
        return [Newcomer(self, *each) for each in zip(said, features, apart, strict=True)]

    def _newcomer(self, said: dict[int, float], features: dict[str, Any]) -> "Newcomer":
        model = self.model
        with torch.no_grad():
            support = Examples(*(part[0] for part in model.complete(_support([said]))))
            task = model.encode_newcomer(features)
            state = model.adapt(support._replace(x=model.encode(support.x), task=task))
        return Newcomer(self, said, features, state)

    def _said(
        self,
        likes: Iterable[Any],
        dislikes: Iterable[Any],
        ratings: Mapping[Any, float] | None,
        unknown: str,
    ) -> dict[int, float]:
        if unknown not in ("error", "ignore"):
            near = nearest(str(unknown), ["error", "ignore"])
            raise SettingError(f"'unknown' is {unknown!r}. {near}")
        liked, disliked = _tokens("likes", likes), _tokens("dislikes", dislikes)
        rated = {
            token: self._rating(token, value)
            for token, value in _pairs("'ratings'", ratings).items()
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
        named = _tokens(f"{self.kind}s", tokens)
        missing = [token for token in named if token not in self._id]
        if missing and unknown == "error":
            raise DataError(f"Unknown {self.kind}s: {', '.join(missing)}.")
        if missing:
            warnings.warn(f"Unknown {self.kind}s are left out: {', '.join(missing)}.", stacklevel=3)
        return [self._id[token] for token in named if token in self._id]

    def new(self, given: Mapping[Any, Mapping[str, Any]] | None) -> dict[str, dict[str, Any]]:
        """What the model never met, by token, and its features."""
        found = {
            token: _pairs(f"The features of '{token}'", features)
            for token, features in _pairs("'new_items'", given).items()
        }
        known = [token for token in found if token in self._id]
        if known:
            raise DataError(
                f"Not new: {', '.join(known)}. What the model knows is asked for by its name alone."
            )
        return found


@dataclass(frozen=True, eq=False)
class Newcomer:
    """What is known of one newcomer."""

    served: Served
    said: dict[int, float]  # item id -> label
    features: dict[str, Any]
    state: State

    def update(
        self,
        likes: Iterable[Any] = (),
        dislikes: Iterable[Any] = (),
        ratings: Mapping[Any, float] | None = None,
        features: Mapping[str, Any] | None = None,
        unknown: str = "error",
    ) -> "Newcomer":
        """The newcomer who said this, too; what he says of an item again replaces the old."""
        more = self.served._said(likes, dislikes, ratings, unknown)
        about = self.features | _pairs("'features'", features)
        return self.served._newcomer(self.said | more, about)

    def score(
        self,
        items: Iterable[Any],
        new_items: Mapping[str, Mapping[str, Any]] | None = None,
        unknown: str = "error",
    ) -> dict[str, float]:
        """Item -> score, of these; of items that the model never met by their features."""
        served = self.served
        ids, new = served.ids(items, unknown), served.new(new_items)
        scores = self._scores(torch.tensor(ids, dtype=torch.int64), list(new.values()))
        return dict(zip([*(served.items[i] for i in ids), *new], scores.tolist()))

    def deviation(self, items: Iterable[Any], unknown: str = "error") -> dict[str, float]:
        """Item -> how uncertain its score is: its standard deviation under what is known of the
        newcomer, in units of the score. It falls with every item he says, whichever it is; his
        features move scores alone.
        """
        served = self.served
        if not hasattr(served.model, "posterior"):
            raise DataError(f"{type(served.model).__name__} has no posterior of a newcomer.")
        ids = served.ids(items, unknown)
        with torch.no_grad():
            support = Examples(*(part[0] for part in _support([self.said])))
            task = served.model.encode_newcomer(self.features)
            known = served.model.posterior(support._replace(task=task))
            found = served.model.variance(known, torch.tensor(ids, dtype=torch.int64)).sqrt()
        return dict(zip((served.items[i] for i in ids), found.tolist()))

    def rank(
        self,
        k: int = 10,
        exclude: Iterable[Any] = (),
        only: Collection[Any] | None = None,
        new_items: Mapping[str, Mapping[str, Any]] | None = None,
        unknown: str = "error",
    ) -> list[tuple[str, float]]:
        """The best k items and their scores, best first; ties by token, new items last.

        Candidates: the items met in training, or ``only`` these, and ``new_items``; less what the
        newcomer spoke of and ``exclude``. There may be fewer than k.
        """
        if not isinstance(k, Integral) or isinstance(k, bool) or k < 1:
            raise SettingError(f"'k' must be at least 1, found {k!r}.")
        served = self.served
        new, barred = served.new(new_items), _tokens("exclude", exclude)
        chosen = served.candidate.numpy().copy()
        if only is not None:
            chosen[:] = False
            chosen[served.ids([t for t in _tokens("only", only) if t not in new], unknown)] = True
        known = [token for token in barred if token not in new]
        chosen[[0, *self.said, *served.ids(known, unknown)]] = False
        ids = np.flatnonzero(chosen)
        new = {token: features for token, features in new.items() if token not in barred}
        if not len(ids) + len(new):
            raise DataError("No candidate is left to rank.")
        scores = self._scores(torch.from_numpy(ids), list(new.values())).numpy()
        kth = len(scores) - min(k, len(scores))
        best = np.flatnonzero(scores >= np.partition(scores, kth)[kth])
        known = served._place[ids[best[best < len(ids)]]]
        places = np.concatenate([known, len(served.items) + best[best >= len(ids)]])
        best = best[np.lexsort((places, -scores[best]))][:k]
        tokens = [*new]
        return [
            (served.items[ids[i]] if i < len(ids) else tokens[i - len(ids)], float(scores[i]))
            for i in best.tolist()
        ]

    def explain(
        self,
        k: int = 10,
        exclude: Iterable[Any] = (),
        only: Collection[Any] | None = None,
        new_items: Mapping[str, Mapping[str, Any]] | None = None,
        unknown: str = "error",
    ) -> list[tuple[str, float, dict[str, float]]]:
        r"""The items and scores of `rank`, and what each item of the support moved of the score.

        .. math:: moved_{is} = score_i(support) - score_i(support \setminus \{s\})

        Largest first, ties by token; below zero: the score is lower for s. Empty without a support.
        They need not add up to the gain over the prior: what two items say alike, neither moves
        alone. What an item moves of all scores alike moves no ranking.
        """
        served = self.served
        new = served.new(new_items)
        ranked = self.rank(k, exclude, only, new, unknown)
        known = [item for item, _ in ranked if item not in new]
        fresh = {item: new[item] for item, _ in ranked if item in new}
        support = sorted(self.said, key=lambda place: served.items[place])
        without = [{i: self.said[i] for i in support if i != left} for left in support]
        less = served._newcomers(without, [self.features] * len(support))
        whole = self.score(known, fresh)
        parts = {
            served.items[left]: newcomer.score(known, fresh)
            for left, newcomer in zip(support, less, strict=True)
        }
        found = []
        for item, score in ranked:
            moved = {left: whole[item] - part[item] for left, part in parts.items()}
            largest = sorted(moved.items(), key=lambda pair: -pair[1])
            found.append((item, score, dict(largest)))
        return found

    def _scores(self, ids: Tensor, new: Sequence[Mapping[str, Any]]) -> Tensor:
        """Of items by id, then of new ones; where most are asked, all are scored without a copy."""
        model, everything = self.served.model, self.served.encoded
        with torch.no_grad():
            if 2 * len(ids) > len(everything):
                scores = model.score(self.state, everything).index_select(0, ids)
            else:
                scores = model.score(self.state, everything[ids])
            if new:
                fresh = model.score(self.state, model.encode_new_others(new))
                scores = torch.cat([scores, fresh])
            return model.output(scores)

    def to_bytes(self) -> bytes:
        """What he said, from which the same model adapts to the same state; another that takes
        the same, trained anew for example, reads it, too.
        """
        items = self.served.items
        said = {items[place]: label for place, label in self.said.items()}
        content = {"format": FORMAT, "said": said, "features": self.features}
        buffer = io.BytesIO()
        torch.save(content | self.served._taker(), buffer)
        return buffer.getvalue()


def _support(said: Sequence[Mapping[int, float]]) -> Examples:
    """What T newcomers said as one padded set, each one's by item, so that the order is nothing."""
    shape = len(said), max(1, *map(len, said))
    x, label, mask = np.zeros(shape, dtype=np.int64), np.zeros(shape), np.zeros(shape)
    for row, labels in enumerate(said):
        ids = sorted(labels)
        x[row, : len(ids)], label[row, : len(ids)] = ids, [labels[place] for place in ids]
        mask[row, : len(ids)] = 1
    kind = torch.get_default_dtype()
    return Examples(
        torch.from_numpy(x), torch.from_numpy(label).to(kind), torch.from_numpy(mask).to(kind),
        torch.zeros(len(said), dtype=torch.int64),
    )  # fmt: skip


def _tokens(name: str, given: Iterable[Any]) -> list[str]:
    if isinstance(given, str | bytes) or not isinstance(given, Iterable):
        raise DataError(f"'{name}' must be a list of tokens, found {given!r}.")
    return [str(token) for token in given]


def _pairs(name: str, given: Mapping[Any, Any] | None) -> dict[str, Any]:
    if given is not None and not isinstance(given, Mapping):
        raise DataError(f"{name} must be 'name: value' pairs, found {given!r}.")
    return {str(key): _plain(value) for key, value in (given or {}).items()}


def _plain(value: Any) -> Any:
    """A copy of Python's own types, where it is one value or a list of values."""
    if isinstance(value, str):
        return str(value)
    if isinstance(value, Real) and not isinstance(value, bool | int):
        return int(value) if isinstance(value, Integral) else float(value)
    if isinstance(value, list | tuple | set):
        return [_plain(each) for each in value]
    return value


def reason(error: Exception) -> str:
    """Why a file cannot be read, in a line."""
    if isinstance(error, pickle.UnpicklingError):
        return "it holds more than plain data, or is cut short"
    return next(iter(str(error).splitlines()), type(error).__name__)
