"""Labels written as expressions of columns, such as ``rating >= 4``; nothing is ever run as code.

Columns, numbers, ``+ - * /``, comparisons, ``and or not`` and brackets. True is 1, False 0; a row
where a column has no number has no label, NaN.
"""

import ast
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from recbole_meta.errors import SettingError, nearest

Floats = npt.NDArray[np.float64]

_BINARY: dict[type, Callable[[Any, Any], Any]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: np.divide,
}  # fmt: skip
_COMPARE: dict[type, Callable[[Any, Any], Any]] = {
    ast.Gt: operator.gt, ast.GtE: operator.ge, ast.Lt: operator.lt, ast.LtE: operator.le,
    ast.Eq: operator.eq, ast.NotEq: operator.ne,
}  # fmt: skip


@dataclass(frozen=True)
class Expression:
    """A parsed expression; ``columns`` are those that it names, in order."""

    text: str
    tree: ast.expr
    columns: tuple[str, ...]

    def of(self, columns: Mapping[str, Floats]) -> Floats:
        """The value of every row, [N]."""
        missing = [name for name in self.columns if name not in columns]
        if missing:
            raise SettingError(
                f"Expression '{self.text}': there is no column '{missing[0]}' of numbers. "
                f"{nearest(missing[0], columns)}"
            )
        with np.errstate(divide="ignore", invalid="ignore"):
            value = np.asarray(_value(self.tree, columns), dtype=np.float64)
        unknown = np.isnan(np.stack([columns[name] for name in self.columns])).any(0)
        return np.where(unknown | ~np.isfinite(value), np.nan, value)


def parse(text: str, where: str) -> Expression:
    """The expression, refused where it is anything else."""
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError) as error:
        raise SettingError(f"{where}: '{text}' is no expression: {error}") from error
    columns: dict[str, None] = {}
    _check(tree, text, where, columns)
    if not columns:
        raise SettingError(f"{where}: '{text}' names no column.")
    return Expression(text, tree, tuple(columns))


def _check(tree: ast.AST, text: str, where: str, columns: dict[str, None]) -> None:
    if isinstance(tree, ast.Name):
        columns[tree.id] = None
        return
    number = isinstance(tree, ast.Constant) and type(tree.value) in (int, float)
    allowed = (
        number
        or isinstance(tree, ast.BoolOp)
        or (isinstance(tree, ast.UnaryOp) and isinstance(tree.op, ast.USub | ast.Not))
        or (isinstance(tree, ast.BinOp) and type(tree.op) in _BINARY)
        or (isinstance(tree, ast.Compare) and all(type(op) in _COMPARE for op in tree.ops))
    )
    if not allowed:
        part = ast.unparse(tree)
        raise SettingError(
            f"{where}: '{part}' in '{text}' is not read: columns, numbers, + - * /, comparisons, "
            "and, or, not only."
        )
    for child in ast.iter_child_nodes(tree):
        if isinstance(child, ast.expr):
            _check(child, text, where, columns)


def _value(tree: ast.expr, columns: Mapping[str, Floats]) -> Any:
    if isinstance(tree, ast.Name):
        return columns[tree.id]
    if isinstance(tree, ast.Constant):
        return np.float64(tree.value)  # type: ignore[arg-type]
    if isinstance(tree, ast.UnaryOp):
        value = _value(tree.operand, columns)
        return -value if isinstance(tree.op, ast.USub) else ~_true(value)
    if isinstance(tree, ast.BinOp):
        return _BINARY[type(tree.op)](
            _number(_value(tree.left, columns)), _number(_value(tree.right, columns))
        )
    if isinstance(tree, ast.BoolOp):
        parts = [_true(_value(part, columns)) for part in tree.values]
        join = np.logical_and if isinstance(tree.op, ast.And) else np.logical_or
        return join.reduce(parts)
    assert isinstance(tree, ast.Compare)
    sides = [_number(_value(side, columns)) for side in (tree.left, *tree.comparators)]
    pairs = zip(tree.ops, sides, sides[1:], strict=False)
    return np.logical_and.reduce([_COMPARE[type(op)](a, b) for op, a, b in pairs])


def _true(value: Any) -> Any:
    return np.asarray(value) != 0


def _number(value: Any) -> Any:
    return np.asarray(value, dtype=np.float64)
