"""Errors a user can act on: each names what was found, what is allowed, and the nearest name."""

from collections.abc import Iterable
from difflib import get_close_matches


class RecboleMetaError(ValueError):
    """What every error of this package is."""


class SettingError(RecboleMetaError):
    """A setting, a name or a YAML file that cannot be used."""


class DataError(RecboleMetaError):
    """A data set or a prepared folder that cannot be used."""


class Diverged(DataError):
    """A training whose loss is no number any more."""


class LeakError(RecboleMetaError):
    """What a run would learn from contains what it is judged on."""


def nearest(name: str, allowed: Iterable[str]) -> str:
    """A sentence to end a message with: the nearest allowed name, or all of them."""
    options = sorted(set(allowed))
    by_lower = {option.lower(): option for option in options}
    close = get_close_matches(name.lower(), by_lower, n=1, cutoff=0.6)
    if close:
        return f"Did you mean '{by_lower[close[0]]}'?"
    return f"Allowed: {', '.join(options)}." if options else "None is allowed here."
