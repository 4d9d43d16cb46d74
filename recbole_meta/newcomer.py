"""One newcomer: a value that ranks, scores, explains, and gives another one by an update."""

import io
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from recbole_meta.episode import Examples
from recbole_meta.errors import DataError, SettingError
from recbole_meta.model.meta_recommender import State
from recbole_meta.said import named_values, support_of, token_list

if TYPE_CHECKING:
    from recbole_meta.serving import Served

FORMAT = 2  # of a newcomer's bytes


@dataclass(frozen=True, eq=False)
class Newcomer:
    """What is known of one newcomer."""

    served: "Served"
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
        more = self.served.read_said(likes, dislikes, ratings, unknown)
        about = self.features | named_values("'features'", features)
        return self.served.newcomer_of(self.said | more, about)

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
            support = Examples(*(part[0] for part in support_of([self.said])))
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
        new, barred = served.new(new_items), token_list("exclude", exclude)
        chosen = served.candidate.numpy().copy()
        if only is not None:
            chosen[:] = False
            chosen[served.ids([t for t in token_list("only", only) if t not in new], unknown)] = (
                True
            )
        known = [token for token in barred if token not in new]
        chosen[[0, *self.said, *served.ids(known, unknown)]] = False
        ids = np.flatnonzero(chosen)
        new = {token: features for token, features in new.items() if token not in barred}
        if not len(ids) + len(new):
            raise DataError("No candidate is left to rank.")
        scores = self._scores(torch.from_numpy(ids), list(new.values())).numpy()
        kth = len(scores) - min(k, len(scores))
        best = np.flatnonzero(scores >= np.partition(scores, kth)[kth])
        known = served.place[ids[best[best < len(ids)]]]
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
        less = served.newcomers_of(without, [self.features] * len(support))
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
        torch.save(content | self.served.taker(), buffer)
        return buffer.getvalue()
