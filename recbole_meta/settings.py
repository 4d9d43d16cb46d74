"""Typed settings, read from YAML; the YAML files of ``properties/`` are the only place for
defaults.
"""

import math
import re
import types
import typing
from collections.abc import Mapping
from contextlib import suppress
from copy import deepcopy
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import Annotated, Any, TypeVar

import yaml

from recbole_meta.errors import SettingError, nearest

S = TypeVar("S")


@dataclass(frozen=True)
class Least:
    """The bound of a number, or of a list's length: at least ``value``, or above it."""

    value: float
    above: bool = False

    def check(self, number: "float | tuple[Any, ...]", where: str) -> None:
        """An error names the setting, what it may be and what it is."""
        if isinstance(number, tuple):
            if len(number) < self.value:
                raise SettingError(
                    f"{where} must list at least {self.value:g}, found {len(number)}."
                )
            return
        if number < self.value or (self.above and number == self.value):
            bound = "above" if self.above else "at least"
            raise SettingError(f"{where} must be {bound} {self.value:g}, found {number}.")


@dataclass(frozen=True)
class Below:
    """The bound of a number: below ``value``."""

    value: float

    def check(self, number: float, where: str) -> None:
        """An error names the setting, what it may be and what it is."""
        if number >= self.value:
            raise SettingError(f"{where} must be below {self.value:g}, found {number}.")


Count = Annotated[int, Least(0)]
Size = Annotated[int, Least(1)]
Weight = Annotated[float, Least(0)]
Positive = Annotated[float, Least(0, above=True)]
Share = Annotated[float, Least(0), Below(1)]


class YamlLoader(yaml.SafeLoader):
    """YAML without code in it, in which 1e-5 is a number, too."""


YamlLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"),
    list("-+0123456789"),
)


@cache
def properties_folder() -> Path:
    """``properties/``: inside the package (wheel) or beside it (checkout, editable install)."""
    package = Path(__file__).resolve().parent
    for folder in (package / "properties", package.parent / "properties"):
        if folder.is_dir():
            return folder
    raise SettingError(f"No folder 'properties' in {package} or beside it: the install is damaged.")


def names(kind: str) -> list[str]:
    """The names with a YAML in ``properties/<kind>``, sorted."""
    return sorted(path.stem for path in (properties_folder() / kind).glob("*.yaml"))


@cache
def _parsed(text: str) -> Any:
    """A page is read for each of its settings that is checked; parsing it is slow."""
    return yaml.load(text, YamlLoader)


def load_yaml(path: Path) -> dict[str, Any]:
    """A YAML file as a dictionary; an empty file is an empty dictionary."""
    try:
        content = deepcopy(_parsed(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, yaml.YAMLError) as error:  # ValueError: no UTF-8, no such date
        raise SettingError(f"Cannot read the settings file {path}: {error}") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise SettingError(f"{path} must hold 'key: value' lines, found {type(content).__name__}.")
    return content


def load_properties(kind: str, name: str) -> dict[str, Any]:
    """``properties/<kind>/<name>.yaml``, or an error with the nearest name."""
    path = properties_folder() / kind / f"{name}.yaml"
    if not path.is_file():
        raise SettingError(f"Unknown {kind} '{name}'. {nearest(name, names(kind))}")
    return load_yaml(path)


def read_settings(cls: type[S], values: Mapping[str, Any], where: str) -> S:
    """The frozen dataclass ``cls`` from ``values``; a missing, unknown or mistyped key is an error.

    So is a number that is not finite or out of the bounds of the field's type (`Count`, `Size`,
    `Weight`, `Positive`). Integers pass as floats; a list becomes a tuple where the field is one.
    """
    types_of = typing.get_type_hints(cls, include_extras=True)
    wanted = [field.name for field in fields(cls)]  # type: ignore[arg-type]
    for key in values:
        if key not in wanted:
            raise SettingError(f"{where}: unknown setting '{key}'. {nearest(str(key), wanted)}")
    missing = [key for key in wanted if key not in values]
    if missing:
        raise SettingError(f"{where}: missing setting '{missing[0]}'.")
    return cls(**{key: _typed(values[key], types_of[key], f"{where}: '{key}'") for key in wanted})


def _typed(value: Any, wanted: Any, where: str) -> Any:
    if wanted is Any:
        return value
    origin, arguments = typing.get_origin(wanted), typing.get_args(wanted)
    if origin is Annotated:
        value = _typed(value, arguments[0], where)
        for bound in arguments[1:]:
            bound.check(value, where)
        return value
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        kinds = [kind for kind in arguments if kind is not type(None)]
        if len(kinds) == 1:
            return _typed(value, kinds[0], where)
        for kind in kinds:
            with suppress(SettingError):
                return _typed(value, kind, where)
        raise SettingError(f"{where} must be of type {wanted}, found {value!r}.")
    if origin is typing.Literal:
        if not any(value == entry and type(value) is type(entry) for entry in arguments):
            allowed = [str(argument) for argument in arguments]
            raise SettingError(f"{where} is {value!r}. {nearest(str(value), allowed)}")
        return value
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise SettingError(f"{where} must be a list, found {value!r}.")
        return tuple(_typed(entry, arguments[0], where) for entry in value)
    if origin is dict:
        if not isinstance(value, dict):
            raise SettingError(f"{where} must be 'name: value' pairs, found {value!r}.")
        return {
            _typed(k, arguments[0], where): _typed(v, arguments[1], where) for k, v in value.items()
        }
    if wanted is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(value, float) and not math.isfinite(value):
        raise SettingError(f"{where} must be a finite number, found {value!r}.")
    if not isinstance(value, wanted) or (isinstance(value, bool) and wanted is not bool):
        raise SettingError(f"{where} must be of type {wanted.__name__}, found {value!r}.")
    return value


class Over:
    """A config with other values for some settings."""

    def __init__(self, config: Any, values: Mapping[str, Any]) -> None:
        self.config, self.values = config, values

    def __getitem__(self, name: str) -> Any:
        return self.values[name] if name in self.values else self.config[name]


def named_page(kind: str, name: str) -> tuple[str, dict[str, Any]]:
    """The name and the content of a page: of ``properties/<kind>``, or a path to a .yaml."""
    if name.endswith(".yaml"):
        return Path(name).stem, load_yaml(Path(name))
    return name, load_properties(kind, name)
