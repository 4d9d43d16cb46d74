r"""Training episodes of warm users, drawn anew in every epoch, that imitate the protocol.

Where the protocol has a reserve: support = the first k rows of the user, k drawn from the shots
that are judged, query = the rows in the query's position; under order ``random`` a user's rows are
shuffled first. Where it holds out a number of rows of each task: query = that many random rows,
support = the others, as far as a task may have them; of a user who has more than that, as many as
some task of valid has.

A batch is an Interaction of T episodes: ``task`` [T] ids of users, ``support_*`` [T, S] and
``query_*`` [T, Q] (``item``, ``label``, ``mask``), ``barred_item`` [T, R] (0: none) what cannot be
recommended in the episode, ``history_item`` [T, L] (0: none) all that the user has. ``query_rows``:
at most so many random rows of the query are drawn; ``undrawn_item`` [T, L'] (0: none) are the
others.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from recbole.data.dataset import Dataset
from recbole.data.interaction import Interaction

from recbole_meta.data.prepared import Prepared, open_prepared
from recbole_meta.data.warm import WarmUsers, warm_users
from recbole_meta.errors import DataError

Ints = npt.NDArray[np.int64]


class Histories:
    """Warm users' rows as padded tables in the protocol's order, [U, L]."""

    def __init__(self, warm: WarmUsers) -> None:
        shape = warm.n_users, int(warm.length.max(initial=0))
        place = warm.user, warm.position
        self.user = warm.ids  # [U] RecBole's ids
        self.length = warm.length  # [U]
        self.item, self.label = np.zeros(shape, dtype=np.int64), np.zeros(shape)
        self.item[place], self.label[place] = warm.item, warm.target

    def shuffled(self, users: Ints, rng: np.random.Generator) -> tuple[Ints, Any]:
        """Items and labels of some users, each one's rows in a random order."""
        padding = np.arange(self.item.shape[1]) >= self.length[users, None]
        order = np.argsort(rng.random(padding.shape) + padding, axis=1)
        item = np.take_along_axis(self.item[users], order, axis=1)
        return item, np.take_along_axis(self.label[users], order, axis=1)


class EpisodeDataLoader:
    """Batches of episodes; what is drawn depends on the state of its generator alone."""

    shuffle = True

    def __init__(
        self, dataset: Dataset, batch_size: int, seed: int, query_rows: int | None = None
    ) -> None:
        self._dataset = self.dataset = dataset
        self.batch_size, self.query_rows = batch_size, query_rows
        self.rng = np.random.default_rng(seed)
        prepared = open_prepared(dataset.config["prepared"])
        self.draw = _Held(prepared) if prepared.held_out else _Reserve(prepared)
        self.histories = Histories(warm_users(dataset))
        self.users = np.flatnonzero(self.histories.length >= self.draw.least)
        if not len(self.users):
            raise DataError(
                f"{prepared.name}: no warm user has the {self.draw.least} rows of an episode."
            )

    def __len__(self) -> int:
        return -(-len(self.users) // self.batch_size)

    def __iter__(self) -> Iterator[Interaction]:
        order = self.rng.permutation(self.users)
        for start in range(0, len(order), self.batch_size):
            users = np.sort(order[start : start + self.batch_size])
            episodes = self.draw.episodes(self.histories, users, self.rng)
            item = self.histories.item[users]
            columns = {**episodes.interaction, "history_item": torch.from_numpy(item)}
            yield self._some(Interaction(columns))

    def _some(self, episodes: Interaction) -> Interaction:
        """At most ``query_rows`` random rows of each query."""
        mask, most = episodes["query_mask"], self.query_rows
        if most is None or most >= mask.shape[1]:
            none = torch.zeros(len(mask), 1, dtype=torch.int64)
            return Interaction({**episodes.interaction, "undrawn_item": none})
        order = np.argsort(self.rng.random(mask.shape) + (mask.numpy() == 0), axis=1)
        place = torch.from_numpy(order)
        drawn, undrawn = place[:, :most], place[:, most:]
        names = ("query_item", "query_label", "query_mask")
        chosen = {name: episodes[name].gather(1, drawn) for name in names}
        chosen["undrawn_item"] = episodes["query_item"].gather(1, undrawn)
        return Interaction({**episodes.interaction, **chosen})

    def state_dict(self) -> dict[str, Any]:
        """The state of the generator."""
        return {"rng": self.rng.bit_generator.state}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state."""
        self.rng.bit_generator.state = state["rng"]


class _Reserve:
    """First rows, k of them the support; then the query."""

    def __init__(self, prepared: Prepared) -> None:
        self.shots = np.array(prepared.shots)
        self.start, self.horizon = prepared.query_start, prepared.horizon
        self.least = self.start + 1
        self.shuffle = prepared.description["settings"]["order"] == "random"

    def episodes(self, histories: Histories, users: Ints, rng: np.random.Generator) -> Interaction:
        """Episodes of these users."""
        if self.shuffle:
            item, label = histories.shuffled(users, rng)
        else:
            item, label = histories.item[users], histories.label[users]
        length = histories.length[users]
        stop = length if self.horizon is None else np.minimum(length, self.start + self.horizon)
        width = max(1, int(self.shots.max()))
        shots = rng.choice(self.shots, len(users))
        end = int(stop.max())
        return _interaction(
            histories.user[users],
            (item[:, :width], label[:, :width], np.arange(width) < shots[:, None]),
            (item[:, self.start : end], label[:, self.start : end],
             np.arange(self.start, end) < stop[:, None]),
            item[:, : max(1, self.start)] * (self.start > 0),
        )  # fmt: skip


class _Held:
    """A number of random rows is the query, others are the support, as many as a task has."""

    def __init__(self, prepared: Prepared) -> None:
        self.held, self.most = prepared.held_out, max(prepared.shots)
        self.least = self.held + 1
        rows = prepared.support("valid", self.most)
        self.sizes = rows.groupby("user", sort=False).size().to_numpy(dtype=np.int64)

    def episodes(self, histories: Histories, users: Ints, rng: np.random.Generator) -> Interaction:
        """Episodes of these users."""
        item, label = histories.shuffled(users, rng)
        others = histories.length[users] - self.held
        drawn = np.minimum(rng.choice(self.sizes, len(users)), self.most)
        stop = np.where(others > self.most, drawn, others)
        support = slice(self.held, self.held + int(stop.max()))
        width = support.stop - support.start
        held = np.ones((len(users), self.held), dtype=bool)
        return _interaction(
            histories.user[users],
            (item[:, support], label[:, support], np.arange(width) < stop[:, None]),
            (item[:, : self.held], label[:, : self.held], held),
            np.zeros((len(users), 1), dtype=np.int64),
        )


def _interaction(task: Ints, support: Any, query: Any, barred: Ints) -> Interaction:
    columns: dict[str, Any] = {"task": task, "barred_item": barred}
    for side, (item, label, mask) in (("support", support), ("query", query)):
        columns |= {
            f"{side}_item": item * mask,
            f"{side}_label": (label * mask).astype(np.float32),
            f"{side}_mask": mask.astype(np.float32),
        }
    return Interaction({name: torch.from_numpy(value.copy()) for name, value in columns.items()})
