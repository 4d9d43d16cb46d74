"""RecBole's atomic files: read whole as RecBole reads them, written line by line as they are."""

import copy
import csv
import io
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import pandas as pd

from recbole_meta.errors import DataError, nearest

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

_TYPES = ("token", "token_seq", "float", "float_seq")  # RecBole's
# What RecBole's reader (pandas, with its defaults) takes for missing.
MISSING = {
    "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN", "<NA>",
    "N/A", "NA", "NULL", "NaN", "None", "n/a", "nan", "null", "",
}  # fmt: skip
PADDING = "[PAD]"


class AtomicFile:
    """Lines of a RecBole atomic file, and the columns that a protocol reads."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            text = path.read_bytes().decode("utf-8-sig").replace("\r\n", "\n").rstrip("\n")
        except OSError as error:
            raise DataError(f"Cannot read {path}: {error}") from error
        except UnicodeDecodeError as error:
            raise DataError(f"{path} is not UTF-8: {error}") from error
        self._text = text
        self.header, *self.lines = text.split("\n")
        self.columns = [column.split(":")[0] for column in self.header.split("\t")]
        self._check_header()
        self.types = dict(column.split(":", 1) for column in self.header.split("\t"))
        odd = any(sign in text for sign in '\r\0"')
        for number, line in enumerate(self.lines, start=2):
            if odd or line.count("\t") != len(self.columns) - 1:
                self._check_line(number, line)

    def _check_header(self) -> None:
        for column in self.header.split("\t"):
            name, _, kind = column.partition(":")
            if not name or not kind:
                raise DataError(
                    f"{self.path}: the first line must name fields as 'name:type', found "
                    f"'{column[:60]}'."
                )
            if kind not in _TYPES:
                raise DataError(
                    f"{self.path}: field '{name}' has type '{kind}'. {nearest(kind, _TYPES)}"
                )
        twice = [name for name in self.columns if self.columns.count(name) > 1]
        if twice:
            raise DataError(f"{self.path}: the first line names '{twice[0]}' twice.")

    def _check_line(self, number: int, line: str) -> None:
        """What RecBole would not read as we do: its reader knows quotation marks, ours does not."""
        where = f"{self.path.name}, line {number}"
        found = line.count("\t") + 1
        if found != len(self.columns):
            raise DataError(
                f"{where} has {found} tab-separated fields, the first line names "
                f"{len(self.columns)}: {line[:60]!r}."
            )
        if "\r" in line:
            raise DataError(f"{where} has a carriage return inside.")
        if "\0" in line:
            raise DataError(f"{where} has a NUL byte inside: {line[:60]!r}.")
        if '"' in line:
            read = list(csv.reader([line, ""], delimiter="\t"))
            if len(read) != 2 or len(read[0]) != found:
                raise DataError(f"{where}: a field opens with a quotation mark that is not closed.")

    def require(self, column: str, kind: str | None = None) -> None:
        """An error names the nearest column where this one is missing, or the type it must have:
        RecBole reads a column by its type.
        """
        if column not in self.columns:
            raise DataError(
                f"{self.path.name} has no column '{column}'. {nearest(column, self.columns)}"
            )
        if kind and self.types[column] != kind:
            raise DataError(
                f"{self.path.name}: field '{column}' has type '{self.types[column]}', must be "
                f"'{kind}': '{column}:{kind}' in the first line."
            )

    def read(self, wanted: Sequence[str]) -> dict[str, "pd.Series[str]"]:
        """These columns of tokens, whole."""
        for column in wanted:
            self.require(column, "token")
        return self._text_of(wanted)

    def _text_of(self, wanted: Sequence[str]) -> dict[str, "pd.Series[str]"]:
        frame = pd.read_csv(
            io.StringIO(self._text), sep="\t", quoting=3, dtype=str, na_filter=False,
            names=self.columns, header=0, usecols=list(wanted), skip_blank_lines=False,
            index_col=False,
        )  # fmt: skip
        return {column: frame[column] for column in wanted}

    def numbers(self, column: str) -> Floats:
        """A numeric column; an error names the first line that is no finite number."""
        self.require(column, "float")
        text = self._text_of([column])[column]
        values, bad = _numbers(text)
        if len(bad):
            raise DataError(
                f"{self.path.name}, line {bad[0] + 2}: '{column}' is {text.iloc[bad[0]]!r}, not a "
                f"finite number (NaN or text in {len(bad)} lines)."
            )
        return values

    def values_of(self, column: str, field: str, tokens: list[str]) -> Floats:
        """The numbers that a column of any type holds for these tokens of ``field``."""
        self.require(column)
        text = self._text_of([field, column]).values()
        table = pd.DataFrame(dict(zip(("token", "value"), text, strict=True)))
        found = table.drop_duplicates("token", keep="last").set_index("token")["value"]
        values, bad = _numbers(found.reindex(tokens))
        if len(bad):
            raise DataError(
                f"{self.path.name}: '{column}' of '{tokens[bad[0]]}' is no number "
                f"({len(bad)} such)."
            )
        return values

    def check_feature(self, column: str) -> None:
        """An error names the first line in which a feature of numbers holds anything else; what
        is missing RecBole fills.
        """
        self.require(column)
        kind = self.types[column]
        if not kind.startswith("float"):
            return
        text = self._text_of([column])[column]
        numbers = text.str.split(" ").explode() if kind == "float_seq" else text
        numbers = numbers[~numbers.isin(MISSING if kind == "float" else {""})]
        if len(text) and not len(numbers):
            raise DataError(f"{self.path.name}: '{column}' has no value in any line.")
        bad = numbers.index[_numbers(numbers)[1]]
        if len(bad):
            raise DataError(
                f"{self.path.name}, line {bad[0] + 2}: '{column}' is {text[bad[0]]!r}, which is no "
                f"'{kind}' of finite numbers."
            )

    def with_zeros(self, where: Mapping[str, npt.NDArray[np.bool_]]) -> Self:
        """A copy that has 0 in these columns of these lines."""
        found = copy.copy(self)
        found.lines = list(self.lines)
        for column, chosen in where.items():
            place = self.columns.index(column)
            for row in np.flatnonzero(chosen).tolist():
                texts = found.lines[row].split("\t")
                texts[place] = "0"
                found.lines[row] = "\t".join(texts)
        found._text = "\n".join([self.header, *found.lines])
        return found

    def with_labels(self, kept: Sequence[str], labels: Mapping[str, npt.NDArray[np.bool_]]) -> Self:
        """A copy that has these columns of tokens, and these of 0 and 1, alone."""
        found = copy.copy(self)
        tokens = [*self.read(kept).values()]
        marks = [np.where(label, "1", "0") for label in labels.values()]
        named = [*(f"{name}:token" for name in kept), *(f"{name}:float" for name in labels)]
        found.header, found.columns = "\t".join(named), [*kept, *labels]
        found.types = dict(column.split(":", 1) for column in named)
        found._check_header()
        found.lines = ["\t".join(texts) for texts in zip(*tokens, *marks, strict=True)]
        found._text = "\n".join([found.header, *found.lines])
        return found

    def part(self, rows: Iterable[int]) -> Self:
        """A copy that has these lines alone."""
        found = copy.copy(self)
        found.lines = [self.lines[row] for row in rows]
        found._text = "\n".join([self.header, *found.lines])
        return found

    def write(self, path: Path, rows: Iterable[int] | None = None) -> None:
        """The header and these lines (all without ``rows``)."""
        lines = self.lines if rows is None else [self.lines[row] for row in rows]
        write_file(path, "\n".join([self.header, *lines]) + "\n")


def _numbers(text: "pd.Series[Any]") -> tuple[Floats, Ints]:
    """The values, and the places of those that are no finite number."""
    values: Floats = pd.to_numeric(text, errors="coerce").to_numpy(dtype=np.float64)
    return values, np.flatnonzero(~np.isfinite(values))


def write_file(path: Path, text: str) -> None:
    """Write and sync, so that a folder that was renamed into place is whole."""
    with open(path, "w", encoding="utf-8", newline="\n") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
