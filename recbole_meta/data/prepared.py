"""Reading a prepared folder, and the gates that stop a run from learning what it is judged on."""

import json
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from recbole_meta.data.atomic import AtomicFile
from recbole_meta.data.folders import FORMAT, digest, sha256
from recbole_meta.data.rows import LABEL
from recbole_meta.data.source import DataFields
from recbole_meta.errors import DataError, LeakError, nearest
from recbole_meta.settings import load_yaml, read_settings


class PreparedFolder:
    """A prepared folder whose bytes are those that were written."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        try:
            text = (self.path / "protocol.json").read_text(encoding="utf-8")
            self.description: dict[str, Any] = json.loads(text)
        except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
            raise DataError(f"{self.path} is not a prepared folder: {error}") from error
        if not isinstance(self.description, dict):
            raise DataError(f"{self.path} is not a prepared folder: no mapping in protocol.json.")
        if self.description.get("format") != FORMAT:
            raise DataError(
                f"{self.path} has format {self.description.get('format')}, this version reads "
                f"{FORMAT}: delete the folder and prepare it again."
            )
        self._check_bytes()
        self.name = self.path.name
        self.fields = read_settings(DataFields, self.description["fields"], str(self.path))

    def _check_bytes(self) -> None:
        about = self.description
        changed = [] if about.get("sha256") == digest(about) else ["protocol.json"]
        for name, written in about.get("outputs", {}).items():
            file = self.path / (self.path.name + name if name.startswith(".") else name)
            if not file.is_file() or sha256(file.read_bytes()) != written:
                changed.append(file.name)
        if changed:
            raise LeakError(
                f"The prepared folder {self.path} was changed by hand: {', '.join(changed)} differ "
                "from what was written. Delete the folder and prepare it again."
            )

    @property
    def sha256(self) -> str:
        """The digest of ``protocol.json``, which holds the digests of all files."""
        return str(self.description["sha256"])

    @cached_property
    def catalogue(self) -> list[str]:
        """Every item, tokens ascending."""
        file = AtomicFile(self.path / f"{self.name}.item")
        return list(file.read([self.fields.item])[self.fields.item])


class Prepared(PreparedFolder):
    """The folder of a cold-start protocol; ``open_prepared`` caches it."""

    def __init__(self, path: str | Path) -> None:
        super().__init__(path)
        about = self.description
        if "feedback" not in about.get("settings", {}):
            raise DataError(f"{self.path} is no folder of a cold-start protocol.")
        self.feedback: str = about["settings"]["feedback"]
        self.side: str = about["task"]  # user | item: who is cold and adapts
        self.other_side = "item" if self.side == "user" else "user"
        self.shots: tuple[int, ...] = tuple(about["shots"])
        self.query_start: int = about["query_start"]
        self.horizon: int | None = about["horizon"]
        self.held_out: int = about.get("held_out", 0)  # rows of a task's query; 0: by position

    def tasks(self, phase: str) -> list[str]:
        """The cold users, or items, of a phase, tokens ascending."""
        return list(self.description["tasks"][phase])

    def judged(self, phase: str) -> list[str]:
        """The users who rank or rate in a phase, tokens ascending."""
        if self.side == "user":
            return self.tasks(phase)
        return sorted(set(self.rows(phase)["user"]))

    def train_name(self, phase: str, k: int) -> str:
        """The name of the training file that a phase is judged from at k shots."""
        return str(self.description["train"][phase]).format(k=k)

    @cache  # noqa: B019 - a folder is read once and kept
    def rows(self, name: str) -> pd.DataFrame:
        """The columns user, item (tokens), position among the task's rows, and time, target where
        there are such.
        """
        file = AtomicFile(self.path / f"{self.name}.{name}.inter")
        wanted = file.read([self.fields.user, self.fields.item])
        frame = pd.DataFrame(
            {"user": wanted[self.fields.user], "item": wanted[self.fields.item]}, dtype=str
        )
        if self.fields.time in file.columns:
            frame["time"] = file.numbers(str(self.fields.time))
        if self.feedback != "implicit":
            frame["target"] = file.numbers(self.target)
        frame["position"] = frame.groupby(self.side, sort=False).cumcount()
        return frame

    @cache  # noqa: B019 - read only where a model asks for it
    def _given(self, phase: str) -> "pd.Series[Any]":
        name = self.train_name(phase, self.shots[-1])  # has warm rows and all supports
        file = AtomicFile(self.path / f"{self.name}.{name}.inter")
        if self.fields.rating not in file.columns:
            raise DataError(
                f"{self.name}: a model reads ratings, and the rows have none. Name their field in "
                "'rating' of the data set's page."
            )
        return pd.Series(file.numbers(str(self.fields.rating)), pairs_of(self.rows(name)))

    def ratings(self, phase: str, rows: pd.DataFrame) -> npt.NDArray[np.float64]:
        """What was given in warm or support rows, where a ranking is judged and a model reads it
        nevertheless.
        """
        return self._given(phase)[pairs_of(rows)].to_numpy(np.float64)

    @property
    def target(self) -> str:
        """The field that is judged where the feedback is no ranking."""
        return LABEL if self.feedback == "label" else str(self.fields.rating)

    def support(self, phase: str, k: int) -> pd.DataFrame:
        """The first k rows of each task of a phase."""
        rows = self.early_rows(phase)
        return rows[rows["position"] < k]

    def early_rows(self, phase: str) -> pd.DataFrame:
        """The rows of a phase's tasks before the query: the reserve, or else the support."""
        if f".support_{phase}.inter" in self.description["outputs"]:
            return self.rows(f"support_{phase}")
        has_reserve = ".reserved.inter" in self.description["outputs"]
        name = "reserved" if has_reserve else self.train_name(phase, self.shots[-1])
        rows = self.rows(name)
        return rows[rows[self.side].isin(self.tasks(phase))]

    def _phases_of(self, phase: str) -> list[str]:
        """The phases whose tasks are judged from the phase's training file."""
        about = self.description["train"]
        return [other for other, name in about.items() if name == about[phase]]

    def support_in_train(self, phase: str) -> pd.DataFrame:
        """The early rows of the tasks that are judged from the phase's training file, where users
        or items are cold. Known users' rows on known items are trained on like any other.
        """
        rows = pd.concat([self.early_rows(other) for other in self._phases_of(phase)])
        return rows[:0] if self.description["settings"].get("state") == "ww" else rows

    def warm_rows(self, phase: str) -> pd.DataFrame:
        """The rows of the phase's training file that are not the support of a cold task."""
        rows = self.rows(self.train_name(phase, self.shots[0]))
        return rows[~pairs_of(rows).isin(pairs_of(self.support_in_train(phase)))]

    def cold_tasks(self, phase: str) -> set[str]:
        """The tasks that are judged from the phase's training file."""
        return {task for other in self._phases_of(phase) for task in self.tasks(other)}

    def candidates(self, phase: str) -> set[str]:
        """The items that may be ranked (before a user's own reserve and support leave)."""
        if self.description["candidates"] == "catalogue":
            return set(self.catalogue)
        if self.description["candidates"] == "cold":
            return set(self.description["cold_items"][phase])
        return set(self.warm_rows(phase)["item"])

    def check_leaks(self) -> None:
        """Raise where a training file knows a query pair, a cold user too well, or the future."""
        for phase in self.description["train"]:
            query = pairs_of(self.rows(phase))
            if query.empty:
                raise DataError(f"{self.name}: phase '{phase}' has no query row.")
            tasks = self.tasks(phase)
            if set(self.rows(phase)[self.side]) != set(tasks):
                raise LeakError(f"{self.name}: the {self.side}s of '{phase}' are not its tasks.")
            for k in self.shots:
                self._check_training_file(phase, k, query)
            known = pairs_of(self.early_rows(phase)).intersection(query)
            if len(known):
                raise LeakError(
                    f"{self.name}: {len(known)} query pairs of '{phase}' are in the reserve, whose "
                    f"head is the support, e.g. {known[0]!r}."
                )
        if self.feedback == "label":
            self._check_polarity()
        self._check_features()

    def _check_training_file(self, phase: str, k: int, query: "pd.Index[Any]") -> None:
        name = self.train_name(phase, k)
        rows = self.rows(name)
        known = pairs_of(rows).intersection(query)
        if len(known):
            raise LeakError(
                f"{self.name}: {len(known)} query pairs of '{phase}' are in '{name}', "
                f"e.g. {known[0]}."
            )
        self._check_support(phase, k, rows)
        cut = self.description["cut"].get(phase)
        if cut is not None:
            late = rows[~rows["user"].isin(self.cold_tasks(phase)) & (rows["time"] >= cut)]
            if len(late):
                raise LeakError(
                    f"{self.name}: {len(late)} training rows of '{name}' lie after the cut {cut}."
                )

    def _check_support(self, phase: str, k: int, rows: pd.DataFrame) -> None:
        """A task has its support rows in the training file and no other; of cold items the file
        has support rows alone.
        """
        name, support, side = self.train_name(phase, k), self.support(phase, k), self.side
        state = self.description["settings"].get("state", "cw")
        if state[0] == "c":
            per_task = rows[side].value_counts().reindex(self.tasks(phase), fill_value=0)
            wanted = support[side].value_counts().reindex(self.tasks(phase), fill_value=0)
            if not self.held_out:
                wanted[:] = k
            wrong = per_task != wanted
            if wrong.any():
                task = per_task.index[wrong.to_numpy()][0]
                raise LeakError(
                    f"{self.name}: {side} '{task}' of '{phase}' has {per_task[task]} rows in "
                    f"'{name}', not {wanted[task]}: a test {side} must not be met in training."
                )
        if side == "user" and "cold_items" in self.description:
            self._check_met(phase, name, rows, self.candidates(phase))
        if not self.held_out:
            return
        absent = ~pairs_of(support).isin(pairs_of(rows))
        if absent.any():
            row = support[absent].iloc[0]
            raise LeakError(
                f"{self.name}: {int(absent.sum())} support rows of '{phase}' are not in '{name}', "
                f"e.g. user '{row['user']}' and item '{row['item']}'."
            )
        if state[1] == "c":
            warm = rows[~pairs_of(rows).isin(pairs_of(support))]
            self._check_met(phase, name, warm, {*self.rows(phase)["item"], *support["item"]})

    def _check_met(self, phase: str, name: str, rows: pd.DataFrame, cold: set[str]) -> None:
        met = set(rows["item"]) & cold
        if met:
            raise LeakError(
                f"{self.name}: {len(met)} cold items of '{phase}' are in '{name}', e.g. "
                f"'{min(met)}': a cold item must not be met in training."
            )

    def _check_polarity(self) -> None:
        ((field, least),) = self.description["settings"]["label"].items()
        for name in self.description["outputs"]:
            if not name.endswith(".inter"):
                continue
            file = AtomicFile(self.path / (self.name + name))
            wrong = (file.numbers(field) >= least) != (file.numbers(LABEL) == 1)
            if wrong.any():
                raise LeakError(
                    f"{self.name}: '{LABEL}' is not {field} >= {least} in {int(wrong.sum())} rows "
                    f"of {file.path.name}."
                )

    def _check_features(self) -> None:
        loaded = load_yaml(self.path / "recbole.yaml")["load_col"]["inter"]
        allowed = {self.fields.user, self.fields.item}
        if self.feedback != "implicit":
            allowed.add(self.target)
        for field in loaded:
            if field not in allowed:
                raise LeakError(
                    f"{self.name}: '{field}' is loaded from .inter and would become a feature. "
                    f"{nearest(field, allowed)}"
                )


def pairs_of(rows: pd.DataFrame) -> "pd.Index[Any]":
    """'user<tab>item' of each row."""
    return pd.Index(rows["user"] + "\t" + rows["item"])


def open_prepared(path: str | Path) -> Prepared:
    """The folder, read, checked against its digests and for leaks, once in a process."""
    return _open(Path(path).resolve())


@cache
def _open(path: Path) -> Prepared:
    prepared = Prepared(path)
    prepared.check_leaks()
    return prepared
